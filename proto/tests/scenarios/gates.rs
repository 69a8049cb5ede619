//! Decisions of the application before anything is answered, probed or announced.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};

use libp2p_identity::PeerId;
use libp2p_punch_proto::{
    config::{Config, Disclosure},
    event::{Event, FailureReason, RegistrationStatus},
    gater::{Gater, Remote, SharedGater},
    wire::frame::{Frame, RejectReason},
};

use crate::harness::{World, client, ms, server};

/// Refuses what is listed, and remembers the peers that asked.
#[derive(Debug, Default)]
struct Lists {
    connections: Mutex<Vec<PeerId>>,
    registrations: Mutex<Vec<PeerId>>,
    requests: Mutex<Vec<(PeerId, PeerId)>>,
    addresses: Vec<IpAddr>,
    asked: Mutex<Vec<Remote>>,
}

impl Gater for Lists {
    fn allow_connection(&self, initiator: &Remote, _: &PeerId) -> bool {
        self.asked.lock().unwrap().push(*initiator);
        !self.connections.lock().unwrap().contains(&initiator.peer)
    }

    fn allow_registration(&self, peer: &Remote) -> bool {
        self.asked.lock().unwrap().push(*peer);
        !self.registrations.lock().unwrap().contains(&peer.peer)
    }

    fn allow_request(&self, initiator: &Remote, responder: &PeerId) -> bool {
        !self.requests.lock().unwrap().contains(&(initiator.peer, *responder))
    }

    fn allow_announcement(&self, address: IpAddr) -> bool {
        !self.addresses.contains(&address)
    }
}

const NOT_WILLING: FailureReason = FailureReason::Rejected(RejectReason::NotWilling);

/// A and B behind NATs of their own and C, with the gaters of B and of C.
fn gated(of_b: &Arc<Lists>, of_c: &Arc<Lists>) -> (World, usize, usize, usize) {
    let with =
        |config: Config, gater: &Arc<Lists>| Config { gater: SharedGater::new(gater.clone()), ..config };
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&with(client(), of_b), "192.168.2.2", Some("203.0.113.2"));
    let c = world.add(&with(server(), of_c), "198.51.100.1", None);
    world.coordinate(a, c);
    world.coordinate(b, c);
    (world, a, b, c)
}

fn gates() -> [Arc<Lists>; 2] {
    [Arc::default(), Arc::default()]
}

#[test]
fn a_responder_neither_probes_nor_answers_a_peer_that_its_application_refuses() {
    let [of_b, of_c] = gates();
    let (mut world, a, b, _) = gated(&of_b, &of_c);
    world.run_for(ms(1_000));
    of_b.connections.lock().unwrap().push(world.nodes[a].peer);
    let before = world.nodes[b].probes.len();
    world.connect(a, b).unwrap();
    world.run_for(ms(10_000));
    assert_eq!(world.failed(a).iter().map(|failed| failed.1).collect::<Vec<_>>(), [NOT_WILLING]);
    assert_eq!(world.nodes[b].probes.len(), before);
    assert_eq!(world.nodes[b].endpoint.sessions(), 0);
    let remote = Remote { peer: world.nodes[a].peer, address: Some(world.outer(a)) };
    assert_eq!(of_b.asked.lock().unwrap().last(), Some(&remote));
    // The list counts as it is at the time of the request.
    of_b.connections.lock().unwrap().clear();
    world.connect(a, b).unwrap();
    world.run_for(ms(1_000));
    assert_eq!(world.connected(a).len(), 1);
}

#[test]
fn a_coordinator_registers_no_peer_that_its_application_refuses() {
    let [of_b, of_c] = gates();
    let (mut world, a, b, _) = gated(&of_b, &of_c);
    of_c.registrations.lock().unwrap().push(world.nodes[b].peer);
    world.run_for(ms(1_000));
    let statuses = |world: &World, node: usize| {
        let events = world.nodes[node].events.iter();
        events.filter(|(_, event)| matches!(event, Event::Registered { .. })).count()
    };
    assert_eq!((statuses(&world, a), statuses(&world, b)), (1, 0));
    let rejected = |(_, event): &(_, Event)| {
        matches!(event, Event::RegistrationRejected { reason: RejectReason::NotWilling, .. })
    };
    assert!(world.nodes[b].events.iter().any(rejected));
    let none =
        |(_, event): &(_, Event)| matches!(event, Event::Registration(RegistrationStatus::Majority { .. }));
    assert!(!world.nodes[b].events.iter().any(none));
    let asked = of_c.asked.lock().unwrap();
    assert!(asked.iter().any(|remote| remote.address == Some(world.outer(b))));
}

#[test]
fn a_coordinator_passes_no_request_on_that_its_application_refuses() {
    let [of_b, of_c] = gates();
    let (mut world, a, b, c) = gated(&of_b, &of_c);
    world.run_for(ms(1_000));
    let [peer_a, peer_b] = [a, b].map(|node| world.nodes[node].peer);
    of_c.requests.lock().unwrap().push((peer_a, peer_b));
    let forwarded = |world: &World| world.nodes[c].endpoint.counters().requests_forwarded;
    let before = forwarded(&world);
    world.connect(a, b).unwrap();
    world.run_for(ms(10_000));
    assert_eq!(world.failed(a).iter().map(|failed| failed.1).collect::<Vec<_>>(), [NOT_WILLING]);
    assert_eq!(forwarded(&world), before);
    // The other direction is another question.
    world.connect(b, a).unwrap();
    world.run_for(ms(1_000));
    assert_eq!(world.connected(b).len(), 1);
}

#[test]
fn addresses_that_the_application_hides_are_in_no_frame() {
    let hidden: IpAddr = "192.168.2.2".parse().unwrap();
    let of_b = Arc::new(Lists { addresses: vec![hidden], ..Lists::default() });
    for (gater, expected) in [(Arc::default(), true), (of_b, false)] {
        let (mut world, a, b, _) = gated(&gater, &Arc::default());
        let seen = Arc::new(Mutex::new(false));
        let copy = seen.clone();
        world.tamper = Some(Box::new(move |from, _, frame| {
            let is_hidden = match &frame {
                Frame::AddAddress(candidate) => candidate.address.ip() == hidden,
                Frame::PunchMeNow(punch) => {
                    punch.request.candidates.iter().any(|candidate| candidate.address.ip() == hidden)
                }
                _ => false,
            };
            *copy.lock().unwrap() |= from == b && is_hidden;
            vec![(ms(0), frame)]
        }));
        world.run_for(ms(1_000));
        world.connect(b, a).unwrap();
        world.run_for(ms(1_000));
        assert_eq!(world.connected(b).len(), 1);
        assert_eq!(*seen.lock().unwrap(), expected);
    }
}

/// A and B as [`gated`], and B discloses its candidates to peers that it accepts.
fn discreet(of_b: &Arc<Lists>) -> (World, usize, usize, usize) {
    disclosing(Disclosure::ToAccepted, of_b)
}

fn disclosing(disclosure: Disclosure, of_b: &Arc<Lists>) -> (World, usize, usize, usize) {
    let mut world = World::new();
    let config = Config { gater: SharedGater::new(of_b.clone()), disclosure, ..client() };
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&config, "192.168.2.2", Some("203.0.113.2"));
    let c = world.add(&server(), "198.51.100.1", None);
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(1_000));
    (world, a, b, c)
}

/// Counts the answers of coordinators.
fn count_answers(world: &mut World) -> Arc<Mutex<usize>> {
    let answers = Arc::new(Mutex::new(0));
    let count = answers.clone();
    world.tamper = Some(Box::new(move |_, _, frame| {
        *count.lock().unwrap() += usize::from(matches!(frame, Frame::PunchAnswer(_)));
        vec![(ms(0), frame)]
    }));
    answers
}

#[test]
fn a_peer_that_the_gater_refuses_learns_no_candidate() {
    let of_b = Arc::new(Lists::default());
    let (mut world, a, b, _) = discreet(&of_b);
    let answers = count_answers(&mut world);
    of_b.connections.lock().unwrap().push(world.nodes[a].peer);
    world.connect(a, b).unwrap();
    world.run_for(ms(10_000));
    assert_eq!(world.failed(a).iter().map(|failed| failed.1).collect::<Vec<_>>(), [NOT_WILLING]);
    assert_eq!(*answers.lock().unwrap(), 0);
}

#[test]
fn a_peer_that_is_accepted_learns_the_candidates_and_is_connected() {
    let (mut world, a, b, _) = discreet(&Arc::default());
    let answers = count_answers(&mut world);
    world.connect(a, b).unwrap();
    world.run_for(ms(1_000));
    assert_eq!((world.connected(a).len(), *answers.lock().unwrap()), (1, 1));
}

#[test]
fn a_dial_between_nats_waits_for_the_word_of_the_responder_for_a_round_trip_at_most() {
    let [to_all, to_accepted] = [Disclosure::ToAll, Disclosure::ToAccepted].map(|disclosure| {
        let (mut world, a, b, c) = disclosing(disclosure, &Arc::default());
        world.set_latency(b, c, ms(30));
        world.connect(a, b).unwrap();
        world.run_for(ms(1_000));
        world.connected(a)[0].0
    });
    let later = to_accepted - to_all;
    println!("{later:?} later");
    assert!(later > ms(30) && later <= ms(60), "{later:?}");
}

#[test]
fn every_coordinator_that_passes_a_request_on_gets_the_word_of_the_responder() {
    let (mut world, a, b, first) = discreet(&Arc::default());
    let second = world.add(&server(), "198.51.100.2", None);
    world.coordinate(a, second);
    world.coordinate(b, second);
    world.run_for(ms(1_000));
    // Whichever is asked first: its answers are lost, and the other one is asked later.
    let lost = Arc::new(Mutex::new(None));
    let copy = lost.clone();
    world.tamper = Some(Box::new(move |from, _, frame| match frame {
        Frame::PunchAnswer(_) if *copy.lock().unwrap().get_or_insert(from) == from => vec![],
        frame => vec![(ms(0), frame)],
    }));
    world.connect(a, b).unwrap();
    world.run_for(ms(2_000));
    assert!([Some(first), Some(second)].contains(&lost.lock().unwrap()));
    assert_eq!(world.connected(a).len(), 1);
}
