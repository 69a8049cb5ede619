//! Effects of the QUIC settings.

use std::sync::Arc;

use libp2p_punch::config::{CongestionController, QuicConfig};
use libp2p_punch_sim::{Host, Link, World};
use tokio::time::Instant;

use super::support::*;

const RATE: u64 = 1_000_000;

fn transport(host: &Arc<Host>, quic: QuicConfig) -> Transport {
    let mut config = Config::default();
    config.quic = quic;
    let keypair = Keypair::generate_ed25519();
    Transport::with_io(&keypair, config, host.clone(), libp2p_punch::io::Runtime::tokio()).unwrap()
}

/// A connection from one public host to another, both of this configuration, and their world.
async fn pair(quic: &QuicConfig, link: Link) -> (World, [Arc<Host>; 2], Connected<Connection>) {
    let world = World::new(1);
    let hosts = [1, 2].map(|last| world.public_host([203, 0, 113, last]));
    for host in &hosts {
        world.set_link(host, link);
    }
    let [mut dialer, mut listener] = hosts.each_ref().map(|host| transport(host, quic.clone()));
    let address = listen(&mut listener, "/ip4/0.0.0.0/udp/4001/quic-v1").await;
    let connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
    drive(dialer);
    drive(listener);
    (world, hosts, connected)
}

/// Returns the time for this number of bytes from the dialer to the listener.
async fn transfer(connected: &mut Connected<Connection>, bytes: usize) -> Duration {
    let begin = Instant::now();
    let mut outbound = poll_fn(|cx| connected.at_dialer.1.poll_outbound_unpin(cx)).await.unwrap();
    let send = tokio::spawn(async move {
        outbound.write_all(&vec![7; bytes]).await.unwrap();
        outbound.close().await.unwrap();
        outbound
    });
    let mut inbound = poll_fn(|cx| connected.at_listener.1.poll_inbound_unpin(cx)).await.unwrap();
    let mut received = Vec::new();
    inbound.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.len(), bytes);
    send.await.unwrap();
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn every_congestion_controller_fills_a_link() {
    for congestion_controller in
        [CongestionController::Cubic, CongestionController::NewReno, CongestionController::Bbr]
    {
        let mut quic = QuicConfig::default();
        quic.congestion_controller = congestion_controller;
        let link = Link { rate: Some(RATE), ..Link::with_latency(Duration::from_millis(10)) };
        let (_, _, mut connected) = pair(&quic, link).await;
        transfer(&mut connected, RATE as usize).await;
        let took = transfer(&mut connected, 4 * RATE as usize).await;
        assert!((4_000..5_500).contains(&took.as_millis()), "{congestion_controller:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_path_mtu_stays_within_its_bounds() {
    for (path_mtu_discovery, initial_mtu, max_mtu, carries, expected) in [
        (true, 1_200, 1_452, 1_500, 1_452),
        (true, 1_200, 1_300, 1_500, 1_300),
        (true, 1_250, 8_972, 9_000, 8_972),
        // The path itself bounds the MTU: 28 bytes are IP's and UDP's.
        (true, 1_200, 1_452, 1_400, 1_372),
        (false, 1_200, 1_452, 1_500, 1_200),
        (false, 1_400, 1_452, 1_500, 1_400),
    ] {
        let mut quic = QuicConfig::default();
        quic.path_mtu_discovery = path_mtu_discovery;
        quic.initial_mtu = initial_mtu;
        quic.max_mtu = max_mtu;
        let link = Link { mtu: carries, ..Link::with_latency(Duration::from_millis(5)) };
        let (_, _, mut connected) = pair(&quic, link).await;
        let begun_with = connected.at_dialer.1.stats().path_mtu;
        transfer(&mut connected, 500_000).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        transfer(&mut connected, 500_000).await;
        let found = connected.at_dialer.1.stats().path_mtu;
        // The search ends within a few bytes of the largest that goes through.
        assert!(begun_with >= initial_mtu && found <= expected, "{begun_with}, {found}, {expected}");
        assert!(found + 20 >= expected, "{found} of {expected} with {quic:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_kept_alive_and_one_whose_peer_is_gone_ends_with_the_time_out() {
    let idle = Duration::from_secs(3);
    let mut quic = QuicConfig::default();
    quic.max_idle_timeout = idle;
    quic.keep_alive_interval = Duration::from_secs(1);
    let (world, hosts, mut connected) = pair(&quic, Link::with_latency(Duration::from_millis(5))).await;
    tokio::time::sleep(10 * idle).await;
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
    world.block(&hosts[0], &hosts[1]);
    let begin = Instant::now();
    let error = poll_fn(|cx| connected.at_dialer.1.poll_inbound_unpin(cx)).await.unwrap_err();
    assert_eq!(error.to_string(), "timed out");
    let took = begin.elapsed();
    // The time-out starts again with the first PING that is not answered (RFC 9000 §10.1).
    assert!(
        took + Duration::from_millis(100) >= idle
            && took <= idle + quic.keep_alive_interval + Duration::from_millis(100),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handshake_ends_with_its_own_time_out() {
    let handshake_timeout = Duration::from_millis(700);
    let world = World::new(1);
    let host = world.public_host([203, 0, 113, 1]);
    let mut dialer = transport(&host, {
        let mut quic = QuicConfig::default();
        quic.handshake_timeout = handshake_timeout;
        quic
    });
    let begin = Instant::now();
    let nobody = "/ip4/203.0.113.9/udp/9/quic-v1".parse().unwrap();
    let error = dialer.dial(nobody, PLAIN).unwrap().await.unwrap_err();
    assert!(matches!(error, Error::HandshakeTimedOut), "{error:?}");
    assert!(begin.elapsed() >= handshake_timeout && begin.elapsed() < handshake_timeout * 11 / 10);
}

#[tokio::test(start_paused = true)]
async fn a_connection_takes_no_more_than_its_windows() {
    let mut quic = QuicConfig::default();
    quic.max_stream_data = 40_000;
    quic.max_connection_data = 100_000;
    let (_, _, mut connected) = pair(&quic, Link::with_latency(Duration::from_millis(5))).await;
    let mut sent = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut outbound = poll_fn(|cx| connected.at_dialer.1.poll_outbound_unpin(cx)).await.unwrap();
        let mut bytes = 0;
        let fill = async {
            loop {
                bytes += outbound.write(&[7; 1_000]).await.unwrap();
            }
        };
        // Nothing reads.
        tokio::time::timeout(Duration::from_secs(1), fill).await.unwrap_err();
        sent.push(bytes);
        streams.push(outbound);
    }
    assert_eq!(sent, [40_000, 40_000, 20_000, 0]);
}
