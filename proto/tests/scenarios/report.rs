//! Reports of a world's peers.

use std::time::Duration;

use libp2p_punch_proto::event::{Event, FailureReason, Phase, SessionRole};

use crate::harness::World;

impl World {
    /// Returns the time at which a peer's session first came to `phase` as `role`.
    pub(crate) fn reached(&self, node: usize, role: SessionRole, phase: Phase) -> Option<Duration> {
        self.nodes[node].events.iter().find_map(|(at, event)| match event {
            Event::Phase { role: r, to, .. } if *r == role && *to == phase => Some(*at),
            _ => None,
        })
    }

    pub(crate) fn connected(&self, node: usize) -> Vec<(Duration, SessionRole)> {
        let events = self.nodes[node].events.iter();
        events
            .filter_map(|(at, event)| match event {
                Event::Connected { role, .. } => Some((*at, *role)),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn failed(&self, node: usize) -> Vec<(Duration, FailureReason)> {
        let events = self.nodes[node].events.iter();
        events
            .filter_map(|(at, event)| match event {
                Event::Failed { reason, .. } => Some((*at, *reason)),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn retries(&self, node: usize) -> Vec<(Duration, FailureReason, Duration)> {
        let events = self.nodes[node].events.iter();
        events
            .filter_map(|(at, event)| match event {
                Event::Retry { reason, delay, .. } => Some((*at, *reason, *delay)),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn assert_nothing_left(&self, node: usize) {
        let endpoint = &self.nodes[node].endpoint;
        assert_eq!(endpoint.sessions(), 0);
        assert_eq!(endpoint.counters().in_flight, 0);
        self.assert_counted(node);
    }

    pub(crate) fn assert_counted(&self, node: usize) {
        let c = self.nodes[node].endpoint.counters();
        assert_eq!(c.attempts, c.successes + c.failures + c.in_flight, "{c:?}");
    }
}
