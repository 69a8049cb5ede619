//! The endpoint: every decision of the protocol.
//!
//! It is a state machine without I/O. Inputs are the `handle_*` methods and
//! [`connect`](Endpoint::connect); after each of them the shell drains
//! [`poll_transmit`](Endpoint::poll_transmit), [`poll_command`](Endpoint::poll_command),
//! [`poll_frame`](Endpoint::poll_frame) and [`poll_event`](Endpoint::poll_event), in this order, so
//! that a probe is on its way before the QUIC flight that follows it. When
//! [`poll_timeout`](Endpoint::poll_timeout) is reached it calls
//! [`handle_timeout`](Endpoint::handle_timeout). The same inputs at the same times with the same
//! seed give the same outputs.
//!
//! A session that has begun ends in exactly one [`Event::Connected`] or one [`Event::Failed`].
//! After `Failed` nothing is left of it here; after `Connected` it stays until
//! [`handle_closed`](Endpoint::handle_closed) of its virtual connection, or
//! [`handle_denied`](Endpoint::handle_denied), which [`Event::Denied`] reports.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    AttemptId, ControlStreamId, Path, SocketId, VirtualConnectionId,
    address_policy::{Scope, scope},
    command::{Command, Pool},
    config::{Config, Role},
    control_streams::{ControlStream, ControlStreams},
    coordinator::server::CoordinatorServer,
    coordinator_exchange::{CoordinatorExchange, may_be_named},
    counters::Counters,
    environment::{Environment, Identity},
    event::{Event, FailureReason, PathKind, Phase, SessionRole},
    local_addresses::LocalAddresses,
    nat::{
        Report,
        client::{Learned, NatClient},
        filtering::{AssistRequest, AssistResponse, FilteringTestAnswer},
    },
    outbox::{Outbox, Refusal},
    rate_limit::Rate,
    registration_client::{Grant, RegistrationClient},
    session::{
        Session,
        context::{Context, Shared},
        sessions::{Rejection, Sessions},
    },
    wire::{
        frame::{CoordinatorAddress, Frame, PunchMeNow},
        keys::ProbeSecret,
    },
};
pub use crate::{
    outbox::Transmit,
    session::{PROBATION, sessions::MAX_SESSIONS},
};

/// Objects of an endpoint with deadlines, in the order in which a time-out reaches them.
#[derive(Debug, Clone, Copy)]
enum Timer {
    Coordinator,
    Nat,
    Renewals,
    Sessions,
    Registrations,
    Exchange,
}

impl Timer {
    const ALL: [Self; 6] =
        [Self::Coordinator, Self::Nat, Self::Renewals, Self::Sessions, Self::Registrations, Self::Exchange];
}

/// The state machine of the protocol. See the [module](self).
///
/// Data flows one way: an input changes what is known of this host and its NAT, then the
/// registrations, then the sessions.
#[derive(Debug)]
pub struct Endpoint {
    env: Environment,
    nat: NatClient,
    server: CoordinatorServer,
    exchange: CoordinatorExchange,
    shared: Shared,
    pub(crate) sessions: Sessions,
}

impl Endpoint {
    /// An endpoint of the peer of `keypair`, with no sockets and no coordinators. All randomness
    /// comes from `seed`, which must be unpredictable to others. The caller has checked the bounds
    /// of `config`. The generations of registrations begin above `generation`: the microseconds
    /// since 1970, so that those of a process are above those of the processes before it.
    pub fn new(config: &Config, keypair: Keypair, seed: [u8; 32], generation: u64) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let sessions = Sessions::new(&mut rng);
        let probe_secret = ProbeSecret::new(rng.random());
        let shared = Shared::new();
        Self {
            nat: NatClient::new(shared.searches.max_sockets()),
            server: CoordinatorServer::new(config, &mut rng),
            exchange: CoordinatorExchange::default(),
            shared,
            sessions,
            env: Environment {
                identity: Identity { peer: keypair.public().to_peer_id(), keypair, probe_secret },
                rng,
                streams: ControlStreams::default(),
                local: LocalAddresses::new(config.max_candidates)
                    .with_host_candidates(config.host_candidates)
                    .with_gater(config.gater.clone()),
                registrations: RegistrationClient::new(generation, config.coordination_timeout),
                out: Outbox::default(),
                config: config.clone(),
            },
        }
    }

    /// Returns the sessions, and the context of an input to them.
    fn sessions_at(&mut self, now: Instant) -> (&mut Sessions, Context<'_>) {
        let Self { env, nat, shared, sessions, .. } = self;
        (sessions, Context { now, env, nat, shared })
    }

    /// Bounds the sockets of this node, those of the application included. Searches take what is
    /// left of them.
    pub fn limit_sockets(&mut self, max: usize) {
        self.shared.searches.limit_sockets(max);
        self.nat.limit_search_sockets(self.shared.searches.max_sockets());
    }

    /// A UDP socket is ready. `local` may be a wildcard; `accepts` if it is a listener's.
    pub fn handle_socket_up(&mut self, socket: SocketId, local: SocketAddr, accepts: bool, now: Instant) {
        self.env.local.socket_up(socket, local, accepts);
        let mut cx = self.env.at(now);
        self.nat.handle_sockets_changed(&mut cx);
        cx.refresh_candidates();
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.handle_socket_up(&mut cx);
    }

    /// A UDP socket is gone, and every path of it.
    pub fn handle_socket_down(&mut self, socket: SocketId, now: Instant) {
        if self.env.local.socket_down(socket) {
            let mut cx = self.env.at(now);
            self.nat.handle_socket_down(&mut cx, socket);
            cx.refresh_candidates();
            self.nat.report_findings(&mut cx);
            let (sessions, mut cx) = self.sessions_at(now);
            sessions.handle_socket_down(&mut cx, socket);
        }
    }

    /// An interface has an address, in a network of `prefix_len` bits.
    pub fn handle_interface_up(&mut self, address: IpAddr, prefix_len: u8, now: Instant) {
        if self.env.local.interface_up(address, prefix_len) {
            self.env.at(now).refresh_candidates();
            self.network_changed(address, now);
        }
    }

    /// An interface has lost an address.
    pub fn handle_interface_down(&mut self, address: IpAddr, now: Instant) {
        if self.env.local.interface_down(address) {
            let mut cx = self.env.at(now);
            self.server.handle_address_down(&mut cx, address);
            cx.refresh_candidates();
            self.network_changed(address, now);
        }
    }

    /// Sessions probe all pairs again if the address that came or went may have carried them.
    fn network_changed(&mut self, address: IpAddr, now: Instant) {
        if matches!(scope(address), Scope::Private | Scope::Global) {
            self.nat.handle_network_changed(&mut self.env.at(now));
            let (sessions, mut cx) = self.sessions_at(now);
            sessions.handle_network_changed(&mut cx);
        }
    }

    /// Sets if an external address of this peer is confirmed. With [`Role::Auto`] this peer
    /// coordinates only then.
    pub fn set_publicly_reachable(&mut self, reachable: bool, _now: Instant) {
        if self.env.config.role == Role::Auto {
            self.server.coordinator.set_active(reachable, &mut self.env.out);
        }
    }

    /// Replaces the external addresses of this peer that are confirmed. Those that are global, and
    /// that no socket is known by, are candidates of the kind `PortMapped`.
    pub fn set_external_addresses(&mut self, addresses: Vec<SocketAddr>, now: Instant) {
        self.env.local.set_external(addresses);
        self.env.at(now).refresh_candidates();
    }

    /// Sets if one more connection that a peer asks for is within the limits of the application. If
    /// it is not, sessions that peers ask for are refused. Before the first call there is room.
    pub fn handle_room(&mut self, has_room: bool, _now: Instant) {
        self.sessions.requests.has_room = has_room;
    }

    /// A datagram that begins like a probe arrived on `path`.
    pub fn handle_datagram(&mut self, path: Path, datagram: &[u8], now: Instant) {
        let mut cx = self.env.at(now);
        if self.server.owns(path.socket) {
            self.server.handle_datagram(&mut cx, path, datagram);
        } else if !self.nat.handle_datagram(&mut cx, path, datagram) {
            let (sessions, mut cx) = self.sessions_at(now);
            sessions.handle_datagram(&mut cx, path, datagram);
        }
    }

    /// The sockets that [`Command::OpenSockets`] asked for are open, with these ports; perhaps not
    /// as many.
    pub fn handle_sockets_opened(&mut self, pool: Pool, sockets: &[(SocketId, u16)], now: Instant) {
        let mut cx = self.env.at(now);
        match pool {
            Pool::Observers(local) => self.server.handle_observers_opened(&mut cx, local, sockets),
            Pool::Filtering(local) => self.server.handle_filtering_opened(&mut cx, local, sockets),
            Pool::EarlyPackets(number) => self.nat.handle_early_packets_opened(&mut cx, number, sockets),
            Pool::BindingLifetimeTest => self.nat.handle_binding_lifetime_opened(&mut cx, sockets),
            Pool::Session(id) => {
                let (sessions, mut cx) = self.sessions_at(now);
                sessions.update(&mut cx, id, |session, cx| session.handle_sockets_opened(cx, sockets));
            }
            Pool::Renewal(number) => {
                let (sessions, mut cx) = self.sessions_at(now);
                sessions.handle_renewal_opened(&mut cx, number, sockets);
            }
        }
    }

    /// A coordinator was dialed over UDP, and did not answer.
    pub fn coordinator_timed_out(&mut self, coordinator: PeerId, now: Instant) {
        self.nat.handle_coordinator_timeout(&mut self.env.at(now), coordinator);
    }

    /// Tells the sessions what the NAT client has learned.
    fn learned(&mut self, learned: Learned, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.handle_learned(&mut cx, learned);
    }

    /// Time has come to [`poll_timeout`](Self::poll_timeout).
    pub fn handle_timeout(&mut self, now: Instant) {
        for timer in Timer::ALL {
            if self.deadline(timer).is_none_or(|at| at > now) {
                continue;
            }
            match timer {
                Timer::Coordinator => self.server.handle_timeout(&mut self.env.at(now)),
                Timer::Nat => {
                    let table = &self.sessions.table;
                    let has_probed = |ip, port| table.has_probed(ip, port);
                    self.nat.handle_timeout(&mut self.env.at(now), &has_probed);
                }
                Timer::Renewals => {
                    let (sessions, mut cx) = self.sessions_at(now);
                    sessions.handle_renewal_timeout(&mut cx);
                }
                Timer::Sessions => {
                    let (sessions, mut cx) = self.sessions_at(now);
                    sessions.handle_timeout(&mut cx);
                }
                Timer::Registrations => self.register(now),
                Timer::Exchange => self.exchange.handle_timeout(&mut self.env),
            }
        }
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) must be called next. It
    /// may change with every input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        Timer::ALL.iter().filter_map(|timer| self.deadline(*timer)).min()
    }

    fn deadline(&self, timer: Timer) -> Option<Instant> {
        match timer {
            Timer::Coordinator => self.server.next_deadline(),
            Timer::Nat => self.nat.next_deadline(&self.env),
            Timer::Renewals => self.sessions.next_renewal(),
            Timer::Sessions => self.sessions.table.next_deadline(),
            Timer::Registrations => self.env.registrations.next_deadline(),
            Timer::Exchange => self.exchange.next_deadline(),
        }
    }

    /// Returns the next probe to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.env.out.transmits.pop_front()
    }

    /// Returns the next frame to send.
    pub fn poll_frame(&mut self) -> Option<(ControlStreamId, Frame)> {
        self.env.out.frames.pop_front()
    }

    /// Returns the next request to the path layer.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.env.out.commands.pop_front()
    }

    /// Returns the next event to report.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.env.out.events.pop_front()
    }

    /// Returns the counts of past events.
    pub fn counters(&self) -> Counters {
        let registrations = self.server.coordinator.registrations() as u64;
        Counters { registrations, ..self.env.out.counters }
    }

    /// Returns the peer of the session of a virtual connection, and the role of this peer in it;
    /// `None` if the virtual connection was closed.
    pub fn session_of(&self, id: VirtualConnectionId) -> Option<(PeerId, SessionRole)> {
        let session = self.sessions.of_virtual_connection(id)?;
        Some((session.peer, session.role))
    }

    /// Returns how the other end of a path of a virtual connection was found; `None` if the virtual
    /// connection was closed.
    pub fn kind_of(&self, id: VirtualConnectionId, path: Path) -> Option<PathKind> {
        Some(self.sessions.of_virtual_connection(id)?.kind_of(path))
    }

    /// Returns the phase of the session with `peer`; of several, that of the one that has no
    /// connection yet.
    pub fn phase(&self, peer: &PeerId) -> Option<Phase> {
        let table = &self.sessions.table;
        let session = table.pending_with(peer).or_else(|| table.of_peer(peer).last())?;
        Some(session.course.phase)
    }

    /// Returns the number of attempts under way that peers asked for.
    pub fn responding(&self) -> usize {
        self.sessions.table.responding()
    }

    /// Returns the number of sessions, connected ones included.
    pub fn sessions(&self) -> usize {
        self.sessions.table.len()
    }

    /// Returns the findings on the NAT in front of the socket that coordinators know.
    pub fn nat_report(&self) -> Report {
        self.nat.report(&self.env)
    }

    /// Sends the registrations that are due.
    fn register(&mut self, now: Instant) {
        let nat = self.nat.profile(&self.env).encode();
        self.env.at(now).register(nat);
        self.exchange.update(&self.env, now);
    }

    /// Registers with `peer` whenever it is connected, and asks it to coordinate for us.
    pub fn add_coordinator(&mut self, peer: PeerId, now: Instant) {
        let stream = self.env.streams.best_of(&peer);
        if peer == self.env.identity.peer || !self.env.registrations.add(peer, stream, now) {
            return;
        }
        self.env.local.observations.trust(peer);
        if stream.is_some() {
            let mut cx = self.env.at(now);
            cx.refresh_candidates();
            self.nat.report_changes(&mut cx);
            self.register(now);
            self.coordinator_arrived(&peer, now);
        }
    }

    /// Sets the coordinators that may know `peer` although this peer is not registered with them.
    /// Sessions with `peer` ask them, too, while control streams to them are open. An empty set
    /// ends this.
    pub fn set_coordinators_of(&mut self, peer: PeerId, coordinators: BTreeSet<PeerId>, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.set_coordinators_of(&mut cx, peer, coordinators);
    }

    /// No longer uses `peer` as a coordinator. The registration lasts until its lifetime ends, for
    /// those that look for this peer there. A peer that others reach without help ends the
    /// registration at once.
    pub fn remove_coordinator(&mut self, peer: &PeerId, now: Instant) {
        if self.env.registrations.contains(peer) {
            if self.server.coordinator.is_active() {
                self.env.at(now).withdraw(peer);
            }
            self.env.registrations.remove(peer, now);
            self.env.local.observations.distrust(peer);
            let mut cx = self.env.at(now);
            cx.refresh_candidates();
            self.nat.report_changes(&mut cx);
            self.register(now);
        }
    }

    /// A control stream to `peer` is open. `remote` and `socket` are the ends of the connection, if
    /// it is one of our transport. Called again for a control stream whose ends have changed.
    pub fn handle_link_up(
        &mut self,
        id: ControlStreamId,
        peer: PeerId,
        remote: Option<SocketAddr>,
        socket: Option<SocketId>,
        now: Instant,
    ) {
        if let Some(known) = self.env.streams.get_mut(id).filter(|known| known.peer == peer) {
            let moved = known.remote != remote;
            known.remote = remote;
            known.socket = socket;
            if moved {
                known.moved = Some(now);
                let mut cx = self.env.at(now);
                cx.tell_observed_address(id);
                self.nat.report_findings(&mut cx);
            }
            return;
        }
        self.handle_link_down(id, now);
        self.sessions.requests.acquaint(peer, now);
        let stream = ControlStream::new(id, peer, remote, socket);
        self.env.streams.insert(stream.clone());
        self.server.coordinator.stream_up(peer, now);
        if remote.is_some() {
            self.nat.handle_reached(&peer);
        }
        self.env.at(now).tell_observed_address(id);
        self.exchange.stream_up(&mut self.env, &stream);
        if self.env.registrations.contains(&peer) {
            self.env.registrations.stream_up(&peer, id, &self.env.streams, now);
            self.register(now);
            self.coordinator_arrived(&peer, now);
        } else if self.shared.is_named(&peer) {
            self.coordinator_arrived(&peer, now);
        }
        self.nat.report_findings(&mut self.env.at(now));
    }

    /// A control stream is gone.
    pub fn handle_link_down(&mut self, id: ControlStreamId, now: Instant) {
        let Some(stream) = self.env.streams.remove(id) else { return };
        let mut cx = self.env.at(now);
        self.server.handle_stream_down(&mut cx, &stream);
        self.nat.handle_stream_down(&mut cx, id);
        if self.env.registrations.contains(&stream.peer) {
            let other = self.env.streams.best_of(&stream.peer);
            self.env.registrations.stream_down(&stream.peer, id, other, now);
            self.register(now);
        }
        if self.env.streams.best_of(&stream.peer).is_none() {
            self.shared.pacing.forget(&stream.peer);
        }
        // Sessions may have asked it that no longer need it.
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.handle_stream_down(&mut cx, id);
        self.nat.report_findings(&mut self.env.at(now));
    }

    /// A frame arrived.
    pub fn handle_frame(&mut self, id: ControlStreamId, frame: Frame, now: Instant) {
        let Some(from) = self.env.streams.get(id).cloned() else {
            return self.env.out.refuse_frame();
        };
        let mut cx = self.env.at(now);
        match frame {
            Frame::ObservedAddress { sequence, address } => {
                self.observed_address(&from, sequence, address, now)
            }
            Frame::AddAddress(candidate) => {
                self.server.coordinator.add_address(id, candidate, &mut self.env.out)
            }
            Frame::RemoveAddress { sequence } => self.server.coordinator.remove_address(id, sequence),
            Frame::Register { registration, disclosure } => {
                self.server.handle_register(&mut cx, &from, registration, disclosure);
            }
            Frame::Registered { generation, lifetime, allowance } => {
                self.registered(&from, Grant { generation, lifetime }, allowance, now)
            }
            Frame::RegisterRejected { generation, reason, retry_after } => {
                self.register_rejected(&from, generation, Refusal { reason, retry_after }, now)
            }
            Frame::PunchMeNow(punch) => self.punch_me_now(&from, punch, now),
            Frame::PunchAnswer(answer) => {
                let (sessions, mut cx) = self.sessions_at(now);
                sessions.handle_answer(&mut cx, &from, *answer);
            }
            Frame::PunchAccepted { session, round } => {
                let attempt = AttemptId { session, round };
                let Environment { streams, out, .. } = &mut self.env;
                self.server.coordinator.accepted(&from.peer, attempt, streams, now, out);
            }
            Frame::PunchRejected { session, round, reason, retry_after } => {
                let attempt = AttemptId { session, round };
                let refusal = Refusal { reason, retry_after };
                self.request_rejected(&from, Rejection { attempt, refusal }, now)
            }
            Frame::Observer(offer) => self.nat.handle_observer(&mut cx, &from, offer),
            Frame::ObserverAt { ip, offer } => self.nat.handle_observer_at(&mut cx, &from, ip, offer),
            Frame::ProbeObserved { data, address } => {
                let learned = self.nat.handle_probe_observed(&mut cx, &from, data, address);
                self.learned(learned, now);
            }
            Frame::PortPrediction(window) => {
                let (sessions, mut cx) = self.sessions_at(now);
                if !sessions.handle_window(&mut cx, &window) {
                    self.server.coordinator.window(&from, window, now, &mut self.env.out);
                }
            }
            Frame::PunchMoved(moved) => {
                let (sessions, mut cx) = self.sessions_at(now);
                if !sessions.handle_peer_moved(&mut cx, &from, &moved) {
                    self.server.coordinator.moved(&from, moved, now, &mut self.env.out);
                }
            }
            Frame::Coordinators(coordinators) => self.peer_coordinators(&from, coordinators, now),
            Frame::FilterTest { data, key } => self.server.handle_filter_test(&mut cx, &from, data, key),
            Frame::FilterTested { data, rounds, sources } => {
                self.filter_tested(&from, FilteringTestAnswer { data, rounds, sources }, now)
            }
            Frame::FilteringAssistRequest { data, key, target } => {
                self.server.handle_assist_request(&mut cx, &from, AssistRequest { data, key, target })
            }
            Frame::FilteringAssistResponse { data, rounds, source } => {
                self.server.handle_assist_response(&mut cx, &from, AssistResponse { data, rounds, source })
            }
        }
    }

    fn registered(&mut self, from: &ControlStream, grant: Grant, allowance: Rate, now: Instant) {
        let Environment { registrations, out, .. } = &mut self.env;
        if !registrations.accepted(&from.peer, grant, now, out) {
            return out.refuse_frame();
        }
        self.register(now);
        self.shared.pacing.announced(from.peer, allowance);
        self.nat.handle_registered(&mut self.env.at(now), from.id);
    }

    fn register_rejected(&mut self, from: &ControlStream, generation: u64, refusal: Refusal, now: Instant) {
        let Environment { registrations, rng, out, .. } = &mut self.env;
        if !registrations.rejected(&from.peer, generation, refusal, now, rng, out) {
            return out.refuse_frame();
        }
        self.register(now);
    }

    fn peer_coordinators(
        &mut self,
        from: &ControlStream,
        mut coordinators: Vec<CoordinatorAddress>,
        now: Instant,
    ) {
        if !self.server.coordinator.may_name_coordinators(&from.peer, now) {
            self.env.out.cap_hit();
            return self.env.out.refuse_frame();
        }
        let own = self.env.identity.peer;
        coordinators.retain(|CoordinatorAddress { coordinator, address }| {
            *coordinator != own && *coordinator != from.peer && may_be_named(*address, from.remote)
        });
        if coordinators.is_empty() {
            return self.env.out.refuse_frame();
        }
        self.env.out.event(Event::PeerCoordinators { peer: from.peer, coordinators });
    }

    fn request_rejected(&mut self, from: &ControlStream, rejection: Rejection, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        if sessions.handle_rejection(&mut cx, &from.peer, rejection) {
            return;
        }
        let Rejection { attempt, refusal } = rejection;
        let out = &mut self.env.out;
        if !self.server.coordinator.rejected(&from.peer, attempt, refusal, now, out) {
            out.refuse_frame();
        }
    }

    fn filter_tested(&mut self, from: &ControlStream, answer: FilteringTestAnswer, now: Instant) {
        let table = &self.sessions.table;
        let has_probed = |ip, port| table.has_probed(ip, port);
        self.nat.handle_filter_tested(&mut self.env.at(now), from.id, answer, &has_probed);
    }

    fn punch_me_now(&mut self, from: &ControlStream, punch: Box<PunchMeNow>, now: Instant) {
        if punch.request.responder == self.env.identity.peer {
            let (sessions, mut cx) = self.sessions_at(now);
            sessions.handle_request(&mut cx, from, *punch);
        } else {
            let Environment { streams, out, .. } = &mut self.env;
            self.server.coordinator.punch_me_now(from, punch, streams, now, out);
        }
    }

    fn coordinator_arrived(&mut self, coordinator: &PeerId, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.handle_coordinator(&mut cx, coordinator);
    }

    fn observed_address(&mut self, from: &ControlStream, sequence: u64, address: SocketAddr, now: Instant) {
        if !self.server.coordinator.may_tell(&from.peer, now) {
            self.env.out.cap_hit();
            return self.env.out.refuse_frame();
        }
        if !self.env.streams.takes_observation(from.id, sequence) {
            return self.env.out.refuse_frame();
        }
        // Over anything but a socket of ours the observation says nothing about the ports that we
        // use.
        let (Some(remote), Some(socket)) = (from.remote, from.socket) else { return };
        if !self.env.local.is_plausible(socket, remote, address) {
            return self.env.out.refuse_frame();
        }
        if self.sessions.sees_another_socket(&self.env.local, &from.peer) {
            return;
        }
        let path = Path { socket, remote };
        let learned = self.nat.handle_observed_address(&mut self.env.at(now), from, path, address);
        self.learned(learned, now);
    }

    /// Begins a session with `peer` for a dial, or joins the one that has no connection yet,
    /// whichever side began it. Coordinators are asked again for a peer that they do not know,
    /// until the dial is [`cancelled`](Self::cancel) or
    /// [`Config::lookup_timeout`](crate::config::Config::lookup_timeout) has passed.
    ///
    /// # Errors
    ///
    /// [`FailureReason::DialSelf`] and [`FailureReason::TooManySessions`]; no session begins then.
    pub fn connect(&mut self, peer: PeerId, now: Instant) -> Result<(), FailureReason> {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.connect(&mut cx, peer)
    }

    /// As [`connect`](Self::connect), where no dial waits: the peer is connected over a relay. If
    /// no coordinator knows it, the session fails at once.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    pub fn upgrade(&mut self, peer: PeerId, now: Instant) -> Result<(), FailureReason> {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.upgrade(&mut cx, peer).map(drop)
    }

    /// This side no longer wants a connection to `peer`. A session that the peer asked for goes on.
    pub fn cancel(&mut self, peer: &PeerId, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.cancel(&mut cx, peer);
    }

    /// The first flight of a virtual connection was captured: one or two datagrams, to travel
    /// inside `PUNCH_ME_NOW`.
    pub fn handle_first_flight(&mut self, id: VirtualConnectionId, datagrams: Vec<Bytes>, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.handle_first_flight(&mut cx, id, datagrams);
    }

    /// The QUIC handshake of a virtual connection is finished, and has proved the identity of the
    /// peer. The last packet of it came on `path`, which nobody may have named: an initiator may
    /// hear the responder before its coordinator answers.
    pub fn handle_established(&mut self, id: VirtualConnectionId, path: Path, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.handle_established(&mut cx, id, path);
    }

    /// The handshake of a virtual connection failed, or its connection ended.
    pub fn handle_closed(&mut self, id: VirtualConnectionId, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.update(&mut cx, id, Session::handle_closed);
    }

    /// As [`handle_closed`](Self::handle_closed), for a connection that the swarm of either side
    /// did not take.
    pub fn handle_denied(&mut self, id: VirtualConnectionId, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.update(&mut cx, id, Session::handle_denied);
    }

    /// QUIC sends on a virtual connection and hears nothing: a NAT may have dropped its state, or
    /// the path is gone. All paths are probed again, and coordinators hear from this peer, so that
    /// they can pass on its address.
    pub fn handle_silent(&mut self, id: VirtualConnectionId, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.update(&mut cx, id, Session::handle_silence);
    }

    /// The peer of a virtual connection was talking, and pauses. One challenge asks if it is there:
    /// a peer that only answers does not notice otherwise that its NAT has lost its state.
    pub fn handle_quiet(&mut self, id: VirtualConnectionId, now: Instant) {
        let (sessions, mut cx) = self.sessions_at(now);
        sessions.update(&mut cx, id, Session::handle_pause);
    }
}
