//! The engine of the network: the locked state, the taps, and the task that processes events.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    state::{Effects, State},
    trace::Packet,
};

type Tap = Box<dyn FnMut(Packet<'_>) + Send>;

/// Handle of the engine. Worlds, hosts, gateways and sockets hold clones of it.
#[derive(Clone)]
pub(crate) struct Engine(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    taps: Mutex<Vec<Tap>>,
}

impl Engine {
    /// Starts the task that processes events.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled.
    pub(crate) fn start(seed: u64) -> Self {
        let shared = Arc::new(Shared { state: Mutex::new(State::new(seed)), taps: Mutex::default() });
        let sleep = Box::pin(sleep_until(Instant::now()));
        tokio::spawn(Driver { engine: Arc::downgrade(&shared), sleep });
        Self(shared)
    }

    /// Acts on the state; see [`Shared::with`].
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        self.0.with(act)
    }

    /// Shows every datagram to `tap` once its fate is final.
    pub(crate) fn add_tap(&self, tap: impl FnMut(Packet<'_>) + Send + 'static) {
        self.0.taps.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(tap));
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Engine").finish_non_exhaustive()
    }
}

impl Shared {
    /// Acts under the lock; then, without it, wakes readers and shows finished journeys to the
    /// taps.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut state);
        let Effects { wakers, ended } = std::mem::take(&mut state.effects);
        drop(state);
        wakers.into_iter().for_each(|waker| waker.wake());
        if !ended.is_empty() {
            let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
            for (record, payload) in &ended {
                tracing::trace!(%record, "datagram");
                taps.iter_mut().for_each(|tap| tap(Packet { record, payload }));
            }
        }
        result
    }
}

impl Drop for Shared {
    /// Wakes the driver, which then ends.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = state.driver.take() {
            driver.wake();
        }
    }
}

/// Task that processes events when they are due.
struct Driver {
    engine: Weak<Shared>,
    sleep: Pin<Box<Sleep>>,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(engine) = self.engine.upgrade() else { return Poll::Ready(()) };
        loop {
            let next = engine.with(|state| {
                state.advance(Instant::now());
                state.driver = Some(cx.waker().clone());
                state.events.next()
            });
            let Some(next) = next else { return Poll::Pending };
            self.sleep.as_mut().reset(next);
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
