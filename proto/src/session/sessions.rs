//! Routes of inputs to sessions.

use std::collections::BTreeSet;

use bytes::Bytes;
use libp2p_identity::PeerId;
use rand::rngs::StdRng;

use crate::{
    AttemptId, ControlStreamId, Path, SocketId, VirtualConnectionId,
    address_policy::{Scope, scope},
    control_streams::ControlStream,
    event::{FailureReason, Phase, SessionRole},
    local_addresses::LocalAddresses,
    nat::client::Learned,
    outbox::Refusal,
    session::{
        Key, Session, Transition,
        context::Context,
        renewal::{RenewalSocket, Renewals},
        request_limiter::RequestLimiter,
        table::Table,
    },
    wire::{
        frame::{PortPrediction, PunchAnswer, PunchMoved},
        probe::{Probe, tag_of},
    },
};

/// Sessions of one endpoint, connected ones included.
pub const MAX_SESSIONS: usize = 65_536;

/// All sessions of an endpoint. Each input is routed to the sessions that it concerns.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) table: Table,
    pub(crate) requests: RequestLimiter,
    renewals: Renewals,
}

impl Sessions {
    pub(crate) fn new(rng: &mut StdRng) -> Self {
        Self { table: Table::default(), requests: RequestLimiter::new(rng), renewals: Renewals::default() }
    }

    /// Returns the session of a virtual connection.
    pub(crate) fn of_virtual_connection(&self, id: VirtualConnectionId) -> Option<&Session> {
        self.table.get(self.table.of_virtual_connection(id)?)
    }

    /// Begins a session with `peer`, or joins the one that has no connection yet, whichever side
    /// began it.
    pub(crate) fn upgrade(&mut self, cx: &mut Context<'_>, peer: PeerId) -> Result<Key, FailureReason> {
        if let Some(key) = self.table.pending_with(&peer).map(|session| session.key) {
            self.table.update(cx, key, |session, _| {
                session.course.wanted = true;
                Transition::Stay
            });
            return Ok(key);
        }
        if peer == cx.env.identity.peer {
            return Err(FailureReason::DialSelf);
        }
        if self.table.len() >= MAX_SESSIONS {
            return Err(FailureReason::TooManySessions);
        }
        let (id, now) = (cx.new_session_id(), cx.now);
        let (role, phase) = (SessionRole::Initiator, Phase::Discovery);
        let key = self.table.insert(|key| Session::new(key, peer, id, role, phase, now));
        self.table.update(cx, key, Session::begin);
        Ok(key)
    }

    /// As [`upgrade`](Self::upgrade), where a dial waits.
    pub(crate) fn connect(&mut self, cx: &mut Context<'_>, peer: PeerId) -> Result<(), FailureReason> {
        let key = self.upgrade(cx, peer)?;
        self.table.update(cx, key, Session::handle_dial);
        Ok(())
    }

    /// This side no longer wants a connection to `peer`.
    pub(crate) fn cancel(&mut self, cx: &mut Context<'_>, peer: &PeerId) {
        if let Some(key) = self.table.pending_with(peer).map(|session| session.key) {
            self.table.update(cx, key, Session::handle_cancelled);
        }
    }

    /// Gives an input to the session of a virtual connection.
    pub(crate) fn update(
        &mut self,
        cx: &mut Context<'_>,
        id: VirtualConnectionId,
        input: impl FnOnce(&mut Session, &mut Context<'_>) -> Transition,
    ) {
        if let Some(key) = self.table.of_virtual_connection(id) {
            self.table.update(cx, key, input);
        }
    }

    /// The first flight of a virtual connection was captured.
    pub(crate) fn handle_first_flight(
        &mut self,
        cx: &mut Context<'_>,
        id: VirtualConnectionId,
        datagrams: Vec<Bytes>,
    ) {
        self.update(cx, id, |session, cx| session.handle_first_flight(cx, datagrams));
    }

    /// The QUIC handshake of a virtual connection is finished.
    pub(crate) fn handle_established(&mut self, cx: &mut Context<'_>, id: VirtualConnectionId, path: Path) {
        let session = self.of_virtual_connection(id).filter(|session| session.course.is_in_flight());
        let Some(peer) = session.map(|session| session.peer) else { return };
        self.requests.acquaint(peer, cx.now);
        self.update(cx, id, |session, cx| session.handle_established(cx, path));
        self.renewals.check_soon(cx);
    }

    /// A datagram that may be a probe arrived on `path`.
    pub(crate) fn handle_datagram(&mut self, cx: &mut Context<'_>, path: Path, datagram: &[u8]) {
        let session = tag_of(datagram).and_then(|tag| self.table.of_tag(tag));
        let session = session.filter(|session| self.is_usable(cx, session, path));
        let probe =
            session.and_then(|session| Some((session.key, Probe::decode(datagram, session.keys()?).ok()?)));
        let Some((key, probe)) = probe else {
            cx.env.out.counters.probes_refused += 1;
            return;
        };
        cx.env.out.counters.probes_received += 1;
        self.table.update(cx, key, |session, cx| session.handle_probe(cx, path, probe));
    }

    fn is_usable(&self, cx: &Context<'_>, session: &Session, path: Path) -> bool {
        let is_known = cx.env.local.socket(path.socket).is_some()
            || session.search.owns(path.socket)
            || self.renewals.owns(path.socket);
        is_known && path.remote.port() != 0 && scope(path.remote.ip()) != Scope::Never
    }

    /// A local socket is new.
    pub(crate) fn handle_socket_up(&mut self, cx: &mut Context<'_>) {
        self.table.update_all(cx, self.probing(), Session::handle_sockets_changed);
    }

    /// A local socket is gone.
    pub(crate) fn handle_socket_down(&mut self, cx: &mut Context<'_>, socket: SocketId) {
        let input = |session: &mut Session, cx: &mut Context<'_>| session.handle_socket_down(cx, socket);
        self.table.update_all(cx, self.probing(), input);
    }

    /// The local network has changed.
    pub(crate) fn handle_network_changed(&mut self, cx: &mut Context<'_>) {
        self.table.update_all(cx, self.probing(), Session::handle_network_changed);
    }

    fn probing(&self) -> Vec<Key> {
        self.table.keys_of(|session| session.paths.is_probing())
    }

    /// The NAT client has learned something.
    pub(crate) fn handle_learned(&mut self, cx: &mut Context<'_>, learned: Learned) {
        match learned {
            Learned::Nothing => {}
            Learned::Address => self.handle_new_address(cx),
            Learned::Remapping(socket) => {
                let hit = self.table.keys_of(|session| session.uses(socket));
                self.table.update_all(cx, hit, Session::handle_remapping);
                self.renewals.check_soon(cx);
                self.handle_new_address(cx);
            }
            Learned::Sample { session, socket, port } => {
                self.table.update(cx, session, |session, cx| session.handle_sample(cx, socket, port));
            }
            Learned::Renewal { socket, address } => {
                let seen = RenewalSocket { socket, address };
                self.renewals.handle_sample(cx, &mut self.table, seen);
            }
        }
    }

    fn handle_new_address(&mut self, cx: &mut Context<'_>) {
        let probing = self.table.keys_of(|session| session.paths.checklist.is_some());
        self.table.update_all(cx, probing, Session::handle_new_address);
    }

    /// The sockets of a renewal are open.
    pub(crate) fn handle_renewal_opened(
        &mut self,
        cx: &mut Context<'_>,
        number: u32,
        sockets: &[(SocketId, u16)],
    ) {
        self.renewals.handle_opened(cx, &mut self.table, number, sockets);
    }

    /// Sets the coordinators that may know `peer` although this peer is not registered with them.
    pub(crate) fn set_coordinators_of(
        &mut self,
        cx: &mut Context<'_>,
        peer: PeerId,
        coordinators: BTreeSet<PeerId>,
    ) {
        if coordinators.is_empty() {
            cx.shared.named.remove(&peer);
            return;
        }
        let before = cx.shared.named.insert(peer, coordinators.clone()).unwrap_or_default();
        for coordinator in coordinators.difference(&before) {
            if cx.env.streams.best_of(coordinator).is_some() {
                self.handle_coordinator(cx, coordinator);
            }
        }
    }

    /// A coordinator is connected.
    pub(crate) fn handle_coordinator(&mut self, cx: &mut Context<'_>, coordinator: &PeerId) {
        let asking = self.table.keys_of(|session| cx.may_ask(coordinator, &session.peer));
        let input = |session: &mut Session, cx: &mut Context<'_>| session.handle_coordinator(cx, coordinator);
        self.table.update_all(cx, asking, input);
    }

    /// A control stream is gone, over which sessions may have asked a coordinator.
    pub(crate) fn handle_stream_down(&mut self, cx: &mut Context<'_>, stream: ControlStreamId) {
        let asking = self.table.keys_of(Session::has_asked);
        self.table.update_all(cx, asking, |session, cx| session.handle_coordinator_lost(cx, stream));
    }

    /// `PUNCH_ANSWER` of a coordinator.
    pub(crate) fn handle_answer(&mut self, cx: &mut Context<'_>, from: &ControlStream, answer: PunchAnswer) {
        match self.table.of_id(answer.session).map(|session| session.key) {
            Some(key) => self.table.update(cx, key, |session, cx| session.handle_answer(cx, from, answer)),
            None => cx.env.out.refuse_frame(),
        }
    }

    /// `PUNCH_REJECTED` of a coordinator, or of the responder through it. Returns false if it
    /// answers no request of this peer.
    pub(crate) fn handle_rejection(
        &mut self,
        cx: &mut Context<'_>,
        from: &PeerId,
        rejection: Rejection,
    ) -> bool {
        let Rejection { attempt, refusal } = rejection;
        let Some(session) = self.table.of_id(attempt.session) else { return false };
        let round = attempt.round;
        let is_awaited = session.awaits_rejection(from, round);
        let key = session.key;
        if is_awaited {
            self.table.update(cx, key, |session, cx| session.handle_rejection(cx, from, round, refusal));
        }
        is_awaited
    }

    /// `PORT_PREDICTION`. Returns false if no session of this peer is meant.
    pub(crate) fn handle_window(&mut self, cx: &mut Context<'_>, window: &PortPrediction) -> bool {
        let is_meant = |session: &&Session| (session.id, session.attempt) == (window.session, window.round);
        let key = self.table.of_peer(&window.peer).find(is_meant).map(|session| session.key);
        if let Some(key) = key {
            self.table.update(cx, key, |session, cx| session.handle_window(cx, window));
        }
        key.is_some()
    }

    /// `PUNCH_MOVED`. Returns false if no session of this peer is meant.
    pub(crate) fn handle_peer_moved(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        moved: &PunchMoved,
    ) -> bool {
        let is_meant = |session: &&Session| session.id == moved.session && session.is_connected();
        let key = self.table.of_peer(&moved.peer).find(is_meant).map(|session| session.key);
        if let Some(key) = key {
            self.table.update(cx, key, |session, cx| session.handle_peer_moved(cx, from, moved));
        }
        key.is_some()
    }

    /// Returns true if a session with a peer uses a socket that was opened for sessions only. The
    /// peer then sees the mapping of that socket.
    pub(crate) fn sees_another_socket(&self, local: &LocalAddresses, peer: &PeerId) -> bool {
        self.table.of_peer(peer).filter(|session| session.is_connected()).any(|session| {
            let path = session.paths.selected();
            path.is_some_and(|path| local.socket(path.socket).is_none())
        })
    }

    /// Gives their time-outs to the sessions whose time has come.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        self.table.update_all(cx, self.table.due(cx.now), Session::handle_timeout);
    }

    pub(crate) fn next_renewal(&self) -> Option<std::time::Instant> {
        self.renewals.next_deadline()
    }

    /// Takes the next step of a renewal.
    pub(crate) fn handle_renewal_timeout(&mut self, cx: &mut Context<'_>) {
        self.renewals.handle_timeout(cx, &mut self.table);
    }
}

/// Contents of `PUNCH_REJECTED`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rejection {
    pub(crate) attempt: AttemptId,
    pub(crate) refusal: Refusal,
}
