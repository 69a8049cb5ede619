//! The path of a datagram through a world.
//!
//! A datagram leaves a node into a realm ([`Hop::Leave`]), crosses the links of two nodes of that
//! realm, comes to the second one's link ([`Hop::Arrive`]), which may make it wait, and then to the
//! node itself ([`Hop::Enter`]): a host delivers it, a gateway translates it and lets it leave into
//! its other realm. It goes up through gateways and then down, and turns around once at most, so it
//! cannot go in circles.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::udp::EcnCodepoint;
use tokio::time::Instant;

use super::{
    Kind, State,
    events::{Event, Flight, Hop, Place},
};
use crate::{
    ids::NodeId,
    inbox::Datagram,
    nat::Hairpin,
    trace::{Record, Verdict},
};

impl State {
    /// Takes a datagram from a socket. Its journey begins with the next turn of the driver, so that
    /// earlier events come first.
    pub(crate) fn send(
        &mut self,
        host: NodeId,
        from: SocketAddr,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        payload: &[u8],
    ) {
        let now = Instant::now();
        let mut flight = self.flight(now, from, to, ecn, payload);
        let state = self.host(host);
        if from.ip().is_unspecified()
            && let Some(source) = state.source_for(to.ip())
        {
            flight.source.set_ip(source);
            flight.from = flight.source;
        }
        let source = flight.source.ip();
        let hop = if source.is_ipv4() != to.is_ipv4() || to.port() == 0 {
            None
        } else if state.is_local(to.ip()) && state.is_local(source) {
            Some(Hop::Local(host))
        } else {
            state.realm_of(source).map(|realm| Hop::Leave(Place { node: host, realm }))
        };
        match hop {
            Some(hop) => self.schedule(now, hop, flight),
            None => self.end(now, flight, Verdict::NoRoute),
        }
    }

    /// Takes a datagram whose source address the host does not have.
    pub(crate) fn send_forged(&mut self, host: NodeId, source: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let now = Instant::now();
        let flight = self.flight(now, source, to, None, payload);
        let state = self.host(host);
        let realm = state.up().find_map(|net| state.realm_of(net.addr()));
        match realm.filter(|_| source.is_ipv4() == to.is_ipv4() && to.port() != 0) {
            Some(realm) => self.schedule(now, Hop::Leave(Place { node: host, realm }), flight),
            None => self.end(now, flight, Verdict::NoRoute),
        }
    }

    fn flight(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        payload: &[u8],
    ) -> Flight {
        let id = self.stats.sent;
        self.stats.sent += 1;
        self.stats.bytes_sent += payload.len() as u64;
        Flight { id, sent: now, from, to, source: from, destination: to, ecn, payload: Arc::from(payload) }
    }

    /// Processes all events that are due.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some(Event { at, hop, flight, .. }) = self.events.pop_due(now) {
            match hop {
                Hop::Leave(place) => self.leave(at, place, flight),
                Hop::Arrive(place) => self.arrive(at, place, flight),
                Hop::Enter(place) => self.enter(at, place, flight),
                Hop::Local(host) => self.deliver(at, host, flight),
            }
        }
    }

    fn schedule(&mut self, at: Instant, hop: Hop, flight: Flight) {
        if self.events.next().is_none_or(|next| at < next) {
            self.effects.wakers.extend(self.driver.take());
        }
        self.events.push(at, hop, flight);
    }

    /// Finds the next node: the one with the destination address, or the gateway.
    fn leave(&mut self, at: Instant, from: Place, flight: Flight) {
        let realm = self.realm(from.realm);
        let next = realm.addresses.get(&flight.destination.ip()).copied().or(realm.gateway);
        match next.filter(|next| *next != from.node) {
            Some(next) => self.cross(at, from, next, flight),
            None => self.end(at, flight, Verdict::NoRoute),
        }
    }

    fn cross(&mut self, at: Instant, from: Place, next: NodeId, flight: Flight) {
        let nodes = (from.node, next);
        let links = [self.link(from.node, from.realm), self.link(next, from.realm)];
        if self.blocked.contains(&nodes) {
            return self.end(at, flight, Verdict::Blocked);
        }
        if links.iter().any(|link| flight.size() > link.mtu) {
            return self.end(at, flight, Verdict::TooBig);
        }
        let realm = self.realm(from.realm);
        let to_gateway = realm.gateway.is_some_and(|gateway| gateway == from.node || gateway == next);
        let between = if to_gateway { Duration::ZERO } else { realm.latency };
        let base = self.paths.get(&nodes).copied().unwrap_or(links[0].latency + links[1].latency + between);
        let passage =
            self.node_mut(from.node).up.admit(&links[0], at, flight.size()).and_then(|leaves| {
                self.order.pass(nodes, [&links[0], &links[1]], leaves, base, &mut self.rng)
            });
        match passage {
            Err(verdict) => self.end(at, flight, verdict),
            Ok(passage) => {
                let place = Place { node: next, realm: from.realm };
                for _ in 1..passage.copies {
                    self.stats.duplicated += 1;
                    self.schedule(passage.arrives, Hop::Arrive(place), flight.clone());
                }
                self.schedule(passage.arrives, Hop::Arrive(place), flight);
            }
        }
    }

    fn arrive(&mut self, at: Instant, place: Place, flight: Flight) {
        let link = self.link(place.node, place.realm);
        match self.node_mut(place.node).down.admit(&link, at, flight.size()) {
            Ok(through) if through > at => self.schedule(through, Hop::Enter(place), flight),
            Ok(_) => self.enter(at, place, flight),
            Err(verdict) => self.end(at, flight, verdict),
        }
    }

    fn enter(&mut self, at: Instant, place: Place, mut flight: Flight) {
        let Kind::Gateway(gateway) = &self.node(place.node).kind else {
            return self.deliver(at, place.node, flight);
        };
        let (inside, outside) = (gateway.inside, gateway.outside);
        let hairpin =
            place.realm == inside && gateway.outer(flight.destination.ip()) == Some(flight.destination.ip());
        let (translated, at, realm) = if hairpin {
            let turning = self.realm(inside).latency;
            (self.turn_around(at, place.node, &mut flight), at + turning, inside)
        } else if place.realm == inside {
            (self.outward(at, place.node, &mut flight), at, outside)
        } else {
            (self.inward(at, place.node, &mut flight), at, inside)
        };
        match translated {
            Ok(()) => self.schedule(at, Hop::Leave(Place { node: place.node, realm }), flight),
            Err(verdict) => self.end(at, flight, verdict),
        }
    }

    fn outward(&mut self, at: Instant, gateway: NodeId, flight: &mut Flight) -> Result<(), Verdict> {
        let (gateway, rng) = self.gateway_mut(gateway);
        let outer = gateway.outer(flight.source.ip());
        flight.source = gateway.table.outbound(flight.source, flight.destination, outer, at, rng)?;
        Ok(())
    }

    fn inward(&mut self, at: Instant, gateway: NodeId, flight: &mut Flight) -> Result<(), Verdict> {
        let (gateway, _) = self.gateway_mut(gateway);
        let internal = gateway.table.inbound(flight.destination, flight.source, at);
        let translates = gateway.outer(flight.destination.ip()).is_some();
        // A firewall has no mappings, only filters: an unknown source counts as filtered.
        flight.destination =
            internal.map_err(|verdict| if translates { verdict } else { Verdict::Filtered })?;
        Ok(())
    }

    fn turn_around(&mut self, at: Instant, gateway: NodeId, flight: &mut Flight) -> Result<(), Verdict> {
        let style = self.gateway(gateway).table.nat().hairpin;
        if style == Hairpin::Off {
            return Err(Verdict::NoHairpin);
        }
        let internal = flight.source;
        self.outward(at, gateway, flight)?;
        self.inward(at, gateway, flight)?;
        if style == Hairpin::InternalSource {
            flight.source = internal;
        }
        Ok(())
    }

    fn deliver(&mut self, at: Instant, host: NodeId, flight: Flight) {
        let datagram = Datagram {
            from: flight.source,
            to: flight.destination,
            ecn: flight.ecn,
            payload: flight.payload.clone(),
        };
        let verdict = match self.host(host).deliver(datagram) {
            Ok(reader) => {
                self.effects.wakers.extend(reader);
                Verdict::Delivered
            }
            Err(verdict) => verdict,
        };
        self.end(at, flight, verdict);
    }

    fn end(&mut self, at: Instant, flight: Flight, verdict: Verdict) {
        let record = Record {
            id: flight.id,
            sent: flight.sent - self.start,
            at: at - self.start,
            from: flight.from,
            to: flight.to,
            seen_from: flight.source,
            reached: flight.destination,
            size: flight.payload.len(),
            first: flight.payload.first().copied(),
            verdict,
        };
        self.stats.count(&record);
        self.effects.ended.push((record, flight.payload));
    }
}
