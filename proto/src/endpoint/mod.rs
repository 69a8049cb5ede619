//! The endpoint: every decision of the protocol.
//!
//! It is a state machine without I/O. Inputs are the `handle_*` methods and [`connect`](Endpoint::connect); after each of
//! them the shell drains [`poll_transmit`](Endpoint::poll_transmit), [`poll_command`](Endpoint::poll_command),
//! [`poll_frame`](Endpoint::poll_frame) and [`poll_event`](Endpoint::poll_event), in this order, so that a probe is on its way
//! before the QUIC flight that follows it. When [`poll_timeout`](Endpoint::poll_timeout) is reached it calls
//! [`handle_timeout`](Endpoint::handle_timeout). The same inputs at the same times with the same seed give the same outputs.
//!
//! A session that has begun ends in exactly one [`Event::Connected`] or one [`Event::Failed`]. After `Failed` nothing
//! is left of it here; after `Connected` it stays until [`handle_closed`](Endpoint::handle_closed) of its flow, or
//! [`handle_denied`](Endpoint::handle_denied), which [`Event::Denied`] reports.

mod assisting;
mod binding_lifetime;
mod control;
mod early_packets;
mod filtering;
mod initiator;
mod lifecycle;
mod moving;
mod observing;
mod port_search;
mod probing;
mod renewing;
mod responder;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use libp2p_identity::{Keypair, PeerId};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    ControlStreamId, Path, SocketId, VirtualConnectionId,
    address_policy::{Scope, scope},
    command::{Command, Pool},
    config::{Config, Role},
    control_streams::ControlStreams,
    coordinator::Coordinator,
    counters::Counters,
    event::{Event, FailureReason, PathKind, Phase, SessionRole},
    local_addresses::LocalAddresses,
    nat::{
        binding_lifetime::{BindingLifetimeTest, DelayedReplies},
        early_packets::{EARLY_RATE, EarlyPackets, MAX_EARLY_CLIENTS},
        filtering::{FilteringTestClient, FilteringTestServer},
        hairpin::Hairpins,
        observer::{Observers, Observing},
    },
    outbox::Outbox,
    pacing::Pacing,
    probe_budget::ProbeBudget,
    rate_limit::{PeerBuckets, TokenBucket},
    registration_client::{Identity, RegistrationClient},
    session::{Session, Table, checklist::MAX_FORMED, port_search::SearchBudget, renewal::Renewals},
    wire::{frame::Frame, keys::ProbeSecret},
};
pub use crate::{outbox::Transmit, session::PROBATION};
use filtering::Reporting;
#[cfg(test)]
pub(crate) use responder::ACQUAINTED_PLACES;
#[cfg(test)]
pub(crate) use responder::ACQUAINTED_RATE;
#[cfg(test)]
pub(crate) use responder::COORDINATOR_RATE;
#[cfg(test)]
pub(crate) use responder::FLIGHT_RATE;
#[cfg(test)]
pub(crate) use responder::LATELY;
#[cfg(test)]
pub(crate) use responder::MAX_CONNECTED_TO_ONE;
#[cfg(test)]
pub(crate) use responder::MAX_RESPONDING;
#[cfg(test)]
pub(crate) use responder::NEWCOMERS;
use responder::RequestLimiter;

/// Sessions of one endpoint, connected ones included.
pub const MAX_SESSIONS: usize = 65_536;

/// The state machine of the protocol. See the [module](self).
#[derive(Debug)]
pub struct Endpoint {
    peer: PeerId,
    keypair: Keypair,
    /// The public half is part of every registration.
    probe_secret: ProbeSecret,
    rng: StdRng,
    settings: Config,
    network: LocalAddresses,
    links: ControlStreams,
    coordinator: Coordinator,
    registration_client: RegistrationClient,
    /// Coordinators that were named for a peer, by that peer. They are asked for nobody else.
    named: BTreeMap<PeerId, BTreeSet<PeerId>>,
    gate: RequestLimiter,
    probe_budget: ProbeBudget,
    /// Ports at which we observe our clients.
    observers: Observers,
    /// What we ask of our coordinators' observers.
    observing: Observing,
    /// Tests whether a packet that comes before its flow harms.
    early_packets: EarlyPackets,
    /// For the early packets that clients ask us for.
    provocations: PeerBuckets,
    /// How our clients' NATs filter.
    filters: FilteringTestServer,
    /// How ours does.
    filter_tests: FilteringTestClient,
    hairpins: Hairpins,
    /// What our observers are to answer later.
    delayed_replies: DelayedReplies,
    /// How long our NAT keeps mappings that nobody uses.
    idling: BindingLifetimeTest,
    reporting: Reporting,
    /// Sockets to which sessions move before our NAT forgets them.
    renewals: Renewals,
    /// For registrations that are renewed because a session hears nothing.
    shown: TokenBucket,
    searches: SearchBudget,
    /// Requests to coordinators.
    pacing: Pacing,
    sessions: Table,
    next_flow: u64,
    out: Outbox,
}

impl Endpoint {
    /// An endpoint of the peer of `keypair`, with no sockets and no coordinators. All randomness comes from `seed`, which must
    /// be unpredictable to others. The caller has checked the bounds of `config`. The generations of registrations begin above `generation`: the
    /// microseconds since 1970, so that those of a process are above those of the processes before it.
    pub fn new(config: &Config, keypair: Keypair, seed: [u8; 32], generation: u64) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let gate = RequestLimiter::new(&mut rng);
        Self {
            peer: keypair.public().to_peer_id(),
            keypair,
            probe_secret: ProbeSecret::new(rng.random()),
            observers: Observers::new(rng.random()),
            observing: Observing::default(),
            early_packets: EarlyPackets::default(),
            provocations: PeerBuckets::new(EARLY_RATE, MAX_EARLY_CLIENTS),
            filters: FilteringTestServer::new(),
            filter_tests: FilteringTestClient::default(),
            hairpins: Hairpins::default(),
            delayed_replies: DelayedReplies::new(),
            idling: BindingLifetimeTest::default(),
            reporting: Reporting::default(),
            renewals: Renewals::default(),
            shown: TokenBucket::default(),
            searches: SearchBudget::new(),
            pacing: Pacing::default(),
            rng,
            network: LocalAddresses::new(config.max_candidates)
                .with_host_candidates(config.host_candidates)
                .with_gater(config.gater.clone()),
            links: ControlStreams::default(),
            coordinator: Coordinator::new(
                matches!(config.role, Role::Server | Role::Bootstrap),
                config.coordinator_limits,
                config.gater.clone(),
            ),
            registration_client: RegistrationClient::new(generation, config.coordination_timeout),
            named: BTreeMap::new(),
            gate,
            probe_budget: ProbeBudget::new(),
            sessions: Table::default(),
            next_flow: 0,
            out: Outbox::default(),
            settings: config.clone(),
        }
    }

    /// Bounds the sockets of this node, those of the application included. Searches take what is left of them.
    pub fn limit_sockets(&mut self, max: usize) {
        self.searches.limit_sockets(max);
    }

    /// A UDP socket is ready. `local` may be a wildcard; `accepts` if it is a listener's.
    pub fn handle_socket_up(&mut self, socket: SocketId, local: SocketAddr, accepts: bool, now: Instant) {
        self.network.socket_up(socket, local, accepts);
        self.choose_observed_sockets(now);
        self.refresh_candidates(now);
        self.extend_checklists(now);
    }

    /// A UDP socket is gone, and every path of it.
    pub fn handle_socket_down(&mut self, socket: SocketId, now: Instant) {
        if self.network.socket_down(socket) {
            self.filter_tests.socket_down(socket);
            self.hairpins.socket_down(socket);
            self.expect_probes();
            self.choose_observed_sockets(now);
            self.refresh_candidates(now);
            self.shrink_checklists(socket, now);
            self.report_nat();
        }
    }

    /// An interface has an address, in a network of `prefix_len` bits.
    pub fn handle_interface_up(&mut self, address: IpAddr, prefix_len: u8, now: Instant) {
        if self.network.interface_up(address, prefix_len) {
            self.refresh_candidates(now);
            self.network_changed(address, now);
        }
    }

    /// An interface has lost an address.
    pub fn handle_interface_down(&mut self, address: IpAddr, now: Instant) {
        if self.network.interface_down(address) {
            if self.filters.address_down(address) {
                self.out.command(Command::CloseSockets { pool: Pool::Filtering(address), keep: Vec::new() });
            }
            self.refresh_candidates(now);
            self.network_changed(address, now);
        }
    }

    /// Sessions probe anew if the address that came or went may have carried them.
    fn network_changed(&mut self, address: IpAddr, now: Instant) {
        if matches!(scope(address), Scope::Private | Scope::Global) {
            self.network.observations.network_changed(now);
            self.observing.network_changed(now);
            if self.idling.network_changed(now) {
                self.close_idling();
            }
            self.restart_checklists(now);
        }
    }

    /// Whether an external address of ours is confirmed. [`Role::Auto`] coordinates as long as one is.
    pub fn set_publicly_reachable(&mut self, reachable: bool, _now: Instant) {
        if self.settings.role == Role::Auto {
            self.coordinator.set_active(reachable, &mut self.out);
        }
    }

    /// Says if one more connection that a peer asks for is within the limits of the application. Sessions that a peer
    /// asks for are refused as long as it is not. Until this is called there is room.
    pub fn handle_room(&mut self, has_room: bool, _now: Instant) {
        self.gate.has_room = has_room;
    }

    /// Time has come to [`poll_timeout`](Self::poll_timeout).
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.coordinator.next_deadline().is_some_and(|at| at <= now) {
            self.coordinator.handle_timeout(now);
        }
        if self.network.observations.next_expiry().is_some_and(|at| at <= now)
            && self.network.observations.expire(now)
        {
            self.refresh_candidates(now);
            self.report_views();
        }
        if self.observing.next_deadline().is_some_and(|at| at <= now) {
            self.observe(now);
        }
        if self.early_packets.next_deadline().is_some_and(|at| at <= now) {
            self.run_early_packets(now);
        }
        let test = [self.filter_tests.next_deadline(), self.hairpins.next_deadline()];
        if test.into_iter().flatten().any(|at| at <= now) {
            self.run_filter_tests(now);
        }
        if self.filters.next_deadline().is_some_and(|at| at <= now) {
            self.run_filters(now);
        }
        if self.renewals.next_deadline().is_some_and(|at| at <= now) {
            self.run_renewals(now);
        }
        if self.delayed_replies.next_deadline().is_some_and(|at| at <= now) {
            self.answer_holds(now);
        }
        if self.idling.next_deadline().is_some_and(|at| at <= now) {
            self.run_idling(now);
        }
        for key in self.sessions.due(now) {
            self.session_timeout(key, now);
        }
        if self.registration_client.next_deadline().is_some_and(|at| at <= now) {
            self.run_registrar(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called next. It may change with every input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.sessions.next_deadline(),
            self.registration_client.next_deadline(),
            self.coordinator.next_deadline(),
            self.network.observations.next_expiry(),
            self.observing.next_deadline(),
            self.early_packets.next_deadline(),
            self.filter_tests.next_deadline(),
            self.hairpins.next_deadline(),
            self.filters.next_deadline(),
            self.renewals.next_deadline(),
            self.delayed_replies.next_deadline(),
            self.idling.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next probe to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// The next frame to send.
    pub fn poll_frame(&mut self) -> Option<(ControlStreamId, Frame)> {
        self.out.frames.pop_front()
    }

    /// The next request to the path layer.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.out.commands.pop_front()
    }

    /// The next thing to report.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.out.counters
    }

    /// The peer of the session of `flow`, and our part in it. A flow that was closed has none.
    pub fn session_of(&self, flow: VirtualConnectionId) -> Option<(PeerId, SessionRole)> {
        let session = self.sessions.get(self.sessions.of_flow(flow)?)?;
        Some((session.peer, session.role))
    }

    /// How the other end of a path of the session of `flow` was found. A flow that was closed has no session.
    pub fn kind_of(&self, flow: VirtualConnectionId, path: Path) -> Option<PathKind> {
        Some(self.sessions.get(self.sessions.of_flow(flow)?)?.kind_of(path))
    }

    /// The phase of the session with `peer`; of several, that of the one that has no connection yet.
    pub fn phase(&self, peer: &PeerId) -> Option<Phase> {
        let key = self.sessions.pending_with(peer).or_else(|| self.sessions.of_peer(peer).last())?;
        self.sessions.get(key).map(|session| session.phase)
    }

    /// Sessions under way that peers asked for.
    pub fn responding(&self) -> usize {
        self.gate.responding
    }

    /// Sessions, connected ones included.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Returns the addresses at which our coordinators see us, with the number of independent coordinators that do.
    fn public_addresses(&self) -> BTreeMap<IpAddr, usize> {
        self.network.observations.witnesses()
    }

    /// Our addresses or what is known of them may have changed.
    fn refresh_candidates(&mut self, now: Instant) {
        if self.network.refresh() {
            self.registration_client.candidates_changed(now);
        }
    }

    fn report_views(&mut self) {
        for (socket, view) in self.network.changed_views() {
            self.out.event(Event::Mapping {
                socket,
                mapping: view.mapping,
                port_preserved: view.port_preserved,
                allocation_step: view.allocation_step,
            });
        }
        self.report_nat();
    }

    fn run_registrar(&mut self, now: Instant) {
        let (probe_key, nat) = (self.probe_secret.public(), self.traits().encode());
        let identity = Identity { keypair: &self.keypair, probe_key, nat };
        self.registration_client.run(
            &identity,
            (&self.network, &self.links),
            (now, &mut self.rng),
            &mut self.out,
        );
    }
}

impl Config {
    /// When the phase of a session ends that begins `now`; `None` for a phase that may last.
    fn deadline(&self, session: &Session, now: Instant) -> Option<Instant> {
        let timeout = match session.phase {
            Phase::Discovery => {
                let until = session.lookup.as_ref().map(|lookup| lookup.until);
                return until.max(Some(now + self.phase_timeouts.discovery));
            }
            Phase::Coordination => self.coordination_timeout,
            Phase::Synchronization => self.phase_timeouts.synchronization,
            Phase::Punching => self.phase_timeouts.punching,
            Phase::Validation => self.phase_timeouts.validation,
            Phase::Connected | Phase::Failed => return None,
        };
        Some(now + timeout)
    }

    /// Pairs of one checklist that the peer's candidates and our sockets may form: an IPv4 and an IPv6 listener, or two
    /// interfaces, times the candidates, as far as there is room.
    fn max_pairs(&self) -> usize {
        (2 * self.max_candidates).min(MAX_FORMED)
    }
}

/// Why [`Endpoint::connect`] refuses.
fn check_connect(endpoint: &Endpoint, peer: &PeerId) -> Result<(), FailureReason> {
    if *peer == endpoint.peer {
        Err(FailureReason::DialSelf)
    } else if endpoint.sessions.len() >= MAX_SESSIONS {
        Err(FailureReason::TooManySessions)
    } else {
        Ok(())
    }
}
