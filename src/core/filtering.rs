//! Measuring how a NAT filters (RFC 4787 §5): a coordinator sends a few small datagrams to the address of a client's
//! connection, from there and from ports and addresses to which the client has never sent, and the client sees which of
//! them arrive (`docs/protocol.md` §7.8).
//!
//! A request names no address. The datagrams go to the address at which the connection stands, which has answered; they
//! are few, shorter than what asked for them, and end as soon as the connection moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hmac::{Hmac, Mac, digest::KeyInit};
use libp2p_identity::PeerId;
use sha2::Sha256;

use super::{
    LinkId, Path, SocketId,
    keys::MAC_LEN,
    limits::{PeerBuckets, Rate},
    nat::FilteringBehaviour,
    probe::{COVERED_LEN, FILTER, PROBE_FIRST_BYTE, PROBE_LEN},
    targets::{Scope, scope},
};

/// When the datagrams of each round leave, after those of the round before.
pub(crate) const PAUSES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];
/// Rounds of a test: that all datagrams of one source are lost must not look like a filter.
pub(crate) const ROUNDS: usize = PAUSES.len();
/// Addresses of ours from which a test is sent. With the datagrams from the connection's own address a test has at most
/// 12 datagrams.
pub(crate) const MAX_SOURCES: usize = 3;
/// Tests of one client: the first, one more when its address changes, and then one in a minute.
pub(crate) const FILTER_RATE: Rate = Rate { interval: Duration::from_secs(60), burst: 2 };
/// Clients whose limits are remembered.
const MAX_CLIENTS: usize = 16_384;
/// Tests at once, of all clients.
pub(crate) const MAX_TESTS: usize = 1024;
/// How long the sockets may take to open.
const OPENING: Duration = Duration::from_secs(2);
/// How long a socket is left alone that has just been opened: the system does not always let it send at once.
const SETTLE: Duration = Duration::from_millis(50);
/// How long a client waits for its coordinator.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long datagrams may take longer than the frame that says that they were sent.
const GRACE: Duration = Duration::from_secs(1);
/// Sources that a client tells apart in one test.
const MAX_ARRIVED: usize = 8;

/// The datagram of one round of a test: `data` and `key` are those of the `FILTER_TEST`, rounds count from 0.
pub fn datagram(data: [u8; 8], key: &[u8; 32], round: u8) -> [u8; PROBE_LEN] {
    let mut out = [0; PROBE_LEN];
    let (covered, authenticator) = out.split_at_mut(COVERED_LEN);
    covered[..3].copy_from_slice(&[PROBE_FIRST_BYTE, FILTER, 0]);
    covered[3..11].copy_from_slice(&data);
    covered[18] = round;
    let whole: [u8; 32] = mac(key).chain_update(covered).finalize().into_bytes().into();
    authenticator.copy_from_slice(&whole[..MAC_LEN]);
    out
}

/// The test that a datagram claims to be of.
pub(crate) fn test_of(datagram: &[u8]) -> Option<[u8; 8]> {
    let known = datagram.len() == PROBE_LEN && datagram.starts_with(&[PROBE_FIRST_BYTE, FILTER, 0]);
    datagram.get(3..11).filter(|_| known)?.try_into().ok()
}

/// The round of a datagram of a test, if it is authentic.
pub(crate) fn authentic_round(datagram: &[u8], key: &[u8; 32]) -> Option<u8> {
    let (covered, authenticator) = datagram.split_at_checked(COVERED_LEN)?;
    let (nonce, address) = covered.get(11..)?.split_first_chunk::<8>()?;
    let round = u8::try_from(u64::from_be_bytes(*nonce)).ok()?;
    let well_formed = usize::from(round) < ROUNDS && address.iter().all(|byte| *byte == 0);
    let authentic = || mac(key).chain_update(covered).verify_truncated_left(authenticator).is_ok();
    (well_formed && authentic()).then_some(round)
}

fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    <Hmac<Sha256> as KeyInit>::new(&block.into())
}

/// Whether a datagram is one of a test.
pub(crate) fn is_filter_probe(datagram: &[u8]) -> bool {
    test_of(datagram).is_some()
}

/// One end of a connection, and what names a test on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    pub(crate) data: [u8; 8],
    pub(crate) key: [u8; 32],
    /// The connection: our socket, and the peer's address.
    pub(crate) path: Path,
}

#[derive(Debug)]
struct Sending {
    test: Test,
    sources: Vec<IpAddr>,
    sent: u8,
    due: Instant,
    earliest: Instant,
}

/// What a coordinator does for its clients.
#[derive(Debug)]
pub(crate) struct Filters {
    /// By address: the socket, once it is open, and its port.
    sockets: BTreeMap<IpAddr, Option<(SocketId, u16)>>,
    tests: BTreeMap<LinkId, Sending>,
    clients: PeerBuckets,
}

/// What is due.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) transmits: Vec<(Path, [u8; PROBE_LEN])>,
    /// Tests that are over: the link, the name, the rounds that were sent and the sources.
    pub(crate) ended: Vec<(LinkId, [u8; 8], u8, Vec<SocketAddr>)>,
}

impl Filters {
    pub(crate) fn new() -> Self {
        Self {
            sockets: BTreeMap::new(),
            tests: BTreeMap::new(),
            clients: PeerBuckets::new(FILTER_RATE, MAX_CLIENTS),
        }
    }

    /// Begins a test over a client's link, whose address counts from `earliest` on; the addresses at which sockets have to be opened first. `None` if the client
    /// or all of them together have had enough.
    pub(crate) fn begin(
        &mut self,
        (link, peer): (LinkId, PeerId),
        test: Test,
        own: &[SocketAddr],
        (now, earliest): (Instant, Instant),
    ) -> Option<Vec<IpAddr>> {
        let has_room = self.tests.len() < MAX_TESTS && !self.tests.contains_key(&link);
        if !has_room || self.clients.take(peer, now).is_err() {
            return None;
        }
        let sources = sources_for(test.path.remote.ip(), own);
        let missing: Vec<IpAddr> =
            sources.iter().copied().filter(|ip| !self.sockets.contains_key(ip)).collect();
        self.sockets.extend(missing.iter().map(|ip| (*ip, None)));
        let is_ready = sources.iter().all(|ip| self.socket(*ip).is_some());
        let due = if is_ready { now } else { now + OPENING }.max(earliest);
        self.tests.insert(link, Sending { test, sources, sent: 0, due, earliest });
        Some(missing)
    }

    fn socket(&self, ip: IpAddr) -> Option<(SocketId, u16)> {
        self.sockets.get(&ip).copied().flatten()
    }

    /// The socket at `ip` is open; without one, none can be.
    pub(crate) fn opened(&mut self, ip: IpAddr, sockets: &[(SocketId, u16)], now: Instant) {
        if let Some(slot) = self.sockets.get_mut(&ip) {
            *slot = sockets.first().copied();
        }
        let sockets = &self.sockets;
        for sending in self.tests.values_mut().filter(|sending| sending.sent == 0) {
            if sending.sources.iter().all(|ip| sockets.get(ip).is_some_and(Option::is_some)) {
                sending.due = sending.earliest.max(now + SETTLE);
            }
        }
    }

    /// An address of ours is gone; whether there was a socket for it.
    pub(crate) fn address_down(&mut self, ip: IpAddr) -> bool {
        self.sockets.remove(&ip).is_some()
    }

    pub(crate) fn link_down(&mut self, link: LinkId) {
        self.tests.remove(&link);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tests.values().map(|sending| sending.due).min()
    }

    /// What is to be sent now. `remote` says where a link's peer is, if it has proved that.
    pub(crate) fn poll(&mut self, now: Instant, remote: impl Fn(LinkId) -> Option<SocketAddr>) -> Due {
        let mut due = Due::default();
        let sockets = &self.sockets;
        self.tests.retain(|link, sending| {
            if sending.due > now {
                return true;
            }
            let path = sending.test.path;
            // Where a source cannot be used any more, nothing may be concluded from its silence.
            let open = |ip: &IpAddr| {
                let (socket, port) = sockets.get(ip).copied().flatten()?;
                Some((socket, SocketAddr::new(*ip, port)))
            };
            if sending.sent == 0 {
                sending.sources.retain(|ip| open(ip).is_some());
            }
            let sources: Vec<_> = sending.sources.iter().filter_map(open).collect();
            let is_whole = !sources.is_empty() && sources.len() == sending.sources.len();
            let stays = remote(*link) == Some(path.remote);
            if is_whole && stays {
                let payload = datagram(sending.test.data, &sending.test.key, sending.sent);
                due.transmits.push((path, payload));
                let from = |socket| (Path { socket, remote: path.remote }, payload);
                due.transmits.extend(sources.iter().map(|(socket, _)| from(*socket)));
                sending.sent += 1;
                if let Some(pause) = PAUSES.get(usize::from(sending.sent)) {
                    sending.due = now + *pause;
                    return true;
                }
            }
            let rounds = if is_whole && stays { sending.sent } else { 0 };
            let sources = sources.into_iter().map(|(_, address)| address).collect();
            due.ended.push((*link, sending.test.data, rounds, sources));
            false
        });
        due
    }
}

/// The addresses of ours from which a peer at `remote` may be reached: those of its scope, if there are any.
fn sources_for(remote: IpAddr, own: &[SocketAddr]) -> Vec<IpAddr> {
    let reach = scope(remote);
    let ips: BTreeSet<IpAddr> = own
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| ip.is_ipv4() == remote.is_ipv4() && !ip.is_unspecified() && scope(*ip) != Scope::Never)
        .filter(|ip| (scope(*ip) == Scope::Loopback) == (reach == Scope::Loopback))
        .collect();
    let same: Vec<IpAddr> = ips.iter().copied().filter(|ip| scope(*ip) == reach).collect();
    let usable = if same.is_empty() { ips.into_iter().collect() } else { same };
    usable.into_iter().take(MAX_SOURCES).collect()
}

/// What a test showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) socket: SocketId,
    pub(crate) peer: PeerId,
    pub(crate) at: Instant,
    pub(crate) filtering: FilteringBehaviour,
    /// Datagrams that arrived, or that would have had to if they had not been filtered.
    pub(crate) datagrams: usize,
    /// None was lost of those that no NAT filters.
    pub(crate) lossless: bool,
}

#[derive(Debug)]
struct Pending {
    peer: PeerId,
    test: Test,
    /// By source, a bit for each round.
    arrived: BTreeMap<SocketAddr, u8>,
    /// What the coordinator says that it has sent.
    answer: Option<(u8, Vec<SocketAddr>)>,
    until: Instant,
}

/// What a client has of its tests.
#[derive(Debug, Default)]
pub(crate) struct FilterTests {
    pending: BTreeMap<LinkId, Pending>,
    outcomes: BTreeMap<LinkId, Outcome>,
    /// Links over which there was a test, whatever came of it.
    tested: BTreeSet<LinkId>,
}

impl FilterTests {
    /// Begins a test over the link to a coordinator, in place of an earlier one.
    pub(crate) fn begin(&mut self, (link, peer): (LinkId, PeerId), test: Test, now: Instant) {
        self.outcomes.remove(&link);
        self.tested.insert(link);
        let until = now + PATIENCE;
        self.pending.insert(link, Pending { peer, test, arrived: BTreeMap::new(), answer: None, until });
    }

    /// Whether there is or was a test over this link.
    pub(crate) fn knows(&self, link: LinkId) -> bool {
        self.tested.contains(&link)
    }

    pub(crate) fn is_testing(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn link_down(&mut self, link: LinkId) {
        self.pending.remove(&link);
        self.outcomes.remove(&link);
        self.tested.remove(&link);
    }

    pub(crate) fn socket_down(&mut self, socket: SocketId) {
        self.pending.retain(|_, pending| pending.test.path.socket != socket);
        self.outcomes.retain(|_, outcome| outcome.socket != socket);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.until).min()
    }

    /// A datagram of a test has come on `path`; `false` if it is of none.
    pub(crate) fn arrived(&mut self, path: Path, datagram: &[u8]) -> bool {
        let Some(data) = test_of(datagram) else { return false };
        let mut all = self.pending.values_mut();
        let found = all.find(|pending| pending.test.data == data && pending.test.path.socket == path.socket);
        let Some(pending) = found else { return false };
        let Some(round) = authentic_round(datagram, &pending.test.key) else { return false };
        if pending.arrived.len() < MAX_ARRIVED || pending.arrived.contains_key(&path.remote) {
            *pending.arrived.entry(path.remote).or_default() |= 1 << round;
        }
        true
    }

    /// The coordinator has sent everything; `false` if it was not asked.
    pub(crate) fn answered(
        &mut self,
        link: LinkId,
        data: [u8; 8],
        (rounds, sources): (u8, Vec<SocketAddr>),
        now: Instant,
    ) -> bool {
        let found = self.pending.get_mut(&link).filter(|pending| pending.test.data == data);
        let Some(pending) = found.filter(|pending| pending.answer.is_none()) else { return false };
        pending.answer = Some((rounds, sources));
        pending.until = if rounds == 0 { now } else { now + GRACE };
        true
    }

    /// Ends the tests that are due. `contacted` says whether we may have sent to an address, or, without a port, to any
    /// port of it.
    ///
    /// The sockets of which something is known now.
    pub(crate) fn conclude(
        &mut self,
        now: Instant,
        contacted: impl Fn(IpAddr, Option<u16>) -> bool,
    ) -> BTreeSet<SocketId> {
        let (outcomes, mut sockets) = (&mut self.outcomes, BTreeSet::new());
        self.pending.retain(|link, pending| {
            if pending.until > now {
                return true;
            }
            if let Some(outcome) = pending.outcome(now, &contacted) {
                sockets.insert(outcome.socket);
                outcomes.insert(*link, outcome);
            }
            false
        });
        sockets
    }

    /// What tests of a socket showed.
    pub(crate) fn outcomes(&self, socket: SocketId) -> impl Iterator<Item = &Outcome> {
        self.outcomes.values().filter(move |outcome| outcome.socket == socket)
    }
}

impl Pending {
    fn outcome(&self, now: Instant, contacted: &impl Fn(IpAddr, Option<u16>) -> bool) -> Option<Outcome> {
        let remote = self.test.path.remote;
        let (rounds, sources) = self.answer.clone().filter(|(rounds, _)| *rounds > 0)?;
        let rounds = usize::from(rounds).min(ROUNDS);
        let count = |from: &dyn Fn(&SocketAddr) -> bool| -> usize {
            let bits =
                self.arrived.iter().filter(|(source, _)| from(source)).map(|(_, bits)| bits.count_ones());
            usize::try_from(bits.sum::<u32>()).unwrap_or_default()
        };
        let controls = count(&|source| *source == remote);
        let other_address = count(&|source| source.ip() != remote.ip() && !contacted(source.ip(), None));
        let other_port = count(&|source| {
            source.ip() == remote.ip()
                && source.port() != remote.port()
                && !contacted(source.ip(), Some(source.port()))
        });
        let is_named = sources.iter().any(|source| source.ip() == remote.ip());
        // One that is translated knows not at which address we see it, but if it has only one, it is that.
        let same = is_named || sources.len() == 1;
        // From a private address to another network there need not be a way at all.
        let is_global = |ip: IpAddr| scope(ip) == Scope::Global;
        let other = is_named
            && is_global(remote.ip())
            && sources.iter().map(SocketAddr::ip).any(|ip| {
                let is_other = ip != remote.ip() && !contacted(ip, None);
                is_other && is_global(ip)
            });
        let (filtering, datagrams) = match (other_address, other_port) {
            (1.., _) => (FilteringBehaviour::EndpointIndependent, other_address),
            (0, 1..) if other => (FilteringBehaviour::AddressDependent, other_port),
            (0, 1..) => (FilteringBehaviour::PortIndependent, other_port),
            // Where not even those came that nothing filters, silence says nothing.
            (0, 0) if controls > 0 && same => (FilteringBehaviour::AddressAndPortDependent, rounds),
            (0, 0) => return None,
        };
        let lossless = controls >= rounds;
        let (socket, peer) = (self.test.path.socket, self.peer);
        Some(Outcome { socket, peer, at: now, filtering, datagrams, lossless })
    }
}
