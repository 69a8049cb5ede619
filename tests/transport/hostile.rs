//! Hostile peers: the state that they can cause is bounded, connected peers stay connected, and the
//! effects pass.

use std::sync::Arc;

use futures::StreamExt;
use libp2p_punch::config::QuicConfig;
use libp2p_punch_sim::{Host, World};

use super::support::*;

const RETRY_THRESHOLD: u32 = 8;
const MAX_HALF_OPEN: u32 = 24;
const SERVER: [u8; 4] = [203, 0, 113, 2];

fn transport(host: &Arc<Host>, quic: QuicConfig) -> Transport {
    let mut config = Config::default();
    config.quic = quic;
    let keypair = Keypair::generate_ed25519();
    Transport::with_io(&keypair, config, host.clone(), libp2p_punch::io::Runtime::tokio()).unwrap()
}

fn guarded() -> QuicConfig {
    {
        let mut quic = QuicConfig::default();
        quic.retry_threshold = RETRY_THRESHOLD;
        quic.max_half_open = MAX_HALF_OPEN;
        quic
    }
}

/// Sends first flights of clients that then fall silent, each with connection IDs of its own.
pub(crate) async fn first_flights(attacker: &Arc<Host>, count: usize) -> Vec<Arc<[u8]>> {
    let trap = attacker.socket(([0, 0, 0, 0], 9).into()).unwrap();
    let mut dialer = transport(attacker, QuicConfig::default());
    let address: Multiaddr = format!("/ip4/{}/udp/9/quic-v1", attacker.addresses()[0]).parse().unwrap();
    let (mut dials, mut flights) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let mut dial = dialer.dial(address.clone(), FRESH).unwrap();
        assert!((&mut dial).now_or_never().is_none());
        // A dropped dial would close its connection.
        dials.push(dial);
        flights.push(trap.receive().await.payload);
    }
    flights
}

/// Answers its own incoming connections for ever, and keeps them.
fn serve(
    mut transport: Transport,
) -> (libp2p_punch::transport::Stats, futures::channel::mpsc::UnboundedReceiver<()>) {
    let (accepted, count) = futures::channel::mpsc::unbounded();
    let stats = transport.stats();
    tokio::spawn(async move {
        let mut upgrades = futures::stream::FuturesUnordered::new();
        let mut connections = Vec::new();
        loop {
            tokio::select! {
                event = next(&mut transport) => {
                    if let Some((upgrade, _)) = event.into_incoming() {
                        accepted.unbounded_send(()).unwrap();
                        upgrades.push(upgrade);
                    }
                }
                Some(upgraded) = upgrades.next() => connections.extend(upgraded.ok()),
            }
        }
    });
    (stats, count)
}

fn drain(receiver: &mut futures::channel::mpsc::UnboundedReceiver<()>) -> usize {
    std::iter::from_fn(|| receiver.try_recv().ok()).count()
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_initials_is_bounded_and_honest_clients_get_through_it() {
    let world = World::new(1);
    let [server, honest, attacker] = [2, 3, 66].map(|last| world.public_host([203, 0, 113, last]));
    let mut listener = transport(&server, guarded());
    let address = listen(&mut listener, "/ip4/0.0.0.0/udp/4001/quic-v1").await;
    let (stats, mut accepted) = serve(listener);
    let mut dialer = transport(&honest, QuicConfig::default());
    let (_, mut before) = dialer.dial(address.clone(), PLAIN).unwrap().await.unwrap();
    assert_eq!(drain(&mut accepted), 1);

    let flights = first_flights(&attacker, 200).await;
    // Each from another port, and none of them ever answers a Retry.
    let sockets: Vec<_> =
        (0..200).map(|port| attacker.socket(([0, 0, 0, 0], 10_000 + port).into()).unwrap()).collect();
    for (socket, flight) in sockets.iter().zip(&flights) {
        socket.send_to((SERVER, 4001).into(), flight);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(drain(&mut accepted), RETRY_THRESHOLD as usize, "the others must first prove their address");

    // During the flood a new client gets in by Retry, and the open connection works.
    let (_, during) = dialer.dial(address.clone(), FRESH).unwrap().await.unwrap();
    assert_eq!(drain(&mut accepted), 1);
    // The server is done half a round trip later.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(stats.connections().len(), 2);
    poll_fn(|cx| before.poll_outbound_unpin(cx)).await.unwrap().write_all(b"alive").await.unwrap();

    // After the time-outs of the handshakes there is room again, even for refused clients, of which
    // no state is kept.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for (socket, flight) in sockets.iter().zip(&flights).rev().take(4) {
        socket.send_to((SERVER, 4001).into(), flight);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(drain(&mut accepted), 4);
    assert_eq!(stats.connections().len(), 2);
    drop(during);
}

#[tokio::test(start_paused = true)]
async fn clients_that_prove_their_address_and_then_fall_silent_are_refused_at_the_cap() {
    let world = World::new(1);
    let [server, attacker] = [2, 66].map(|last| world.public_host([203, 0, 113, last]));
    let mut listener = transport(&server, guarded());
    let address = listen(&mut listener, "/ip4/0.0.0.0/udp/4001/quic-v1").await;
    // Upgrades that are never polled are handshakes that never end.
    let mut dialer = transport(&attacker, QuicConfig::default());
    let dials: Vec<_> = (0..60).map(|_| tokio::spawn(dialer.dial(address.clone(), FRESH).unwrap())).collect();
    let mut held = Vec::new();
    let collect = async {
        loop {
            held.extend(next(&mut listener).await.into_incoming());
        }
    };
    tokio::time::timeout(Duration::from_secs(2), collect).await.unwrap_err();
    assert_eq!(held.len(), MAX_HALF_OPEN as usize);
    drop(dials);
    held.clear();
    let connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
    assert_eq!(listener.stats().of_peer(&connected.at_listener.0).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_limit_are_refused_until_others_end() {
    let world = World::new(1);
    let [server, client] = [2, 3].map(|last| world.public_host([203, 0, 113, last]));
    let mut quic = QuicConfig::default();
    quic.max_connections = Some(2);
    let mut listener = transport(&server, quic);
    let address = listen(&mut listener, "/ip4/0.0.0.0/udp/4001/quic-v1").await;
    let mut dialer = transport(&client, QuicConfig::default());
    let first = connect(&mut listener, &mut dialer, address.clone(), PLAIN).await;
    let _second = connect(&mut listener, &mut dialer, address.clone(), PLAIN).await;
    let third = dialer.dial(address.clone(), PLAIN).unwrap();
    let refused = tokio::select! {
        refused = third => refused,
        event = next(&mut listener) => panic!("{event:?}"),
    };
    assert!(matches!(refused, Err(Error::Connection(_))), "{refused:?}");
    drop(first);
    let _fourth = connect(&mut listener, &mut dialer, address, PLAIN).await;
    assert_eq!(listener.stats().connections().len(), 2);
}

/// Streams that a remote may open before it has shown that it needs more.
const FIRST_STREAMS: usize = 16;

#[tokio::test(start_paused = true)]
async fn streams_opened_and_reset_are_bounded_by_the_limit_and_others_still_work() {
    let world = World::new(1);
    let [server, client] = [2, 3].map(|last| world.public_host([203, 0, 113, last]));
    let mut listener = transport(&server, QuicConfig::default());
    let address = listen(&mut listener, "/ip4/0.0.0.0/udp/4001/quic-v1").await;
    let mut dialer = transport(&client, QuicConfig::default());
    let connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
    let (mut bad, mut victim) = (connected.at_dialer.1, connected.at_listener.1);
    let mut opened = 0;
    let open_and_drop = async {
        loop {
            let mut stream = poll_fn(|cx| bad.poll_outbound_unpin(cx)).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            opened += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), open_and_drop).await.unwrap_err();
    assert_eq!(
        opened, FIRST_STREAMS,
        "no more than every connection has at first, while nobody accepts them"
    );
    let mut accepted = 0;
    while let Some(stream) = poll_fn(|cx| victim.poll_inbound_unpin(cx)).now_or_never() {
        drop(stream.unwrap());
        accepted += 1;
    }
    assert_eq!(accepted, opened);
    tokio::time::sleep(Duration::from_secs(1)).await;
    echo(&mut bad, &mut victim).await;
}
