//! How long mappings last that are in use.
//!
//! RFC 4787 REQ-5 lets a mapping go once nobody has used it for two minutes. Some carriers let every one go after a minute
//! or so, used or not: whoever has a connection over it is at another address from one packet to the next. An observer
//! sees that, and so how long the mapping stood.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::{Evidence, Finding};

/// Mappings whose end is remembered.
const MAX_ENDS: usize = 8;

/// A mapping that was given up while it was in use.
#[derive(Debug)]
struct End {
    lived: Duration,
    /// It began when one before it ended. Otherwise it may be older than we know.
    whole: bool,
    /// The mapping in its place.
    next: SocketAddr,
    seen_by: Vec<(PeerId, Instant)>,
}

/// The mappings that ended lately, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Lifetimes {
    ends: VecDeque<End>,
}

impl Lifetimes {
    /// A mapping that has been known since `born` is gone, says an observer, and `next` has taken its place.
    pub(super) fn ended(
        &mut self,
        (old, born): (SocketAddr, Instant),
        (next, observer): (SocketAddr, PeerId),
        now: Instant,
    ) {
        let whole = self.ends.iter().any(|end| end.next == old);
        if self.ends.len() >= MAX_ENDS {
            self.ends.pop_front();
        }
        let lived = now.saturating_duration_since(born);
        self.ends.push_back(End { lived, whole, next, seen_by: vec![(observer, now)] });
    }

    /// Another observer has seen the mapping that took the place of one which ended.
    pub(super) fn confirm(&mut self, next: SocketAddr, observer: PeerId, now: Instant) {
        let end = self.ends.iter_mut().rev().find(|end| end.next == next);
        if let Some(end) = end.filter(|end| end.seen_by.iter().all(|(peer, _)| *peer != observer)) {
            end.seen_by.push((observer, now));
        }
    }

    /// A mapping in use is this old and still stands: what ended much sooner ended for another reason, as when a box is
    /// switched off and on.
    pub(crate) fn outlived(&mut self, age: Duration) {
        self.ends.retain(|end| end.lived * 2 >= age);
    }

    /// The ends that tell most.
    fn used(&self) -> impl Iterator<Item = &End> {
        let any_whole = self.ends.iter().any(|end| end.whole);
        self.ends.iter().filter(move |end| end.whole || !any_whole)
    }

    /// The shortest life of a mapping that was in use, if the NAT ends such ones.
    pub(crate) fn shortest(&self) -> Option<Duration> {
        self.used().map(|end| end.lived).min()
    }

    /// As [`shortest`](Self::shortest), with who has seen it.
    pub(crate) fn finding(&self) -> Option<Finding<Duration>> {
        let evidence = Evidence::new(self.used().flat_map(|end| end.seen_by.iter().copied()))?;
        Some(Finding::agreed(self.shortest()?, evidence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::Confidence;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 1], port))
    }

    #[test]
    fn a_mapping_whose_beginning_was_not_seen_counts_until_one_is_known_whole() {
        let (mut lifetimes, start, peer) = (Lifetimes::default(), Instant::now(), PeerId::random());
        let after = |secs| start + Duration::from_secs(secs);
        assert_eq!(lifetimes.finding(), None);
        lifetimes.ended((at(1), start), (at(2), peer), after(5));
        assert_eq!(lifetimes.shortest(), Some(Duration::from_secs(5)));
        lifetimes.ended((at(2), after(5)), (at(3), peer), after(65));
        lifetimes.ended((at(3), after(65)), (at(4), peer), after(120));
        assert_eq!(lifetimes.shortest(), Some(Duration::from_secs(55)));
        let finding = lifetimes.finding().unwrap();
        assert_eq!((finding.confidence, finding.evidence.observations), (Confidence::Low, 2));
    }

    #[test]
    fn a_mapping_that_stands_twice_as_long_shows_that_an_end_was_an_accident() {
        let (mut lifetimes, start) = (Lifetimes::default(), Instant::now());
        let end = start + Duration::from_secs(20);
        lifetimes.ended((at(1), start), (at(2), PeerId::random()), end);
        lifetimes.outlived(Duration::from_secs(40));
        assert_eq!(lifetimes.shortest(), Some(Duration::from_secs(20)));
        lifetimes.outlived(Duration::from_secs(41));
        assert_eq!(lifetimes.shortest(), None);
    }

    #[test]
    fn a_second_observer_makes_it_surer_and_the_oldest_is_forgotten() {
        let (mut lifetimes, start) = (Lifetimes::default(), Instant::now());
        let peers = [PeerId::random(), PeerId::random()];
        for n in 0..20u16 {
            let born = start + Duration::from_secs(60 * u64::from(n));
            let now = born + Duration::from_secs(60 - u64::from(n));
            lifetimes.ended((at(n + 1), born), (at(n + 2), peers[0]), now);
            lifetimes.confirm(at(n + 2), peers[1], now);
            lifetimes.confirm(at(n + 2), peers[1], now);
        }
        let finding = lifetimes.finding().unwrap();
        assert_eq!(finding.confidence, Confidence::Medium);
        assert_eq!(finding.evidence.observations, 2 * MAX_ENDS);
        assert_eq!(finding.value, Duration::from_secs(41));
    }
}
