//! A swarm in a task of its own, with its state in a watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    core::{muxing::StreamMuxerBox, transport::Boxed},
    identify,
    identity::Keypair,
    multiaddr::Protocol,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    features::Remote,
    protocol::{PING, mounted},
    report::Line,
    serve, streams,
};

/// A libp2p transport of any kind, with its streams behind one type.
pub type BoxedTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// Interval longer than any test: nothing keeps an idle connection alive, or closes it.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// There is no libp2p-ping: it keeps one incoming stream a connection and drops it for the next, so
/// that its own pings and those of [`features`](crate::features) would end each other. Pings are
/// served as any other protocol.
#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    streams: streams::Behaviour,
}

/// State of a peer.
#[derive(Debug, Clone, Default)]
pub struct PeerState {
    /// Established connections.
    pub connections: usize,
    /// Its last identify message.
    pub identified: Option<identify::Info>,
}

/// State of the node.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Addresses that we listen on.
    pub listening: BTreeSet<Multiaddr>,
    /// Peers that were ever connected.
    pub peers: BTreeMap<PeerId, PeerState>,
}

enum Command {
    Listen(Multiaddr, oneshot::Sender<anyhow::Result<()>>),
    Dial(Multiaddr, oneshot::Sender<anyhow::Result<PeerId>>),
    Open(PeerId, Vec<StreamProtocol>, streams::Reply),
    Disconnect(PeerId),
    Report,
}

/// A running peer. It runs until the runtime ends.
pub struct Node {
    peer: PeerId,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
}

impl Node {
    /// Starts a peer on a transport. It serves what every peer serves, and listens nowhere yet.
    ///
    /// # Errors
    ///
    /// None that is expected: the swarm's builder wants one.
    pub fn start(transport: BoxedTransport, keypair: &Keypair, agent: &str) -> anyhow::Result<Self> {
        let mounted = serve::SERVED.iter().map(mounted).collect::<Result<Vec<_>, _>>()?;
        let (streams, incoming) = streams::Behaviour::new([&serve::SERVED[..], &mounted].concat());
        let identify = identify::Config::new("/interop/1.0.0".into(), keypair.public())
            .with_agent_version(agent.to_owned())
            .with_interval(NEVER);
        let behaviour = Behaviour { identify: identify::Behaviour::new(identify), streams };
        let swarm = SwarmBuilder::with_existing_identity(keypair.clone())
            .with_tokio()
            .with_other_transport(|_| transport)?
            .with_behaviour(|_| behaviour)?
            .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
            .build();
        let peer = *swarm.local_peer_id();
        let (commands, receiver) = mpsc::channel(8);
        let (sender, state) = watch::channel(State::default());
        tokio::spawn(Task { swarm, state: sender, dials: BTreeMap::new(), reports: false }.run(receiver));
        let closer = commands.clone();
        let disconnect = move |peer| {
            let commands = closer.clone();
            // An error means that the node has stopped, so no connection is left.
            async move { drop(commands.send(Command::Disconnect(peer)).await) }
        };
        tokio::spawn(serve::run(incoming, disconnect));
        Ok(Self { peer, commands, state })
    }

    /// Returns our identity.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Prints connections and identities of peers as lines from now on.
    pub fn report(&self) {
        // Full only if the task is gone or eight commands wait, and none was sent before.
        let _ = self.commands.try_send(Command::Report);
    }

    /// Listens, and returns the first address, with our identity at its end.
    ///
    /// # Errors
    ///
    /// If the transport cannot listen there.
    pub async fn listen(&mut self, address: Multiaddr) -> anyhow::Result<Multiaddr> {
        let (done, result) = oneshot::channel();
        self.commands.send(Command::Listen(address, done)).await?;
        result.await??;
        let state = self.state.wait_for(|state| !state.listening.is_empty()).await?;
        let address = state.listening.first().context("an address")?.clone();
        Ok(address.with(Protocol::P2p(self.peer)))
    }

    /// Every address that we listen on so far, without identity.
    pub fn addresses(&self) -> BTreeSet<Multiaddr> {
        self.state.borrow().listening.clone()
    }

    /// Waits until we listen on an address that `wanted` accepts.
    ///
    /// # Errors
    ///
    /// If the peer has stopped.
    pub async fn listening_on(&mut self, wanted: impl Fn(&Multiaddr) -> bool) -> anyhow::Result<Multiaddr> {
        let state = self.state.wait_for(|state| state.listening.iter().any(&wanted)).await?;
        state.listening.iter().find(|address| wanted(address)).cloned().context("an address")
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// If no connection could be made.
    pub async fn dial(&mut self, address: Multiaddr) -> anyhow::Result<PeerId> {
        let (done, result) = oneshot::channel();
        self.commands.send(Command::Dial(address, done)).await?;
        result.await?
    }

    /// Closes every connection with a peer.
    ///
    /// # Errors
    ///
    /// If the peer has stopped.
    pub async fn disconnect(&self, peer: PeerId) -> anyhow::Result<()> {
        Ok(self.commands.send(Command::Disconnect(peer)).await?)
    }

    /// Opens a stream, by the name that Kubo would mount it under where the remote does not know
    /// the protocol.
    ///
    /// # Errors
    ///
    /// If the remote does not speak the protocol, or is not connected.
    pub async fn open(&self, peer: PeerId, protocol: StreamProtocol) -> anyhow::Result<libp2p::Stream> {
        let names = vec![protocol.clone(), mounted(&protocol)?];
        let (done, result) = oneshot::channel();
        self.commands.send(Command::Open(peer, names, done)).await?;
        result.await.context("not connected")?.with_context(|| format!("opening {protocol}"))
    }

    /// Waits for something to become true of a peer.
    ///
    /// # Errors
    ///
    /// If it does not within `timeout`.
    pub async fn wait_for<T>(
        &mut self,
        peer: PeerId,
        timeout: Duration,
        pick: impl Fn(&PeerState) -> Option<T>,
    ) -> anyhow::Result<T> {
        let picked = |state: &State| state.peers.get(&peer).and_then(&pick);
        let found = self.state.wait_for(|state| picked(state).is_some());
        let state = tokio::time::timeout(timeout, found).await.map_err(|_| anyhow!("timed out"))??;
        picked(&state).context("lost in between")
    }
}

/// A peer that a [`Node`] is connected with.
pub struct Connected<'a> {
    /// The local node.
    pub node: &'a mut Node,
    /// The remote peer.
    pub peer: PeerId,
}

impl Remote for Connected<'_> {
    type Stream = libp2p::Stream;

    async fn open(&mut self, protocol: StreamProtocol) -> anyhow::Result<libp2p::Stream> {
        self.node.open(self.peer, protocol).await
    }

    async fn identify(&mut self, timeout: Duration) -> anyhow::Result<String> {
        let info = self.node.wait_for(self.peer, timeout, |state| state.identified.clone()).await?;
        ensure!(info.protocols.contains(&PING), "ping is not among its protocols");
        ensure!(info.public_key.to_peer_id() == self.peer, "the key is another peer's");
        Ok(format!("{}, sees us at {}", info.agent_version, info.observed_addr))
    }

    async fn disconnect(&mut self) -> anyhow::Result<()> {
        self.node.disconnect(self.peer).await
    }

    async fn gone(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        let gone = |state: &PeerState| (state.connections == 0).then_some(());
        Ok(self.node.wait_for(self.peer, timeout, gone).await.is_ok())
    }
}

struct Task {
    swarm: Swarm<Behaviour>,
    state: watch::Sender<State>,
    dials: BTreeMap<ConnectionId, oneshot::Sender<anyhow::Result<PeerId>>>,
    reports: bool,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Listen(address, done) => {
                // A receiver that is gone does not want to know; so also below.
                let _ = done.send(self.swarm.listen_on(address).map(drop).map_err(Into::into));
            }
            Command::Dial(address, done) => {
                let opts = DialOpts::from(address);
                let id = opts.connection_id();
                match self.swarm.dial(opts) {
                    Ok(()) => drop(self.dials.insert(id, done)),
                    Err(error) => drop(done.send(Err(error.into()))),
                }
            }
            Command::Open(peer, names, done) => {
                self.swarm.behaviour_mut().streams.open(peer, names, done);
            }
            // Fails if there is no connection, which is what was asked for.
            Command::Disconnect(peer) => drop(self.swarm.disconnect_peer_id(peer)),
            Command::Report => self.reports = true,
        }
    }

    fn print(&self, line: Line) {
        if self.reports {
            line.print();
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        tracing::debug!(?event);
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                self.state.send_modify(|state| {
                    state.listening.insert(address);
                });
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, .. } => {
                self.state.send_modify(|state| state.peers.entry(peer_id).or_default().connections += 1);
                self.print(Line::Connected { peer: peer_id.to_string() });
                if let Some(done) = self.dials.remove(&connection_id) {
                    let _ = done.send(Ok(peer_id));
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established, .. } => {
                let connections = num_established as usize;
                self.state
                    .send_modify(|state| state.peers.entry(peer_id).or_default().connections = connections);
                if connections == 0 {
                    self.print(Line::Closed { peer: peer_id.to_string() });
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(done) = self.dials.remove(&connection_id) {
                    let _ = done.send(Err(error.into()));
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => {
                self.print(Line::Identified { peer: peer_id.to_string(), agent: info.agent_version.clone() });
                self.state
                    .send_modify(|state| state.peers.entry(peer_id).or_default().identified = Some(info));
            }
            _ => {}
        }
    }
}
