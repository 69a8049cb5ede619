//! Observation at further ports: requests to a coordinator that show the mapping behaviour
//! (`docs/protocol.md` §7.6).
//!
//! A coordinator opens a few UDP ports in addition to its QUIC port and offers them to its clients.
//! A client sends a small authenticated request from the socket to be observed. The coordinator
//! reports the source address of the request over the control stream. So the coordinator sends no
//! datagram to the source address of a request. Two kinds of request are exceptions: they ask for
//! datagrams to the IP address of the client's own connection. These are the requests of
//! [`binding_lifetime`](crate::nat::binding_lifetime) and of `early_packets`.
//!
//! `Observers` is the side of the coordinator. It keeps no state for a client: the token is the
//! number of the control stream, and the key follows from the token. `Observing` is the side of
//! the client: the offers of its coordinators, and the requests that await an answer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{
    ControlStreamId, Path, SocketId,
    local_addresses::Family,
    nat::{
        binding_lifetime::delay_of,
        strategy::{Allocation, allocation},
    },
    rate_limit::{Rate, RecentBuckets},
    session::key::Key,
    wire::{
        envelope::{Envelope, Kind, PROBE_LEN, SealedProbe},
        frame::ObserverOffer,
        mac::MacKey,
    },
};

/// Number of ports that a coordinator opens. Three ports show the distances between mappings that
/// were made in quick succession. The fourth port sends early packets.
pub(crate) const PORTS: usize = 4;
/// Index of the fourth port in an offer.
pub(crate) const EARLY: usize = 3;
/// Limit on requests of a client: six with repetitions for each control stream, and four for each
/// session that samples its NAT.
pub(crate) const OBSERVE_RATE: Rate = Rate { interval: Duration::from_millis(50), burst: 60 };
/// Limit on the offers that a client takes from a coordinator. Each offer causes at most four
/// requests to each of four ports.
pub(crate) const OFFER_RATE: Rate = Rate { interval: Duration::from_secs(30), burst: 8 };
/// Maximum number of coordinators with a limit on offers.
const MAX_OFFERING: usize = 1024;
/// Interval of requests that keep a mapping of the other address family alive. The mapping carries
/// no replies, and Linux drops such a flow after 30 s.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Number of rounds without an answer until the observation of an observer of the other family is
/// dropped.
const MAX_SILENT: u8 = 3;
/// Delays of the retransmissions of a request. Each delay counts from the request before.
pub(crate) const RETRY_DELAYS: [Duration; 3] =
    [Duration::from_millis(150), Duration::from_millis(450), Duration::from_millis(1500)];
/// Maximum number of requests that await an answer: three for each coordinator, and a few for each
/// session that samples its NAT.
const MAX_OUTSTANDING: usize = 256;
/// Time for an answer to arrive.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns a request for the source address of the request.
pub fn request(offer: &ObserverOffer, data: [u8; 8]) -> [u8; PROBE_LEN] {
    Envelope::new(Kind::Observe, offer.token, data).seal(&MacKey::new(&offer.key))
}

/// Returns a request for the source address of the request, and for early packets to that address.
pub fn provocation(offer: &ObserverOffer, data: [u8; 8]) -> [u8; PROBE_LEN] {
    Envelope::new(Kind::Provoke, offer.token, data).seal(&MacKey::new(&offer.key))
}

/// Authentic request to an observer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Request for the source address.
    Where {
        /// Identifier of the request.
        data: [u8; 8],
    },
    /// Request for the source address, and for early packets to it.
    Provoke {
        /// Identifier of the request.
        data: [u8; 8],
    },
    /// Request for an immediate and a delayed reply.
    Hold {
        /// Identifier of the request.
        data: [u8; 8],
        /// Delay of the second reply in seconds.
        delay: u16,
    },
}

/// Further ports of a coordinator.
#[derive(Debug)]
pub(crate) struct Observers {
    secret: [u8; 32],
    /// Ports by the local IP address of their sockets. An address without ports has been requested.
    ports: BTreeMap<IpAddr, BTreeMap<SocketId, u16>>,
}

impl Observers {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self { secret, ports: BTreeMap::new() }
    }

    /// Records that sockets at `local` are requested. Returns true for the first request.
    pub(crate) fn ask_for(&mut self, local: IpAddr) -> bool {
        let is_new = !self.ports.contains_key(&local);
        self.ports.entry(local).or_default();
        is_new
    }

    /// Adds the sockets that were opened at `local`. If none could be opened, the next client
    /// causes another request.
    pub(crate) fn opened(&mut self, local: IpAddr, sockets: &[(SocketId, u16)]) {
        if sockets.is_empty() && self.ports.get(&local).is_some_and(BTreeMap::is_empty) {
            self.ports.remove(&local);
            return;
        }
        self.ports.entry(local).or_default().extend(sockets.iter().copied());
    }

    pub(crate) fn has(&self, socket: SocketId) -> bool {
        self.ports.values().any(|ports| ports.contains_key(&socket))
    }

    /// Returns the socket that sends early packets for requests at the socket `asked`, if all ports
    /// at that address could be opened.
    pub(crate) fn early(&self, asked: SocketId) -> Option<SocketId> {
        let ports = self.ports.values().find(|ports| ports.contains_key(&asked))?;
        ports.keys().copied().nth(EARLY)
    }

    /// Returns the offer over a control stream of the ports at `local`, with or without the port
    /// that sends early packets. Returns `None` without ports.
    pub(crate) fn offer(&self, stream: ControlStreamId, local: IpAddr, early: bool) -> Option<ObserverOffer> {
        let count = if early { PORTS } else { EARLY };
        let ports: Vec<u16> = self.ports.get(&local)?.values().copied().take(count).collect();
        let token = stream.0.to_be_bytes();
        (!ports.is_empty()).then(|| ObserverOffer { ports, token, key: self.key(token) })
    }

    /// Returns the early packet to the client of a control stream.
    pub(crate) fn early_packet(&self, stream: ControlStreamId) -> [u8; PROBE_LEN] {
        let token = stream.0.to_be_bytes();
        request(&ObserverOffer { ports: Vec::new(), token, key: self.key(token) }, [0; 8])
    }

    /// Returns the key of the offer over a control stream.
    pub(crate) fn key_of(&self, stream: ControlStreamId) -> [u8; 32] {
        self.key(stream.0.to_be_bytes())
    }

    fn key(&self, token: [u8; 8]) -> [u8; 32] {
        MacKey::new(&self.secret).derive(&token)
    }

    /// Returns the request in a datagram and the control stream of its sender, if the datagram is
    /// authentic.
    pub(crate) fn judge(&self, datagram: &[u8]) -> Option<(ControlStreamId, Request)> {
        let sealed = SealedProbe::parse(datagram)?;
        let claimed = &sealed.claimed;
        let data = claimed.data;
        let request = match claimed.kind {
            Kind::Observe if claimed.is_plain() => Request::Where { data },
            Kind::Provoke if claimed.is_plain() => Request::Provoke { data },
            Kind::Hold if claimed.flags == 0 => Request::Hold { data, delay: delay_of(&claimed.address)? },
            _ => return None,
        };
        let stream = ControlStreamId(u64::from_be_bytes(claimed.tag));
        sealed.is_authentic(&MacKey::new(&self.key_of(stream))).then_some((stream, request))
    }
}

/// Purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Mapping of the socket of a control stream. The index is that of the port in the offer.
    ControlStream(usize),
    /// Mapping of a socket of the address family that the control stream does not use. The observed
    /// address is a candidate.
    OtherFamily(usize),
    /// Harm by early packets. The index is that of the port in the offer.
    EarlyPackets(usize),
    /// Sample of the NAT for the search of a session.
    Session(Key),
    /// Public address of the socket to which sessions will move.
    Renewal,
}

/// Request to a coordinator to report where a socket is seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// The control stream to the coordinator.
    pub(crate) stream: ControlStreamId,
    /// The address family of the socket.
    pub(crate) family: Family,
    pub(crate) purpose: Purpose,
    pub(crate) socket: SocketId,
}

/// Answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) purpose: Purpose,
    pub(crate) socket: SocketId,
    /// Address of the observer.
    pub(crate) from: SocketAddr,
}

#[derive(Debug)]
struct Outstanding {
    stream: ControlStreamId,
    until: Instant,
    observed: Observed,
}

/// Offer of a coordinator to observe this peer.
#[derive(Debug)]
pub(crate) struct Offered {
    pub(crate) offer: ObserverOffer,
    /// IP address of the coordinator.
    pub(crate) ip: IpAddr,
    /// Socket of this peer to be observed.
    pub(crate) socket: Option<SocketId>,
    /// The connection with the coordinator uses the other address family. No other traffic keeps
    /// this mapping alive or shows its address.
    pub(crate) is_other_family: bool,
}

#[derive(Debug)]
struct Service {
    offered: Offered,
    seen: Vec<Option<u16>>,
    /// Indices of the ports that were asked in this round and have not answered.
    unanswered: Vec<usize>,
    /// Number of requests to each port in this round.
    sent: usize,
    due: Option<Instant>,
    /// Number of consecutive rounds without an answer.
    silent: u8,
}

impl Service {
    fn new(offered: Offered, now: Instant) -> Self {
        let mut service =
            Self { offered, seen: Vec::new(), unanswered: Vec::new(), sent: 0, due: None, silent: 0 };
        service.restart(now);
        service
    }

    /// Starts a round to all ports except the one that sends early packets. The observed socket
    /// must never send to that port.
    fn restart(&mut self, now: Instant) {
        let count = self.offered.offer.ports.len().min(EARLY);
        self.seen = vec![None; count];
        self.unanswered = (0..count).collect();
        (self.sent, self.silent) = (0, 0);
        self.due = self.offered.socket.map(|_| now);
    }

    /// Starts a round to the first port, which confirms or changes the observed address.
    fn refresh(&mut self, now: Instant) {
        self.unanswered = vec![0];
        (self.sent, self.due) = (0, Some(now));
    }

    fn is_known(&self) -> bool {
        self.seen.first().is_some_and(Option::is_some)
    }

    /// Returns the indices of the ports to ask now.
    fn poll(&mut self, now: Instant) -> Vec<usize> {
        if self.unanswered.is_empty() {
            self.refresh(now);
        }
        let again = RETRY_DELAYS.get(self.sent).map(|after| now + *after);
        self.sent += 1;
        let places = self.unanswered.clone();
        self.due = again;
        if again.is_none() && self.offered.is_other_family && self.is_known() {
            self.silent = self.silent.saturating_add(1);
            self.unanswered.clear();
            self.due = Some(now + KEEP_ALIVE);
        }
        places
    }

    fn answered(&mut self, place: usize, port: u16, now: Instant) {
        if let Some(seen) = self.seen.get_mut(place) {
            *seen = Some(port);
        }
        self.unanswered.retain(|other| *other != place);
        self.silent = 0;
        if self.unanswered.is_empty() {
            self.due = self.offered.is_other_family.then(|| now + KEEP_ALIVE);
        }
    }
}

/// Client side of observation: offers of coordinators, and requests that await an answer.
#[derive(Debug)]
pub(crate) struct Observing {
    services: BTreeMap<(ControlStreamId, Family), Service>,
    outstanding: BTreeMap<[u8; 8], Outstanding>,
    offers: RecentBuckets<PeerId>,
}

impl Default for Observing {
    fn default() -> Self {
        let offers = RecentBuckets::new(OFFER_RATE, MAX_OFFERING);
        Self { services: BTreeMap::new(), outstanding: BTreeMap::new(), offers }
    }
}

impl Observing {
    /// Returns true if another offer of this coordinator may be followed.
    pub(crate) fn takes_offer(&mut self, coordinator: PeerId, now: Instant) -> bool {
        self.offers.take(coordinator, now)
    }

    /// Takes the offer of a coordinator, and starts a round.
    pub(crate) fn offered(&mut self, stream: ControlStreamId, offered: Offered, now: Instant) {
        self.services.insert((stream, Family::of(offered.ip)), Service::new(offered, now));
    }

    /// Starts a round to the other ports of a coordinator that sees this peer at a new address.
    pub(crate) fn again(&mut self, stream: ControlStreamId, now: Instant) {
        let of_stream = self.services.iter_mut().filter(|((id, _), _)| *id == stream);
        let over_stream = of_stream.filter(|(_, service)| !service.offered.is_other_family);
        over_stream.for_each(|(_, service)| service.restart(now));
    }

    /// Starts rounds to observers of the other address family, whose mappings only requests show,
    /// after a change of the network.
    pub(crate) fn network_changed(&mut self, now: Instant) {
        for service in self.services.values_mut().filter(|service| service.offered.is_other_family) {
            if service.is_known() {
                service.refresh(now);
            } else {
                service.restart(now);
            }
        }
    }

    /// Updates the sockets that observers of the other address family observe. `choose` returns the
    /// local socket for a coordinator's address.
    pub(crate) fn sockets_changed(&mut self, choose: impl Fn(SocketAddr) -> Option<SocketId>, now: Instant) {
        for service in self.services.values_mut().filter(|service| service.offered.is_other_family) {
            let first = service.offered.offer.ports.first().copied().unwrap_or_default();
            let chosen = choose(SocketAddr::new(service.offered.ip, first));
            if service.offered.socket != chosen {
                service.offered.socket = chosen;
                service.restart(now);
            }
        }
    }

    pub(crate) fn stream_down(&mut self, stream: ControlStreamId) {
        self.services.retain(|(id, _), _| *id != stream);
        self.outstanding.retain(|_, outstanding| outstanding.stream != stream);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let usable = self.services.values().filter(|service| service.offered.socket.is_some());
        usable.filter_map(|service| service.due).min()
    }

    /// Returns the requests that are due, with their paths.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        mut data: impl FnMut() -> [u8; 8],
    ) -> Vec<(Path, [u8; PROBE_LEN])> {
        let mut requests = Vec::new();
        for ((stream, _), service) in &mut self.services {
            let Some(socket) = service.offered.socket.filter(|_| service.due.is_some_and(|at| at <= now))
            else {
                continue;
            };
            for place in service.poll(now) {
                let purpose = match service.offered.is_other_family {
                    true => Purpose::OtherFamily(place),
                    false => Purpose::ControlStream(place),
                };
                let port = service.offered.offer.ports.get(place).copied();
                let to = port.map(|port| SocketAddr::new(service.offered.ip, port));
                requests.extend(to.map(|to| (*stream, purpose, Path { socket, remote: to })));
            }
        }
        let ask = |(stream, purpose, path)| self.ask(stream, purpose, path, data(), now);
        requests.into_iter().filter_map(ask).collect()
    }

    /// Returns, once, the paths to observers of the other address family that were silent for too
    /// long.
    pub(crate) fn take_silent(&mut self) -> Vec<Path> {
        let mut silent = Vec::new();
        for service in self.services.values_mut().filter(|service| service.silent >= MAX_SILENT) {
            service.silent = 0;
            let Offered { offer, ip, socket, .. } = &service.offered;
            if let (Some(port), Some(socket)) = (offer.ports.first(), *socket) {
                silent.push(Path { socket, remote: SocketAddr::new(*ip, *port) });
            }
        }
        silent
    }

    /// Returns a request to the first port of a coordinator for the public address of a socket.
    pub(crate) fn sample(
        &mut self,
        sample: Sample,
        data: [u8; 8],
        now: Instant,
    ) -> Option<(Path, [u8; PROBE_LEN])> {
        let Sample { stream, family, purpose, socket } = sample;
        let offered = &self.services.get(&(stream, family))?.offered;
        let remote = SocketAddr::new(offered.ip, *offered.offer.ports.first()?);
        self.ask(stream, purpose, Path { socket, remote }, data, now)
    }

    /// Returns a request to one port of an offer, from the socket of a test of early packets.
    pub(crate) fn test(
        &mut self,
        stream: ControlStreamId,
        place: usize,
        socket: SocketId,
        data: [u8; 8],
        now: Instant,
    ) -> Option<(Path, [u8; PROBE_LEN])> {
        let mut all = self.services.iter().filter(|((id, _), _)| *id == stream);
        let (_, service) = all.find(|(_, service)| !service.offered.is_other_family)?;
        let port = service.offered.offer.ports.get(place).copied()?;
        let path = Path { socket, remote: SocketAddr::new(service.offered.ip, port) };
        self.ask(stream, Purpose::EarlyPackets(place), path, data, now)
    }

    fn ask(
        &mut self,
        stream: ControlStreamId,
        purpose: Purpose,
        path: Path,
        data: [u8; 8],
        now: Instant,
    ) -> Option<(Path, [u8; PROBE_LEN])> {
        let service = self.services.get(&(stream, Family::of(path.remote.ip())))?;
        self.outstanding.retain(|_, outstanding| outstanding.until > now);
        if self.outstanding.len() >= MAX_OUTSTANDING {
            return None;
        }
        let observed = Observed { purpose, socket: path.socket, from: path.remote };
        self.outstanding.insert(data, Outstanding { stream, until: now + REPLY_TIMEOUT, observed });
        let payload = match purpose {
            Purpose::EarlyPackets(0) => provocation(&service.offered.offer, data),
            _ => request(&service.offered.offer, data),
        };
        Some((path, payload))
    }

    /// Takes the answer to a request. Returns `None` if there was no such request. Each request has
    /// one answer.
    pub(crate) fn answered(
        &mut self,
        stream: ControlStreamId,
        data: [u8; 8],
        port: u16,
        now: Instant,
    ) -> Option<Observed> {
        if self.outstanding.get(&data)?.stream != stream {
            return None;
        }
        let observed = self.outstanding.remove(&data)?.observed;
        if let Purpose::ControlStream(place) | Purpose::OtherFamily(place) = observed.purpose
            && let Some(service) = self.services.get_mut(&(stream, Family::of(observed.from.ip())))
        {
            service.answered(place, port, now);
        }
        Some(observed)
    }

    /// Returns true if the address is a port of an offer.
    pub(crate) fn asks(&self, address: SocketAddr) -> bool {
        self.services
            .values()
            .map(|service| &service.offered)
            .any(|offered| offered.ip == address.ip() && offered.offer.ports.contains(&address.port()))
    }

    /// Returns true if the coordinator of a control stream offers to observe over this address
    /// family.
    pub(crate) fn serves(&self, stream: ControlStreamId, family: Family) -> bool {
        self.services.contains_key(&(stream, family))
    }

    fn of_socket(&self, socket: SocketId) -> impl Iterator<Item = &Service> {
        self.services.values().filter(move |service| service.offered.socket == Some(socket))
    }

    /// Returns the allocation of the NAT in front of `socket`, which has this local port.
    pub(crate) fn allocation(&self, socket: SocketId, local: u16) -> Option<Allocation> {
        self.of_socket(socket).find_map(|service| {
            let ports: Vec<u16> = service.seen.iter().copied().collect::<Option<_>>()?;
            allocation(&ports, local)
        })
    }
}

#[cfg(test)]
mod tests;
