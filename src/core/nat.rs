//! What is known of the NAT in front of a socket, from what observers saw.
//!
//! Every observer tells at which address it sees a socket of ours. One says nothing about the NAT; how the answers of
//! several differ tells how it maps (RFC 4787 §4.1, in the manner of RFC 5780 §4.3 but with whoever is connected
//! instead of one server with two addresses).

mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

pub(crate) use report::is_in_shared_space;
pub use report::{Confidence, Evidence, Finding, Report, Sharing};

use super::{
    LinkId, SocketId,
    targets::{Scope, scope},
};

/// How a NAT maps (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MappingBehaviour {
    /// The same external port for every destination (EIM). Also: no NAT at all.
    EndpointIndependent,
    /// One external port for each destination address (ADM).
    AddressDependent,
    /// One external port for each destination address and port (APDM).
    AddressAndPortDependent,
    /// One of the two dependent behaviours (EDM), not known which: no two observers shared an IP address.
    EndpointDependent,
}

/// How a NAT filters (RFC 4787 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilteringBehaviour {
    /// Lets everybody in who sends to a mapping (EIF). Also: no NAT and no firewall at all.
    EndpointIndependent,
    /// Lets in every port of the addresses to which was sent (ADF).
    AddressDependent,
    /// Lets in only the addresses and ports to which was sent (APDF).
    AddressAndPortDependent,
    /// One of the first two, not known which: no observer could send from another address.
    PortIndependent,
}

/// What is known of the NAT in front of a socket; `None` is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NatView {
    /// How it maps.
    pub mapping: Option<MappingBehaviour>,
    /// Whether every mapping kept the socket's port.
    pub port_preserved: Option<bool>,
    /// The constant distance between the ports of mappings made one after the other, if it is constant, positive and
    /// small, as for NATs that allocate in sequence.
    pub allocation_step: Option<u16>,
}

/// How long an observation outlives the connection that it came over: RFC 4787 REQ-5 keeps a mapping for at least
/// two minutes without traffic.
const LINGER: Duration = Duration::from_secs(120);

/// Observations kept for each socket. Further observers are ignored until one of them goes.
const MAX_OBSERVATIONS: usize = 32;

/// The largest distance of two ports that still counts as allocation in sequence.
const MAX_STEP: u16 = 16;

#[derive(Debug, Clone)]
struct Observation {
    link: LinkId,
    observer: PeerId,
    /// The observer's address.
    from: SocketAddr,
    /// Ours, as it sees us.
    seen: SocketAddr,
    at: Instant,
    /// What was seen is a request to an observer. It tells how the NAT maps, but others cannot use that mapping.
    is_probe: bool,
    /// Set when the connection is gone.
    expires: Option<Instant>,
}

/// What observers said, by socket.
#[derive(Debug, Default)]
pub(crate) struct Observations {
    by_socket: BTreeMap<SocketId, Vec<Observation>>,
    next_expiry: Option<Instant>,
    /// When our own network changed last.
    network_changed: Option<Instant>,
}

/// What became of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It says something new.
    New,
    /// It says that the change of our network gave us another mapping. What was seen before it is dropped: compared with what
    /// is seen now it would look like a NAT that maps anew for every destination.
    Moved,
    /// It was known.
    Known,
    /// There are too many of this socket.
    Full,
}

impl Observations {
    /// Takes what `observer` at `from` said of `socket`.
    pub(crate) fn record(
        &mut self,
        socket: SocketId,
        link: LinkId,
        (observer, from): (PeerId, SocketAddr),
        seen: SocketAddr,
        now: Instant,
    ) -> Recorded {
        let all = self.by_socket.entry(socket).or_default();
        if let Some(known) = all.iter_mut().find(|o| o.observer == observer && o.from == from) {
            let changed = known.seen != seen;
            let at = if changed { now } else { known.at };
            *known = Observation { link, observer, from, seen, at, is_probe: false, expires: None };
            let before = all.len();
            if changed && let Some(network_changed) = self.network_changed {
                all.retain(|o| o.at >= network_changed);
            }
            return match changed {
                true if all.len() < before => Recorded::Moved,
                true => Recorded::New,
                false => Recorded::Known,
            };
        }
        if all.len() >= MAX_OBSERVATIONS {
            // One whose connection is gone makes room.
            let Some(stale) = all.iter().position(|o| o.expires.is_some()) else { return Recorded::Full };
            all.swap_remove(stale);
        }
        all.push(Observation { link, observer, from, seen, at: now, is_probe: false, expires: None });
        Recorded::New
    }

    /// An address of ours came or went.
    pub(crate) fn network_changed(&mut self, now: Instant) {
        self.network_changed = Some(now);
    }

    /// As [`record`](Self::record), for a request to an observer.
    pub(crate) fn record_probe(
        &mut self,
        socket: SocketId,
        link: LinkId,
        (observer, from): (PeerId, SocketAddr),
        seen: SocketAddr,
        now: Instant,
    ) {
        self.record(socket, link, (observer, from), seen, now);
        let mut all = self.by_socket.get_mut(&socket).into_iter().flatten();
        if let Some(observation) = all.find(|o| o.observer == observer && o.from == from) {
            observation.is_probe = true;
        }
    }

    /// The connection is gone; what came over it lingers.
    pub(crate) fn link_down(&mut self, link: LinkId, now: Instant) {
        let until = now + LINGER;
        for observation in self.by_socket.values_mut().flatten().filter(|o| o.link == link) {
            observation.expires = Some(until);
            self.next_expiry = Some(self.next_expiry.map_or(until, |at| at.min(until)));
        }
    }

    /// The socket is gone, and with it every mapping.
    pub(crate) fn socket_down(&mut self, socket: SocketId) {
        self.by_socket.remove(&socket);
    }

    /// Drops what has expired; `true` if there was any.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let mut any = false;
        for all in self.by_socket.values_mut() {
            let before = all.len();
            all.retain(|o| o.expires.is_none_or(|at| at > now));
            any |= all.len() != before;
        }
        self.next_expiry = self.by_socket.values().flatten().filter_map(|o| o.expires).min();
        any
    }

    /// When [`expire`](Self::expire) has to be called at the latest.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.next_expiry
    }

    /// The addresses at which `socket` is seen: what most observers agree on first, then the latest.
    pub(crate) fn reflexive(&self, socket: SocketId) -> Vec<SocketAddr> {
        let mut seen: BTreeMap<SocketAddr, (usize, Instant)> = BTreeMap::new();
        for o in self.by_socket.get(&socket).into_iter().flatten().filter(|o| !o.is_probe) {
            let entry = seen.entry(o.seen).or_insert((0, o.at));
            *entry = (entry.0 + 1, entry.1.max(o.at));
        }
        let mut ranked: Vec<_> = seen.into_iter().map(|(address, rank)| (rank, address)).collect();
        ranked.sort_by(|a, b| b.cmp(a));
        ranked.into_iter().map(|(_, address)| address).collect()
    }

    /// The IP addresses at which any socket is seen.
    pub(crate) fn reflexive_ips(&self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> = self.by_socket.values().flatten().map(|o| o.seen.ip()).collect();
        all.into_iter().collect()
    }

    /// The observations that tell of the NAT in front of `socket`.
    fn used(&self, socket: SocketId) -> Vec<&Observation> {
        let all: Vec<&Observation> = self.by_socket.get(&socket).into_iter().flatten().collect();
        // An observer in private space may sit on our side of the NAT; the others know better.
        let global: Vec<&Observation> =
            all.iter().copied().filter(|o| scope(o.from.ip()) == Scope::Global).collect();
        if global.is_empty() { all } else { global }
    }

    /// What follows about the NAT in front of `socket`, which has `port` and may be reached at `local`.
    pub(crate) fn view(&self, socket: SocketId, port: u16, local: &[SocketAddr]) -> NatView {
        let mut used = self.used(socket);
        if used.is_empty() {
            return NatView::default();
        }
        if used.iter().all(|o| local.contains(&o.seen)) {
            let mapping = Some(MappingBehaviour::EndpointIndependent);
            return NatView { mapping, port_preserved: Some(true), allocation_step: None };
        }
        used.sort_by_key(|o| o.at);
        let mapping = mapping(&used);
        let allocation_step = match mapping {
            Some(MappingBehaviour::EndpointIndependent) | None => None,
            _ => allocation_step(&used),
        };
        NatView { mapping, port_preserved: Some(used.iter().all(|o| o.seen.port() == port)), allocation_step }
    }
}

/// Compares what each two observers saw.
fn mapping(observations: &[&Observation]) -> Option<MappingBehaviour> {
    let mut same_ip_agrees = None;
    let (mut across_agree, mut across_differ) = (false, false);
    for (i, a) in observations.iter().enumerate() {
        for b in observations.iter().skip(i + 1).filter(|b| b.from != a.from) {
            let agree = a.seen == b.seen;
            if a.from.ip() == b.from.ip() {
                same_ip_agrees = Some(same_ip_agrees.unwrap_or(true) && agree);
            } else if agree {
                across_agree = true;
            } else {
                across_differ = true;
            }
        }
    }
    match (same_ip_agrees, across_agree, across_differ) {
        (Some(false), _, _) => Some(MappingBehaviour::AddressAndPortDependent),
        (Some(true), _, true) => Some(MappingBehaviour::AddressDependent),
        (None, _, true) => Some(MappingBehaviour::EndpointDependent),
        (_, true, false) => Some(MappingBehaviour::EndpointIndependent),
        (_, false, false) => None,
    }
}

/// The distance between one new mapping's port and the next, if it is the same everywhere.
fn allocation_step(in_order: &[&Observation]) -> Option<u16> {
    let mut ports: Vec<u16> = in_order.iter().map(|o| o.seen.port()).collect();
    ports.dedup();
    let mut steps = ports.windows(2).map(|pair| pair[1].checked_sub(pair[0]));
    let first = steps.next()??;
    // Two distances are the least that can agree.
    (ports.len() >= 3 && (1..=MAX_STEP).contains(&first) && steps.all(|step| step == Some(first)))
        .then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: SocketId = SocketId(1);
    const LOCAL: &str = "192.168.1.2:4001";

    fn at(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    #[test]
    fn what_was_seen_before_our_network_changed_is_not_compared_with_what_is_seen_after() {
        let (mut observations, start) = (Observations::default(), Instant::now());
        let observers = [1u16, 2, 3].map(|n| (PeerId::random(), SocketAddr::from(([192, 0, 2, 1], n))));
        let say = |observations: &mut Observations, n: usize, seen: &str, after: u64| {
            let now = start + Duration::from_secs(after);
            observations.record(SOCKET, LinkId(0), observers[n], at(seen), now)
        };
        for n in 0..3 {
            assert_eq!(say(&mut observations, n, "198.51.100.1:4001", 0), Recorded::New);
        }
        observations.network_changed(start + Duration::from_secs(1));
        assert_eq!(say(&mut observations, 0, "198.51.100.1:4001", 2), Recorded::Known, "the same mapping");
        assert_eq!(say(&mut observations, 0, "198.51.100.7:50000", 3), Recorded::Moved);
        assert_eq!(observations.reflexive(SOCKET), [at("198.51.100.7:50000")]);
        assert_eq!(say(&mut observations, 1, "198.51.100.7:50000", 4), Recorded::New);
        assert_eq!(
            say(&mut observations, 0, "198.51.100.7:50001", 5),
            Recorded::New,
            "no change of ours explains it"
        );
        assert_eq!(observations.reflexive(SOCKET).len(), 2);
    }

    fn observe(seen: &[(&str, &str)]) -> Observations {
        let mut observations = Observations::default();
        let start = Instant::now();
        for (i, (from, seen)) in seen.iter().enumerate() {
            let now = start + Duration::from_millis(i as u64);
            let observer = (PeerId::random(), at(from));
            assert_eq!(observations.record(SOCKET, LinkId(i as u64), observer, at(seen), now), Recorded::New);
        }
        observations
    }

    fn view(seen: &[(&str, &str)]) -> NatView {
        observe(seen).view(SOCKET, 4001, &[at(LOCAL)])
    }

    #[test]
    fn nothing_is_known_without_observers_and_little_from_one() {
        assert_eq!(view(&[]), NatView::default());
        let one = view(&[("192.0.2.1:1", "203.0.113.1:4001")]);
        assert_eq!((one.mapping, one.port_preserved), (None, Some(true)));
    }

    #[test]
    fn the_same_address_at_two_ips_is_endpoint_independent() {
        let view = view(&[("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.2:1", "203.0.113.1:5000")]);
        assert_eq!(view.mapping, Some(MappingBehaviour::EndpointIndependent));
        assert_eq!((view.port_preserved, view.allocation_step), (Some(false), None));
    }

    #[test]
    fn the_same_address_at_two_ports_of_one_ip_decides_nothing() {
        let view = view(&[("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.1:2", "203.0.113.1:5000")]);
        assert_eq!(view.mapping, None);
    }

    #[test]
    fn different_addresses_at_two_ips_are_endpoint_dependent_of_an_unknown_kind() {
        let view = view(&[("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.2:1", "203.0.113.1:6000")]);
        assert_eq!(view.mapping, Some(MappingBehaviour::EndpointDependent));
    }

    #[test]
    fn two_ports_of_one_ip_tell_address_dependent_from_port_dependent() {
        let same = [
            ("192.0.2.1:1", "203.0.113.1:5000"),
            ("192.0.2.1:2", "203.0.113.1:5000"),
            ("192.0.2.2:1", "203.0.113.1:6000"),
        ];
        assert_eq!(view(&same).mapping, Some(MappingBehaviour::AddressDependent));
        let differ = [("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.1:2", "203.0.113.1:5007")];
        assert_eq!(view(&differ).mapping, Some(MappingBehaviour::AddressAndPortDependent));
    }

    #[test]
    fn seen_at_our_own_address_there_is_no_nat() {
        let view = view(&[("192.0.2.1:1", LOCAL)]);
        assert_eq!(view.mapping, Some(MappingBehaviour::EndpointIndependent));
        assert_eq!(view.port_preserved, Some(true));
    }

    #[test]
    fn an_observer_on_our_side_of_the_nat_does_not_count() {
        let seen = [
            ("192.168.1.9:1", LOCAL),
            ("192.0.2.1:1", "203.0.113.1:5000"),
            ("192.0.2.2:1", "203.0.113.1:5000"),
        ];
        assert_eq!(view(&seen).mapping, Some(MappingBehaviour::EndpointIndependent));
        assert_eq!(view(&seen).port_preserved, Some(false));
    }

    #[test]
    fn ports_at_a_constant_small_distance_are_allocation_in_sequence() {
        let steps = |ports: [u16; 4]| {
            let seen: Vec<_> = (1..)
                .zip(ports)
                .map(|(i, port)| (format!("192.0.2.{i}:1"), format!("203.0.113.1:{port}")))
                .collect();
            let seen: Vec<_> = seen.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            view(&seen).allocation_step
        };
        assert_eq!(steps([5000, 5001, 5002, 5003]), Some(1));
        assert_eq!(steps([5000, 5002, 5004, 5006]), Some(2));
        assert_eq!(steps([5000, 5001, 5003, 5004]), None);
        assert_eq!(steps([5003, 5002, 5001, 5000]), None);
        assert_eq!(steps([5000, 5100, 5200, 5300]), None);
    }

    #[test]
    fn observations_linger_after_their_connection_and_then_expire() {
        let mut observations = observe(&[("192.0.2.1:1", "203.0.113.1:5000")]);
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(observations.next_expiry(), None, "the connection keeps the mapping");
        observations.link_down(LinkId(0), now);
        assert_eq!(observations.next_expiry(), Some(now + LINGER));
        assert!(!observations.expire(now + LINGER - Duration::from_millis(1)));
        assert_eq!(observations.reflexive(SOCKET), [at("203.0.113.1:5000")]);
        assert!(observations.expire(now + LINGER));
        assert!(observations.reflexive(SOCKET).is_empty());
    }

    #[test]
    fn what_more_observers_agree_on_comes_first() {
        let observations = observe(&[
            ("192.0.2.1:1", "203.0.113.1:5000"),
            ("192.0.2.2:1", "203.0.113.1:5000"),
            ("192.0.2.3:1", "198.51.100.66:1"),
        ]);
        assert_eq!(observations.reflexive(SOCKET), [at("203.0.113.1:5000"), at("198.51.100.66:1")]);
    }

    #[test]
    fn observers_are_bounded_and_one_whose_connection_is_gone_makes_room() {
        let mut observations = Observations::default();
        let now = Instant::now();
        let say = |observations: &mut Observations, i: u64| {
            let observer = (PeerId::random(), at("192.0.2.1:1"));
            observations.record(SOCKET, LinkId(i), observer, at("203.0.113.1:5000"), now)
        };
        assert!((0..MAX_OBSERVATIONS).all(|i| say(&mut observations, i as u64) == Recorded::New));
        assert_eq!(say(&mut observations, 99), Recorded::Full);
        observations.link_down(LinkId(3), now);
        assert_eq!(say(&mut observations, 99), Recorded::New);
    }
}
