//! Observers: what coordinators' further ports tell of our NAT, and telling our clients.

use std::{net::SocketAddr, time::Instant};

use rand::Rng;

use super::Agent;
use crate::core::{
    LinkId, Path, SocketId,
    command::{Command, Pool},
    frame::{Frame, ObserverOffer},
    links::Link,
    observer::{EARLY, EARLY_DATAGRAMS, PORTS, Purpose, Request, request},
    outbox::Transmit,
    strategy::{Allocation, Traits},
};

impl Agent {
    /// A client has registered over `link`: offers to observe it, now or once the ports are open.
    pub(super) fn offer_observers(&mut self, id: LinkId, link: &Link) {
        if link.told_observers || !self.coordinator.serves(&link.peer, id) {
            return;
        }
        // An address to which the connection has moved lately may be anybody's.
        let proven = link.moved.is_none();
        if let Some(offer) = self.observers.offer(id, proven) {
            if let Some(remote) = link.remote
                && self.links.told_observers(id)
            {
                if let Some(socket) = self.observers.early().filter(|_| proven) {
                    let payload = request(&offer, [0; 8]);
                    let path = Path { socket, remote };
                    self.out.transmits.extend([Transmit { path, payload }; EARLY_DATAGRAMS]);
                }
                self.out.frame(id, Frame::Observer(offer));
            }
        } else if !self.observers.asked
            && let Some(socket) = link.socket.and_then(|socket| self.network.socket(socket))
        {
            self.observers.asked = true;
            let local = socket.local.ip();
            self.out.command(Command::OpenSockets { pool: Pool::Observers, local, count: PORTS });
        }
    }

    /// The sockets that [`Command::OpenSockets`] asked for are open, with these ports; perhaps not as many.
    pub fn handle_sockets_opened(&mut self, pool: Pool, sockets: &[(SocketId, u16)], now: Instant) {
        match pool {
            Pool::Observers => {
                self.observers.opened(sockets);
                for (id, link) in self.links.all() {
                    self.offer_observers(id, &link);
                }
            }
            Pool::Filtering(ip) => {
                self.filters.opened(ip, sockets, now);
                self.run_filters(now);
            }
            Pool::Session(flow) => self.search_opened(flow, sockets, now),
            Pool::Idling => self.idling_opened(sockets, now),
            Pool::Renewal(number) => self.renewal_opened(number, sockets, now),
        }
    }

    /// A coordinator offers to observe us.
    pub(super) fn observer_offered(&mut self, id: LinkId, link: &Link, offer: ObserverOffer, now: Instant) {
        let (Some(remote), Some(socket)) = (link.remote, link.socket) else { return };
        if self.registrar.contains(&link.peer) {
            self.idling.offered((id, link.peer), (remote.ip(), &offer), now);
            self.observing.offered(id, offer, (remote.ip(), socket), now);
            self.observe(now);
        } else {
            self.out.refuse_frame();
        }
    }

    /// Sends the requests that are due.
    pub(super) fn observe(&mut self, now: Instant) {
        let rng = &mut self.rng;
        for (path, payload) in self.observing.poll(now, || rng.random()) {
            self.out.transmits.push_back(Transmit { path, payload });
        }
    }

    /// A datagram came to one of our observers.
    pub(super) fn observe_request(&mut self, path: Path, datagram: &[u8], now: Instant) {
        let asked = self.observers.judge(datagram);
        let client = asked.and_then(|(id, request)| Some((id, request, self.links.get(id)?.clone())));
        match client {
            Some((id, request, link)) if self.coordinator.may_observe(&link.peer, now) => match request {
                Request::Where { data } => {
                    self.out.frame(id, Frame::ProbeObserved { data, address: path.remote });
                }
                Request::Hold { data, delay } => self.hold((id, &link), path, (data, delay), now),
            },
            _ => self.out.counters.probes_refused += 1,
        }
    }

    /// A coordinator says where a request came from.
    pub(super) fn probe_observed(
        &mut self,
        id: LinkId,
        link: &Link,
        (data, address): ([u8; 8], SocketAddr),
        now: Instant,
    ) {
        let before = self.traits();
        let Some(observed) = self.observing.answered(id, data, address.port()) else {
            return self.out.refuse_frame();
        };
        match observed.purpose {
            Purpose::Link(EARLY) => self.nat_measured(before, now),
            Purpose::Link(_) => {
                if !self.network.is_plausible(observed.socket, observed.from, address) {
                    return self.out.refuse_frame();
                }
                let observer = (link.peer, observed.from);
                self.network.observations.record_probe(observed.socket, id, observer, address, now);
                self.nat_measured(before, now);
            }
            Purpose::Session(key) => self.search_sampled(key, observed.socket, address.port(), now),
            Purpose::Renewal => self.renewal_sampled(observed.socket, address, now),
        }
    }

    /// Something of our NAT is known that may not have been known before.
    fn nat_measured(&mut self, before: Traits, now: Instant) {
        self.report_views();
        if self.traits() != before {
            self.registrar.renew_now(now);
        }
    }

    /// The socket that our coordinators know.
    pub(super) fn coordinated_socket(&self) -> Option<SocketId> {
        let links = self.registrar.connected();
        let socket = links.into_iter().find_map(|(_, link)| self.links.get(link)?.socket)?;
        self.network.socket(socket).map(|_| socket)
    }

    /// How the NAT in front of a socket allocates.
    pub(super) fn allocation(&self, id: SocketId) -> Option<Allocation> {
        self.observing.allocation(id, self.network.socket(id)?.local.port())
    }

    /// What we tell others of our NAT.
    pub(super) fn traits(&self) -> Traits {
        let declines_search = !self.settings.birthday_search;
        let Some(id) = self.coordinated_socket() else {
            return Traits { declines_search, ..Traits::default() };
        };
        let view = self.network.current_view(id);
        let allocation = match self.allocation(id) {
            Some(Allocation::Sequential { .. }) if !self.settings.prediction => Some(Allocation::Random),
            other => other,
        };
        let early_packets_harm = self.observing.early_packets_harm(id) == Some(true);
        Traits { mapping: view.mapping, allocation, declines_search, early_packets_harm }
    }
}
