//! Reasons to keep a connection open that no stream uses.
//!
//! The swarm asks a handler whether it keeps the connection each time it polls the connection. A
//! reason that ends at some time must therefore wake the connection at that time, or the connection
//! stays open until something else happens on it.

use std::{
    pin::Pin,
    sync::Arc,
    task::Context,
    time::{Duration, Instant},
};

use quinn::{AsyncTimer, Runtime};

/// Time after which the connection is polled once, whatever we know of it. The handler of a relay
/// server (libp2p-relay 0.22) keeps each connection for ten seconds from its first poll, and does
/// not wake the connection then.
const RELAY_IDLE_TIME: Duration = Duration::from_secs(11);

/// The reasons of one connection.
pub(super) struct KeepAlive {
    runtime: Arc<dyn Runtime>,
    /// The peer is a coordinator that we need.
    pub(super) is_coordinator: bool,
    /// Relayed connections to the same peer drain.
    pub(super) is_draining: bool,
    /// The peer has registered us until then.
    own_registration_until: Option<Instant>,
    /// We have registered the peer until then.
    peers_registration_until: Option<Instant>,
    /// A peer that opened the control stream to a coordinator is about to ask, or waits for an
    /// answer, until then at most.
    asks_until: Option<Instant>,
    /// The handlers of other behaviours may keep the connection until then; `None` before the first
    /// poll.
    others_until: Option<Instant>,
    timer: Option<Pin<Box<dyn AsyncTimer>>>,
}

impl KeepAlive {
    pub(super) fn new(runtime: Arc<dyn Runtime>, is_coordinator: bool) -> Self {
        Self {
            others_until: None,
            runtime,
            is_coordinator,
            is_draining: false,
            own_registration_until: None,
            peers_registration_until: None,
            asks_until: None,
            timer: None,
        }
    }

    /// The peer registers us for this time from now on; zero if the registration ends.
    pub(super) fn set_own_registration(&mut self, lifetime: Duration) {
        self.own_registration_until = self.runtime.now().checked_add(lifetime);
    }

    /// We register the peer for this time from now on; zero if the registration ends.
    pub(super) fn set_peers_registration(&mut self, lifetime: Duration) {
        self.peers_registration_until = self.runtime.now().checked_add(lifetime);
    }

    /// The peer waits for an answer of ours for at most this time from now on.
    pub(super) fn asked_for(&mut self, time: Duration) {
        self.asks_until = self.asks_until.max(self.runtime.now().checked_add(time));
    }

    /// Returns true if the connection is to stay open.
    pub(super) fn is_needed(&self) -> bool {
        self.is_coordinator
            || self.is_draining
            || self.own_times().into_iter().flatten().any(|until| self.runtime.now() < until)
    }

    fn own_times(&self) -> [Option<Instant>; 3] {
        [self.own_registration_until, self.peers_registration_until, self.asks_until]
    }

    /// Wakes the connection when one of the times has come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if self.others_until.is_none() {
            self.others_until = self.runtime.now().checked_add(RELAY_IDLE_TIME);
        }
        loop {
            let now = self.runtime.now();
            let times = self.own_times().into_iter().chain([self.others_until]).flatten();
            let Some(next) = times.filter(|time| *time > now).min() else {
                self.timer = None;
                return;
            };
            let timer = self.timer.get_or_insert_with(|| self.runtime.new_timer(next));
            timer.as_mut().reset(next);
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::{Wake, Waker},
    };

    use quinn::TokioRuntime;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_is_polled_when_a_reason_to_keep_it_ends() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut keep_alive = KeepAlive::new(Arc::new(TokioRuntime), false);
        keep_alive.set_own_registration(Duration::from_secs(60));
        keep_alive.asked_for(Duration::from_secs(5));
        let begun = tokio::time::Instant::now();
        for (end, is_needed) in
            [(Duration::from_secs(5), true), (RELAY_IDLE_TIME, true), (Duration::from_secs(60), false)]
        {
            keep_alive.poll(&mut Context::from_waker(&waker));
            let before = wakes.0.load(Ordering::Relaxed);
            tokio::time::sleep_until(begun + end - Duration::from_millis(2)).await;
            assert_eq!((wakes.0.load(Ordering::Relaxed), keep_alive.is_needed()), (before, true));
            tokio::time::sleep_until(begun + end + Duration::from_millis(2)).await;
            assert_eq!((wakes.0.load(Ordering::Relaxed), keep_alive.is_needed()), (before + 1, is_needed));
        }
        keep_alive.poll(&mut Context::from_waker(&waker));
        assert!(keep_alive.timer.is_none());
    }
}
