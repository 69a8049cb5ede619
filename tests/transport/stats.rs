//! Statistics of connections.

use std::sync::Arc;

use futures::StreamExt;
use libp2p_punch::{
    config::{CipherPreference, QuicConfig},
    transport::{Cipher, ConnectionOrigin, Stats, StatsEvent},
};
use libp2p_punch_sim::{Host, World};

use super::support::*;

fn with(quic: QuicConfig) -> Transport {
    Transport::new(&Keypair::generate_ed25519(), {
        let mut config = Config::default();
        config.quic = quic;
        config
    })
    .unwrap()
}

#[tokio::test]
async fn both_sides_tell_of_a_connection_by_call_and_as_events() {
    let ((a_id, mut a), (b_id, mut b)) = (new(), new());
    let (a_stats, b_stats) = (a.stats(), b.stats());
    let mut events = a_stats.events().unwrap();
    let address = listen(&mut a, V4).await;
    let mut connected = connect(&mut a, &mut b, address.clone(), PLAIN).await;
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;

    let [at_a] = &a_stats.connections()[..] else { panic!("one connection") };
    let [at_b] = &b_stats.of_peer(&a_id)[..] else { panic!("one connection") };
    assert_eq!((at_a.peer, at_b.peer), (b_id, a_id));
    assert_eq!((at_a.through, at_b.through), (ConnectionOrigin::Listener, ConnectionOrigin::Dial));
    assert_eq!((at_a.remote.as_ref(), at_b.remote.as_ref()), (Some(&connected.send_back), Some(&address)));
    for stats in [at_a, at_b] {
        assert_eq!(stats.handshake, HandshakeMode::RawPublicKey);
        assert!(stats.path_mtu >= 1_200 && stats.congestion_window >= 2_400);
        assert!(stats.datagrams_sent > 0 && stats.datagrams_received > 0);
        assert!(stats.bytes_sent >= 1_200 && stats.bytes_received >= 1_200);
        assert!(stats.rtt > Duration::ZERO && stats.min_rtt <= stats.rtt * 10);
    }
    assert_eq!(at_a.cipher, at_b.cipher);
    assert!(a_stats.of_peer(&a_id).is_empty());
    let number = at_a.connection;
    assert_eq!(a_stats.connection(number).map(|stats| stats.peer), Some(b_id));

    drop(connected);
    assert!(a_stats.connection(number).is_none() && a_stats.connections().is_empty());
    assert!(matches!(events.next().await, Some(StatsEvent::Opened(stats)) if stats.connection == number));
    match events.next().await {
        Some(StatsEvent::Closed(stats)) => assert!(stats.bytes_received > 1_200),
        event => panic!("{event:?}"),
    }
    assert_eq!(events.missed(), 0);
}

#[tokio::test]
async fn the_cipher_that_is_preferred_is_the_one_that_is_used() {
    for (cipher, expected) in [
        (CipherPreference::Aes128Gcm, Cipher::AesGcm),
        (CipherPreference::ChaCha20Poly1305, Cipher::ChaCha20Poly1305),
    ] {
        let mut config = QuicConfig::default();
        config.cipher = cipher;
        let (mut a, mut b) = (with(config.clone()), with(config));
        let address = listen(&mut a, V4).await;
        let connected = connect(&mut a, &mut b, address, PLAIN).await;
        for connection in [&connected.at_dialer.1, &connected.at_listener.1] {
            assert_eq!(connection.stats().cipher, expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_quantum_dial_needs_two_datagrams_and_connects_with_whoever_does_not_care() {
    let mut post_quantum = QuicConfig::default();
    post_quantum.post_quantum = true;
    let mut sent = Vec::new();
    for quic in [QuicConfig::default(), post_quantum] {
        let world = World::new(1);
        let hosts = [1, 2, 3].map(|last| world.public_host([203, 0, 113, last]));
        let on = |host: &Arc<Host>, quic| {
            let mut config = Config::default();
            config.quic = quic;
            let runtime = libp2p_punch::io::Runtime::tokio();
            Transport::with_io(&Keypair::generate_ed25519(), config, host.clone(), runtime).unwrap()
        };
        let (mut a, mut b) = (on(&hosts[0], QuicConfig::default()), on(&hosts[1], quic));
        let socket = hosts[2].socket(([203, 0, 113, 3], 4001).into()).unwrap();
        let trap = "/ip4/203.0.113.3/udp/4001/quic-v1".parse().unwrap();
        let dial = tokio::spawn(b.dial(trap, FRESH).unwrap());
        let mut flight = 0;
        // Well below the first retransmission, which the initial round-trip time of 100 ms sets to
        // 300 ms.
        while tokio::time::timeout(Duration::from_millis(150), socket.receive()).await.is_ok() {
            flight += 1;
        }
        sent.push(flight);
        dial.abort();
        let address = listen(&mut a, "/ip4/0.0.0.0/udp/4001/quic-v1").await;
        connect(&mut a, &mut b, address, PLAIN).await;
    }
    assert_eq!(sent, [1, 2]);
}

#[tokio::test]
async fn readers_that_do_not_read_are_bounded_and_learn_what_they_missed() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let stats = a.stats();
    let mut kept: Vec<_> = std::iter::from_fn(|| stats.events()).collect();
    assert_eq!(kept.len(), Stats::MAX_SUBSCRIBERS);
    let address = listen(&mut a, V4).await;
    let rounds = Stats::BACKLOG / 2 + 10;
    for _ in 0..rounds {
        // Opened and closed.
        drop(connect(&mut a, &mut b, address.clone(), PLAIN).await);
    }
    let slow = &mut kept[0];
    let read = std::iter::from_fn(|| slow.next().now_or_never().flatten()).count();
    assert_eq!(read as u64 + slow.missed(), 2 * rounds as u64);
    assert!(read >= Stats::BACKLOG && slow.missed() > 0);
    kept.truncate(1);
    assert!(stats.events().is_some());
}
