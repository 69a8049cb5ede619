//! A network in which every fault happens repeatedly for a given time.
//!
//! Some hundred peers behind all kinds of NATs dial each other through two coordinators. Meanwhile
//! swarms are killed and started again, coordinators too; pairs are cut off, interfaces go down,
//! addresses change, NATs forget, tasks stall, links lose and duplicate, and a [`Forger`] sends
//! forged datagrams. Then all faults are repaired. After a quiet time each peer must hold only its
//! coordinators, and nothing of any dial.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use libp2p_punch::{Config, Role};
use libp2p_punch_sim::{Filtering, Gateway, Host, Link, Mapping, Nat, NodeId, Ports, World};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{Instant, sleep};

use crate::{
    forger::Forger,
    peer::{Ledger, Order, PORT, Running, Start, Tally},
};

/// Coordinators, which are the first of all peers.
const COORDINATORS: usize = 2;
/// After this time without faults, everything that the chaos left has ended: registrations and
/// reservations are renewed, lingering virtual connections are gone, and the measurement of the
/// NATs' idle lifetime, which keeps a socket of its own, is over.
const QUIET: Duration = Duration::from_secs(420);
/// After this time nothing of a dropped swarm is left: virtual connections linger for three
/// seconds, and connections drain.
const END: Duration = Duration::from_secs(60);
/// The sockets of a peer that does nothing: its listener's.
const PEER_SOCKETS: usize = 1;
/// Number of sockets of a coordinator: its listener's, its observers', and those of its filtering
/// tests.
const COORDINATOR_SOCKETS: usize = 6;
/// The time until a peer tries again to start on a port that its last swarm still holds.
const PORT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Interval of the progress reports.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Size of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Decides the network, and the kind and time of each fault. The outcomes also depend on random
    /// keys and hash maps.
    pub(crate) seed: u64,
    pub(crate) peers: u16,
    pub(crate) duration: Duration,
    /// The mean time between two steps, four of five of which are dials.
    pub(crate) pace: Duration,
}

/// Fault of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Partition,
    InterfaceDown,
    Renumber,
    NatFlush,
    LinkChange,
    Stall,
    Disconnect,
    KillPeer,
    KillCoordinator,
    Forge,
}

/// Frequencies of the faults, relative to each other.
const FAULTS: [(Fault, u32); 10] = [
    (Fault::Partition, 20),
    (Fault::InterfaceDown, 30),
    (Fault::Renumber, 10),
    (Fault::NatFlush, 20),
    (Fault::LinkChange, 20),
    (Fault::Stall, 20),
    (Fault::Disconnect, 40),
    (Fault::KillPeer, 20),
    (Fault::KillCoordinator, 10),
    (Fault::Forge, 20),
];

/// Repair that ends a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repair {
    Start(usize),
    Unblock(usize, usize),
    InterfaceUp(usize),
}

/// A peer, running or not.
struct Peer {
    keypair: Keypair,
    id: PeerId,
    host: Arc<Host>,
    gateway: Option<Arc<Gateway>>,
    config: Config,
    address: IpAddr,
    /// The last byte of its next private address.
    next_address: u8,
    running: Option<Running>,
    starts: u64,
}

impl Peer {
    /// Returns the node of its access to the Internet.
    fn node(&self) -> NodeId {
        self.gateway.as_ref().map_or(self.host.id(), |gateway| gateway.id())
    }

    fn order(&self, order: Order) {
        if let Some(running) = &self.running {
            running.order(order);
        }
    }
}

/// Counts of the run so far.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) elapsed: Duration,
    pub(crate) tally: Tally,
    pub(crate) tasks: usize,
    pub(crate) sockets: usize,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { dials, established, failed, dropped, slowest, .. } = &self.tally;
        let hours = self.elapsed.as_secs_f64() / 3600.0;
        write!(
            f,
            "{hours:>6.2} h: {dials} dials, {established} established, {failed} failed, {dropped} dropped; "
        )?;
        write!(f, "slowest {slowest:.1?}; {} tasks, {} sockets", self.tasks, self.sockets)
    }
}

/// Result of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) last: Progress,
    faults: BTreeMap<Fault, u64>,
    /// Forged datagrams.
    forged: u64,
    /// Connections and state that peers should not hold after the quiet time.
    leftovers: Vec<String>,
    /// Tasks and sockets before the first swarm was made, and after the last one was dropped.
    tasks: [usize; 2],
    sockets: [usize; 2],
}

impl Outcome {
    /// Panics unless every dial ended in exactly one outcome and nothing is left.
    pub(crate) fn check(&self) {
        let tally = &self.last.tally;
        assert!(tally.established > 0 && tally.dials > 0, "{tally:?}");
        assert_eq!(
            tally.dials,
            tally.established + tally.failed + tally.dropped,
            "each dial ends: {tally:?}"
        );
        assert_eq!(tally.second_outcomes, 0, "no dial ends twice: {tally:?}");
        for (fault, _) in FAULTS {
            assert!(self.faults.get(&fault).is_some_and(|times| *times > 0), "{fault:?} never happened");
        }
        assert!(self.leftovers.is_empty(), "after the quiet:\n{}", self.leftovers.join("\n"));
        assert_eq!(self.tasks[1], self.tasks[0], "tasks after all swarms were dropped, and before");
        assert_eq!(self.sockets[1], self.sockets[0], "sockets after all swarms were dropped, and before");
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.last)?;
        let Tally { second_outcomes, connected_events, failed_events, reasons, .. } = &self.last.tally;
        writeln!(f, "dials that ended twice: {second_outcomes}")?;
        writeln!(f, "sessions reported: {connected_events} connected, {failed_events} failed")?;
        writeln!(f, "failures: {reasons:#?}")?;
        writeln!(f, "faults: {:?}, {} forged datagrams", self.faults, self.forged)?;
        writeln!(f, "peers that hold too much after the quiet: {:#?}", self.leftovers)?;
        let [tasks, sockets] =
            [self.tasks, self.sockets].map(|[before, after]| format!("{before} and {after}"));
        write!(f, "before the first and after the last swarm: {tasks} tasks, {sockets} sockets")
    }
}

/// The network, and what is broken in it.
struct Chaos {
    plan: Plan,
    rng: StdRng,
    world: World,
    peers: Vec<Peer>,
    coordinators: Vec<PeerId>,
    forger: Forger,
    ledger: Ledger,
    repairs: Vec<(Instant, Repair)>,
    faults: BTreeMap<Fault, u64>,
    forged: u64,
}

/// Runs a plan on a runtime with a paused clock, and shows its progress every hour.
pub(crate) fn soak(plan: Plan, progress: impl FnMut(&Progress)) -> Outcome {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime can be made");
    runtime.block_on(run(plan, progress))
}

async fn run(plan: Plan, mut progress: impl FnMut(&Progress)) -> Outcome {
    let mut chaos = Chaos::new(plan);
    // The task of the world starts.
    tokio::task::yield_now().await;
    let before = chaos.progress();
    (0..chaos.peers.len()).for_each(|peer| chaos.start(peer));

    let end = Instant::now() + plan.duration;
    let mut report = Instant::now() + HOUR;
    while Instant::now() < end {
        let pause = chaos.rng.random_range(Duration::ZERO..2 * plan.pace);
        sleep(pause).await;
        chaos.repair(Instant::now());
        chaos.step();
        if Instant::now() >= report {
            report += HOUR;
            progress(&chaos.progress());
        }
    }
    chaos.heal().await;
    sleep(QUIET).await;
    let (last, leftovers) = (chaos.progress(), chaos.leftovers().await);
    for peer in &mut chaos.peers {
        peer.running.take().into_iter().for_each(Running::kill);
    }
    sleep(END).await;
    let after = chaos.progress();
    Outcome {
        last,
        faults: chaos.faults,
        forged: chaos.forged,
        leftovers,
        tasks: [before.tasks, after.tasks],
        sockets: [before.sockets, after.sockets],
    }
}

impl Chaos {
    fn new(plan: Plan) -> Self {
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let world = World::new(plan.seed);
        let keypairs: Vec<_> = (0..COORDINATORS as u16 + plan.peers).map(keypair).collect();
        let coordinators: Vec<_> =
            keypairs.iter().take(COORDINATORS).map(|keypair| keypair.public().to_peer_id()).collect();
        let addresses: Vec<Multiaddr> = (0..).zip(&coordinators).map(|(n, id)| at(public(n), id)).collect();
        let peers = (0..).zip(keypairs).map(|(number, keypair)| {
            let is_coordinator = usize::from(number) < COORDINATORS;
            let (host, gateway) = match nat(&mut rng).filter(|_| !is_coordinator) {
                None => (world.public_host(public(number)), None),
                Some(nat) => {
                    let gateway = world.nat(nat, public(number));
                    (gateway.host([192, 168, 1, 2]), Some(gateway))
                }
            };
            let config = if is_coordinator {
                let others = addresses.iter().filter(|address| **address != addresses[usize::from(number)]);
                {
                    let mut config = Config::default();
                    config.role = Role::Server;
                    config.coordinators = others.cloned().collect();
                    config
                }
            } else {
                let known = if rng.random_bool(0.7) { COORDINATORS } else { 1 };
                let known = addresses.choose_multiple(&mut rng, known).cloned().collect();
                {
                    let mut config = Config::default();
                    config.coordinators = known;
                    config
                }
            };
            let address = host.addresses()[0];
            let id = keypair.public().to_peer_id();
            Peer { keypair, id, host, gateway, config, address, next_address: 3, running: None, starts: 0 }
        });
        let peers: Vec<_> = peers.collect();
        for peer in &peers {
            world.set_link(peer.node(), link(&mut rng));
        }
        let attacker = world.public_host([85, 1, 255, 255]);
        let forger = Forger::new(&world, attacker, plan.seed);
        let (ledger, repairs, faults) = (Ledger::default(), Vec::new(), BTreeMap::new());
        Self { plan, rng, world, peers, coordinators, forger, ledger, repairs, faults, forged: 0 }
    }

    fn start(&mut self, number: usize) {
        let Self { peers, ledger, coordinators, plan, .. } = self;
        let peer = &mut peers[number];
        if peer.running.is_some() {
            return;
        }
        peer.starts += 1;
        let seed = plan.seed ^ (number as u64) << 32 ^ peer.starts;
        let (keypair, config) = (peer.keypair.clone(), peer.config.clone());
        peer.running =
            Some(Running::start(Start { host: &peer.host, keypair, config, seed, coordinators, ledger }));
    }

    fn step(&mut self) {
        if self.rng.random_bool(0.8) {
            for _ in 0..self.rng.random_range(1..4) {
                let [from, to] = [(); 2].map(|()| self.rng.random_range(COORDINATORS..self.peers.len()));
                if from != to {
                    self.peers[from].order(Order::Dial(self.peers[to].id));
                }
            }
            return;
        }
        let Ok((fault, _)) = FAULTS.choose_weighted(&mut self.rng, |(_, weight)| *weight) else { return };
        if self.cause(*fault) {
            *self.faults.entry(*fault).or_default() += 1;
        }
    }

    /// Causes a fault, unless its target is broken already.
    fn cause(&mut self, fault: Fault) -> bool {
        let p = self.rng.random_range(COORDINATORS..self.peers.len());
        let q = self.rng.random_range(0..self.peers.len());
        match fault {
            Fault::Partition => {
                let repair = Repair::Unblock(p.min(q), p.max(q));
                if p == q || self.is_broken(repair) {
                    return false;
                }
                self.world.block(self.peers[p].node(), self.peers[q].node());
                self.repair_within(1_000..90_000, repair);
            }
            Fault::InterfaceDown => {
                if self.is_broken(Repair::InterfaceUp(p)) {
                    return false;
                }
                self.peers[p].host.interface_down(self.peers[p].address);
                self.repair_within(10..60_000, Repair::InterfaceUp(p));
            }
            Fault::Renumber => {
                let is_down = self.is_broken(Repair::InterfaceUp(p));
                let peer = &mut self.peers[p];
                if is_down || peer.gateway.is_none() {
                    return false;
                }
                let new = [192, 168, 1, peer.next_address].into();
                peer.host.renumber(peer.address, new);
                peer.address = new;
                peer.next_address = if peer.next_address < 250 { peer.next_address + 1 } else { 3 };
            }
            Fault::NatFlush => match &self.peers[p].gateway {
                Some(gateway) => gateway.flush(),
                None => return false,
            },
            Fault::LinkChange => self.world.set_link(self.peers[p].node(), link(&mut self.rng)),
            Fault::Stall => {
                let time = Duration::from_millis(self.rng.random_range(10..40_000));
                self.peers[p].order(Order::Stall(time));
            }
            Fault::Disconnect => self.peers[p].order(Order::Disconnect(self.peers[q].id)),
            Fault::KillPeer => return self.kill(p, 120_000),
            Fault::KillCoordinator => return self.kill(q % COORDINATORS, 60_000),
            Fault::Forge => self.forged += self.forger.attack(),
        }
        true
    }

    fn kill(&mut self, peer: usize, longest: u64) -> bool {
        let Some(running) = self.peers[peer].running.take() else { return false };
        running.kill();
        self.repair_within(10..longest, Repair::Start(peer));
        true
    }

    fn is_broken(&self, repair: Repair) -> bool {
        self.repairs.iter().any(|(_, other)| *other == repair)
    }

    fn repair_within(&mut self, milliseconds: std::ops::Range<u64>, repair: Repair) {
        let time = Duration::from_millis(self.rng.random_range(milliseconds));
        self.repairs.push((Instant::now() + time, repair));
    }

    /// Ends the faults that are due by `now`.
    fn repair(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.repairs).into_iter().partition(|(at, _)| *at <= now);
        self.repairs = later;
        let due: Vec<(Instant, Repair)> = due;
        for (_, repair) in due {
            match repair {
                // A swarm that was dropped keeps its sockets until its connections have drained
                // (RFC 9000 §10.2).
                Repair::Start(peer) if self.peers[peer].host.open_sockets() > 0 => {
                    self.repairs.push((now + PORT_RETRY_DELAY, repair));
                }
                Repair::Start(peer) => self.start(peer),
                Repair::Unblock(a, b) => self.world.unblock(self.peers[a].node(), self.peers[b].node()),
                Repair::InterfaceUp(peer) => self.peers[peer].host.interface_up(self.peers[peer].address),
            }
        }
    }

    /// Repairs all that is broken.
    async fn heal(&mut self) {
        let end = Instant::now() + END;
        while let Some(last) = self.repairs.iter().map(|(at, _)| *at).max() {
            self.repair(last);
            assert!(
                Instant::now() < end,
                "a swarm that was dropped still holds its sockets: {:?}",
                self.repairs
            );
            sleep(PORT_RETRY_DELAY).await;
        }
    }

    /// Returns the connections and state of peers that belong to no coordinator.
    async fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, peer) in self.peers.iter().enumerate() {
            let Some(running) = &peer.running else { continue };
            let Some(report) = running.report().await else {
                found.push(format!("peer {number} has ended"));
                continue;
            };
            let sockets = peer.host.open_sockets();
            let counters = &report.counters.protocol;
            let expected: BTreeSet<_> = self.expected(number).collect();
            let connected: BTreeSet<_> = report.connected.iter().copied().collect();
            // Two coordinators that dial each other at once have a connection in each direction.
            let (allowed, doubles) = if number < COORDINATORS {
                (COORDINATOR_SOCKETS, COORDINATORS - 1)
            } else {
                (PEER_SOCKETS, 0)
            };
            let is_clean = report.pending.is_empty()
                && counters.in_flight == 0
                && counters.attempts == counters.successes + counters.failures
                && connected == expected
                && report.connections <= connected.len() + doubles
                && report.transport_connections == report.connections
                && sockets <= allowed;
            if !is_clean {
                found.push(format!(
                    "peer {number}: dials {:?}, attempts {} = {} + {} + {}, connected to {} peers of {}, {} connections, \
                     {} of the transport, {sockets} sockets",
                    report.pending,
                    counters.attempts,
                    counters.successes,
                    counters.failures,
                    counters.in_flight,
                    connected.len(),
                    expected.len(),
                    report.connections,
                    report.transport_connections,
                ));
            }
        }
        found
    }

    /// Returns the peers to which a peer is connected in quiet times: its coordinators, and the
    /// peers that it coordinates for.
    fn expected(&self, number: usize) -> impl Iterator<Item = PeerId> {
        let own = &self.peers[number];
        let knows = |peer: &Peer, other: &Peer| {
            let ends_with = |address: &Multiaddr| address.iter().last() == Some(Protocol::P2p(other.id));
            peer.config.coordinators.iter().any(ends_with)
        };
        self.peers.iter().filter(move |other| knows(own, other) || knows(other, own)).map(|other| other.id)
    }

    fn progress(&self) -> Progress {
        Progress {
            elapsed: self.world.elapsed(),
            tally: self.ledger.tally(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            sockets: self.peers.iter().map(|peer| peer.host.open_sockets()).sum(),
        }
    }
}

fn keypair(number: u16) -> Keypair {
    let mut bytes = [7; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    Keypair::ed25519_from_bytes(bytes).expect("32 bytes make a key")
}

/// The public address of a peer, or of its NAT.
fn public(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [85, 1, high, low]
}

fn at([a, b, c, d]: [u8; 4], peer: &PeerId) -> Multiaddr {
    format!("/ip4/{a}.{b}.{c}.{d}/udp/{PORT}/quic-v1/p2p/{peer}").parse().expect("it is an address")
}

/// The NAT of a peer; one in ten has none.
fn nat(rng: &mut StdRng) -> Option<Nat> {
    Some(match rng.random_range(0..10) {
        0 => return None,
        1 => Nat::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent),
        2 => Nat::new(Mapping::EndpointIndependent, Filtering::AddressDependent),
        3 | 4 => Nat::default(),
        5 => Nat { ports: Ports::Random, ..Nat::default() },
        6 => Nat::new(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent),
        7 => Nat {
            ports: Ports::Sequential { step: 1 },
            ..Nat::new(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
        },
        8 => Nat { early_packets_harm: true, ..Nat::default() },
        _ => {
            let lifetime = Duration::from_secs(rng.random_range(45..120));
            Nat { absolute_lifetime: Some(lifetime), ..Nat::default() }
        }
    })
}

fn link(rng: &mut StdRng) -> Link {
    Link {
        latency: Duration::from_millis(rng.random_range(2..60)),
        jitter: Duration::from_millis(rng.random_range(0..15)),
        loss: if rng.random_bool(0.3) { rng.random_range(0.0..0.08) } else { 0.0 },
        reorder: if rng.random_bool(0.3) { 0.02 } else { 0.0 },
        duplicate: if rng.random_bool(0.3) { 0.02 } else { 0.0 },
        ..Link::default()
    }
}
