//! The task of a node: drives the swarm, and carries out the commands of the handles.

mod attempts;
mod bootstrap;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p_core::{ConnectedPoint, Multiaddr, transport::ListenerId};
use libp2p_identity::PeerId;
use libp2p_kad::Mode;
use libp2p_punch::{
    Event as PunchEvent, NatEvent, Role, SessionEvent,
    behaviour::COORDINATOR_PROTOCOL_NAME,
    event::{FailureReason, SessionRole},
    nat::Report,
    transport::Stats,
};
use libp2p_swarm::{
    ConnectionError, ConnectionId, DialError, Stream, StreamProtocol, Swarm, SwarmEvent,
    dial_opts::{DialOpts, PeerCondition},
};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    attempts::{Attempts, Ended, Reply},
    bootstrap::Bootstrap,
};
use crate::{
    connection::{Connection, Ends},
    diagnostics::{self, Diagnostic},
    error::{ConnectError, innermost},
    event::{BACKLOG, Event, Present},
    local::{Local, is_circuit, with_peer},
    message::{self, Mailbox},
    status::{CloseReason, ConnectStep, ConnectionStatus, Route, StatusTable},
    streams::{self, InboundStream, OpenRequest},
    swarm::{Behaviour, BehaviourEvent},
    target::Target,
    tasks::Tasks,
};

/// Commands that wait for the task.
const MAX_COMMANDS: usize = 64;
/// Connections that wait to be accepted. Streams of further peers are reset.
const MAX_WAITING_CONNECTIONS: usize = 64;
/// Time for the first address of a listener. A machine without a network has none.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for connections to close at the end. A peer that does not hear the end times out.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Command of a handle.
pub(crate) enum Command {
    Listen {
        address: Multiaddr,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Enter the network: the node listens.
    Enter,
    Connect {
        target: Target,
        reply: oneshot::Sender<Result<Connection, ConnectError>>,
    },
    /// Connect for the node itself: the application does not hold the connection.
    Dial {
        peer: PeerId,
        reply: oneshot::Sender<Result<(), ConnectError>>,
    },
    Open {
        peer: PeerId,
        request: OpenRequest,
    },
    Disconnect {
        peer: PeerId,
    },
}

/// Arguments of [`Driver::new`].
pub(crate) struct Parameters {
    pub(crate) swarm: Swarm<Behaviour>,
    pub(crate) stats: Stats,
    pub(crate) protocol: StreamProtocol,
    pub(crate) role: Role,
    pub(crate) bootstrap: Vec<Multiaddr>,
    pub(crate) connect_timeout: Duration,
    pub(crate) mailbox: Mailbox,
    pub(crate) tasks: Tasks,
    /// For facts, if anybody asks for them.
    pub(crate) diagnostics: Option<broadcast::Sender<Diagnostic>>,
}

/// The ends of the task's channels that the handles hold.
pub(crate) struct Handles {
    pub(crate) peer: PeerId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) accepted: mpsc::Receiver<Connection>,
    pub(crate) events: broadcast::WeakSender<Event>,
    pub(crate) present: Present,
    pub(crate) expects_coordinators: bool,
}

/// State of the task.
pub(crate) struct Driver {
    swarm: Swarm<Behaviour>,
    stats: Stats,
    protocol: StreamProtocol,
    role: Role,
    bootstrap: Bootstrap,
    connect_timeout: Duration,
    mailbox: Mailbox,
    tasks: Tasks,
    incoming: mpsc::Receiver<Command>,
    /// For the connections, which do not keep the node running.
    commands: mpsc::WeakSender<Command>,
    accepted: mpsc::Sender<Connection>,
    events: broadcast::Sender<Event>,
    diagnostics: Option<broadcast::Sender<Diagnostic>>,
    local: watch::Sender<Local>,
    nat: watch::Sender<Option<Box<Report>>>,
    table: Arc<StatusTable>,
    /// Listeners whose first address is awaited.
    listening: Vec<Listening>,
    attempts: Attempts,
    peers: BTreeMap<PeerId, Peer>,
}

/// A listener without an address.
struct Listening {
    listener: ListenerId,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), String>>,
}

/// A peer with at least one connection.
struct Peer {
    since: Instant,
    /// Connections, oldest first.
    links: Vec<Link>,
    /// Latest round-trip time that ping measured.
    rtt: Option<Duration>,
    /// The connection that the application holds, or held.
    ends: Option<Ends>,
    /// The peer serves the DHT, or coordinates for others.
    is_server: bool,
    /// Task that delivers messages of the peer.
    delivery: Option<AbortHandle>,
    /// This node closes all connections.
    is_closing: bool,
}

struct Link {
    id: ConnectionId,
    is_relayed: bool,
    address: Multiaddr,
}

impl Driver {
    pub(crate) fn new(parameters: Parameters) -> (Self, Handles) {
        let Parameters { swarm, stats, protocol, role, bootstrap, .. } = parameters;
        let Parameters { connect_timeout, mailbox, tasks, diagnostics, .. } = parameters;
        let (commands, incoming) = mpsc::channel(MAX_COMMANDS);
        let (accepted, waiting) = mpsc::channel(MAX_WAITING_CONNECTIONS);
        let (local, known) = watch::channel(Local::default());
        let (nat, measured) = watch::channel(None);
        let (events, _) = broadcast::channel(BACKLOG);
        let table = Arc::new(StatusTable::default());
        let is_hidden = !matches!(role, Role::Server | Role::Bootstrap);
        let handles = Handles {
            peer: *swarm.local_peer_id(),
            commands: commands.clone(),
            accepted: waiting,
            events: events.downgrade(),
            present: Present { table: table.clone(), local: known, nat: measured },
            expects_coordinators: is_hidden && !bootstrap.is_empty(),
        };
        let driver = Self {
            swarm,
            stats,
            protocol,
            role,
            bootstrap: Bootstrap::new(bootstrap),
            connect_timeout,
            mailbox,
            tasks,
            incoming,
            commands: commands.downgrade(),
            accepted,
            events,
            diagnostics,
            local,
            nat,
            table,
            listening: Vec::new(),
            attempts: Attempts::default(),
            peers: BTreeMap::new(),
        };
        (driver, handles)
    }

    /// Runs until `stop` is cancelled, or until the last handle is gone.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let deadline = self.deadline();
            let at = deadline.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                command = self.incoming.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                () = sleep_until(at), if deadline.is_some() => self.on_deadline(),
            }
        }
        self.close().await;
    }

    fn deadline(&self) -> Option<Instant> {
        let listening = self.listening.iter().map(|listening| listening.deadline).min();
        [listening, self.attempts.deadline(), self.bootstrap.deadline()].into_iter().flatten().min()
    }

    fn on_deadline(&mut self) {
        let now = Instant::now();
        // A machine without a network listens as soon as it has one.
        for listening in self.listening.extract_if(.., |listening| listening.deadline <= now) {
            reply(listening.reply, Ok(()));
        }
        for Ended { peer, error } in self.attempts.expire(now, self.connect_timeout) {
            if !self.swarm.is_connected(&peer) {
                // Ends the dials.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            self.not_connected(peer, error);
        }
        if self.bootstrap.is_due(now) {
            for address in self.bootstrap.dial(now, self.is_alone()) {
                if let Err(error) = self.swarm.dial(address.clone()) {
                    tracing::debug!(%address, %error, "bootstrap address");
                }
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Listen { address, reply: to } => match self.swarm.listen_on(address) {
                Ok(listener) => {
                    let deadline = Instant::now() + LISTEN_TIMEOUT;
                    self.listening.push(Listening { listener, deadline, reply: to });
                }
                Err(error) => reply(to, Err(innermost(&error))),
            },
            Command::Enter => self.bootstrap.begin(Instant::now()),
            Command::Connect { target, reply } => self.connect(target, Reply::Connection(reply)),
            Command::Dial { peer, reply } => self.connect(peer.into(), Reply::Connected(reply)),
            Command::Open { peer, request } => self.swarm.behaviour_mut().streams.open(peer, request),
            Command::Disconnect { peer } => self.disconnect(peer),
        }
    }

    fn connect(&mut self, target: Target, to: Reply) {
        let Target { peer, addresses } = target;
        if peer == *self.swarm.local_peer_id() {
            return to.fail(ConnectError::DialSelf);
        }
        if self.peers.contains_key(&peer) {
            return self.connected(peer, to);
        }
        let is_new = !self.attempts.contains(&peer);
        let now = Instant::now();
        self.attempts.wait(peer, to, now + self.connect_timeout);
        if !is_new && addresses.is_empty() {
            return;
        }
        let may_ask_others = self.may_ask_others(&addresses);
        let (circuits, addresses): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_circuit);
        let names_nobody = circuits.is_empty() && addresses.is_empty();
        for circuit in circuits {
            // It names a coordinator. In the dial it would end the search for a direct path: a
            // relay that both know answers first.
            self.swarm.add_peer_address(peer, circuit);
        }
        // Kademlia may be dialing the peer, too.
        let dial = DialOpts::peer_id(peer).condition(PeerCondition::Disconnected);
        let dial = if may_ask_others {
            dial.addresses(addresses).extend_addresses_through_behaviour().build()
        } else if names_nobody {
            return self.fail(peer, ConnectError::NoAddresses);
        } else {
            // Nobody can coordinate: the addresses decide, and soon.
            dial.addresses(addresses).build()
        };
        let id = dial.connection_id();
        match self.swarm.dial(dial) {
            Ok(()) => {
                self.attempts.dialing(peer, id);
                if is_new {
                    let step = ConnectStep::Dialing;
                    self.set_status(peer, ConnectionStatus::Connecting { since: now, step });
                }
            }
            Err(error) if is_new => {
                let error = ConnectError::of_dial(peer, &error);
                self.fail(peer, error);
            }
            // The dial before this one may still succeed.
            Err(_) => {}
        }
    }

    /// Returns true if another node may help to reach a peer.
    fn may_ask_others(&self, addresses: &[Multiaddr]) -> bool {
        addresses.iter().any(is_circuit)
            || !self.bootstrap.is_empty()
            || self.swarm.network_info().num_peers() > 0
    }

    /// Ends an attempt that is under way.
    fn fail(&mut self, peer: PeerId, error: ConnectError) {
        if let Some(waiters) = self.attempts.end(&peer) {
            for waiter in waiters {
                waiter.fail(error.clone());
            }
            self.not_connected(peer, error);
        }
    }

    fn not_connected(&mut self, peer: PeerId, error: ConnectError) {
        if !self.peers.contains_key(&peer) {
            let reason = CloseReason::NotConnected(Box::new(error));
            self.set_status(peer, ConnectionStatus::Closed { since: Instant::now(), reason });
        }
    }

    /// Replies to a handle that waits for a peer, which is connected.
    fn connected(&mut self, peer: PeerId, to: Reply) {
        match to {
            Reply::Connection(to) => reply(to, self.connection(peer).ok_or(ConnectError::Shutdown)),
            Reply::Connected(to) => reply(to, Ok(())),
        }
    }

    /// Returns the connection to a connected peer: the one that the application holds, or a new
    /// handle.
    fn connection(&mut self, peer: PeerId) -> Option<Connection> {
        let state = self.peers.get_mut(&peer)?;
        if let Some(connection) = state.ends.as_ref().and_then(Ends::connection) {
            return Some(connection);
        }
        let (connection, ends) = Connection::new(
            peer,
            self.protocol.clone(),
            self.commands.clone(),
            self.table.clone(),
            self.stats.clone(),
        );
        self.swarm.behaviour_mut().streams.hold(peer, &ends.released);
        state.ends = Some(ends);
        Some(connection)
    }

    /// Hands the connection to a peer to the application, unless it holds it. Returns false if too
    /// many wait to be accepted.
    fn offer(&mut self, peer: PeerId) -> bool {
        let Some(state) = self.peers.get(&peer) else { return false };
        if state.ends.as_ref().and_then(Ends::connection).is_some() {
            return true;
        }
        let Ok(place) = self.accepted.clone().try_reserve_owned() else { return false };
        let Some(connection) = self.connection(peer) else { return false };
        place.send(connection);
        true
    }

    fn disconnect(&mut self, peer: PeerId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.is_closing = true;
            // An error means that no connection is left, which an event reports.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, num_established, .. } => {
                self.on_closed(peer_id, connection_id, cause.as_ref(), num_established);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error } => {
                self.diagnose(|| diagnostics::of_dial_error(peer_id, &error));
                if let Some(peer) = peer_id {
                    self.on_dial_error(peer, connection_id, &error);
                }
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                if matches!(self.role, Role::Server | Role::Bootstrap) && !is_circuit(&address) {
                    // The application says that others reach a server at its listen addresses.
                    self.swarm.add_external_address(address);
                }
                self.publish();
                for listening in self.listening.extract_if(.., |it| it.listener == listener_id) {
                    reply(listening.reply, Ok(()));
                }
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                let cause = reason.err().map_or_else(|| "the listener closed".to_owned(), |e| innermost(&e));
                // Relays listen at addresses over relays: these come and go.
                if !addresses.iter().any(is_circuit) {
                    self.emit(Event::ListenFailed { addresses, cause: cause.clone() });
                }
                for listening in self.listening.extract_if(.., |it| it.listener == listener_id) {
                    reply(listening.reply, Err(cause.clone()));
                }
                self.publish();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                if matches!(self.role, Role::Server | Role::Bootstrap) {
                    self.swarm.remove_external_address(&address);
                }
                self.publish();
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.publish();
            }
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Streams(streams::Event::Held { peer }) => self.on_held(peer),
            BehaviourEvent::Streams(streams::Event::Inbound { peer, stream }) => {
                self.on_stream(peer, stream);
            }
            BehaviourEvent::Streams(streams::Event::Moved { peer, connection, address }) => {
                let links = self.peers.get_mut(&peer).map(|state| state.links.iter_mut());
                for link in links.into_iter().flatten().filter(|link| link.id == connection) {
                    link.address = address.clone();
                }
                self.update_status(peer);
            }
            BehaviourEvent::Ping(libp2p_ping::Event { peer, result: Ok(rtt), .. }) => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.rtt = Some(rtt);
                    self.update_status(peer);
                }
            }
            BehaviourEvent::Identify(libp2p_identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, info);
            }
            BehaviourEvent::Punch(PunchEvent::Session(event)) => {
                self.on_session(&event);
                self.diagnose(|| Diagnostic::Session(event));
            }
            BehaviourEvent::Punch(PunchEvent::Registration(event)) => {
                self.publish();
                self.diagnose(|| Diagnostic::Registration(event));
            }
            BehaviourEvent::Punch(PunchEvent::Relay(event)) => self.diagnose(|| Diagnostic::Relay(event)),
            BehaviourEvent::Punch(PunchEvent::Nat(NatEvent::Report(report))) => {
                self.nat.send_replace(Some(report.clone()));
                self.emit(Event::Nat(report));
            }
            _ => {}
        }
    }

    fn on_identified(&mut self, peer: PeerId, info: libp2p_identify::Info) {
        let serves_dht = info.protocols.contains(&libp2p_kad::PROTOCOL_NAME);
        let coordinates = info.protocols.contains(&COORDINATOR_PROTOCOL_NAME);
        self.diagnose(|| Diagnostic::Identified { peer, coordinates });
        if let Some(state) = self.peers.get_mut(&peer) {
            state.is_server = serves_dht || coordinates;
        }
        if serves_dht {
            for address in info.listen_addrs {
                self.swarm.behaviour_mut().kad.add_address(&peer, address);
            }
        }
    }

    /// Returns true if no connected peer leads into the network.
    fn is_alone(&self) -> bool {
        !self.peers.values().any(|state| state.is_server)
    }

    /// The application of a peer holds a connection to this node.
    fn on_held(&mut self, peer: PeerId) {
        if !self.offer(peer) {
            tracing::debug!(%peer, "too many connections wait to be accepted");
        }
    }

    fn on_stream(&mut self, peer: PeerId, stream: InboundStream) {
        let InboundStream { protocol, stream } = stream;
        if protocol == message::PROTOCOL {
            return self.on_message_stream(peer, stream);
        }
        let is_offered = self.offer(peer);
        let ends = self.peers.get(&peer).and_then(|state| state.ends.as_ref());
        let incoming = ends.filter(|_| is_offered).map(|ends| &ends.incoming);
        if incoming.is_none_or(|incoming| incoming.try_send(stream).is_err()) {
            tracing::debug!(%peer, %protocol, "too many streams wait to be accepted: one is reset");
            self.emit(Event::StreamRefused { peer });
        }
    }

    /// A peer sends messages on a new stream. Its stream before that is over.
    fn on_message_stream(&mut self, peer: PeerId, stream: Stream) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let delivery = self.tasks.spawn(self.mailbox.clone().deliver(peer, stream));
        if let Some(former) = state.delivery.replace(delivery) {
            former.abort();
        }
    }

    fn on_session(&mut self, event: &SessionEvent) {
        match *event {
            SessionEvent::Phase { peer, role: SessionRole::Initiator, attempt, to, .. } => {
                if let ConnectionStatus::Connecting { since, .. } = self.table.get(&peer) {
                    let step = ConnectStep::Traversal { phase: to, attempt };
                    self.attempts.reached(&peer, to);
                    self.set_status(peer, ConnectionStatus::Connecting { since, step });
                }
            }
            SessionEvent::Failed { peer, role: SessionRole::Initiator, reason, .. } => {
                self.on_session_failure(peer, reason);
            }
            SessionEvent::PathSelected { peer, .. } | SessionEvent::Connected { peer, .. } => {
                self.update_status(peer);
            }
            _ => {}
        }
    }

    fn on_session_failure(&mut self, peer: PeerId, reason: FailureReason) {
        if self.attempts.session_failed(&peer, reason) {
            self.fail(peer, ConnectError::Traversal(reason));
        }
    }

    fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let address = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { local_addr, .. } if endpoint.is_relayed() => local_addr,
            ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr,
        };
        self.diagnose(|| Diagnostic::Connected { peer, address: address.clone() });
        let link = Link { id, is_relayed: endpoint.is_relayed(), address: address.clone() };
        let new = || Peer {
            since: Instant::now(),
            links: Vec::new(),
            rtt: None,
            ends: None,
            delivery: None,
            is_server: false,
            is_closing: false,
        };
        self.peers.entry(peer).or_insert_with(new).links.push(link);
        self.update_status(peer);
        for waiter in self.attempts.end(&peer).unwrap_or_default() {
            self.connected(peer, waiter);
        }
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId, cause: Option<&ConnectionError>, left: u32) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.links.retain(|link| link.id != id);
        if left > 0 {
            return self.update_status(peer);
        }
        let reason = if state.is_closing { CloseReason::Local } else { CloseReason::of(cause) };
        if let Some(state) = self.peers.remove(&peer)
            && let Some(ends) = state.ends
        {
            ends.closed.send_replace(Some(reason.clone()));
        }
        self.set_status(peer, ConnectionStatus::Closed { since: Instant::now(), reason });
        if self.is_alone() {
            self.bootstrap.retry(Instant::now());
        }
    }

    fn on_dial_error(&mut self, peer: PeerId, id: ConnectionId, error: &DialError) {
        let ended = self.attempts.dial_failed(&peer, id, ConnectError::of_dial(peer, error), Instant::now());
        if let Some(error) = ended {
            self.fail(peer, error);
        }
    }

    /// Reports the present state of the connections to a peer.
    fn update_status(&self, peer: PeerId) {
        let Some(state) = self.peers.get(&peer) else { return };
        let direct = state.links.iter().rev().find(|link| !link.is_relayed);
        let (route, address) = match direct {
            // The address of a session in the swarm is not a real one.
            Some(_) => {
                let newest = self.stats.of_peer(&peer).pop();
                (Route::Direct, newest.and_then(|stats| stats.remote))
            }
            None => (Route::Relayed, state.links.last().map(|link| link.address.clone())),
        };
        let status = ConnectionStatus::Connected { since: state.since, route, address, rtt: state.rtt };
        self.set_status(peer, status);
    }

    fn set_status(&self, peer: PeerId, status: ConnectionStatus) {
        if self.table.set(peer, status.clone()) {
            self.emit(Event::Connection { peer, status });
        }
    }

    /// Passes a fact on, if anybody asks for facts.
    fn diagnose(&self, fact: impl FnOnce() -> Diagnostic) {
        if let Some(diagnostics) = self.diagnostics.as_ref().filter(|it| it.receiver_count() > 0) {
            // An error means that the subscriber has gone meanwhile.
            let _ = diagnostics.send(fact());
        }
    }

    fn emit(&self, event: Event) {
        // An error means that nobody has subscribed.
        let _ = self.events.send(event);
    }

    /// Reports the addresses of this node. The node serves the DHT while it coordinates. By itself,
    /// Kademlia would serve at the address of a relay, too.
    fn publish(&mut self) {
        let serves = self.swarm.behaviour().punch.is_coordinator();
        let mode = if serves { Mode::Server } else { Mode::Client };
        if self.swarm.behaviour().kad.mode() != mode {
            self.swarm.behaviour_mut().kad.set_mode(Some(mode));
        }
        let mut coordinators = self.swarm.behaviour().punch.coordinators();
        coordinators.retain(|coordinator| coordinator.is_registered);
        let registered = coordinators.iter().map(|coordinator| coordinator.peer).collect();
        let coordinators = coordinators.into_iter().filter_map(|coordinator| {
            let address = coordinator.addresses.into_iter().find(|address| !is_circuit(address))?;
            Some(with_peer(address, coordinator.peer))
        });
        let local = Local {
            external: self.swarm.external_addresses().cloned().collect(),
            listening: self.swarm.listeners().cloned().collect(),
            coordinators: coordinators.collect(),
            registered,
        };
        let known = self.local.borrow().clone();
        if known == local {
            return;
        }
        let (addresses, registered) = (local.addresses(), local.registered.clone());
        let is_moved = known.addresses() != addresses;
        let is_known_to_others = known.registered != registered;
        self.local.send_replace(local);
        if is_moved {
            self.emit(Event::Addresses { addresses });
        }
        if is_known_to_others {
            self.emit(Event::Coordinators { registered });
        }
    }

    /// Closes all connections, so that no peer has to wait for a time-out.
    async fn close(mut self) {
        self.incoming.close();
        for (peer, waiters) in self.attempts.drain() {
            for waiter in waiters {
                waiter.fail(ConnectError::Shutdown);
            }
            self.not_connected(peer, ConnectError::Shutdown);
        }
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.disconnect(peer);
        }
        let closed = async {
            while self.swarm.network_info().num_peers() > 0 {
                let event = self.swarm.select_next_some().await;
                if let SwarmEvent::ConnectionClosed { .. } = event {
                    self.on_event(event);
                }
            }
        };
        // The connections that are left end with the swarm.
        let _ = timeout(CLOSE_TIMEOUT, closed).await;
        if let Some(mappings) = self.swarm.behaviour_mut().port_mapping.as_mut() {
            mappings.close().await;
        }
        for peer in std::mem::take(&mut self.peers).into_keys() {
            let reason = CloseReason::Local;
            self.set_status(peer, ConnectionStatus::Closed { since: Instant::now(), reason });
        }
        self.table.end();
    }
}

/// Replies to a handle. An error means that the handle does not wait any more.
fn reply<T>(to: oneshot::Sender<T>, value: T) {
    drop(to.send(value));
}
