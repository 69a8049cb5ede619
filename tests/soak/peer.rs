//! A simulated peer: a swarm that dials, uses each connection for a while, and accounts for every
//! dial.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    channel::{mpsc, oneshot},
    future::BoxFuture,
    stream::FuturesUnordered,
};
use libp2p::{
    PeerId, Swarm, SwarmBuilder,
    identity::Keypair,
    swarm::{
        ConnectionId, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use libp2p_punch::counters::Counters;
use libp2p_punch::{Behaviour, Config, Event, SessionEvent, transport::Stats};
use libp2p_punch_sim::Host;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{task::JoinHandle, time::Instant};

/// The port of every listener.
pub(crate) const PORT: u16 = 4001;
/// Time for which a peer uses a connection before it closes the connection.
const USE: std::ops::Range<u64> = 100..30_000;
/// Number of ended dials that a peer remembers, to notice a second outcome.
const REMEMBERED: usize = 1_000;
/// Idle time-out of the swarm, longer than the application uses a connection. It closes connections
/// to coordinators that were asked once and are not needed any more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// For the connection time-out of the swarm, which the soak is not about.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Outcomes of all dials.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    pub(crate) dials: u64,
    pub(crate) established: u64,
    pub(crate) failed: u64,
    /// Under way when their swarm was dropped.
    pub(crate) dropped: u64,
    /// Second outcomes of dials that had an outcome already.
    pub(crate) second_outcomes: u64,
    pub(crate) slowest: Duration,
    /// The sessions that the behaviour reported.
    pub(crate) connected_events: u64,
    pub(crate) failed_events: u64,
    /// The innermost cause of each failure.
    pub(crate) reasons: BTreeMap<String, u64>,
}

/// The tally that all peers share.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ledger(Arc<Mutex<Tally>>);

impl Ledger {
    pub(crate) fn tally(&self) -> Tally {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Order to a peer.
pub(crate) enum Order {
    Dial(PeerId),
    /// Not to drive its swarm for this time.
    Stall(Duration),
    Disconnect(PeerId),
    Report(oneshot::Sender<Report>),
}

/// Connections and state of a peer.
#[derive(Debug)]
pub(crate) struct Report {
    /// Dials without an outcome, and how long they have been under way.
    pub(crate) pending: Vec<(PeerId, Duration)>,
    pub(crate) counters: Counters,
    /// Established connections by the count of the swarm and by that of the transport.
    pub(crate) connections: usize,
    pub(crate) transport_connections: usize,
    pub(crate) connected: Vec<PeerId>,
}

/// Parts of a swarm.
pub(crate) struct Start<'a> {
    pub(crate) host: &'a Arc<Host>,
    pub(crate) keypair: Keypair,
    pub(crate) config: Config,
    /// For how long connections are used.
    pub(crate) seed: u64,
    /// Connections to these are not the application's.
    pub(crate) coordinators: &'a [PeerId],
    pub(crate) ledger: &'a Ledger,
}

/// A peer's swarm, which runs as a task of its own.
pub(crate) struct Running {
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(start: Start<'_>) -> Self {
        let (orders, receiver) = mpsc::unbounded();
        let coordinators = start.coordinators.to_vec();
        let (swarm, stats) = swarm(start.host, start.keypair, start.config);
        let dials = Dials { ledger: start.ledger.clone(), open: BTreeMap::new(), ended: BTreeSet::new() };
        let rng = StdRng::seed_from_u64(start.seed);
        let driver = Driver { swarm, stats, dials, coordinators, in_use: FuturesUnordered::new(), rng };
        Self { orders, task: tokio::spawn(driver.run(receiver)) }
    }

    /// Has no effect after the swarm has ended.
    pub(crate) fn order(&self, order: Order) {
        let _ = self.orders.unbounded_send(order);
    }

    /// None if the swarm has ended.
    pub(crate) async fn report(&self) -> Option<Report> {
        let (sender, receiver) = oneshot::channel();
        self.order(Order::Report(sender));
        receiver.await.ok()
    }

    /// Drops the swarm in any state.
    pub(crate) fn kill(self) {
        self.task.abort();
    }
}

fn swarm(host: &Arc<Host>, keypair: Keypair, config: Config) -> (Swarm<Behaviour>, Stats) {
    let runtime = libp2p_punch::io::Runtime::tokio();
    let (transport, punch) =
        libp2p_punch::with_io(&keypair, config, host.clone(), runtime).expect("the configuration is valid");
    let stats = transport.stats();
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_behaviour(|_| punch)
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .with_connection_timeout(NEVER)
        .build();
    let address = format!("/ip4/0.0.0.0/udp/{PORT}/quic-v1").parse().expect("it is an address");
    swarm.listen_on(address).expect("the transport takes the address");
    (swarm, stats)
}

/// The dials of one swarm. Those that are open when it is dropped count as dropped.
struct Dials {
    ledger: Ledger,
    open: BTreeMap<ConnectionId, (PeerId, Instant)>,
    /// The last ones: ids count upwards.
    ended: BTreeSet<ConnectionId>,
}

impl Dials {
    fn begin(&mut self, id: ConnectionId, peer: PeerId) {
        self.ledger.lock().dials += 1;
        self.open.insert(id, (peer, Instant::now()));
    }

    /// Counts an outcome: none if this is no dial of the application.
    fn end(&mut self, id: ConnectionId, error: Option<String>) {
        let mut tally = self.ledger.lock();
        if self.ended.contains(&id) {
            tally.second_outcomes += 1;
        }
        let Some((_, begun)) = self.open.remove(&id) else { return };
        self.ended.insert(id);
        if self.ended.len() > REMEMBERED {
            self.ended.pop_first();
        }
        tally.slowest = tally.slowest.max(begun.elapsed());
        match error {
            None => tally.established += 1,
            Some(error) => {
                tally.failed += 1;
                let cause = error.rsplit(": ").next().unwrap_or_default().to_owned();
                *tally.reasons.entry(cause).or_default() += 1;
            }
        }
    }
}

impl Drop for Dials {
    fn drop(&mut self) {
        self.ledger.lock().dropped += self.open.len() as u64;
    }
}

struct Driver {
    swarm: Swarm<Behaviour>,
    stats: Stats,
    dials: Dials,
    coordinators: Vec<PeerId>,
    /// The connections that we dialed, until we close them.
    in_use: FuturesUnordered<BoxFuture<'static, ConnectionId>>,
    rng: StdRng,
}

impl Driver {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            tokio::select! {
                biased;
                order = orders.next() => match order {
                    Some(order) => self.follow(order).await,
                    None => return,
                },
                Some(id) = self.in_use.next(), if !self.in_use.is_empty() => {
                    self.swarm.close_connection(id);
                }
                event = self.swarm.select_next_some() => self.note(event),
            }
        }
    }

    async fn follow(&mut self, order: Order) {
        match order {
            Order::Dial(peer) => {
                let dial =
                    DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
                let id = dial.connection_id();
                // An error means that the peer is connected or being dialed.
                if self.swarm.dial(dial).is_ok() {
                    self.dials.begin(id, peer);
                }
            }
            Order::Stall(time) => tokio::time::sleep(time).await,
            Order::Disconnect(peer) => {
                // An error means that the peer is not connected.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            Order::Report(reply) => {
                let report = Report {
                    pending: self.dials.open.values().map(|(peer, at)| (*peer, at.elapsed())).collect(),
                    counters: self.swarm.behaviour().counters(),
                    connections: self.swarm.network_info().connection_counters().num_established() as usize,
                    transport_connections: self.stats.connections().len(),
                    connected: self.swarm.connected_peers().copied().collect(),
                };
                // The requester may have given up.
                let _ = reply.send(report);
            }
        }
    }

    fn note(&mut self, event: SwarmEvent<Event>) {
        match event {
            SwarmEvent::ConnectionEstablished { connection_id, endpoint, peer_id, .. } => {
                self.dials.end(connection_id, None);
                if endpoint.is_dialer() && !self.coordinators.contains(&peer_id) {
                    let time = Duration::from_millis(self.rng.random_range(USE));
                    self.in_use.push(tokio::time::sleep(time).map(move |()| connection_id).boxed());
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.dials.end(connection_id, Some(error.to_string()));
            }
            SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { .. })) => {
                self.dials.ledger.lock().connected_events += 1
            }
            SwarmEvent::Behaviour(Event::Session(SessionEvent::Failed { .. })) => {
                self.dials.ledger.lock().failed_events += 1
            }
            _ => {}
        }
    }
}
