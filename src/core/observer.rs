//! Observation at further ports: a coordinator's second opinion on how a peer's NAT maps (`docs/protocol.md` §7.6).
//!
//! A coordinator opens a few UDP ports beside the one of QUIC and offers them to its clients. A client sends a small
//! authenticated request from the socket that it wants to know about; the answer, where it came from, goes over the
//! control stream. So no datagram is ever sent to an address that a request claims to come from.
//!
//! The coordinator keeps nothing for a client: the token is the link's number, and the key follows from it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hmac::{Hmac, Mac, digest::KeyInit};
use sha2::Sha256;

use super::{
    LinkId, Path, SocketId,
    frame::{MAX_OBSERVER_PORTS, ObserverOffer},
    idling::delay_of,
    keys::MAC_LEN,
    limits::Rate,
    probe::{COVERED_LEN, HOLD, OBSERVE, PROBE_FIRST_BYTE, PROBE_LEN},
    strategy::{Allocation, allocation},
};

/// Ports that a coordinator opens: with three the distances between mappings made in one go can be compared. From the
/// fourth it sends first, so that what the client sends there shows whether its NAT gave the port away for that.
pub(crate) const PORTS: usize = 4;
/// The place of the fourth in an offer.
pub(crate) const EARLY: usize = 3;
/// Datagrams from there: one may get lost.
pub(crate) const EARLY_DATAGRAMS: usize = 2;
/// Requests of one client: three and their repetitions for each link, and four for each session that samples its NAT.
pub(crate) const OBSERVE_RATE: Rate = Rate { interval: Duration::from_millis(50), burst: 60 };
/// When requests that were not answered are sent again, after the first.
const AGAIN: [Duration; 3] =
    [Duration::from_millis(150), Duration::from_millis(450), Duration::from_millis(1500)];
/// Requests that may be answered. Three for each coordinator, and a few for each session that samples its NAT.
const MAX_OUTSTANDING: usize = 256;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The datagram that asks an observer where it comes from.
pub(crate) fn request(offer: &ObserverOffer, data: [u8; 8]) -> [u8; PROBE_LEN] {
    let mut out = [0; PROBE_LEN];
    let (covered, authenticator) = out.split_at_mut(COVERED_LEN);
    covered[..3].copy_from_slice(&[PROBE_FIRST_BYTE, OBSERVE, 0]);
    covered[3..11].copy_from_slice(&offer.token);
    covered[11..19].copy_from_slice(&data);
    let whole: [u8; 32] = mac(&offer.key).chain_update(covered).finalize().into_bytes().into();
    authenticator.copy_from_slice(&whole[..MAC_LEN]);
    out
}

fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    <Hmac<Sha256> as KeyInit>::new(&block.into())
}

/// What an observer is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Where this comes from.
    Where {
        /// Of the request.
        data: [u8; 8],
    },
    /// To answer now, and once more after some seconds.
    Hold {
        /// Of the request.
        data: [u8; 8],
        /// In seconds.
        delay: u16,
    },
}

/// What a coordinator has for its clients.
#[derive(Debug)]
pub(crate) struct Observers {
    secret: [u8; 32],
    ports: BTreeMap<SocketId, u16>,
    /// The sockets were asked for.
    pub(crate) asked: bool,
}

impl Observers {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self { secret, ports: BTreeMap::new(), asked: false }
    }

    pub(crate) fn opened(&mut self, sockets: &[(SocketId, u16)]) {
        self.ports.extend(sockets.iter().copied());
    }

    pub(crate) fn has(&self, socket: SocketId) -> bool {
        self.ports.contains_key(&socket)
    }

    /// The socket that sends first, if all could be opened.
    pub(crate) fn early(&self) -> Option<SocketId> {
        self.ports.keys().copied().nth(EARLY)
    }

    /// What is offered on `link`, with or without the port that sends first; `None` as long as there are no ports.
    pub(crate) fn offer(&self, link: LinkId, early: bool) -> Option<ObserverOffer> {
        let count = if early { MAX_OBSERVER_PORTS } else { EARLY };
        let ports: Vec<u16> = self.ports.values().copied().take(count).collect();
        let token = link.0.to_be_bytes();
        (!ports.is_empty()).then(|| ObserverOffer { ports, token, key: self.key(token) })
    }

    /// The key of the offer on `link`.
    pub(crate) fn key_of(&self, link: LinkId) -> [u8; 32] {
        self.key(link.0.to_be_bytes())
    }

    fn key(&self, token: [u8; 8]) -> [u8; 32] {
        mac(&self.secret).chain_update(token).finalize().into_bytes().into()
    }

    /// What is asked, and over which link who asks is known, if it is authentic.
    pub(crate) fn judge(&self, datagram: &[u8]) -> Option<(LinkId, Request)> {
        let datagram: &[u8; PROBE_LEN] = datagram.try_into().ok()?;
        let (covered, authenticator) = datagram.split_at(COVERED_LEN);
        let (head, rest) = covered.split_first_chunk::<3>()?;
        let (token, rest) = rest.split_first_chunk::<8>()?;
        let (data, address) = rest.split_first_chunk::<8>()?;
        let request = match *head {
            [PROBE_FIRST_BYTE, OBSERVE, 0] if address.iter().all(|byte| *byte == 0) => {
                Request::Where { data: *data }
            }
            [PROBE_FIRST_BYTE, HOLD, 0] => Request::Hold { data: *data, delay: delay_of(address)? },
            _ => return None,
        };
        let authentic = mac(&self.key(*token)).chain_update(covered).verify_truncated_left(authenticator);
        authentic.is_ok().then(|| (LinkId(u64::from_be_bytes(*token)), request))
    }
}

/// Whom an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To know how the NAT maps the socket of a link: the port of this place in the offer was asked.
    Link(usize),
    /// A session samples its NAT.
    Session(super::session::Key),
    /// To know where the socket is seen to which sessions are to move.
    Renewal,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) purpose: Purpose,
    pub(crate) socket: SocketId,
    /// The observer that was asked.
    pub(crate) from: SocketAddr,
}

#[derive(Debug)]
struct Outstanding {
    link: LinkId,
    until: Instant,
    observed: Observed,
}

#[derive(Debug)]
struct Service {
    offer: ObserverOffer,
    ip: IpAddr,
    socket: SocketId,
    seen: Vec<Option<u16>>,
    sent: usize,
    due: Option<Instant>,
}

/// What a client has of its coordinators.
#[derive(Debug, Default)]
pub(crate) struct Observing {
    services: BTreeMap<LinkId, Service>,
    outstanding: BTreeMap<[u8; 8], Outstanding>,
}

impl Observing {
    /// A coordinator, seen at `ip` from `socket`, offers to observe.
    pub(crate) fn offered(
        &mut self,
        link: LinkId,
        offer: ObserverOffer,
        (ip, socket): (IpAddr, SocketId),
        now: Instant,
    ) {
        let seen = vec![None; offer.ports.len()];
        self.services.insert(link, Service { offer, ip, socket, seen, sent: 0, due: Some(now) });
    }

    /// The coordinator of this link sees us elsewhere: its other ports are asked anew.
    pub(crate) fn again(&mut self, link: LinkId, now: Instant) {
        if let Some(service) = self.services.get_mut(&link) {
            service.seen = vec![None; service.offer.ports.len()];
            (service.sent, service.due) = (0, Some(now));
        }
    }

    pub(crate) fn link_down(&mut self, link: LinkId) {
        self.services.remove(&link);
        self.outstanding.retain(|_, outstanding| outstanding.link != link);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.services.values().filter_map(|service| service.due).min()
    }

    /// The requests that are due, with the paths on which they leave.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        mut data: impl FnMut() -> [u8; 8],
    ) -> Vec<(Path, [u8; PROBE_LEN])> {
        let mut requests = Vec::new();
        for (link, service) in &mut self.services {
            if service.due.is_none_or(|at| at > now) {
                continue;
            }
            service.due = AGAIN.get(service.sent).map(|after| now + *after);
            service.sent += 1;
            for (place, port) in service.offer.ports.iter().enumerate() {
                // What was sent from the fourth has arrived by the second round, though the offer may have been faster.
                let is_time = place != EARLY || service.sent > 1;
                if is_time && service.seen.get(place).copied().flatten().is_none() {
                    requests.push((*link, Purpose::Link(place), service.socket, *port));
                }
            }
        }
        let ask = |(link, purpose, socket, port)| self.ask(link, purpose, (socket, port), data(), now);
        requests.into_iter().filter_map(ask).collect()
    }

    /// Asks the first port of a link's coordinator where `socket` is seen.
    pub(crate) fn sample(
        &mut self,
        link: LinkId,
        (purpose, socket): (Purpose, SocketId),
        data: [u8; 8],
        now: Instant,
    ) -> Option<(Path, [u8; PROBE_LEN])> {
        let port = *self.services.get(&link)?.offer.ports.first()?;
        self.ask(link, purpose, (socket, port), data, now)
    }

    fn ask(
        &mut self,
        link: LinkId,
        purpose: Purpose,
        (socket, port): (SocketId, u16),
        data: [u8; 8],
        now: Instant,
    ) -> Option<(Path, [u8; PROBE_LEN])> {
        let service = self.services.get(&link)?;
        self.outstanding.retain(|_, outstanding| outstanding.until > now);
        if self.outstanding.len() >= MAX_OUTSTANDING {
            return None;
        }
        let from = SocketAddr::new(service.ip, port);
        let observed = Observed { purpose, socket, from };
        self.outstanding.insert(data, Outstanding { link, until: now + PATIENCE, observed });
        Some((Path { socket, remote: from }, request(&service.offer, data)))
    }

    /// A coordinator says where it saw a request; `None` if it was not asked. Each request is answered once.
    pub(crate) fn answered(&mut self, link: LinkId, data: [u8; 8], port: u16) -> Option<Observed> {
        if self.outstanding.get(&data)?.link != link {
            return None;
        }
        let observed = self.outstanding.remove(&data)?.observed;
        if let (Purpose::Link(place), Some(service)) = (observed.purpose, self.services.get_mut(&link)) {
            if let Some(seen) = service.seen.get_mut(place) {
                *seen = Some(port);
            }
            if service.seen.iter().all(Option::is_some) {
                service.due = None;
            }
        }
        Some(observed)
    }

    /// Whether this is one of the ports that are asked.
    pub(crate) fn asks(&self, address: SocketAddr) -> bool {
        self.services
            .values()
            .any(|service| service.ip == address.ip() && service.offer.ports.contains(&address.port()))
    }

    /// Whether the coordinator of this link offers to observe, over IPv4 or over IPv6.
    pub(crate) fn serves(&self, link: LinkId, v4: bool) -> bool {
        self.services.get(&link).is_some_and(|service| service.ip.is_ipv4() == v4)
    }

    /// How the NAT in front of `socket`, which has this port, allocates.
    pub(crate) fn allocation(&self, socket: SocketId, local: u16) -> Option<Allocation> {
        self.services.values().filter(|service| service.socket == socket).find_map(|service| {
            let ports: Vec<u16> = service.seen.iter().take(EARLY).copied().collect::<Option<_>>()?;
            allocation(&ports, local)
        })
    }

    /// Whether the NAT in front of `socket` gives a flow another port if a packet of the other end came before it. Only
    /// where it otherwise gives all flows the same.
    pub(crate) fn early_packets_harm(&self, socket: SocketId) -> Option<bool> {
        let all = self.services.values().filter(|service| service.socket == socket);
        let judge = |service: &Service| {
            let usual: Vec<u16> = service.seen.iter().take(EARLY).copied().collect::<Option<_>>()?;
            let early = service.seen.get(EARLY).copied().flatten()?;
            let first = *usual.first()?;
            usual.iter().all(|port| *port == first).then_some(early != first)
        };
        // One that got lost harmed nobody.
        all.filter_map(judge).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observers() -> Observers {
        let mut observers = Observers::new([7; 32]);
        assert!(observers.offer(LinkId(1), false).is_none());
        observers.opened(&[(SocketId(5), 1005), (SocketId(6), 1006), (SocketId(7), 1007)]);
        observers
    }

    #[test]
    fn a_request_is_authentic_under_its_own_token_only() {
        let observers = observers();
        let offer = observers.offer(LinkId(3), false).unwrap();
        let datagram = request(&offer, [9; 8]);
        assert_eq!(observers.judge(&datagram), Some((LinkId(3), Request::Where { data: [9; 8] })));
        for at in 0..PROBE_LEN {
            let mut forged = datagram;
            forged[at] ^= 1;
            assert_eq!(observers.judge(&forged), None, "byte {at}");
        }
        assert_eq!(observers.judge(&datagram[..52]), None);
        assert_eq!(Observers::new([8; 32]).judge(&datagram), None, "another coordinator's");
    }

    #[test]
    fn every_port_is_asked_until_it_answers_and_never_more_than_four_times() {
        let offer = observers().offer(LinkId(3), false).unwrap();
        let start = Instant::now();
        let (mut observing, mut next) = (Observing::default(), 0u64);
        observing.offered(LinkId(8), offer, ([192, 0, 2, 1].into(), SocketId(1)), start);
        let (mut sent, mut first) = (Vec::new(), None);
        while let Some(at) = observing.next_deadline() {
            for (path, datagram) in observing.poll(at, || {
                next += 1;
                next.to_be_bytes()
            }) {
                sent.push((at - start, path.remote.port()));
                first.get_or_insert(datagram);
            }
            if at == start {
                assert_eq!(observing.answered(LinkId(9), 1u64.to_be_bytes(), 5000), None, "another link");
                assert!(observing.answered(LinkId(8), 1u64.to_be_bytes(), 5000).is_some());
                assert_eq!(observing.answered(LinkId(8), 1u64.to_be_bytes(), 5000), None, "once");
            }
        }
        assert_eq!(sent.iter().filter(|(_, port)| *port == 1005).count(), 1);
        assert_eq!(sent.iter().filter(|(_, port)| *port == 1006).count(), 4);
        assert_eq!(observing.allocation(SocketId(1), 1), None, "not all answered");
    }

    #[test]
    fn three_answers_tell_the_allocation() {
        let offer = observers().offer(LinkId(3), false).unwrap();
        let now = Instant::now();
        let (mut observing, mut next) = (Observing::default(), 0u64);
        observing.offered(LinkId(8), offer, ([192, 0, 2, 1].into(), SocketId(1)), now);
        let asked = observing.poll(now, || {
            next += 1;
            next.to_be_bytes()
        });
        assert_eq!(asked.len(), 3);
        for n in 1..=3u16 {
            assert!(observing.answered(LinkId(8), u64::from(n).to_be_bytes(), 6000 + 2 * n).is_some());
        }
        assert_eq!(observing.allocation(SocketId(1), 1), Some(Allocation::Sequential { step: 2 }));
        assert_eq!(observing.next_deadline(), None);
        observing.link_down(LinkId(8));
        assert_eq!(observing.allocation(SocketId(1), 1), None);
    }

    /// What follows from these ports of the four.
    fn judged(seen: [u16; 4]) -> Option<bool> {
        let mut observers = observers();
        observers.opened(&[(SocketId(8), 1008)]);
        assert_eq!(observers.early(), Some(SocketId(8)));
        let (mut observing, mut next, now) = (Observing::default(), 0u64, Instant::now());
        let offer = observers.offer(LinkId(3), true).unwrap();
        observing.offered(LinkId(8), offer, ([192, 0, 2, 1].into(), SocketId(1)), now);
        let mut asked = Vec::new();
        while let Some(at) = observing.next_deadline() {
            let requests = observing.poll(at, || {
                next += 1;
                next.to_be_bytes()
            });
            asked.push(requests.len());
            for (path, datagram) in requests {
                let port = seen[usize::from(path.remote.port() - 1005)];
                observing.answered(LinkId(8), datagram[11..19].try_into().unwrap(), port);
            }
        }
        assert_eq!(asked, [3, 1], "the fourth comes later");
        observing.early_packets_harm(SocketId(1))
    }

    #[test]
    fn a_port_that_was_given_away_shows_where_the_observer_sent_first() {
        assert_eq!(judged([7000, 7000, 7000, 7000]), Some(false));
        assert_eq!(judged([7000, 7000, 7000, 9000]), Some(true));
        assert_eq!(judged([7000, 7001, 7002, 7003]), None, "every destination has another port there");
    }
}
