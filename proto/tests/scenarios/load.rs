//! Load of coordinators: requests are shared among them, paced, and sent later where one has to
//! wait.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use libp2p_punch_proto::{
    config::{Config, CoordinatorLimits},
    event::{Event, FailureReason, Phase, SessionRole},
    rate_limit::Rate,
    wire::frame::{Frame, RejectReason},
};

use crate::harness::{World, client, ms, server};

/// A coordinator that is slow, or lies, costs a dial at most this much.
const STAGGER: Duration = Duration::from_millis(250);
/// (a+b+d)/2, as A-C is 60 ms, B-C 40 ms and A-B 50 ms.
const HONEST: Duration = Duration::from_millis(75);

/// A, peers behind NATs that it dials, and coordinators with which all of them are registered.
struct Scene {
    world: World,
    a: usize,
    peers: Vec<usize>,
    coordinators: Vec<usize>,
}

impl Scene {
    fn new(coordinators: u8, peers: u16, server: &Config) -> Self {
        let mut world = World::new();
        let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
        let coordinators: Vec<usize> = (1..=coordinators)
            .map(|n| {
                let coordinator = world.add(server, &format!("198.51.{n}.1"), None);
                world.set_latency(a, coordinator, ms(30));
                world.coordinate(a, coordinator);
                coordinator
            })
            .collect();
        let peers = (0..peers)
            .map(|n| {
                let [high, low] = n.to_be_bytes();
                let outer = format!("192.1.{high}.{low}");
                let peer = world.add(&client(), &format!("192.168.{}.{low}", 10 + high), Some(&outer));
                world.set_latency(a, peer, ms(25));
                for coordinator in &coordinators {
                    world.set_latency(peer, *coordinator, ms(20));
                    world.coordinate(peer, *coordinator);
                }
                peer
            })
            .collect();
        world.run_for(ms(2_000));
        Self { world, a, peers, coordinators }
    }

    /// Dials one peer and returns how long that took.
    fn dial(&mut self, peer: usize, wait: Duration) -> Option<Duration> {
        let begin = self.world.elapsed();
        self.world.nodes[self.a].events.clear();
        self.world.connect(self.a, peer).unwrap();
        self.world.run_for(wait);
        let connected = self.world.reached(self.a, SessionRole::Initiator, Phase::Connected);
        connected.map(|at| at - begin)
    }

    /// The requests that A has sent, by coordinator.
    fn count_requests(&mut self) -> Rc<RefCell<BTreeMap<usize, usize>>> {
        let count = Rc::new(RefCell::new(BTreeMap::new()));
        let (copy, a) = (Rc::clone(&count), self.a);
        self.world.tamper = Some(Box::new(move |from, to, frame| {
            if from == a && matches!(frame, Frame::PunchMeNow(_)) {
                *copy.borrow_mut().entry(to).or_default() += 1;
            }
            vec![(Duration::ZERO, frame)]
        }));
        count
    }

    /// The coordinator that A asks first for a peer. The first peer is dialed for that.
    fn first_asked(&mut self, peer: usize) -> usize {
        let count = self.count_requests();
        assert_eq!(self.dial(peer, ms(1_000)), Some(HONEST));
        self.world.tamper = None;
        let asked: Vec<usize> = count.borrow().keys().copied().collect();
        let [first] = asked[..] else { panic!("{asked:?} were asked") };
        first
    }

    fn refusals(&self) -> u64 {
        let counters = |node: &usize| self.world.nodes[*node].endpoint.counters();
        self.coordinators.iter().map(|node| counters(node).requests_rejected.total()).sum()
    }
}

#[test]
fn every_dial_asks_one_of_several_coordinators_and_none_much_more_often_than_another() {
    for coordinators in 1..=5 {
        let mut scene = Scene::new(coordinators, 60, &server());
        let requests = scene.count_requests();
        for peer in scene.peers.clone() {
            assert_eq!(scene.dial(peer, ms(1_000)), Some(HONEST));
        }
        let requests: Vec<usize> = requests.borrow().values().copied().collect();
        println!("60 dials, by coordinator: {requests:?}");
        assert_eq!(requests.iter().sum::<usize>(), 60);
        let mean = 60 / usize::from(coordinators);
        assert_eq!(requests.len(), usize::from(coordinators));
        assert!(requests.iter().all(|n| *n <= 2 * mean), "{requests:?}");
    }
}

/// A fault of a coordinator.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It answers after this time.
    Slow(Duration),
    /// It answers nothing, and passes nothing on.
    Silent,
    /// It answers, and passes nothing on.
    Drops,
    /// It says that it does not know the peer.
    Denies,
    /// It says that it has no time for long.
    Refuses,
}

impl Fault {
    fn apply(self, frame: Frame) -> Vec<(Duration, Frame)> {
        match (self, frame) {
            (Fault::Slow(by), frame) => vec![(by, frame)],
            (Fault::Silent, Frame::PunchAnswer(_) | Frame::PunchMeNow(_)) => vec![],
            (Fault::Drops | Fault::Denies | Fault::Refuses, Frame::PunchMeNow(_)) => vec![],
            (Fault::Denies | Fault::Refuses, Frame::PunchAnswer(answer)) => {
                let (session, round) = (answer.session, answer.round);
                let reason = match self {
                    Fault::Denies => RejectReason::NotConnected,
                    _ => RejectReason::RateLimited,
                };
                let retry_after = Duration::from_secs(300);
                vec![(Duration::ZERO, Frame::PunchRejected { session, round, reason, retry_after })]
            }
            (_, frame) => vec![(Duration::ZERO, frame)],
        }
    }
}

#[test]
fn a_coordinator_that_is_slow_or_lies_delays_a_dial_by_a_quarter_of_a_second_at_most() {
    for fault in [Fault::Slow(ms(3_000)), Fault::Silent, Fault::Drops, Fault::Denies, Fault::Refuses] {
        for coordinators in [2, 3] {
            let mut scene = Scene::new(coordinators, 1, &server());
            let peer = scene.peers[0];
            let bad = scene.first_asked(peer);
            scene.world.tamper = Some(Box::new(move |from, _, frame| match from == bad {
                true => fault.apply(frame),
                false => vec![(Duration::ZERO, frame)],
            }));
            scene.world.run_for(ms(10_000));
            let mut times = Vec::new();
            for _ in 0..4 {
                times.push(scene.dial(peer, ms(10_000)).expect("a connection"));
                scene.close_all();
            }
            println!("{fault:?}, {coordinators} coordinators: {times:?}");
            assert!(times.iter().all(|took| *took <= HONEST + STAGGER), "{fault:?}: {times:?}");
        }
    }
}

impl Scene {
    fn close_all(&mut self) {
        for node in std::iter::once(self.a).chain(self.peers.clone()) {
            let flows: Vec<_> = self.world.nodes[node].flows.keys().copied().collect();
            for flow in flows {
                self.world.input(node, |endpoint, now| endpoint.handle_closed(flow, now));
            }
        }
    }
}

#[test]
fn the_one_of_many_coordinators_that_knows_the_peer_is_found_within_a_few_round_trips() {
    for (coordinators, round_trips) in [(3, 1), (8, 3)] {
        let mut scene = Scene::new(coordinators, 0, &server());
        for knows in scene.coordinators.clone() {
            let number = u8::try_from(scene.world.nodes.len()).unwrap();
            let (local, outer) = (format!("192.168.9.{number}"), format!("192.1.9.{number}"));
            let peer = scene.world.add(&client(), &local, Some(&outer));
            scene.world.set_latency(scene.a, peer, ms(25));
            scene.world.set_latency(peer, knows, ms(20));
            scene.world.coordinate(peer, knows);
            scene.world.run_for(ms(1_000));
            let took = scene.dial(peer, ms(2_000)).expect("a connection");
            assert!(took <= HONEST + round_trips * ms(60), "one of {coordinators}: {took:?}");
        }
    }
}

#[test]
fn a_client_keeps_within_the_allowance_that_its_coordinator_announces() {
    let limits = CoordinatorLimits {
        request_rate: Rate { burst: 40, interval: ms(50) },
        ..CoordinatorLimits::default()
    };
    let mut scene = Scene::new(1, 80, &Config { coordinator_limits: limits, ..server() });
    for peer in scene.peers.clone() {
        scene.world.connect(scene.a, peer).unwrap();
    }
    scene.world.run_for(ms(100));
    assert_eq!(scene.world.connected(scene.a).len(), 30, "three quarters of 40 at once");
    scene.world.run_for(50 * ms(50));
    assert_eq!(scene.world.connected(scene.a).len(), 80, "and one each 50 ms");
    assert_eq!(scene.refusals(), 0);
    assert!(scene.world.retries(scene.a).is_empty() && scene.world.failed(scene.a).is_empty());
}

#[test]
fn a_thousand_dials_at_once_of_one_peer_all_end_direct_within_the_time_out_of_a_dial() {
    for (coordinators, seconds) in [(1, 9), (3, 3)] {
        let mut scene = Scene::new(coordinators, 1_000, &server());
        for peer in scene.peers.clone() {
            scene.world.connect(scene.a, peer).unwrap();
        }
        scene.world.run_for(ms(10_000));
        let start = ms(2_000);
        let mut times: Vec<Duration> =
            scene.world.connected(scene.a).iter().map(|(at, ..)| *at - start).collect();
        times.sort();
        println!("{coordinators} coordinators: {} connected, the last after {:?}", times.len(), times.last());
        assert_eq!(times.len(), 1_000);
        assert!(times.last().is_some_and(|last| *last <= Duration::from_secs(seconds)), "{times:?}");
        assert_eq!(scene.refusals(), 0, "nothing was refused");
        assert!(scene.world.failed(scene.a).is_empty());
    }
}

#[test]
fn a_dial_that_is_dropped_while_it_waits_for_its_turn_leaves_its_turn_to_others() {
    let mut scene = Scene::new(1, 400, &server());
    let peers = scene.peers.clone();
    for peer in &peers {
        scene.world.connect(scene.a, *peer).unwrap();
    }
    for peer in &peers[..300] {
        let peer = scene.world.nodes[*peer].peer;
        scene.world.input(scene.a, |endpoint, now| endpoint.cancel(&peer, now));
    }
    let wanted = scene.world.nodes[*peers.last().unwrap()].peer;
    scene.world.input(scene.a, |endpoint, now| endpoint.cancel(&wanted, now));
    scene.world.connect(scene.a, *peers.last().unwrap()).unwrap();
    scene.world.run_for(ms(3_000));
    assert_eq!(scene.world.connected(scene.a).len(), 100);
    assert_eq!(scene.refusals(), 0);
}

#[test]
fn a_refused_dial_waits_as_long_as_the_refusal_says_and_no_longer_than_half_a_minute() {
    for (says, least, most) in [(700, 700, 1_000), (5_000, 5_000, 6_000), (300_000, 29_000, 31_000)] {
        let mut scene = Scene::new(1, 1, &server());
        let (peer, coordinator) = (scene.peers[0], scene.coordinators[0]);
        let mut refusals = 1;
        scene.world.tamper = Some(Box::new(move |from, _, frame| match frame {
            Frame::PunchAnswer(answer) if from == coordinator && refusals > 0 => {
                refusals -= 1;
                let (session, round) = (answer.session, answer.round);
                let (reason, retry_after) = (RejectReason::RateLimited, ms(says));
                vec![(Duration::ZERO, Frame::PunchRejected { session, round, reason, retry_after })]
            }
            Frame::PunchMeNow(_) if from == coordinator && refusals > 0 => vec![],
            frame => vec![(Duration::ZERO, frame)],
        }));
        let took = scene.dial(peer, ms(60_000)).expect("a connection");
        let waited = took - ms(60) - HONEST;
        assert!((ms(least)..=ms(most)).contains(&waited), "{says} ms: {waited:?}");
        let rate_limited = FailureReason::Rejected(RejectReason::RateLimited);
        let retries = scene.world.nodes[scene.a].events.iter();
        let reasons: Vec<_> = retries
            .filter_map(|(_, event)| match event {
                Event::Retry { reason, .. } => Some(*reason),
                _ => None,
            })
            .collect();
        assert_eq!(reasons, [rate_limited]);
    }
}

#[test]
fn refusals_of_coordinators_and_responders_say_when_to_ask_again() {
    let limits =
        CoordinatorLimits { pair_rate: Rate { burst: 2, interval: ms(400) }, ..CoordinatorLimits::default() };
    let mut scene = Scene::new(1, 1, &Config { coordinator_limits: limits, ..server() });
    let (peer, coordinator) = (scene.peers[0], scene.coordinators[0]);
    let said = Rc::new(RefCell::new(Vec::new()));
    let copy = Rc::clone(&said);
    scene.world.tamper = Some(Box::new(move |from, _, frame| {
        if let Frame::PunchRejected { reason: RejectReason::RateLimited, retry_after, .. } = frame
            && from == coordinator
        {
            copy.borrow_mut().push(retry_after);
        }
        vec![(Duration::ZERO, frame)]
    }));
    for _ in 0..3 {
        assert!(scene.dial(peer, ms(90)).is_some() || !said.borrow().is_empty());
        scene.close_all();
    }
    let said = said.borrow();
    assert!(said.len() == 1 && said[0] > ms(100) && said[0] <= ms(400), "{said:?}");
}
