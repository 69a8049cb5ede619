use std::sync::Arc;

use libp2p_punch_node::{Keypair, NodeBuilder, PeerId, Role};
use libp2p_punch_sim::{Host, Nat, World};

use super::*;
use crate::commands::doctor::judgement::{Step, Verdict};

/// Time-out of the attempts to connect.
const TIMEOUT: Duration = Duration::from_secs(20);

fn builder(host: &Arc<Host>, seed: u8) -> NodeBuilder {
    Node::builder()
        .keypair(Keypair::ed25519_from_bytes([seed; 32]).unwrap())
        .listen(["/ip4/0.0.0.0/udp/4001/quic-v1"])
        .network(host.clone())
        .connect_timeout(TIMEOUT)
}

/// A node that everybody reaches, and its address.
async fn server(world: &World, number: u8, role: Role) -> (Node, Multiaddr) {
    let host = world.public_host([203, 0, 113, number]);
    let node = builder(&host, 100 + number).role(role).build().await.unwrap();
    let address = format!("/ip4/203.0.113.{number}/udp/4001/quic-v1/p2p/{}", node.peer_id());
    (node, address.parse().unwrap())
}

fn hidden_host(world: &World, nat: Nat, number: u8) -> Arc<Host> {
    world.nat(nat, [198, 51, 100, number]).host([192, 168, number, 2])
}

/// A peer behind a NAT that is registered with a coordinator.
async fn hidden(world: &World, nat: Nat, bootstrap: &Multiaddr) -> Node {
    let node = builder(&hidden_host(world, nat, 1), 1).bootstrap([bootstrap]).build().await.unwrap();
    node.ticket().await.unwrap();
    node
}

/// Examines a peer from behind a NAT of this kind. No address is probed: those of the world are not
/// of this machine's network.
async fn examine(world: &World, nat: Nat, target: impl Into<Target>, bootstrap: &[Multiaddr]) -> Diagnosis {
    let builder = builder(&hidden_host(world, nat, 2), 2).role(Role::Client).bootstrap(bootstrap);
    let (builder, diagnostics) = builder.diagnostics();
    let node = builder.build().await.unwrap();
    let examination = Examination::new(&node, diagnostics, target.into(), bootstrap);
    let facts = examination.run(async |_| None).await;
    node.shutdown().await;
    judge(&facts)
}

fn code(diagnosis: &Diagnosis) -> (&'static str, u8) {
    let Verdict { code, fault, .. } = &diagnosis.verdict;
    (*code, fault.exit_code())
}

fn state(diagnosis: &Diagnosis, step: Step) -> State {
    diagnosis.findings.iter().find(|finding| finding.step == step).map(|finding| finding.state).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_peer_behind_a_nat_is_reached_and_every_step_on_the_way_is_seen() {
    let world = World::new(1);
    let (_coordinator, address) = server(&world, 1, Role::Server).await;
    let peer = hidden(&world, Nat::default(), &address).await;
    let diagnosis = examine(&world, Nat::default(), peer.peer_id(), &[address]).await;
    assert_eq!(code(&diagnosis), ("direct", 0), "{diagnosis:#?}");
    for step in [
        Step::Interfaces,
        Step::UdpOut,
        Step::Coordinator,
        Step::Registration,
        Step::PeerKnown,
        Step::RequestForwarded,
        Step::PeerAnswered,
        Step::Probes,
        Step::Path,
        Step::Handshake,
    ] {
        assert_eq!(state(&diagnosis, step), State::Passed, "{step:?}: {diagnosis:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_not_connected_is_the_cause() {
    let world = World::new(2);
    let (_coordinator, address) = server(&world, 1, Role::Server).await;
    let diagnosis = examine(&world, Nat::default(), PeerId::random(), &[address]).await;
    assert_eq!(code(&diagnosis), ("peer-not-connected", 23), "{diagnosis:#?}");
    assert_eq!(state(&diagnosis, Step::Registration), State::Passed, "{diagnosis:#?}");
    assert_eq!(state(&diagnosis, Step::Probes), State::NotTested, "{diagnosis:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_went_offline_after_its_registration_is_not_taken_for_one_behind_a_bad_nat() {
    let world = World::new(3);
    let (_coordinator, address) = server(&world, 1, Role::Server).await;
    let peer = hidden(&world, Nat::default(), &address).await;
    let id = peer.peer_id();
    peer.shutdown().await;
    let diagnosis = examine(&world, Nat::default(), id, &[address]).await;
    assert_eq!(code(&diagnosis), ("peer-not-connected", 23), "{diagnosis:#?}");
}

#[tokio::test(start_paused = true)]
async fn the_wrong_id_of_a_coordinator_is_the_cause() {
    let world = World::new(4);
    let (coordinator, address) = server(&world, 1, Role::Server).await;
    let mut wrong = address;
    wrong.pop();
    let wrong = wrong.with(Protocol::P2p(PeerId::random()));
    let diagnosis = examine(&world, Nat::default(), PeerId::random(), &[wrong]).await;
    assert_eq!(code(&diagnosis), ("coordinator-wrong-id", 22), "{diagnosis:#?}");
    assert!(diagnosis.verdict.sentence.contains(&coordinator.peer_id().to_string()), "{diagnosis:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_is_not_there_is_the_cause() {
    let world = World::new(5);
    let address: Multiaddr =
        format!("/ip4/203.0.113.9/udp/4001/quic-v1/p2p/{}", PeerId::random()).parse().unwrap();
    let diagnosis = examine(&world, Nat::default(), PeerId::random(), &[address]).await;
    assert_eq!(code(&diagnosis), ("coordinator-silent", 22), "{diagnosis:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_no_coordinator_is_named() {
    let world = World::new(6);
    let (_client, address) = server(&world, 1, Role::Client).await;
    let diagnosis = examine(&world, Nat::default(), PeerId::random(), &[address]).await;
    assert_eq!(code(&diagnosis), ("not-a-coordinator", 22), "{diagnosis:#?}");
}

#[tokio::test(start_paused = true)]
async fn another_peer_at_the_address_of_the_peer_is_the_cause() {
    let world = World::new(7);
    let (other, mut address) = server(&world, 1, Role::Server).await;
    address.pop();
    let target = Target::try_from(address.with(Protocol::P2p(PeerId::random()))).unwrap();
    let diagnosis = examine(&world, Nat::default(), target, &[]).await;
    assert_eq!(code(&diagnosis), ("wrong-peer", 23), "{diagnosis:#?}");
    assert!(diagnosis.verdict.sentence.contains(&other.peer_id().to_string()), "{diagnosis:#?}");
}

#[tokio::test(start_paused = true)]
async fn two_random_nats_are_why_a_connection_is_relayed() {
    let world = World::new(8);
    let (_coordinator, address) = server(&world, 1, Role::Server).await;
    let (_other, second) = server(&world, 2, Role::Server).await;
    let peer = hidden(&world, Nat::random(), &address).await;
    let diagnosis = examine(&world, Nat::random(), peer.peer_id(), &[address, second]).await;
    assert_eq!(code(&diagnosis), ("relayed", 10), "{diagnosis:#?}");
    assert_eq!(state(&diagnosis, Step::Probes), State::Failed, "{diagnosis:#?}");
    assert_eq!(state(&diagnosis, Step::Relay), State::Passed, "{diagnosis:#?}");
}
