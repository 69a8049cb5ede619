//! The behaviour without a swarm.

use std::task::Waker;

use libp2p_core::ConnectedPoint;
use libp2p_swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use quinn::TokioRuntime;

use super::{
    frames::{MAX_IN_ALL, MAX_OTHERS, MAX_REQUESTS},
    *,
};

fn behaviour() -> Behaviour {
    driven_behaviour().0
}

/// Returns a behaviour, and the sender of its driver.
fn driven_behaviour() -> (Behaviour, mpsc::Sender<FromDriver>) {
    let (driver, _) = mpsc::channel(16);
    let (news, events) = mpsc::channel(16);
    let (counters, runtime) = (Arc::default(), Arc::new(TokioRuntime));
    let ends = Ends {
        driver,
        events,
        offers: Offers::default(),
        contacts: Contacts::default(),
        counters,
        runtime,
        secret: [0; 32],
    };
    (Behaviour::new(PeerId::random(), &Config::default(), ends).unwrap(), news)
}

fn connect(behaviour: &mut Behaviour, peer: PeerId, n: usize) -> ConnectionId {
    let connection = ConnectionId::new_unchecked(n);
    let remote: Multiaddr = "/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap();
    behaviour.handle_established_inbound_connection(connection, peer, &Multiaddr::empty(), &remote).unwrap();
    let endpoint = ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: remote };
    behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
        peer_id: peer,
        connection_id: connection,
        endpoint: &endpoint,
        failed_addresses: &[],
        other_established: n,
    }));
    connection
}

#[tokio::test]
async fn a_source_has_four_addresses_of_the_dialed_peer_dialed_and_once() {
    let mut behaviour = behaviour();
    let (mut source, peer) = (behaviour.coordinator_lookup(), PeerId::random());
    let id = ConnectionId::new_unchecked(1);
    behaviour.handle_pending_outbound_connection(id, Some(peer), &[], Endpoint::Dialer).unwrap();
    for _ in 0..2 {
        let addresses = (1..=10).map(|n| format!("/ip4/192.0.2.{n}/udp/1/quic-v1").parse().unwrap());
        assert!(source.found(peer, peer, addresses.collect()));
        poll(&mut behaviour);
    }
    let cx = Context::from_waker(Waker::noop());
    let Poll::Ready((_, addresses)) = behaviour.ends.offers.poll_located(&cx) else { panic!() };
    assert_eq!(addresses.len(), MAX_TOLD);
    assert!(behaviour.ends.offers.poll_located(&cx).is_pending());
}

/// Connects over a relay to a peer that has named a coordinator, and waits for the attempt to reach
/// it directly. Returns the peer and the coordinator.
async fn begin_upgrade(behaviour: &mut Behaviour) -> (PeerId, PeerId) {
    let (peer, coordinator) = (PeerId::random(), PeerId::random());
    let address = format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{coordinator}").parse().unwrap();
    behaviour.add_peer_coordinators(peer, vec![address]).unwrap();
    let endpoint = relayed();
    let ConnectedPoint::Dialer { address, .. } = &endpoint else { panic!() };
    let connection_id = ConnectionId::new_unchecked(1);
    let (role, port_use) = (Endpoint::Dialer, PortUse::Reuse);
    behaviour.handle_established_outbound_connection(connection_id, peer, address, role, port_use).unwrap();
    behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
        peer_id: peer,
        connection_id,
        endpoint: &endpoint,
        failed_addresses: &[],
        other_established: 0,
    }));
    while !poll(behaviour).1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(behaviour.coordinators.needs(&coordinator));
    (peer, coordinator)
}

fn relayed() -> ConnectedPoint {
    let relay = PeerId::from_bytes(&[0, 1, 7]).unwrap();
    ConnectedPoint::Dialer {
        address: format!("/ip4/192.0.2.2/udp/1/quic-v1/p2p/{relay}/p2p-circuit").parse().unwrap(),
        role_override: Endpoint::Dialer,
        port_use: PortUse::Reuse,
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_to_upgrade_that_is_not_made_keeps_no_coordinator() {
    let (mut behaviour, news) = driven_behaviour();
    let (peer, coordinator) = begin_upgrade(&mut behaviour).await;
    news.try_send(FromDriver::NotUpgrading(peer)).unwrap();
    poll(&mut behaviour);
    assert!(!behaviour.coordinators.needs(&coordinator));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_relayed_connection_ends_the_attempt_to_upgrade_it() {
    let (mut behaviour, _news) = driven_behaviour();
    let (peer_id, coordinator) = begin_upgrade(&mut behaviour).await;
    behaviour.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
        peer_id,
        connection_id: ConnectionId::new_unchecked(1),
        endpoint: &relayed(),
        cause: None,
        remaining_established: 0,
    }));
    assert!(!behaviour.coordinators.needs(&coordinator));
}

/// Returns the handlers that get a message, the messages, and true if there is a dial.
fn poll(behaviour: &mut Behaviour) -> (Vec<(ConnectionId, FromBehaviour)>, bool) {
    let (mut told, mut dials) = (Vec::new(), false);
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(action) = behaviour.poll(&mut cx) {
        match action {
            ToSwarm::NotifyHandler { handler: NotifyHandler::One(id), event, .. } => told.push((id, event)),
            ToSwarm::Dial { .. } => dials = true,
            // Whether there is a relay client.
            ToSwarm::ListenOn { .. } | ToSwarm::RemoveListener { .. } => {}
            ToSwarm::GenerateEvent(Event::Relay(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    (told, dials)
}

#[tokio::test]
async fn every_connection_to_a_coordinator_learns_that_it_is_one_and_that_it_is_none_any_more() {
    let (mut behaviour, peer) = (behaviour(), PeerId::random());
    let both = [1, 2].map(|n| connect(&mut behaviour, peer, n));
    connect(&mut behaviour, PeerId::random(), 3);
    let address: Multiaddr = format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{peer}").parse().unwrap();
    behaviour.add_coordinator(address).unwrap();
    let all = |is| both.map(|id| (id, FromBehaviour::Coordinator(is))).to_vec();
    assert_eq!(poll(&mut behaviour), (all(true), false), "and it is not dialed");
    assert!(behaviour.remove_coordinator(&peer));
    assert_eq!(poll(&mut behaviour), (all(false), false));
}

#[tokio::test]
async fn a_coordinator_that_is_not_connected_is_dialed() {
    let (mut behaviour, peer) = (behaviour(), PeerId::random());
    let address: Multiaddr = format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{peer}").parse().unwrap();
    behaviour.add_coordinator(address).unwrap();
    assert_eq!(poll(&mut behaviour), (vec![], true));
}

/// Returns the rows of §9 on the queues of control streams.
fn queue_caps() -> Vec<(&'static str, String)> {
    vec![
        (
            "bytes of frames that wait for a control stream: PUNCH_ME_NOW; all others",
            format!("{} KiB; {} KiB", MAX_REQUESTS >> 10, MAX_OTHERS >> 10),
        ),
        ("bytes of frames that wait for all control streams", format!("{} MiB", MAX_IN_ALL >> 20)),
        (
            "time for which a control stream takes nothing while frames wait",
            format!("{} s", STUCK_TIMEOUT.as_secs()),
        ),
    ]
}

#[test]
fn the_caps_of_control_streams_in_the_document_are_those_of_the_code() {
    for (what, bound) in queue_caps() {
        let row = format!("| {what} | {bound} |");
        assert!(include_str!("../../docs/protocol.md").contains(&row), "§9 does not say {row:?}");
    }
}
