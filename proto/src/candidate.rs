//! Addresses at which a peer may be reached (RFC 8445 §5.1).

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
};

/// Origin of a candidate (RFC 8445 §5.1.1; `Predicted` and `PortMapped` are ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CandidateKind {
    /// An address of a local interface.
    Host,
    /// Address at which an observer saw us.
    ServerReflexive,
    /// Learnt from an authenticated probe of the peer.
    PeerReflexive,
    /// Port that a sequential NAT is expected to give to the next mapping.
    Predicted,
    /// A confirmed external address: a mapping that a gateway granted (NAT-PMP, PCP, UPnP), or a
    /// port that was forwarded by hand.
    PortMapped,
    /// An address on a relay.
    Relayed,
}

impl CandidateKind {
    /// The type preference of RFC 8445 §5.1.2.2. A granted mapping is better than an observed
    /// mapping, and a prediction is worse than either.
    fn preference(self) -> u32 {
        match self {
            CandidateKind::Host => 126,
            CandidateKind::PortMapped => 120,
            CandidateKind::PeerReflexive => 110,
            CandidateKind::ServerReflexive => 100,
            CandidateKind::Predicted => 60,
            CandidateKind::Relayed => 0,
        }
    }
}

/// An address at which a peer may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Names the candidate among those of its peer, as in `ADD_ADDRESS` and `REMOVE_ADDRESS`.
    pub sequence: u64,
    /// Origin of the candidate.
    pub kind: CandidateKind,
    /// RFC 8445 §5.1.2; larger is better.
    pub priority: u32,
    /// The address itself.
    pub address: SocketAddr,
}

/// The priority of a candidate (RFC 8445 §5.1.2.1), for component 1.
///
/// The local preference puts IPv6 above IPv4 (RFC 8445 §5.1.2.1 points to RFC 8421 for that). It is
/// the same for all candidates of one kind and family, so that a new or removed candidate does not
/// change the others.
pub fn priority(kind: CandidateKind, address: IpAddr) -> u32 {
    let local = if address.is_ipv6() { 65_535 } else { 32_767 };
    (kind.preference() << 24) + (local << 8) + 255
}

/// The priority of a pair (RFC 8445 §6.1.2.3).
pub(crate) fn pair_priority(initiator: u32, responder: u32) -> u64 {
    let (low, high) = (initiator.min(responder), initiator.max(responder));
    (u64::from(low) << 32) + 2 * u64::from(high) + u64::from(initiator > responder)
}

/// The priority of a mapped port where probes are ordered: before all others. Any peer reaches it
/// through any NAT, and most interface addresses mean nothing outside of their network.
pub(crate) const MAPPED_PORT_PRIORITY: u32 = (1 << 31) - 1;

/// The order of use: mapped ports first, then by priority.
fn by_use(kind: CandidateKind, priority: u32) -> Reverse<u32> {
    Reverse(if kind == CandidateKind::PortMapped { MAPPED_PORT_PRIORITY } else { priority })
}

/// Keeps the `cap` best of a remote's candidates; returns how many were dropped.
pub(crate) fn keep_best(candidates: &mut Vec<Candidate>, cap: usize) -> usize {
    let dropped = candidates.len().saturating_sub(cap);
    if dropped > 0 {
        candidates.sort_by_key(|c| (by_use(c.kind, c.priority), c.sequence));
        candidates.truncate(cap);
    }
    dropped
}

/// Our own candidates. Sequence numbers are never used twice.
#[derive(Debug, Default)]
pub(crate) struct LocalCandidates {
    /// In the order of sequence numbers.
    list: Vec<Candidate>,
    next_sequence: u64,
}

impl LocalCandidates {
    /// Replaces the candidates by the best `cap` of `wanted`, best first among equals; returns true
    /// if any changed.
    ///
    /// Mapped ports come first. The first reflexive candidate is always kept: for most peers no
    /// other candidate works.
    pub(crate) fn update(&mut self, mut wanted: Vec<(CandidateKind, SocketAddr)>, cap: usize) -> bool {
        wanted.sort_by_key(|(kind, address)| by_use(*kind, priority(*kind, address.ip())));
        let mut chosen: Vec<(CandidateKind, SocketAddr)> = Vec::new();
        for (kind, address) in wanted {
            if chosen.iter().all(|(_, known)| *known != address) {
                chosen.push((kind, address));
            }
        }
        let reflexive = chosen.iter().position(|(kind, _)| *kind == CandidateKind::ServerReflexive);
        if let Some(entry) = reflexive.filter(|i| *i >= cap).and_then(|i| chosen.get(i).copied()) {
            chosen.truncate(cap.saturating_sub(1));
            chosen.push(entry);
        }
        chosen.truncate(cap);
        let before = self.list.len();
        self.list.retain(|c| chosen.contains(&(c.kind, c.address)));
        let mut changed = self.list.len() != before;
        for (kind, address) in chosen {
            if self.list.iter().any(|c| c.kind == kind && c.address == address) {
                continue;
            }
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            self.list.push(Candidate { sequence, kind, priority: priority(kind, address.ip()), address });
            changed = true;
        }
        changed
    }

    pub(crate) fn contains(&self, kind: CandidateKind) -> bool {
        self.list.iter().any(|candidate| candidate.kind == kind)
    }

    /// Returns the candidates for a peer that we reach over loopback, or not over loopback.
    pub(crate) fn of(&self, loopback: bool) -> Vec<Candidate> {
        let usable = |c: &&Candidate| loopback || !c.address.ip().is_loopback();
        self.list.iter().filter(usable).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CandidateKind::{Host, PeerReflexive, PortMapped, Predicted, Relayed, ServerReflexive};

    fn at(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    #[test]
    fn priorities_follow_rfc_8445() {
        let v4 = at("192.0.2.1:1").ip();
        assert_eq!(priority(Host, v4), (126 << 24) + (32_767 << 8) + 255);
        assert_eq!(priority(Relayed, v4), (32_767 << 8) + 255);
        let order = [Host, PortMapped, PeerReflexive, ServerReflexive, Predicted, Relayed];
        assert!(order.windows(2).all(|w| priority(w[0], v4) > priority(w[1], v4)));
        assert!(priority(Host, at("[2001:db8::1]:1").ip()) > priority(Host, v4));
        assert_eq!(pair_priority(2, 1), (1 << 32) + 4 + 1);
        assert_eq!(pair_priority(1, 2), (1 << 32) + 4);
    }

    #[test]
    fn an_address_is_announced_once_under_its_best_kind() {
        let mut local = LocalCandidates::default();
        let address = at("192.0.2.1:1");
        assert!(local.update(vec![(ServerReflexive, address), (Host, address)], 8));
        let all = local.of(false);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].kind, Host);
        assert!(!local.update(vec![(Host, address)], 8), "nothing new");
    }

    #[test]
    fn the_cap_keeps_the_best_and_one_reflexive() {
        let mut local = LocalCandidates::default();
        let mut wanted: Vec<_> = (1..=5).map(|i| (Host, at(&format!("192.168.0.{i}:1")))).collect();
        wanted.push((ServerReflexive, at("203.0.113.1:9")));
        wanted.push((Host, at("[2001:db8::1]:1")));
        local.update(wanted.clone(), 3);
        let kept: Vec<_> = local.of(false).into_iter().map(|c| c.address).collect();
        assert_eq!(kept, [at("[2001:db8::1]:1"), at("192.168.0.1:1"), at("203.0.113.1:9")]);
        local.update(wanted, 1);
        assert_eq!(local.of(false)[0].address, at("203.0.113.1:9"));
    }

    #[test]
    fn interface_addresses_push_out_no_mapped_port_on_either_side() {
        let mut local = LocalCandidates::default();
        let mut wanted: Vec<_> = (1..=9).map(|i| (Host, at(&format!("[2001:db8::{i}]:1")))).collect();
        wanted.push((ServerReflexive, at("203.0.113.1:9")));
        wanted.push((PortMapped, at("203.0.113.1:4001")));
        local.update(wanted.clone(), 4);
        let kinds: Vec<_> = local.of(false).into_iter().map(|c| c.kind).collect();
        assert_eq!(kinds, [PortMapped, Host, Host, ServerReflexive]);
        local.update(wanted, 16);
        let mut remote = local.of(false);
        assert_eq!(keep_best(&mut remote, 3), 8);
        assert_eq!(remote.iter().map(|c| c.kind).collect::<Vec<_>>(), [PortMapped, Host, Host]);
    }

    #[test]
    fn sequence_numbers_stay_with_their_candidate_and_are_not_used_again() {
        let mut local = LocalCandidates::default();
        let [a, b, c] = [at("192.0.2.1:1"), at("192.0.2.2:1"), at("192.0.2.3:1")];
        local.update(vec![(Host, a), (Host, b)], 8);
        local.update(vec![(Host, b)], 8);
        local.update(vec![(Host, c), (Host, b), (Host, a)], 8);
        let all: Vec<_> = local.of(false).into_iter().map(|c| (c.sequence, c.address)).collect();
        assert_eq!(all, [(1, b), (2, c), (3, a)]);
    }

    #[test]
    fn loopback_candidates_are_for_loopback_peers_only() {
        let mut local = LocalCandidates::default();
        local.update(vec![(Host, at("127.0.0.1:1")), (Host, at("192.0.2.1:1"))], 8);
        assert_eq!(local.of(true).len(), 2);
        assert_eq!(local.of(false).len(), 1);
    }

    #[test]
    fn the_best_of_a_remotes_candidates_are_kept() {
        let candidate = |sequence, kind, address: &str| {
            let address = at(address);
            Candidate { sequence, kind, priority: priority(kind, address.ip()), address }
        };
        let mut all = vec![
            candidate(0, Relayed, "192.0.2.1:1"),
            candidate(1, Host, "192.0.2.2:1"),
            candidate(2, ServerReflexive, "192.0.2.3:1"),
        ];
        assert_eq!(keep_best(&mut all, 2), 1);
        assert_eq!(all.iter().map(|c| c.sequence).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(keep_best(&mut all, 2), 0);
    }
}
