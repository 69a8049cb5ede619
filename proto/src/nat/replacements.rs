//! Replacements of mappings that are in use, and the lifetime that they show.
//!
//! RFC 4787 REQ-5 lets a NAT drop a mapping after two minutes without traffic. Some carriers drop
//! every mapping after about a minute, with or without traffic. A connection then has another
//! public address from one packet to the next. Observers report the new address, and the time
//! between two such reports is the lifetime of the mapping.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::{Evidence, Finding};

/// Maximum number of ends that are kept.
const MAX_ENDS: usize = 8;

/// End of a mapping that was in use.
#[derive(Debug)]
struct End {
    lived: Duration,
    /// The mapping replaced an earlier one whose end is known, so its whole life was observed.
    /// Otherwise the mapping may be older.
    whole: bool,
    /// Address of the mapping that replaced this one.
    next: SocketAddr,
    seen_by: Vec<(PeerId, Instant)>,
}

/// Replacement of a mapping that was in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replacement {
    /// Address of the mapping that has ended.
    pub(super) old: SocketAddr,
    /// Time of the first observation of that mapping.
    pub(super) born: Instant,
    /// Address of the mapping that followed.
    pub(super) next: SocketAddr,
    /// The peer that saw both.
    pub(super) observer: PeerId,
}

/// Ends of mappings, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Replacements {
    ends: VecDeque<End>,
}

impl Replacements {
    /// Records that an observer saw a mapping replaced by another.
    pub(super) fn record(&mut self, replacement: Replacement, now: Instant) {
        let Replacement { old, born, next, observer } = replacement;
        let whole = self.ends.iter().any(|end| end.next == old);
        if self.ends.len() >= MAX_ENDS {
            self.ends.pop_front();
        }
        let lived = now.saturating_duration_since(born);
        self.ends.push_back(End { lived, whole, next, seen_by: vec![(observer, now)] });
    }

    /// Adds an observer that has seen the mapping `next` replace an earlier one.
    pub(super) fn confirm(&mut self, next: SocketAddr, observer: PeerId, now: Instant) {
        let end = self.ends.iter_mut().rev().find(|end| end.next == next);
        if let Some(end) = end.filter(|end| end.seen_by.iter().all(|(peer, _)| *peer != observer)) {
            end.seen_by.push((observer, now));
        }
    }

    /// Drops ends that a mapping in use of this age refutes: a mapping that ended much sooner had
    /// another cause, such as a restart of the NAT.
    pub(crate) fn outlived(&mut self, age: Duration) {
        self.ends.retain(|end| end.lived * 2 >= age);
    }

    /// Returns the ends with the best evidence.
    fn used(&self) -> impl Iterator<Item = &End> {
        let any_whole = self.ends.iter().any(|end| end.whole);
        self.ends.iter().filter(move |end| end.whole || !any_whole)
    }

    /// Returns the shortest lifetime of a mapping in use, if the NAT ends such mappings.
    pub(crate) fn shortest_lifetime(&self) -> Option<Duration> {
        self.used().map(|end| end.lived).min()
    }

    /// Returns the shortest lifetime with its evidence.
    pub(crate) fn finding(&self) -> Option<Finding<Duration>> {
        let evidence = Evidence::new(self.used().flat_map(|end| end.seen_by.iter().copied()))?;
        Some(Finding::agreed(self.shortest_lifetime()?, evidence))
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
        let (mut replacements, start, peer) = (Replacements::default(), Instant::now(), PeerId::random());
        let after = |secs| start + Duration::from_secs(secs);
        assert_eq!(replacements.finding(), None);
        replacements.record(Replacement { old: at(1), born: start, next: at(2), observer: peer }, after(5));
        assert_eq!(replacements.shortest_lifetime(), Some(Duration::from_secs(5)));
        replacements
            .record(Replacement { old: at(2), born: after(5), next: at(3), observer: peer }, after(65));
        replacements
            .record(Replacement { old: at(3), born: after(65), next: at(4), observer: peer }, after(120));
        assert_eq!(replacements.shortest_lifetime(), Some(Duration::from_secs(55)));
        let finding = replacements.finding().unwrap();
        assert_eq!((finding.confidence, finding.evidence.observations), (Confidence::Low, 2));
    }

    #[test]
    fn a_mapping_that_stands_twice_as_long_shows_that_an_end_was_an_accident() {
        let (mut replacements, start) = (Replacements::default(), Instant::now());
        let end = start + Duration::from_secs(20);
        replacements
            .record(Replacement { old: at(1), born: start, next: at(2), observer: PeerId::random() }, end);
        replacements.outlived(Duration::from_secs(40));
        assert_eq!(replacements.shortest_lifetime(), Some(Duration::from_secs(20)));
        replacements.outlived(Duration::from_secs(41));
        assert_eq!(replacements.shortest_lifetime(), None);
    }

    #[test]
    fn a_second_observer_makes_it_surer_and_the_oldest_is_forgotten() {
        let (mut replacements, start) = (Replacements::default(), Instant::now());
        let peers = [PeerId::random(), PeerId::random()];
        for n in 0..20u16 {
            let born = start + Duration::from_secs(60 * u64::from(n));
            let now = born + Duration::from_secs(60 - u64::from(n));
            replacements
                .record(Replacement { old: at(n + 1), born, next: at(n + 2), observer: peers[0] }, now);
            replacements.confirm(at(n + 2), peers[1], now);
            replacements.confirm(at(n + 2), peers[1], now);
        }
        let finding = replacements.finding().unwrap();
        assert_eq!(finding.confidence, Confidence::Medium);
        assert_eq!(finding.evidence.observations, 2 * MAX_ENDS);
        assert_eq!(finding.value, Duration::from_secs(41));
    }
}
