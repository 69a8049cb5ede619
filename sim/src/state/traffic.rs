//! The path of a datagram through a world.
//!
//! A datagram leaves a node into a realm ([`Hop::Leave`]) and crosses the links of two nodes of
//! that realm. It comes to the second node's link ([`Hop::Arrive`]), which may make it wait, and
//! then to the node itself ([`Hop::Enter`]). A host delivers it; a gateway translates it and lets
//! it leave into its other realm. It goes up through gateways and then down, and turns around once
//! at most, so it cannot go in circles.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::udp::EcnCodepoint;
use tokio::time::Instant;

use super::{
    NodeKind, State,
    events::{Attachment, Event, Hop, InFlight},
};
use crate::{
    ids::NodeId,
    nat::Hairpin,
    receive_buffer::Datagram,
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
        let mut datagram = self.new_datagram(now, from, to, ecn, payload);
        let state = self.host(host);
        if from.ip().is_unspecified()
            && let Some(source) = state.source_for(to.ip())
        {
            datagram.source.set_ip(source);
            datagram.from = datagram.source;
        }
        let source = datagram.source.ip();
        let hop = if source.is_ipv4() != to.is_ipv4() || to.port() == 0 {
            None
        } else if state.is_local(to.ip()) && state.is_local(source) {
            Some(Hop::Local(host))
        } else {
            state.realm_of(source).map(|realm| Hop::Leave(Attachment { node: host, realm }))
        };
        match hop {
            Some(hop) => self.schedule(now, hop, datagram),
            None => self.end(now, datagram, Verdict::NoRoute),
        }
    }

    /// Takes a datagram whose source address the host does not have.
    pub(crate) fn send_forged(&mut self, host: NodeId, source: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let now = Instant::now();
        let datagram = self.new_datagram(now, source, to, None, payload);
        let state = self.host(host);
        let realm = state.up().find_map(|net| state.realm_of(net.addr()));
        match realm.filter(|_| source.is_ipv4() == to.is_ipv4() && to.port() != 0) {
            Some(realm) => self.schedule(now, Hop::Leave(Attachment { node: host, realm }), datagram),
            None => self.end(now, datagram, Verdict::NoRoute),
        }
    }

    fn new_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        payload: &[u8],
    ) -> InFlight {
        let id = self.stats.sent;
        self.stats.sent += 1;
        self.stats.bytes_sent += payload.len() as u64;
        InFlight { id, sent: now, from, to, source: from, destination: to, ecn, payload: Arc::from(payload) }
    }

    /// Processes all events that are due.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some(Event { at, hop, datagram, .. }) = self.events.pop_due(now) {
            match hop {
                Hop::Leave(attachment) => self.leave(at, attachment, datagram),
                Hop::Arrive(attachment) => self.arrive(at, attachment, datagram),
                Hop::Enter(attachment) => self.enter(at, attachment, datagram),
                Hop::Local(host) => self.deliver(at, host, datagram),
            }
        }
    }

    fn schedule(&mut self, at: Instant, hop: Hop, datagram: InFlight) {
        if self.events.next().is_none_or(|next| at < next) {
            self.effects.wakers.extend(self.driver.take());
        }
        self.events.push(at, hop, datagram);
    }

    /// Finds the next node: the one with the destination address, or the gateway.
    fn leave(&mut self, at: Instant, from: Attachment, datagram: InFlight) {
        let realm = self.realm(from.realm);
        let next = realm.addresses.get(&datagram.destination.ip()).copied().or(realm.gateway);
        match next.filter(|next| *next != from.node) {
            Some(next) => self.cross(at, from, next, datagram),
            None => self.end(at, datagram, Verdict::NoRoute),
        }
    }

    fn cross(&mut self, at: Instant, from: Attachment, next: NodeId, datagram: InFlight) {
        let nodes = (from.node, next);
        let links = [self.link(from.node, from.realm), self.link(next, from.realm)];
        if self.blocked.contains(&nodes) {
            return self.end(at, datagram, Verdict::Blocked);
        }
        if links.iter().any(|link| datagram.size() > link.mtu) {
            return self.end(at, datagram, Verdict::TooBig);
        }
        let realm = self.realm(from.realm);
        let to_gateway = realm.gateway.is_some_and(|gateway| gateway == from.node || gateway == next);
        let between = if to_gateway { Duration::ZERO } else { realm.latency };
        let base = self.paths.get(&nodes).copied().unwrap_or(links[0].latency + links[1].latency + between);
        let passage =
            self.node_mut(from.node).up.admit(&links[0], at, datagram.size()).and_then(|leaves| {
                self.order.pass(nodes, [&links[0], &links[1]], leaves, base, &mut self.rng)
            });
        match passage {
            Err(verdict) => self.end(at, datagram, verdict),
            Ok(passage) => {
                let attachment = Attachment { node: next, realm: from.realm };
                for _ in 1..passage.copies {
                    self.stats.duplicated += 1;
                    self.schedule(passage.arrives, Hop::Arrive(attachment), datagram.clone());
                }
                self.schedule(passage.arrives, Hop::Arrive(attachment), datagram);
            }
        }
    }

    fn arrive(&mut self, at: Instant, attachment: Attachment, datagram: InFlight) {
        let link = self.link(attachment.node, attachment.realm);
        match self.node_mut(attachment.node).down.admit(&link, at, datagram.size()) {
            Ok(through) if through > at => self.schedule(through, Hop::Enter(attachment), datagram),
            Ok(_) => self.enter(at, attachment, datagram),
            Err(verdict) => self.end(at, datagram, verdict),
        }
    }

    fn enter(&mut self, at: Instant, attachment: Attachment, mut datagram: InFlight) {
        let NodeKind::Gateway(gateway) = &self.node(attachment.node).kind else {
            return self.deliver(at, attachment.node, datagram);
        };
        let (inside, outside) = (gateway.inside, gateway.outside);
        let hairpin = attachment.realm == inside
            && gateway.outer(datagram.destination.ip()) == Some(datagram.destination.ip());
        let (translated, at, realm) = if hairpin {
            let turning = self.realm(inside).latency;
            (self.turn_around(at, attachment.node, &mut datagram), at + turning, inside)
        } else if attachment.realm == inside {
            (self.outward(at, attachment.node, &mut datagram), at, outside)
        } else {
            (self.inward(at, attachment.node, &mut datagram), at, inside)
        };
        match translated {
            Ok(()) => self.schedule(at, Hop::Leave(Attachment { node: attachment.node, realm }), datagram),
            Err(verdict) => self.end(at, datagram, verdict),
        }
    }

    fn outward(&mut self, at: Instant, gateway: NodeId, datagram: &mut InFlight) -> Result<(), Verdict> {
        let (gateway, rng) = self.gateway_mut(gateway);
        let outer = gateway.outer(datagram.source.ip());
        datagram.source = gateway.table.outbound(datagram.source, datagram.destination, outer, at, rng)?;
        Ok(())
    }

    fn inward(&mut self, at: Instant, gateway: NodeId, datagram: &mut InFlight) -> Result<(), Verdict> {
        let (gateway, _) = self.gateway_mut(gateway);
        let internal = gateway.table.inbound(datagram.destination, datagram.source, at);
        let translates = gateway.outer(datagram.destination.ip()).is_some();
        // A firewall has no mappings, only filters: an unknown source counts as filtered.
        datagram.destination =
            internal.map_err(|verdict| if translates { verdict } else { Verdict::Filtered })?;
        Ok(())
    }

    fn turn_around(&mut self, at: Instant, gateway: NodeId, datagram: &mut InFlight) -> Result<(), Verdict> {
        let style = self.gateway(gateway).table.nat().hairpin;
        if style == Hairpin::Off {
            return Err(Verdict::NoHairpin);
        }
        let internal = datagram.source;
        self.outward(at, gateway, datagram)?;
        self.inward(at, gateway, datagram)?;
        if style == Hairpin::InternalSource {
            datagram.source = internal;
        }
        Ok(())
    }

    fn deliver(&mut self, at: Instant, host: NodeId, datagram: InFlight) {
        let received = Datagram {
            from: datagram.source,
            to: datagram.destination,
            ecn: datagram.ecn,
            payload: datagram.payload.clone(),
        };
        let verdict = match self.host(host).deliver(received) {
            Ok(reader) => {
                self.effects.wakers.extend(reader);
                Verdict::Delivered
            }
            Err(verdict) => verdict,
        };
        self.end(at, datagram, verdict);
    }

    fn end(&mut self, at: Instant, datagram: InFlight, verdict: Verdict) {
        let record = Record {
            id: datagram.id,
            sent: datagram.sent - self.start,
            at: at - self.start,
            from: datagram.from,
            to: datagram.to,
            seen_from: datagram.source,
            reached: datagram.destination,
            size: datagram.payload.len(),
            first: datagram.payload.first().copied(),
            verdict,
        };
        self.stats.count(&record);
        self.effects.ended.push((record, datagram.payload));
    }
}
