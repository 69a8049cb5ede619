//! Searches and observers, and what peers and coordinators can make us send by lying about them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use libp2p_punch_proto::{
    ControlStreamId, SessionId, SocketId,
    command::{Command, Pool},
    config::Config,
    event::{Event, FailureReason},
    nat::{
        MappingBehaviour::AddressAndPortDependent,
        strategy::{Allocation, NatProfile},
    },
    wire::{
        frame::{Frame, ObserverOffer, PortPrediction, PunchMeNow, PunchRequest},
        keys::ProbeSecret,
    },
};

use crate::harness::{World, at, client, keypair, ms, server};

/// The address to which the listeners of the scenarios are bound.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const VICTIM: &str = "192.0.2.66:6";

fn random() -> NatProfile {
    let (mapping, allocation) = (Some(AddressAndPortDependent), Some(Allocation::Random));
    NatProfile { mapping, allocation, ..NatProfile::default() }
}

fn sequential() -> NatProfile {
    NatProfile { allocation: Some(Allocation::Sequential { step: 1 }), ..random() }
}

/// A peer that others ask for sessions through a coordinator that lies, and its link to that.
fn responder(config: &Config) -> (World, usize, ControlStreamId) {
    let mut world = World::new();
    let c = world.add(&server(), "203.0.113.1", None);
    let b = world.add(config, "192.168.1.2", Some("198.51.100.2"));
    let (link, _) = world.coordinate(b, c);
    world.run_for(ms(500));
    (world, b, link)
}

/// A peer of this number asks for a session, says this of its NAT, and the coordinator says that it
/// is at the victim.
fn ask(world: &mut World, b: usize, link: ControlStreamId, seed: u8, nat: NatProfile) {
    let keypair = keypair(seed);
    let request = PunchRequest {
        session: SessionId([seed; 16]),
        round: 0,
        initiator: keypair.public().encode_protobuf().into(),
        responder: world.nodes[b].peer,
        lifetime: ms(5000),
        probe_key: ProbeSecret::new([seed; 32]).public(),
        candidates: vec![],
        nat: nat.encode(),
        first_flight: vec![Bytes::from_static(&[0xc0; 1200])],
    };
    let signature = request.sign(&keypair).unwrap();
    let punch = PunchMeNow { request, signature, observed: Some(at(VICTIM)) };
    let frame = Frame::PunchMeNow(Box::new(punch));
    world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
}

fn probes(world: &World, b: usize) -> Vec<(Duration, SocketAddr)> {
    world.nodes[b].probes.iter().map(|(when, path)| (*when, path.remote)).collect()
}

#[test]
fn a_peer_that_claims_a_random_nat_gets_1500_probes_to_one_address_and_only_after_silence() {
    let (mut world, b, link) = responder(&client());
    let start = world.elapsed();
    ask(&mut world, b, link, 99, random());
    world.run_for(ms(60_000));
    let probes = probes(&world, b);
    assert!(probes.iter().all(|(_, remote)| remote.ip() == at(VICTIM).ip()));
    let counters = world.nodes[b].endpoint.counters();
    assert_eq!((counters.searches, counters.search_probes_sent), (1, 1500));
    assert!(probes.len() <= 1500 + 9, "{}", probes.len());
    let early = probes.iter().filter(|(when, _)| *when < start + ms(400)).count();
    assert_eq!(early, 5, "plain probes");
    for (n, (when, _)) in probes.iter().enumerate() {
        let second = probes[n..].iter().take_while(|(later, _)| *later < *when + ms(1000)).count();
        assert!(second <= 300 + 5, "{second} in a second");
    }
    world.assert_nothing_left(b);
}

#[test]
fn many_peers_at_one_address_get_four_searches_and_then_one_in_ten_seconds() {
    let (mut world, b, link) = responder(&client());
    (100..120).for_each(|seed| ask(&mut world, b, link, seed, random()));
    world.run_for(ms(10_000));
    assert_eq!(world.nodes[b].endpoint.counters().searches, 4);
    (120..140).for_each(|seed| ask(&mut world, b, link, seed, random()));
    world.run_for(ms(9_000));
    assert_eq!(world.nodes[b].endpoint.counters().searches, 5);
    assert_eq!(world.nodes[b].endpoint.counters().search_probes_sent, 5 * 1500);
}

#[test]
fn who_has_searches_switched_off_gives_up_at_once_and_opens_and_sends_nothing() {
    let (mut world, b, link) = responder(&Config { birthday_search: false, ..client() });
    ask(&mut world, b, link, 99, random());
    world.run_for(ms(500));
    let failed = world.nodes[b].events.iter().find_map(|(_, event)| match event {
        Event::Failed { reason, elapsed, .. } => Some((*reason, *elapsed)),
        _ => None,
    });
    assert_eq!(failed, Some((FailureReason::Hopeless, ms(400))));
    assert_eq!(world.nodes[b].endpoint.counters().searches, 0);
    let opens = |command: &Command| matches!(command, Command::OpenSockets { .. });
    assert!(!world.nodes[b].commands.iter().any(|(_, command)| opens(command)));
}

#[test]
fn a_window_that_the_peer_did_not_authenticate_moves_nothing() {
    let (mut world, b, link) = responder(&client());
    ask(&mut world, b, link, 99, sequential());
    let (peer, session) = (keypair(99).public().to_peer_id(), SessionId([99; 16]));
    let window = PortPrediction { peer, session, round: 0, port: 5000, step: 1, authenticator: [0; 16] };
    let refused = world.nodes[b].endpoint.counters().frames_refused;
    let frame = Frame::PortPrediction(Box::new(window));
    world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
    assert_eq!(world.nodes[b].endpoint.counters().frames_refused, refused + 1);
    world.run_for(ms(60_000));
    assert_eq!(world.nodes[b].endpoint.counters().search_probes_sent, 0);
    assert!(probes(&world, b).iter().all(|(_, remote)| *remote == at(VICTIM)));
}

#[test]
fn observers_are_asked_four_times_at_most_and_only_those_of_a_coordinator_of_ours() {
    let (mut world, b, link) = responder(&client());
    let other = world.add(&client(), "203.0.113.7", None);
    let (stranger, _) = world.link(b, other);
    let offer = ObserverOffer { ports: vec![1001, 1002, 1003], token: [1; 8], key: [2; 32] };
    let before = world.nodes[b].endpoint.counters().frames_refused;
    world.input(b, |endpoint, now| endpoint.handle_frame(stranger, Frame::Observer(offer.clone()), now));
    assert_eq!(world.nodes[b].endpoint.counters().frames_refused, before + 1);
    assert!(probes(&world, b).is_empty());
    world.input(b, |endpoint, now| endpoint.handle_frame(link, Frame::Observer(offer), now));
    world.run_for(ms(60_000));
    let asked = probes(&world, b);
    assert_eq!(asked.len(), 12);
    assert!(asked.iter().all(|(_, remote)| remote.ip() == at("203.0.113.1:1").ip()));
    let data = Frame::ProbeObserved { data: [0; 8], address: at("198.51.100.2:4001") };
    world.input(b, |endpoint, now| endpoint.handle_frame(link, data, now));
    assert_eq!(world.nodes[b].endpoint.counters().frames_refused, before + 2, "an answer to nothing");
}

#[test]
fn a_coordinator_opens_observers_once_and_offers_them_once_to_each_client() {
    let mut world = World::new();
    let c = world.add(&server(), "203.0.113.1", None);
    for n in [2, 3] {
        let b = world.add(&client(), "192.168.1.2", Some(&format!("198.51.100.{n}")));
        world.coordinate(b, c);
    }
    world.run_for(ms(500));
    let opened: Vec<_> = world.nodes[c]
        .commands
        .iter()
        .filter_map(|(_, command)| match command {
            Command::OpenSockets { pool: pool @ Pool::Observers(_), count, .. } => Some((*pool, *count)),
            _ => None,
        })
        .collect();
    assert_eq!(opened, [(Pool::Observers(ANY), 4)]);
    let before = world.nodes[1].endpoint.counters().frames_refused;
    let sockets = [(SocketId(900), 7001), (SocketId(901), 7002), (SocketId(902), 7003)];
    world.input(c, |endpoint, now| endpoint.handle_sockets_opened(Pool::Observers(ANY), &sockets, now));
    world.run_for(ms(100));
    let ports = |n: usize| -> Vec<u16> {
        world.nodes[n].probes.iter().map(|(_, path)| path.remote.port()).take(3).collect()
    };
    assert_eq!((ports(1), ports(2)), (vec![7001, 7002, 7003], vec![7001, 7002, 7003]));
    assert_eq!(world.nodes[1].endpoint.counters().frames_refused, before);
}

#[test]
fn two_sprays_run_at_once_and_the_next_in_turn_if_their_initiators_still_wait() {
    let (mut world, b, link) = responder(&client());
    let other = world.add(&server(), "203.0.113.7", None);
    let (observer, _) = world.coordinate(b, other);
    world.run_for(ms(500));
    let elsewhere = Frame::ObservedAddress { sequence: 9, address: at("198.51.100.2:5001") };
    world.input(b, |endpoint, now| endpoint.handle_frame(observer, elsewhere, now));
    // The coordinator, which does not say so, has had time to see it, if all destinations saw the
    // same.
    world.run_for(ms(11_000));
    let sprays = |world: &World| {
        let commands = world.nodes[b].commands.iter();
        commands.filter(|(_, c)| matches!(c, Command::OpenSockets { count: 256, .. })).count()
    };
    let caps = world.nodes[b].endpoint.counters().caps_hit;
    (100..105).for_each(|seed| ask(&mut world, b, link, seed, NatProfile::default()));
    // Two ask again as long as they wait; one of the three that have to wait has given up.
    for second in 1..60 {
        world.run_for(ms(1_000));
        if second == 3 {
            assert_eq!(sprays(&world), 2);
        }
        if second < 6 {
            [103, 104].into_iter().for_each(|seed| ask(&mut world, b, link, seed, NatProfile::default()));
        }
    }
    let counters = world.nodes[b].endpoint.counters();
    assert_eq!((sprays(&world), counters.searches, counters.searches_queued), (4, 4, 3));
    assert_eq!(counters.caps_hit, caps);
    world.assert_nothing_left(b);
}
