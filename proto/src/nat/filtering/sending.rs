//! Datagrams of filtering tests on the sending side, and the sockets from which they leave.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{AssistRequest, AssistResponse, FilteringTestAnswer, PAUSES, datagram};
use crate::{ControlStreamId, Path, SocketId, wire::probe::PROBE_LEN};

/// Time for the sockets to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Sockets for tests, each bound to one address, with the port of the socket. `None` until the
/// socket is open.
#[derive(Debug, Default)]
pub(super) struct Sockets(pub(super) BTreeMap<IpAddr, Option<(SocketId, u16)>>);

impl Sockets {
    /// Requests sockets at these addresses. Returns the addresses at which a socket must be opened
    /// first.
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

/// Datagrams of one test: their contents, their destination, and where they leave from.
#[derive(Debug)]
pub(super) struct SendingPlan {
    pub(super) data: [u8; 8],
    pub(super) key: [u8; 32],
    pub(super) remote: SocketAddr,
    /// Socket of the connection, if the test belongs to a client of this coordinator.
    pub(super) control: Option<SocketId>,
    /// Local addresses with a socket of their own.
    pub(super) sources: Vec<IpAddr>,
    /// Time from which `remote` counts as proven.
    pub(super) earliest: Instant,
}

/// Datagrams of one test, some of which are still to be sent.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) plan: SendingPlan,
    pub(super) sent: u8,
    pub(super) due: Instant,
}

impl Sending {
    /// Creates the datagrams of a test, and returns the addresses at which sockets must be opened
    /// first.
    pub(super) fn new(plan: SendingPlan, sockets: &mut Sockets, now: Instant) -> (Self, Vec<IpAddr>) {
        let missing = sockets.want(&plan.sources);
        let is_ready = plan.sources.iter().all(|ip| sockets.at(*ip).is_some());
        let due = if is_ready { now } else { now + OPEN_TIMEOUT }.max(plan.earliest);
        (Self { plan, sent: 0, due }, missing)
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Returns the number of rounds that were sent.
    pub(super) fn rounds(&self) -> u8 {
        self.sent
    }

    /// Takes the outcome of opening a socket.
    pub(super) fn opened(&mut self, sockets: &Sockets, now: Instant) {
        if self.sent == 0 && self.plan.sources.iter().all(|ip| sockets.at(*ip).is_some()) {
            self.due = self.plan.earliest.max(now);
        }
    }

    /// Returns the sockets from which the datagrams leave. Before the first round, sources whose
    /// socket could not be opened are left out.
    ///
    /// Returns `None` without sources, and if a source has become unusable: its silence would be no
    /// evidence.
    pub(super) fn open(&mut self, sockets: &Sockets) -> Option<Vec<(SocketId, SocketAddr)>> {
        if self.sent == 0 {
            self.plan.sources.retain(|ip| sockets.at(*ip).is_some());
        }
        let open: Vec<_> = self.plan.sources.iter().filter_map(|ip| sockets.at(*ip)).collect();
        (!open.is_empty() && open.len() == self.plan.sources.len()).then_some(open)
    }

    /// Sends the round that is due, if one is left. Returns true if another round follows.
    pub(super) fn send(
        &mut self,
        open: &[(SocketId, SocketAddr)],
        now: Instant,
        transmits: &mut Vec<(Path, [u8; PROBE_LEN])>,
    ) -> bool {
        if usize::from(self.sent) < PAUSES.len() {
            let payload = datagram(self.plan.data, &self.plan.key, self.sent);
            let sockets = self.plan.control.into_iter().chain(open.iter().map(|(socket, _)| *socket));
            transmits.extend(sockets.map(|socket| (Path { socket, remote: self.plan.remote }, payload)));
            self.sent += 1;
        }
        let pause = PAUSES.get(usize::from(self.sent));
        self.due = pause.map_or(self.due, |pause| now + *pause);
        pause.is_some()
    }
}

/// Datagrams and frames that are due.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) transmits: Vec<(Path, [u8; PROBE_LEN])>,
    /// Answers to the clients whose tests have ended.
    pub(crate) ended: Vec<(ControlStreamId, FilteringTestAnswer)>,
    /// Requests to other coordinators.
    pub(crate) asks: Vec<(ControlStreamId, AssistRequest)>,
    /// Answers to other coordinators.
    pub(crate) assisted: Vec<(ControlStreamId, AssistResponse)>,
}
