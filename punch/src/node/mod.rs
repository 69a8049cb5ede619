//! A running peer: turns what its swarm says into lines on stdout and into the few things that the subcommands
//! wait for.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::ConnectedPoint,
    multiaddr::Protocol,
    request_response::{Event as EchoEvent, Message, OutboundRequestId},
    swarm::{ConnectionId, DialError, SwarmEvent, dial_opts::DialOpts},
};
use libp2p_punch::{
    config::Config,
    core::{
        Path,
        event::{Event, RegistrationStatus},
    },
    transport::{ConnectedThrough, Stats},
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    args::Common,
    exit::Failure,
    key, nat, reason,
    report::{self, Line, Report, short},
    swarm::{self, Behaviour, BehaviourEvent, Peer},
};

/// How long connections may take to close at the end.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long a coordinator may take to accept a registration, connection included.
const REGISTRATION: Duration = Duration::from_secs(10);
/// How long other coordinators are waited for when one has accepted.
const OTHERS: Duration = Duration::from_millis(500);

/// What a subcommand may wait for. Everything else is dealt with here.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A connection to a peer that is not a coordinator stands; it has been reported.
    Connected { peer: PeerId, relayed: bool },
    /// A dial ended without a connection.
    NotDialed { peer: PeerId, error: DialError },
    /// A session ended without a connection.
    NotPunched { peer: PeerId, reason: &'static str, message: String },
    /// A coordinator accepted us.
    Registered,
    /// A coordinator turned us down or cannot be reached.
    NotRegistered,
    /// What we sent came back.
    Echoed { request: OutboundRequestId, bytes: usize },
    /// What we sent did not come back.
    NotEchoed { request: OutboundRequestId, message: String },
    /// An address cannot be listened on, or no longer.
    NotListening { message: String },
    /// Nothing that anybody waits for.
    Nothing,
}

/// A swarm with its output.
pub(crate) struct Node {
    pub(crate) swarm: Swarm<Behaviour>,
    stats: Stats,
    pub(crate) report: Report,
    /// Each coordinator and, once it is settled, what became of our registration.
    coordinators: BTreeMap<PeerId, Option<Result<(), String>>>,
    /// Where the selected path to a peer ends.
    paths: HashMap<PeerId, SocketAddr>,
    /// How long the session took that leads to a connection which is not there yet.
    sessions: HashMap<PeerId, Duration>,
    /// When inbound connections began.
    incoming: HashMap<ConnectionId, Instant>,
    /// Connections whose path has not been told yet, and how long they took.
    unnamed: HashMap<PeerId, Duration>,
    /// What was last said of our NAT.
    nat: String,
    /// The peer that we want to reach.
    asked: Option<Asked>,
}

/// A dial of ours.
#[derive(Debug, Clone, Copy)]
struct Asked {
    peer: PeerId,
    since: Instant,
    dial: ConnectionId,
}

impl Node {
    /// A peer over real UDP.
    pub(crate) fn new(common: &Common, config: Config) -> Result<Self, Failure> {
        let key = key::load(common.key.as_deref())?;
        let coordinators = config.coordinators.clone();
        Ok(Self::with_swarm(swarm::new(key, config)?, &coordinators, Report::new(common.json)))
    }

    /// A peer that runs this swarm.
    pub(crate) fn with_swarm((swarm, stats): Peer, coordinators: &[Multiaddr], report: Report) -> Self {
        Self {
            swarm,
            stats,
            report,
            coordinators: coordinators.iter().filter_map(peer_of).map(|peer| (peer, None)).collect(),
            paths: HashMap::new(),
            sessions: HashMap::new(),
            incoming: HashMap::new(),
            unnamed: HashMap::new(),
            nat: String::new(),
            asked: None,
        }
    }

    /// Begins to listen on all of `addresses`.
    pub(crate) fn listen_on(&mut self, addresses: &[Multiaddr]) -> Result<(), Failure> {
        for address in addresses {
            self.swarm
                .listen_on(address.clone())
                .map_err(|error| Failure::error(format!("cannot listen on {address}: {}", chain(&error))))?;
        }
        Ok(())
    }

    /// Begins to listen on free ports of all interfaces; one of the address families may be missing.
    pub(crate) fn listen_anywhere(&mut self) -> Result<(), Failure> {
        let results = [[0; 4].into(), std::net::IpAddr::from([0; 16])]
            .map(|any| self.listen_on(&[Multiaddr::from(any).with(Protocol::Udp(0)).with(Protocol::QuicV1)]));
        match results {
            [Err(failure), Err(_)] => Err(failure),
            _ => Ok(()),
        }
    }

    /// Waits until every coordinator has accepted us or has not; fails if none has.
    pub(crate) async fn register(&mut self) -> Result<(), Failure> {
        let mut deadline = Instant::now() + REGISTRATION;
        while self.coordinators.values().any(Option::is_none) {
            match timeout_at(deadline, self.next()).await {
                Ok(Ok(Happening::Registered)) => deadline = deadline.min(Instant::now() + OTHERS),
                Ok(Ok(Happening::NotListening { message })) => return Err(Failure::error(message)),
                Ok(Ok(_)) => {}
                Ok(Err(failure)) => return Err(failure),
                Err(_) => break,
            }
        }
        if self.coordinators.values().any(|state| matches!(state, Some(Ok(())))) {
            return Ok(());
        }
        let states = self.coordinators.iter().map(|(peer, state)| match state {
            Some(Err(message)) => format!("{peer}: {message}"),
            _ => format!("{peer}: it did not answer within {} s", REGISTRATION.as_secs()),
        });
        let states = states.collect::<Vec<_>>().join("; ");
        Err(Failure::error(format!("no coordinator accepted the registration ({states})")))
    }

    /// Asks for a connection to a peer; the clock of its `connected` line starts now.
    pub(crate) fn ask_for(&mut self, peer: PeerId) -> Result<(), DialError> {
        let opts = DialOpts::peer_id(peer).build();
        self.asked = Some(Asked { peer, since: Instant::now(), dial: opts.connection_id() });
        self.swarm.dial(opts)
    }

    /// Closes all connections, so that no peer has to wait for a time-out.
    pub(crate) async fn leave(mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error says that the peer is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        // Whoever does not hear us go will time out.
        let _ = timeout(FAREWELL, closed).await;
    }

    /// Waits for the next event of the swarm and deals with it.
    pub(crate) async fn next(&mut self) -> Result<Happening, Failure> {
        match self.swarm.select_next_some().await {
            // What a relay listens on for us is no address of ours; `Reserved` tells of it.
            SwarmEvent::NewListenAddr { address, .. } if !is_circuit(&address) => {
                if self.swarm.behaviour().relay.is_enabled() {
                    // Whoever starts a coordinator says that its addresses can be reached. Relays name them.
                    self.swarm.add_external_address(address.clone());
                }
                let address = match address.iter().last() {
                    Some(Protocol::P2p(_)) => address,
                    _ => address.with(Protocol::P2p(*self.swarm.local_peer_id())),
                };
                self.report.line(&Line::Listening { address: &address })?;
            }
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. }
                if addresses.iter().any(|address| !is_circuit(address)) =>
            {
                let addresses: Vec<String> = addresses.iter().map(Multiaddr::to_string).collect();
                let message = format!("cannot listen on {}: {}", addresses.join(", "), chain(&error));
                return Ok(Happening::NotListening { message });
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
                let began = self.incoming.remove(&connection_id);
                let session = self.sessions.remove(&peer_id);
                let elapsed = match self.asked {
                    Some(asked) if asked.peer == peer_id => asked.since.elapsed(),
                    _ => session.unwrap_or_else(|| began.map_or(established_in, |began| began.elapsed())),
                };
                return self.connected(peer_id, &endpoint, elapsed);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.paths.remove(&peer_id);
                self.sessions.remove(&peer_id);
                self.unnamed.remove(&peer_id);
                self.report.note("closed", &format!("the connection to {}", short(&peer_id)))?;
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), connection_id, error } => {
                if let Some(state @ (None | Some(Err(_)))) = self.coordinators.get_mut(&peer) {
                    *state = Some(Err(reason::of_dial(&error)));
                    return Ok(Happening::NotRegistered);
                }
                // The library's own dials over relays come and go while the one that we asked for goes on.
                if self.asked.is_none_or(|asked| asked.peer != peer || asked.dial == connection_id) {
                    return Ok(Happening::NotDialed { peer, error });
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Punch(event)) => return self.punch_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Echo(event)) => return Ok(self.echo_event(event)),
            _ => {}
        }
        Ok(Happening::Nothing)
    }

    /// Reports a connection, or puts that off until it is known where it ends.
    fn connected(
        &mut self,
        peer: PeerId,
        endpoint: &ConnectedPoint,
        elapsed: Duration,
    ) -> Result<Happening, Failure> {
        if self.coordinators.contains_key(&peer) {
            return Ok(Happening::Nothing);
        }
        let relayed = endpoint.is_relayed();
        let path = self.paths.get(&peer).filter(|_| !relayed).copied().map(report::udp_address);
        let relay = match endpoint {
            ConnectedPoint::Listener { local_addr, .. } if relayed => local_addr,
            _ => endpoint.get_remote_address(),
        };
        match path.or_else(|| report::udp_part(relay)) {
            Some(remote) => {
                let through = self.through(peer).filter(|_| !relayed);
                self.report.line(&Line::Connected { peer, relayed, through, remote: &remote, elapsed })?;
                Ok(Happening::Connected { peer, relayed })
            }
            None => {
                self.unnamed.insert(peer, elapsed);
                Ok(Happening::Nothing)
            }
        }
    }

    fn punch_event(&mut self, event: Event) -> Result<Happening, Failure> {
        match event {
            Event::Registered { coordinator } => {
                let state = self.coordinators.insert(coordinator, Some(Ok(())));
                if state != Some(Some(Ok(()))) {
                    self.report.line(&Line::Registered { coordinator })?;
                }
                return Ok(Happening::Registered);
            }
            Event::RegistrationRejected { coordinator, reason } => {
                self.coordinators.insert(coordinator, Some(Err(reason.to_string())));
                self.report.note("rejected", &format!("by {coordinator}: {reason}"))?;
                return Ok(Happening::NotRegistered);
            }
            Event::Registration(RegistrationStatus::Partial { registered, configured }) => {
                tracing::warn!(registered, configured, "only a minority of the coordinators knows us");
            }
            Event::Registration(RegistrationStatus::None { configured }) => {
                tracing::error!(configured, "no coordinator knows us");
            }
            // Whoever has no coordinator of its own, but clients, learns little of itself.
            Event::Nat(report) => {
                let is_blocked = report.udp_blocked.as_ref().is_some_and(|finding| finding.value);
                let words = nat::words(&report);
                // New evidence for the same is no news to a person.
                let is_news = self.report.is_json() || words != self.nat;
                self.nat = words;
                if is_news && (report.socket.is_some() || is_blocked) {
                    self.report.line(&Line::Nat(&report))?;
                }
            }
            Event::Phase { peer, from, to, .. } => self.report.line(&Line::Phase { peer, from, to })?,
            Event::PathSelected { peer, path } => {
                self.report.note("selected", &format!("the path to {}", path.remote))?;
                return self.path_known(peer, path);
            }
            Event::Connected { peer, path, elapsed, .. } => {
                self.sessions.insert(peer, elapsed);
                return self.path_known(peer, path);
            }
            Event::Failed { peer, reason, .. } => {
                let (reason, message) = (reason::word(reason), reason.to_string());
                // A peer that is connected over a relay is tried again and again; that it failed is no news.
                let is_asked = self.asked.is_some_and(|asked| asked.peer == peer);
                if !is_asked && !self.swarm.is_connected(&peer) {
                    self.report.line(&Line::Failed { peer, reason, message: &message })?;
                }
                return Ok(Happening::NotPunched { peer, reason, message });
            }
            other => {
                if let Some((label, text)) = reason::describe(&other) {
                    self.report.note(label, &text)?;
                }
            }
        }
        Ok(Happening::Nothing)
    }

    /// Notes where the connection to a peer ends, and reports it if it waited for that.
    fn path_known(&mut self, peer: PeerId, path: Path) -> Result<Happening, Failure> {
        self.paths.insert(peer, path.remote);
        let Some(elapsed) = self.unnamed.remove(&peer) else { return Ok(Happening::Nothing) };
        let remote = report::udp_address(path.remote);
        let through = self.through(peer);
        self.report.line(&Line::Connected { peer, relayed: false, through, remote: &remote, elapsed })?;
        Ok(Happening::Connected { peer, relayed: false })
    }

    /// How the last direct connection to a peer came about.
    fn through(&self, peer: PeerId) -> Option<ConnectedThrough> {
        self.stats.of_peer(&peer).last().map(|stats| stats.through)
    }

    fn echo_event(&mut self, event: EchoEvent<Vec<u8>, Vec<u8>>) -> Happening {
        match event {
            EchoEvent::Message { message: Message::Request { request, channel, .. }, .. } => {
                // An error says that the peer has gone away meanwhile.
                let _ = self.swarm.behaviour_mut().echo.send_response(channel, request);
                Happening::Nothing
            }
            EchoEvent::Message { message: Message::Response { request_id, response }, .. } => {
                Happening::Echoed { request: request_id, bytes: response.len() }
            }
            EchoEvent::OutboundFailure { request_id, error, .. } => {
                Happening::NotEchoed { request: request_id, message: error.to_string() }
            }
            EchoEvent::InboundFailure { .. } | EchoEvent::ResponseSent { .. } => Happening::Nothing,
        }
    }
}

/// The peer at the end of an address.
fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// An error with its causes, where they say more.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
