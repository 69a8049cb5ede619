//! Relays as the last resort, and the way back from them.

use std::time::Duration;

use futures::StreamExt;
use libp2p::{Multiaddr, multiaddr::Protocol, swarm::SwarmEvent};
use libp2p_punch::event::RelayFailure;
use libp2p_punch::{Config, Event, RegistrationEvent, RelayEvent, Role, SessionEvent};
use libp2p_punch_sim::World;

use crate::{
    network::{Site, client, coordinator, on_paused_time, registered, run, swarm, until},
    relaying::{Seen, clients, peer, punch_event, relay, reserved, see, serve, two, watch},
};

const MINUTE: Duration = Duration::from_secs(60);

fn connections(seen: &[Seen]) -> Vec<bool> {
    let relayed = |seen: &Seen| match seen {
        Seen::Connected { relayed, .. } => Some(*relayed),
        _ => None,
    };
    seen.iter().filter_map(relayed).collect()
}

fn has(seen: &[Seen], wanted: impl Fn(&Event) -> bool) -> bool {
    seen.iter().any(|seen| matches!(seen, Seen::Punch(event) if wanted(event)))
}

#[test]
fn a_dial_that_cannot_be_direct_ends_relayed() {
    on_paused_time(async {
        let (mut dialer, listener) = two(&World::new(1), Site::APDM_RANDOM).await;
        dialer.dial(listener).expect("not dialed yet");
        dialer.behaviour_mut().echo.send_request(&listener, "hello".to_owned());
        let seen = watch(&mut dialer, listener, 3 * MINUTE).await;
        assert_eq!(connections(&seen), [true], "{seen:#?}");
        assert!(
            has(&seen, |event| matches!(event, Event::Relay(RelayEvent::Connected { relay: Some(_), .. }))),
            "{seen:#?}"
        );
        assert!(seen.contains(&Seen::Echoed(Ok("hello".to_owned()))), "{seen:#?}");
        assert!(!seen.iter().any(|seen| matches!(seen, Seen::NotDialed(_))), "{seen:#?}");
        let attempts = seen
            .iter()
            .filter(|seen| matches!(seen, Seen::Punch(Event::Session(SessionEvent::Failed { .. }))))
            .count();
        assert!(attempts >= 3, "a direct connection was looked for {attempts} times: {seen:#?}");
    });
}

#[test]
fn a_dial_that_can_be_direct_touches_no_relay() {
    on_paused_time(async {
        let (mut dialer, listener) = two(&World::new(1), Site::EIM_APDF).await;
        dialer.dial(listener).expect("not dialed yet");
        let seen = watch(&mut dialer, listener, MINUTE / 2).await;
        assert_eq!(connections(&seen), [false], "{seen:#?}");
        assert!(
            !has(&seen, |event| matches!(event, Event::Relay(RelayEvent::Connected { .. }))),
            "{seen:#?}"
        );
    });
}

#[test]
fn without_fallback_a_dial_that_cannot_be_direct_fails() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let mut listener = peer(&world, Site::APDM_RANDOM, 2, client(&address));
        reserved(&mut listener).await;
        let listener = serve(listener, Duration::ZERO);
        let mut config = client(&address);
        config.relay_fallback = false;
        let mut dialer = peer(&world, Site::APDM_RANDOM, 1, config);
        punch_event(&mut dialer, |event| {
            matches!(event, Event::Registration(RegistrationEvent::Accepted { .. })).then_some(())
        })
        .await;
        dialer.dial(listener).expect("not dialed yet");
        let seen = watch(&mut dialer, listener, MINUTE).await;
        assert!(seen.iter().any(|seen| matches!(seen, Seen::NotDialed(_))), "{seen:#?}");
        assert!(connections(&seen).is_empty(), "{seen:#?}");
        assert!(!has(&seen, |event| matches!(
            event,
            Event::Relay(RelayEvent::Reserved { .. } | RelayEvent::Failed { .. })
        )));
    });
}

#[test]
fn if_no_relay_helps_the_dial_fails_with_the_reason_of_traversal() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let mut listener =
            swarm(&Site::APDM_RANDOM.host(&world, 2, 0.0), 2, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        let listener = run(listener);
        let mut dialer = peer(&world, Site::APDM_RANDOM, 1, client(&address));
        punch_event(&mut dialer, |event| {
            matches!(event, Event::Registration(RegistrationEvent::Accepted { .. })).then_some(())
        })
        .await;
        dialer.dial(listener).expect("not dialed yet");
        let seen = watch(&mut dialer, listener, MINUTE).await;
        let why = seen.iter().filter_map(|seen| match seen {
            Seen::NotDialed(why) if why.contains("only a relay can help") => Some(why),
            _ => None,
        });
        assert_eq!(why.count(), 1, "{seen:#?}");
        assert!(
            has(
                &seen,
                |event| matches!(event, Event::Relay(RelayEvent::Failed { peer, reason: RelayFailure::Unreachable, .. }) if *peer == listener)
            ),
            "{seen:#?}"
        );
    });
}

#[test]
fn a_dial_of_a_peer_that_no_coordinator_knows_ends_in_one_error() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let mut dialer = peer(&world, Site::EIM_APDF, 1, client(&address));
        reserved(&mut dialer).await;
        let nobody = libp2p::PeerId::random();
        dialer.dial(nobody).expect("not dialed yet");
        let seen = watch(&mut dialer, nobody, 2 * MINUTE).await;
        assert_eq!(seen.iter().filter(|seen| matches!(seen, Seen::NotDialed(_))).count(), 1, "{seen:#?}");
    });
}

#[test]
fn a_peer_that_nobody_reaches_keeps_three_reservations_and_replaces_a_lost_one() {
    on_paused_time(async {
        let world = World::new(1);
        let relays = [250, 251, 252, 253].map(|number| relay(&world, number));
        let addresses: Vec<Multiaddr> = relays.iter().map(|(_, address, _)| address.clone()).collect();
        let mut swarm = peer(&world, Site::EIM_APDF, 1, clients(&addresses));
        let own = *swarm.local_peer_id();
        let first = [reserved(&mut swarm).await, reserved(&mut swarm).await, reserved(&mut swarm).await];
        assert_eq!(std::collections::BTreeSet::from(first).len(), 3);
        let seen = watch(&mut swarm, own, MINUTE).await;
        assert!(!has(&seen, |event| matches!(event, Event::Relay(RelayEvent::Reserved { .. }))), "{seen:#?}");

        let is_first = |address: &Multiaddr| address.iter().last() == Some(Protocol::P2p(first[0]));
        let (host, _, task) =
            relays.iter().find(|(_, address, _)| is_first(address)).expect("it is one of them");
        task.abort();
        world.set_link(host, libp2p_punch_sim::Link { loss: 1.0, ..Default::default() });
        let lost = punch_event(&mut swarm, |event| match event {
            Event::Relay(RelayEvent::Unreserved { relay, .. }) => Some(*relay),
            _ => None,
        });
        assert_eq!(lost.await, first[0]);
        let fourth = reserved(&mut swarm).await;
        assert!(!first.contains(&fourth), "the fourth relay takes its place");
    });
}

#[test]
fn reservations_are_given_up_as_soon_as_the_peer_is_reachable() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let mut swarm = peer(&world, Site::Public, 1, client(&address));
        let relay = reserved(&mut swarm).await;
        assert!(swarm.listeners().any(|address| address.iter().any(|part| part == Protocol::P2pCircuit)));
        swarm.add_external_address("/ip4/203.0.113.1/udp/4001/quic-v1".parse().expect("valid"));
        let own = *swarm.local_peer_id();
        let seen = watch(&mut swarm, own, MINUTE).await;
        let is_end = |event: &Event| matches!(event, Event::Relay(RelayEvent::Unreserved { relay: ended, .. }) if *ended == relay);
        assert!(has(&seen, is_end), "{seen:#?}");
        assert!(!has(&seen, |event| matches!(event, Event::Relay(RelayEvent::Reserved { .. }))), "{seen:#?}");
        assert!(!swarm.listeners().any(|address| address.iter().any(|part| part == Protocol::P2pCircuit)));
    });
}

#[test]
fn a_server_makes_no_reservation() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let mut config = client(&address);
        config.role = Role::Server;
        let mut swarm = peer(&world, Site::Public, 1, config);
        let own = *swarm.local_peer_id();
        let seen = watch(&mut swarm, own, MINUTE).await;
        assert!(
            has(&seen, |event| matches!(event, Event::Registration(RegistrationEvent::Accepted { .. }))),
            "{seen:#?}"
        );
        assert!(!has(&seen, |event| matches!(event, Event::Relay(RelayEvent::Reserved { .. }))), "{seen:#?}");
    });
}

#[test]
fn a_relayed_connection_is_upgraded_and_closed_once_its_streams_have_ended() {
    on_paused_time(async {
        let world = World::new(1);
        let (mut dialer, listener) = two(&world, Site::EIM_APDF).await;
        let circuit =
            dialer.listeners().find(|address| address.iter().any(|part| part == Protocol::P2pCircuit));
        let circuit: Multiaddr = circuit
            .expect("it is reserved")
            .iter()
            .take_while(|part| *part != Protocol::P2pCircuit)
            .collect();
        let circuit = circuit.with(Protocol::P2pCircuit).with(Protocol::P2p(listener));
        dialer.dial(circuit).expect("not dialed yet");
        let relayed = loop {
            match see(&mut dialer, listener).await {
                Seen::Connected { id, relayed } => {
                    assert!(relayed);
                    break id;
                }
                Seen::NotDialed(why) => panic!("{why}"),
                _ => {}
            }
        };
        // Answered after 20 s, long after the upgrade.
        dialer.behaviour_mut().echo.send_request(&listener, "over the relay".to_owned());
        let seen = watch(&mut dialer, listener, 5 * MINUTE).await;
        assert_eq!(connections(&seen), [false], "{seen:#?}");
        let position = |wanted: &dyn Fn(&Seen) -> bool| seen.iter().position(wanted).expect("seen");
        let upgraded = position(
            &|seen| matches!(seen, Seen::Punch(Event::Relay(RelayEvent::Upgraded { peer, .. })) if *peer == listener),
        );
        let echoed = position(&|seen| *seen == Seen::Echoed(Ok("over the relay".to_owned())));
        let closed = position(&|seen| *seen == Seen::Closed { id: relayed });
        assert!(upgraded < echoed && echoed < closed, "{seen:#?}");
        assert!(dialer.is_connected(&listener));
        assert_eq!(dialer.network_info().connection_counters().num_established(), 2, "relay and peer");
    });
}

#[test]
fn a_swarm_without_a_relay_client_hears_nothing_of_relays() {
    // A server asks for no reservation, and so does not learn in that way that there is no relay
    // client.
    for role in [Role::Auto, Role::Server] {
        without_a_relay_client(role);
    }
}

fn without_a_relay_client(role: Role) {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let plain = |number, role| {
            let mut config = client(&address);
            config.role = role;
            swarm(&Site::APDM_RANDOM.host(&world, number, 0.0), number, config, |punch, _| punch)
        };
        let (mut listener, mut dialer) = (plain(2, Role::Auto), plain(1, role));
        registered(&mut listener).await;
        let listener = run(listener);
        registered(&mut dialer).await;
        dialer.dial(listener).expect("not dialed yet");
        let mut failures = 0;
        let end = tokio::time::sleep(2 * MINUTE);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                event = dialer.select_next_some() => match event {
                    SwarmEvent::OutgoingConnectionError { .. } => failures += 1,
                    SwarmEvent::ListenerClosed { .. } | SwarmEvent::ListenerError { .. } => panic!("{event:?}"),
                    SwarmEvent::Behaviour(Event::Relay(RelayEvent::Failed { .. } | RelayEvent::Unreserved { .. })) => {
                        panic!("{event:?}")
                    }
                    _ => {}
                },
            }
        }
        assert_eq!(failures, 1);
    });
}

#[test]
fn a_connected_peer_that_becomes_a_coordinator_is_asked_for_a_reservation() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let mut peer = peer(&world, Site::APDM_RANDOM, 1, Config::default());
        peer.dial(address.clone()).expect("it is an address");
        until(&mut peer, |event| matches!(event, SwarmEvent::ConnectionEstablished { .. }).then_some(()))
            .await;
        peer.behaviour_mut().punch.add_coordinator(address).expect("it names its peer");
        reserved(&mut peer).await;
    });
}
