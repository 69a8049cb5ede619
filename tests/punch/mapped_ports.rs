//! Peers behind gateways that forward a port to them, by hand or because they were asked to.

use std::{sync::Arc, time::Duration};

use libp2p::{Multiaddr, Swarm, multiaddr::Protocol};
use libp2p_punch::{
    Config, Event, RelayEvent, SessionEvent,
    event::{FailureReason, PathKind},
};
use libp2p_punch_sim::{Host, Link, Nat, World};

use crate::{
    network::{PORT, Site, client, on_paused_time, run, swarm},
    relaying::{Peer, Seen, peer, peer_at, relay, reserved, serve, watch},
};

const MINUTE: Duration = Duration::from_secs(60);
/// The port that gateways forward. No host listens on it.
const FORWARDED: u16 = 40_001;

fn external_address(number: u8) -> Multiaddr {
    format!("/ip4/198.51.100.{number}/udp/{FORWARDED}/quic-v1").parse().expect("valid")
}

/// A host behind a gateway that gives every destination a random port, and may forward a port.
fn host(world: &World, number: u8, is_forwarded: bool) -> Arc<Host> {
    let gateway = world.nat(Nat::random(), [198, 51, 100, number]);
    world.set_link(&gateway, Link::with_latency(Duration::from_millis(10)));
    let address = [192, 168, number, 2];
    if is_forwarded {
        gateway.forward(FORWARDED, (address, PORT).into());
    }
    gateway.host(address)
}

/// State of the forwarded port of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    /// The peer has none.
    None,
    /// The gateway forwards it.
    Forwarded,
    /// The peer still believes that the gateway forwards it.
    Gone,
}

/// A peer that has a reservation, and whose NAT is measured.
async fn peer_with(world: &World, number: u8, port: Port, config: Config) -> Swarm<Peer> {
    let mut swarm = peer_at(&host(world, number, port == Port::Forwarded), number, config);
    if port != Port::None {
        swarm.add_external_address(external_address(number));
    }
    reserved(&mut swarm).await;
    let own = *swarm.local_peer_id();
    watch(&mut swarm, own, Duration::from_secs(2)).await;
    swarm
}

/// Everything that a dialer sees of its dial.
fn dial(dialer: Port, listener: Port, seed: u64) -> Vec<Seen> {
    on_paused_time(async move {
        let world = World::new(seed);
        let (_, address, _) = relay(&world, 254);
        let listener = peer_with(&world, 2, listener, client(&address)).await;
        let listener = serve(listener, Duration::ZERO);
        let mut dialer = peer_with(&world, 1, dialer, client(&address)).await;
        dialer.dial(listener).expect("not dialed yet");
        dialer.behaviour_mut().echo.send_request(&listener, "hello".to_owned());
        watch(&mut dialer, listener, 5 * Duration::from_secs(1)).await
    })
}

fn connections(seen: &[Seen]) -> Vec<bool> {
    let relayed = |seen: &Seen| match seen {
        Seen::Connected { relayed, .. } => Some(*relayed),
        _ => None,
    };
    seen.iter().filter_map(relayed).collect()
}

#[test]
fn random_nats_are_direct_where_either_gateway_forwards_a_port() {
    for (dialer, listener) in
        [(Port::None, Port::Forwarded), (Port::Forwarded, Port::None), (Port::Forwarded, Port::Forwarded)]
    {
        for seed in 0..4 {
            let seen = dial(dialer, listener, seed);
            assert_eq!(connections(&seen), [false], "{dialer:?} to {listener:?}: {seen:#?}");
            assert!(seen.contains(&Seen::Echoed(Ok("hello".to_owned()))), "{seen:#?}");
        }
    }
}

#[test]
fn the_path_to_a_forwarded_port_is_reported_as_such() {
    let seen = dial(Port::None, Port::Forwarded, 1);
    let is_mapped = |seen: &Seen| {
        matches!(
            seen,
            Seen::Punch(Event::Session(SessionEvent::Connected { kind: PathKind::PortMapped, .. }))
        )
    };
    assert!(seen.iter().any(is_mapped), "{seen:#?}");
}

#[test]
fn a_pair_whose_forwarded_ports_are_gone_is_relayed() {
    for (dialer, listener) in [(Port::None, Port::Gone), (Port::Gone, Port::None), (Port::Gone, Port::Gone)] {
        let seen = dial(dialer, listener, 1);
        assert_eq!(connections(&seen), [true], "{dialer:?} to {listener:?}: {seen:#?}");
        assert!(seen.contains(&Seen::Echoed(Ok("hello".to_owned()))), "{seen:#?}");
        let is_hopeless = |seen: &Seen| {
            matches!(
                seen,
                Seen::Punch(Event::Session(SessionEvent::Failed { reason: FailureReason::Hopeless, .. }))
            )
        };
        assert!(seen.iter().any(is_hopeless), "{seen:#?}");
    }
}

#[test]
fn a_forwarded_port_that_is_gone_does_not_keep_a_punch_from_its_way() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let listener = peer_with(&world, 2, Port::Gone, client(&address)).await;
        let listener = serve(listener, Duration::ZERO);
        let mut dialer = peer(&world, Site::EIM_APDF, 1, client(&address));
        reserved(&mut dialer).await;
        dialer.dial(listener).expect("not dialed yet");
        let seen = watch(&mut dialer, listener, MINUTE).await;
        assert_eq!(connections(&seen).last(), Some(&false), "{seen:#?}");
    });
}

#[test]
fn a_peer_with_a_forwarded_port_keeps_its_reservation_until_somebody_new_has_come_through() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let mut swarm_1 = peer_with(&world, 1, Port::Forwarded, client(&address)).await;
        let own = *swarm_1.local_peer_id();
        let is_end = |seen: &Seen| matches!(seen, Seen::Punch(Event::Relay(RelayEvent::Unreserved { .. })));
        let seen = watch(&mut swarm_1, own, MINUTE).await;
        assert!(!seen.iter().any(is_end), "{seen:#?}");
        let mut stranger = swarm(&Site::Public.host(&world, 9, 0.0), 9, Config::default(), |punch, _| punch);
        stranger.dial(external_address(1).with(Protocol::P2p(own))).expect("it is an address");
        run(stranger);
        let seen = watch(&mut swarm_1, own, MINUTE).await;
        assert!(seen.iter().any(is_end), "{seen:#?}");
    });
}
