//! Observers that lie about where they see a peer.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use libp2p_punch_proto::{
    ControlStreamId,
    event::Event,
    nat::{Confidence, MappingBehaviour, Report},
    wire::frame::Frame,
};

use crate::harness::{World, at, client, ms, server};

const COORDINATORS: [&str; 3] = ["198.51.100.1", "192.0.2.1", "192.1.2.1"];
const OWN: &str = "203.0.113.2:4001";
const LIE: &str = "203.0.113.66:4001";

/// A peer behind a NAT that maps independently of the endpoint, and its observers.
struct Scene {
    world: World,
    victim: usize,
    /// Candidates that the victim has announced to each coordinator, by sequence number.
    announced: Rc<RefCell<BTreeMap<(usize, u64), SocketAddr>>>,
    sequence: u64,
}

impl Scene {
    fn new() -> Self {
        let mut world = World::new();
        let victim = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
        let announced: Rc<RefCell<BTreeMap<(usize, u64), SocketAddr>>> = Rc::default();
        let all = announced.clone();
        world.tamper = Some(Box::new(move |from, to, frame| {
            match &frame {
                Frame::AddAddress(candidate) if from == victim => {
                    all.borrow_mut().insert((to, candidate.sequence), candidate.address);
                }
                Frame::RemoveAddress { sequence } if from == victim => {
                    all.borrow_mut().remove(&(to, *sequence));
                }
                _ => {}
            }
            vec![(Duration::ZERO, frame)]
        }));
        Self { world, victim, announced, sequence: 1_000 }
    }

    fn coordinators(&mut self) -> Vec<usize> {
        let mut add = |address| {
            let coordinator = self.world.add(&server(), address, None);
            self.world.coordinate(self.victim, coordinator);
            coordinator
        };
        let all = COORDINATORS.map(&mut add).to_vec();
        self.world.run_for(ms(1_000));
        all
    }

    /// An ordinary peer that connects to the victim.
    fn stranger(&mut self, address: &str) -> usize {
        let stranger = self.world.add(&client(), address, None);
        self.world.link(self.victim, stranger);
        stranger
    }

    fn link(&self, observer: usize) -> ControlStreamId {
        let mut links = self.world.nodes[self.victim].links.iter();
        *links.find(|(_, (other, _))| *other == observer).unwrap().0
    }

    fn say(&mut self, observer: usize, address: &str) {
        self.sequence += 1;
        let (link, sequence) = (self.link(observer), self.sequence);
        let frame = Frame::ObservedAddress { sequence, address: at(address) };
        self.world.input(self.victim, |endpoint, now| endpoint.handle_frame(link, frame, now));
    }

    /// The addresses that the victim has signed for.
    fn signed(&mut self) -> BTreeSet<SocketAddr> {
        self.world.run_for(ms(1_000));
        self.announced.borrow().values().copied().collect()
    }

    fn report(&self) -> Report {
        self.world.nodes[self.victim].endpoint.nat_report()
    }

    fn mappings_gone(&self) -> usize {
        let events = self.world.nodes[self.victim].events.iter();
        events
            .filter(|(_, event)| matches!(event, Event::Nat(report) if report.mapping_lifetime.is_some()))
            .count()
    }
}

fn mapping(report: &Report) -> Option<(MappingBehaviour, Confidence)> {
    report.mapping.as_ref().map(|finding| (finding.value, finding.confidence))
}

#[test]
fn a_stranger_that_lies_about_our_address_changes_neither_the_mapping_nor_the_candidates() {
    let mut scene = Scene::new();
    scene.coordinators();
    let honest = mapping(&scene.report());
    assert_eq!(honest, Some((MappingBehaviour::EndpointIndependent, Confidence::High)));
    let liar = scene.stranger("192.0.3.66");
    scene.say(liar, LIE);
    let (signed, report) = (scene.signed(), scene.report());
    println!("one stranger lies: mapping {:?}, signed {signed:?}", mapping(&report));
    assert_eq!(mapping(&report), Some((MappingBehaviour::EndpointIndependent, Confidence::Low)));
    assert_eq!(report.public_address.unwrap().value, at(OWN));
    assert!(signed.contains(&at(OWN)) && !signed.contains(&at(LIE)));
}

#[test]
fn forty_strangers_that_came_first_take_no_place_of_coordinators() {
    let mut scene = Scene::new();
    let liars: Vec<usize> = (0..40).map(|n| scene.stranger(&format!("192.2.{n}.66"))).collect();
    for liar in liars {
        scene.say(liar, LIE);
        scene.world.run_for(ms(10));
    }
    scene.coordinators();
    let (signed, report) = (scene.signed(), scene.report());
    println!("forty strangers lie: mapping {:?}, signed {signed:?}", mapping(&report));
    assert!(signed.contains(&at(OWN)) && !signed.contains(&at(LIE)), "{signed:?}");
    assert_eq!(report.mapping.map(|finding| finding.value), Some(MappingBehaviour::EndpointIndependent));
    assert_eq!(report.public_address.unwrap().value, at(OWN));
}

#[test]
fn one_coordinator_of_three_that_lies_lowers_the_confidence_and_changes_no_mapping() {
    let mut scene = Scene::new();
    let coordinators = scene.coordinators();
    let liar = coordinators[1];
    // Its first lie is that the mapping is gone. No other observer confirms that, and the liar is
    // not believed a second time.
    let mut independent = 0;
    for second in 0..120 {
        scene.say(liar, if second % 2 == 0 { LIE } else { OWN });
        scene.world.run_for(ms(1_000));
        let now = mapping(&scene.report()).map(|(mapping, _)| mapping);
        independent += usize::from(now == Some(MappingBehaviour::EndpointIndependent));
    }
    scene.say(liar, LIE);
    let (signed, report) = (scene.signed(), scene.report());
    println!("one coordinator lies: mapping right in {independent} of 120 s, {:?}", mapping(&report));
    assert_eq!(independent, 120);
    assert_eq!(mapping(&report), Some((MappingBehaviour::EndpointIndependent, Confidence::Low)));
    assert_eq!(report.public_address.unwrap().value, at(OWN));
    assert!(signed.contains(&at(OWN)));
}

#[test]
fn a_stranger_that_says_our_mapping_is_gone_is_not_believed() {
    let mut scene = Scene::new();
    scene.coordinators();
    let liar = scene.stranger("192.0.3.66");
    scene.world.run_for(ms(1_000));
    for _ in 0..30 {
        for address in [LIE, OWN] {
            scene.say(liar, address);
            scene.world.run_for(ms(1_000));
        }
    }
    println!(
        "a stranger said thirty times that our mapping is gone: believed {} times",
        scene.mappings_gone()
    );
    assert_eq!(scene.mappings_gone(), 0);
    assert_eq!(scene.report().public_address.unwrap().value, at(OWN));
    assert!(!scene.signed().contains(&at(LIE)));
}
