//! Waiting on the clock of a [`quinn::Runtime`], which a simulation may pause.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use quinn::{AsyncTimer, Runtime};

/// Ready once the time is up.
#[derive(Debug)]
pub(crate) struct Delay(Pin<Box<dyn AsyncTimer>>);

impl Delay {
    pub(crate) fn new(runtime: &dyn Runtime, duration: Duration) -> Self {
        Self(runtime.new_timer(runtime.now() + duration))
    }
}

impl Future for Delay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}
