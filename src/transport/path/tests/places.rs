//! The places of a path, when more virtual connections name it than it has.

use std::time::Duration;

use super::{
    net::{DELAY, Net},
    node::{FLOW, Node, flight_binding},
};
use crate::transport::path::{PathNotice, table::MAX_FLOWS_PER_PATH};
use libp2p_punch_proto::{Path, VirtualConnectionId, command::Command};

/// Virtual connections of `b` that name an address at which none of their peers is.
async fn crowd(b: &mut Node, path: Path) {
    for n in 0..MAX_FLOWS_PER_PATH as u64 {
        let (flow, peer) = (VirtualConnectionId(100 + n), libp2p_identity::PeerId::random());
        b.layer.execute(Command::Connect { flow, peer, rtt: None, binding: flight_binding() });
        assert!(matches!(b.notice().await, PathNotice::FirstFlight { .. }));
        b.admit(flow, path);
    }
}

async fn connects(hear: impl FnOnce(&Node, Path)) -> bool {
    let net = Net::new();
    let mut a = Node::new(&net, &["192.0.2.1:10"]);
    let mut b = Node::new(&net, &["192.0.2.2:20"]);
    let (there, back) = (a.path(0, &b, 0), b.path(0, &a, 0));
    crowd(&mut b, back).await;
    a.offer(&b, FLOW).await;
    a.admit(FLOW, there);
    b.admit(FLOW, back);
    assert_eq!(b.layer.counters().paths_refused, 1);
    b.permit(FLOW, back, 3 * 2400);
    hear(&b, back);
    tokio::time::sleep(DELAY / 2).await;
    a.select(FLOW, there);
    tokio::time::timeout(Duration::from_secs(5), b.established()).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_heard_gets_a_place_among_flows_that_only_name_its_address() {
    assert!(!connects(|_, _| {}).await, "named as by the others");
    let heard = |b: &Node, path| b.layer.execute(Command::Admit { flow: FLOW, path, heard: true });
    assert!(connects(heard).await);
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_validated_goes_before_those_that_were_heard() {
    let hear = |b: &Node, path| {
        for n in 0..MAX_FLOWS_PER_PATH as u64 {
            b.layer.execute(Command::Admit { flow: VirtualConnectionId(100 + n), path, heard: true });
        }
        b.layer.execute(Command::Admit { flow: FLOW, path, heard: true });
        assert_eq!(b.layer.counters().paths_refused, 2);
        b.select(FLOW, path);
    };
    assert!(connects(hear).await);
}
