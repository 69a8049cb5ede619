//! The course of a run: nodes join, dial each other, lose some of their coordinators, and idle.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use libp2p::{Multiaddr, PeerId};
use libp2p_punch_sim::{Packet, Verdict, World};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    args::{Arguments, share_of},
    node::{Dialed, Node},
    population::{Population, can_be_direct, ip},
    report::{Attempt, Idle, IdleNode, Joined, Load, Report, Round, Traffic},
};
use crate::{exit::Failure, output::Progress};

/// Coordinators that a hidden node is to have before it dials.
const COORDINATORS: usize = 3;
/// Time for the nodes to find them, after the last one has joined.
const JOIN_TIMEOUT: Duration = Duration::from_secs(120);
/// Time between the end of the joins and the dials.
const SETTLE_TIME: Duration = Duration::from_secs(30);
/// Time between two dials of the network, on average.
const DIAL_INTERVAL: Duration = Duration::from_millis(100);
/// Time between the loss of public nodes and the dials that follow.
const RECOVERY_TIME: Duration = Duration::from_secs(30);
/// Time without dials before the idle traffic is measured: connections that nobody uses have
/// closed.
const QUIET_TIME: Duration = Duration::from_secs(60);
/// Time for which the idle traffic is measured: the interval at which Kademlia refreshes its table,
/// by default.
const IDLE_TIME: Duration = Duration::from_secs(300);
/// Parts of that time, each with figures of its own.
const IDLE_PARTS: u32 = 5;

/// Runs the network.
pub(super) async fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let world = World::new(arguments.seed);
    let traffic = TrafficMeter::start(&world);
    let rng = StdRng::seed_from_u64(arguments.seed);
    let population =
        Population::new(&world, StdRng::seed_from_u64(arguments.seed ^ 1), arguments.loss / 100.0);
    let mut network =
        Network { population, rng, nodes: Vec::new(), bootstrap: None, next_seed: arguments.seed << 32 };
    let joined = network.join(arguments).await?;

    let mut rounds = vec![network.dial_pairs("all nodes alive", arguments).await?];
    if let Some(percent) = arguments.kill_public {
        let killed = network.kill_public(percent);
        sleep(RECOVERY_TIME).await;
        rounds
            .push(network.dial_pairs(&format!("{killed} public nodes killed 30 s before"), arguments).await?);
    }
    let load = network.load();

    sleep(QUIET_TIME).await;
    let idle = network.idle(&traffic).await;
    Ok(Report { joined, rounds, load, idle, elapsed: world.elapsed() })
}

struct Network<'a> {
    population: Population<'a>,
    rng: StdRng,
    nodes: Vec<Node>,
    bootstrap: Option<Multiaddr>,
    next_seed: u64,
}

impl Network<'_> {
    /// Starts all nodes, the public ones first, and waits until the hidden ones are registered.
    async fn join(&mut self, arguments: &Arguments) -> Result<Joined, Failure> {
        let public = arguments.public_nodes();
        let pause = arguments.join_time() / arguments.nodes;
        let mut progress = Progress::new("nodes that have joined", arguments.nodes as usize);
        for number in 0..arguments.nodes {
            self.start(number < public)?;
            sleep(pause).await;
            progress.step();
        }
        let began = Instant::now();
        let registered = self.nodes.iter().map(|node| node.registered(COORDINATORS.min(public as usize)));
        // Those that are not registered in time are counted.
        let _ = tokio::time::timeout(JOIN_TIMEOUT, futures::future::join_all(registered)).await;
        let waited = began.elapsed();
        sleep(SETTLE_TIME).await;

        for node in &self.nodes {
            tracing::debug!(peer = %node.peer, kind = %node.site.kind, status = ?node.status(), "joined");
        }
        let counts = |count: usize| {
            let hidden = self.nodes.iter().map(Node::status).filter(|status| !status.is_coordinator);
            hidden.filter(|status| status.registered.len() >= count).count()
        };
        let coordinators = self.nodes.iter().filter(|node| node.status().is_coordinator).count();
        Ok(Joined {
            nodes: self.nodes.len(),
            public: public as usize,
            coordinators,
            hidden: counts(0),
            with_one: counts(1),
            with_all: counts(COORDINATORS.min(public as usize)),
            waited,
        })
    }

    fn start(&mut self, is_public: bool) -> Result<(), Failure> {
        let site = if is_public { self.population.public()? } else { self.population.hidden()? };
        self.next_seed += 1;
        let node = Node::start(site, self.next_seed, self.bootstrap.as_ref())?;
        self.bootstrap.get_or_insert_with(|| node.address());
        self.nodes.push(node);
        Ok(())
    }

    /// Dials random pairs, one after the other, while nodes come and go.
    async fn dial_pairs(&mut self, name: &str, arguments: &Arguments) -> Result<Round, Failure> {
        let mut progress = Progress::new("dials", arguments.dials() as usize);
        let churn_interval = (arguments.churn > 0.0)
            .then(|| Duration::from_secs_f64(3600.0 * 100.0 / arguments.churn / f64::from(arguments.nodes)));
        let mut next_churn = churn_interval.map(|interval| Instant::now() + interval);
        let mut next_dial = Instant::now();
        let (mut begun, mut attempts, mut under_way) = (0, Vec::new(), FuturesUnordered::new());
        while begun < arguments.dials() || !under_way.is_empty() {
            tokio::select! {
                Some(attempt) = under_way.next() => {
                    attempts.push(attempt);
                    progress.step();
                }
                () = sleep_until(next_dial), if begun < arguments.dials() => {
                    under_way.push(self.dial_one());
                    begun += 1;
                    next_dial += DIAL_INTERVAL.mul_f64(self.rng.random_range(0.0..2.0));
                }
                () = sleep_until(next_churn.unwrap_or(next_dial)), if next_churn.is_some() => {
                    self.replace_one()?;
                    next_churn = next_churn.zip(churn_interval).map(|(at, interval)| at + interval);
                }
            }
        }
        Ok(Round { name: name.to_owned(), attempts })
    }

    fn dial_one(&mut self) -> impl Future<Output = Attempt> + 'static {
        let dialer = self.rng.random_range(0..self.nodes.len());
        let listener = (dialer + self.rng.random_range(1..self.nodes.len())) % self.nodes.len();
        let [dialer, listener] = [dialer, listener].map(|index| &self.nodes[index]);
        let latencies: HashMap<PeerId, Duration> =
            self.nodes.iter().map(|node| (node.peer, node.site.latency)).collect();
        let known = listener.status();
        let nearest = known.registered.iter().filter_map(|peer| latencies.get(peer)).min().copied();
        // A coordinator of the listener can be no nearer than its own host and the core.
        let via = if known.is_coordinator { None } else { nearest };
        let direct = dialer.site.latency + listener.site.latency;
        let attempt = Attempt {
            dialer: dialer.site.kind,
            listener: listener.site.kind,
            can_be_direct: can_be_direct(dialer.site.kind, listener.site.kind),
            bound: via.map(|via| 2 * (direct + via)),
            outcome: Dialed::Already,
        };
        let dial = dialer.dial(listener.peer);
        async move { Attempt { outcome: dial.await, ..attempt } }
    }

    /// Ends a random node but the first, and starts another of the same kind.
    fn replace_one(&mut self) -> Result<(), Failure> {
        if self.nodes.len() > 1 {
            let index = self.rng.random_range(1..self.nodes.len());
            let gone = self.nodes.swap_remove(index);
            self.start(gone.site.kind == punch_lab::Kind::Public)?;
        }
        Ok(())
    }

    /// Ends a share of the public nodes at once. Returns their number.
    fn kill_public(&mut self, percent: f64) -> usize {
        let is_public = |node: &Node| node.site.kind == punch_lab::Kind::Public;
        let mut public: Vec<PeerId> =
            self.nodes.iter().filter(|node| is_public(node)).map(|node| node.peer).collect();
        public.shuffle(&mut self.rng);
        public.truncate(share_of(public.len() as u32, percent) as usize);
        self.nodes.retain(|node| !public.contains(&node.peer));
        if let Some(node) = self.nodes.iter().find(|node| is_public(node)) {
            self.bootstrap = Some(node.address());
        }
        public.len()
    }

    fn load(&self) -> Load {
        let coordinators = self.nodes.iter().map(Node::status).filter(|status| status.is_coordinator);
        Load::new(coordinators.map(|status| status.forwarded).collect())
    }

    /// Measures the traffic of nodes that nobody uses.
    async fn idle(&self, meter: &TrafficMeter) -> Idle {
        let part = IDLE_TIME / IDLE_PARTS;
        let (mut hidden, mut coordinators) = (Vec::new(), Vec::new());
        for _ in 0..IDLE_PARTS {
            meter.reset();
            sleep(part).await;
            let mean =
                |nodes: Vec<&Node>| Traffic::mean(nodes.iter().map(|node| meter.of(ip(&node.site))), part);
            hidden.push(mean(self.nodes_by_role(false)));
            coordinators.push(mean(self.nodes_by_role(true)));
        }
        let of = |parts: Vec<Traffic>, nodes: Vec<&Node>| {
            let peers = nodes.iter().map(|node| node.status().peers).sum::<usize>();
            IdleNode::new(&parts, peers as f64 / nodes.len().max(1) as f64)
        };
        Idle {
            hidden: of(hidden, self.nodes_by_role(false)),
            coordinators: of(coordinators, self.nodes_by_role(true)),
        }
    }

    /// Returns the nodes that coordinate, or those that do not.
    fn nodes_by_role(&self, is_coordinator: bool) -> Vec<&Node> {
        self.nodes.iter().filter(|node| node.status().is_coordinator == is_coordinator).collect()
    }
}

/// Counter of the datagrams of each host.
struct TrafficMeter(Arc<Mutex<HashMap<IpAddr, Traffic>>>);

impl TrafficMeter {
    fn start(world: &World) -> Self {
        let meter = Self(Arc::default());
        let counts = meter.0.clone();
        world.tap(move |Packet { record, .. }| {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            let sender = counts.entry(record.from.ip()).or_default();
            sender.datagrams_sent += 1.0;
            sender.bytes_sent += record.size as f64;
            if record.verdict == Verdict::Delivered {
                let receiver = counts.entry(record.reached.ip()).or_default();
                receiver.datagrams_received += 1.0;
                receiver.bytes_received += record.size as f64;
            }
        });
        meter
    }

    fn reset(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn of(&self, host: IpAddr) -> Traffic {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&host).copied().unwrap_or_default()
    }
}
