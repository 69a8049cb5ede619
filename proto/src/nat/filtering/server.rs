//! Coordinator side of filtering tests: the tests of its clients, and the assistance to other
//! coordinators.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    AssistRequest, AssistResponse, FilteringTestAnswer, PAUSES, Test,
    assist::{Ask, Assists},
    sending::{Due, Sending, SendingPlan, Sockets},
};
use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::{Scope, scope},
    control_streams::ControlStream,
    rate_limit::{PeerBuckets, Rate},
};

/// Maximum number of further sources of a test. With the address of the connection a test sends at
/// most 12 datagrams.
pub(crate) const MAX_SOURCES: usize = 3;
/// Limit on the tests of a client: one, one more after a change of its address, then one per
/// minute.
pub(crate) const FILTER_RATE: Rate = Rate { interval: Duration::from_secs(60), burst: 2 };
/// Maximum number of clients with a limit.
const MAX_CLIENTS: usize = 16_384;
/// Maximum number of simultaneous tests of all clients.
pub(crate) const MAX_TESTS: usize = 1024;

/// Test of a client.
#[derive(Debug)]
struct Serving {
    sending: Sending,
    ask: Ask,
}

/// Coordinators that send the datagrams of a test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Senders<'a> {
    /// Addresses of this coordinator.
    pub(crate) own: &'a [SocketAddr],
    /// Control stream to another coordinator, which will be asked to send, too.
    pub(crate) assistant: Option<ControlStreamId>,
}

/// Filtering tests of clients, and of clients of other coordinators.
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

    /// Begins a test over a client's control stream, once the address of the client is proven.
    /// Returns the addresses at which sockets must be opened first, or `None` if a limit is
    /// reached.
    pub(crate) fn begin(
        &mut self,
        client: &ControlStream,
        test: Test,
        senders: Senders<'_>,
        now: Instant,
    ) -> Option<Vec<IpAddr>> {
        let has_room = self.tests.len() < MAX_TESTS && !self.tests.contains_key(&client.id);
        if !has_room || self.clients.take(client.peer, now).is_err() {
            return None;
        }
        let Test { data, key, path: Path { socket, remote } } = test;
        let plan = SendingPlan {
            data,
            key,
            remote,
            control: Some(socket),
            sources: sources_for(remote.ip(), senders.own),
            earliest: client.proven_at().map_or(now, |at| at.max(now)),
        };
        let (sending, missing) = Sending::new(plan, &mut self.sockets, now);
        self.tests.insert(client.id, Serving { sending, ask: Ask::of(senders.assistant) });
        Some(missing)
    }

    /// Begins to send for another coordinator to a client of that coordinator. Returns the
    /// addresses at which sockets must be opened first, or `None` if a limit is reached.
    pub(crate) fn assist(
        &mut self,
        from: &ControlStream,
        request: AssistRequest,
        own: &[SocketAddr],
        now: Instant,
    ) -> Option<Vec<IpAddr>> {
        let AssistRequest { data, key, target: remote } = request;
        let sources = sources_for(remote.ip(), own).into_iter().take(1).collect();
        let plan = SendingPlan { data, key, remote, control: None, sources, earliest: now };
        self.assists.begin(from, plan, &mut self.sockets, now)
    }

    /// Takes the report of another coordinator. Returns false if there was no request.
    pub(crate) fn assisted(
        &mut self,
        stream: ControlStreamId,
        response: AssistResponse,
        now: Instant,
    ) -> bool {
        let AssistResponse { data, rounds, source } = response;
        let mut all = self.tests.values_mut();
        let found = all.find(|test| test.ask.waits_for(stream) && test.sending.plan.data == data);
        let Some(Serving { sending, ask }) = found else { return false };
        *ask = Ask::answered(rounds, source);
        if usize::from(sending.sent) == PAUSES.len() {
            sending.due = now;
        }
        true
    }

    /// Takes the socket that was opened at `ip`. An empty list means that none could be opened.
    pub(crate) fn opened(&mut self, ip: IpAddr, sockets: &[(SocketId, u16)], now: Instant) {
        if let Some(slot) = self.sockets.0.get_mut(&ip) {
            *slot = sockets.first().copied();
        }
        for test in self.tests.values_mut() {
            test.sending.opened(&self.sockets, now);
        }
        self.assists.opened(&self.sockets, now);
    }

    /// Removes a local address. Returns true if there was a socket for it.
    pub(crate) fn address_down(&mut self, ip: IpAddr) -> bool {
        self.sockets.0.remove(&ip).is_some()
    }

    pub(crate) fn stream_down(&mut self, stream: ControlStreamId, now: Instant) {
        self.tests.remove(&stream);
        self.assists.stream_down(stream);
        for Serving { sending, ask } in self.tests.values_mut() {
            // The other coordinator can no longer answer.
            if ask.lost(stream) && usize::from(sending.sent) == PAUSES.len() {
                sending.due = now;
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tests.values().map(|test| test.sending.due).chain(self.assists.next_deadline()).min()
    }

    /// Returns the datagrams and frames that are due. `remote` returns the validated address of a
    /// control stream's peer.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        remote: impl Fn(ControlStreamId) -> Option<SocketAddr>,
    ) -> Due {
        let mut due = Due::default();
        let sockets = &self.sockets;
        self.tests.retain(|stream, Serving { sending, ask }| {
            if sending.due > now {
                return true;
            }
            let SendingPlan { data, key, remote: target, .. } = sending.plan;
            let stays = remote(*stream) == Some(target);
            let Some(open) = sending.open(sockets).filter(|_| stays) else {
                due.ended.push((*stream, FilteringTestAnswer { data, rounds: 0, sources: Vec::new() }));
                return false;
            };
            if let Some(other) = ask.begin(now) {
                due.asks.push((other, AssistRequest { data, key, target }));
            }
            if sending.send(&open, now, &mut due.transmits) {
                return true;
            }
            if let Some(until) = ask.waits_until(now) {
                sending.due = until;
                return true;
            }
            let mut sources: Vec<SocketAddr> = open.into_iter().map(|(_, address)| address).collect();
            sources.extend(ask.source_beside(&sources, target));
            due.ended.push((*stream, FilteringTestAnswer { data, rounds: sending.sent, sources }));
            false
        });
        self.assists.poll(sockets, now, &mut due);
        due
    }
}

/// Returns true if a client at `remote` needs another coordinator: this one has fewer than two
/// addresses whose silence is evidence.
pub(crate) fn needs_another(remote: IpAddr, own: &[SocketAddr]) -> bool {
    let is_global = |ip: &IpAddr| scope(*ip) == Scope::Global;
    is_global(&remote) && sources_for(remote, own).iter().filter(|ip| is_global(ip)).count() < 2
}

/// Returns the own addresses from which a peer at `remote` may be reached, those of its scope if
/// there are any.
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
