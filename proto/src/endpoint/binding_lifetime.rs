//! How long a mapping of our NAT stands that nobody uses, and answering later for clients that want to know.

use std::time::Instant;

use rand::Rng;

use super::Endpoint;
use crate::{
    ControlStreamId, Path, SocketId,
    command::{Command, Pool},
    control_streams::ControlStream,
    nat::binding_lifetime::{DELAYS, Step},
    outbox::Transmit,
};

impl Endpoint {
    /// A client asks one of our observers to answer later. Only at the IP address of its own connection.
    pub(super) fn hold(
        &mut self,
        (id, link): (ControlStreamId, &ControlStream),
        path: Path,
        (data, delay): ([u8; 8], u16),
        now: Instant,
    ) {
        let is_its_own = link.remote.is_some_and(|remote| remote.ip() == path.remote.ip());
        let is_proven = link.proven_at().is_none_or(|at| at <= now);
        if !is_its_own || !is_proven {
            self.out.counters.probes_refused += 1;
            return;
        }
        let asked = (data, delay, self.observers.key_of(id));
        match self.delayed_replies.hold((id, link.peer), path, asked, now) {
            Some(payload) => self.out.transmits.push_back(Transmit { path, payload }),
            None => self.out.cap_hit(),
        }
    }

    /// Sends the answers that are due.
    pub(super) fn answer_holds(&mut self, now: Instant) {
        for (path, payload) in self.delayed_replies.poll(now) {
            self.out.transmits.push_back(Transmit { path, payload });
        }
    }

    /// Does what the measurement of our NAT wants done.
    pub(super) fn run_idling(&mut self, now: Instant) {
        while let Some(step) = self.idling.poll(now) {
            match step {
                Step::Open => self.open_idling(),
                Step::Send(path, payload) => self.out.transmits.push_back(Transmit { path, payload }),
                Step::Close => {
                    self.close_idling();
                    self.report_nat();
                }
            }
        }
    }

    /// Without a NAT there is nothing to measure; then no socket is opened, and the measurement ends without a result.
    fn open_idling(&mut self) {
        let translated = self.nat_report().translated.is_some_and(|finding| finding.value);
        let socket = self.coordinated_socket().and_then(|socket| self.network.socket(socket));
        if let Some(local) = socket.map(|socket| socket.local.ip()).filter(|_| translated) {
            self.out.command(Command::OpenSockets {
                pool: Pool::BindingLifetimeTest,
                local,
                count: DELAYS.len(),
            });
        }
    }

    pub(super) fn idling_opened(&mut self, sockets: &[(SocketId, u16)], now: Instant) {
        let ids: Vec<SocketId> = sockets.iter().map(|(id, _)| *id).collect();
        let rng = &mut self.rng;
        if self.idling.opened(&ids, || rng.random(), now) {
            self.run_idling(now);
        } else {
            self.close_idling();
        }
    }

    pub(super) fn close_idling(&mut self) {
        self.out.command(Command::CloseSockets { pool: Pool::BindingLifetimeTest, keep: Vec::new() });
    }
}
