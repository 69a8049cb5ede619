//! Decisions on mappings: what to ask the gateway for, and when. It does no I/O.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use libp2p_punch_proto::address_policy::{Scope, scope};

use super::{Announcement, Event, Gateway, Grant, Mapping, Protocol, Request};

/// Lifetime that a gateway is asked for. A mapping that is not deleted, as after a crash, ends
/// after that time.
pub(super) const LIFETIME: Duration = Duration::from_secs(3_600);
/// Bounds of the lifetime that counts, whatever a gateway grants.
const LIFETIMES: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(7_200)];
/// Delay before a gateway that refused is asked again; doubles each time.
const REFUSAL_DELAY: Duration = Duration::from_secs(60);
const MAX_REFUSAL_DELAY: Duration = Duration::from_secs(15 * 60);
/// Delay before a failed renewal is repeated, at the least.
const RENEWAL_DELAY: Duration = Duration::from_secs(15);
/// Ports that are mapped at once.
const MAX_PORTS: usize = 8;
/// IP addresses at which peers claim to see this host that are remembered: the latest.
const MAX_OBSERVED: usize = 32;

/// A request to the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    FindGateway,
    /// Ask for a mapping, or renew it.
    Ask(Request),
    Delete(Request),
    /// The swarm learns of this external address.
    Confirm(SocketAddrV4),
    /// The external address is no longer ours.
    Expire(SocketAddrV4),
    Report(Event),
}

#[derive(Debug)]
struct Port {
    /// Protocols whose answer is awaited.
    pending: BTreeSet<Protocol>,
    /// Protocols in which the gateway granted a mapping.
    granted: BTreeSet<Protocol>,
    held: Option<Held>,
    refusals: u32,
    ask_at: Option<Instant>,
}

/// The mapping that counts.
#[derive(Debug, Clone, Copy)]
struct Held {
    protocol: Protocol,
    external: SocketAddrV4,
    /// `None` until it is decided on.
    announcement: Option<Announcement>,
    renew_at: Instant,
    ends_at: Instant,
}

/// The mappings of this host.
#[derive(Debug, Default)]
pub(super) struct Mapper {
    listeners: BTreeSet<SocketAddrV4>,
    /// Oldest first.
    observed: VecDeque<Ipv4Addr>,
    gateway: Option<Gateway>,
    ports: BTreeMap<u16, Port>,
    actions: VecDeque<Action>,
}

impl Mapper {
    /// A listener has an address.
    pub(super) fn listening(&mut self, address: SocketAddrV4, now: Instant) {
        // A host with a global address needs no mapping, and none leads to loopback.
        if scope((*address.ip()).into()) == Scope::Private && self.listeners.insert(address) {
            self.actions.push_back(Action::FindGateway);
            self.refresh(now);
        }
    }

    /// A listener has lost an address.
    pub(super) fn not_listening(&mut self, address: SocketAddrV4, now: Instant) {
        if self.listeners.remove(&address) {
            self.actions.push_back(Action::FindGateway);
            self.refresh(now);
        }
    }

    /// A peer sees this host at an IP address.
    pub(super) fn observed(&mut self, ip: Ipv4Addr) {
        if self.observed.contains(&ip) {
            return;
        }
        if self.observed.len() >= MAX_OBSERVED {
            self.observed.pop_front();
        }
        self.observed.push_back(ip);
        for number in self.ports.keys().copied().collect::<Vec<_>>() {
            self.announce(number);
        }
    }

    /// The default gateway is this one, or there is none.
    pub(super) fn gateway_found(&mut self, gateway: Option<Gateway>, now: Instant) {
        if gateway != self.gateway {
            for number in self.ports.keys().copied().collect::<Vec<_>>() {
                self.remove(number);
            }
            self.gateway = gateway;
        }
        self.refresh(now);
    }

    /// The gateway granted a request.
    pub(super) fn granted(&mut self, request: Request, grant: Grant, now: Instant) {
        let is_current = self.gateway == Some(request.gateway);
        let Some(port) = self.ports.get_mut(&request.port).filter(|_| is_current) else {
            // The port was closed, or the gateway replaced, while the request was under way.
            return self.actions.push_back(Action::Delete(request));
        };
        if !port.pending.remove(&request.protocol) {
            return;
        }
        let external = grant.external;
        if external.port() == 0 {
            port.pending.insert(request.protocol);
            return self.refused(request, now);
        }
        port.granted.insert(request.protocol);
        if port.held.is_some_and(|held| held.protocol != request.protocol) {
            // Gateways share one table among the protocols.
            return;
        }
        let [least, most] = LIFETIMES;
        let lifetime = if grant.lifetime.is_zero() { LIFETIME } else { grant.lifetime.clamp(least, most) };
        let (renew_at, ends_at) = (now + lifetime / 2, now + lifetime);
        (port.refusals, port.ask_at) = (0, None);
        match &mut port.held {
            Some(held) if held.external == external => {
                (held.renew_at, held.ends_at) = (renew_at, ends_at);
            }
            _ => {
                self.lose(request.port);
                let announcement = None;
                let held = Held { protocol: request.protocol, external, announcement, renew_at, ends_at };
                if let Some(port) = self.ports.get_mut(&request.port) {
                    port.held = Some(held);
                }
                self.announce(request.port);
            }
        }
    }

    /// The gateway refused a request, or did not answer it.
    pub(super) fn refused(&mut self, request: Request, now: Instant) {
        let is_current = self.gateway == Some(request.gateway);
        let Some(port) = self.ports.get_mut(&request.port).filter(|_| is_current) else { return };
        if !port.pending.remove(&request.protocol) {
            return;
        }
        match &mut port.held {
            Some(held) if held.protocol == request.protocol => {
                let left = held.ends_at.saturating_duration_since(now);
                held.renew_at = now + (left / 4).max(RENEWAL_DELAY);
            }
            Some(_) => {}
            None if port.pending.is_empty() => {
                let delay = REFUSAL_DELAY.saturating_mul(2u32.saturating_pow(port.refusals));
                port.ask_at = Some(now + delay.min(MAX_REFUSAL_DELAY));
                if port.refusals == 0 {
                    let event = Event::Refused { port: request.port };
                    self.actions.push_back(Action::Report(event));
                }
                port.refusals = port.refusals.saturating_add(1);
            }
            None => {}
        }
    }

    /// Returns the time of the next [`handle_timeout`](Self::handle_timeout).
    pub(super) fn next_time(&self) -> Option<Instant> {
        let of = |port: &Port| {
            let held = port.held.map(|held| match port.pending.contains(&held.protocol) {
                true => held.ends_at,
                false => held.renew_at.min(held.ends_at),
            });
            [held, port.ask_at].into_iter().flatten().min()
        };
        self.ports.values().filter_map(of).min()
    }

    /// Renews what is due, and gives up what has ended.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for number in self.ports.keys().copied().collect::<Vec<_>>() {
            let Some(port) = self.ports.get_mut(&number) else { continue };
            match port.held {
                Some(held) if held.ends_at <= now => {
                    self.lose(number);
                    self.ask_all(number);
                }
                Some(held) if held.renew_at <= now => self.ask(number, held.protocol),
                None if port.ask_at.is_some_and(|at| at <= now) => self.ask_all(number),
                _ => continue,
            }
            // The answer may be that of another gateway by now.
            self.actions.push_back(Action::FindGateway);
        }
    }

    /// Deletes all mappings: the swarm ends.
    pub(super) fn close(&mut self) {
        for number in self.ports.keys().copied().collect::<Vec<_>>() {
            self.remove(number);
        }
        self.listeners.clear();
    }

    pub(super) fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns the mappings that count.
    pub(super) fn mappings(&self) -> Vec<Mapping> {
        let of = |(number, port): (&u16, &Port)| Some(port.held?.mapping(*number));
        self.ports.iter().filter_map(of).collect()
    }

    /// Asks for the ports that need a mapping, and deletes those that no longer do.
    fn refresh(&mut self, now: Instant) {
        let Some(gateway) = self.gateway else { return };
        let is_mapped = |address: &&SocketAddrV4| *address.ip() == gateway.local;
        let mut wanted: BTreeSet<u16> =
            self.listeners.iter().filter(is_mapped).map(|address| address.port()).collect();
        while wanted.len() > MAX_PORTS {
            wanted.pop_last();
        }
        let gone: Vec<u16> = self.ports.keys().copied().filter(|port| !wanted.contains(port)).collect();
        gone.into_iter().for_each(|number| self.remove(number));
        for number in wanted {
            if let Entry::Vacant(place) = self.ports.entry(number) {
                place.insert(Port {
                    pending: BTreeSet::new(),
                    granted: BTreeSet::new(),
                    held: None,
                    refusals: 0,
                    ask_at: Some(now),
                });
                self.ask_all(number);
            }
        }
    }

    fn ask_all(&mut self, number: u16) {
        if let Some(port) = self.ports.get_mut(&number) {
            port.ask_at = None;
        }
        Protocol::ALL.into_iter().for_each(|protocol| self.ask(number, protocol));
    }

    fn ask(&mut self, number: u16, protocol: Protocol) {
        let (Some(gateway), Some(port)) = (self.gateway, self.ports.get_mut(&number)) else { return };
        if port.pending.insert(protocol) {
            self.actions.push_back(Action::Ask(Request { gateway, protocol, port: number }));
        }
    }

    fn remove(&mut self, number: u16) {
        self.lose(number);
        let (Some(gateway), Some(port)) = (self.gateway, self.ports.remove(&number)) else { return };
        for protocol in port.granted {
            self.actions.push_back(Action::Delete(Request { gateway, protocol, port: number }));
        }
    }

    /// The mapping that counted is no longer ours.
    fn lose(&mut self, number: u16) {
        let Some(held) = self.ports.get_mut(&number).and_then(|port| port.held.take()) else { return };
        if held.announcement == Some(Announcement::Confirmed) {
            self.actions.push_back(Action::Expire(held.external));
        }
        self.actions.push_back(Action::Report(Event::Unmapped(held.mapping(number))));
    }

    /// Confirms a mapping, if peers can use it and see this host at its IP address. A gateway may
    /// lie, and the outer one of two NATs forwards nothing.
    fn announce(&mut self, number: u16) {
        let Some(held) = self.ports.get_mut(&number).and_then(|port| port.held.as_mut()) else { return };
        let announcement = match scope((*held.external.ip()).into()) {
            Scope::Global if self.observed.contains(held.external.ip()) => Announcement::Confirmed,
            Scope::Global => Announcement::NotObserved,
            _ => Announcement::NotGlobal,
        };
        // What a peer has confirmed once stays so, whatever others claim afterwards.
        if held.announcement.is_some_and(|before| before == announcement || before == Announcement::Confirmed)
        {
            return;
        }
        let before = held.announcement.replace(announcement);
        let (external, mapping) = (held.external, held.mapping(number));
        if announcement == Announcement::Confirmed {
            self.actions.push_back(Action::Confirm(external));
        }
        let event = if before.is_none() { Event::Mapped(mapping) } else { Event::Changed(mapping) };
        self.actions.push_back(Action::Report(event));
    }
}

impl Held {
    fn mapping(&self, port: u16) -> Mapping {
        let Self { protocol, external, announcement, .. } = *self;
        let announcement = announcement.unwrap_or(Announcement::NotObserved);
        Mapping { protocol, port, external, announcement }
    }
}
