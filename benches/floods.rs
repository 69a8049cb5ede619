//! CPU cost of one datagram of a flood for its victim: `cargo bench --bench floods`. Linux only.
//!
//! Over real sockets on loopback. The figure counts all threads but the one that floods, so without
//! the kernel's part of receiving, which is the flooder's here. Each figure is the median of its
//! rounds.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use libp2p::{Multiaddr, Swarm, SwarmBuilder, multiaddr::Protocol, quic as stock, swarm::SwarmEvent};
use libp2p_core::{
    Endpoint, Transport as _,
    muxing::StreamMuxerBox,
    transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent},
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_punch::{
    Behaviour, Config, Event, RegistrationEvent, Role, SessionEvent, Transport, config::QuicConfig,
};

const ANY: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const PLAIN: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
const ROUNDS: usize = 5;
/// Datagrams of a flood.
const FLOOD: usize = 4_000;
/// Datagrams in a row, few enough for every buffer, and the pause after them.
const BURST: usize = 16;
const BURST_INTERVAL: Duration = Duration::from_millis(4);
/// Time for the victim to process all datagrams, before the next ones are sent.
const SETTLE_TIME: Duration = Duration::from_millis(150);

type Muxers = Boxed<(PeerId, StreamMuxerBox)>;

fn ours(quic: QuicConfig) -> Muxers {
    let mut config = Config::default();
    config.quic = quic;
    let transport = Transport::new(&Keypair::generate_ed25519(), config).expect("valid");
    transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed()
}

fn libp2p_quic() -> Muxers {
    stock::tokio::Transport::new(stock::Config::new(&Keypair::generate_ed25519()))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed()
}

fn socket_of(address: &Multiaddr) -> SocketAddr {
    let port = address.iter().find_map(|part| match part {
        Protocol::Udp(port) => Some(port),
        _ => None,
    });
    (Ipv4Addr::LOCALHOST, port.expect("a UDP address")).into()
}

/// Listens, and takes every connection as far as it goes.
async fn serve(mut transport: Muxers) -> SocketAddr {
    transport.listen_on(ListenerId::next(), ANY.parse().expect("valid")).expect("loopback");
    let address = match transport.next().await {
        Some(TransportEvent::NewAddress { listen_addr, .. }) => socket_of(&listen_addr),
        event => panic!("{event:?}"),
    };
    tokio::spawn(async move {
        while let Some(event) = transport.next().await {
            if let TransportEvent::Incoming { upgrade, .. } = event {
                tokio::spawn(upgrade);
            }
        }
    });
    address
}

/// First flights of clients that will never be heard of again, each with connection IDs of its own.
async fn initials() -> io::Result<Vec<Vec<u8>>> {
    let trap = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = format!("/ip4/127.0.0.1/udp/{}/quic-v1", trap.local_addr()?.port());
    let address: Multiaddr = address.parse().expect("valid");
    let mut transport = Transport::new(&Keypair::generate_ed25519(), Config::default()).expect("valid");
    let mut buffer = [0; 2_000];
    let (mut dials, mut flights) = (Vec::new(), Vec::new());
    for _ in 0..FLOOD {
        let mut dial = transport.dial(address.clone(), PLAIN).expect("an address");
        assert!((&mut dial).now_or_never().is_none());
        // Who hangs up says so.
        dials.push(dial);
        let length = trap.recv(&mut buffer).await?;
        flights.push(buffer.get(..length).unwrap_or_default().to_vec());
    }
    Ok(flights)
}

/// Packets of connections that nobody knows.
fn strangers() -> Vec<Vec<u8>> {
    let packet = |_| {
        let mut packet: Vec<u8> = (0..100).map(|_| rand::random()).collect();
        packet[0] = 0x40 | (packet[0] & 0x3f);
        packet
    };
    (0..FLOOD).map(packet).collect()
}

/// Datagrams that begin like a probe and carry the tag of no session.
fn forged_probes() -> Vec<Vec<u8>> {
    let probe = |_| {
        let mut probe: Vec<u8> = (0..53).map(|_| rand::random()).collect();
        probe[0] = 0x0a;
        probe
    };
    (0..FLOOD).map(probe).collect()
}

/// Returns the CPU time in us that each datagram costs the process at `target`.
async fn cost(target: SocketAddr, datagrams: Vec<Vec<u8>>) -> io::Result<f64> {
    tokio::time::sleep(SETTLE_TIME).await;
    let before = cpu_time()?;
    let flooded = tokio::task::spawn_blocking(move || {
        // A thread of its own, that can be told from the others.
        thread::spawn(move || flood(target, &datagrams)).join().expect("it does not panic")
    });
    let count = flooded.await.map_err(io::Error::other)??;
    tokio::time::sleep(SETTLE_TIME).await;
    Ok((cpu_time()? - before).as_secs_f64() * 1e6 / count as f64)
}

/// Sends them all; how many there were. The thread ends with it, and so does its account.
fn flood(target: SocketAddr, datagrams: &[Vec<u8>]) -> io::Result<usize> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for burst in datagrams.chunks(BURST) {
        for datagram in burst {
            socket.send_to(datagram, target)?;
        }
        thread::sleep(BURST_INTERVAL);
    }
    Ok(datagrams.len())
}

/// Returns the CPU time of all living threads of this process, by the account of the scheduler.
fn cpu_time() -> io::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        let Ok(account) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += account.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(sum))
}

fn swarm(config: Config) -> Swarm<Behaviour> {
    let keypair = Keypair::generate_ed25519();
    let (transport, punch) = libp2p_punch::new(&keypair, config).expect("valid");
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_behaviour(|_| punch)
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3_600)))
        .build();
    swarm.listen_on(ANY.parse().expect("valid")).expect("loopback");
    swarm
}

async fn until<T>(swarm: &mut Swarm<Behaviour>, pick: impl Fn(SwarmEvent<Event>) -> Option<T>) -> T {
    loop {
        if let Some(found) = pick(swarm.select_next_some().await) {
            return found;
        }
    }
}

async fn listening(swarm: &mut Swarm<Behaviour>) -> Multiaddr {
    until(swarm, |event| match event {
        SwarmEvent::NewListenAddr { address, .. } => Some(address),
        _ => None,
    })
    .await
}

fn run_forever(mut swarm: Swarm<Behaviour>) {
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
}

/// A peer with a session: where it listens.
async fn peer_with_a_session() -> SocketAddr {
    let mut coordinator = swarm({
        let mut config = Config::default();
        config.role = Role::Server;
        config
    });
    let address = listening(&mut coordinator).await.with(Protocol::P2p(*coordinator.local_peer_id()));
    run_forever(coordinator);
    let mut peers = Vec::new();
    for _ in 0..2 {
        let mut config = Config::default();
        config.coordinators = vec![address.clone()];
        let mut peer = swarm(config);
        let at = listening(&mut peer).await;
        until(&mut peer, |event| {
            matches!(event, SwarmEvent::Behaviour(Event::Registration(RegistrationEvent::Accepted { .. })))
                .then_some(())
        })
        .await;
        peers.push((peer, at));
    }
    let (Some((listener, _)), Some((mut dialer, at))) = (peers.pop(), peers.pop()) else {
        unreachable!("there are two")
    };
    let id = *listener.local_peer_id();
    run_forever(listener);
    dialer.dial(id).expect("not dialed yet");
    until(&mut dialer, |event| {
        matches!(event, SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { .. }))).then_some(())
    })
    .await;
    run_forever(dialer);
    socket_of(&at)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The median of all rounds, each on a runtime of its own.
fn report(label: &str, round: impl AsyncFn() -> io::Result<f64>) -> io::Result<()> {
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        costs.push(runtime()?.block_on(round())?);
    }
    costs.sort_by(f64::total_cmp);
    let cost = costs.get(ROUNDS / 2).copied().unwrap_or(f64::NAN);
    println!("| {label} | {cost:.1} | {:.0} |", 5e5 / cost);
    Ok(())
}

fn main() -> io::Result<()> {
    println!("| each datagram | CPU, us | as many a second take half of a core |");
    println!("|---|---|---|");
    // What makes them ends with its runtime.
    let flights = runtime()?.block_on(initials())?;
    let retry = || {
        let mut quic = QuicConfig::default();
        quic.retry_threshold = 0;
        quic
    };
    report("Initial, ours, answered with a Retry", async || {
        cost(serve(ours(retry())).await, flights.clone()).await
    })?;
    let accept = || {
        let mut quic = QuicConfig::default();
        quic.retry_threshold = u32::MAX;
        quic.max_half_open = u32::MAX;
        quic
    };
    report("Initial, ours, accepted", async || cost(serve(ours(accept())).await, flights.clone()).await)?;
    let full = || {
        let mut quic = QuicConfig::default();
        quic.retry_threshold = u32::MAX;
        quic.max_half_open = 1;
        quic
    };
    report("Initial, ours, refused", async || cost(serve(ours(full())).await, flights.clone()).await)?;
    report("Initial, libp2p-quic, accepted", async || {
        cost(serve(libp2p_quic()).await, flights.clone()).await
    })?;
    report("packet of no connection, ours", async || {
        cost(serve(ours(QuicConfig::default())).await, strangers()).await
    })?;
    report("packet of no connection, libp2p-quic", async || {
        cost(serve(libp2p_quic()).await, strangers()).await
    })?;
    report("probe with a bad tag, ours, with a session", async || {
        cost(peer_with_a_session().await, forged_probes()).await
    })?;
    report("the same without any session", async || {
        cost(serve(ours(QuicConfig::default())).await, forged_probes()).await
    })
}
