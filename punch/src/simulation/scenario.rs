//! The scenario: three hosts, the paths between them, and the exchange between dialer and listener.

use std::{net::Ipv4Addr, slice, sync::Arc, time::Duration};

use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use libp2p_punch::config::{Config, Role};
use libp2p_punch_sim::{Host, Link, World};
use tokio::{
    runtime,
    sync::oneshot,
    time::{Instant, timeout},
};

use super::nat_spec::NatSpec;
use crate::{
    exit::Failure,
    node::{DialFailure, Ignore, Node, NodeError, Observer},
};

/// Address of the coordinator.
pub(crate) const COORDINATOR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Addresses of the dialer.
pub(crate) const DIALER: HostAddresses = HostAddresses {
    public: Ipv4Addr::new(198, 51, 100, 10),
    private: Ipv4Addr::new(192, 168, 1, 2),
    between: Ipv4Addr::new(100, 64, 1, 2),
};
/// Addresses of the listener.
pub(crate) const LISTENER: HostAddresses = HostAddresses {
    public: Ipv4Addr::new(192, 0, 2, 20),
    private: Ipv4Addr::new(10, 0, 0, 2),
    between: Ipv4Addr::new(100, 64, 2, 2),
};
/// Length of the transfer, in bytes for each direction.
pub(crate) const TRANSFER_LENGTH: usize = 1 << 20;

/// UDP port of all three peers.
const PORT: u16 = 4001;
/// Length of the ping, in bytes for each direction.
const PING_LENGTH: usize = 64;
/// Simulated time between the registrations and the dial.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// Addresses of a peer's host and of the NATs before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostAddresses {
    /// Address on the internet: of the host itself, or of the outermost NAT.
    pub(crate) public: Ipv4Addr,
    /// Address of the host behind a NAT.
    pub(crate) private: Ipv4Addr,
    /// Address of the inner NAT of two.
    pub(crate) between: Ipv4Addr,
}

impl HostAddresses {
    /// Returns true if the address is one of these.
    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        [self.public, self.private, self.between].contains(&address)
    }
}

/// Round-trip times between the three peers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RoundTrips {
    pub(crate) dialer_coordinator: Duration,
    pub(crate) listener_coordinator: Duration,
    pub(crate) dialer_listener: Duration,
}

impl RoundTrips {
    /// The same time between any two peers.
    pub(crate) fn all(time: Duration) -> Self {
        Self { dialer_coordinator: time, listener_coordinator: time, dialer_listener: time }
    }

    /// Least time to connect through a third party: half of the three round trips.
    pub(crate) fn bound(&self) -> Duration {
        (self.dialer_coordinator + self.listener_coordinator + self.dialer_listener) / 2
    }
}

/// Description of the network.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// NATs of the dialer.
    pub(crate) dialer: NatSpec,
    /// NATs of the listener.
    pub(crate) listener: NatSpec,
    pub(crate) round_trips: RoundTrips,
    /// Loss on the path between any two peers, in percent.
    pub(crate) loss: f64,
}

/// Keys of the three peers.
pub(crate) struct PeerKeys {
    pub(crate) coordinator: Keypair,
    pub(crate) listener: Keypair,
    pub(crate) dialer: Keypair,
}

impl PeerKeys {
    /// Generates new keys.
    pub(crate) fn generate() -> Self {
        Self {
            coordinator: Keypair::generate_ed25519(),
            listener: Keypair::generate_ed25519(),
            dialer: Keypair::generate_ed25519(),
        }
    }
}

/// Observers of the two peers. The coordinator has none: the peers report the same events.
pub(crate) struct PeerObservers {
    pub(crate) listener: Box<dyn Observer>,
    pub(crate) dialer: Box<dyn Observer>,
}

/// Times of a successful exchange.
pub(crate) struct Measurement {
    pub(crate) is_relayed: bool,
    /// Time to connect.
    pub(crate) elapsed: Duration,
    /// Round-trip time of a short echo.
    pub(crate) ping: Duration,
    /// Time of an echo of [`TRANSFER_LENGTH`] bytes.
    pub(crate) transfer: Duration,
}

/// Hosts of the three peers.
struct Hosts {
    coordinator: Arc<Host>,
    listener: Arc<Host>,
    dialer: Arc<Host>,
}

/// A dialer that is registered, and the listener that it can ask for.
pub(crate) struct ReadyDialer {
    node: Node,
    listener: PeerId,
}

impl Scenario {
    /// Runs the exchange once, within `limit` of simulated time for the dial.
    pub(crate) async fn measure(&self, seed: u64, limit: Duration) -> Result<Measurement, DialFailure> {
        let observers = PeerObservers { listener: Box::new(Ignore), dialer: Box::new(Ignore) };
        let mut dialer = self.start(&World::new(seed), PeerKeys::generate(), observers).await?;
        dialer.exchange(limit).await
    }

    /// Starts coordinator and listener as tasks, and returns the dialer. Both peers are registered.
    pub(crate) async fn start(
        &self,
        world: &World,
        keys: PeerKeys,
        observers: PeerObservers,
    ) -> Result<ReadyDialer, NodeError> {
        let hosts = self.hosts(world);
        let listen = Multiaddr::from(COORDINATOR).with(Protocol::Udp(PORT)).with(Protocol::QuicV1);
        let coordinator_id = keys.coordinator.public().to_peer_id();
        let listener_id = keys.listener.public().to_peer_id();

        let mut config = Config::default();
        config.role = Role::Server;
        let mut coordinator =
            Node::with_network(keys.coordinator, config, hosts.coordinator, Box::new(Ignore))?;
        coordinator.listen_on(slice::from_ref(&listen))?;
        tokio::spawn(async move { coordinator.run().await });

        let coordinators = vec![listen.with(Protocol::P2p(coordinator_id))];
        let mut config = Config::default();
        config.role = Role::Client;
        config.coordinators = coordinators;
        let mut listener =
            Node::with_network(keys.listener, config.clone(), hosts.listener, observers.listener)?;
        listener.listen_on(&[wildcard()])?;
        let (sender, registered) = oneshot::channel();
        tokio::spawn(async move {
            let result = listener.register().await;
            let is_registered = result.is_ok();
            // The receiver is gone only if the scenario has ended.
            if sender.send(result).is_ok() && is_registered {
                listener.run().await;
            }
        });
        let mut dialer = Node::with_network(keys.dialer, config, hosts.dialer, observers.dialer)?;
        dialer.listen_on(&[wildcard()])?;
        dialer.register().await?;
        registered.await.map_err(|_| NodeError::Build("the listener ended".into()))??;
        // The work that began with the registrations ends before the dial.
        dialer.run_until(Instant::now() + SETTLE_TIME).await?;
        Ok(ReadyDialer { node: dialer, listener: listener_id })
    }

    fn hosts(&self, world: &World) -> Hosts {
        let coordinator = world.public_host(COORDINATOR);
        // Every path crosses two links.
        let link = Link { loss: 1.0 - (1.0 - self.loss / 100.0).sqrt(), ..Link::default() };
        world.set_link(&coordinator, link);
        let host = |spec: &NatSpec, at: HostAddresses| {
            let host = match spec {
                NatSpec::Public => world.public_host(at.public),
                NatSpec::Single(nat) => world.nat(nat.clone(), at.public).host(at.private),
                NatSpec::Double(nat) => {
                    let outer = world.nat(nat.clone(), at.public);
                    outer.nat(nat.clone(), at.between).host(at.private)
                }
            };
            world.set_link(&host, link);
            host
        };
        let dialer = host(&self.dialer, DIALER);
        let listener = host(&self.listener, LISTENER);
        world.set_path(&dialer, &coordinator, self.round_trips.dialer_coordinator / 2);
        world.set_path(&listener, &coordinator, self.round_trips.listener_coordinator / 2);
        world.set_path(&dialer, &listener, self.round_trips.dialer_listener / 2);
        Hosts { coordinator, listener, dialer }
    }
}

impl ReadyDialer {
    /// Connects to the listener and sends a ping and a transfer, all within `limit`.
    pub(crate) async fn exchange(&mut self, limit: Duration) -> Result<Measurement, DialFailure> {
        timeout(limit, self.connect_and_echo()).await.unwrap_or(Err(DialFailure::Timeout(limit)))
    }

    async fn connect_and_echo(&mut self) -> Result<Measurement, DialFailure> {
        let started = Instant::now();
        let connection = self.node.connect(self.listener).await?;
        let elapsed = started.elapsed();
        let ping = self.node.echo(self.listener, PING_LENGTH).await?;
        let transfer = self.node.echo(self.listener, TRANSFER_LENGTH).await?;
        Ok(Measurement { is_relayed: connection.is_relayed, elapsed, ping, transfer })
    }
}

fn wildcard() -> Multiaddr {
    Multiaddr::from(Ipv4Addr::UNSPECIFIED).with(Protocol::Udp(PORT)).with(Protocol::QuicV1)
}

/// Runs work on a clock that jumps to the next event.
pub(crate) fn run_in_simulated_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    Ok(runtime.block_on(work))
}
