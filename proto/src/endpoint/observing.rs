//! Observers: what coordinators' further ports tell of our NAT, and telling our clients.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use rand::Rng;

use super::Endpoint;
use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::{Scope, scope},
    command::{Command, Pool},
    control_streams::ControlStream,
    event::Event,
    local_addresses::Family,
    nat::{
        Recorded,
        observer::{Observed, Offered, PORTS, Purpose, Request},
        strategy::{Allocation, NatProfile},
    },
    outbox::Transmit,
    session::port_search::{LEAST_SPRAY, WINDOW_SOCKETS},
    wire::frame::{Frame, ObserverOffer},
};

/// Observers have ports of the system's choice; below are those of services.
const LEAST_PORT: u16 = 1024;

impl Endpoint {
    /// A client has registered over `link`: offers to observe it over both families, now or once the ports are open.
    pub(super) fn offer_observers(&mut self, id: ControlStreamId, link: &ControlStream) {
        if self.coordinator.serves(&link.peer, id) {
            self.offer_observers_over_link(id, link);
            self.offer_observers_of_other_family(id, link);
        }
    }

    fn offer_observers_over_link(&mut self, id: ControlStreamId, link: &ControlStream) {
        let socket = link.socket.and_then(|socket| self.network.socket(socket));
        let Some(local) = socket.map(|socket| socket.local.ip()).filter(|_| !link.told_observers) else {
            return;
        };
        if let Some(offer) = self.observers.offer(id, local, true) {
            if link.remote.is_some() && self.links.told_observers(id) {
                self.out.frame(id, Frame::Observer(offer));
            }
        } else {
            self.open_observers(local);
        }
    }

    /// A client whose connection uses one family has an address of the other, too, which no connection shows us.
    fn offer_observers_of_other_family(&mut self, id: ControlStreamId, link: &ControlStream) {
        let Some(remote) = link.remote.filter(|_| !link.told_observers_at) else { return };
        let family = Family::of(remote.ip()).other();
        let Some(at) = self.network.reachable_at(family, scope(remote.ip())) else { return };
        if let Some(offer) = self.observers.offer(id, at.local, false) {
            if self.links.told_observers_at(id) {
                self.out.frame(id, Frame::ObserverAt { ip: at.ip, offer });
            }
        } else {
            self.open_observers(at.local);
        }
    }

    fn open_observers(&mut self, local: IpAddr) {
        if self.observers.ask_for(local) {
            self.out.command(Command::OpenSockets { pool: Pool::Observers(local), local, count: PORTS });
        }
    }

    /// The sockets that [`Command::OpenSockets`] asked for are open, with these ports; perhaps not as many.
    pub fn handle_sockets_opened(&mut self, pool: Pool, sockets: &[(SocketId, u16)], now: Instant) {
        match pool {
            Pool::Observers(local) => {
                self.observers.opened(local, sockets);
                if sockets.is_empty() {
                    // Another client is the reason to try again.
                    return self.out.command(Command::CloseSockets { pool, keep: Vec::new() });
                }
                for (id, link) in self.links.all() {
                    self.offer_observers(id, &link);
                }
            }
            Pool::Filtering(ip) => {
                self.filters.opened(ip, sockets, now);
                self.run_filters(now);
            }
            Pool::Session(flow) => self.search_opened(flow, sockets, now),
            Pool::EarlyPackets(number) => self.early_packets_opened(number, sockets, now),
            Pool::BindingLifetimeTest => self.idling_opened(sockets, now),
            Pool::Renewal(number) => self.renewal_opened(number, sockets, now),
        }
    }

    /// A coordinator offers to observe us.
    pub(super) fn observer_offered(
        &mut self,
        id: ControlStreamId,
        link: &ControlStream,
        offer: ObserverOffer,
        now: Instant,
    ) {
        let (Some(remote), Some(socket)) = (link.remote, link.socket) else { return };
        if !self.registration_client.contains(&link.peer) {
            return self.out.refuse_frame();
        }
        if !self.observing.takes_offer(link.peer, now) {
            return self.out.cap_hit();
        }
        self.idling.offered((id, link.peer), (remote.ip(), &offer), now);
        if offer.ports.len() == PORTS {
            self.early_packets.offered(id, link.peer, now);
        }
        let offered = Offered { offer, ip: remote.ip(), socket: Some(socket), is_other_family: false };
        self.observing.offered(id, offered, now);
        self.observe(now);
        self.run_early_packets(now);
    }

    /// A coordinator offers to observe us over the family that its connection does not use.
    pub(super) fn observer_at_offered(
        &mut self,
        id: ControlStreamId,
        link: &ControlStream,
        ip: IpAddr,
        offer: ObserverOffer,
        now: Instant,
    ) {
        let Some(remote) = link.remote else { return };
        let is_allowed = self.registration_client.contains(&link.peer)
            && Family::of(ip) != Family::of(remote.ip())
            && self.may_be_observer(remote, ip)
            && offer.ports.iter().all(|port| *port >= LEAST_PORT);
        if !is_allowed {
            return self.out.refuse_frame();
        }
        if !self.observing.takes_offer(link.peer, now) {
            return self.out.cap_hit();
        }
        let first = offer.ports.first().copied().unwrap_or_default();
        let socket = self.network.sockets_for(SocketAddr::new(ip, first)).first().copied();
        self.observing.offered(id, Offered { offer, ip, socket, is_other_family: true }, now);
        self.observe(now);
    }

    /// Returns true if requests may go to `ip` on the word of the coordinator at `remote`. A private address must be on a network
    /// of ours, as that of the coordinator is.
    fn may_be_observer(&self, remote: SocketAddr, ip: IpAddr) -> bool {
        let prefixes = self.network.prefixes();
        let is_own = prefixes.iter().any(|prefix| prefix.address == ip);
        match scope(ip) {
            Scope::Never => false,
            Scope::Loopback => scope(remote.ip()) == Scope::Loopback,
            Scope::Private => {
                let is_near = |ip| prefixes.iter().any(|prefix| prefix.contains(ip));
                !is_own && is_near(ip) && is_near(remote.ip())
            }
            Scope::Global => !is_own,
        }
    }

    /// Our sockets changed: those that are observed over the family that the coordinators' connections do not use may be others.
    pub(super) fn choose_observed_sockets(&mut self, now: Instant) {
        let network = &self.network;
        self.observing.sockets_changed(|remote| network.sockets_for(remote).first().copied(), now);
        self.observe(now);
    }

    /// Sends the requests that are due.
    pub(super) fn observe(&mut self, now: Instant) {
        let rng = &mut self.rng;
        for (path, payload) in self.observing.poll(now, || rng.random()) {
            self.out.transmits.push_back(Transmit { path, payload });
        }
        let silent = self.observing.take_silent();
        for Path { socket, remote } in &silent {
            self.network.observations.not_seen_from(*socket, *remote);
        }
        if !silent.is_empty() {
            self.refresh_candidates(now);
            self.report_views();
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
                Request::Provoke { data } => self.provoked(id, &link, path, data, now),
                Request::Hold { data, delay } => self.hold((id, &link), path, (data, delay), now),
            },
            _ => self.out.counters.probes_refused += 1,
        }
    }

    /// A coordinator says where a request came from.
    pub(super) fn probe_observed(
        &mut self,
        id: ControlStreamId,
        link: &ControlStream,
        (data, address): ([u8; 8], SocketAddr),
        now: Instant,
    ) {
        let before = self.traits();
        let Some(observed) = self.observing.answered(id, data, address.port(), now) else {
            return self.out.refuse_frame();
        };
        match observed.purpose {
            Purpose::EarlyPackets(place) => {
                self.early_packets.answered(id, place, observed.socket, address.port(), now);
                self.run_early_packets(now);
                self.nat_measured(before, now);
            }
            Purpose::OtherFamily(0) => self.seen_over_other_family(id, link, observed, address, now),
            Purpose::ControlStream(_) | Purpose::OtherFamily(_) => {
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

    /// A coordinator saw our socket of the family that its connection does not use: a candidate, as with `OBSERVED_ADDRESS`.
    fn seen_over_other_family(
        &mut self,
        id: ControlStreamId,
        link: &ControlStream,
        Observed { socket, from, .. }: Observed,
        address: SocketAddr,
        now: Instant,
    ) {
        if !self.network.is_plausible(socket, from, address) {
            return self.out.refuse_frame();
        }
        let observer = link.peer;
        let recorded = self.network.observations.record(socket, id, (observer, from), address, now);
        match recorded {
            Recorded::Known => return,
            Recorded::Full => return self.out.cap_hit(),
            Recorded::Remapped => {
                self.remapped(socket, now);
                self.look_for_old_mappings(now);
            }
            Recorded::New | Recorded::Moved => {}
        }
        self.out.event(Event::Observed { observer, socket, address });
        self.refresh_candidates(now);
        self.report_views();
        self.tell_moved(now);
    }

    /// Something of our NAT is known that may not have been known before.
    fn nat_measured(&mut self, before: NatProfile, now: Instant) {
        self.report_views();
        if self.traits() != before {
            self.registration_client.renew_now(now);
        }
    }

    /// The socket that our coordinators know.
    pub(super) fn coordinated_socket(&self) -> Option<SocketId> {
        let links = self.registration_client.connected();
        let socket = links.into_iter().find_map(|(_, link)| self.links.get(link)?.socket)?;
        self.network.socket(socket).map(|_| socket)
    }

    /// How the NAT in front of a socket allocates.
    pub(super) fn allocation(&self, id: SocketId) -> Option<Allocation> {
        self.observing.allocation(id, self.network.socket(id)?.local.port())
    }

    /// What we tell others of our NAT.
    pub(super) fn traits(&self) -> NatProfile {
        let declines_search = !self.settings.birthday_search;
        let Some(id) = self.coordinated_socket() else {
            return NatProfile { declines_search, ..NatProfile::default() };
        };
        let view = self.network.current_view(id);
        let allocation = match self.allocation(id) {
            Some(Allocation::Sequential { .. }) if !self.settings.prediction => Some(Allocation::Random),
            other => other,
        };
        let early_packets_harm = self.early_packets_harm(id).is_some_and(|finding| finding.value);
        let max_sockets = self.searches.max_sockets();
        // A window without its sockets would be half a search.
        let allocation = match allocation {
            Some(Allocation::Sequential { .. }) if max_sockets < WINDOW_SOCKETS => Some(Allocation::Random),
            other => other,
        };
        let traits = NatProfile { mapping: view.mapping, allocation, declines_search, early_packets_harm };
        let declines_search = declines_search || (traits.needs_spray() && max_sockets < LEAST_SPRAY);
        NatProfile { declines_search, ..traits }
    }
}
