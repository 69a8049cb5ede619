//! Filtering tests by two coordinators with one address each: every kind, and what coordinators and
//! strangers can make others believe or send by lying.

use std::{cell::Cell, rc::Rc, time::Duration};

use libp2p_punch_proto::{
    ControlStreamId,
    config::Config,
    event::Event,
    nat::{Confidence, FilteringBehaviour as Filtering},
    wire::frame::Frame,
};

use crate::{
    filtering::{CLIENT, sent_to, sure},
    harness::{SOCKET, World, at, client, ms, server},
};

const FIRST: &str = "203.0.113.1";
const SECOND: &str = "203.0.113.2";

impl World {
    /// Each of two coordinators is configured with the other; the links of `a` and of `b`.
    fn befriend(&mut self, a: usize, b: usize) -> (ControlStreamId, ControlStreamId) {
        let peer = self.nodes[a].peer;
        self.input(b, |endpoint, now| endpoint.add_coordinator(peer, now));
        self.coordinate(a, b)
    }

    /// Datagrams from a coordinator to the client's address.
    fn to_client(&self, from: usize) -> usize {
        sent_to(self, from).into_iter().filter(|remote| remote.ip() == at("198.51.100.2:1").ip()).count()
    }

    /// The only coordinator of a client that is asked for a test, and what it says.
    fn coordinate_at(&mut self, b: usize, c: usize) -> Option<Filtering> {
        self.coordinate(b, c);
        self.run_for(ms(6000));
        self.filtering(b).map(|(filtering, _)| filtering)
    }
}

/// Two coordinators with one address each, and a client behind such a NAT, not yet connected.
fn trio(filtering: Filtering) -> (World, [usize; 2], usize) {
    let mut world = World::new();
    let coordinators = [world.coordinator(FIRST, None), world.coordinator(SECOND, None)];
    let b = world.add(&client(), "192.168.1.2", Some(CLIENT));
    world.nodes[b].filtering = filtering;
    world.befriend(coordinators[0], coordinators[1]);
    // What they find out about each other is of no interest here.
    world.run_for(ms(6000));
    (world, coordinators, b)
}

const ALL: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

#[test]
fn two_coordinators_with_one_address_each_tell_all_three_kinds_apart() {
    for filtering in ALL {
        let (mut world, [first, second], b) = trio(filtering);
        world.coordinate(b, first);
        world.run_for(ms(5000));
        assert_eq!(world.filtering(b), Some((filtering, sure(filtering, 1))));
        assert_eq!((world.to_client(first), world.to_client(second)), (6, 3));
        let evidence = world.report(b).filtering.unwrap().evidence;
        assert_eq!((evidence.observers, evidence.observations), (vec![world.nodes[first].peer], 3));
        let counted = world.nodes[second].endpoint.counters().filter_probes_sent;
        assert_eq!(counted, sent_to(&world, second).len() as u64, "they are counted");
    }
}

#[test]
fn a_coordinator_with_two_addresses_asks_nobody() {
    let (mut world, [first, second], b) = trio(Filtering::EndpointIndependent);
    world.add_address(first, "203.0.113.3");
    assert_eq!(world.coordinate_at(b, first), Some(Filtering::EndpointIndependent));
    assert_eq!((world.to_client(first), world.to_client(second)), (9, 0));
}

#[test]
fn one_that_is_asked_sends_from_one_of_its_addresses() {
    let (mut world, [first, second], b) = trio(Filtering::EndpointIndependent);
    world.add_address(second, "203.0.113.4");
    assert_eq!(world.coordinate_at(b, first), Some(Filtering::EndpointIndependent));
    assert_eq!(world.to_client(second), 3);
}

/// Counts the times that any coordinator is asked.
fn asks(world: &mut World) -> Rc<Cell<usize>> {
    let count = Rc::new(Cell::new(0));
    let sees = count.clone();
    world.tamper = Some(Box::new(move |_, _, frame| {
        sees.set(sees.get() + usize::from(matches!(frame, Frame::FilteringAssistRequest { .. })));
        vec![(Duration::ZERO, frame)]
    }));
    count
}

#[test]
fn nobody_is_asked_to_send_to_where_it_is_itself() {
    // A coordinator behind the client's own NAT.
    let mut world = World::new();
    let first = world.coordinator(FIRST, None);
    let b = world.add(&client(), "192.168.1.2", Some(CLIENT));
    let neighbour = world.add(&server(), "192.168.1.3", Some(CLIENT));
    let asked = asks(&mut world);
    let peer = world.nodes[neighbour].peer;
    world.input(first, |endpoint, now| endpoint.add_coordinator(peer, now));
    world.link(neighbour, first);
    assert_eq!((world.coordinate_at(b, first).is_some(), asked.get()), (true, 0));
    // A client that is itself a coordinator, with another connection from elsewhere.
    let mut world = World::new();
    let [first, second] = [world.coordinator(FIRST, None), world.coordinator(SECOND, None)];
    let asked = asks(&mut world);
    let peer = world.nodes[second].peer;
    let (_, registered) = world.coordinate(second, first);
    world.run_for(ms(6000));
    let (_, elsewhere) = world.link(second, first);
    world.input(first, |endpoint, now| {
        endpoint.handle_link_up(elsewhere, peer, Some(at("192.0.2.7:4001")), Some(SOCKET), now);
        endpoint.add_coordinator(peer, now);
        endpoint.handle_frame(registered, Frame::FilterTest { data: [1; 8], key: [2; 32] }, now);
    });
    world.run_for(ms(6000));
    let tests = sent_to(&world, first).iter().filter(|remote| **remote == world.outer(second)).count();
    assert_eq!((tests, asked.get()), (12, 0));
}

#[test]
fn a_coordinator_to_which_the_client_has_sent_proves_nothing() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
        let (mut world, [first, second], b) = trio(filtering);
        world.link(b, second);
        assert_eq!(world.coordinate_at(b, first), Some(Filtering::PortIndependent));
        assert_eq!(world.to_client(second), 3, "it cannot be known there");
    }
}

#[test]
fn a_coordinator_that_is_translated_itself_tells_what_arrives_and_whether_nothing_does() {
    for (filtering, expected) in [
        (Filtering::EndpointIndependent, Filtering::EndpointIndependent),
        (Filtering::AddressDependent, Filtering::PortIndependent),
        (Filtering::AddressAndPortDependent, Filtering::AddressAndPortDependent),
    ] {
        // Either of the two, and both.
        for translated in [[true, false], [false, true], [true, true]] {
            let mut world = World::new();
            let [first, second] =
                [(0, FIRST, "10.0.0.1"), (1, SECOND, "10.9.0.1")].map(|(n, outer, inner)| {
                    let c = match translated[n] {
                        true => world.add(&server(), inner, Some(outer)),
                        false => world.add(&server(), outer, None),
                    };
                    world.nodes[c].opens = true;
                    world.nodes[c].filtering = Filtering::EndpointIndependent;
                    c
                });
            let b = world.add(&client(), "192.168.1.2", Some(CLIENT));
            world.nodes[b].filtering = filtering;
            world.befriend(first, second);
            world.run_for(ms(6000));
            assert_eq!(world.coordinate_at(b, first), Some(expected), "{translated:?}");
            assert_eq!(world.to_client(second), 3);
        }
    }
}

/// Returns the time from the arrival of a client to the report of its filtering: a second after
/// FILTER_TESTED.
fn known_after(world: &mut World, b: usize, c: usize) -> Duration {
    let start = world.elapsed();
    world.coordinate_at(b, c);
    let known = world.nodes[b].events.iter().find(|(_, event)| match event {
        Event::Nat(report) => report.filtering.is_some(),
        _ => false,
    });
    known.expect("it is known").0 - start
}

#[test]
fn a_coordinator_that_does_not_answer_is_waited_for_for_two_seconds_and_one_that_refuses_is_not() {
    for (answers, at_least, at_most) in [(true, 1600, 1800), (false, 3000, 3200)] {
        let (mut world, [first, second], b) = trio(Filtering::EndpointIndependent);
        world.tamper = Some(Box::new(move |from, to, frame| match frame {
            Frame::FilteringAssistRequest { .. } if to == second && !answers => vec![],
            Frame::FilteringAssistResponse { data, .. } if from == second => {
                vec![(Duration::ZERO, Frame::FilteringAssistResponse { data, rounds: 0, source: None })]
            }
            other => vec![(Duration::ZERO, other)],
        }));
        // Where the assistant's datagrams are lost, too, its refusal is all that there is.
        world.lose = Some(Box::new(|source, _| source.ip() == at("203.0.113.2:1").ip()));
        let after = known_after(&mut world, b, first);
        assert!((ms(at_least)..ms(at_most)).contains(&after), "{answers}: {after:?}");
        assert_eq!(
            world.filtering(b),
            Some((Filtering::PortIndependent, sure(Filtering::PortIndependent, 1)))
        );
    }
}

#[test]
fn what_comes_of_an_assistant_in_time_is_not_waited_for_any_longer() {
    let (mut world, [first, _], b) = trio(Filtering::AddressDependent);
    let after = known_after(&mut world, b, first);
    assert!((ms(1600)..ms(1800)).contains(&after), "{after:?}");
}

#[test]
fn a_coordinator_that_is_gone_is_not_waited_for() {
    let (mut world, [first, second], b) = trio(Filtering::AddressDependent);
    world.tamper = Some(Box::new(move |_, to, frame| match frame {
        Frame::FilteringAssistRequest { .. } if to == second => vec![],
        other => vec![(Duration::ZERO, other)],
    }));
    let start = world.elapsed();
    world.coordinate(b, first);
    world.run_for(ms(1000));
    let link = world.nodes[first].links.iter().find(|(_, (to, _))| *to == second).map(|(link, _)| *link);
    world.unlink(first, link.expect("it is connected"));
    world.run_for(ms(1500));
    assert_eq!(world.filtering(b).map(|(filtering, _)| filtering), Some(Filtering::PortIndependent));
    assert!(world.elapsed() - start < ms(3000));
}

#[test]
fn an_assistant_that_lies_makes_a_doubtful_report_at_worst_and_what_arrives_contradicts_it() {
    let lies = [
        ("203.0.113.2:7001", 3, Filtering::AddressDependent),
        ("203.0.113.1:7001", 3, Filtering::PortIndependent),
        ("10.0.0.1:7001", 3, Filtering::PortIndependent),
        ("[2001:db8::1]:7001", 3, Filtering::PortIndependent),
        ("203.0.113.2:7001", 1, Filtering::PortIndependent),
        ("203.0.113.2:7001", 255, Filtering::PortIndependent),
    ];
    for (source, rounds, expected) in lies {
        let (mut world, [first, second], b) = trio(Filtering::EndpointIndependent);
        world.lose = Some(Box::new(|source, to| to == 2 && source.ip() == at("203.0.113.2:1").ip()));
        world.tamper = Some(Box::new(move |from, _, frame| match frame {
            Frame::FilteringAssistResponse { data, .. } if from == second => {
                vec![(
                    Duration::ZERO,
                    Frame::FilteringAssistResponse { data, rounds, source: Some(at(source)) },
                )]
            }
            other => vec![(Duration::ZERO, other)],
        }));
        assert_eq!(world.coordinate_at(b, first), Some(expected), "{source}, {rounds}");
        if expected == Filtering::AddressDependent {
            assert_eq!(world.filtering(b).map(|(_, sure)| sure), Some(Confidence::Low));
        }
        let honest = world.coordinator("203.0.113.10", Some("203.0.113.11"));
        assert_eq!(world.coordinate_at(b, honest), Some(Filtering::EndpointIndependent));
    }
}

#[test]
fn an_assistant_that_lies_cannot_hide_that_only_what_was_asked_for_comes_in() {
    let (mut world, [first, second], b) = trio(Filtering::AddressAndPortDependent);
    world.nodes[second].opens = false;
    world.tamper = Some(Box::new(move |from, _, frame| match frame {
        Frame::FilteringAssistResponse { data, .. } if from == second => {
            vec![(
                Duration::ZERO,
                Frame::FilteringAssistResponse { data, rounds: 3, source: Some(at("192.0.2.66:6")) },
            )]
        }
        other => vec![(Duration::ZERO, other)],
    }));
    assert_eq!(world.coordinate_at(b, first), Some(Filtering::AddressAndPortDependent));
}

#[test]
fn answers_that_were_not_asked_for_are_refused() {
    let (mut world, [first, second], b) = trio(Filtering::EndpointIndependent);
    let again = Rc::new(Cell::new(None));
    let sees = again.clone();
    world.tamper = Some(Box::new(move |_, _, frame| {
        if let Frame::FilteringAssistResponse { data, .. } = frame {
            sees.set(Some(data));
            return vec![(ms(500), frame)];
        }
        vec![(Duration::ZERO, frame)]
    }));
    let link = world.nodes[first].links.iter().find(|(_, (to, _))| *to == second).map(|(link, _)| *link);
    let (link, source) = (link.expect("it is connected"), Some(at("192.0.2.66:6")));
    let refused = |world: &World| world.nodes[first].endpoint.counters().frames_refused;
    let before = refused(&world);
    let lie = |world: &mut World, link, data| {
        let frame = Frame::FilteringAssistResponse { data, rounds: 3, source };
        world.input(first, |endpoint, now| endpoint.handle_frame(link, frame, now));
    };
    lie(&mut world, link, [7; 8]);
    let (_, there) = world.coordinate(b, first);
    world.run_for(ms(1000));
    let data = again.get().expect("it is on its way");
    lie(&mut world, there, data);
    assert_eq!(refused(&world), before + 2, "the client itself is no other coordinator");
    world.run_for(ms(5000));
    lie(&mut world, link, data);
    assert_eq!(refused(&world), before + 3);
    assert_eq!(world.filtering(b).map(|(filtering, _)| filtering), Some(Filtering::EndpointIndependent));
}

/// Asks a coordinator to send to somebody.
fn ask(world: &mut World, to: usize, link: ControlStreamId, number: u64, target: &str) {
    let frame =
        Frame::FilteringAssistRequest { data: number.to_be_bytes(), key: [9; 32], target: at(target) };
    world.input(to, |endpoint, now| endpoint.handle_frame(link, frame, now));
}

const VICTIM: &str = "192.0.2.66:6";

fn to_victim(world: &World, from: usize) -> Vec<Duration> {
    let all = world.nodes[from].probes.iter().filter(|(_, path)| path.remote == at(VICTIM));
    all.map(|(when, _)| *when).collect()
}

#[test]
fn whoever_is_not_a_coordinator_of_ours_makes_us_send_nothing() {
    let (mut world, [_, second], b) = trio(Filtering::EndpointIndependent);
    let (here, link) = world.coordinate(b, second);
    world.run_for(ms(3000));
    let before = world.nodes[second].endpoint.counters();
    let answers = Rc::new(Cell::new(0));
    let sees = answers.clone();
    world.tamper = Some(Box::new(move |from, _, frame| {
        if matches!(frame, Frame::FilteringAssistResponse { rounds: 0, source: None, .. }) && from == second {
            sees.set(sees.get() + 1);
        }
        vec![(Duration::ZERO, frame)]
    }));
    (0..5).for_each(|n| ask(&mut world, second, link, n, VICTIM));
    world.run_for(ms(3000));
    let after = world.nodes[second].endpoint.counters();
    assert_eq!(after.frames_refused, before.frames_refused + 5);
    assert_eq!(after.filter_probes_sent, before.filter_probes_sent);
    assert_eq!((to_victim(&world, second).len(), answers.get()), (0, 5), "it is told so");
    // Nor does a coordinator make those send that use it.
    for config in [client(), Config::default()] {
        let user = world.add(&config, "198.51.100.7", None);
        world.nodes[user].opens = true;
        world.input(user, |endpoint, now| endpoint.set_publicly_reachable(true, now));
        let (link, _) = world.coordinate(user, second);
        ask(&mut world, user, link, 1, VICTIM);
        world.run_for(ms(3000));
        assert!(to_victim(&world, user).is_empty());
        assert_eq!(world.nodes[user].endpoint.counters().frames_refused, 1);
    }
    world.unlink(b, here);
}

#[test]
fn a_coordinator_of_ours_makes_us_send_to_global_addresses_only() {
    let (mut world, [first, second], _) = trio(Filtering::EndpointIndependent);
    let (_, link) = world.link(first, second);
    let before = sent_to(&world, second).len();
    for (n, target) in ["10.0.0.1:5", "127.0.0.1:5", "169.254.1.1:5", "224.0.0.1:5", "255.255.255.255:5"]
        .into_iter()
        .enumerate()
    {
        ask(&mut world, second, link, n as u64, target);
    }
    // To the other family there is no way.
    ask(&mut world, second, link, 9, "[2001:db8::1]:5");
    world.run_for(ms(5000));
    assert_eq!(sent_to(&world, second).len(), before);
    assert_eq!(world.nodes[second].endpoint.counters().frames_refused, 5);
}

#[test]
fn a_coordinator_of_ours_makes_us_send_three_datagrams_a_second_in_the_long_run() {
    let (mut world, [first, second], _) = trio(Filtering::EndpointIndependent);
    let (_, link) = world.link(first, second);
    for second_of in 0..120 {
        (0..20).for_each(|n| ask(&mut world, second, link, second_of * 20 + n, VICTIM));
        world.run_for(ms(1000));
    }
    let sent = to_victim(&world, second).len();
    assert!((3 * 125..=3 * (10 + 120)).contains(&sent), "{sent} in two minutes");
    assert!(world.nodes[second].endpoint.counters().caps_hit > 2000);
}

#[test]
fn a_test_that_is_asked_for_twice_is_made_once_and_one_whose_asker_is_gone_ends() {
    let (mut world, [first, second], _) = trio(Filtering::EndpointIndependent);
    let (here, link) = world.link(first, second);
    (0..3).for_each(|_| ask(&mut world, second, link, 1, VICTIM));
    world.run_for(ms(2000));
    assert_eq!(to_victim(&world, second).len(), 3);
    ask(&mut world, second, link, 2, VICTIM);
    world.unlink(first, here);
    world.run_for(ms(2000));
    assert_eq!(to_victim(&world, second).len(), 4, "the first round");
}
