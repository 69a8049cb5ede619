//! The interface of the crate `futures-timer`, on tokio's clock.
//!
//! libp2p's swarm and behaviours take their timers from `futures-timer`, which has a thread and
//! follows the wall clock. In a simulated network time jumps, and those timers would fire at any
//! simulated time. This workspace replaces the crate, so that every timer of a simulated node
//! follows the network's clock. With a running clock both behave the same.

#![forbid(unsafe_code)]

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Longest delay, for one that has no end in practice: tokio's clock must be able to show its end.
const MAX_DELAY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Future that is ready at a time. Its first poll must happen within a tokio runtime.
pub struct Delay {
    deadline: Instant,
    /// Made at the first poll, because a delay may be made outside of a runtime.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Delay {
    /// Creates a delay that is ready `after` from now.
    pub fn new(after: Duration) -> Self {
        Self { deadline: deadline(after), sleep: None }
    }

    /// Makes the delay ready `after` from now.
    pub fn reset(&mut self, after: Duration) {
        self.deadline = deadline(after);
        if let Some(sleep) = &mut self.sleep {
            sleep.as_mut().reset(self.deadline);
        }
    }
}

fn deadline(after: Duration) -> Instant {
    Instant::now() + after.min(MAX_DELAY)
}

impl Default for Delay {
    fn default() -> Self {
        Self::new(Duration::ZERO)
    }
}

impl Future for Delay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline))).as_mut().poll(cx)
    }
}

impl fmt::Debug for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delay").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
