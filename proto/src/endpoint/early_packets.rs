//! Tests whether a packet that comes before its flow harms, and sending such packets to clients that ask for them.

use std::time::Instant;

use rand::Rng;

use super::Endpoint;
use crate::{
    ControlStreamId, Path, SocketId,
    command::{Command, Pool},
    control_streams::ControlStream,
    nat::{
        Finding,
        early_packets::{EARLY_DATAGRAMS, Step},
    },
    outbox::Transmit,
    wire::frame::Frame,
};

impl Endpoint {
    /// A client asks one of our observers for early packets to the mapping from which it asks. They go to the IP address of its
    /// connection only, and never to the port of that.
    pub(super) fn provoked(
        &mut self,
        id: ControlStreamId,
        link: &ControlStream,
        path: Path,
        data: [u8; 8],
        now: Instant,
    ) {
        let is_its_own = link
            .remote
            .is_some_and(|remote| remote.ip() == path.remote.ip() && remote.port() != path.remote.port());
        let is_proven = link.proven_at().is_none_or(|at| at <= now);
        let Some(socket) = self.observers.early(path.socket).filter(|_| is_its_own && is_proven) else {
            self.out.counters.probes_refused += 1;
            return;
        };
        if self.provocations.take(link.peer, now).is_err() {
            return self.out.cap_hit();
        }
        let path = Path { socket, remote: path.remote };
        let payload = self.observers.early_packet(id);
        self.out.transmits.extend([Transmit { path, payload }; EARLY_DATAGRAMS]);
        self.out.frame(id, Frame::ProbeObserved { data, address: path.remote });
    }

    /// Does what the tests of early packets want done.
    pub(super) fn run_early_packets(&mut self, now: Instant) {
        for step in self.early_packets.poll(now) {
            match step {
                Step::Open(link, number) => {
                    let socket = self.links.get(link).and_then(|link| self.network.socket(link.socket?));
                    if let Some(local) = socket.map(|socket| socket.local.ip()) {
                        let pool = Pool::EarlyPackets(number);
                        self.out.command(Command::OpenSockets { pool, local, count: 1 });
                    }
                }
                Step::Ask(link, socket, place) => {
                    let data = self.rng.random();
                    if let Some((path, payload)) = self.observing.test(link, place, socket, data, now) {
                        self.out.transmits.push_back(Transmit { path, payload });
                    }
                }
                Step::Close(number) => self.close_early_packets(number),
            }
        }
    }

    /// The socket of a test is open, unless none could be opened.
    pub(super) fn early_packets_opened(&mut self, number: u32, sockets: &[(SocketId, u16)], now: Instant) {
        let socket = sockets.first().map(|(socket, _)| *socket);
        if self.early_packets.opened(number, socket, now) {
            self.run_early_packets(now);
        } else {
            self.close_early_packets(number);
        }
    }

    fn close_early_packets(&mut self, number: u32) {
        self.out.command(Command::CloseSockets { pool: Pool::EarlyPackets(number), keep: Vec::new() });
    }

    /// Returns true if early packets harm the sockets in the network of `socket`; `None` if no test has ended.
    pub(super) fn early_packets_harm(&self, socket: SocketId) -> Option<Finding<bool>> {
        let is_meant = |link| self.links.get(link).is_some_and(|link| link.socket == Some(socket));
        self.early_packets.finding(is_meant)
    }
}
