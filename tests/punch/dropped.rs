//! Nothing is left of a swarm that was dropped.

use std::{net::UdpSocket, sync::Arc, time::Duration};

use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, identity::Keypair, multiaddr::Protocol, swarm::SwarmEvent,
};
use libp2p_punch::{Behaviour, Config, Event, Role, SessionEvent};
use libp2p_punch_sim::{Host, World};
use tokio::time::Instant;

use crate::network::{NEVER, PORT, Site, client, coordinator, on_paused_time, registered, swarm, until};

/// Time for which virtual connections keep their sockets, to answer late packets of their peers.
const LINGER: Duration = Duration::from_secs(3);
/// Interval of the checks of a port.
const LOOK: Duration = Duration::from_millis(50);

async fn on_loopback(config: Config) -> (Swarm<Behaviour>, u16) {
    let keypair = Keypair::generate_ed25519();
    let (transport, punch) = libp2p_punch::new(&keypair, config).expect("valid");
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_behaviour(|_| punch)
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
        .with_connection_timeout(NEVER)
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

/// Waits without a time-out.
async fn becomes_free(port: u16) {
    while UdpSocket::bind(("127.0.0.1", port)).is_err() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns the time for which the port of a simulated host stays in use.
async fn time_until_free(host: &Arc<Host>) -> Duration {
    let start = Instant::now();
    while host.socket(([0, 0, 0, 0], PORT).into()).is_err() {
        tokio::time::sleep(LOOK).await;
    }
    start.elapsed()
}

#[test]
fn a_dropped_swarm_gives_its_port_back_after_the_time_that_its_flows_linger() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let hosts = [1, 2].map(|number| Site::EIM_APDF.host(&world, number, 0.0));
        let mut listener = swarm(&hosts[1], 2, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        let peer = *listener.local_peer_id();
        let listener = tokio::spawn(drive(listener));
        let mut dialer = swarm(&hosts[0], 1, client(&address), |punch, _| punch);
        registered(&mut dialer).await;
        in_every_phase(&mut dialer, peer).await;
        drop(dialer);
        let took = time_until_free(&hosts[0]).await;
        assert!(took <= LINGER + LOOK, "{took:?}");
        listener.abort();
        let took = time_until_free(&hosts[1]).await;
        assert!(took <= LINGER + LOOK, "{took:?}");
    });
}

/// Dials a peer that exists, and a peer that does not.
async fn in_every_phase(dialer: &mut Swarm<Behaviour>, peer: PeerId) {
    dialer.dial(peer).expect("not dialed yet");
    until(dialer, |event| {
        matches!(event, SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { .. }))).then_some(())
    })
    .await;
    // Another session, which will not be answered.
    dialer.dial(PeerId::random()).expect("not dialed yet");
    until(dialer, |event| {
        matches!(event, SwarmEvent::Behaviour(Event::Session(SessionEvent::Phase { .. }))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_ports_of_a_swarm_are_free_after_it_was_dropped_with_sessions_in_every_phase() {
    let (coordinator, coordinator_port) = on_loopback({
        let mut config = Config::default();
        config.role = Role::Server;
        config
    })
    .await;
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
    in_every_phase(&mut dialer, listener_peer).await;
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
