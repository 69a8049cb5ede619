//! A running peer: drives a swarm and turns its events into [`NodeEvent`]s.
//!
//! The node prints nothing. An [`Observer`] sees each event; a subcommand waits for those that end
//! its work.

mod address;
mod echo;
mod error;
mod event;
mod limits;
mod swarm;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    future::pending,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use crate::monitoring::{Monitor, NodeMetrics, Readiness};
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::ConnectedPoint,
    identity::Keypair,
    multiaddr::Protocol,
    request_response::{Event as EchoEvent, Message, OutboundRequestId},
    swarm::{ConnectionId, DialError, SwarmEvent, dial_opts::DialOpts},
};
use libp2p_punch::{config::Config, io::Network, transport::Stats};
use libp2p_punch::{
    event::Path,
    event::{Event, NatEvent, RegistrationEvent, RegistrationStatus, SessionEvent},
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use self::{
    address::{is_circuit, peer_of, udp_address, udp_part, wildcards},
    error::{describe_dial_error, with_causes},
    swarm::{Behaviour, BehaviourEvent, BuiltSwarm},
};
pub(crate) use self::{
    error::{DialFailure, NodeError},
    event::{Connection, Ignore, NodeEvent, Observer},
    limits::RelayLimits,
};

/// Time for connections to close at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for a coordinator to accept a registration, connection included.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the other coordinators once one has accepted.
const OTHER_COORDINATORS_TIMEOUT: Duration = Duration::from_millis(500);
/// Time from the end of a failed dial to the event with the reason of its session.
const SESSION_REASON_TIMEOUT: Duration = Duration::from_millis(250);
/// Time for a direct connection to replace a relayed one.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A swarm with the state that its events need.
pub(crate) struct Node {
    swarm: Swarm<Behaviour>,
    stats: Stats,
    observer: Box<dyn Observer>,
    metrics: NodeMetrics,
    /// Events that the caller has not got yet. One event of the swarm makes two at most.
    events: VecDeque<NodeEvent>,
    /// Registration with each coordinator.
    registrations: BTreeMap<PeerId, Registration>,
    /// Remote address of the selected path to each peer.
    selected_paths: HashMap<PeerId, SocketAddr>,
    /// Duration of the session of each connection that is not established yet.
    session_durations: HashMap<PeerId, Duration>,
    /// Start of each inbound connection that is not established yet.
    incoming: HashMap<ConnectionId, Instant>,
    /// Time to connect of each direct connection whose path is not known yet.
    unreported: HashMap<PeerId, Duration>,
    /// Start of each echo that is under way.
    echoes: HashMap<OutboundRequestId, Instant>,
    /// Last dial that was asked for.
    dial: Option<RequestedDial>,
}

/// Settings of a node over real UDP.
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// Limits of the relay, if the node has one.
    pub(crate) relay_limits: RelayLimits,
    /// The node asks the gateway of the network to forward its ports.
    pub(crate) port_mapping: bool,
}

/// State of the registration with one coordinator.
#[derive(Debug, PartialEq, Eq)]
enum Registration {
    Pending,
    Accepted,
    Failed(String),
}

/// Dial that [`Node::connect`] has started.
#[derive(Debug, Clone, Copy)]
struct RequestedDial {
    peer: PeerId,
    since: Instant,
    id: ConnectionId,
}

/// Result that holds from its deadline on, unless a better one comes before.
struct Provisional<T> {
    deadline: Instant,
    result: T,
}

impl<T> Provisional<T> {
    fn after(time: Duration, result: T) -> Self {
        Self { deadline: Instant::now() + time, result }
    }
}

impl Node {
    /// Creates a node over real UDP.
    pub(crate) fn new(key: Keypair, setup: Setup, observer: Box<dyn Observer>) -> Result<Self, NodeError> {
        let coordinators = setup.config.coordinators.clone();
        Ok(Self::with_swarm(swarm::new(key, setup)?, &coordinators, observer))
    }

    /// Creates a node over another network, which tokio's clock drives.
    pub(crate) fn with_network(
        key: Keypair,
        config: Config,
        network: Arc<dyn Network>,
        observer: Box<dyn Observer>,
    ) -> Result<Self, NodeError> {
        let coordinators = config.coordinators.clone();
        let swarm = swarm::with_io(key, config, network, libp2p_punch::io::Runtime::tokio())?;
        Ok(Self::with_swarm(swarm, &coordinators, observer))
    }

    fn with_swarm(built: BuiltSwarm, coordinators: &[Multiaddr], observer: Box<dyn Observer>) -> Self {
        let coordinators = coordinators.iter().filter_map(peer_of);
        let behaviour = built.swarm.behaviour();
        let metrics = NodeMetrics::new(&behaviour.punch, Readiness::new(!behaviour.relay.is_enabled()));
        Self {
            swarm: built.swarm,
            stats: built.stats,
            observer,
            metrics,
            events: VecDeque::new(),
            registrations: coordinators.map(|peer| (peer, Registration::Pending)).collect(),
            selected_paths: HashMap::new(),
            session_durations: HashMap::new(),
            incoming: HashMap::new(),
            unreported: HashMap::new(),
            echoes: HashMap::new(),
            dial: None,
        }
    }

    /// Returns true if there is a connection to the peer, direct or relayed.
    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        self.swarm.is_connected(peer)
    }

    /// Returns the metrics of this node, and its readiness.
    pub(crate) fn monitor(&self) -> Monitor {
        self.metrics.monitor()
    }

    /// Begins to listen on all of `addresses`.
    pub(crate) fn listen_on(&mut self, addresses: &[Multiaddr]) -> Result<(), NodeError> {
        for address in addresses {
            self.swarm.listen_on(address.clone()).map_err(|error| NodeError::Listen {
                addresses: vec![address.clone()],
                cause: with_causes(&error),
            })?;
        }
        Ok(())
    }

    /// Begins to listen on free ports of all interfaces; one of the address families may be
    /// missing.
    pub(crate) fn listen_anywhere(&mut self) -> Result<(), NodeError> {
        match wildcards().map(|address| self.listen_on(&[address])) {
            [Err(error), Err(_)] => Err(error),
            _ => Ok(()),
        }
    }

    /// Uses the coordinators of `after` instead of those of `before`. The registrations with those
    /// that are in both stay, unless one has lost an address.
    pub(crate) fn change_coordinators(
        &mut self,
        before: &[Multiaddr],
        after: &[Multiaddr],
    ) -> Result<(), NodeError> {
        let (mut before, after) = (by_peer(before), by_peer(after));
        before.retain(|peer, addresses| {
            let stays = after.get(peer).is_some_and(|wanted| addresses.is_subset(wanted));
            if !stays {
                self.swarm.behaviour_mut().punch.remove_coordinator(peer);
                self.registrations.remove(peer);
            }
            stays
        });
        for (peer, addresses) in after {
            let known = before.get(&peer);
            for address in addresses.into_iter().filter(|it| known.is_none_or(|known| !known.contains(it))) {
                let error = |error| NodeError::Library(libp2p_punch::Error::Config(error));
                self.swarm.behaviour_mut().punch.add_coordinator(address.clone()).map_err(error)?;
            }
            self.registrations.entry(peer).or_insert(Registration::Pending);
        }
        Ok(())
    }

    /// Waits until every coordinator has answered; fails if none has accepted the registration.
    pub(crate) async fn register(&mut self) -> Result<(), NodeError> {
        let mut deadline = Instant::now() + REGISTRATION_TIMEOUT;
        while self.registrations.values().any(|state| *state == Registration::Pending) {
            match timeout_at(deadline, self.next()).await {
                Ok(Ok(NodeEvent::Registered { .. })) => {
                    deadline = deadline.min(Instant::now() + OTHER_COORDINATORS_TIMEOUT);
                }
                Ok(Ok(NodeEvent::ListenFailed { addresses, cause })) => {
                    return Err(NodeError::Listen { addresses, cause });
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        self.registration_failure(REGISTRATION_TIMEOUT).map_or(Ok(()), Err)
    }

    /// Waits until a coordinator has accepted the registration. The library asks them again and
    /// again.
    pub(crate) async fn registered(&mut self) -> Result<(), NodeError> {
        while !self.is_registered() {
            if let NodeEvent::ListenFailed { addresses, cause } = self.next().await? {
                return Err(NodeError::Listen { addresses, cause });
            }
        }
        Ok(())
    }

    fn is_registered(&self) -> bool {
        self.registrations.values().any(|state| *state == Registration::Accepted)
    }

    /// Returns why no coordinator has accepted the registration after this time, unless one has.
    pub(crate) fn registration_failure(&self, waited: Duration) -> Option<NodeError> {
        if self.is_registered() {
            return None;
        }
        let answers = self.registrations.iter().map(|(peer, state)| match state {
            Registration::Failed(message) => (*peer, message.clone()),
            _ => (*peer, format!("it did not answer within {} s", waited.as_secs_f64())),
        });
        Some(NodeError::Registration(answers.collect()))
    }

    /// Connects to a peer. The result is a relayed connection if traversal has failed or takes its
    /// time.
    pub(crate) async fn connect(&mut self, peer: PeerId) -> Result<Connection, DialFailure> {
        let opts = DialOpts::peer_id(peer).build();
        self.dial = Some(RequestedDial { peer, since: Instant::now(), id: opts.connection_id() });
        self.swarm.dial(opts).map_err(|error| DialFailure::of_dial(&error))?;
        // The session knows its reason best, but the wait ends with the dial: a relay may still
        // help.
        let mut session_failure: Option<DialFailure> = None;
        let mut dial_failure: Option<Provisional<DialFailure>> = None;
        let mut relayed: Option<Provisional<Connection>> = None;
        loop {
            let event = tokio::select! {
                event = self.next() => event?,
                failure = expired(&mut dial_failure) => return Err(failure),
                connection = expired(&mut relayed) => return Ok(connection),
            };
            match event {
                NodeEvent::Connected(connection) if connection.peer == peer => {
                    let has_failed = session_failure.is_some() || dial_failure.is_some();
                    if !connection.is_relayed || has_failed {
                        return Ok(connection);
                    }
                    relayed = Some(Provisional::after(DIRECT_TIMEOUT, connection));
                }
                NodeEvent::SessionFailed { peer: failed, reason, .. } if failed == peer => {
                    if let Some(relayed) = relayed {
                        return Ok(relayed.result);
                    }
                    let failure = DialFailure::Session(reason);
                    if dial_failure.is_some() {
                        return Err(failure);
                    }
                    session_failure = Some(failure);
                }
                NodeEvent::DialFailed { peer: failed, error } if failed == peer => {
                    if let Some(relayed) = relayed {
                        return Ok(relayed.result);
                    }
                    if let Some(failure) = session_failure {
                        return Err(failure);
                    }
                    let failure = DialFailure::of_dial(&error);
                    dial_failure = Some(Provisional::after(SESSION_REASON_TIMEOUT, failure));
                }
                _ => {}
            }
        }
    }

    /// Sends `bytes` bytes, waits for them to come back, and returns the round-trip time.
    pub(crate) async fn echo(&mut self, peer: PeerId, bytes: usize) -> Result<Duration, DialFailure> {
        let sent = Instant::now();
        let ours = self.swarm.behaviour_mut().echo.send_request(&peer, vec![0x70; bytes]);
        self.echoes.insert(ours, sent);
        loop {
            match self.next().await? {
                NodeEvent::Echoed { request, rtt, .. } if request == ours => return Ok(rtt),
                NodeEvent::EchoFailed { request, message } if request == ours => {
                    return Err(DialFailure::NoEcho(message));
                }
                _ => {}
            }
        }
    }

    /// Serves peers until the deadline.
    pub(crate) async fn run_until(&mut self, deadline: Instant) -> Result<(), NodeError> {
        while let Ok(event) = timeout_at(deadline, self.next()).await {
            event?;
        }
        Ok(())
    }

    /// Serves peers until the node cannot go on.
    pub(crate) async fn run(&mut self) -> NodeError {
        loop {
            match self.next().await {
                Ok(NodeEvent::ListenFailed { addresses, cause }) => {
                    return NodeError::Listen { addresses, cause };
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// Closes all connections, so that no peer has to wait for a time-out.
    pub(crate) async fn close(mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error means that the peer is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        // A peer that does not hear the end times out.
        let _ = timeout(CLOSE_TIMEOUT, closed).await;
        if let Some(mappings) = self.swarm.behaviour_mut().port_mapping.as_mut() {
            mappings.close().await;
        }
    }

    /// Drives the swarm to the next event, and shows the event to the observer.
    pub(crate) async fn next(&mut self) -> Result<NodeEvent, NodeError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                self.observer.observe(&event).map_err(NodeError::Observer)?;
                return Ok(event);
            }
            let event = self.swarm.select_next_some().await;
            self.on_swarm_event(event);
        }
    }

    fn emit(&mut self, event: NodeEvent) {
        self.events.push_back(event);
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        self.metrics.record_swarm(&event);
        match event {
            // A relay listens on circuit addresses; the event `Reserved` reports those.
            SwarmEvent::NewListenAddr { address, .. } if !is_circuit(&address) => {
                if self.swarm.behaviour().relay.is_enabled() {
                    // A coordinator's addresses are reachable by configuration. Relays name them.
                    self.swarm.add_external_address(address.clone());
                }
                let address = match address.iter().last() {
                    Some(Protocol::P2p(_)) => address,
                    _ => address.with(Protocol::P2p(*self.swarm.local_peer_id())),
                };
                self.metrics.readiness().set_listening();
                self.emit(NodeEvent::Listening { address });
            }
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. }
                if addresses.iter().any(|address| !is_circuit(address)) =>
            {
                self.emit(NodeEvent::ListenFailed { addresses, cause: with_causes(&error) });
            }
            SwarmEvent::IncomingConnection { connection_id, .. } => {
                self.incoming.insert(connection_id, Instant::now());
            }
            SwarmEvent::IncomingConnectionError { connection_id, .. } => {
                self.incoming.remove(&connection_id);
            }
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, endpoint, established_in, ..
            } => {
                let since = self.incoming.remove(&connection_id);
                let session = self.session_durations.remove(&peer_id);
                let elapsed = match self.dial {
                    Some(dial) if dial.peer == peer_id => dial.since.elapsed(),
                    _ => session.unwrap_or_else(|| since.map_or(established_in, |since| since.elapsed())),
                };
                self.on_connected(peer_id, &endpoint, elapsed);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.selected_paths.remove(&peer_id);
                self.session_durations.remove(&peer_id);
                self.unreported.remove(&peer_id);
                self.emit(NodeEvent::Disconnected { peer: peer_id });
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), connection_id, error } => {
                self.on_dial_error(peer, connection_id, error);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Punch(event)) => self.on_library_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::PortMapping(event)) => {
                self.metrics.record_port_mapping(&event);
                self.emit(NodeEvent::PortMapping(event));
            }
            SwarmEvent::Behaviour(BehaviourEvent::Echo(event)) => self.on_echo_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Relay(event)) => self.metrics.record_relay(&event),
            _ => {}
        }
    }

    fn on_dial_error(&mut self, peer: PeerId, id: ConnectionId, error: DialError) {
        if let Some(state @ (Registration::Pending | Registration::Failed(_))) =
            self.registrations.get_mut(&peer)
        {
            *state = Registration::Failed(describe_dial_error(&error));
            self.emit(NodeEvent::RegistrationFailed { coordinator: peer, reason: None });
            return;
        }
        // The library dials over relays as well; those dials do not end the one that was asked for.
        if self.dial.is_none_or(|dial| dial.peer != peer || dial.id == id) {
            self.emit(NodeEvent::DialFailed { peer, error });
        }
    }

    /// Reports a connection, or defers the report until the remote address of its path is known.
    fn on_connected(&mut self, peer: PeerId, endpoint: &ConnectedPoint, elapsed: Duration) {
        if self.registrations.contains_key(&peer) {
            return;
        }
        let is_relayed = endpoint.is_relayed();
        let path = self.selected_paths.get(&peer).filter(|_| !is_relayed).copied().map(udp_address);
        let stats = self.stats.of_peer(&peer).pop().filter(|_| !is_relayed);
        let origin = stats.as_ref().map(|stats| stats.through);
        // The address of the endpoint may be the one that the library offered for the dial. The
        // transport knows the real one.
        let address = match endpoint {
            ConnectedPoint::Listener { local_addr, .. } if is_relayed => Some(local_addr.clone()),
            _ if is_relayed => Some(endpoint.get_remote_address().clone()),
            _ => stats.and_then(|stats| stats.remote),
        };
        match path.or_else(|| udp_part(&address?)) {
            Some(remote) => {
                self.emit(NodeEvent::Connected(Connection { peer, is_relayed, origin, remote, elapsed }));
            }
            None => {
                self.unreported.insert(peer, elapsed);
            }
        }
    }

    /// Notes the remote address of the selected path, and reports the connection that waited for
    /// it.
    fn on_path(&mut self, peer: PeerId, path: Path) {
        self.selected_paths.insert(peer, path.remote);
        if let Some(elapsed) = self.unreported.remove(&peer) {
            let remote = udp_address(path.remote);
            let origin = self.stats.of_peer(&peer).last().map(|stats| stats.through);
            self.emit(NodeEvent::Connected(Connection { peer, is_relayed: false, origin, remote, elapsed }));
        }
    }

    fn on_library_event(&mut self, event: Event) {
        self.metrics.record(&event);
        match event {
            Event::Registration(RegistrationEvent::Accepted { coordinator, .. }) => {
                self.metrics.readiness().set_registered(true);
                let before = self.registrations.insert(coordinator, Registration::Accepted);
                if before != Some(Registration::Accepted) {
                    self.emit(NodeEvent::Registered { coordinator });
                }
            }
            Event::Registration(RegistrationEvent::Rejected { coordinator, reason, .. }) => {
                self.registrations.insert(coordinator, Registration::Failed(reason.to_string()));
                self.emit(NodeEvent::RegistrationFailed { coordinator, reason: Some(reason) });
            }
            Event::Registration(RegistrationEvent::Status(RegistrationStatus::Partial {
                registered,
                configured,
            })) => {
                tracing::warn!(registered, configured, "only a minority of the coordinators knows us");
            }
            Event::Registration(RegistrationEvent::Status(RegistrationStatus::None { configured })) => {
                self.metrics.readiness().set_registered(false);
                tracing::error!(configured, "no coordinator knows us");
            }
            Event::Nat(NatEvent::Report(report)) => self.emit(NodeEvent::Nat(report)),
            Event::Session(SessionEvent::PathSelected { peer, path, .. }) => {
                self.emit(NodeEvent::Traversal(event));
                self.on_path(peer, path);
            }
            Event::Session(SessionEvent::Connected { peer, path, elapsed, .. }) => {
                self.session_durations.insert(peer, elapsed);
                self.on_path(peer, path);
            }
            Event::Session(SessionEvent::Failed { peer, reason, .. }) => {
                let is_requested = self.dial.is_some_and(|dial| dial.peer == peer);
                let is_connected = self.swarm.is_connected(&peer);
                self.emit(NodeEvent::SessionFailed { peer, reason, is_requested, is_connected });
            }
            other => self.emit(NodeEvent::Traversal(other)),
        }
    }

    fn on_echo_event(&mut self, event: EchoEvent<Vec<u8>, Vec<u8>>) {
        match event {
            EchoEvent::Message { message: Message::Request { request, channel, .. }, .. } => {
                // An error means that the peer has gone away meanwhile.
                let _ = self.swarm.behaviour_mut().echo.send_response(channel, request);
            }
            EchoEvent::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(sent) = self.echoes.remove(&request_id) {
                    let (request, bytes, rtt) = (request_id, response.len(), sent.elapsed());
                    self.emit(NodeEvent::Echoed { request, bytes, rtt });
                }
            }
            EchoEvent::OutboundFailure { request_id, error, .. } => {
                self.echoes.remove(&request_id);
                self.emit(NodeEvent::EchoFailed { request: request_id, message: error.to_string() });
            }
            EchoEvent::InboundFailure { .. } | EchoEvent::ResponseSent { .. } => {}
        }
    }
}

/// Returns the addresses of each coordinator.
fn by_peer(coordinators: &[Multiaddr]) -> BTreeMap<PeerId, BTreeSet<&Multiaddr>> {
    let mut addresses = BTreeMap::<_, BTreeSet<_>>::new();
    for address in coordinators {
        if let Some(peer) = peer_of(address) {
            addresses.entry(peer).or_default().insert(address);
        }
    }
    addresses
}

/// Waits for the deadline of a provisional result; never returns without one.
async fn expired<T>(provisional: &mut Option<Provisional<T>>) -> T {
    if let Some(Provisional { deadline, .. }) = provisional {
        sleep_until(*deadline).await;
    }
    match provisional.take() {
        Some(Provisional { result, .. }) => result,
        None => pending().await,
    }
}
