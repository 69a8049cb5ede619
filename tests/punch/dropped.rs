//! What is left of a swarm that was dropped: nothing.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, Swarm, SwarmBuilder, identity::Keypair, multiaddr::Protocol, swarm::SwarmEvent};
use libp2p_punch::{Behaviour, Config, Event, Role};

use crate::network::{client, registered, until};

/// Flows keep their sockets for three seconds, to answer what their peers still send.
const LINGER: Duration = Duration::from_secs(10);

async fn on_loopback(config: Config) -> (Swarm<Behaviour>, u16) {
    let keypair = Keypair::generate_ed25519();
    let (transport, punch) = libp2p_punch::new(&keypair, config).expect("valid");
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_behaviour(|_| punch)
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("valid")).expect("port is free");
    let address = until(&mut swarm, |event| match event {
        SwarmEvent::NewListenAddr { address, .. } => Some(address),
        _ => None,
    })
    .await;
    let port = address.iter().find_map(|part| match part {
        Protocol::Udp(port) => Some(port),
        _ => None,
    });
    (swarm, port.expect("it is a UDP address"))
}

async fn becomes_free(port: u16) {
    let start = Instant::now();
    while UdpSocket::bind(("127.0.0.1", port)).is_err() {
        assert!(start.elapsed() < LINGER, "port {port} is still in use");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_ports_of_a_swarm_are_free_after_it_was_dropped_with_sessions_in_every_phase() {
    let (coordinator, coordinator_port) =
        on_loopback(Config { role: Role::Server, ..Config::default() }).await;
    let peer = *coordinator.local_peer_id();
    let address: Multiaddr =
        format!("/ip4/127.0.0.1/udp/{coordinator_port}/quic-v1/p2p/{peer}").parse().expect("valid");
    let coordinator = tokio::spawn(drive(coordinator));
    let (mut listener, listener_port) = on_loopback(client(&address)).await;
    registered(&mut listener).await;
    let listener_peer = *listener.local_peer_id();
    let listener = tokio::spawn(drive(listener));
    let (mut dialer, dialer_port) = on_loopback(client(&address)).await;
    registered(&mut dialer).await;
    dialer.dial(listener_peer).expect("not dialed yet");
    until(&mut dialer, |event| matches!(event, SwarmEvent::Behaviour(Event::Connected { .. })).then_some(()))
        .await;
    // Another session, which will not be answered.
    dialer.dial(libp2p::PeerId::random()).expect("not dialed yet");
    until(&mut dialer, |event| matches!(event, SwarmEvent::Behaviour(Event::Phase { .. })).then_some(()))
        .await;
    drop(dialer);
    becomes_free(dialer_port).await;
    listener.abort();
    becomes_free(listener_port).await;
    coordinator.abort();
    becomes_free(coordinator_port).await;
}

async fn drive(mut swarm: Swarm<Behaviour>) {
    loop {
        until(&mut swarm, |_| Some(())).await;
    }
}
