//! Coordinators, registrations, and what observers tell.

use std::time::Duration;

use bytes::Bytes;
use libp2p_identity::PeerId;
use libp2p_punch_proto::{
    ControlStreamId, SessionId,
    candidate::{Candidate, CandidateKind, priority},
    config::{Config, Disclosure},
    event::{Event, FailureReason, RegistrationStatus},
    nat::MappingBehaviour,
    wire::frame::{Frame, PunchMeNow, PunchRequest, Registration, RejectReason},
};

use crate::{
    harness::{SOCKET, World, at, client, keypair, ms, server},
    sessions::triangle,
};

/// A registration that is disclosed to every peer.
fn to_all(registration: Registration) -> Frame {
    Frame::Register { registration, disclosure: Disclosure::ToAll }
}

fn statuses(world: &World, node: usize) -> Vec<(Duration, RegistrationStatus)> {
    let events = world.nodes[node].events.iter();
    events
        .filter_map(|(at, event)| match event {
            Event::Registration(status) => Some((*at, *status)),
            _ => None,
        })
        .collect()
}

#[test]
fn registrations_are_reported_as_partial_majority_and_none() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let all: Vec<_> = (1..=3).map(|i| world.add(&server(), &format!("198.51.100.{i}"), None)).collect();
    for c in &all {
        let peer = world.nodes[*c].peer;
        world.input(a, |endpoint, now| endpoint.add_coordinator(peer, now));
    }
    let (first, _) = world.link(a, all[0]);
    world.run_for(ms(1000));
    let (second, _) = world.link(a, all[1]);
    world.run_for(ms(1000));
    world.unlink(a, second);
    world.unlink(a, first);
    world.run_for(ms(1000));
    assert_eq!(
        statuses(&world, a),
        [
            (ms(20), RegistrationStatus::Partial { registered: 1, configured: 3 }),
            (ms(1020), RegistrationStatus::Majority { registered: 2, configured: 3 }),
            (ms(2000), RegistrationStatus::Partial { registered: 1, configured: 3 }),
            (ms(2000), RegistrationStatus::None { configured: 3 }),
        ]
    );
}

#[test]
fn being_registered_nowhere_is_an_error_only_after_the_coordination_time_out() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    world.input(a, |endpoint, now| endpoint.add_coordinator(PeerId::random(), now));
    world.run_for(ms(60_000));
    assert_eq!(statuses(&world, a), [(ms(10_000), RegistrationStatus::None { configured: 1 })]);
    assert_eq!(world.nodes[a].endpoint.poll_timeout(), None);
}

#[test]
fn a_link_on_which_the_coordinator_sees_our_address_is_preferred_for_the_registration() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let peer = PeerId::random();
    world.input(a, |endpoint, now| endpoint.add_coordinator(peer, now));
    let mut registered_on = |link: u64, remote: Option<&str>| {
        let endpoint = &mut world.nodes[a].endpoint;
        endpoint.handle_link_up(ControlStreamId(link), peer, remote.map(at), Some(SOCKET), world.now);
        let frames: Vec<_> = std::iter::from_fn(|| endpoint.poll_frame()).collect();
        let registers = frames.iter().filter(|(_, frame)| matches!(frame, Frame::Register { .. }));
        registers.map(|(link, _)| link.0).collect::<Vec<_>>()
    };
    assert_eq!(registered_on(10, None), [10]);
    assert!(registered_on(11, None).is_empty());
    assert_eq!(registered_on(12, Some("198.51.100.1:1")), [12]);
    assert!(registered_on(13, Some("198.51.100.1:2")).is_empty());
}

#[test]
fn a_registration_is_renewed_and_outlives_its_lifetime() {
    let (mut world, a, b, _) = triangle();
    world.run_for(Duration::from_secs(3600));
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    assert_eq!(world.connected(a).len(), 1);
    assert_eq!(statuses(&world, a).len(), 1);
}

#[test]
fn a_registration_that_is_not_renewed_expires_at_the_coordinator() {
    let (mut world, a, b, c) = triangle();
    let coordinator = world.nodes[c].peer;
    world.input(b, |endpoint, now| endpoint.remove_coordinator(&coordinator, now));
    world.run_for(Duration::from_secs(298));
    world.connect(a, b).unwrap();
    world.run_for(ms(60));
    assert!(world.failed(a).is_empty(), "still registered");
    world.run_for(Duration::from_secs(60));
    let retries = world.retries(a).len();
    world.connect(a, b).unwrap();
    world.run_for(ms(60));
    let reason = FailureReason::Rejected(RejectReason::NotConnected);
    assert_eq!(world.retries(a).get(retries).map(|(_, reason, _)| *reason), Some(reason));
}

#[test]
fn a_peer_that_has_become_reachable_ends_its_registration_at_once() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&Config::default(), "203.0.113.2", None);
    let c = world.add(&server(), "198.51.100.1", None);
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(1000));
    let coordinator = world.nodes[c].peer;
    world.input(b, |endpoint, now| endpoint.set_publicly_reachable(true, now));
    world.input(b, |endpoint, now| endpoint.remove_coordinator(&coordinator, now));
    world.run_for(ms(1000));
    world.connect(a, b).unwrap();
    world.run_for(ms(60));
    assert_eq!(world.retries(a)[0].1, FailureReason::Rejected(RejectReason::NotConnected));
    assert_eq!(world.nodes[c].endpoint.counters().frames_refused, 0);
}

#[test]
fn a_peer_whose_link_is_gone_is_not_connected() {
    let (mut world, a, b, _) = triangle();
    let link = *world.nodes[b].links.keys().next().unwrap();
    world.unlink(b, link);
    world.connect(a, b).unwrap();
    world.run_for(ms(60));
    assert_eq!(world.retries(a)[0].1, FailureReason::Rejected(RejectReason::NotConnected));
}

#[test]
fn changes_of_candidates_are_announced_together_after_ten_milliseconds() {
    let (mut world, a, _, c) = triangle();
    let sent = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let copy = std::rc::Rc::clone(&sent);
    world.tamper = Some(Box::new(move |from, to, frame| {
        if (from, to) == (a, c) {
            copy.borrow_mut().push(frame.clone());
        }
        vec![(ms(0), frame)]
    }));
    for address in ["10.1.1.1", "10.1.2.1"] {
        world.input(a, |endpoint, now| endpoint.handle_interface_up(address.parse().unwrap(), 24, now));
        world.run_for(ms(4));
    }
    world.input(a, |endpoint, now| endpoint.handle_interface_down("192.168.1.2".parse().unwrap(), now));
    world.run_for(ms(1));
    assert!(sent.borrow().is_empty());
    world.run_for(ms(1));
    let kinds: Vec<_> = sent
        .borrow()
        .iter()
        .map(|frame| match frame {
            Frame::AddAddress(candidate) => candidate.address.to_string(),
            Frame::RemoveAddress { .. } => "remove".to_owned(),
            Frame::Register { .. } => "register".to_owned(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["remove", "10.1.1.1:4001", "10.1.2.1:4001", "register"]);
}

#[test]
fn an_automatic_peer_coordinates_once_it_is_reachable_and_takes_leave_when_it_is_not() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let c = world.add(&Config::default(), "198.51.100.1", None);
    world.coordinate(a, c);
    world.run_for(ms(1000));
    let rejected = |world: &World| {
        let is = |(_, event): &&(_, Event)| matches!(event, Event::RegistrationRejected { .. });
        world.nodes[a].events.iter().filter(is).count()
    };
    assert_eq!(rejected(&world), 1);
    world.input(c, |endpoint, now| endpoint.set_publicly_reachable(true, now));
    world.run_for(ms(61_000));
    let majority = RegistrationStatus::Majority { registered: 1, configured: 1 };
    assert_eq!(statuses(&world, a).last().map(|(_, status)| *status), Some(majority));
    world.input(c, |endpoint, now| endpoint.set_publicly_reachable(false, now));
    world.run_for(ms(100));
    assert_eq!(rejected(&world), 2);
    let none = RegistrationStatus::None { configured: 1 };
    assert_eq!(statuses(&world, a).last().map(|(_, status)| *status), Some(none));
}

/// A coordinator alone, and what it answers to frames.
struct Alone {
    world: World,
    c: usize,
}

impl Alone {
    fn new() -> Self {
        let mut world = World::new();
        let c = world.add(&server(), "198.51.100.1", None);
        Self { world, c }
    }

    fn up(&mut self, link: u64, peer: PeerId) {
        self.world.nodes[self.c].endpoint.handle_link_up(
            ControlStreamId(link),
            peer,
            None,
            None,
            self.world.now,
        );
        while self.world.nodes[self.c].endpoint.poll_frame().is_some() {}
    }

    fn say(&mut self, link: u64, frame: Frame) -> Vec<(ControlStreamId, Frame)> {
        let endpoint = &mut self.world.nodes[self.c].endpoint;
        endpoint.handle_frame(ControlStreamId(link), frame, self.world.now);
        std::iter::from_fn(|| endpoint.poll_frame()).collect()
    }

    /// Peers 102 to 121, on links 2 to 21.
    fn register_twenty(&mut self) {
        for n in 2..22_u8 {
            self.up(n.into(), peer(100 + n));
            self.register(n.into(), 100 + n, 7);
        }
    }

    fn register(&mut self, link: u64, seed: u8, generation: u64) -> Frame {
        let lifetime = Duration::from_secs(100);
        let registration =
            Registration::sign(&keypair(seed), generation, lifetime, [7; 32], &[], Bytes::new()).unwrap();
        self.say(link, to_all(registration)).remove(0).1
    }
}

fn peer(seed: u8) -> PeerId {
    keypair(seed).public().to_peer_id()
}

fn punch(from: u8, to: u8, session: u8) -> Frame {
    let request = PunchRequest {
        session: SessionId([session; 16]),
        round: 0,
        initiator: keypair(from).public().encode_protobuf().into(),
        responder: peer(to),
        lifetime: ms(5000),
        probe_key: [7; 32],
        candidates: vec![],
        nat: Bytes::new(),
        first_flight: vec![Bytes::from_static(&[0xc0; 1200])],
    };
    let signature = request.sign(&keypair(from)).unwrap();
    Frame::PunchMeNow(Box::new(PunchMeNow { request, signature, observed: Some(at("192.0.2.6:6")) }))
}

#[test]
fn a_coordinator_answers_and_forwards_in_one_step_and_vouches_only_for_what_it_saw() {
    let mut alone = Alone::new();
    alone.up(1, peer(101));
    alone.up(2, peer(102));
    assert!(matches!(alone.register(2, 102, 1), Frame::Registered { .. }));
    let frames = alone.say(1, punch(101, 102, 1));
    assert_eq!(frames.len(), 2);
    assert!(matches!(&frames[0], (ControlStreamId(1), Frame::PunchAnswer(a)) if a.verify(peer(102)).is_ok()));
    // The link's remote is not known here, and what the initiator claims about it does not count.
    assert!(matches!(&frames[1], (ControlStreamId(2), Frame::PunchMeNow(p)) if p.observed.is_none()));
    let reason = RejectReason::NotWilling;
    let retry_after = ms(700);
    let no = Frame::PunchRejected { session: SessionId([1; 16]), round: 0, reason, retry_after };
    assert_eq!(alone.say(2, no.clone()), [(ControlStreamId(1), no.clone())]);
    assert_eq!(alone.say(1, no.clone()), [], "only the responder may say so");
    alone.world.now += ms(10_000);
    assert_eq!(alone.say(2, no), [], "too late");
}

#[test]
fn a_coordinator_that_must_ask_first_answers_once_and_for_the_responder_alone() {
    let mut alone = Alone::new();
    alone.up(1, peer(101));
    alone.up(2, peer(102));
    alone.up(3, peer(103));
    let lifetime = Duration::from_secs(60);
    let registration = Registration::sign(&keypair(102), 1, lifetime, [7; 32], &[], Bytes::new()).unwrap();
    alone.say(2, Frame::Register { registration, disclosure: Disclosure::ToAccepted });
    let is_request = |frames: Vec<(ControlStreamId, Frame)>| {
        matches!(frames.as_slice(), [(ControlStreamId(2), Frame::PunchMeNow(_))])
    };
    assert!(is_request(alone.say(1, punch(101, 102, 1))));
    let accepted = |round| Frame::PunchAccepted { session: SessionId([1; 16]), round };
    assert_eq!(alone.say(3, accepted(0)), [], "another peer may not say so");
    assert_eq!(alone.say(2, accepted(1)), [], "nobody asked in this round");
    let answer = alone.say(2, accepted(0));
    let is_answer = |frames: &[(ControlStreamId, Frame)]| match frames {
        [(ControlStreamId(1), Frame::PunchAnswer(answer))] => answer.verify(peer(102)).is_ok(),
        _ => false,
    };
    assert!(is_answer(&answer), "{answer:?}");
    assert_eq!(alone.say(2, accepted(0)), [], "once");
    assert!(is_request(alone.say(1, punch(101, 102, 2))));
    alone.world.now += ms(10_000);
    let late = Frame::PunchAccepted { session: SessionId([2; 16]), round: 0 };
    assert_eq!(alone.say(2, late), [], "too late");
}

#[test]
fn a_coordinator_does_not_speak_for_others_and_not_too_often() {
    let mut alone = Alone::new();
    alone.up(1, peer(101));
    alone.up(2, peer(102));
    alone.register(2, 102, 1);
    let reject = |frames: Vec<(ControlStreamId, Frame)>| match frames.as_slice() {
        [(ControlStreamId(1), Frame::PunchRejected { reason, .. })] => Some(*reason),
        _ => None,
    };
    assert_eq!(reject(alone.say(1, punch(103, 102, 1))), Some(RejectReason::Malformed));
    assert_eq!(reject(alone.say(1, punch(101, 103, 1))), Some(RejectReason::NotConnected));
    alone.register_twenty();
    let answered = (0..250).filter(|i| reject(alone.say(1, punch(101, 102 + i % 20, *i))).is_none()).count();
    assert_eq!(answered, 198, "two hundred at once, of which two were spent before");
    alone.world.now += ms(10);
    assert_eq!(reject(alone.say(1, punch(101, 120, 250))), None);
    assert_eq!(reject(alone.say(1, punch(101, 121, 251))), Some(RejectReason::RateLimited));
    assert_eq!(alone.world.nodes[alone.c].endpoint.counters().requests_forwarded, 199);
}

#[test]
fn a_coordinator_passes_ten_requests_at_once_of_one_peer_to_another_and_two_in_a_second() {
    let mut alone = Alone::new();
    alone.up(1, peer(101));
    alone.up(50, peer(150));
    alone.register_twenty();
    let passed = |alone: &mut Alone, link, from, to| {
        (0..30).filter(|i| alone.say(link, punch(from, to, from ^ *i)).len() == 2).count()
    };
    assert_eq!(passed(&mut alone, 1, 101, 102), 10);
    assert_eq!(passed(&mut alone, 1, 101, 103), 10, "another responder");
    assert_eq!(passed(&mut alone, 50, 150, 102), 10, "another initiator");
    alone.world.now += ms(1000);
    assert_eq!(passed(&mut alone, 1, 101, 102), 2);
    assert_eq!(alone.world.nodes[alone.c].endpoint.counters().caps_hit, 20 + 20 + 20 + 28);
}

#[test]
fn who_leaves_and_comes_back_may_do_no_more_than_who_stays() {
    let mut alone = Alone::new();
    alone.register_twenty();
    let mut passed_on = 0;
    for i in 0..250 {
        alone.up(100 + u64::from(i), peer(101));
        passed_on += usize::from(alone.say(100 + u64::from(i), punch(101, 102 + i % 20, i)).len() == 2);
        alone.world.nodes[alone.c]
            .endpoint
            .handle_link_down(ControlStreamId(100 + u64::from(i)), alone.world.now);
    }
    assert_eq!(passed_on, 200);
    alone.world.now += Duration::from_secs(10);
    alone.up(1, peer(101));
    let again = (0..250).filter(|i| alone.say(1, punch(101, 102 + i % 20, *i)).len() == 2).count();
    assert_eq!(again, 200, "the bucket is full again, and not fuller");
}

#[test]
fn a_coordinator_registers_only_the_peer_of_the_link_in_growing_generations_and_not_too_often() {
    let mut alone = Alone::new();
    alone.up(1, peer(101));
    let malformed =
        |frame: &Frame| matches!(frame, Frame::RegisterRejected { reason: RejectReason::Malformed, .. });
    assert!(malformed(&alone.register(1, 102, 1)));
    assert!(matches!(alone.register(1, 101, 5), Frame::Registered { generation: 5, .. }));
    assert!(malformed(&alone.register(1, 101, 5)));
    let accepted = (6..26)
        .filter(|generation| matches!(alone.register(1, 101, *generation), Frame::Registered { .. }))
        .count();
    assert_eq!(accepted, 7, "ten at once, of which three were spent before");
}

#[test]
fn candidates_announced_on_a_link_are_bounded() {
    let mut alone = Alone::new();
    alone.up(1, peer(101));
    for sequence in 0..300 {
        let address = at("192.0.2.1:1");
        let kind = CandidateKind::Host;
        let candidate = Candidate { sequence, kind, priority: priority(kind, address.ip()), address };
        alone.say(1, Frame::AddAddress(candidate));
    }
    assert_eq!(alone.world.nodes[alone.c].endpoint.counters().caps_hit, 284);
}

#[test]
fn ten_thousand_registrations_are_held_and_the_next_is_turned_down_until_one_expires() {
    let mut alone = Alone::new();
    let registration = |i: u64| {
        let mut secret = [9; 32];
        secret[..8].copy_from_slice(&i.to_be_bytes());
        let key = libp2p_identity::Keypair::ed25519_from_bytes(secret).unwrap().public();
        // A coordinator does not look at the signature.
        let lifetime = Duration::from_secs(100);
        let (signature, probe_key) = (Bytes::from_static(b"none"), [7; 32]);
        let peer = key.encode_protobuf().into();
        (
            key.to_peer_id(),
            Registration {
                peer,
                generation: 1,
                lifetime,
                probe_key,
                nat: Bytes::new(),
                public_signature: Bytes::new(),
                signature,
            },
        )
    };
    for i in 0..=10_000 {
        let (peer, registration) = registration(i);
        alone.up(i, peer);
        let answer = alone.say(i, to_all(registration)).remove(0).1;
        match answer {
            Frame::Registered { .. } => assert!(i < 10_000),
            Frame::RegisterRejected { reason, .. } => assert_eq!((i, reason), (10_000, RejectReason::Full)),
            other => panic!("{other:?}"),
        }
    }
    let deadline = alone.world.nodes[0].endpoint.poll_timeout().unwrap();
    assert_eq!(deadline, alone.world.now + Duration::from_secs(100));
    alone.world.now = deadline;
    alone.world.nodes[0].endpoint.handle_timeout(deadline);
    let (_, registration) = registration(10_000);
    assert!(matches!(alone.say(10_000, to_all(registration)).remove(0).1, Frame::Registered { .. }));
}

#[test]
fn what_observers_see_becomes_candidates_and_tells_the_mapping() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    for i in 1..=2 {
        let c = world.add(&server(), &format!("198.51.100.{i}"), None);
        world.link(a, c);
        world.run_for(ms(100));
    }
    let observed = world.nodes[a].events.iter().filter(|(_, e)| matches!(e, Event::Observed { .. })).count();
    assert_eq!(observed, 2);
    let mapping = world.nodes[a].events.iter().rev().find_map(|(_, event)| match event {
        Event::Mapping { socket, mapping, port_preserved, .. } => Some((*socket, *mapping, *port_preserved)),
        _ => None,
    });
    assert_eq!(mapping, Some((SOCKET, Some(MappingBehaviour::EndpointIndependent), Some(true))));
}

#[test]
fn an_observation_that_is_old_or_cannot_be_is_refused() {
    let (mut world, a, _, _) = triangle();
    let link = *world.nodes[a].links.keys().next().unwrap();
    let before = world.nodes[a].endpoint.counters().frames_refused;
    for (sequence, address) in
        [(0, "203.0.113.9:1"), (7, "10.0.0.1:1"), (8, "127.0.0.1:1"), (8, "192.0.2.1:1")]
    {
        let frame = Frame::ObservedAddress { sequence, address: at(address) };
        world.input(a, |endpoint, now| endpoint.handle_frame(link, frame, now));
    }
    assert_eq!(world.nodes[a].endpoint.counters().frames_refused - before, 4);
}

#[test]
fn a_link_whose_ends_have_changed_is_told_its_address_again() {
    let (mut world, a, _, c) = triangle();
    let (link, peer) = (*world.nodes[c].links.keys().next().unwrap(), world.nodes[a].peer);
    let moved = at("203.0.113.1:9999");
    world.input(c, |endpoint, now| endpoint.handle_link_up(link, peer, Some(moved), Some(SOCKET), now));
    world.run_for(ms(100));
    let observed = world.nodes[a].events.iter().rev().find_map(|(_, event)| match event {
        Event::Observed { address, .. } => Some(*address),
        _ => None,
    });
    assert_eq!(observed, Some(moved));
}

#[test]
fn a_request_through_a_coordinator_that_is_no_longer_used_is_taken_until_the_registration_expires() {
    for (later, connected) in [(1_000, 1), (301_000, 0)] {
        let (mut world, a, b, c) = triangle();
        world.run_for(ms(1_000));
        let peer = world.nodes[c].peer;
        world.input(b, |endpoint, now| endpoint.remove_coordinator(&peer, now));
        world.run_for(ms(later));
        world.connect(a, b).unwrap();
        world.run_for(ms(5_000));
        assert_eq!(world.connected(a).len(), connected, "{later} ms later");
    }
}
