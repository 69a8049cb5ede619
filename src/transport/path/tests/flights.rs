//! Handshakes: first flights, budgets and endings.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::crypto::aws_lc_rs;
use tokio::time::Instant;

use super::{
    super::{PathError, PathNotice, SessionConfigs},
    net::{DELAY, Net},
    node::{Configs, FLOW, Node, echo, flight_binding, layer, send_and_receive},
};
use libp2p_punch_proto::{VirtualConnectionId, command::Command, wire::keys::FlightBinding};

/// A ClientHello without the post-quantum key share, which takes one datagram.
struct Small(Configs);

impl SessionConfigs for Small {
    fn client(&self, _: PeerId, _: Option<Duration>) -> quinn::ClientConfig {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        let tls = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }

    fn server(&self, peer: PeerId, rtt: Option<Duration>) -> Arc<quinn::ServerConfig> {
        self.0.server(peer, rtt)
    }
}

fn connect(flow: VirtualConnectionId) -> Command {
    Command::Connect { flow, peer: PeerId::random(), rtt: None, binding: flight_binding() }
}

/// Returns the numbers of datagrams in the first flights of 100 connections, made at once.
async fn flights(configs: impl SessionConfigs) -> Vec<usize> {
    let (layer, mut notices) = layer(configs, 8);
    for n in 0..100 {
        layer.execute(connect(VirtualConnectionId(n)));
    }
    let mut lengths = Vec::new();
    while lengths.len() < 100 {
        match notices.recv().await.unwrap() {
            PathNotice::FirstFlight { datagrams, .. } => {
                assert!(
                    datagrams.iter().all(|datagram| datagram.len() >= 1200 && datagram[0] & 0xc0 == 0xc0)
                );
                lengths.push(datagrams.len());
            }
            other => panic!("{other:?}"),
        }
    }
    lengths
}

#[tokio::test(start_paused = true)]
async fn a_first_flight_of_two_datagrams_is_captured_whole() {
    assert_eq!(flights(Configs(Keypair::generate_ed25519())).await, [2; 100]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_first_flight_of_two_datagrams_is_captured_whole_across_threads() {
    assert_eq!(flights(Configs(Keypair::generate_ed25519())).await, [2; 100]);
}

#[tokio::test(start_paused = true)]
async fn a_first_flight_of_one_datagram_is_captured() {
    assert_eq!(flights(Small(Configs(Keypair::generate_ed25519()))).await, [1; 100]);
}

#[tokio::test(start_paused = true)]
async fn the_client_answers_the_server_flight_at_once_with_at_most_three_times_its_bytes() {
    let net = Net::new();
    let (mut a, mut b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    let start = Instant::now();
    a.offer(&b, FLOW).await;
    a.admit(FLOW, a.path(0, &b, 0));
    b.admit(FLOW, b.path(0, &a, 0));
    b.permit(FLOW, b.path(0, &a, 0), 3 * 2400);
    let (_connection, _guard) = a.established().await;
    assert!(start.elapsed() < DELAY + Duration::from_millis(2), "{:?}", start.elapsed());
    // The client has no path yet: it answers where the flight came from, within the budget of RFC
    // 9000 §8.1.
    b.established().await;
    let bytes = |to| net.sent().iter().filter(|d| d.to == to).map(|d| d.data.len()).sum::<usize>();
    let (answered, received) = (bytes(b.bindings[0].1.address), bytes(a.bindings[0].1.address));
    assert!(0 < answered && answered <= 3 * received, "{answered} bytes for {received}");
    assert!(start.elapsed() < 2 * DELAY + Duration::from_millis(4), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_answers_a_server_that_it_hears_before_anybody_says_where_that_is() {
    let net = Net::new();
    let (mut a, mut b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    let start = Instant::now();
    a.offer(&b, FLOW).await;
    b.admit(FLOW, b.path(0, &a, 0));
    b.permit(FLOW, b.path(0, &a, 0), 3 * 2400);
    let (_connection, guard) = a.established().await;
    assert!(start.elapsed() < DELAY + Duration::from_millis(2), "{:?}", start.elapsed());
    assert_eq!(guard.path(), Some(a.path(0, &b, 0)));
    b.established().await;
    let bytes = |to| net.sent().iter().filter(|d| d.to == to).map(|d| d.data.len()).sum::<usize>();
    let (answered, received) = (bytes(b.bindings[0].1.address), bytes(a.bindings[0].1.address));
    assert!(0 < answered && answered <= 3 * received, "{answered} bytes for {received}");
}

#[tokio::test(start_paused = true)]
async fn a_client_goes_on_hearing_a_server_of_which_nobody_says_where_it_is() {
    let net = Net::new();
    let (mut a, mut b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    a.offer(&b, FLOW).await;
    b.admit(FLOW, b.path(0, &a, 0));
    b.permit(FLOW, b.path(0, &a, 0), 3 * 2400);
    let (client, _client_guard) = a.established().await;
    let (server, _server_guard) = b.established().await;
    b.select(FLOW, b.path(0, &a, 0));
    tokio::spawn(echo(server));
    let start = Instant::now();
    let data = vec![7; 100];
    // By now the server uses another connection ID of the client's, as quinn's servers do as soon
    // as they have one.
    assert_eq!(send_and_receive(client, data.clone()).await, data);
    assert!(start.elapsed() < 3 * DELAY, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lost_server_flight_is_sent_again_on_selection() {
    let net = Net::new();
    let (mut a, b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    let (ours, theirs) = (a.bindings[0].1.address, b.bindings[0].1.address);
    net.cut(theirs, ours);
    a.offer(&b, FLOW).await;
    a.admit(FLOW, a.path(0, &b, 0));
    b.admit(FLOW, b.path(0, &a, 0));
    b.permit(FLOW, b.path(0, &a, 0), 3 * 2400);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let lost = net.sent().len();
    assert!(lost >= 2, "the server's flight left");
    net.mend(theirs, ours);
    let start = Instant::now();
    b.select(FLOW, b.path(0, &a, 0));
    a.established().await;
    assert!(start.elapsed() < DELAY + Duration::from_millis(2), "{:?}", start.elapsed());
    let sent = net.sent();
    let (first, again) = (&sent[..lost], &sent[lost..]);
    assert!(first.iter().zip(again).all(|(first, again)| first.data == again.data), "the same bytes");
}

#[tokio::test(start_paused = true)]
async fn a_lost_end_of_the_handshake_is_sent_again_soon_however_late_the_path_was_found() {
    let net = Net::new();
    let (mut a, mut b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    let (ours, theirs) = (a.bindings[0].1.address, b.bindings[0].1.address);
    a.offer(&b, FLOW).await;
    a.admit(FLOW, a.path(0, &b, 0));
    b.admit(FLOW, b.path(0, &a, 0));
    tokio::time::sleep(Duration::from_secs(4)).await;
    a.select(FLOW, a.path(0, &b, 0));
    b.select(FLOW, b.path(0, &a, 0));
    tokio::time::sleep(DELAY / 2).await;
    net.cut(ours, theirs);
    let _held = a.established().await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    net.mend(ours, theirs);
    let start = Instant::now();
    b.established().await;
    assert!(start.elapsed() < Duration::from_millis(250) + 2 * DELAY, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_first_flight_that_the_coordinator_lost_is_sent_on_selection() {
    let net = Net::new();
    let mut a = Node::new(&net, &["192.0.2.1:10"]);
    let b = Node::new(&net, &["192.0.2.2:20"]);
    a.layer.execute(Command::Connect { flow: FLOW, peer: b.peer, rtt: None, binding: flight_binding() });
    let flight = a.first_flight().await;
    a.admit(FLOW, a.path(0, &b, 0));
    a.select(FLOW, a.path(0, &b, 0));
    let sent: Vec<Bytes> = net.sent().into_iter().map(|datagram| datagram.data.into()).collect();
    assert_eq!(sent, flight);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_the_client_has_not_heard_sends_its_flight_again() {
    // The client's own retransmission reaches the server before the server has selected: it bears
    // the ID that the client chose, and so does not prove that the server's flight arrived.
    let net = Net::new();
    let (mut a, mut b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    let (ours, theirs) = (a.bindings[0].1.address, b.bindings[0].1.address);
    net.cut(theirs, ours);
    a.offer(&b, FLOW).await;
    a.admit(FLOW, a.path(0, &b, 0));
    b.admit(FLOW, b.path(0, &a, 0));
    b.permit(FLOW, b.path(0, &a, 0), 3 * 2400);
    a.select(FLOW, a.path(0, &b, 0));
    tokio::time::sleep(2 * DELAY).await;
    net.mend(theirs, ours);
    assert!(b.layer.counters().bytes_received >= 2400, "the client's flight came by the path");
    let start = Instant::now();
    b.select(FLOW, b.path(0, &a, 0));
    tokio::join!(a.established(), b.established());
    assert!(start.elapsed() < 2 * DELAY + Duration::from_millis(4), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_sends_no_more_than_its_budget() {
    let net = Net::new();
    let (mut a, b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    a.offer(&b, FLOW).await;
    // The client would answer, and each of its packets would add to the budget.
    net.cut(b.bindings[0].1.address, a.bindings[0].1.address);
    b.admit(FLOW, b.path(0, &a, 0));
    let bytes = || net.sent().iter().map(|datagram| datagram.data.len()).sum::<usize>();
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(bytes(), 0);
    let mut budget = 0;
    for permitted in [100, 1100, 1199, 1300] {
        b.permit(FLOW, b.path(0, &a, 0), permitted);
        budget += permitted;
        assert!(bytes() <= budget);
    }
    assert!(bytes() > budget - 1200, "what fits goes");
    // The handshake's timers fire again and again.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(bytes() <= budget);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_attempt_fails_and_sends_no_flight() {
    let net = Net::new();
    let mut a = Node::new(&net, &["192.0.2.1:10"]);
    a.layer.execute(connect(FLOW));
    a.layer.execute(Command::Close { flow: FLOW });
    assert!(matches!(a.failed().await, PathError::Closed));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(a.notices.try_recv().is_err(), "nothing follows the end of a flow");
    assert!(!a.layer.is_active());
}

/// A datagram with the right connection ID of which QUIC makes no connection.
fn no_flight() -> Bytes {
    let cid = flight_binding().connection_id([3; 8]);
    [&[0xc7, 0, 0, 0, 9, cid.len() as u8], cid.as_slice(), &[7; 1_174]].concat().into()
}

#[tokio::test(start_paused = true)]
async fn an_accepted_flight_that_is_none_ends_with_its_close() {
    let net = Net::new();
    let mut b = Node::new(&net, &["192.0.2.2:20"]);
    let first_flight = vec![no_flight(), no_flight()];
    b.layer.execute(Command::Accept {
        flow: FLOW,
        peer: PeerId::random(),
        first_flight,
        rtt: None,
        binding: flight_binding(),
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(b.notices.try_recv().is_err());
    b.layer.execute(Command::Close { flow: FLOW });
    assert!(matches!(b.failed().await, PathError::Closed));
}

#[tokio::test(start_paused = true)]
async fn an_accepted_flight_that_is_none_ends_with_the_driver() {
    let net = Net::new();
    let Node { layer, notices, .. } = Node::new(&net, &["192.0.2.2:20"]);
    let first_flight = vec![no_flight()];
    layer.execute(Command::Accept {
        flow: FLOW,
        peer: PeerId::random(),
        first_flight,
        rtt: None,
        binding: flight_binding(),
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(layer.is_active());
    drop(notices);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!layer.is_active());
}

#[tokio::test(start_paused = true)]
async fn a_first_flight_in_the_request_of_another_does_not_keep_the_honest_copy_out() {
    let net = Net::new();
    let (mut a, mut b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    a.layer.execute(Command::Connect { flow: FLOW, peer: b.peer, rtt: None, binding: flight_binding() });
    let first_flight = a.first_flight().await;
    // A coordinator may show the flight to a peer whose request is faster than the honest request;
    // in either datagram.
    let thief = Keypair::generate_ed25519().public().to_peer_id();
    let theirs = FlightBinding::new(&thief, &[7; 32]);
    let cid = theirs.connection_id([1; 8]);
    let own: Bytes = [&[0xc7, 0, 0, 0, 1, 20], cid.as_slice(), &[7; 1_174]].concat().into();
    for (n, first_flight) in [(70, first_flight.clone()), (71, vec![own, first_flight[0].clone()])] {
        let flow = VirtualConnectionId(n);
        b.layer.execute(Command::Accept { flow, peer: thief, first_flight, rtt: None, binding: theirs });
        assert!(matches!(b.failed().await, PathError::ForeignFlight));
    }
    b.layer.execute(Command::Accept {
        flow: FLOW,
        peer: a.peer,
        first_flight,
        rtt: None,
        binding: flight_binding(),
    });
    for (node, path) in [(&a, a.path(0, &b, 0)), (&b, b.path(0, &a, 0))] {
        node.admit(FLOW, path);
        node.select(FLOW, path);
    }
    let connected = futures::future::join(a.established(), b.established());
    tokio::time::timeout(Duration::from_secs(2), connected).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_wrong_peer_fails_the_handshake() {
    let net = Net::new();
    let (mut a, b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    a.layer.execute(connect(FLOW));
    let first_flight = a.first_flight().await;
    b.layer.execute(Command::Accept {
        flow: FLOW,
        peer: a.peer,
        first_flight,
        rtt: None,
        binding: flight_binding(),
    });
    for (node, path) in [(&a, a.path(0, &b, 0)), (&b, b.path(0, &a, 0))] {
        node.admit(FLOW, path);
        node.select(FLOW, path);
    }
    let error = a.failed().await;
    assert!(matches!(error, PathError::Handshake(quinn::ConnectionError::TransportError(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_probes_delays_but_never_loses_the_other_notices() {
    let net = Net::new();
    let mut a = Node::with_room(&net, &["192.0.2.1:10"], 2);
    let mut b = Node::new(&net, &["192.0.2.2:20"]);
    a.offer(&b, FLOW).await;
    a.admit(FLOW, a.path(0, &b, 0));
    b.admit(FLOW, b.path(0, &a, 0));
    for n in 0..5 {
        b.layer.send_probe(b.path(0, &a, 0), &[4, n]);
    }
    a.select(FLOW, a.path(0, &b, 0));
    b.select(FLOW, b.path(0, &a, 0));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((a.layer.counters().probes_received, a.layer.counters().probes_dropped), (2, 3));
    a.established().await;
    b.established().await;
}

#[tokio::test(start_paused = true)]
async fn commands_that_name_nothing_are_counted() {
    let net = Net::new();
    let (mut a, b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    a.admit(FLOW, a.path(0, &b, 0));
    a.layer.execute(connect(FLOW));
    a.first_flight().await;
    a.layer.execute(connect(FLOW));
    a.select(FLOW, a.path(7, &b, 0));
    a.layer.execute(Command::Forget { flow: VirtualConnectionId(9), path: a.path(0, &b, 0) });
    assert_eq!(a.layer.counters().commands_ignored, 4);
    assert!(!a.layer.send_probe(a.path(7, &b, 0), &[4]));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_from_a_path_that_was_forgotten() {
    let net = Net::new();
    let (mut a, b) = (Node::new(&net, &["192.0.2.1:10"]), Node::new(&net, &["192.0.2.2:20"]));
    a.offer(&b, FLOW).await;
    b.admit(FLOW, b.path(0, &a, 0));
    b.layer.execute(Command::Forget { flow: FLOW, path: b.path(0, &a, 0) });
    a.select(FLOW, a.path(0, &b, 0));
    tokio::time::sleep(2 * DELAY).await;
    assert!(!net.sent().is_empty());
    assert_eq!(b.layer.counters().bytes_received, 0);
    assert!(b.layer.counters().strays_dropped > 0);
    let plain = tokio::time::timeout(Duration::from_secs(1), b.bindings[0].0.accept());
    assert!(plain.await.is_err(), "it is not taken for a plain connection either");
}
