//! Clients that claim to be somewhere else (RFC 9000 §9.3 and §21.5.3).

use futures::AsyncWriteExt;
use libp2p_punch::transport::Stream;

use crate::support::*;

const SERVER: &str = "/ip4/203.0.113.2/udp/4001/quic-v1";
/// Bytes of IP and UDP headers.
const HEADERS: usize = 28;
/// Packets that the client forges, in a second.
const FORGED: u16 = 200;
/// Number of unproven addresses of one client in the first minute.
const MOVES: usize = 4 + 4;
/// Datagrams that quinn sends to each address at once: a PATH_CHALLENGE, and perhaps an MTU probe.
const DATAGRAMS: usize = 2;

/// Datagrams and their bytes on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Traffic {
    datagrams: usize,
    bytes: usize,
}

impl Traffic {
    fn add(&mut self, payload: &[u8]) {
        self.datagrams += 1;
        self.bytes += payload.len() + HEADERS;
    }
}

/// Datagrams from and to third parties: addresses of 198.18.0.0/15.
#[derive(Debug, Clone, Copy, Default)]
struct Reflection {
    forged: Traffic,
    reflected: Traffic,
}

impl Reflection {
    fn factor(&self) -> f64 {
        self.reflected.bytes as f64 / self.forged.bytes as f64
    }
}

fn watch(world: &World) -> Arc<Mutex<Reflection>> {
    let is_victim =
        |address: SocketAddr| matches!(address.ip(), IpAddr::V4(ip) if ip.octets()[..2] == [198, 18]);
    let seen = Arc::new(Mutex::new(Reflection::default()));
    let copy = seen.clone();
    world.tap(move |packet| {
        let mut seen = copy.lock().unwrap();
        if is_victim(packet.record.from) {
            seen.forged.add(packet.payload);
        }
        if is_victim(packet.record.to) {
            seen.reflected.add(packet.payload);
        }
    });
    seen
}

/// A server, and a client of it that is about to lie.
struct Scene {
    seen: Arc<Mutex<Reflection>>,
    stats: Stats,
    behaving: Arc<Mutex<Behaving>>,
    stream: Stream,
    _connection: Connection,
}

impl Scene {
    async fn new(path_mtu_discovery: bool) -> Self {
        let world = World::new(1);
        let server = world.public_host([203, 0, 113, 2]);
        let attacker = Attacker::new(world.public_host([203, 0, 113, 66]));
        let behaving = attacker.behaving();
        let mut quic = QuicConfig::default();
        quic.path_mtu_discovery = path_mtu_discovery;
        let stats = serve(transport(server, 2, quic), &[SERVER]);
        let mut dialer = transport(Arc::new(attacker), 66, QuicConfig::default());
        let (_, mut connection) = dialer.dial(SERVER.parse().unwrap(), FRESH).unwrap().await.unwrap();
        let mut stream = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        Self { seen: watch(&world), stats, behaving, stream, _connection: connection }
    }

    /// Sends one small packet from each source, and receives nothing.
    async fn forge(&mut self, source: impl Fn(u16) -> SocketAddr) -> Reflection {
        for n in 0..FORGED {
            *self.behaving.lock().unwrap() = Behaving { forges: Some(source(n)), hears: Hears::Nothing };
            self.stream.write_all(b"x").await.unwrap();
            self.stream.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        *self.seen.lock().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_forged_addresses_in_a_second_get_a_datagram_or_two_at_four_of_them() {
    for path_mtu_discovery in [true, false] {
        for (name, one_host) in [("one host", true), ("200 hosts", false)] {
            let mut scene = Scene::new(path_mtu_discovery).await;
            let source = |n| match one_host {
                true => ([198, 18, 0, 1], 2_000 + n).into(),
                false => ([198, 18, 0, n as u8], 2_000).into(),
            };
            let seen = scene.forge(source).await;
            println!(
                "{name}, MTU discovery {path_mtu_discovery}: x{:.2} on the wire, {seen:?}",
                seen.factor()
            );
            assert_eq!(seen.forged.datagrams, usize::from(FORGED));
            assert!((1..=MOVES / 2 * DATAGRAMS).contains(&seen.reflected.datagrams), "{seen:?}");
            assert!(seen.factor() <= 3.0, "{seen:?}");
            assert!(scene.stats.moves_refused() > 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_client_is_believed_to_be_where_it_does_not_answer() {
    let mut scene = Scene::new(true).await;
    let stats = scene.stats.clone();
    let mut events = stats.events().unwrap();
    scene.forge(|n| ([198, 18, 0, 1], 2_000 + n).into()).await;
    let remotes: Vec<_> = stats.connections().into_iter().map(|connection| connection.remote).collect();
    assert!(
        remotes.iter().flatten().all(|remote| remote.to_string().starts_with("/ip4/203.0.113.66/")),
        "{remotes:?}"
    );
    assert!(events.next().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_that_goes_on_forging_one_address_is_told_of_it_by_no_coordinator() {
    let victim: SocketAddr = ([198, 18, 0, 1], 7).into();
    let world = World::new(1);
    let coordinator = coordinator(&world);
    let host = world.public_host([203, 0, 113, 66]);
    // QUIC waits for a multiple of the round-trip time before it gives a new address up.
    world.set_link(&host, Link::with_latency(Duration::from_millis(1_500)));
    let attacker = Attacker::new(host);
    let behaving = attacker.behaving();
    let mut config = Config::default();
    config.role = Role::Client;
    config.coordinators = vec![coordinator];
    let mut client = swarm(Arc::new(attacker), 66, config);
    registered(&mut client).await;
    let observed = Arc::new(Mutex::new(Vec::new()));
    let copy = observed.clone();
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(Event::Nat(NatEvent::Observed { address, .. })) =
                client.select_next_some().await
            {
                copy.lock().unwrap().push(address);
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = watch(&world);
    behaving.lock().unwrap().forges = Some(victim);
    tokio::time::sleep(Duration::from_secs(25)).await;
    behaving.lock().unwrap().forges = None;
    tokio::time::sleep(Duration::from_secs(35)).await;
    let (seen, observed) = (*seen.lock().unwrap(), observed.lock().unwrap());
    println!("x{:.2} on the wire, {seen:?}; told of {observed:?}", seen.factor());
    assert!(seen.forged.datagrams > 0);
    assert!(seen.reflected.datagrams <= MOVES * DATAGRAMS, "{seen:?}");
    assert!(!observed.iter().any(|address| format!("{address:?}").contains("198.18.0.1")), "{observed:?}");
}
