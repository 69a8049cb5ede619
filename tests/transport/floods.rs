//! Throughput of an open connection in a flood: at least half, in both directions, and all of it
//! after the flood.
//!
//! In simulated time, over a link of limited rate. The attacker may use a quarter of the rate
//! towards the server, so that a larger loss can only come from the server's reaction. CPU is not
//! simulated. The figures are in `docs/performance.md`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use futures::{StreamExt, channel::mpsc, stream::FuturesUnordered};
use libp2p_punch::{config::QuicConfig, transport::Stats};
use libp2p_punch_sim::{Host, Link, World};

use super::{hostile::first_flights, support::*};

/// Bytes a second of the server's link, each way.
const RATE: u64 = 1_000_000;
/// And of an attacker's.
const ATTACK: u64 = RATE / 4;
/// Time in which throughput is measured.
const WINDOW: Duration = Duration::from_secs(4);
/// Until everything has passed that a flood left behind: handshakes time out after five seconds.
const CALM: Duration = Duration::from_secs(8);

fn host(world: &World, last: u8, rate: Option<u64>) -> Arc<Host> {
    let host = world.public_host([203, 0, 113, last]);
    world.set_link(&host, Link { rate, queue: 64 * 1024, ..Link::with_latency(Duration::from_millis(10)) });
    host
}

fn transport(host: &Arc<Host>, quic: QuicConfig) -> Transport {
    let mut config = Config::default();
    config.quic = quic;
    let keypair = Keypair::generate_ed25519();
    Transport::with_io(&keypair, config, host.clone(), libp2p_punch::io::Runtime::tokio()).unwrap()
}

/// A server, and one connection that fills the link in both directions.
struct Scene {
    world: World,
    server: Arc<Host>,
    address: Multiaddr,
    stats: Stats,
    accepted: mpsc::UnboundedReceiver<Connection>,
    /// The most handshakes that were under way at once.
    half_open: Arc<AtomicU64>,
    /// Bytes that have arrived: at the server, at the client.
    arrived: [Arc<AtomicU64>; 2],
}

impl Scene {
    async fn new(quic: QuicConfig) -> Self {
        let world = World::new(1);
        let (server, client) = (host(&world, 2, Some(RATE)), host(&world, 3, None));
        let mut listener = transport(&server, quic);
        let address = listen(&mut listener, "/ip4/0.0.0.0/udp/4001/quic-v1").await;
        let stats = listener.stats();
        let (mut accepted, half_open) = serve(listener);
        let mut dialer = transport(&client, QuicConfig::default());
        let (_, at_client) = dialer.dial(address.clone(), PLAIN).unwrap().await.unwrap();
        let at_server = accepted.next().await.unwrap();
        drive(dialer);
        Self { world, server, address, stats, accepted, half_open, arrived: fill(at_client, at_server) }
    }

    /// Bytes that arrive in the time of a window: at the server, at the client.
    async fn throughput(&self) -> [u64; 2] {
        let before = self.arrived.each_ref().map(|count| count.load(Relaxed));
        tokio::time::sleep(WINDOW).await;
        let after = self.arrived.each_ref().map(|count| count.load(Relaxed));
        [after[0] - before[0], after[1] - before[1]]
    }

    /// Throughput before, during and after a flood, which has had `lead` to rise.
    async fn measure(
        &mut self,
        lead: Duration,
        flood: impl Future<Output = ()> + Send + 'static,
    ) -> Measured {
        tokio::time::sleep(CALM).await;
        let before = self.throughput().await;
        let flood = tokio::spawn(flood);
        tokio::time::sleep(lead).await;
        let during = self.throughput().await;
        flood.abort();
        tokio::time::sleep(CALM).await;
        let measured = Measured { before, during, after: self.throughput().await };
        println!("{measured:?}");
        measured
    }
}

#[derive(Debug)]
struct Measured {
    before: [u64; 2],
    during: [u64; 2],
    after: [u64; 2],
}

impl Measured {
    /// The least share, in percent, that either direction keeps.
    fn kept(&self) -> u64 {
        (0..2).map(|way| 100 * self.during[way] / self.before[way]).min().unwrap()
    }

    fn assert_good(&self) {
        // The link bounds the throughput before the flood.
        assert!(self.before.iter().all(|bytes| *bytes >= WINDOW.as_secs() * RATE * 8 / 10), "{self:?}");
        assert!(self.kept() >= 50, "{self:?}");
        assert!(
            (0..2).all(|way| self.after[way] * 100 >= self.before[way] * 85),
            "it does not recover: {self:?}"
        );
    }
}

/// Accepts all connections, hands on those that are authenticated, and counts how many handshakes
/// there were at once.
fn serve(mut transport: Transport) -> (mpsc::UnboundedReceiver<Connection>, Arc<AtomicU64>) {
    let (sender, accepted) = mpsc::unbounded();
    let half_open = Arc::new(AtomicU64::new(0));
    let most = half_open.clone();
    tokio::spawn(async move {
        let mut upgrades = FuturesUnordered::new();
        loop {
            tokio::select! {
                event = next(&mut transport) => {
                    upgrades.extend(event.into_incoming().map(|(upgrade, _)| upgrade));
                    most.fetch_max(upgrades.len() as u64, Relaxed);
                }
                Some(upgraded) = upgrades.next() => {
                    if let Ok((_, connection)) = upgraded {
                        sender.unbounded_send(connection).unwrap();
                    }
                }
            }
        }
    });
    (accepted, half_open)
}

/// Sends without end, each way, and counts the arrivals.
fn fill(a: Connection, b: Connection) -> [Arc<AtomicU64>; 2] {
    let counts = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    for (mut connection, count) in [a, b].into_iter().zip([counts[1].clone(), counts[0].clone()]) {
        tokio::spawn(async move {
            let mut outbound = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await.unwrap();
            outbound.write_all(&[0; 1_000]).await.unwrap();
            let mut inbound = poll_fn(|cx| connection.poll_inbound_unpin(cx)).await.unwrap();
            let send = async { while outbound.write_all(&[7; 16_384]).await.is_ok() {} };
            let receive = async {
                let mut buffer = vec![0; 65_536];
                while let Ok(read @ 1..) = inbound.read(&mut buffer).await {
                    count.fetch_add(read as u64, Relaxed);
                }
            };
            future::join(send, receive).await;
        });
    }
    counts
}

/// The share of throughput that a server of this configuration keeps in a flood of Initials.
async fn flood_of_initials(quic: QuicConfig) -> Measured {
    let mut scene = Scene::new(quic).await;
    let attacker = host(&scene.world, 66, Some(ATTACK));
    // A flight, its UDP and its IP header.
    let gap = Duration::from_micros(1_000_000 * 1_228 / ATTACK);
    let flights = first_flights(&attacker, (WINDOW.as_micros() / gap.as_micros()) as usize).await;
    scene
        .measure(Duration::ZERO, async move {
            let socket = attacker.socket(([0, 0, 0, 0], 10).into()).unwrap();
            for flight in flights {
                socket.send_to(([203, 0, 113, 2], 4001).into(), &flight);
                tokio::time::sleep(gap).await;
            }
        })
        .await
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_initials_leaves_half_of_the_throughput() {
    flood_of_initials(QuicConfig::default()).await.assert_good();
}

#[tokio::test(start_paused = true)]
async fn it_is_retry_that_keeps_a_flood_of_initials_from_being_answered_threefold() {
    let mut unguarded = QuicConfig::default();
    unguarded.retry_threshold = u32::MAX;
    unguarded.max_half_open = u32::MAX;
    unguarded.max_half_open_per_prefix = None;
    let measured = flood_of_initials(unguarded).await;
    assert!(measured.kept() < 50, "{measured:?}");
}

#[tokio::test(start_paused = true)]
async fn half_open_handshakes_at_the_cap_leave_half_of_the_throughput() {
    const CAP: u32 = 128;
    /// To the server and back. Its queue may add a sixth to that.
    const FAR: Duration = Duration::from_millis(400);
    let mut quic = QuicConfig::default();
    quic.retry_threshold = 0;
    quic.max_half_open = CAP;
    let mut scene = Scene::new(quic).await;
    let lead = Duration::from_secs(3);
    let gap = Duration::from_millis(200);
    let attackers: Vec<_> = (100..136).map(|last| host(&scene.world, last, None)).collect();
    let server = scene.server.clone();
    for attacker in &attackers {
        scene.world.set_path(attacker, &server, FAR / 2);
    }
    let (world, address) = (scene.world.clone(), scene.address.clone());
    let flood = async move {
        for attacker in attackers {
            let (world, address) = (world.clone(), address.clone());
            tokio::spawn(async move {
                let mut dialer = transport(&attacker, QuicConfig::default());
                let dials: Vec<_> =
                    (0..10).map(|_| tokio::spawn(dialer.dial(address.clone(), FRESH).unwrap())).collect();
                // A Retry has come and was answered; the client receives no more.
                tokio::time::sleep(FAR * 3 / 2).await;
                world.set_link(&attacker, Link { loss: 1.0, ..Link::default() });
                future::join_all(dials).await;
            });
            tokio::time::sleep(gap).await;
        }
    };
    scene.measure(lead, flood).await.assert_good();
    assert_eq!(scene.half_open.load(Relaxed), u64::from(CAP));
    assert_eq!(scene.stats.connections().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn streams_opened_and_reset_leave_half_of_the_throughput() {
    let mut scene = Scene::new(QuicConfig::default()).await;
    let attacker = host(&scene.world, 66, Some(ATTACK));
    let turned_down = Arc::new(AtomicU64::new(0));
    let mut bad = Vec::new();
    for _ in 0..16 {
        let mut dialer = transport(&attacker, QuicConfig::default());
        let (_, at_attacker) = dialer.dial(scene.address.clone(), PLAIN).unwrap().await.unwrap();
        bad.push((dialer, at_attacker));
        let mut victim = scene.accepted.next().await.unwrap();
        // An application that turns every stream down as soon as it comes.
        let count = turned_down.clone();
        tokio::spawn(async move {
            while let Ok(stream) = poll_fn(|cx| victim.poll_inbound_unpin(cx)).await {
                drop(stream);
                count.fetch_add(1, Relaxed);
            }
        });
    }
    let flood = bad.into_iter().map(|(_dialer, mut connection)| async move {
        while let Ok(mut stream) = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await {
            // The stream may have been refused already.
            let _ = stream.write_all(&[0; 100]).await;
        }
    });
    let flood = future::join_all(flood);
    scene.measure(Duration::ZERO, async { drop(flood.await) }).await.assert_good();
    let turned_down = turned_down.load(Relaxed);
    assert!(turned_down >= 1_000, "{turned_down} streams are no flood");
}
