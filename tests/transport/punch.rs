//! Dials in the role of the listener.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use libp2p_punch::transport::ConnectionOrigin;
use libp2p_punch_sim::{Host, Link, Nat, World};
use tokio::time::{Instant, sleep};

use super::support::*;

const PORT: u16 = 4001;
/// Delay of each NAT's link; a packet crosses two.
const LATENCY: Duration = Duration::from_millis(10);
/// Time after which no handshake of a test is under way.
const AFTER: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_punch_as_the_listener_ends_in_one_connection() {
    let ((a_id, mut a), (b_id, mut b)) = (new(), new());
    let a_address = listen(&mut a, V4).await.with(Protocol::P2p(a_id));
    let b_address = listen(&mut b, V4).await.with(Protocol::P2p(b_id));
    let punch = a.dial(b_address.clone(), AS_LISTENER).unwrap();
    assert!(matches!(
        a.dial(b_address, AS_LISTENER),
        Err(TransportError::Other(Error::HolePunchInProgress(_)))
    ));
    let dial = b.dial(a_address, PLAIN).unwrap();
    let (a_events, b_events) = (next(&mut a), next(&mut b));
    let both = Box::pin(future::try_join(punch, dial));
    let events = Box::pin(future::select(Box::pin(a_events), Box::pin(b_events)));
    let ((at_a, mut a_end), (at_b, mut b_end)) = match future::select(both, events).await {
        Either::Left((connected, _)) => connected.unwrap(),
        Either::Right(_) => panic!("the punch must take the connection"),
    };
    assert_eq!((at_a, at_b), (b_id, a_id));
    echo(&mut a_end, &mut b_end).await;
    echo(&mut b_end, &mut a_end).await;
}

#[tokio::test]
async fn a_punch_refuses_another_peer_from_the_same_address() {
    let ((a_id, mut a), (b_id, mut b)) = (new(), new());
    let a_address = listen(&mut a, V4).await.with(Protocol::P2p(a_id));
    let other = PeerId::random();
    let b_address = listen(&mut b, V4).await.with(Protocol::P2p(other));
    let punch = a.dial(b_address, AS_LISTENER).unwrap();
    let dial = b.dial(a_address, PLAIN).unwrap();
    drive(a);
    drive(b);
    let (punched, _) = future::join(punch, dial).await;
    match punched {
        Err(Error::WrongPeerId { expected, got }) => {
            assert_eq!((expected, got), (other, Some(Box::new(b_id))))
        }
        punched => panic!("{punched:?}"),
    }
}

#[tokio::test]
async fn a_punch_that_nobody_answers_ends_and_can_be_tried_again() {
    let mut config = Config::default();
    config.quic.handshake_timeout = Duration::from_secs(1);
    let mut a = Transport::new(&Keypair::generate_ed25519(), config).unwrap();
    let nobody: Multiaddr = format!("/ip4/127.0.0.1/udp/9/quic-v1/p2p/{}", PeerId::random()).parse().unwrap();
    let without_listener = a.dial(nobody.clone(), AS_LISTENER);
    assert!(matches!(without_listener, Err(TransportError::Other(Error::NoActiveListenerForDialAsListener))));
    listen(&mut a, V4).await;
    for _ in 0..2 {
        let error = a.dial(nobody.clone(), AS_LISTENER).unwrap().await.unwrap_err();
        assert!(matches!(error, Error::HandshakeTimedOut), "{error:?}");
    }
}

#[tokio::test]
async fn a_stock_peer_is_punched_for_and_dials_as_ever() {
    let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let (a_id, b_id) = (a.public().to_peer_id(), b.public().to_peer_id());
    let (mut a, mut b) = (boxed(&a), stock(&b));
    let a_address = listen(&mut a, V4).await.with(Protocol::P2p(a_id));
    let b_address = listen(&mut b, V4).await.with(Protocol::P2p(b_id));
    let punch = a.dial(b_address, AS_LISTENER).unwrap();
    let dial = b.dial(a_address, PLAIN).unwrap();
    let both = Box::pin(future::try_join(punch, dial));
    let events = Box::pin(future::select(Box::pin(next(&mut a)), Box::pin(next(&mut b))));
    match future::select(both, events).await {
        Either::Left((connected, _)) => {
            let ((at_a, _), (at_b, _)) = connected.unwrap();
            assert_eq!((at_a, at_b), (b_id, a_id));
        }
        Either::Right(_) => panic!("the punch must take the connection"),
    }
}

/// Peer that listens.
struct Site {
    peer: PeerId,
    host: Arc<Host>,
    transport: Transport,
    /// Address at which others reach it.
    external: SocketAddr,
}

impl Site {
    async fn on(host: Arc<Host>, external: IpAddr) -> Self {
        let keypair = Keypair::generate_ed25519();
        let runtime = libp2p_punch::io::Runtime::tokio();
        let mut transport = Transport::with_io(&keypair, Config::default(), host.clone(), runtime).unwrap();
        listen(&mut transport, &format!("/ip4/0.0.0.0/udp/{PORT}/quic-v1")).await;
        let external = SocketAddr::new(external, PORT);
        Self { peer: keypair.public().to_peer_id(), host, transport, external }
    }

    fn address(&self) -> Multiaddr {
        format!("/ip4/{}/udp/{PORT}/quic-v1/p2p/{}", self.external.ip(), self.peer).parse().unwrap()
    }

    /// Sends what opens a NAT and is no handshake, from the socket of the transport, as a peer does
    /// that waits as a QUIC server.
    fn open_towards(&self, remote: SocketAddr) -> tokio::task::JoinHandle<()> {
        let host = self.host.clone();
        let source = SocketAddr::new(host.addresses()[0], PORT);
        tokio::spawn(async move {
            // Random packets begin with any byte: a probe's, a short header's, and others.
            for first in [0x05, 0x45, 0x9a, 0x33].into_iter().cycle() {
                let mut packet = [0xa5; 64];
                packet[0] = first;
                host.send_forged(source, remote, &packet);
                sleep(Duration::from_millis(15)).await;
            }
        })
    }
}

/// Creates a peer behind a NAT with endpoint-independent mapping that filters by address and port.
async fn behind_nat(world: &World, number: u8) -> Site {
    let address = [198, 51, 100, number];
    let gateway = world.nat(Nat::default(), address);
    world.set_link(&gateway, Link::with_latency(LATENCY));
    Site::on(gateway.host([192, 168, number, 2]), address.into()).await
}

/// Creates a peer without NAT.
async fn public(world: &World, number: u8) -> Site {
    let address = [203, 0, 113, number];
    let host = world.public_host(address);
    world.set_link(&host, Link::with_latency(LATENCY));
    Site::on(host, address.into()).await
}

/// Accepts and keeps all connections.
fn serve(mut transport: Transport) -> libp2p_punch::transport::Stats {
    let stats = transport.stats();
    tokio::spawn(async move {
        let mut connections = Vec::new();
        loop {
            if let Some((upgrade, _)) = next(&mut transport).await.into_incoming() {
                connections.push(tokio::spawn(upgrade));
            }
        }
    });
    stats
}

/// Origins of the connections that a transport has.
fn origins(stats: &libp2p_punch::transport::Stats) -> Vec<ConnectionOrigin> {
    stats.connections().iter().map(|connection| connection.through).collect()
}

#[tokio::test(start_paused = true)]
async fn a_punch_becomes_the_client_of_a_peer_that_waits_as_a_server_too() {
    let world = World::new(1);
    let (mut a, b) = (behind_nat(&world, 1).await, behind_nat(&world, 2).await);
    let start = Instant::now();
    let opening = b.open_towards(a.external);
    let (address, peer) = (b.address(), b.peer);
    let at_b = serve(b.transport);
    let dial = a.transport.dial(address, AS_LISTENER).unwrap();
    let at_a = serve(a.transport);
    let (connected, connection) = dial.await.unwrap();
    assert_eq!(connected, peer);
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    sleep(AFTER).await;
    opening.abort();
    assert_eq!(origins(&at_a), [ConnectionOrigin::Dial]);
    assert_eq!(origins(&at_b), [ConnectionOrigin::Listener]);
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn a_punch_becomes_the_client_of_a_peer_that_sends_nothing() {
    let world = World::new(1);
    let mut a = behind_nat(&world, 1).await;
    let b = public(&world, 2).await;
    let b_address = b.address();
    let at_b = serve(b.transport);
    let start = Instant::now();
    let dial = a.transport.dial(b_address, AS_LISTENER).unwrap();
    let at_a = serve(a.transport);
    let (_, connection) = dial.await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(1_500), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    sleep(AFTER).await;
    assert_eq!(origins(&at_a), [ConnectionOrigin::Dial]);
    assert_eq!(origins(&at_b), [ConnectionOrigin::Listener]);
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_of_the_peer_takes_precedence_over_one_of_a_punch() {
    let world = World::new(1);
    let (mut a, mut b) = (behind_nat(&world, 1).await, behind_nat(&world, 2).await);
    let (a_address, b_address) = (a.address(), b.address());
    let punch = tokio::spawn(a.transport.dial(b_address, AS_LISTENER).unwrap());
    let at_a = serve(a.transport);
    // The two first flights cross on the way.
    sleep(Duration::from_millis(1_490)).await;
    let dial = b.transport.dial(a_address, PLAIN).unwrap();
    let at_b = serve(b.transport);
    let (at_dialer, at_listener) = (dial.await.unwrap(), punch.await.unwrap().unwrap());
    assert_eq!((at_dialer.0, at_listener.0), (a.peer, b.peer));
    sleep(AFTER).await;
    assert_eq!(origins(&at_a), [ConnectionOrigin::PunchAsListener]);
    assert_eq!(origins(&at_b), [ConnectionOrigin::Dial]);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_of_the_peer_after_a_punch_has_connected_is_refused() {
    let world = World::new(1);
    let (mut a, mut b) = (behind_nat(&world, 1).await, behind_nat(&world, 2).await);
    let opening = b.open_towards(a.external);
    let (a_address, b_address) = (a.address(), b.address());
    let dial = a.transport.dial(b_address, AS_LISTENER).unwrap();
    let at_a = serve(a.transport);
    let late = b.transport.dial(a_address.clone(), PLAIN).unwrap();
    let again = b.transport.dial(a_address, PLAIN).unwrap();
    let at_b = serve(b.transport);
    let (_, connection) = dial.await.unwrap();
    opening.abort();
    let error = late.await.unwrap_err();
    assert!(!matches!(error, Error::HandshakeTimedOut), "{error:?}");
    assert_eq!(
        (origins(&at_a), origins(&at_b)),
        (vec![ConnectionOrigin::Dial], vec![ConnectionOrigin::Listener])
    );

    // Once that connection has ended, the peer may connect.
    drop(connection);
    sleep(Duration::from_millis(500)).await;
    again.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_punch_stays_the_server_if_the_peer_has_connected_from_another_port() {
    let world = World::new(1);
    let (mut a, mut b) = (public(&world, 1).await, public(&world, 2).await);
    let punch = tokio::spawn(a.transport.dial(b.address(), AS_LISTENER).unwrap());
    let dial = b.transport.dial(a.address(), FRESH).unwrap();
    let (at_a, at_b) = (serve(a.transport), serve(b.transport));
    let (_, connection) = dial.await.unwrap();
    assert!(matches!(punch.await.unwrap(), Err(Error::HandshakeTimedOut)));
    assert_eq!(origins(&at_a), [ConnectionOrigin::Listener]);
    assert_eq!(origins(&at_b), [ConnectionOrigin::Dial]);
    drop(connection);
}
