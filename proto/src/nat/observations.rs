//! Reports of observers, and the conclusions from them.
//!
//! An observer is a peer that reports the address at which it sees a socket of this peer.
//! [`Observations`] keeps these reports by socket. A single report says nothing about the NAT. The
//! differences between the reports of several observers show its mapping behaviour.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

pub(crate) use super::observation::Observer;
use super::{
    Confidence, Evidence, Finding, MappingBehaviour, NatView, Report,
    mapping::{allocation_step, mapping},
    observation::Observation,
    replacements::{Replacement, Replacements},
    report::is_shared_space,
    vote::{self, Vote, networks_of},
};
use crate::{
    ControlStreamId, SocketId,
    address_policy::{Scope, scope},
};

/// Lifetime of an observation after its connection has ended. RFC 4787 REQ-5 keeps a mapping for at
/// least two minutes without traffic.
const OBSERVATION_LIFETIME: Duration = Duration::from_secs(120);

/// Time in which an observer confirms or contradicts the end of a mapping that another observer has
/// reported. The next packet to the observer decides, and idle connections send a packet every few
/// seconds.
const CONTRADICTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of observations of a socket.
const MAX_OBSERVATIONS: usize = 32;

/// Reports of observers, by socket.
#[derive(Debug, Default)]
pub(crate) struct Observations {
    by_socket: BTreeMap<SocketId, Vec<Observation>>,
    /// Observers that this peer chose. Other observers count only if no coordinator sees the
    /// socket.
    coordinators: BTreeSet<PeerId>,
    next_expiry: Option<Instant>,
    /// Time of the last change of the local network.
    network_changed: Option<Instant>,
    pub(crate) replacements: Replacements,
    /// Mapping behaviour before the NAT replaced a mapping. It holds while few observers have seen
    /// the new mapping.
    mapped: BTreeMap<SocketId, MappingBehaviour>,
}

/// Effect of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// The observation adds knowledge.
    New,
    /// The local network changed, and so did the mapping. Older observations are dropped: together
    /// with new ones they would look like a mapping that depends on the endpoint.
    Moved,
    /// The NAT has replaced a mapping that was in use.
    Remapped,
    /// The observation repeats an earlier one.
    Known,
    /// The socket has too many observations.
    Full,
}

impl Observations {
    /// Adds the report of `observer` on `socket`.
    pub(crate) fn record(
        &mut self,
        socket: SocketId,
        observer: Observer,
        seen: SocketAddr,
        now: Instant,
    ) -> Recorded {
        self.take(socket, Observation::new(observer, seen, now))
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
        // Strangers neither end a mapping nor confirm its end if a coordinator sees the socket.
        let coordinators = &self.coordinators;
        let is_coordinated = all.iter().chain([&said]).any(|o| coordinators.contains(&o.by.peer));
        let counts = |observer: &PeerId| !is_coordinated || coordinators.contains(observer);
        let is_counted = counts(&said.by.peer);
        let count = all.len();
        if let Some(network_changed) = self.network_changed.filter(|_| is_counted) {
            all.retain(|o| o.at >= network_changed);
        }
        let is_older = |at: Instant| self.network_changed.is_some_and(|changed| at < changed);
        let moved = is_counted && (all.len() < count || is_older(before.at));
        let observer = said.by.peer;
        let is_same = |o: &&mut Observation| o.seen == seen && !o.is_probe;
        let mut confirms = false;
        said.is_refuted = before.is_refuted;
        for other in all.iter_mut().filter(is_same).filter(|o| is_counted && counts(&o.by.peer)) {
            // An observer can neither withdraw nor confirm its own report.
            let is_other = other.by.peer != observer;
            said.is_refuted |= is_other && other.doubted.take().is_some();
            confirms |= !(is_other && std::mem::take(&mut other.is_refuted));
        }
        // Between two connections an unused mapping may expire, and another address of the observer
        // may see another mapping.
        let was_in_use =
            before.by.stream == said.by.stream && before.by.address == said.by.address && !before.is_probe;
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
            self.replacements.confirm(seen, observer, now);
        }
        Recorded::New
    }

    /// Records that the mapping of `before` has ended and that `seen` has replaced it.
    fn remapped(&mut self, socket: SocketId, before: &Observation, seen: SocketAddr, now: Instant) {
        let Some(all) = self.by_socket.get_mut(&socket) else { return };
        let others = || all.iter().filter(|o| o.seen == before.seen);
        let born = others().map(|o| o.at).min().map_or(before.at, |at| at.min(before.at));
        let others_and_before = all.iter().filter(|o| o.by.peer != before.by.peer).chain([before]);
        if let Some(mapping) = mapping(&others_and_before.collect::<Vec<_>>()) {
            self.mapped.insert(socket, mapping);
        }
        let until = now + CONTRADICTION_TIMEOUT;
        for stale in all.iter_mut().filter(|o| o.seen == before.seen) {
            stale.doubted = Some(until);
            self.next_expiry = Some(self.next_expiry.map_or(until, |at| at.min(until)));
        }
        let observer = before.by.peer;
        self.replacements.record(Replacement { old: before.seen, born, next: seen, observer }, now);
    }

    /// Records that a local address has appeared or disappeared.
    pub(crate) fn network_changed(&mut self, now: Instant) {
        self.network_changed = Some(now);
        self.replacements = Replacements::default();
        self.mapped.clear();
    }

    /// Returns true if a local address has appeared or disappeared since `then`.
    pub(crate) fn network_changed_since(&self, then: Instant) -> bool {
        self.network_changed.is_some_and(|at| at >= then)
    }

    /// Adds the report of an observer on a request. See [`record`](Self::record).
    pub(crate) fn record_probe(
        &mut self,
        socket: SocketId,
        observer: Observer,
        seen: SocketAddr,
        now: Instant,
    ) {
        let said = Observation { is_probe: true, ..Observation::new(observer, seen, now) };
        self.take(socket, said);
    }

    /// Schedules the end of the observations of a connection that has ended.
    pub(crate) fn stream_down(&mut self, stream: ControlStreamId, now: Instant) {
        let until = now + OBSERVATION_LIFETIME;
        for observation in self.by_socket.values_mut().flatten().filter(|o| o.by.stream == stream) {
            observation.expires = Some(until);
            self.next_expiry = Some(self.next_expiry.map_or(until, |at| at.min(until)));
        }
    }

    /// Drops the observations of a socket that was closed.
    pub(crate) fn socket_down(&mut self, socket: SocketId) {
        self.by_socket.remove(&socket);
        self.mapped.remove(&socket);
    }

    /// Drops the observations of `socket` by an observer at `from` that no longer answers.
    pub(crate) fn not_seen_from(&mut self, socket: SocketId, from: SocketAddr) {
        if let Some(all) = self.by_socket.get_mut(&socket) {
            all.retain(|o| o.by.address != from);
        }
    }

    /// Drops the observations of `socket` by a peer whose connections use another socket now. The
    /// mapping behaviour that they have shown is kept.
    pub(crate) fn leaves(&mut self, observer: &PeerId, socket: SocketId) {
        if let Some(mapping) = mapping(&self.used(socket)) {
            self.mapped.insert(socket, mapping);
        }
        if let Some(all) = self.by_socket.get_mut(&socket) {
            all.retain(|o| o.by.peer != *observer);
        }
    }

    /// Drops expired observations. Returns true if there was one.
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

    /// Returns the time by which [`expire`](Self::expire) must be called.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.next_expiry
    }

    /// Marks `peer` as a coordinator of this peer.
    pub(crate) fn trust(&mut self, peer: PeerId) {
        self.coordinators.insert(peer);
    }

    /// Marks `peer` as a stranger.
    pub(crate) fn distrust(&mut self, peer: &PeerId) {
        self.coordinators.remove(peer);
    }

    /// Returns the addresses at which `socket` is seen. The address with the most networks of
    /// observers comes first, then the latest. Addresses that only strangers see are left out if a
    /// coordinator sees the socket.
    pub(crate) fn reflexive(&self, socket: SocketId) -> Vec<SocketAddr> {
        let all = || self.by_socket.get(&socket).into_iter().flatten().filter(|o| !o.is_probe);
        let is_chosen = |o: &&Observation| self.coordinators.contains(&o.by.peer);
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

    /// Returns the time of the first observation of the current mapping of `socket`.
    pub(crate) fn mapped_since(&self, socket: SocketId) -> Option<Instant> {
        let address = self.reflexive(socket).into_iter().next()?;
        self.by_socket.get(&socket)?.iter().filter(|o| o.seen == address).map(|o| o.at).min()
    }

    /// Returns the IP addresses at which any socket is seen.
    pub(crate) fn reflexive_ips(&self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> = self.by_socket.values().flatten().map(|o| o.seen.ip()).collect();
        all.into_iter().collect()
    }

    /// Counts the independent coordinators that see a socket at each IP address. Independent
    /// coordinators differ in identity and in IP address.
    pub(crate) fn witnesses(&self) -> BTreeMap<IpAddr, usize> {
        #[derive(Default)]
        struct Witnesses {
            observers: BTreeSet<PeerId>,
            addresses: BTreeSet<IpAddr>,
        }
        let mut seen: BTreeMap<IpAddr, Witnesses> = BTreeMap::new();
        for o in self.by_socket.values().flatten().filter(|o| self.coordinators.contains(&o.by.peer)) {
            let witnesses = seen.entry(o.seen.ip()).or_default();
            witnesses.observers.insert(o.by.peer);
            witnesses.addresses.insert(o.by.address.ip());
        }
        let independent = |by: Witnesses| by.observers.len().min(by.addresses.len());
        seen.into_iter().map(|(address, by)| (address, independent(by))).collect()
    }

    /// Evaluates the observations of `socket`.
    fn vote(&self, socket: SocketId) -> Vote<'_> {
        let all = self.by_socket.get(&socket).into_iter().flatten();
        let all: Vec<&Observation> = all.filter(|o| o.doubted.is_none()).collect();
        // An observer in private space may be on the inner side of the NAT. Global observers take
        // precedence.
        let global: Vec<&Observation> =
            all.iter().copied().filter(|o| scope(o.by.address.ip()) == Scope::Global).collect();
        Vote::new(if global.is_empty() { all } else { global }, &self.coordinators)
    }

    fn used(&self, socket: SocketId) -> Vec<&Observation> {
        self.vote(socket).counted
    }

    /// Returns the conclusions on the NAT in front of `socket`, which has this port and these local
    /// addresses.
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

    /// Returns the part of a report that follows from the observations of `socket`.
    pub(crate) fn report(&self, socket: SocketId, view: &NatView, local: &[SocketAddr]) -> Report {
        let vote = self.vote(socket);
        let used = vote.counted;
        let all = || evidence(used.iter().copied());
        let public = self.reflexive(socket).into_iter().find(|address| {
            let seen = |o: &&Observation| o.seen == *address;
            used.iter().any(seen)
        });
        let at = |address: SocketAddr| evidence(used.iter().copied().filter(|o| o.seen == address));
        let public_address = public.and_then(|address| Some((address, at(address)?)));
        let is_translated = !used.iter().all(|o| local.contains(&o.seen));
        fn finding<T>(is_contested: bool, known: Option<(T, Evidence)>) -> Option<Finding<T>> {
            let mut finding = known.map(|(value, evidence)| Finding::agreed(value, evidence))?;
            if is_contested {
                finding.confidence = Confidence::Low;
            }
            Some(finding)
        }
        Report {
            public_address: finding(vote.is_contested, public_address),
            translated: finding(vote.is_contested, all().map(|evidence| (is_translated, evidence))),
            mapping: finding(vote.is_contested, view.mapping.zip(all())),
            port_preserved: finding(vote.is_contested, view.port_preserved.zip(all())),
            mapping_lifetime: self.replacements.finding(),
            ..Report::default()
        }
    }

    /// Returns the evidence from requests of `socket` to further ports of coordinators.
    pub(crate) fn sampled(&self, socket: SocketId) -> Option<Evidence> {
        evidence(self.used(socket).into_iter().filter(|o| o.is_probe))
    }

    /// Returns the evidence from all observations of all sockets.
    pub(crate) fn seen_at_all(&self) -> Option<Evidence> {
        evidence(self.by_socket.values().flatten())
    }

    /// Counts the sockets that are seen at `ip`, and returns the evidence.
    pub(crate) fn sockets_at(&self, ip: IpAddr) -> Option<(usize, Evidence)> {
        let at = |o: &&Observation| o.seen.ip() == ip && !o.is_probe;
        let sockets = self.by_socket.values().filter(|all| all.iter().any(|o| at(&o))).count();
        Some((sockets, evidence(self.by_socket.values().flatten().filter(at))?))
    }

    /// Returns the evidence that `socket` is seen in the shared address space of carriers (RFC
    /// 6598), if none of its own addresses is the observed one.
    pub(crate) fn seen_in_shared_space(&self, socket: SocketId, local: &[SocketAddr]) -> Option<Evidence> {
        let all = self.by_socket.get(&socket).into_iter().flatten();
        evidence(
            all.filter(|o| is_shared_space(o.seen.ip()) && !local.iter().any(|own| own.ip() == o.seen.ip())),
        )
    }
}

fn evidence<'a>(used: impl IntoIterator<Item = &'a Observation>) -> Option<Evidence> {
    Evidence::new(used.into_iter().map(|o| (o.by.peer, o.at)))
}

#[cfg(test)]
mod tests;
