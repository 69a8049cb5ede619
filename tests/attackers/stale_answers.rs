//! Coordinators that answer with an earlier registration of a peer.

use std::{cell::Cell, collections::BTreeSet, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use libp2p_punch_proto::{
    candidate::{Candidate, CandidateKind, priority},
    command::Command,
    endpoint::Endpoint,
    event::Event,
    wire::{
        frame::{Frame, PunchAnswer, Registration},
        keys::ProbeSecret,
    },
};

use crate::harness::{GENERATION, World, at, client, keypair, ms, server};

const COORDINATORS: [&str; 4] = ["198.51.100.1", "192.0.2.1", "192.1.2.1", "192.1.3.1"];

/// Registration of the responder that the liar has kept.
#[derive(Clone, Copy)]
enum Kept {
    /// A registration of a process before this one.
    OfAnotherProcess { generation: u64 },
    /// A registration that this process has replaced.
    OfThisProcess,
}

/// A pair behind NATs, and coordinators of both, one of which lies.
struct Scene {
    world: World,
    liar: usize,
    initiator: usize,
    responder: usize,
    /// Requests that the initiator sent to the liar.
    asked: Rc<Cell<usize>>,
}

impl Scene {
    fn new(coordinators: usize, kept: Kept) -> Self {
        let mut world = World::new();
        let all: Vec<usize> =
            COORDINATORS[..coordinators].iter().map(|address| world.add(&server(), address, None)).collect();
        let initiator = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
        let responder = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
        let liar = all[0];
        for node in [initiator, responder] {
            for coordinator in &all {
                // The liar is the nearest by far, and so it is asked first.
                let latency = if *coordinator == liar { ms(1) } else { ms(40) };
                world.set_latency(node, *coordinator, latency);
                world.coordinate(node, *coordinator);
            }
        }
        world.run_for(ms(1000));
        let asked = Rc::new(Cell::new(0));
        let count = asked.clone();
        world.tamper = Some(Box::new(move |from, to, frame| match frame {
            Frame::PunchAnswer(answer) if from == liar => {
                let old = old_answer(*answer, kept, responder);
                vec![(Duration::ZERO, Frame::PunchAnswer(Box::new(old)))]
            }
            Frame::PunchMeNow(_) if from == liar => vec![],
            Frame::PunchMeNow(_) if to == liar => {
                count.set(count.get() + 1);
                vec![(Duration::ZERO, frame)]
            }
            frame => vec![(Duration::ZERO, frame)],
        }));
        Self { world, liar, initiator, responder, asked }
    }

    /// Dials once and returns how long it took to connect, if it did within half a minute. Nothing
    /// is left of the session.
    fn dial(&mut self) -> Option<Duration> {
        let begin = self.world.elapsed();
        for node in [self.initiator, self.responder] {
            self.world.nodes[node].events.clear();
            self.world.nodes[node].commands.clear();
        }
        self.world.connect(self.initiator, self.responder).unwrap();
        self.world.run_for(ms(30_000));
        let connected = self.world.nodes[self.initiator].events.iter().find_map(|(at, event)| match event {
            Event::Connected { .. } => Some(*at - begin),
            _ => None,
        });
        for node in [self.initiator, self.responder] {
            let flows: BTreeSet<_> = self.world.nodes[node]
                .commands
                .iter()
                .filter_map(|(_, command)| match command {
                    Command::Connect { flow, .. } | Command::Accept { flow, .. } => Some(*flow),
                    _ => None,
                })
                .collect();
            for flow in flows {
                self.world.input(node, |endpoint: &mut Endpoint, now| endpoint.handle_closed(flow, now));
            }
        }
        connected
    }
}

/// Registration that the responder signed earlier, with addresses that are no longer its own.
fn old_answer(answer: PunchAnswer, kept: Kept, responder: usize) -> PunchAnswer {
    let kind = CandidateKind::ServerReflexive;
    let candidate = |n: u8| {
        let address = SocketAddr::from(([192, 1, 9, n], 4001));
        Candidate { sequence: n.into(), kind, priority: priority(kind, address.ip()), address }
    };
    let candidates: Vec<Candidate> = (1..=8).map(candidate).collect();
    let (generation, probe_key) = match kept {
        Kept::OfAnotherProcess { generation } => (generation, ProbeSecret::new([99; 32]).public()),
        Kept::OfThisProcess => (GENERATION + 1, answer.registration.probe_key),
    };
    let signer = keypair(u8::try_from(responder + 1).unwrap());
    let lifetime = Duration::from_secs(300);
    let registration =
        Registration::sign(&signer, generation, lifetime, probe_key, &candidates, Bytes::new()).unwrap();
    PunchAnswer { registration, candidates, observed: Some(at("192.1.9.1:4001")), ..answer }
}

#[test]
fn a_coordinator_that_answers_with_an_old_registration_delays_one_dial_by_a_quarter_of_a_second() {
    for (name, kept) in [
        ("another process", Kept::OfAnotherProcess { generation: GENERATION - 1_000_000 }),
        ("this process", Kept::OfThisProcess),
    ] {
        let mut scene = Scene::new(3, kept);
        let took: Vec<Option<Duration>> = (0..20).map(|_| scene.dial()).collect();
        let longest = took.iter().flatten().max();
        println!(
            "an old registration of {name}: {} of 20 dials connected, the longest after {longest:?}",
            took.iter().flatten().count(),
        );
        // The answers of the others come after 80 ms, and from the second dial on they are asked
        // first.
        assert!(took[0].is_some_and(|took| took <= ms(200 + 250)), "{took:?}");
        assert!(took[1..].iter().all(|took| took.is_some_and(|took| took <= ms(200))), "{took:?}");
    }
}

#[test]
fn a_coordinator_with_stale_answers_is_asked_after_the_others() {
    let mut scene = Scene::new(4, Kept::OfThisProcess);
    assert!((0..20).all(|_| scene.dial().is_some()));
    println!("a coordinator that lies was asked in {} of 20 dials", scene.asked.get());
    assert_eq!(scene.asked.get(), 1);
    let (peer, initiator) = (scene.world.nodes[scene.liar].peer, scene.initiator);
    // Another connection to it changes nothing.
    let link = *scene.world.nodes[initiator].links.iter().find(|(_, (to, _))| *to == scene.liar).unwrap().0;
    scene.world.unlink(initiator, link);
    scene.world.coordinate(initiator, scene.liar);
    scene.world.run_for(ms(1000));
    assert!((0..5).all(|_| scene.dial().is_some()));
    assert_eq!(scene.asked.get(), 1, "{peer} was asked again");
}

#[test]
fn a_peer_whose_clock_was_set_back_is_reached_in_the_second_attempt() {
    // The clock of the process before was ahead by a day.
    let generation = GENERATION + 86_400_000_000;
    let mut scene = Scene::new(3, Kept::OfAnotherProcess { generation });
    let took: Vec<Option<Duration>> = (0..5).map(|_| scene.dial()).collect();
    println!("an old registration with a later generation: {took:?}");
    assert!(took.iter().all(|took| took.is_some_and(|took| took <= ms(10_000))), "{took:?}");
}
