//! Behaviours of rust-libp2p on our transport, without ours and together with ours.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, dcutr, identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    yamux,
};
use libp2p_punch::{Config, Transport};
use libp2p_punch_sim::{Host, Link, Trace, World};

use crate::{
    dcutr::PATIENCE,
    network::{NEVER, PORT, Site, client, coordinator, on_paused_time, until},
};

#[derive(NetworkBehaviour)]
struct RelayServer {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
}

#[derive(NetworkBehaviour)]
struct Stock {
    relay: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes make a key")
}

pub(crate) fn identify(keypair: &Keypair) -> identify::Behaviour {
    identify::Behaviour::new(identify::Config::new("/test/1".to_owned(), keypair.public()))
}

fn listen<B: NetworkBehaviour>(mut swarm: Swarm<B>) -> Swarm<B> {
    swarm
        .listen_on(format!("/ip4/0.0.0.0/udp/{PORT}/quic-v1").parse().expect("valid"))
        .expect("port is free");
    swarm
}

fn transport(host: &Arc<Host>, keypair: &Keypair) -> Transport {
    let runtime = libp2p_punch::io::Runtime::tokio();
    Transport::with_io(keypair, Config::default(), host.clone(), runtime).expect("valid")
}

/// A Circuit Relay v2 at 203.0.113.200, which runs until the runtime ends.
fn relay_server(world: &World) -> Multiaddr {
    let host = world.public_host([203, 0, 113, 200]);
    world.set_link(&host, Link::with_latency(Duration::from_millis(10)));
    let keypair = key(200);
    let address: Multiaddr = format!("/ip4/203.0.113.200/udp/{PORT}/quic-v1").parse().expect("valid");
    let mut swarm = listen(
        SwarmBuilder::with_existing_identity(keypair.clone())
            .with_tokio()
            .with_other_transport(|_| transport(&host, &keypair))
            .expect("it is a transport")
            .with_behaviour(|keypair| RelayServer {
                relay: relay::Behaviour::new(keypair.public().to_peer_id(), relay::Config::default()),
                identify: identify(keypair),
            })
            .expect("it is a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
            .with_connection_timeout(NEVER)
            .build(),
    );
    swarm.add_external_address(address.clone());
    let address = address.with(Protocol::P2p(*swarm.local_peer_id()));
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    address
}

/// A peer with `libp2p-dcutr` and without our behaviour.
fn stock(world: &World, number: u8) -> Swarm<Stock> {
    let host = Site::EIM_APDF.host(world, number, 0.0);
    let keypair = key(number);
    listen(
        SwarmBuilder::with_existing_identity(keypair.clone())
            .with_tokio()
            .with_other_transport(|_| transport(&host, &keypair))
            .expect("it is a transport")
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .expect("it is a relay client")
            .with_behaviour(|keypair, relay| Stock {
                relay,
                dcutr: dcutr::Behaviour::new(keypair.public().to_peer_id()),
                identify: identify(keypair),
                ping: ping::Behaviour::default(),
            })
            .expect("it is a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
            .with_connection_timeout(NEVER)
            .build(),
    )
}

/// Connects to the relay and waits until it has reported our address, which dcutr announces.
async fn meet(swarm: &mut Swarm<Stock>, relay: &Multiaddr) {
    swarm.dial(relay.clone()).expect("not dialed yet");
    until(swarm, |event| {
        let SwarmEvent::Behaviour(StockEvent::Identify(identify::Event::Received { .. })) = event else {
            return None;
        };
        Some(())
    })
    .await;
}

/// Direct connections with `peer` that the swarm reported.
type Direct = Arc<Mutex<Vec<bool>>>;

/// Runs a swarm, and notes for each direct connection whether it dialed it.
async fn watch(mut swarm: Swarm<Stock>, peer: PeerId, direct: Direct) {
    loop {
        if let SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } = swarm.select_next_some().await
            && peer_id == peer
            && !endpoint.is_relayed()
        {
            direct.lock().expect("nobody panics").push(endpoint.is_dialer());
        }
    }
}

#[test]
fn an_unmodified_dcutr_ends_in_exactly_one_direct_connection() {
    on_paused_time(async {
        let world = World::new(1);
        let relay = relay_server(&world);
        let (mut a, mut b) = (stock(&world, 1), stock(&world, 2));
        let (a_id, b_id) = (*a.local_peer_id(), *b.local_peer_id());
        meet(&mut a, &relay).await;
        meet(&mut b, &relay).await;
        b.listen_on(relay.clone().with(Protocol::P2pCircuit)).expect("it is a relay");
        until(&mut b, |event| {
            use relay::client::Event::ReservationReqAccepted;
            matches!(event, SwarmEvent::Behaviour(StockEvent::Relay(ReservationReqAccepted { .. })))
                .then_some(())
        })
        .await;
        let trace = Trace::start(&world);
        let (at_a, at_b) = (Direct::default(), Direct::default());
        tokio::spawn(watch(b, a_id, at_b.clone()));
        a.dial(relay.with(Protocol::P2pCircuit).with(Protocol::P2p(b_id))).expect("not dialed yet");
        tokio::spawn(watch(a, b_id, at_a.clone()));
        let count = |direct: &Direct| direct.lock().expect("nobody panics").len();
        let both = async {
            while count(&at_a) < 1 || count(&at_b) < 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, both).await.expect("a direct connection");
        // A second connection would come from the other side's dial, within its handshake time-out
        // of five seconds.
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!((count(&at_a), count(&at_b)), (1, 1), "one connection, and no second one");

        // Packets of sixteen bytes open a hole. Unit tests of the transport check their frequency.
        let mut opened: Vec<_> =
            trace.records().iter().filter(|record| record.size == 16).map(|r| r.sent).collect();
        opened.dedup();
        assert!(!opened.is_empty(), "the hole is opened from the beginning");
    });
}

#[derive(NetworkBehaviour)]
struct Everything {
    punch: libp2p_punch::Behaviour,
    relay: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    identify: identify::Behaviour,
    autonat_client: libp2p::autonat::v2::client::Behaviour,
    autonat_server: libp2p::autonat::v2::server::Behaviour,
    ping: ping::Behaviour,
}

fn everything(world: &World, number: u8, coordinator: &Multiaddr) -> Swarm<Everything> {
    let host = Site::EIM_APDF.host(world, number, 0.0);
    let keypair = key(number);
    let runtime = libp2p_punch::io::Runtime::tokio();
    let (transport, punch) =
        libp2p_punch::with_io(&keypair, client(coordinator), host, runtime).expect("valid");
    listen(
        SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_other_transport(|_| transport)
            .expect("it is a transport")
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .expect("it is a relay client")
            .with_behaviour(|keypair, relay| Everything {
                punch,
                relay,
                dcutr: dcutr::Behaviour::new(keypair.public().to_peer_id()),
                identify: identify(keypair),
                autonat_client: libp2p::autonat::v2::client::Behaviour::default(),
                autonat_server: libp2p::autonat::v2::server::Behaviour::default(),
                ping: ping::Behaviour::default(),
            })
            .expect("it is a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
            .with_connection_timeout(NEVER)
            .build(),
    )
}

#[test]
fn autonat_relay_dcutr_and_identify_work_in_one_swarm_with_ours() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let is_registered = |event: &SwarmEvent<EverythingEvent>| {
            use libp2p_punch::{Event::Registration, RegistrationEvent::Accepted};
            matches!(event, SwarmEvent::Behaviour(EverythingEvent::Punch(Registration(Accepted { .. }))))
        };
        let mut listener = everything(&world, 2, &address);
        until(&mut listener, |event| is_registered(&event).then_some(())).await;
        let peer = *listener.local_peer_id();
        tokio::spawn(async move {
            loop {
                listener.select_next_some().await;
            }
        });
        let mut dialer = everything(&world, 1, &address);
        until(&mut dialer, |event| is_registered(&event).then_some(())).await;
        dialer.dial(peer).expect("not dialed yet");
        let (mut pinged, mut identified, mut connections) = (false, false, 0);
        let all = until(&mut dialer, |event| {
            match event {
                SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => {
                    assert!(!endpoint.is_relayed());
                    connections += 1;
                }
                SwarmEvent::Behaviour(EverythingEvent::Ping(event)) if event.peer == peer => {
                    pinged = event.result.is_ok();
                }
                SwarmEvent::Behaviour(EverythingEvent::Identify(identify::Event::Received {
                    peer_id,
                    ..
                })) => {
                    identified |= peer_id == peer;
                }
                _ => {}
            }
            (pinged && identified).then_some(())
        });
        tokio::time::timeout(PATIENCE, all).await.expect("all of them work");
        assert_eq!(connections, 1);
    });
}
