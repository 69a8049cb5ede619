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
    sending::{Due, Sending, Sockets},
};
use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::{Scope, scope},
    rate_limit::{PeerBuckets, Rate},
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
