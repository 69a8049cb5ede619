//! The way into the network: addresses that are dialed until one answers, and again whenever no
//! peer that leads into the network is connected.

use std::time::Duration;

use libp2p_core::Multiaddr;
use tokio::time::Instant;

/// Time between the first two rounds. It doubles with each further round.
const FIRST_DELAY: Duration = Duration::from_secs(2);
const MAX_DELAY: Duration = Duration::from_secs(60);
/// Time between two checks while the node is not alone.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Bootstrap addresses, and the time of their next round.
#[derive(Debug)]
pub(super) struct Bootstrap {
    addresses: Vec<Multiaddr>,
    /// `None` until the node listens.
    next: Option<Instant>,
    delay: Duration,
}

impl Bootstrap {
    pub(super) fn new(addresses: Vec<Multiaddr>) -> Self {
        Self { addresses, next: None, delay: FIRST_DELAY }
    }

    /// Begins the first round. The node listens: earlier dials would go out from sockets of their
    /// own, at whose addresses no peer reaches it.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = Some(now);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// `None` without addresses, and before the node listens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next.filter(|_| !self.addresses.is_empty())
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|next| next <= now)
    }

    /// Returns the addresses to dial now: all if the node is alone, and else none.
    pub(super) fn dial(&mut self, now: Instant, is_alone: bool) -> Vec<Multiaddr> {
        if !is_alone {
            self.next = Some(now + CHECK_INTERVAL);
            self.delay = FIRST_DELAY;
            return Vec::new();
        }
        self.next = Some(now + self.delay);
        self.delay = (self.delay * 2).min(MAX_DELAY);
        self.addresses.clone()
    }

    /// A connection closed, and the node is alone: the next round is due soon.
    pub(super) fn retry(&mut self, now: Instant) {
        self.next = self.next.map(|next| next.min(now + self.delay));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stays_alone_tries_less_and_less_often() {
        let mut bootstrap = Bootstrap::new(vec![Multiaddr::empty()]);
        assert_eq!(bootstrap.deadline(), None, "the node does not listen yet");
        bootstrap.begin(Instant::now());
        let mut gaps = Vec::new();
        for _ in 0..8 {
            let now = bootstrap.deadline().unwrap();
            assert!(bootstrap.is_due(now));
            assert_eq!(bootstrap.dial(now, true).len(), 1);
            gaps.push((bootstrap.deadline().unwrap() - now).as_secs());
        }
        assert_eq!(gaps, [2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_lost_its_last_connection_tries_soon() {
        let mut bootstrap = Bootstrap::new(vec![Multiaddr::empty()]);
        let now = Instant::now();
        assert_eq!(bootstrap.dial(now, false), []);
        bootstrap.retry(now);
        assert_eq!(bootstrap.deadline(), Some(now + FIRST_DELAY));
    }
}
