//! Established sessions.

use std::{
    collections::HashSet,
    io::IoSliceMut,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{future::poll_fn, task::noop_waker};
use quinn::udp::RecvMeta;
use tokio::time::Instant;

use super::{
    super::{PathNotice, endpoint::LINGER, flow::flow_at},
    net::Net,
    node::{Configs, FLOW, Node, Session, echo, pattern, send_and_receive},
};
use crate::transport::path::SessionConfigs as _;
use libp2p_punch_proto::{Path, SocketId, VirtualConnectionId, command::Command};

const MEGABYTE: usize = 1 << 20;

/// Virtual addresses stay inside, whatever was done.
fn assert_all_real(net: &Net) {
    let sent = net.sent();
    assert!(sent.len() > 10);
    assert!(sent.iter().all(|datagram| flow_at(datagram.to).is_none()));
}

async fn assert_echoes(session: &Session, len: usize) {
    let echoing = tokio::spawn(echo(session.b_side.0.clone()));
    let data = pattern(len);
    assert!(send_and_receive(session.a_side.0.clone(), data.clone()).await == data);
    echoing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_carries_a_megabyte_both_ways() {
    let net = Net::new();
    let session = Session::start(&net).await;
    assert_echoes(&session, MEGABYTE).await;
    assert_all_real(&net);
    let stats = session.a.layer.counters();
    assert_eq!((stats.send_errors, stats.bytes_dropped, stats.commands_ignored), (0, 0, 0));
    assert!(stats.bytes_received > MEGABYTE as u64);
}

#[tokio::test(start_paused = true)]
async fn a_path_switch_under_a_transfer_loses_no_byte() {
    let net = Net::new();
    let session = Session::start(&net).await;
    let switching = async {
        for to in [1, 0, 1] {
            tokio::time::sleep(Duration::from_millis(60)).await;
            session.switch(to);
        }
    };
    tokio::join!(assert_echoes(&session, 4 * MEGABYTE), switching);
    let used = |from: &str| net.sent().iter().filter(|d| d.from == from.parse().unwrap()).count();
    assert!(used("192.0.2.1:10") > 100 && used("192.0.2.1:11") > 100);
    assert_all_real(&net);
}

#[tokio::test(start_paused = true)]
async fn a_dead_path_is_left_without_waiting_for_backed_off_timers() {
    const OUTAGE: Duration = Duration::from_secs(3);
    let net = Net::new();
    let session = Session::start(&net).await;
    assert_echoes(&session, 1000).await;
    let (ours, theirs) = (session.a.bindings[0].1.address, session.b.bindings[0].1.address);
    net.cut(ours, theirs);
    net.cut(theirs, ours);
    let start = Instant::now();
    let dying = async {
        tokio::time::sleep(OUTAGE).await;
        session.switch(1);
        Instant::now()
    };
    let ((), switched) = tokio::join!(assert_echoes(&session, 10_000), dying);
    assert_eq!(switched - start, OUTAGE);
    // The last datagram is repeated at once, and its acknowledgement shows that the rest was lost:
    // some round trips of 20 ms. The timer that has backed off would take more than a second.
    assert!(switched.elapsed() < Duration::from_millis(400), "{:?}", switched.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_plain_connection_between_the_same_addresses_is_undisturbed() {
    let net = Net::new();
    let session = Session::start(&net).await;
    let config = Configs(libp2p_identity::Keypair::generate_ed25519()).client(session.b.peer, None);
    let server = &session.b.bindings[0];
    let connecting = session.a.bindings[0].0.connect_with(config, server.1.address, "l").unwrap();
    let accepting = async { server.0.accept().await.unwrap().await.unwrap() };
    let (client, server) = tokio::join!(connecting, accepting);
    let client = client.unwrap();
    let echoing = tokio::spawn(echo(server.clone()));
    let data = pattern(MEGABYTE);
    let ((), plain) =
        tokio::join!(assert_echoes(&session, MEGABYTE), send_and_receive(client.clone(), data.clone()));
    assert!(plain == data);
    echoing.await.unwrap();
    assert_eq!(client.remote_address(), session.b.bindings[0].1.address);
    assert_eq!(client.stats().path.lost_packets, 0);
}

#[tokio::test(start_paused = true)]
async fn probes_amid_the_packets_of_a_transfer_are_told_apart() {
    let net = Net::new();
    let mut session = Session::start(&net).await;
    let path = session.a.path(0, &session.b, 0);
    let probing = async {
        for n in 0..50u8 {
            assert!(session.a.layer.send_probe(path, &[4, n]));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    tokio::join!(assert_echoes(&session, MEGABYTE), probing);
    let from = session.b.path(0, &session.a, 0);
    for n in 0..50 {
        let Some(PathNotice::Probe { path, payload }) = session.b.notices.recv().await else { panic!() };
        assert_eq!((path, &payload[..]), (from, &[4, n][..]));
    }
    assert_eq!(session.b.layer.counters().probes_received, 50);
}

#[tokio::test(start_paused = true)]
async fn intercepting_moves_what_is_left_to_the_front() {
    let net = Net::new();
    let mut session = Session::start(&net).await;
    let stranger = "203.0.113.9:9".parse().unwrap();
    let mut data = [vec![5; 30], vec![0x45; 30], [vec![0x46; 10], vec![4; 10], vec![0x47; 4]].concat()];
    let mut bufs: Vec<_> = data.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
    let mut meta = [(30, 30), (30, 10), (24, 10)].map(|(len, stride)| RecvMeta {
        addr: stranger,
        len,
        stride,
        ecn: None,
        dst_ip: None,
    });
    assert_eq!(session.b.layer.intercept(SocketId(1), &mut bufs, &mut meta, 3), 2);
    assert_eq!((meta[0].len, meta[0].stride, bufs[0][0]), (30, 10, 0x45));
    assert_eq!((meta[1].len, meta[1].stride), (14, 10));
    assert_eq!(bufs[1][..14], [vec![0x46; 10], vec![0x47; 4]].concat());
    for expected in [vec![5; 30], vec![4; 10]] {
        let Some(PathNotice::Probe { path, payload }) = session.b.notices.recv().await else { panic!() };
        assert_eq!((path, payload.to_vec()), (Path { socket: SocketId(1), remote: stranger }, expected));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_flow_probes_are_taken_out_only_while_they_are_expected() {
    let net = Net::new();
    let mut node = Node::new(&net, &["192.0.2.1:10"]);
    let remote = "203.0.113.9:9".parse().unwrap();
    for (expected, left) in [(None, 1), (Some(true), 0), (Some(false), 1)] {
        if let Some(expected) = expected {
            node.layer.execute(Command::ExpectProbes { expected });
        }
        let mut data = [10u8; 53];
        let mut meta = [RecvMeta { addr: remote, len: 53, stride: 53, ecn: None, dst_ip: None }];
        let mut bufs = [IoSliceMut::new(&mut data)];
        assert_eq!(node.layer.intercept(SocketId(0), &mut bufs, &mut meta, 1), left, "{expected:?}");
        assert_eq!(node.notices.try_recv().is_ok(), left == 0, "{expected:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn mapped_addresses_are_those_that_they_map() {
    let net = Net::new();
    let mut session = Session::start(&net).await;
    let mut data = [4u8, 1];
    let mut meta = [RecvMeta {
        addr: "[::ffff:192.0.2.1]:10".parse().unwrap(),
        len: 2,
        stride: 2,
        ecn: None,
        dst_ip: None,
    }];
    assert_eq!(session.b.layer.intercept(SocketId(0), &mut [IoSliceMut::new(&mut data)], &mut meta, 1), 0);
    let Some(PathNotice::Probe { path, .. }) = session.b.notices.recv().await else { panic!() };
    assert_eq!(path, session.b.path(0, &session.a, 0));
}

#[tokio::test(start_paused = true)]
async fn the_guard_tells_the_real_address_and_its_changes() {
    let net = Net::new();
    let mut session = Session::start(&net).await;
    let (first, second) = (session.a.path(0, &session.b, 0), session.a.path(1, &session.b, 1));
    let guard = &mut session.a_side.1;
    assert_eq!((guard.path(), guard.remote()), (Some(first), Some(first.remote)));
    assert_eq!(poll_fn(|cx| guard.poll_remote(cx)).await, first.remote);
    assert_eq!(guard.poll_remote(&mut Context::from_waker(&noop_waker())), Poll::Pending);
    let changing = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        session.a.select(FLOW, second);
    };
    let (remote, ()) = tokio::join!(poll_fn(|cx| guard.poll_remote(cx)), changing);
    assert_eq!(remote, second.remote);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_closes_the_flow_which_lingers() {
    let net = Net::new();
    let Session { mut a, b, a_side, b_side } = Session::start(&net).await;
    let start = Instant::now();
    drop(a_side);
    assert!(matches!(a.notice().await, PathNotice::Closed { flow: FLOW, .. }));
    let reason = b_side.0.closed().await;
    assert!(matches!(reason, quinn::ConnectionError::ApplicationClosed(_)), "{reason}");
    assert!(start.elapsed() < Duration::from_millis(50), "the CONNECTION_CLOSE went out");
    tokio::time::sleep(LINGER - Duration::from_millis(100)).await;
    assert!(a.layer.is_active());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!a.layer.is_active());
    assert!(b.layer.is_active(), "its guard is still held");
}

#[tokio::test(start_paused = true)]
async fn a_close_command_ends_an_established_connection() {
    let net = Net::new();
    let mut session = Session::start(&net).await;
    session.a.layer.execute(Command::Close { flow: FLOW });
    assert_eq!(session.a_side.0.closed().await, quinn::ConnectionError::LocallyClosed);
    drop(session.a_side);
    assert!(matches!(session.a.notice().await, PathNotice::Closed { flow: FLOW, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_removed_socket_serves_its_session_to_the_end() {
    let net = Net::new();
    let mut session = Session::start(&net).await;
    let socket = Arc::downgrade(&session.a.bindings.remove(0).1);
    session.a.layer.remove_socket(SocketId(0));
    assert_echoes(&session, MEGABYTE).await;
    drop((session.a_side, session.b_side));
    assert!(socket.upgrade().is_some());
    tokio::time::sleep(LINGER * 2).await;
    assert!(socket.upgrade().is_none(), "nobody uses it any more");
}

#[tokio::test(start_paused = true)]
async fn a_blocked_socket_is_waited_for() {
    let net = Net::new();
    let session = Session::start(&net).await;
    let socket = &session.a.bindings[0].1;
    let start = Instant::now();
    let blocking = async {
        tokio::time::sleep(Duration::from_millis(35)).await;
        socket.block_after(0);
        tokio::time::sleep(Duration::from_millis(40)).await;
        socket.unblock();
    };
    tokio::join!(assert_echoes(&session, MEGABYTE), blocking);
    assert!(start.elapsed() > Duration::from_millis(75));
    assert!(session.a.layer.counters().sends_blocked > 0);
    assert_eq!(session.a_side.0.stats().path.lost_packets, 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_a_full_socket_cut_goes_on_where_it_stopped() {
    let net = Net::new();
    let session = Session::start(&net).await;
    session.switch(1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let socket = &session.a.bindings[1].1;
    let blocking = async {
        for _ in 0..20 {
            socket.block_after(3);
            tokio::time::sleep(Duration::from_millis(5)).await;
            socket.unblock();
        }
    };
    let before = net.sent().len();
    tokio::join!(assert_echoes(&session, MEGABYTE), blocking);
    assert!(session.a.layer.counters().sends_blocked >= 10);
    let sent = net.sent();
    let distinct: HashSet<_> = sent[before..].iter().map(|datagram| &datagram.data).collect();
    assert_eq!(distinct.len(), sent.len() - before, "no packet went twice");
    assert_eq!(session.a_side.0.stats().path.lost_packets, 0, "and none was left out");
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_stays_blocked_is_left_by_selecting_another_path() {
    let net = Net::new();
    let session = Session::start(&net).await;
    // The rest of the handshake would wake the driver too.
    tokio::time::sleep(Duration::from_secs(1)).await;
    session.a.bindings[0].1.block_after(0);
    let second = session.a.bindings[1].1.address;
    let switching = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        session.switch(1);
        tokio::time::sleep(Duration::from_millis(1)).await;
        net.sent().iter().filter(|datagram| datagram.from == second).count()
    };
    let ((), sent) = tokio::join!(assert_echoes(&session, MEGABYTE), switching);
    assert!(session.a.layer.counters().sends_blocked > 0);
    assert!(sent > 1, "beside the datagram that goes again, the driver goes on at once, not with a timer");
}

#[tokio::test(start_paused = true)]
async fn two_sessions_over_one_path_are_kept_apart() {
    let net = Net::new();
    let mut session = Session::start(&net).await;
    let other = VirtualConnectionId(2);
    session.a.offer(&session.b, other).await;
    let (there, back) = (session.a.path(0, &session.b, 0), session.b.path(0, &session.a, 0));
    session.a.admit(other, there);
    session.b.admit(other, back);
    session.a.select(other, there);
    session.b.select(other, back);
    let (a_side, b_side) = tokio::join!(session.a.established(), session.b.established());
    let second = Session { a_side, b_side, a: Node::new(&net, &[]), b: Node::new(&net, &[]) };
    tokio::join!(assert_echoes(&session, MEGABYTE), assert_echoes(&second, MEGABYTE));
}
