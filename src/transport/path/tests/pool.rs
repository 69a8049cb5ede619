//! Pools of sockets, on the real loopback.

use std::{net::UdpSocket, time::Duration};

use libp2p_identity::Keypair;
use tokio::sync::mpsc;

use super::{
    super::{PathLayer, PathNotice, pool_sockets::MAX_SOCKETS},
    node::{Configs, flight_binding, layer},
};
use libp2p_punch_proto::{
    Path, SocketId, VirtualConnectionId,
    command::{Command, Pool},
};

const LOCAL: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// Time-out that only a fault reaches, on any machine.
const PATIENCE: Duration = Duration::from_secs(300);

async fn next(notices: &mut mpsc::Receiver<PathNotice>) -> PathNotice {
    tokio::time::timeout(PATIENCE, notices.recv()).await.expect("in time").expect("the layer lives")
}

async fn open(
    layer: &PathLayer,
    notices: &mut mpsc::Receiver<PathNotice>,
    pool: Pool,
    count: usize,
) -> Vec<(SocketId, u16)> {
    layer.execute(Command::OpenSockets { pool, local: LOCAL, count });
    match next(notices).await {
        PathNotice::Sockets { pool: opened, sockets } if opened == pool => sockets,
        other => panic!("{other:?}"),
    }
}

/// Waits until the port is free.
async fn closed(port: u16) {
    let free = async {
        while UdpSocket::bind((LOCAL, port)).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("the socket is closed");
}

#[tokio::test]
async fn every_socket_of_a_pool_sends_and_hands_on_the_probes_that_it_receives() {
    let (layer, mut notices) = layer(Configs(Keypair::generate_ed25519()), 64);
    let sockets = open(&layer, &mut notices, Pool::Observers(LOCAL), MAX_SOCKETS + 1).await;
    assert_eq!(sockets.len(), MAX_SOCKETS.min(layer.socket_budget().limit()));
    let peer = UdpSocket::bind((LOCAL, 0)).unwrap();
    let remote = peer.local_addr().unwrap();
    for (socket, port) in sockets {
        peer.send_to(b"\x04probe", (LOCAL, port)).unwrap();
        let PathNotice::Probe { path, payload } = next(&mut notices).await else { panic!("no probe") };
        assert_eq!((path, &payload[..]), (Path { socket, remote }, &b"\x04probe"[..]));
        assert!(layer.send_probe(path, b"\x04back"));
        let mut buffer = [0; 16];
        let (length, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.port()), (&b"\x04back"[..], port));
    }
}

#[tokio::test]
async fn closing_a_pool_frees_all_ports_but_those_to_keep() {
    let (layer, mut notices) = layer(Configs(Keypair::generate_ed25519()), 64);
    let sockets = open(&layer, &mut notices, Pool::Observers(LOCAL), 8).await;
    let (kept, gone) = sockets.split_first().unwrap();
    layer.execute(Command::CloseSockets { pool: Pool::Observers(LOCAL), keep: vec![kept.0] });
    for (_, port) in gone {
        closed(*port).await;
    }
    let peer = UdpSocket::bind((LOCAL, 0)).unwrap();
    peer.send_to(b"\x04", (LOCAL, kept.1)).unwrap();
    assert!(matches!(next(&mut notices).await, PathNotice::Probe { path, .. } if path.socket == kept.0));
    layer.execute(Command::CloseSockets { pool: Pool::Observers(LOCAL), keep: vec![] });
    closed(kept.1).await;
}

#[tokio::test]
async fn a_pool_ends_with_its_layer_and_one_for_no_flow_is_not_opened() {
    let (layer, mut notices) = layer(Configs(Keypair::generate_ed25519()), 64);
    let before = layer.counters().commands_ignored;
    let pool = Pool::Session(VirtualConnectionId(7));
    layer.execute(Command::OpenSockets { pool, local: LOCAL, count: 4 });
    assert_eq!(layer.counters().commands_ignored, before + 1);
    let sockets = open(&layer, &mut notices, Pool::Observers(LOCAL), 4).await;
    layer.execute(Command::OpenSockets { pool: Pool::Observers(LOCAL), local: LOCAL, count: 4 });
    assert_eq!(layer.counters().commands_ignored, before + 2, "once for a pool");
    drop(layer);
    for (_, port) in sockets {
        closed(port).await;
    }
}

#[tokio::test]
async fn a_session_that_searches_again_opens_more_sockets_beside_the_one_that_it_kept() {
    let (layer, mut notices) = layer(Configs(Keypair::generate_ed25519()), 64);
    let (flow, peer) = (VirtualConnectionId(7), Keypair::generate_ed25519().public().to_peer_id());
    layer.execute(Command::Connect { flow, peer, rtt: None, binding: flight_binding() });
    assert!(matches!(next(&mut notices).await, PathNotice::FirstFlight { .. }));
    let pool = Pool::Session(flow);
    let first = open(&layer, &mut notices, pool, 4).await;
    layer.execute(Command::CloseSockets { pool, keep: vec![first[0].0] });
    let second = open(&layer, &mut notices, pool, MAX_SOCKETS).await;
    assert_eq!(second.len(), MAX_SOCKETS - 1);
    let remote = UdpSocket::bind((LOCAL, 0)).unwrap();
    for (socket, port) in [first[0]].into_iter().chain(second) {
        remote.send_to(b"\x04probe", (LOCAL, port)).unwrap();
        assert!(matches!(next(&mut notices).await, PathNotice::Probe { path, .. } if path.socket == socket));
    }
}
