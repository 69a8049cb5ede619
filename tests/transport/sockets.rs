//! Sockets that the system takes away, on the simulated network.

use std::{io, sync::Arc};

use libp2p_core::transport::TransportEvent;
use libp2p_punch_sim::{Host, World};
use tokio::time::{Instant, timeout_at};

use super::support::*;

const LISTENER: &str = "/ip4/0.0.0.0/udp/4001/quic-v1";

fn hosts() -> (Arc<Host>, Arc<Host>) {
    let world = World::new(1);
    (world.public_host([203, 0, 113, 1]), world.public_host([203, 0, 113, 2]))
}

fn transport(host: &Arc<Host>) -> Transport {
    let keypair = Keypair::generate_ed25519();
    Transport::with_io(&keypair, Config::default(), host.clone(), libp2p_punch::io::Runtime::tokio()).unwrap()
}

/// The events of a listener within a time, in words, and connections that came in.
async fn events(transport: &mut Transport, time: Duration) -> Vec<String> {
    let end = Instant::now() + time;
    let mut seen = Vec::new();
    while let Ok(event) = timeout_at(end, next(transport)).await {
        seen.push(match event {
            TransportEvent::NewAddress { listen_addr, .. } => format!("new {listen_addr}"),
            TransportEvent::AddressExpired { listen_addr, .. } => format!("expired {listen_addr}"),
            TransportEvent::ListenerError { error, .. } => format!("error {error}"),
            other => format!("{other:?}"),
        });
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn a_listener_whose_socket_died_goes_on_at_its_port_and_keeps_its_connections() {
    let (here, there) = hosts();
    let (mut listener, mut dialer) = (transport(&here), transport(&there));
    let address = listen(&mut listener, LISTENER).await;
    let mut connected = connect(&mut listener, &mut dialer, address.clone(), PLAIN).await;
    assert_eq!(here.kill_sockets(), 1);
    let seen = events(&mut listener, Duration::from_secs(60)).await;
    assert_eq!(seen, ["error UDP socket at 0.0.0.0:4001 failed and is replaced: not connected"]);
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
    connect(&mut listener, &mut dialer, address, PLAIN).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_only_dials_keeps_its_connection_and_dials_again_when_its_socket_died() {
    let (here, there) = hosts();
    let (mut listener, mut dialer) = (transport(&here), transport(&there));
    let address = listen(&mut listener, LISTENER).await;
    let mut connected = connect(&mut listener, &mut dialer, address.clone(), PLAIN).await;
    for _ in 0..3 {
        assert_eq!(there.kill_sockets(), 1);
        assert!(events(&mut dialer, Duration::from_secs(15)).await.is_empty());
        echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
        connect(&mut listener, &mut dialer, address.clone(), PLAIN).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_socket_of_a_single_dial_is_replaced_too() {
    let (here, there) = hosts();
    let (mut listener, mut dialer) = (transport(&here), transport(&there));
    let address = listen(&mut listener, LISTENER).await;
    let mut connected = connect(&mut listener, &mut dialer, address, FRESH).await;
    assert_eq!(there.kill_sockets(), 1);
    drive(dialer);
    drive(listener);
    tokio::time::sleep(Duration::from_secs(60)).await;
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
}

#[tokio::test(start_paused = true)]
async fn a_listener_whose_port_was_taken_meanwhile_announces_another_one() {
    let (here, there) = hosts();
    let (mut listener, mut dialer) = (transport(&here), transport(&there));
    let before = listen(&mut listener, LISTENER).await;
    here.refuse_binds(io::ErrorKind::AddrInUse, usize::MAX, true);
    here.kill_sockets();
    let seen = events(&mut listener, Duration::from_secs(60)).await;
    let [error, expired, new] = seen.as_slice() else { panic!("{seen:?}") };
    assert!(error.starts_with("error UDP socket at 0.0.0.0:4001 failed"), "{error}");
    assert_eq!(*expired, format!("expired {before}"));
    let after: Multiaddr = new.strip_prefix("new ").unwrap().parse().unwrap();
    assert_ne!(after, before);
    connect(&mut listener, &mut dialer, after, PLAIN).await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_is_replaced_when_the_system_has_room_again_and_that_is_reported_once() {
    let (here, there) = hosts();
    let (mut listener, mut dialer) = (transport(&here), transport(&there));
    let address = listen(&mut listener, LISTENER).await;
    here.refuse_binds(io::ErrorKind::Other, 8, false);
    here.kill_sockets();
    let seen = events(&mut listener, Duration::from_secs(60)).await;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[1].contains("cannot be replaced yet: UDP socket at 0.0.0.0:4001"), "{seen:?}");
    connect(&mut listener, &mut dialer, address, PLAIN).await;
}
