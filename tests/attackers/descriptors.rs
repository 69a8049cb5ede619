//! Sockets, and so file descriptors, that others make a node open.

use libp2p_punch::io::UdpSocket;
use tokio::task::JoinSet;

use crate::support::*;

/// The limit of many systems on the descriptors of a process.
const DESCRIPTORS: usize = 1_024;
/// Identities that ask for searches, each from a network of its own.
const ATTACKERS: u8 = 12;
const ATTACK: Duration = Duration::from_secs(60);
const SAMPLE: Duration = Duration::from_millis(100);

/// A host whose process has a limited number of file descriptors.
#[derive(Debug)]
struct Limited {
    host: Arc<Host>,
    descriptors: usize,
}

impl Network for Limited {
    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.host.bind(address)
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        self.host.interfaces()
    }

    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        self.host.source_for(destination)
    }

    fn max_descriptors(&self) -> Option<usize> {
        Some(self.descriptors)
    }
}

/// A node behind a NAT of random ports, and identities that ask it for searches which find nothing.
struct Attack {
    world: World,
    config: Config,
    host: Arc<Host>,
    victim: Option<Swarm<Behaviour>>,
    gateway: Arc<Gateway>,
    attackers: JoinSet<()>,
}

impl Attack {
    async fn new(descriptors: usize) -> Self {
        let world = World::new(1);
        let mut config = Config::default();
        config.coordinators = vec![coordinator(&world)];
        config.max_attempts = 16;
        config.relay_fallback = false;
        let gateway = world.nat(Nat::random(), [198, 51, 100, 2]);
        let host = gateway.host([192, 168, 2, 2]);
        let network = Arc::new(Limited { host: host.clone(), descriptors });
        let mut victim = swarm(network, 2, config.clone());
        registered(&mut victim).await;
        Self { world, config, host, victim: Some(victim), gateway, attackers: JoinSet::new() }
    }

    /// Lets `ATTACKERS` dial the victim again and again.
    async fn begin(&mut self, peer: PeerId) {
        for n in 10..10 + ATTACKERS {
            let gateway = self.world.nat(Nat::default(), [198, 51, n, 2]);
            self.world.block(&self.gateway, &gateway);
            let mut dialer = swarm(gateway.host([192, 168, n, 2]), n, self.config.clone());
            registered(&mut dialer).await;
            self.attackers.spawn(async move {
                loop {
                    let _ = dialer.dial(peer);
                    until(&mut dialer, |event| {
                        matches!(event, SwarmEvent::OutgoingConnectionError { .. }).then_some(())
                    })
                    .await;
                }
            });
        }
    }

    async fn honest_dial(&self, peer: PeerId) -> bool {
        let gateway = self.world.nat(Nat::default(), [192, 0, 2, 9]);
        let mut dialer = swarm(gateway.host([192, 168, 9, 2]), 9, self.config.clone());
        registered(&mut dialer).await;
        dialer.dial(peer).unwrap();
        until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => Some(true),
            SwarmEvent::OutgoingConnectionError { .. } => Some(false),
            _ => None,
        })
        .await
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_cause_no_more_sockets_than_a_quarter_of_the_descriptors() {
    let mut attack = Attack::new(DESCRIPTORS).await;
    let peer = run(attack.victim.take().unwrap());
    attack.begin(peer).await;
    let mut samples = Vec::new();
    for _ in 0..ATTACK.as_millis() / SAMPLE.as_millis() {
        tokio::time::sleep(SAMPLE).await;
        samples.push(attack.host.open_sockets());
    }
    samples.sort_unstable();
    let (median, peak) = (samples[samples.len() / 2], samples[samples.len() - 1]);
    println!("{ATTACKERS} identities: {median} sockets in the median, {peak} at the peak");
    assert!(peak > SPRAY, "searches still run");
    assert!(peak <= DESCRIPTORS / 4, "{peak}");
}

/// The least sockets with which a search at a NAT of random ports makes sense.
const SPRAY: usize = 128;

#[tokio::test(start_paused = true)]
async fn a_node_without_descriptors_recovers_as_soon_as_there_are_some() {
    let mut attack = Attack::new(DESCRIPTORS).await;
    let victim = attack.victim.take().unwrap();
    let peer = *victim.local_peer_id();
    let counters = Arc::new(Mutex::new(victim.behaviour().counters()));
    let copy = counters.clone();
    tokio::spawn(async move {
        let mut victim = victim;
        loop {
            victim.select_next_some().await;
            *copy.lock().unwrap() = victim.behaviour().counters();
        }
    });
    attack.host.refuse_binds(io::ErrorKind::OutOfMemory, usize::MAX, false);
    attack.begin(peer).await;
    tokio::time::sleep(ATTACK).await;
    attack.host.refuse_binds(io::ErrorKind::OutOfMemory, 0, false);
    let refused = counters.lock().unwrap().paths.sockets_refused;
    attack.attackers.abort_all();
    let connects = attack.honest_dial(peer).await;
    println!("{refused} sockets were refused in {ATTACK:?}; an honest dial after that connects: {connects}");
    assert!(refused > 0);
    assert!(connects);
}

#[tokio::test(start_paused = true)]
async fn a_node_with_too_few_descriptors_for_a_search_says_so_at_once() {
    // A quarter of it is less than a search needs.
    let mut attack = Attack::new(256).await;
    let peer = run(attack.victim.take().unwrap());
    // Its NAT is measured by then.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let gateway = attack.world.nat(Nat::default(), [192, 0, 2, 9]);
    let mut dialer = swarm(gateway.host([192, 168, 9, 2]), 9, attack.config.clone());
    registered(&mut dialer).await;
    dialer.dial(peer).unwrap();
    let reason = until(&mut dialer, |event| match event {
        SwarmEvent::Behaviour(Event::Session(SessionEvent::Failed { reason, .. })) => Some(reason),
        SwarmEvent::ConnectionEstablished { peer_id, .. } => {
            assert_ne!(peer_id, peer, "a search of half the size was lucky");
            None
        }
        _ => None,
    })
    .await;
    println!("the dial of a node with 256 descriptors behind random ports failed: {reason:?}");
    assert_eq!(reason, FailureReason::Hopeless);
}
