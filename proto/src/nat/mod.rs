//! What is known of the NAT in front of a socket, from what observers saw.
//!
//! Every observer tells at which address it sees a socket of ours. One says nothing about the NAT; how the answers of
//! several differ tells how it maps (RFC 4787 §4.1, in the manner of RFC 5780 §4.3 but with whoever is connected
//! instead of one server with two addresses).

pub mod binding_lifetime;
pub(crate) mod client;
pub(crate) mod early_packets;
pub mod filtering;
pub(crate) mod hairpin;
pub mod observer;
pub mod strategy;

mod lifetime;
mod report;
mod vote;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use lifetime::Lifetimes;
pub(crate) use report::is_in_shared_space;
pub use report::{Confidence, Evidence, Finding, IdleLifetime, Report, Sharing};
use vote::{Vote, networks_of};

use crate::{
    ControlStreamId, SocketId,
    address_policy::{Scope, scope},
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
const OBSERVATION_LIFETIME: Duration = Duration::from_secs(120);

/// How long an observer may take to see that another mapping has taken the place of one which others know to be gone: the
/// next packet of ours shows it, and connections that idle send one every few seconds.
const CONTRADICTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Observations kept for each socket. Further observers are ignored until one of them goes.
const MAX_OBSERVATIONS: usize = 32;

/// The largest distance of two ports that still counts as allocation in sequence.
const MAX_STEP: u16 = 16;

#[derive(Debug, Clone)]
struct Observation {
    link: ControlStreamId,
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
    /// Another observer has seen this mapping gone: until this one says otherwise, or this long, it does not count.
    doubted: Option<Instant>,
    /// The observer has said that a mapping is gone which others see still, or which it sees again itself: its word alone no longer
    /// counts for that.
    is_refuted: bool,
}

impl Observation {
    fn new(
        link: ControlStreamId,
        (observer, from): (PeerId, SocketAddr),
        seen: SocketAddr,
        at: Instant,
    ) -> Self {
        Self {
            link,
            observer,
            from,
            seen,
            at,
            is_probe: false,
            expires: None,
            doubted: None,
            is_refuted: false,
        }
    }

    /// Whether it takes the place of an older one: of the same address, or over the same connection whose other end has moved.
    fn replaces(&self, older: &Self) -> bool {
        let is_same_link = self.link == older.link && !self.is_probe && !older.is_probe;
        self.observer == older.observer && (self.from == older.from || is_same_link)
    }
}

/// What observers said, by socket.
#[derive(Debug, Default)]
pub(crate) struct Observations {
    by_socket: BTreeMap<SocketId, Vec<Observation>>,
    /// The observers that we chose: strangers count only where none of these sees the socket.
    coordinators: BTreeSet<PeerId>,
    next_expiry: Option<Instant>,
    /// When our own network changed last.
    network_changed: Option<Instant>,
    pub(crate) lifetimes: Lifetimes,
    /// How the NAT mapped before it gave a mapping up: it still does, though few observers have seen the new one.
    mapped: BTreeMap<SocketId, MappingBehaviour>,
}

/// What became of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It says something new.
    New,
    /// It says that the change of our network gave us another mapping. What was seen before it is dropped: compared with what
    /// is seen now it would look like a NAT that maps anew for every destination.
    Moved,
    /// It says that the NAT has given up a mapping that was in use.
    Remapped,
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
        link: ControlStreamId,
        (observer, from): (PeerId, SocketAddr),
        seen: SocketAddr,
        now: Instant,
    ) -> Recorded {
        let said = Observation::new(link, (observer, from), seen, now);
        self.take(socket, said)
    }

    fn take(&mut self, socket: SocketId, mut said: Observation) -> Recorded {
        let all = self.by_socket.entry(socket).or_default();
        let Some(index) = all.iter().position(|o| said.replaces(o)) else {
            if all.len() >= MAX_OBSERVATIONS {
                let Some(place) = vote::least_useful(all, &self.coordinators, &said) else {
                    return Recorded::Full;
                };
                all.swap_remove(place);
            }
            all.push(said);
            return Recorded::New;
        };
        let before = all.swap_remove(index);
        let (seen, now) = (said.seen, said.at);
        if before.seen == seen {
            said.at = before.at;
            all.push(said);
            return Recorded::Known;
        }
        // Where a coordinator sees the socket, strangers neither end a mapping nor confirm that it ended.
        let coordinators = &self.coordinators;
        let is_coordinated = all.iter().chain([&said]).any(|o| coordinators.contains(&o.observer));
        let counts = |observer: &PeerId| !is_coordinated || coordinators.contains(observer);
        let is_counted = counts(&said.observer);
        let count = all.len();
        if let Some(network_changed) = self.network_changed.filter(|_| is_counted) {
            all.retain(|o| o.at >= network_changed);
        }
        let is_older = |at: Instant| self.network_changed.is_some_and(|changed| at < changed);
        let moved = is_counted && (all.len() < count || is_older(before.at));
        let observer = said.observer;
        let is_same = |o: &&mut Observation| o.seen == seen && !o.is_probe;
        let mut confirms = false;
        said.is_refuted = before.is_refuted;
        for other in all.iter_mut().filter(is_same).filter(|o| is_counted && counts(&o.observer)) {
            // One observer does not take its own word back, nor confirm it.
            let is_other = other.observer != observer;
            said.is_refuted |= is_other && other.doubted.take().is_some();
            confirms |= !(is_other && std::mem::take(&mut other.is_refuted));
        }
        // Between two connections there was time to forget a mapping that nobody used, and another address of the
        // observer may see another mapping.
        let was_in_use = before.link == said.link && before.from == said.from && !before.is_probe;
        let is_believed = is_counted && !said.is_refuted;
        all.push(said);
        if moved {
            return Recorded::Moved;
        }
        if was_in_use && !confirms && is_believed {
            self.remapped(socket, &before, seen, now);
            return Recorded::Remapped;
        }
        if was_in_use && confirms {
            self.lifetimes.confirm(seen, observer, now);
        }
        Recorded::New
    }

    /// The mapping of `before` is gone, and `seen` has taken its place.
    fn remapped(&mut self, socket: SocketId, before: &Observation, seen: SocketAddr, now: Instant) {
        let Some(all) = self.by_socket.get_mut(&socket) else { return };
        let others = || all.iter().filter(|o| o.seen == before.seen);
        let born = others().map(|o| o.at).min().map_or(before.at, |at| at.min(before.at));
        let others_and_before = all.iter().filter(|o| o.observer != before.observer).chain([before]);
        if let Some(mapping) = mapping(&others_and_before.collect::<Vec<_>>()) {
            self.mapped.insert(socket, mapping);
        }
        let until = now + CONTRADICTION_TIMEOUT;
        for stale in all.iter_mut().filter(|o| o.seen == before.seen) {
            stale.doubted = Some(until);
            self.next_expiry = Some(self.next_expiry.map_or(until, |at| at.min(until)));
        }
        self.lifetimes.ended((before.seen, born), (seen, before.observer), now);
    }

    /// An address of ours came or went.
    pub(crate) fn network_changed(&mut self, now: Instant) {
        self.network_changed = Some(now);
        self.lifetimes = Lifetimes::default();
        self.mapped.clear();
    }

    /// Whether an address of ours came or went since then.
    pub(crate) fn network_changed_since(&self, then: Instant) -> bool {
        self.network_changed.is_some_and(|at| at >= then)
    }

    /// As [`record`](Self::record), for a request to an observer.
    pub(crate) fn record_probe(
        &mut self,
        socket: SocketId,
        link: ControlStreamId,
        (observer, from): (PeerId, SocketAddr),
        seen: SocketAddr,
        now: Instant,
    ) {
        let said = Observation { is_probe: true, ..Observation::new(link, (observer, from), seen, now) };
        self.take(socket, said);
    }

    /// The connection is gone; what came over it lingers.
    pub(crate) fn link_down(&mut self, link: ControlStreamId, now: Instant) {
        let until = now + OBSERVATION_LIFETIME;
        for observation in self.by_socket.values_mut().flatten().filter(|o| o.link == link) {
            observation.expires = Some(until);
            self.next_expiry = Some(self.next_expiry.map_or(until, |at| at.min(until)));
        }
    }

    /// The socket is gone, and with it every mapping.
    pub(crate) fn socket_down(&mut self, socket: SocketId) {
        self.by_socket.remove(&socket);
        self.mapped.remove(&socket);
    }

    /// An observer at this address no longer answers: it may not see `socket` where it did.
    pub(crate) fn not_seen_from(&mut self, socket: SocketId, from: SocketAddr) {
        if let Some(all) = self.by_socket.get_mut(&socket) {
            all.retain(|o| o.from != from);
        }
    }

    /// A peer no longer sees `socket`, since our connections with it use another; what it has shown of the NAT stays.
    pub(crate) fn leaves(&mut self, observer: &PeerId, socket: SocketId) {
        if let Some(mapping) = mapping(&self.used(socket)) {
            self.mapped.insert(socket, mapping);
        }
        if let Some(all) = self.by_socket.get_mut(&socket) {
            all.retain(|o| o.observer != *observer);
        }
    }

    /// Drops what has expired; `true` if there was any.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let mut any = false;
        for all in self.by_socket.values_mut() {
            let before = all.len();
            all.retain(|o| o.expires.is_none_or(|at| at > now));
            any |= all.len() != before;
            let mut still_seen = BTreeSet::new();
            for observation in all.iter_mut() {
                if observation.doubted.take_if(|until| *until <= now).is_some() {
                    any = true;
                    still_seen.insert(observation.seen);
                }
            }
            if !still_seen.is_empty() {
                vote::refute(all, &still_seen);
            }
        }
        let deadlines = |o: &Observation| [o.expires, o.doubted];
        self.next_expiry = self.by_socket.values().flatten().flat_map(deadlines).flatten().min();
        any
    }

    /// When [`expire`](Self::expire) has to be called at the latest.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.next_expiry
    }

    /// `peer` is a coordinator of ours from now on.
    pub(crate) fn trust(&mut self, peer: PeerId) {
        self.coordinators.insert(peer);
    }

    /// `peer` is a stranger from now on.
    pub(crate) fn distrust(&mut self, peer: &PeerId) {
        self.coordinators.remove(peer);
    }

    /// The addresses at which `socket` is seen: what most networks of observers agree on first, then the latest. What only strangers
    /// see is left out where a coordinator sees the socket.
    pub(crate) fn reflexive(&self, socket: SocketId) -> Vec<SocketAddr> {
        let all = || self.by_socket.get(&socket).into_iter().flatten().filter(|o| !o.is_probe);
        let is_chosen = |o: &&Observation| self.coordinators.contains(&o.observer);
        let is_coordinated = all().any(|o| is_chosen(&o));
        let counted: Vec<&Observation> = all().filter(|o| !is_coordinated || is_chosen(o)).collect();
        let mut ranked: Vec<_> = Vec::new();
        for address in counted.iter().map(|o| o.seen).collect::<BTreeSet<_>>() {
            let seen = || counted.iter().copied().filter(|o| o.seen == address);
            let is_certain = seen().any(|o| o.doubted.is_none());
            let latest = seen().map(|o| o.at).max();
            ranked.push(((is_certain, networks_of(seen()), seen().count(), latest), address));
        }
        ranked.sort_by(|a, b| b.cmp(a));
        ranked.into_iter().map(|(_, address)| address).collect()
    }

    /// Since when the mapping at which `socket` is seen is known to stand.
    pub(crate) fn mapped_since(&self, socket: SocketId) -> Option<Instant> {
        let address = self.reflexive(socket).into_iter().next()?;
        self.by_socket.get(&socket)?.iter().filter(|o| o.seen == address).map(|o| o.at).min()
    }

    /// The IP addresses at which any socket is seen.
    pub(crate) fn reflexive_ips(&self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> = self.by_socket.values().flatten().map(|o| o.seen.ip()).collect();
        all.into_iter().collect()
    }

    /// Counts, for each IP address at which a coordinator sees any socket, the independent coordinators that do: those that
    /// differ in identity and in IP address.
    pub(crate) fn witnesses(&self) -> BTreeMap<IpAddr, usize> {
        let mut seen: BTreeMap<IpAddr, (BTreeSet<PeerId>, BTreeSet<IpAddr>)> = BTreeMap::new();
        for o in self.by_socket.values().flatten().filter(|o| self.coordinators.contains(&o.observer)) {
            let (observers, addresses) = seen.entry(o.seen.ip()).or_default();
            observers.insert(o.observer);
            addresses.insert(o.from.ip());
        }
        let independent =
            |(observers, addresses): (BTreeSet<_>, BTreeSet<_>)| observers.len().min(addresses.len());
        seen.into_iter().map(|(address, by)| (address, independent(by))).collect()
    }

    /// The observations that tell of the NAT in front of `socket`.
    fn vote(&self, socket: SocketId) -> Vote<'_> {
        let all = self.by_socket.get(&socket).into_iter().flatten();
        let all: Vec<&Observation> = all.filter(|o| o.doubted.is_none()).collect();
        // An observer in private space may sit on our side of the NAT; the others know better.
        let global: Vec<&Observation> =
            all.iter().copied().filter(|o| scope(o.from.ip()) == Scope::Global).collect();
        Vote::new(if global.is_empty() { all } else { global }, &self.coordinators)
    }

    fn used(&self, socket: SocketId) -> Vec<&Observation> {
        self.vote(socket).counted
    }

    /// What follows about the NAT in front of `socket`, which has `port` and may be reached at `local`.
    pub(crate) fn view(&self, socket: SocketId, port: u16, local: &[SocketAddr]) -> NatView {
        let vote = self.vote(socket);
        let mut used = vote.counted;
        if used.is_empty() {
            return NatView::default();
        }
        if used.iter().all(|o| local.contains(&o.seen)) {
            let mapping = Some(MappingBehaviour::EndpointIndependent);
            return NatView { mapping, port_preserved: Some(true), allocation_step: None };
        }
        used.sort_by_key(|o| o.at);
        let known = self.mapped.get(&socket).copied().filter(|_| !vote.is_contested);
        let mapping = mapping(&used).or(known);
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
mod tests;
