//! Peers that share no configured coordinator.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder,
    core::ConnectedPoint,
    identify,
    identity::Keypair,
    multiaddr::Protocol,
    swarm::{
        NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use libp2p_punch::{
    Behaviour, Config, Event, RegistrationEvent, Role,
    sources::{CoordinatorFile, CoordinatorList},
};
use libp2p_punch_sim::{Host, Link, World};
use tokio::time::{Instant, timeout};

use crate::{
    network::{
        NEVER, PORT, Site, client, coordinator, keypair, listening, on_paused_time, parts, registered, run,
        swarm, until,
    },
    relaying::{clients, peer, relay, reserved, serve},
};

/// A swarm as most applications have it: they know each other's protocols.
#[derive(NetworkBehaviour)]
struct Node {
    punch: Behaviour,
    identify: identify::Behaviour,
}

fn node(host: &Arc<Host>, seed: u8, config: Config) -> Swarm<Node> {
    swarm(host, seed, config, |punch, keypair: &Keypair| Node {
        punch,
        identify: identify::Behaviour::new(identify::Config::new("/test/1".to_owned(), keypair.public())),
    })
}

/// A coordinator with identify at 203.NUMBER.113.254.
fn public_node(world: &World, number: u8, config: Config) -> (Swarm<Node>, Multiaddr) {
    let swarm = node(&world.public_host([203, number, 113, 254]), number, config);
    let address = format!("/ip4/203.{number}.113.254/udp/{PORT}/quic-v1/p2p/{}", swarm.local_peer_id());
    (swarm, address.parse().expect("valid"))
}

fn server() -> Config {
    {
        let mut config = Config::default();
        config.role = Role::Server;
        config
    }
}

fn circuit(coordinator: &Multiaddr, peer: PeerId) -> Multiaddr {
    coordinator.clone().with(Protocol::P2pCircuit).with(Protocol::P2p(peer))
}

fn peer_of(address: &Multiaddr) -> PeerId {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => peer,
        _ => panic!("{address} names no peer"),
    }
}

/// Dials a peer. Returns the ends of the first connection.
async fn dial<B: NetworkBehaviour>(
    dialer: &mut Swarm<B>,
    dial: impl Into<DialOpts>,
    peer: PeerId,
) -> ConnectedPoint {
    let dial = dial.into();
    let id = dial.connection_id();
    dialer.dial(dial).expect("not dialed yet");
    until(dialer, |event| match event {
        SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => Some(endpoint),
        SwarmEvent::OutgoingConnectionError { connection_id, error, .. } if connection_id == id => {
            panic!("{error}")
        }
        _ => None,
    })
    .await
}

/// Dials a peer, and returns the time to the direct connection.
async fn connect<B: NetworkBehaviour>(
    dialer: &mut Swarm<B>,
    options: impl Into<DialOpts>,
    peer: PeerId,
) -> Duration {
    let begin = Instant::now();
    assert!(!dial(dialer, options, peer).await.is_relayed());
    begin.elapsed()
}

#[test]
fn an_address_that_names_a_coordinator_is_enough_to_dial() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let mut listener = swarm(&Site::EIM_APDF.host(&world, 2, 0.0), 2, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        let listener = run(listener);
        let mut dialer = swarm(&Site::EIM_APDF.host(&world, 1, 0.0), 1, Config::default(), |punch, _| punch);
        let dial = DialOpts::peer_id(listener)
            .addresses(vec![circuit(&address, listener)])
            .extend_addresses_through_behaviour();
        let took = connect(&mut dialer, dial.build(), listener).await;
        println!("{took:?}");
        assert!(took <= Duration::from_secs(1), "{took:?}");
    });
}

#[test]
fn the_record_of_a_coordinator_has_its_round_trip_its_age_and_its_failures() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let host = Site::Public.host(&world, 1, 0.0);
        world.set_link(&host, Link::with_latency(Duration::from_millis(20)));
        let mut peer = swarm(&host, 1, client(&address), |punch, _| punch);
        let nowhere = format!("/ip4/203.9.113.9/udp/{PORT}/quic-v1/p2p/{}", PeerId::random());
        peer.behaviour_mut().add_coordinator(nowhere.parse().expect("valid")).expect("it names its peer");
        registered(&mut peer).await;
        let registered_at = Instant::now();
        until(&mut peer, |event| match event {
            SwarmEvent::Behaviour(Event::Registration(RegistrationEvent::Renewed { rtt, .. })) => Some(rtt),
            _ => None,
        })
        .await;
        while peer.behaviour().coordinators().iter().all(|coordinator| coordinator.failures == 0) {
            peer.select_next_some().await;
        }
        let all = peer.behaviour().coordinators();
        let (one, none): (Vec<_>, Vec<_>) = all.iter().partition(|coordinator| coordinator.is_registered);
        let ([one], [none]) = (&one[..], &none[..]) else { panic!("{all:?}") };
        let rtt = one.rtt.expect("it has answered");
        assert!(rtt >= Duration::from_millis(40) && rtt < Duration::from_millis(50), "{rtt:?}");
        assert_eq!((one.registered_since, one.failures), (Some(registered_at.into_std()), 0));
        assert!(one.registrations_accepted >= 2, "{one:?}");
        assert_eq!((none.registered_since, none.rtt, none.registrations_accepted), (None, None, 0));
        assert!(none.failures >= 1, "{none:?}");
    });
}

#[test]
fn two_peers_with_a_coordinator_each_are_connected() {
    on_paused_time(async {
        let world = World::new(1);
        let [(one, at_one), (two, at_two)] = [1, 2].map(|number| public_node(&world, number, server()));
        run(one);
        run(two);
        let peer = |number, address: &Multiaddr| {
            let host = Site::EIM_APDF.host(&world, number, 0.0);
            swarm(&host, number + 10, client(address), |punch, _| punch)
        };
        let (mut dialer, mut listener) = (peer(1, &at_one), peer(2, &at_two));
        registered(&mut dialer).await;
        registered(&mut listener).await;
        let listener = run(listener);
        dialer.add_peer_address(listener, circuit(&at_two, listener));
        let took = connect(&mut dialer, listener, listener).await;
        println!("{took:?}");
        assert!(took <= Duration::from_secs(1), "{took:?}");
        // The coordinator was needed for one request.
        let is_kept = |dialer: &Swarm<Behaviour>| dialer.behaviour().coordinators().len();
        assert_eq!(is_kept(&dialer), 1);
    });
}

/// Waits until the swarm is registered with `count` coordinators that it found.
async fn finds(swarm: &mut Swarm<Node>, count: usize) {
    let registered = |swarm: &Swarm<Node>| {
        let coordinators = swarm.behaviour().punch.coordinators();
        coordinators.iter().filter(|coordinator| coordinator.is_found && coordinator.is_registered).count()
    };
    while registered(swarm) < count {
        swarm.select_next_some().await;
    }
}

#[test]
fn a_peer_behind_a_nat_registers_with_coordinators_among_the_peers_that_it_is_connected_to() {
    on_paused_time(async {
        let world = World::new(1);
        let addresses = [1, 2, 3, 4, 5].map(|number| {
            // The fourth node does not coordinate.
            let role = if number == 4 { Role::Client } else { Role::Server };
            let (swarm, address) = public_node(&world, number, {
                let mut config = Config::default();
                config.role = role;
                config
            });
            run(swarm);
            address
        });
        let mut peer = node(&Site::EIM_APDF.host(&world, 1, 0.0), 11, Config::default());
        for address in &addresses {
            peer.dial(address.clone()).expect("it is an address");
        }
        // Until the protocols of all are known.
        let mut identified = 0;
        while identified < addresses.len() {
            let event = peer.select_next_some().await;
            let is_received = |event: &SwarmEvent<NodeEvent>| {
                matches!(event, SwarmEvent::Behaviour(NodeEvent::Identify(identify::Event::Received { .. })))
            };
            identified += usize::from(is_received(&event));
        }
        // One that works goes only once those that are wanted instead have registered the peer.
        let coordinators = loop {
            let coordinators = peer.behaviour().punch.coordinators();
            let registered = coordinators.iter().filter(|coordinator| coordinator.is_registered).count();
            if [registered, coordinators.len()] == [3, 3] {
                break coordinators;
            }
            peer.select_next_some().await;
        };
        assert!(coordinators.iter().all(|coordinator| coordinator.peer != peer_of(&addresses[3])));
    });
}

#[test]
fn a_node_coordinates_once_an_address_is_confirmed_and_its_peers_hear_of_it() {
    on_paused_time(async {
        let world = World::new(1);
        let (mut auto, address) = public_node(&world, 1, Config::default());
        let mut peer = node(&Site::EIM_APDF.host(&world, 1, 0.0), 11, Config::default());
        peer.dial(address.clone()).expect("it is an address");
        let next = async |auto: &mut Swarm<Node>, peer: &mut Swarm<Node>| loop {
            tokio::select! {
                _ = auto.select_next_some() => {}
                event = peer.select_next_some() => if let SwarmEvent::Behaviour(event) = event { return event },
            }
        };
        while !matches!(
            next(&mut auto, &mut peer).await,
            NodeEvent::Identify(identify::Event::Received { .. })
        ) {}
        assert!(!auto.behaviour().punch.is_coordinator(), "nobody has confirmed an address");
        assert_eq!(peer.behaviour().punch.coordinators(), []);
        auto.add_external_address(address.clone());
        while !matches!(
            next(&mut auto, &mut peer).await,
            NodeEvent::Punch(Event::Registration(RegistrationEvent::CoordinatorFound { .. }))
        ) {}
        assert!(auto.behaviour().punch.is_coordinator());
        auto.remove_external_address(&address);
        while !matches!(
            next(&mut auto, &mut peer).await,
            NodeEvent::Punch(Event::Registration(RegistrationEvent::CoordinatorDropped { .. }))
        ) {}
        assert_eq!(peer.behaviour().punch.coordinators(), []);
    });
}

#[test]
fn a_coordinator_that_leaves_is_replaced() {
    on_paused_time(async {
        let world = World::new(1);
        let mut running = Vec::new();
        let mut config = Config::default();
        config.max_found_coordinators = 1;
        let mut peer = node(&Site::EIM_APDF.host(&world, 1, 0.0), 11, config);
        for number in [1, 2] {
            let (mut swarm, address) = public_node(&world, number, server());
            let id = *swarm.local_peer_id();
            let task = tokio::spawn(async move {
                loop {
                    swarm.select_next_some().await;
                }
            });
            running.push((id, task));
            peer.dial(address).expect("it is an address");
        }
        finds(&mut peer, 1).await;
        let first = peer.behaviour().punch.coordinators()[0].peer;
        for (id, task) in &running {
            if *id == first {
                task.abort();
            }
        }
        let begin = Instant::now();
        loop {
            peer.select_next_some().await;
            let coordinators = peer.behaviour().punch.coordinators();
            if coordinators.iter().any(|coordinator| coordinator.peer != first && coordinator.is_registered) {
                break;
            }
        }
        println!("{:?}", begin.elapsed());
    });
}

#[test]
fn a_source_of_coordinators_is_asked_for_a_peer_that_is_dialed_by_its_peer_id_alone() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let mut listener = swarm(&Site::EIM_APDF.host(&world, 2, 0.0), 2, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        let listener = run(listener);
        let mut dialer = swarm(&Site::EIM_APDF.host(&world, 1, 0.0), 1, Config::default(), |punch, _| punch);
        let mut directory = dialer.behaviour_mut().coordinator_lookup();
        let directory = tokio::spawn(async move {
            let peer = directory.next().await.expect("a peer is dialed");
            // Other nodes without registrations do no harm, however many there are.
            for seed in 20..40 {
                let stranger = keypair(seed).public().to_peer_id();
                let nowhere = format!("/ip4/203.0.113.{seed}/udp/{PORT}/quic-v1").parse().expect("valid");
                directory.found(peer, stranger, vec![nowhere]);
            }
            directory.found(peer, peer_of(&address), vec![address]);
            (peer, directory)
        });
        let took = connect(&mut dialer, listener, listener).await;
        println!("{took:?}");
        let (peer, mut directory) = directory.await.expect("it ended");
        assert_eq!(peer, listener);
        // Later results are ignored.
        assert!(directory.found(peer, keypair(50).public().to_peer_id(), Vec::new()));
        assert_eq!(dialer.behaviour().coordinators(), []);
    });
}

#[test]
fn a_peer_that_a_source_finds_at_its_own_address_is_dialed_there() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let (public, at) = public_node(&world, 9, server());
        let public = run(public);
        let mut dialer = swarm(&Site::EIM_APDF.host(&world, 1, 0.0), 1, client(&address), |punch, _| punch);
        registered(&mut dialer).await;
        let mut directory = dialer.behaviour_mut().coordinator_lookup();
        tokio::spawn(async move {
            let peer = directory.next().await.expect("a peer is dialed");
            assert!(directory.found(peer, peer, vec![at]));
            std::future::pending::<()>().await;
        });
        let ConnectedPoint::Dialer { address, .. } = dial(&mut dialer, public, public).await else {
            panic!("the dialer dialed");
        };
        println!("{address}");
    });
}

#[test]
fn a_dial_that_begins_no_session_connects_to_no_coordinator_that_its_addresses_name() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let mut server = swarm(&world.public_host([203, 0, 113, 9]), 9, Config::default(), |punch, _| punch);
        let mut directory = server.behaviour_mut().coordinator_lookup();
        // As the dial-back of AutoNAT: of this very address, and of no other.
        let stranger = keypair(3).public().to_peer_id();
        let dial = DialOpts::peer_id(stranger).addresses(vec![circuit(&address, stranger)]).build();
        server.dial(dial).expect("it is an address");
        let failed = |event| matches!(event, SwarmEvent::OutgoingConnectionError { .. }).then_some(());
        until(&mut server, failed).await;
        let _ = timeout(Duration::from_secs(10), until(&mut server, |_| None::<()>)).await;
        assert_eq!(server.network_info().num_peers(), 0);
        assert!(directory.next().now_or_never().is_none(), "nobody is looked up");
    });
}

#[test]
fn a_failed_dial_of_the_application_costs_no_coordinator() {
    on_paused_time(async {
        let world = World::new(1);
        let (server, address) = public_node(&world, 1, server());
        let coordinator = run(server);
        let mut peer = node(&Site::EIM_APDF.host(&world, 1, 0.0), 11, Config::default());
        peer.dial(address).expect("it is an address");
        finds(&mut peer, 1).await;
        // The swarm reports this to all behaviours as a failed dial.
        peer.dial(coordinator).expect_err("it is connected");
        let nowhere = format!("/ip4/203.9.113.9/udp/{PORT}/quic-v1").parse().expect("valid");
        let dial = DialOpts::peer_id(coordinator).condition(PeerCondition::Always).addresses(vec![nowhere]);
        peer.dial(dial.build()).expect("it is an address");
        until(&mut peer, |event| {
            assert!(!matches!(
                event,
                SwarmEvent::Behaviour(NodeEvent::Punch(Event::Registration(
                    RegistrationEvent::CoordinatorDropped { .. }
                )))
            ));
            matches!(event, SwarmEvent::OutgoingConnectionError { .. }).then_some(())
        })
        .await;
        finds(&mut peer, 1).await;
    });
}

#[test]
fn a_coordinator_that_the_application_names_stays_when_it_is_no_longer_chosen() {
    on_paused_time(async {
        let world = World::new(1);
        let (server, address) = public_node(&world, 1, server());
        let coordinator = run(server);
        let mut peer = node(&Site::Public.host(&world, 77, 0.0), 11, Config::default());
        peer.dial(address.clone()).expect("it is an address");
        finds(&mut peer, 1).await;
        peer.behaviour_mut().punch.add_coordinator(address.clone()).expect("it names its peer");
        peer.add_external_address("/ip4/203.0.113.77/udp/4001/quic-v1".parse().expect("valid"));
        until(&mut peer, |event| {
            let SwarmEvent::Behaviour(NodeEvent::Punch(Event::Registration(event))) = event else { return None };
            matches!(event, RegistrationEvent::CoordinatorDropped { coordinator: dropped, .. } if dropped == coordinator).then_some(())
        })
        .await;
        let left = peer.behaviour().punch.coordinators();
        assert_eq!(
            left.iter().map(|left| (left.peer, left.is_found)).collect::<Vec<_>>(),
            [(coordinator, false)]
        );
        assert!(peer.behaviour_mut().punch.remove_coordinator(&coordinator));
        assert_eq!(peer.behaviour().punch.coordinators(), []);
    });
}

/// The dialer is registered with one coordinator, the peer with another, and no direct path exists.
#[test]
fn a_coordinator_that_a_source_found_relays_where_only_a_relay_helps() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, own, _) = relay(&world, 253);
        let (_, far, _) = relay(&world, 254);
        let mut listener = peer(&world, Site::APDM_RANDOM, 2, client(&far));
        reserved(&mut listener).await;
        let listener = serve(listener, Duration::ZERO);
        let mut dialer = peer(&world, Site::APDM_RANDOM, 1, client(&own));
        reserved(&mut dialer).await;
        let mut directory = dialer.behaviour_mut().punch.coordinator_lookup();
        let directory = tokio::spawn(async move {
            let peer = directory.next().await.expect("a peer is dialed");
            directory.found(peer, peer_of(&far), vec![far]);
            directory
        });
        assert!(dial(&mut dialer, listener, listener).await.is_relayed());
        directory.await.expect("it ended");
    });
}

/// No direct path exists, and the dialer shares one coordinator with the peer: any of its three.
#[test]
fn each_coordinator_of_a_peer_relays_where_only_a_relay_helps() {
    on_paused_time(async {
        let world = World::new(1);
        let relays = [252, 253, 254].map(|number| relay(&world, number).1);
        let mut listener = peer(&world, Site::APDM_RANDOM, 2, clients(&relays));
        for _ in 0..relays.len() {
            reserved(&mut listener).await;
        }
        let listener = serve(listener, Duration::ZERO);
        for (number, shared) in (11..).zip(&relays) {
            let mut dialer = peer(&world, Site::APDM_RANDOM, number, client(shared));
            reserved(&mut dialer).await;
            assert!(dial(&mut dialer, listener, listener).await.is_relayed(), "{shared}");
        }
    });
}

/// Each peer has a coordinator of its own, and the dialer has a list.
#[test]
fn the_coordinators_of_a_list_and_of_a_file_are_asked_for_a_peer_that_nobody_else_knows() {
    let folder = std::env::temp_dir().join(format!("punch-coordinators-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let file = folder.join("list");
    for in_file in [false, true] {
        on_paused_time(async {
            let world = World::new(1);
            let [at_one, at_two, at_three] = [1, 2, 3].map(|number| {
                let (swarm, address) = public_node(&world, number, server());
                run(swarm);
                address
            });
            let peer = |number, address: &Multiaddr| {
                let host = Site::EIM_APDF.host(&world, number, 0.0);
                swarm(&host, number + 10, client(address), |punch, _| punch)
            };
            let (mut dialer, mut listener) = (peer(1, &at_one), peer(2, &at_two));
            registered(&mut dialer).await;
            registered(&mut listener).await;
            let listener = run(listener);
            let lookup = dialer.behaviour_mut().coordinator_lookup();
            if in_file {
                std::fs::write(&file, "# none yet").expect("the file can be written");
                let source = CoordinatorFile::open(lookup, &file).await.expect("the file can be read");
                std::fs::write(&file, format!("{at_three}\n{at_two}\n")).expect("the file can be written");
                tokio::spawn(source.run());
            } else {
                let source = CoordinatorList::new(lookup, [at_three, at_two]);
                tokio::spawn(source.expect("each names its peer").run());
            }
            connect(&mut dialer, listener, listener).await;
        });
    }
    std::fs::remove_dir_all(folder).expect("the folder can be removed");
}

/// Waits until all coordinators that the swarm has have registered it.
async fn registered_with_all<B: NetworkBehaviour>(swarm: &mut Swarm<B>, punch: impl Fn(&B) -> &Behaviour) {
    while !punch(swarm.behaviour()).coordinators().iter().all(|coordinator| coordinator.is_registered) {
        swarm.select_next_some().await;
    }
}

/// No direct path exists, and the coordinator that both peers share does not relay.
#[test]
fn a_relay_of_the_peer_is_looked_up_where_no_known_one_helps() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, shared) = coordinator(&world);
        let far = relay(&world, 252).1;
        let mut listener = peer(&world, Site::APDM_RANDOM, 2, clients(&[shared.clone(), far.clone()]));
        reserved(&mut listener).await;
        registered_with_all(&mut listener, |peer| &peer.punch).await;
        let listener = serve(listener, Duration::ZERO);
        let mut dialer = peer(&world, Site::APDM_RANDOM, 1, client(&shared));
        registered_with_all(&mut dialer, |peer| &peer.punch).await;
        let mut directory = dialer.behaviour_mut().punch.coordinator_lookup();
        let directory = tokio::spawn(async move {
            let peer = directory.next().await.expect("a peer is dialed");
            directory.found(peer, peer_of(&far), vec![far]);
            directory
        });
        assert!(dial(&mut dialer, listener, listener).await.is_relayed());
        directory.await.expect("it ended");
        // The dial goes on: the connection may become direct.
        let ended = until(&mut dialer, |event| match event {
            SwarmEvent::OutgoingConnectionError { error, .. } => Some(error.to_string()),
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == listener => {
                Some("another connection".to_owned())
            }
            _ => None,
        });
        assert_eq!(timeout(Duration::from_secs(30), ended).await.ok(), None);
    });
}

/// As above, but nobody knows more relays.
#[test]
fn a_dial_fails_soon_if_no_source_finds_a_relay() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, shared) = coordinator(&world);
        let mut listener = peer(&world, Site::APDM_RANDOM, 2, client(&shared));
        registered_with_all(&mut listener, |peer| &peer.punch).await;
        let listener = serve(listener, Duration::ZERO);
        let mut dialer = peer(&world, Site::APDM_RANDOM, 1, client(&shared));
        registered_with_all(&mut dialer, |peer| &peer.punch).await;
        let _directory = dialer.behaviour_mut().punch.coordinator_lookup();
        let begun = Instant::now();
        let dial = DialOpts::from(listener);
        let id = dial.connection_id();
        dialer.dial(dial).expect("not dialed yet");
        until(&mut dialer, |event| match event {
            SwarmEvent::OutgoingConnectionError { connection_id, .. } if connection_id == id => Some(()),
            _ => None,
        })
        .await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(10) && took <= Duration::from_secs(15), "{took:?}");
    });
}

/// The relay server of libp2p keeps each connection for ten seconds, and wakes nobody at the end.
#[test]
fn a_connection_that_nobody_uses_is_closed_although_the_peers_could_relay() {
    #[derive(NetworkBehaviour)]
    struct Relay {
        punch: Behaviour,
        relay: libp2p::relay::Behaviour,
    }

    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let [mut dialer, mut listener] = [1, 2].map(|number| {
            let host = Site::EIM_APDF.host(&world, number, 0.0);
            let (keypair, transport, punch) = parts(&host, number, client(&address));
            let peer = keypair.public().to_peer_id();
            let relay = libp2p::relay::Behaviour::new(peer, libp2p::relay::Config::default());
            let swarm = SwarmBuilder::with_existing_identity(keypair)
                .with_tokio()
                .with_other_transport(|_| transport)
                .expect("it is a transport")
                .with_behaviour(|_| Relay { punch, relay })
                .expect("it is a behaviour")
                .with_swarm_config(|config| config)
                .with_connection_timeout(NEVER)
                .build();
            listening(swarm)
        });
        registered_with_all(&mut dialer, |relay| &relay.punch).await;
        registered_with_all(&mut listener, |relay| &relay.punch).await;
        let listener = run(listener);
        connect(&mut dialer, listener, listener).await;
        let closed = until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionClosed { peer_id, .. } if peer_id == listener => Some(()),
            _ => None,
        });
        timeout(Duration::from_secs(60), closed).await.expect("nobody uses it");
    });
}

/// A reaches B over C once. Later C is gone for A, and B is registered with D only.
#[test]
fn a_peer_that_was_connected_once_is_found_again_by_the_coordinators_that_it_named() {
    on_paused_time(async {
        let world = World::new(1);
        let [c, d] = [1, 2].map(|number| {
            let (swarm, address) = public_node(&world, number, server());
            run(swarm);
            address
        });
        let mut listener = swarm(&Site::EIM_APDF.host(&world, 2, 0.0), 12, client(&c), |punch, _| punch);
        listener.behaviour_mut().add_coordinator(d.clone()).expect("it names its peer");
        registered(&mut listener).await;
        let (commands, mut received) = tokio::sync::mpsc::unbounded_channel::<PeerId>();
        let listener_id = *listener.local_peer_id();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(coordinator) = received.recv() => {
                        listener.behaviour_mut().remove_coordinator(&coordinator);
                    }
                    _ = listener.select_next_some() => {}
                }
            }
        });
        let mut dialer = swarm(&Site::EIM_APDF.host(&world, 1, 0.0), 11, client(&c), |punch, _| punch);
        connect(&mut dialer, listener_id, listener_id).await;
        let named = until(&mut dialer, |event| match event {
            SwarmEvent::Behaviour(Event::Registration(RegistrationEvent::PeerCoordinators {
                peer,
                coordinators,
                ..
            })) if peer == listener_id && coordinators.len() == 2 => Some(coordinators),
            _ => None,
        })
        .await;
        assert!(named.contains(&c) && named.contains(&d), "{named:?}");
        commands.send(peer_of(&c)).expect("the listener runs");
        until(&mut dialer, |event| match event {
            SwarmEvent::Behaviour(Event::Registration(RegistrationEvent::PeerCoordinators {
                coordinators,
                ..
            })) => (coordinators == [d.clone()]).then_some(()),
            _ => None,
        })
        .await;

        let known: Vec<_> = dialer.behaviour().peer_coordinators().map(|(_, known)| known.to_vec()).collect();
        assert_eq!(known, [vec![d.clone()]]);
        dialer.behaviour_mut().remove_coordinator(&peer_of(&c));
        dialer.disconnect_peer_id(listener_id).expect("it is connected");
        until(&mut dialer, |event| matches!(event, SwarmEvent::ConnectionClosed { .. }).then_some(())).await;
        connect(&mut dialer, listener_id, listener_id).await;

        // A process that restarts has what it stored.
        let mut restarted =
            swarm(&Site::EIM_APDF.host(&world, 3, 0.0), 13, Config::default(), |punch, _| punch);
        let wrong = vec!["/ip4/203.0.113.1/udp/1/quic-v1".parse().expect("valid")];
        restarted.behaviour_mut().add_peer_coordinators(listener_id, wrong).expect_err("it names no peer");
        restarted.behaviour_mut().add_peer_coordinators(listener_id, vec![d]).expect("it names its peer");
        connect(&mut restarted, listener_id, listener_id).await;
    });
}
