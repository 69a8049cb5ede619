//! A coordinator's part of filtering tests: sending the datagrams.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::{
    PAUSES, Test,
    assist::{Ask, Assists},
    datagram,
};
use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::{Scope, scope},
    rate_limit::{PeerBuckets, Rate},
    wire::probe::PROBE_LEN,
};

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
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// The sockets from which tests are sent, each bound to one address: once it is open, and its port.
#[derive(Debug, Default)]
pub(super) struct Sockets(BTreeMap<IpAddr, Option<(SocketId, u16)>>);

impl Sockets {
    /// Takes note of the addresses at which there shall be a socket; those at which one has to be opened first.
    fn want(&mut self, ips: &[IpAddr]) -> Vec<IpAddr> {
        let missing: Vec<IpAddr> = ips.iter().copied().filter(|ip| !self.0.contains_key(ip)).collect();
        self.0.extend(missing.iter().map(|ip| (*ip, None)));
        missing
    }

    fn at(&self, ip: IpAddr) -> Option<(SocketId, SocketAddr)> {
        let (socket, port) = self.0.get(&ip).copied().flatten()?;
        Some((socket, SocketAddr::new(ip, port)))
    }
}

/// Datagrams of one test, some of which are still to be sent.
#[derive(Debug)]
pub(super) struct Sending {
    data: [u8; 8],
    key: [u8; 32],
    remote: SocketAddr,
    /// The socket of the connection, if the test is that of a client of our own.
    control: Option<SocketId>,
    sources: Vec<IpAddr>,
    sent: u8,
    due: Instant,
    earliest: Instant,
}

impl Sending {
    /// What is to be sent from `sources`, and the addresses of these at which sockets have to be opened first.
    pub(super) fn new(
        (data, key, remote): ([u8; 8], [u8; 32], SocketAddr),
        (control, sources): (Option<SocketId>, Vec<IpAddr>),
        sockets: &mut Sockets,
        (now, earliest): (Instant, Instant),
    ) -> (Self, Vec<IpAddr>) {
        let missing = sockets.want(&sources);
        let is_ready = sources.iter().all(|ip| sockets.at(*ip).is_some());
        let due = if is_ready { now } else { now + OPEN_TIMEOUT }.max(earliest);
        (Self { data, key, remote, control, sources, sent: 0, due, earliest }, missing)
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// How many rounds were sent.
    pub(super) fn rounds(&self) -> u8 {
        self.sent
    }

    /// A socket was opened, or could not be.
    pub(super) fn opened(&mut self, sockets: &Sockets, now: Instant) {
        if self.sent == 0 && self.sources.iter().all(|ip| sockets.at(*ip).is_some()) {
            self.due = self.earliest.max(now);
        }
    }

    /// The sockets from which it is sent; before the first round those that could not be opened are left out.
    ///
    /// `None` if there are none, or where a source cannot be used any more: nothing may be concluded from its silence.
    pub(super) fn open(&mut self, sockets: &Sockets) -> Option<Vec<(SocketId, SocketAddr)>> {
        if self.sent == 0 {
            self.sources.retain(|ip| sockets.at(*ip).is_some());
        }
        let open: Vec<_> = self.sources.iter().filter_map(|ip| sockets.at(*ip)).collect();
        (!open.is_empty() && open.len() == self.sources.len()).then_some(open)
    }

    /// Sends the round that is due, if any is left; whether another one follows.
    pub(super) fn send(
        &mut self,
        open: &[(SocketId, SocketAddr)],
        now: Instant,
        transmits: &mut Vec<(Path, [u8; PROBE_LEN])>,
    ) -> bool {
        if usize::from(self.sent) < PAUSES.len() {
            let payload = datagram(self.data, &self.key, self.sent);
            let sockets = self.control.into_iter().chain(open.iter().map(|(socket, _)| *socket));
            transmits.extend(sockets.map(|socket| (Path { socket, remote: self.remote }, payload)));
            self.sent += 1;
        }
        let pause = PAUSES.get(usize::from(self.sent));
        self.due = pause.map_or(self.due, |pause| now + *pause);
        pause.is_some()
    }
}

/// A test of a client of ours.
#[derive(Debug)]
struct Serving {
    sending: Sending,
    ask: Ask,
}

/// What a coordinator does for its clients, and for those of others.
#[derive(Debug)]
pub(crate) struct FilteringTestServer {
    sockets: Sockets,
    tests: BTreeMap<ControlStreamId, Serving>,
    clients: PeerBuckets,
    assists: Assists,
}

/// What is due.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) transmits: Vec<(Path, [u8; PROBE_LEN])>,
    /// Tests that are over: the link, the name, the rounds that were sent and the sources.
    pub(crate) ended: Vec<(ControlStreamId, [u8; 8], u8, Vec<SocketAddr>)>,
    /// Coordinators to ask: the link, name and key of the test, and where the client is.
    pub(crate) asks: Vec<(ControlStreamId, [u8; 8], [u8; 32], SocketAddr)>,
    /// What was done for other coordinators: the link, the name, the rounds that were sent and the source.
    pub(crate) assisted: Vec<(ControlStreamId, [u8; 8], u8, Option<SocketAddr>)>,
}

impl FilteringTestServer {
    pub(crate) fn new() -> Self {
        Self {
            sockets: Sockets::default(),
            tests: BTreeMap::new(),
            clients: PeerBuckets::new(FILTER_RATE, MAX_CLIENTS),
            assists: Assists::new(),
        }
    }

    /// Begins a test over a client's link, whose address counts from `earliest` on; the addresses at which sockets have to be opened first. `None` if the client
    /// or all of them together have had enough. The coordinator at the other end of the link `other` will be asked to send, too.
    pub(crate) fn begin(
        &mut self,
        (link, peer): (ControlStreamId, PeerId),
        test: Test,
        (own, other): (&[SocketAddr], Option<ControlStreamId>),
        (now, earliest): (Instant, Instant),
    ) -> Option<Vec<IpAddr>> {
        let has_room = self.tests.len() < MAX_TESTS && !self.tests.contains_key(&link);
        if !has_room || self.clients.take(peer, now).is_err() {
            return None;
        }
        let Path { socket, remote } = test.path;
        let from = (Some(socket), sources_for(remote.ip(), own));
        let what = (test.data, test.key, remote);
        let (sending, missing) = Sending::new(what, from, &mut self.sockets, (now, earliest));
        self.tests.insert(link, Serving { sending, ask: Ask::of(other) });
        Some(missing)
    }

    /// Begins to send for another coordinator, to a client of that one at `target`; the addresses at which sockets have to
    /// be opened first. `None` if that coordinator or all of them together have had enough.
    pub(crate) fn assist(
        &mut self,
        (link, peer): (ControlStreamId, PeerId),
        what: ([u8; 8], [u8; 32], SocketAddr),
        own: &[SocketAddr],
        now: Instant,
    ) -> Option<Vec<IpAddr>> {
        let source = sources_for(what.2.ip(), own).into_iter().take(1).collect();
        self.assists.begin((link, peer), (what, source), &mut self.sockets, now)
    }

    /// Another coordinator says what it has sent; `false` if it was not asked.
    pub(crate) fn assisted(
        &mut self,
        link: ControlStreamId,
        data: [u8; 8],
        (rounds, source): (u8, Option<SocketAddr>),
        now: Instant,
    ) -> bool {
        let mut all = self.tests.values_mut();
        let found = all.find(|test| test.ask.waits_for(link) && test.sending.data == data);
        let Some(Serving { sending, ask }) = found else { return false };
        *ask = Ask::answered(rounds, source);
        if usize::from(sending.sent) == PAUSES.len() {
            sending.due = now;
        }
        true
    }

    /// The socket at `ip` is open; without one, none can be.
    pub(crate) fn opened(&mut self, ip: IpAddr, sockets: &[(SocketId, u16)], now: Instant) {
        if let Some(slot) = self.sockets.0.get_mut(&ip) {
            *slot = sockets.first().copied();
        }
        for test in self.tests.values_mut() {
            test.sending.opened(&self.sockets, now);
        }
        self.assists.opened(&self.sockets, now);
    }

    /// An address of ours is gone; whether there was a socket for it.
    pub(crate) fn address_down(&mut self, ip: IpAddr) -> bool {
        self.sockets.0.remove(&ip).is_some()
    }

    pub(crate) fn link_down(&mut self, link: ControlStreamId, now: Instant) {
        self.tests.remove(&link);
        self.assists.link_down(link);
        for Serving { sending, ask } in self.tests.values_mut() {
            // Nothing will be heard of it any more.
            if ask.lost(link) && usize::from(sending.sent) == PAUSES.len() {
                sending.due = now;
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tests.values().map(|test| test.sending.due).chain(self.assists.next_deadline()).min()
    }

    /// What is to be sent now. `remote` says where a link's peer is, if it has proved that.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        remote: impl Fn(ControlStreamId) -> Option<SocketAddr>,
    ) -> Due {
        let mut due = Due::default();
        let sockets = &self.sockets;
        self.tests.retain(|link, Serving { sending, ask }| {
            if sending.due > now {
                return true;
            }
            let stays = remote(*link) == Some(sending.remote);
            let Some(open) = sending.open(sockets).filter(|_| stays) else {
                due.ended.push((*link, sending.data, 0, Vec::new()));
                return false;
            };
            if let Some(other) = ask.begin(now) {
                due.asks.push((other, sending.data, sending.key, sending.remote));
            }
            if sending.send(&open, now, &mut due.transmits) {
                return true;
            }
            if let Some(until) = ask.waits_until(now) {
                sending.due = until;
                return true;
            }
            let mut sources: Vec<SocketAddr> = open.into_iter().map(|(_, address)| address).collect();
            sources.extend(ask.source_beside(&sources, sending.remote));
            due.ended.push((*link, sending.data, sending.sent, sources));
            false
        });
        self.assists.poll(sockets, now, &mut due);
        due
    }
}

/// Whether another coordinator can tell a client at `remote` what we cannot: we have less than two addresses whose silence
/// would tell it anything.
pub(crate) fn needs_another(remote: IpAddr, own: &[SocketAddr]) -> bool {
    let is_global = |ip: &IpAddr| scope(*ip) == Scope::Global;
    is_global(&remote) && sources_for(remote, own).iter().filter(|ip| is_global(ip)).count() < 2
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
