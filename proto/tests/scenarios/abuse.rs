//! Coordinators and peers that mean harm: they can make an attempt fail, and nothing else.

use std::{cell::RefCell, collections::BTreeSet, net::SocketAddr, rc::Rc};

use bytes::Bytes;
use libp2p_identity::Keypair;
use libp2p_punch_proto::{
    Path, SessionId, VirtualConnectionId,
    candidate::{Candidate, CandidateKind, priority},
    command::Command,
    config::Config,
    endpoint::PROBATION,
    event::{Event, FailureReason, SessionRole},
    wire::{
        frame::{Frame, PunchMeNow, PunchRequest, Registration, RejectReason},
        keys::{ProbeKeys, ProbeSecret},
        probe::Probe,
    },
};

use crate::{
    harness::{SOCKET, Tamper, World, at, client, keypair, ms, server},
    sessions::{triangle, triangle_of},
};

fn once() -> Config {
    Config { max_attempts: 1, ..client() }
}

fn candidate(sequence: u64, address: &str) -> Candidate {
    let address = at(address);
    let kind = CandidateKind::ServerReflexive;
    Candidate { sequence, kind, priority: priority(kind, address.ip()), address }
}

/// Changes frames of one kind, passes the others.
fn change(mut f: impl FnMut(&mut Frame) + 'static) -> Option<Tamper> {
    Some(Box::new(move |_, _, mut frame| {
        f(&mut frame);
        vec![(ms(0), frame)]
    }))
}

#[test]
fn an_answer_that_the_responder_did_not_sign_fails_the_attempt_and_nothing_is_probed() {
    let forgeries: [fn(&mut Registration, &mut Vec<Candidate>); 4] = [
        |registration, _| registration.probe_key[0] ^= 1,
        |_, candidates| candidates.push(candidate(99, "192.0.2.66:6")),
        |_, candidates| candidates.clear(),
        |registration, candidates| {
            // Another peer's registration, by itself in order.
            *registration = Registration::sign(
                &keypair(77),
                1,
                ms(1000),
                registration.probe_key,
                candidates,
                Bytes::new(),
            )
            .unwrap();
        },
    ];
    for forge in forgeries {
        let (mut world, a, b, _) = triangle_of(&once());
        world.tamper = change(move |frame| {
            if let Frame::PunchAnswer(answer) = frame {
                forge(&mut answer.registration, &mut answer.candidates);
            }
        });
        world.connect(a, b).unwrap();
        world.run_for(ms(30_000));
        assert_eq!(
            world.failed(a).iter().map(|(_, reason)| *reason).collect::<Vec<_>>(),
            [FailureReason::Forged]
        );
        assert!(world.nodes[a].probes.is_empty());
        assert_eq!(world.nodes[a].endpoint.counters().frames_refused, 1);
        world.assert_nothing_left(a);
        world.assert_nothing_left(b);
    }
}

#[test]
fn a_forged_answer_of_one_coordinator_does_not_keep_another_from_helping() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
    let liar = world.add(&server(), "198.51.100.1", None);
    let honest = world.add(&server(), "198.51.100.2", None);
    world.set_latency(a, honest, ms(40));
    for node in [a, b] {
        world.coordinate(node, liar);
        world.coordinate(node, honest);
    }
    world.run_for(ms(1000));
    world.tamper = Some(Box::new(move |from, _, mut frame| {
        if let Frame::PunchAnswer(answer) = &mut frame
            && from == liar
        {
            answer.registration.probe_key[0] ^= 1;
        }
        vec![(ms(0), frame)]
    }));
    world.connect(a, b).unwrap();
    world.run_for(ms(2000));
    assert_eq!(world.connected(a).len(), 1);
    assert!(world.retries(a).is_empty());
    assert_eq!(world.nodes[a].endpoint.counters().frames_refused, 1);
}

#[test]
fn a_request_that_was_changed_on_the_way_is_refused_by_the_responder() {
    let forgeries: [fn(&mut PunchRequest); 5] = [
        |request| request.probe_key[0] ^= 1,
        |request| request.candidates.push(candidate(99, "192.0.2.66:6")),
        |request| request.first_flight = vec![Bytes::from_static(&[0xc0; 1200])],
        |request| request.round += 1,
        |request| request.initiator = keypair(77).public().encode_protobuf().into(),
    ];
    for forge in forgeries {
        let (mut world, a, b, c) = triangle_of(&once());
        let forged = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = std::rc::Rc::clone(&forged);
        world.tamper = Some(Box::new(move |from, _, mut frame| {
            if let Frame::PunchMeNow(punch) = &mut frame
                && from == c
            {
                count.set(count.get() + 1);
                forge(&mut punch.request);
            }
            vec![(ms(0), frame)]
        }));
        world.connect(a, b).unwrap();
        world.run_for(ms(30_000));
        assert_eq!(world.failed(a).len(), 1);
        let counters = world.nodes[b].endpoint.counters();
        assert!((1..=6).contains(&forged.get()), "A asks again while it hears nothing");
        assert_eq!((counters.attempts, counters.frames_refused), (0, forged.get()));
        assert!(world.nodes[b].probes.is_empty());
        assert!(!world.nodes[b].commands.iter().any(|(_, c)| matches!(c, Command::Accept { .. })));
        world.assert_nothing_left(a);
    }
}

#[test]
fn a_request_for_another_peer_starts_nothing() {
    let (mut world, a, b, c) = triangle_of(&once());
    let other = world.add(&client(), "192.168.3.2", Some("203.0.113.3"));
    let (_, to_other) = world.coordinate(other, c);
    world.run_for(ms(1000));
    let seen = Rc::new(RefCell::new(None));
    let copy = Rc::clone(&seen);
    world.tamper = change(move |frame| {
        if let Frame::PunchMeNow(_) = frame {
            *copy.borrow_mut() = Some(frame.clone());
        }
    });
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    let frame = seen.borrow_mut().take().unwrap();
    let link = world.nodes[c].links[&to_other].1;
    world.inject(other, link, frame, ms(0));
    world.run_for(ms(1000));
    assert_eq!(world.nodes[other].endpoint.counters().attempts, 0);
    assert!(world.nodes[other].probes.is_empty());
}

#[test]
fn frames_that_come_twice_or_again_later_do_nothing_more() {
    let (mut world, a, b, _) = triangle();
    world.tamper = Some(Box::new(|_, _, frame| {
        vec![(ms(0), frame.clone()), (ms(1), frame.clone()), (ms(20_000), frame)]
    }));
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    for node in [a, b] {
        assert_eq!(world.connected(node).len(), 1);
        assert!(world.failed(node).is_empty());
        assert_eq!(world.nodes[node].endpoint.counters().attempts, 1);
        assert_eq!(world.nodes[node].endpoint.sessions(), 1);
    }
}

#[test]
fn frames_that_come_late_only_make_the_session_late() {
    let (mut world, a, b, _) = triangle();
    world.tamper = Some(Box::new(|_, _, frame| vec![(ms(3000), frame)]));
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(20_000));
    assert_eq!(world.connected(a).len(), 1);
    assert!(world.connected(a)[0].0 >= start + ms(6000));
    assert_eq!(world.connected(b).len(), 1);
}

#[test]
fn rejections_that_nobody_asked_for_do_nothing() {
    let (mut world, a, b, c) = triangle();
    world.connect(a, b).unwrap();
    let link = *world.nodes[a].links.keys().next().unwrap();
    let reason = RejectReason::NotWilling;
    let frame = Frame::PunchRejected { session: SessionId([9; 16]), round: 0, reason, retry_after: ms(0) };
    world.inject(a, link, frame, ms(1));
    world.run_for(ms(1000));
    assert_eq!(world.connected(a).len(), 1);
    assert_eq!(world.nodes[a].endpoint.counters().frames_refused, 1);
    assert_eq!(world.nodes[c].endpoint.counters().requests_rejected.total(), 0);
}

#[test]
fn a_rejection_after_the_peer_itself_was_heard_counts_no_more() {
    let (mut world, a, b, _) = triangle();
    world.nodes[b].quic_works = false;
    let session = Rc::new(RefCell::new(None));
    let copy = Rc::clone(&session);
    world.tamper = change(move |frame| {
        if let Frame::PunchMeNow(punch) = frame {
            *copy.borrow_mut() = Some(punch.request.session);
        }
    });
    world.connect(a, b).unwrap();
    let link = *world.nodes[a].links.keys().next().unwrap();
    let session = session.borrow_mut().take().unwrap();
    let reason = RejectReason::NotWilling;
    world.inject(a, link, Frame::PunchRejected { session, round: 0, reason, retry_after: ms(0) }, ms(500));
    world.run_for(ms(1000));
    assert!(world.failed(a).is_empty());
    assert_eq!(world.nodes[a].endpoint.counters().in_flight, 1);
}

#[test]
fn private_third_parties_are_not_probed_whoever_names_them() {
    let (mut world, a, b, _) = triangle_of(&once());
    world.blackhole = true;
    world.connect(a, b).unwrap();
    world.run_for(ms(20_000));
    // Each other's private addresses were signed, and are still not probed.
    for node in [a, b] {
        assert!(!world.nodes[node].probes.is_empty());
        let outer = world.outer(if node == a { b } else { a });
        assert!(world.nodes[node].probes.iter().all(|(_, path)| path.remote == outer));
    }
}

#[test]
fn an_address_that_never_answers_gets_nine_probes_and_three_times_the_request() {
    let (mut world, a, b, c) = triangle_of(&once());
    world.blackhole = true;
    let victim: SocketAddr = at("192.0.2.66:6");
    world.tamper = Some(Box::new(move |from, _, mut frame| {
        if let Frame::PunchMeNow(punch) = &mut frame
            && from == c
        {
            punch.observed = Some(victim);
        }
        vec![(ms(0), frame)]
    }));
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    let hits = world.nodes[b].probes.iter().filter(|(_, path)| path.remote == victim).count();
    assert!(hits <= 9, "{hits}");
    let permitted: Vec<_> = world.nodes[b]
        .commands
        .iter()
        .filter_map(|(_, command)| match command {
            Command::Permit { path, budget, .. } => Some((path.remote, *budget)),
            _ => None,
        })
        .collect();
    assert_eq!(permitted, [(victim, 3 * 1200)]);
}

/// Asks B for a session as a peer that signs what it likes.
struct Attacker {
    keypair: Keypair,
    secret: ProbeSecret,
}

impl Attacker {
    fn new(seed: u8) -> Self {
        Self { keypair: keypair(seed), secret: ProbeSecret::new([seed; 32]) }
    }

    fn request(&self, world: &World, to: usize, session: u8, candidates: Vec<Candidate>) -> Frame {
        let request = PunchRequest {
            session: SessionId([session; 16]),
            round: 0,
            initiator: self.keypair.public().encode_protobuf().into(),
            responder: world.nodes[to].peer,
            lifetime: ms(5000),
            probe_key: self.secret.public(),
            candidates,
            nat: Bytes::new(),
            first_flight: vec![Bytes::from_static(&[0xc0; 1200])],
        };
        let signature = request.sign(&self.keypair).unwrap();
        Frame::PunchMeNow(Box::new(PunchMeNow { request, signature, observed: Some(at("192.0.2.9:9")) }))
    }
}

#[test]
fn one_initiator_gets_ten_sessions_at_once_and_its_candidates_are_capped() {
    let (mut world, _, b, _) = triangle();
    let link = *world.nodes[b].links.keys().next().unwrap();
    let attacker = Attacker::new(99);
    let candidates: Vec<_> = (0..200).map(|i| candidate(i, &format!("192.0.2.{i}:1"))).collect();
    for session in 0..30 {
        let frame = attacker.request(&world, b, session, candidates.clone());
        world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
    }
    let counters = world.nodes[b].endpoint.counters();
    assert_eq!((counters.attempts, counters.in_flight, world.nodes[b].endpoint.sessions()), (10, 1, 1));
    assert_eq!(counters.caps_hit, 20 + 10, "twenty requests, and the candidates of ten");
    let remote = world.nodes[b].events.iter().find_map(|(_, event)| match event {
        Event::Candidates { remote, .. } => Some(remote.len()),
        _ => None,
    });
    assert_eq!(remote, Some(8));
    world.run_for(ms(20_000));
    world.assert_nothing_left(b);
}

#[test]
fn sessions_that_others_ask_for_are_capped() {
    let (mut world, _, b, _) = triangle();
    let link = *world.nodes[b].links.keys().next().unwrap();
    let full = Rc::new(RefCell::new(0));
    let count = Rc::clone(&full);
    world.tamper = change(move |frame| {
        if matches!(frame, Frame::PunchRejected { reason: RejectReason::Full, .. }) {
            *count.borrow_mut() += 1;
        }
    });
    for i in 0..1100_u32 {
        let mut secret = [200; 32];
        secret[..4].copy_from_slice(&i.to_be_bytes());
        let keypair = Keypair::ed25519_from_bytes(secret).unwrap();
        let attacker = Attacker { keypair, secret: ProbeSecret::new([9; 32]) };
        let frame = attacker.request(&world, b, 1, vec![]);
        // As fast as a coordinator may pass them on, while nothing times out.
        world.now += ms(10);
        world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
    }
    let counters = world.nodes[b].endpoint.counters();
    assert_eq!(
        (counters.in_flight, *full.borrow()),
        (960, 140),
        "64 are left for peers that were connected before"
    );
    assert!(counters.caps_hit >= 140);
    world.run_for(ms(60_000));
    world.assert_nothing_left(b);
}

#[test]
fn one_peer_gets_four_connections_by_asking_and_no_fifth() {
    let (mut world, _, b, _) = triangle();
    let link = *world.nodes[b].links.keys().next().unwrap();
    let attacker = Attacker::new(99);
    let path = Path { socket: SOCKET, remote: at("192.0.2.66:6") };
    for session in 0..6 {
        let frame = attacker.request(&world, b, session, vec![]);
        world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
        world.input(b, |endpoint, now| {
            endpoint.handle_established(VirtualConnectionId(session.into()), path, now)
        });
    }
    world.run_for(PROBATION);
    let counters = world.nodes[b].endpoint.counters();
    assert_eq!((counters.successes, counters.attempts, counters.caps_hit), (4, 4, 2));
}

#[test]
fn a_request_over_a_link_that_is_no_coordinator_of_ours_is_refused() {
    let (mut world, _, b, _) = triangle();
    let stranger = world.add(&client(), "198.51.100.9", None);
    let (link, _) = world.link(b, stranger);
    let frame = Attacker::new(99).request(&world, b, 1, vec![]);
    world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
    assert_eq!(world.nodes[b].endpoint.counters().attempts, 0);
    assert_eq!(world.nodes[b].endpoint.counters().frames_refused, 1);
}

#[test]
fn a_probe_from_an_address_that_only_the_peer_named_brings_one_flight_to_one_address() {
    let (mut world, a, b, _) = triangle();
    let link = *world.nodes[b].links.keys().next().unwrap();
    let probe_key = Rc::new(RefCell::new(None));
    let copy = Rc::clone(&probe_key);
    world.tamper = change(move |frame| {
        if let Frame::PunchAnswer(answer) = frame {
            *copy.borrow_mut() = Some(answer.registration.probe_key);
        }
    });
    world.connect(a, b).unwrap();
    world.run_for(ms(300));
    let theirs = probe_key.borrow_mut().take().unwrap();
    let attacker = Attacker::new(99);
    let named = ["192.0.2.50:4001", "192.0.2.51:4001"].map(at);
    let candidates = vec![candidate(0, "192.0.2.50:4001"), candidate(1, "192.0.2.51:4001")];
    let frame = attacker.request(&world, b, 1, candidates);
    let begin = world.nodes[b].commands.len();
    world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
    let (us, them) = (attacker.keypair.public().to_peer_id(), world.nodes[b].peer);
    let keys =
        ProbeKeys::derive(&attacker.secret, &theirs, SessionId([1; 16]), &us, &them, SessionRole::Initiator)
            .unwrap();
    for n in 0..6_u8 {
        let path = Path { socket: SOCKET, remote: named[usize::from(n % 2)] };
        let challenge = Probe::Challenge { data: [n; 8], nominate: false }.encode(&keys);
        world.input(b, |endpoint, now| endpoint.handle_datagram(path, &challenge, now));
    }
    let permitted: Vec<_> = world.nodes[b].commands[begin..]
        .iter()
        .filter_map(|(_, command)| match command {
            Command::Permit { path, budget, again, .. } => Some((path.remote, *budget, *again)),
            _ => None,
        })
        .collect();
    assert_eq!(permitted, [(at("192.0.2.9:9"), 3 * 1200, false), (named[0], 3 * 1200, false)]);
}

#[test]
fn the_peer_can_make_paths_of_its_own_only_up_to_a_cap_and_only_with_its_keys() {
    let (mut world, a, b, c) = triangle();
    let link = *world.nodes[b].links.keys().next().unwrap();
    let probe_key = Rc::new(RefCell::new(None));
    let copy = Rc::clone(&probe_key);
    world.tamper = change(move |frame| {
        if let Frame::PunchAnswer(answer) = frame {
            *copy.borrow_mut() = Some(answer.registration.probe_key);
        }
    });
    world.connect(a, b).unwrap();
    world.run_for(ms(300));
    let theirs = probe_key.borrow_mut().take().unwrap();
    let attacker = Attacker::new(99);
    let frame = attacker.request(&world, b, 1, vec![]);
    world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
    let (us, them) = (attacker.keypair.public().to_peer_id(), world.nodes[b].peer);
    let session = SessionId([1; 16]);
    let keys = |secret: &ProbeSecret| {
        ProbeKeys::derive(secret, &theirs, session, &us, &them, SessionRole::Initiator).unwrap()
    };
    let before = world.nodes[b].endpoint.counters();
    let mut answered = 0;
    for i in 0..20_u8 {
        let path = Path { socket: SOCKET, remote: at(&format!("192.0.2.{}:7", 100 + i)) };
        let challenge = Probe::Challenge { data: [i; 8], nominate: false };
        let forged = challenge.encode(&keys(&ProbeSecret::new([1; 32])));
        let probes = world.nodes[b].probes.len();
        world.input(b, |endpoint, now| endpoint.handle_datagram(path, &forged, now));
        assert_eq!(world.nodes[b].probes.len(), probes, "no oracle");
        let authentic = challenge.encode(&keys(&attacker.secret));
        world.input(b, |endpoint, now| endpoint.handle_datagram(path, &authentic, now));
        answered += usize::from(world.nodes[b].probes[probes..].iter().any(|(_, p)| *p == path));
    }
    assert_eq!(answered, 8);
    let after = world.nodes[b].endpoint.counters();
    assert_eq!(after.probes_refused - before.probes_refused, 20);
    assert_eq!(after.probes_received - before.probes_received, 20);
    assert_eq!(after.caps_hit - before.caps_hit, 12);
    // None of these is named by anybody else, so QUIC waits for their validation.
    let permitted = world.nodes[b].commands.iter().filter(|(_, command)| match command {
        Command::Permit { path, .. } => path.remote.port() == 7,
        _ => false,
    });
    assert_eq!(permitted.count(), 0);
    assert!(world.nodes[c].endpoint.counters().requests_forwarded >= 1);
}

#[test]
fn a_response_on_another_path_than_its_challenge_validates_nothing() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(101));
    let validated = |world: &World| {
        let is = |(_, event): &&(_, Event)| matches!(event, Event::PathValidated { .. });
        world.nodes[a].events.iter().filter(is).count()
    };
    assert_eq!(validated(&world), 0, "B's response is still on its way");
    // Everything that B sends is brought to A as from another address.
    world.divert = Some((b, at("192.0.2.77:7")));
    world.run_for(ms(8));
    world.divert = None;
    assert_eq!(validated(&world), 0);
}

#[test]
fn observations_without_end_are_looked_at_five_times_and_then_once_a_second() {
    let (mut world, a, _, c) = triangle();
    let (link, coordinator) = (*world.nodes[a].links.keys().next().unwrap(), world.nodes[c].peer);
    world.run_for(ms(10_000));
    let observed = |world: &World| {
        world.nodes[a].events.iter().filter(|(_, event)| matches!(event, Event::Observed { .. })).count()
    };
    let mut sequence = 100;
    let mut flood = |world: &mut World| {
        let before = observed(world);
        for _ in 0..50 {
            sequence += 1;
            let address = at(&format!("203.0.113.1:{}", 1000 + sequence));
            let frame = Frame::ObservedAddress { sequence, address };
            world.input(a, |endpoint, now| endpoint.handle_frame(link, frame, now));
        }
        observed(world) - before
    };
    let before = world.nodes[a].endpoint.counters();
    assert_eq!(flood(&mut world), 5);
    let after = world.nodes[a].endpoint.counters();
    assert_eq!((after.caps_hit - before.caps_hit, after.frames_refused - before.frames_refused), (45, 45));
    world.now += ms(2000);
    assert_eq!(flood(&mut world), 2);
    // A control stream that is opened again gives no more.
    world.input(a, |endpoint, now| endpoint.handle_link_down(link, now));
    let (ends, socket) = (Some(at("198.51.100.1:4001")), Some(SOCKET));
    world.input(a, |endpoint, now| endpoint.handle_link_up(link, coordinator, ends, socket, now));
    assert_eq!(flood(&mut world), 0);
}

#[test]
fn initiators_that_ask_again_and_again_do_not_silence_others_at_the_same_coordinator() {
    let (mut world, _, b, _) = triangle();
    let link = *world.nodes[b].links.keys().next().unwrap();
    let ask = |world: &mut World, seed, session| {
        let before = world.nodes[b].endpoint.counters().attempts;
        let frame = Attacker::new(seed).request(world, b, session, vec![]);
        world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
        world.nodes[b].endpoint.counters().attempts - before
    };
    let two: u64 = (0..250).map(|session| ask(&mut world, 100 + session % 2, session)).sum();
    assert_eq!(two, 20, "ten of each");
    let forty: u64 = (0..240).map(|n| ask(&mut world, 110 + n % 40, n / 40)).sum();
    assert_eq!(
        forty, 80,
        "what is left of two hundred, but a hundred: they and their network have asked lately"
    );
    assert_eq!(ask(&mut world, 180, 1), 1, "who has not asked before is heard");
    world.run_for(ms(20_000));
    world.assert_nothing_left(b);
}

#[test]
fn a_session_has_no_more_pairs_than_its_flow_may_have_paths() {
    let (mut world, _, b, _) = triangle_of(&Config { max_candidates: 256, ..client() });
    let link = *world.nodes[b].links.keys().next().unwrap();
    let candidates: Vec<_> = (0..256).map(|i| candidate(i, &format!("192.0.2.1:{}", 1000 + i))).collect();
    let frame = Attacker::new(99).request(&world, b, 1, candidates);
    world.input(b, |endpoint, now| endpoint.handle_frame(link, frame, now));
    world.run_for(ms(4_000));
    let admitted = world.nodes[b].commands.iter().filter(|(_, c)| matches!(c, Command::Admit { .. }));
    assert_eq!(admitted.count(), 56);
    let probed: BTreeSet<_> = world.nodes[b].probes.iter().map(|(_, path)| *path).collect();
    assert!(probed.len() <= 56, "what QUIC could not use is not probed: {}", probed.len());
    world.run_for(ms(20_000));
    world.assert_nothing_left(b);
}

#[test]
fn a_path_is_admitted_anew_when_the_peer_is_first_heard_there() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    for (node, other) in [(a, b), (b, a)] {
        let admitted = world.nodes[node].commands.iter().filter_map(|(_, command)| match command {
            Command::Admit { path, heard, .. } => Some((path.remote, *heard)),
            _ => None,
        });
        let outer = world.outer(other);
        assert_eq!(admitted.collect::<Vec<_>>(), [(outer, false), (outer, true)]);
    }
}
