//! One node: a whole swarm, as the program of an operator would run it, and a task that drives it.

use std::time::Duration;

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, autonat, identify,
    identity::Keypair,
    kad::{self, store::MemoryStore},
    multiaddr::Protocol,
    noise, relay,
    swarm::{
        ConnectionId, NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    yamux,
};
use libp2p_punch::{
    Config, Event,
    event::{Phase, SessionEvent, SessionRole},
    io::Runtime,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::population::Site;
use crate::exit::Failure;

/// UDP port of every node.
const PORT: u16 = 4001;
/// Time after which a dial has failed.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for which a relayed connection may become direct.
const UPGRADE_TIME: Duration = Duration::from_secs(30);
/// Dials of one node that wait for its task.
const MAX_ORDERS: usize = 64;

#[derive(NetworkBehaviour)]
struct Behaviour {
    kad: libp2p_punch::kad::Behaviour<MemoryStore>,
    punch: libp2p_punch::Behaviour,
    relay_client: relay::client::Behaviour,
    relay: relay::Behaviour,
    autonat_client: autonat::v2::client::Behaviour,
    autonat_server: autonat::v2::server::Behaviour,
    identify: identify::Behaviour,
}

/// Outcome of one dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dialed {
    /// The peers were connected before.
    Already,
    /// The first connection is direct.
    Direct {
        /// Time from the dial to the connection.
        elapsed: Duration,
        /// The part of it before the request that a coordinator answered.
        lookup: Duration,
    },
    /// The first connection is relayed.
    Relayed {
        /// Time from the dial to the relayed connection.
        elapsed: Duration,
        /// Time from the dial to a direct connection, if there was one within half a minute.
        direct: Option<Duration>,
    },
    /// There was no connection.
    Failed(String),
}

/// State of a node, for the outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// Coordinators that have registered the node.
    pub(super) registered: Vec<PeerId>,
    pub(super) is_coordinator: bool,
    /// Peers with which the node has a connection.
    pub(super) peers: usize,
    /// Requests that the node passed on for others.
    pub(super) forwarded: u64,
}

struct Order {
    peer: PeerId,
    reply: oneshot::Sender<Dialed>,
}

/// A node that runs. Dropped, it ends without a word to its peers, as a host that loses its power.
pub(super) struct Node {
    pub(super) peer: PeerId,
    pub(super) site: Site,
    status: watch::Receiver<Status>,
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl Node {
    /// Starts a node that knows one address of the network. The node that knows none is its first.
    pub(super) fn start(site: Site, seed: u64, bootstrap: Option<&Multiaddr>) -> Result<Self, Failure> {
        let mut swarm =
            swarm(&site, seed).map_err(|error| Failure::error(format!("cannot start a node: {error}")))?;
        let peer = *swarm.local_peer_id();
        match bootstrap.map(|address| (address, address.iter().last())) {
            Some((address, Some(Protocol::P2p(first)))) => {
                swarm.behaviour_mut().kad.add_address(&first, address.clone());
                swarm.behaviour_mut().kad.bootstrap().map_err(Failure::error)?;
            }
            // Somebody has to be there for the first ones, and that one's operator says where.
            _ => swarm.add_external_address(address(&site)),
        }
        let (orders, incoming) = mpsc::channel(MAX_ORDERS);
        let (sender, status) = watch::channel(Status::default());
        let task = tokio::spawn(Running { swarm, status: sender, dials: Vec::new() }.run(incoming));
        Ok(Self { peer, site, status, orders, task })
    }

    /// Returns the address at which others reach the node, if its host is public.
    pub(super) fn address(&self) -> Multiaddr {
        address(&self.site).with(Protocol::P2p(self.peer))
    }

    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until `count` coordinators have registered the node, or it coordinates itself.
    pub(super) async fn registered(&self, count: usize) {
        let mut status = self.status.clone();
        // The task of the node ends with this handle.
        let _ = status.wait_for(|status| status.is_coordinator || status.registered.len() >= count).await;
    }

    /// Dials a peer.
    pub(super) fn dial(&self, peer: PeerId) -> impl Future<Output = Dialed> + 'static {
        let orders = self.orders.clone();
        async move {
            let gone = || Dialed::Failed("the node has left the network".into());
            let (reply, answer) = oneshot::channel();
            if orders.send(Order { peer, reply }).await.is_err() {
                return gone();
            }
            answer.await.unwrap_or_else(|_| gone())
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn address(site: &Site) -> Multiaddr {
    Multiaddr::from(site.local).with(Protocol::Udp(PORT)).with(Protocol::QuicV1)
}

fn swarm(site: &Site, seed: u64) -> Result<Swarm<Behaviour>, Box<dyn std::error::Error>> {
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&seed.to_le_bytes());
    let keypair = Keypair::ed25519_from_bytes(secret)?;
    let peer = keypair.public().to_peer_id();
    let (transport, mut punch) =
        libp2p_punch::with_io(&keypair, Config::default(), site.host.clone(), Runtime::tokio())?;
    let kad = kad::Behaviour::new(peer, MemoryStore::new(peer));
    let mut kad = libp2p_punch::kad::Behaviour::new(kad, punch.coordinator_lookup());
    kad.set_mode(Some(kad::Mode::Client));
    let identify = identify::Config::new("/punch/1.0.0".to_owned(), keypair.public());
    let behaviour = |relay_client| Behaviour {
        kad,
        punch,
        relay_client,
        relay: relay::Behaviour::new(peer, relay::Config::default()),
        autonat_client: autonat::v2::client::Behaviour::default(),
        autonat_server: autonat::v2::server::Behaviour::default(),
        identify: identify::Behaviour::new(identify),
    };
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)?
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|_, relay_client| behaviour(relay_client))?
        .with_swarm_config(|config| config)
        .with_connection_timeout(DIAL_TIMEOUT)
        .build();
    swarm.listen_on(
        Multiaddr::from(std::net::Ipv4Addr::UNSPECIFIED).with(Protocol::Udp(PORT)).with(Protocol::QuicV1),
    )?;
    Ok(swarm)
}

/// A dial under way.
struct Dial {
    id: ConnectionId,
    peer: PeerId,
    begun: Instant,
    /// Start of the latest request to coordinators.
    asked: Option<Instant>,
    /// Time from the dial to the request that a coordinator answered.
    lookup: Option<Duration>,
    /// Time from the dial to a relayed connection.
    relayed: Option<Duration>,
    reply: oneshot::Sender<Dialed>,
}

impl Dial {
    fn deadline(&self) -> Option<Instant> {
        self.relayed.map(|relayed| self.begun + relayed + UPGRADE_TIME)
    }
}

struct Running {
    swarm: Swarm<Behaviour>,
    status: watch::Sender<Status>,
    dials: Vec<Dial>,
}

impl Running {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let deadline = self.dials.iter().filter_map(Dial::deadline).min();
            let far = deadline.unwrap_or_else(Instant::now);
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event),
                Some(order) = orders.recv() => self.dial(order),
                () = sleep_until(far), if deadline.is_some() => self.give_up_direct(),
            }
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) if info.protocols.contains(&kad::PROTOCOL_NAME) => {
                for address in info.listen_addrs {
                    self.swarm.behaviour_mut().kad.add_address(&peer_id, address);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Punch(event)) => self.handle_punch(&event),
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => {
                self.connected(peer_id, endpoint.is_relayed());
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                for dial in
                    self.dials.extract_if(.., |dial| dial.id == connection_id && dial.relayed.is_none())
                {
                    // Nobody waits any more if the run has ended.
                    let _ = dial.reply.send(Dialed::Failed(error.to_string()));
                }
            }
            _ => {}
        }
        self.tell();
    }

    fn handle_punch(&mut self, event: &Event) {
        let Event::Session(SessionEvent::Phase { peer, role: SessionRole::Initiator, to, .. }) = event else {
            return;
        };
        let Some(dial) = self.dials.iter_mut().find(|dial| dial.peer == *peer) else { return };
        match to {
            Phase::Coordination => dial.asked = Some(Instant::now()),
            Phase::Synchronization => {
                let lookup = dial.asked.map(|asked| asked - dial.begun);
                dial.lookup = dial.lookup.or(lookup);
            }
            _ => {}
        }
    }

    fn connected(&mut self, peer: PeerId, is_relayed: bool) {
        for dial in self.dials.iter_mut().filter(|dial| dial.peer == peer && is_relayed) {
            dial.relayed.get_or_insert(dial.begun.elapsed());
        }
        for dial in self.dials.extract_if(.., |dial| dial.peer == peer && !is_relayed) {
            let elapsed = dial.begun.elapsed();
            let outcome = match dial.relayed {
                Some(relayed) => Dialed::Relayed { elapsed: relayed, direct: Some(elapsed) },
                None => Dialed::Direct { elapsed, lookup: dial.lookup.unwrap_or_default() },
            };
            let _ = dial.reply.send(outcome);
        }
    }

    /// Ends the dials whose relayed connection has not become direct.
    fn give_up_direct(&mut self) {
        let now = Instant::now();
        for dial in self.dials.extract_if(.., |dial| dial.deadline().is_some_and(|at| at <= now)) {
            let elapsed = dial.relayed.unwrap_or_default();
            let _ = dial.reply.send(Dialed::Relayed { elapsed, direct: None });
        }
    }

    fn dial(&mut self, order: Order) {
        let Order { peer, reply } = order;
        if self.swarm.is_connected(&peer) {
            let _ = reply.send(Dialed::Already);
            return;
        }
        // Kademlia may be dialing the peer, too.
        let opts = DialOpts::peer_id(peer).condition(PeerCondition::Disconnected).build();
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => self.dials.push(Dial {
                id,
                peer,
                begun: Instant::now(),
                asked: None,
                lookup: None,
                relayed: None,
                reply,
            }),
            Err(error) => drop(reply.send(Dialed::Failed(error.to_string()))),
        }
    }

    /// Tells the outside of changes. A node serves the DHT while it coordinates. By itself,
    /// Kademlia would serve at the address of a relay, too, and everybody would connect to the
    /// hidden nodes.
    fn tell(&mut self) {
        let serves = self.swarm.behaviour().punch.is_coordinator();
        if serves != self.status.borrow().is_coordinator {
            let mode = if serves { kad::Mode::Server } else { kad::Mode::Client };
            self.swarm.behaviour_mut().kad.set_mode(Some(mode));
        }
        let punch = &self.swarm.behaviour().punch;
        let registered = punch.coordinators().into_iter().filter(|coordinator| coordinator.is_registered);
        let now = Status {
            registered: registered.map(|coordinator| coordinator.peer).collect(),
            is_coordinator: punch.is_coordinator(),
            peers: self.swarm.network_info().num_peers(),
            forwarded: punch.counters().protocol.requests_forwarded,
        };
        self.status.send_if_modified(|known| {
            *known != now && {
                *known = now;
                true
            }
        });
    }
}
