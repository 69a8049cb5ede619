//! Client side of filtering tests: datagrams that arrived, and the conclusion from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::{FilteringTestAnswer, ROUNDS, Test, authentic_round, test_of};
use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::{Scope, scope},
    control_streams::ControlStream,
    nat::FilteringBehaviour,
};

/// Time for the coordinator to answer.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for datagrams to arrive after the frame that reports them as sent.
const REORDER_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of sources in a test.
const MAX_ARRIVED: usize = 8;

/// Outcome of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) socket: SocketId,
    pub(crate) peer: PeerId,
    pub(crate) at: Instant,
    pub(crate) filtering: FilteringBehaviour,
    /// Number of datagrams that arrived, or of those that a filter must have dropped.
    pub(crate) datagrams: usize,
    /// All datagrams that no NAT filters arrived.
    pub(crate) lossless: bool,
}

#[derive(Debug)]
struct Pending {
    peer: PeerId,
    test: Test,
    /// Rounds that arrived from each source, as bits.
    arrived: BTreeMap<SocketAddr, u8>,
    /// Report of the coordinator.
    answer: Option<FilteringTestAnswer>,
    until: Instant,
}

/// Tests of a client.
#[derive(Debug, Default)]
pub(crate) struct FilteringTestClient {
    pending: BTreeMap<ControlStreamId, Pending>,
    outcomes: BTreeMap<ControlStreamId, Outcome>,
    /// Control streams over which there was a test, with any outcome.
    tested: BTreeSet<ControlStreamId>,
}

impl FilteringTestClient {
    /// Starts a test over the control stream to a coordinator, in place of an earlier one.
    pub(crate) fn begin(&mut self, coordinator: &ControlStream, test: Test, now: Instant) {
        let (stream, peer) = (coordinator.id, coordinator.peer);
        self.outcomes.remove(&stream);
        self.tested.insert(stream);
        let until = now + COORDINATOR_TIMEOUT;
        self.pending.insert(stream, Pending { peer, test, arrived: BTreeMap::new(), answer: None, until });
    }

    /// Returns true if there is or was a test over this control stream.
    pub(crate) fn knows(&self, stream: ControlStreamId) -> bool {
        self.tested.contains(&stream)
    }

    pub(crate) fn is_testing(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn stream_down(&mut self, stream: ControlStreamId) {
        self.pending.remove(&stream);
        self.outcomes.remove(&stream);
        self.tested.remove(&stream);
    }

    pub(crate) fn socket_down(&mut self, socket: SocketId) {
        self.pending.retain(|_, pending| pending.test.path.socket != socket);
        self.outcomes.retain(|_, outcome| outcome.socket != socket);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.until).min()
    }

    /// Takes a datagram. Returns false if the datagram belongs to no test.
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

    /// Takes the coordinator's report of the datagrams that it has sent. Returns false if there was
    /// no request.
    pub(crate) fn answered(
        &mut self,
        stream: ControlStreamId,
        answer: FilteringTestAnswer,
        now: Instant,
    ) -> bool {
        let found = self.pending.get_mut(&stream).filter(|pending| pending.test.data == answer.data);
        let Some(pending) = found.filter(|pending| pending.answer.is_none()) else { return false };
        pending.until = if answer.rounds == 0 { now } else { now + REORDER_TIMEOUT };
        pending.answer = Some(answer);
        true
    }

    /// Ends the tests that are due, and returns the sockets with a new outcome. `contacted` returns
    /// true if this peer may have sent to an address; without a port, to any port of it.
    pub(crate) fn conclude(
        &mut self,
        now: Instant,
        contacted: impl Fn(IpAddr, Option<u16>) -> bool,
    ) -> BTreeSet<SocketId> {
        let (outcomes, mut sockets) = (&mut self.outcomes, BTreeSet::new());
        self.pending.retain(|stream, pending| {
            if pending.until > now {
                return true;
            }
            if let Some(outcome) = pending.outcome(now, &contacted) {
                sockets.insert(outcome.socket);
                outcomes.insert(*stream, outcome);
            }
            false
        });
        sockets
    }

    /// Returns the outcomes of the tests of a socket.
    pub(crate) fn outcomes(&self, socket: SocketId) -> impl Iterator<Item = &Outcome> {
        self.outcomes.values().filter(move |outcome| outcome.socket == socket)
    }
}

impl Pending {
    fn outcome(&self, now: Instant, contacted: &impl Fn(IpAddr, Option<u16>) -> bool) -> Option<Outcome> {
        let remote = self.test.path.remote;
        let answer = self.answer.as_ref().filter(|answer| answer.rounds > 0)?;
        let (rounds, sources) = (usize::from(answer.rounds).min(ROUNDS), &answer.sources);
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
        // A coordinator behind a NAT does not know its own public address. A single source is that
        // address.
        let same = is_named || sources.len() == 1;
        // There may be no route from a private address to another network.
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
            // If no datagram of the connection's own address arrived, silence is no evidence.
            (0, 0) if controls > 0 && same => (FilteringBehaviour::AddressAndPortDependent, rounds),
            (0, 0) => return None,
        };
        let lossless = controls >= rounds;
        let (socket, peer) = (self.test.path.socket, self.peer);
        Some(Outcome { socket, peer, at: now, filtering, datagrams, lossless })
    }
}
