//! Filtering tests by two coordinators: asking another one to send, and sending for others.

use std::{net::SocketAddr, time::Instant};

use rand::Rng;

use super::Endpoint;
use crate::{
    ControlStreamId,
    address_policy::{Scope, scope},
    command::{Command, Pool},
    config::Role,
    control_streams::ControlStream,
    nat::filtering::needs_another,
    wire::frame::Frame,
};

impl Endpoint {
    /// Whether we are a coordinator by configuration. One that merely happens to be reachable trusts its coordinators to
    /// reach others for it, and not to say where it sends.
    fn is_operated(&self) -> bool {
        matches!(self.settings.role, Role::Server | Role::Bootstrap)
    }

    /// The link to another coordinator, which shall send to a client of ours, too; `None` if our own addresses are enough.
    pub(super) fn assistant_for(
        &mut self,
        client: &ControlStream,
        remote: SocketAddr,
    ) -> Option<ControlStreamId> {
        if !self.is_operated() || !needs_another(remote.ip(), &self.network.own_addresses()) {
            return None;
        }
        // From where the client is nothing would be filtered.
        let is_elsewhere = |link: &ControlStream| {
            link.peer != client.peer && link.remote.is_none_or(|at| at.ip() != remote.ip())
        };
        let mut others = self.registration_client.connected();
        others.retain(|(_, id)| self.links.get(*id).is_some_and(is_elsewhere));
        // Any of them: which of them the client has sent to is not known here.
        let choice = (!others.is_empty()).then(|| self.rng.random_range(0..others.len()))?;
        others.get(choice).map(|(_, id)| *id)
    }

    /// Another coordinator wants us to send to a client of its own.
    pub(super) fn filter_ask(
        &mut self,
        id: ControlStreamId,
        link: &ControlStream,
        (data, key, target): ([u8; 8], [u8; 32], SocketAddr),
        now: Instant,
    ) {
        let is_trusted = self.is_operated() && self.registration_client.contains(&link.peer);
        if !is_trusted || scope(target.ip()) != Scope::Global {
            self.out.refuse_frame();
            return self.out.frame(id, Frame::FilteringAssistResponse { data, rounds: 0, source: None });
        }
        let own = self.network.own_addresses();
        let Some(missing) = self.filters.assist((id, link.peer), (data, key, target), &own, now) else {
            self.out.cap_hit();
            return self.out.frame(id, Frame::FilteringAssistResponse { data, rounds: 0, source: None });
        };
        for local in missing {
            self.out.command(Command::OpenSockets { pool: Pool::Filtering(local), local, count: 1 });
        }
        self.run_filters(now);
    }

    /// Another coordinator says what it has sent.
    pub(super) fn filter_asked(
        &mut self,
        id: ControlStreamId,
        (data, rounds, source): ([u8; 8], u8, Option<SocketAddr>),
        now: Instant,
    ) {
        if !self.filters.assisted(id, data, (rounds, source), now) {
            return self.out.refuse_frame();
        }
        self.run_filters(now);
    }
}
