//! Filtering tests: every kind, loss, and what clients and coordinators can make others believe or
//! send by lying.

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use libp2p_punch_proto::{
    ControlStreamId, Path, SocketId,
    command::{Command, Pool},
    event::Event,
    nat::{Confidence, FilteringBehaviour as Filtering, Report, filtering::datagram},
    wire::frame::Frame,
};

use crate::harness::{SOCKET, World, at, client, ms, server};

pub(crate) const CLIENT: &str = "198.51.100.2";

impl World {
    /// Opens the one socket of a pool, if this node can.
    pub(crate) fn add_address(&mut self, node: usize, ip: &str) {
        let ip = ip.parse().unwrap();
        self.input(node, |endpoint, now| endpoint.handle_interface_up(ip, 24, now));
    }

    pub(crate) fn coordinator(&mut self, first: &str, second: Option<&str>) -> usize {
        let c = self.add(&server(), first, None);
        self.nodes[c].opens = true;
        if let Some(second) = second {
            self.add_address(c, second);
        }
        c
    }

    /// The last report that a node was told.
    pub(crate) fn report(&self, node: usize) -> Report {
        let last = self.nodes[node].events.iter().rev().find_map(|(_, event)| match event {
            Event::Nat(report) => Some((**report).clone()),
            _ => None,
        });
        let last = last.unwrap_or_default();
        assert!(last.says_the_same(&self.nodes[node].endpoint.nat_report()), "every change is told");
        last
    }

    pub(crate) fn filtering(&self, node: usize) -> Option<(Filtering, Confidence)> {
        self.report(node).filtering.map(|finding| (finding.value, finding.confidence))
    }
}

/// A coordinator, which has two addresses or one, and a client behind such a NAT, not yet
/// connected.
fn pair(filtering: Filtering, two: bool) -> (World, usize, usize) {
    let mut world = World::new();
    let c = world.coordinator("203.0.113.1", two.then_some("203.0.113.2"));
    let b = world.add(&client(), "192.168.1.2", Some(CLIENT));
    world.nodes[b].filtering = filtering;
    (world, c, b)
}

/// Returns the confidence that this number of coordinators gives: silence rests on their word.
pub(crate) fn sure(filtering: Filtering, coordinators: usize) -> Confidence {
    let arrived = matches!(filtering, Filtering::EndpointIndependent | Filtering::PortIndependent);
    match coordinators + usize::from(arrived) {
        1 => Confidence::Low,
        2 => Confidence::Medium,
        _ => Confidence::High,
    }
}

pub(crate) fn sent_to(world: &World, c: usize) -> Vec<SocketAddr> {
    world.nodes[c].probes.iter().map(|(_, path)| path.remote).collect()
}

#[test]
fn every_kind_of_filtering_is_told_by_two_addresses_and_as_far_as_possible_by_one() {
    use Filtering::*;
    for (filtering, by_two, by_one) in [
        (EndpointIndependent, EndpointIndependent, PortIndependent),
        (AddressDependent, AddressDependent, PortIndependent),
        (AddressAndPortDependent, AddressAndPortDependent, AddressAndPortDependent),
    ] {
        for (two, expected) in [(true, by_two), (false, by_one)] {
            let (mut world, c, b) = pair(filtering, two);
            world.coordinate(b, c);
            assert_eq!(world.filtering(b), None, "nothing is said before it is measured");
            world.run_for(ms(5000));
            assert_eq!(world.filtering(b), Some((expected, sure(expected, 1))), "{filtering:?}, {two}");
            assert_eq!(sent_to(&world, c).len(), if two { 9 } else { 6 });
            let evidence = world.report(b).filtering.unwrap().evidence;
            assert_eq!((evidence.observers, evidence.observations), (vec![world.nodes[c].peer], 3));
        }
    }
}

#[test]
fn more_coordinators_that_agree_make_it_surer_and_one_that_does_not_makes_it_doubtful() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressAndPortDependent] {
        let (mut world, _, b) = pair(filtering, true);
        for n in 1..=3 {
            let first = format!("203.0.113.{}", 10 * n);
            let c = world.coordinator(&first, Some(&format!("203.0.113.{}", 10 * n + 1)));
            world.coordinate(b, c);
            world.run_for(ms(5000));
            assert_eq!(world.filtering(b), Some((filtering, sure(filtering, n))), "{n}");
        }
        // From the fourth one nothing arrives but the controls.
        world.lose = Some(Box::new(|source, to| to == 1 && source.port() >= 7000));
        let c = world.coordinator("203.0.113.50", Some("203.0.113.51"));
        world.coordinate(b, c);
        world.run_for(ms(5000));
        let expected = match filtering {
            Filtering::EndpointIndependent => Confidence::Low,
            _ => Confidence::High,
        };
        assert_eq!(world.filtering(b), Some((filtering, expected)));
    }
}

#[test]
fn one_datagram_of_three_is_enough_and_lost_ones_make_it_less_sure() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    let mut count = 0;
    // Of each round of three the first two rounds are lost.
    world.lose = Some(Box::new(move |_, to| {
        count += usize::from(to == 1);
        to == 1 && count <= 6
    }));
    world.coordinate(b, c);
    world.run_for(ms(5000));
    assert_eq!(world.filtering(b), Some((Filtering::EndpointIndependent, Confidence::Low)));
}

#[test]
fn silence_says_nothing_if_not_even_those_come_that_nothing_filters() {
    let (mut world, c, b) = pair(Filtering::AddressAndPortDependent, true);
    world.lose = Some(Box::new(|_, to| to == 1));
    world.coordinate(b, c);
    world.run_for(ms(5000));
    assert_eq!(sent_to(&world, c).len(), 9);
    assert_eq!(world.filtering(b), None);
}

#[test]
fn a_coordinator_that_knows_no_tests_or_cannot_open_sockets_leaves_it_unknown() {
    for knows in [true, false] {
        let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
        world.nodes[c].opens = false;
        world.tamper = Some(Box::new(move |_, _, frame| match frame {
            Frame::FilterTest { .. } if !knows => vec![],
            other => vec![(Duration::ZERO, other)],
        }));
        world.coordinate(b, c);
        world.run_for(ms(20_000));
        assert_eq!(world.filtering(b), None);
        let expects: Vec<bool> = world.nodes[b]
            .commands
            .iter()
            .filter_map(|(_, command)| match command {
                Command::ExpectProbes { expected } => Some(*expected),
                _ => None,
            })
            .collect();
        assert_eq!(expects, [true, false], "the path layer need not look for ever");
        assert!(sent_to(&world, c).is_empty());
    }
}

#[test]
fn a_coordinator_that_says_what_it_has_not_sent_needs_datagrams_to_be_believed() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    world.nodes[c].opens = false;
    world.tamper = Some(Box::new(|_, _, frame| match frame {
        Frame::FilterTested { data, .. } => {
            let sources = vec![at("203.0.113.1:7000"), at("203.0.113.2:7001")];
            vec![(Duration::ZERO, Frame::FilterTested { data, rounds: 3, sources })]
        }
        other => vec![(Duration::ZERO, other)],
    }));
    world.coordinate(b, c);
    world.run_for(ms(20_000));
    assert_eq!(world.filtering(b), None);
}

#[test]
fn what_comes_from_where_the_client_has_sent_proves_nothing() {
    // The other address of this coordinator is that of another one, with which the client is
    // connected.
    let (mut world, c, b) = pair(Filtering::AddressDependent, true);
    let other = world.add(&server(), "203.0.113.2", None);
    world.coordinate(b, other);
    world.coordinate(b, c);
    world.run_for(ms(5000));
    assert_eq!(world.filtering(b), Some((Filtering::PortIndependent, Confidence::Medium)));
}

type Name = ([u8; 8], [u8; 32]);

/// Takes note of the latest test that was asked for, which its coordinator does not hear of.
fn captured(world: &mut World) -> Rc<Cell<Option<Name>>> {
    let asked = Rc::new(Cell::new(None));
    let sees = asked.clone();
    world.tamper = Some(Box::new(move |_, _, frame| match frame {
        Frame::FilterTest { data, key } => {
            sees.set(Some((data, key)));
            vec![]
        }
        other => vec![(Duration::ZERO, other)],
    }));
    asked
}

#[test]
fn forged_datagrams_count_for_nothing() {
    let (mut world, c, b) = pair(Filtering::AddressAndPortDependent, true);
    let asked = captured(&mut world);
    let (link, _) = world.coordinate(b, c);
    world.run_for(ms(100));
    let (data, key) = asked.get().expect("it asks at once");
    let (refused, path) = (
        world.nodes[b].endpoint.counters().probes_refused,
        Path { socket: SOCKET, remote: at("192.0.2.66:6") },
    );
    let forged = [datagram(data, &[0; 32], 0), datagram([0; 8], &key, 0), datagram(data, &key, 3)];
    for forged in &forged {
        world.input(b, |endpoint, now| endpoint.handle_datagram(path, forged, now));
    }
    assert_eq!(world.nodes[b].endpoint.counters().probes_refused, refused + 3);
    let real = Path { socket: SOCKET, remote: world.outer(c) };
    let tested = Frame::FilterTested { data, rounds: 1, sources: vec![at("203.0.113.1:7000")] };
    world.input(b, |endpoint, now| {
        endpoint.handle_datagram(real, &datagram(data, &key, 0), now);
        endpoint.handle_frame(link, tested, now);
    });
    assert_eq!(world.nodes[b].endpoint.counters().probes_refused, refused + 3);
    world.run_for(ms(2000));
    assert_eq!(world.filtering(b), Some((Filtering::AddressAndPortDependent, Confidence::Low)));
}

/// Asks for tests as often as the link carries them.
fn ask(world: &mut World, c: usize, link: ControlStreamId, number: u64) {
    let frame = Frame::FilterTest { data: number.to_be_bytes(), key: [9; 32] };
    world.input(c, |endpoint, now| endpoint.handle_frame(link, frame, now));
}

#[test]
fn a_client_gets_36_datagrams_a_minute_at_most_and_only_at_the_end_of_its_own_connection() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    world.add_address(c, "203.0.113.3");
    world.add_address(c, "203.0.113.4");
    let (_, link) = world.coordinate(b, c);
    for second in 0..600 {
        (0..20).for_each(|n| ask(&mut world, c, link, second * 20 + n));
        world.run_for(ms(1000));
    }
    let probes = &world.nodes[c].probes;
    assert!(probes.iter().all(|(_, path)| path.remote == at("198.51.100.2:4001")));
    for (n, (when, _)) in probes.iter().enumerate() {
        let minute = probes[n..].iter().take_while(|(later, _)| *later < *when + ms(60_000)).count();
        assert!(minute <= 36, "{minute} in a minute");
    }
    assert_eq!(probes.len() as u64, world.nodes[c].endpoint.counters().filter_probes_sent);
    assert!((108..=144).contains(&probes.len()), "two tests at once and one a minute: {}", probes.len());
}

#[test]
fn who_leaves_and_comes_back_gets_no_more_tests() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    let (mut here, _) = world.coordinate(b, c);
    for _ in 0..20 {
        world.run_for(ms(2500));
        world.unlink(b, here);
        world.run_for(ms(100));
        (here, _) = world.link(b, c);
    }
    assert_eq!(sent_to(&world, c).len(), 18, "two tests");
}

#[test]
fn a_stranger_gets_no_test_and_nor_does_a_link_without_an_address() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    let (_, link) = world.link(b, c);
    ask(&mut world, c, link, 1);
    world.run_for(ms(5000));
    assert!(sent_to(&world, c).is_empty(), "it is not registered");
    let peer = world.nodes[b].peer;
    world.input(c, |endpoint, now| endpoint.handle_link_up(link, peer, None, None, now));
    ask(&mut world, c, link, 2);
    world.run_for(ms(5000));
    assert!(sent_to(&world, c).is_empty());
}

#[test]
fn a_connection_that_moves_ends_its_test() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    let (_, link) = world.coordinate(b, c);
    world.run_for(ms(100));
    assert_eq!(sent_to(&world, c).len(), 3, "the first round");
    let (peer, moved) = (world.nodes[b].peer, at("192.0.2.66:6"));
    world.input(c, |endpoint, now| endpoint.handle_link_up(link, peer, Some(moved), Some(SOCKET), now));
    world.nodes[b].links.clear();
    world.run_for(ms(5000));
    let remotes: BTreeSet<_> = sent_to(&world, c).into_iter().collect();
    assert_eq!((sent_to(&world, c).len(), remotes.len()), (3, 1));
}

#[test]
fn nothing_goes_where_a_connection_has_just_moved_before_that_is_proven() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    let (_, link) = world.coordinate(b, c);
    world.run_for(ms(5000));
    let before = sent_to(&world, c).len();
    let (peer, home, victim) = (world.nodes[b].peer, world.outer(b), at("192.0.2.66:6"));
    let go = |world: &mut World, to| {
        world.input(c, |endpoint, now| endpoint.handle_link_up(link, peer, Some(to), Some(SOCKET), now));
    };
    // Forged packets take the connection there, and it goes back, and there again.
    for _ in 0..3 {
        go(&mut world, victim);
        ask(&mut world, c, link, 7);
        world.run_for(ms(3000));
        go(&mut world, home);
        world.run_for(ms(500));
    }
    assert_eq!(sent_to(&world, c).len(), before);
    // Who stays has answered there.
    world.run_for(Duration::from_secs(120));
    go(&mut world, victim);
    ask(&mut world, c, link, 8);
    world.run_for(ms(3999));
    assert_eq!(sent_to(&world, c).len(), before);
    world.run_for(ms(2000));
    assert_eq!(sent_to(&world, c)[before..], [victim; 9]);
}

#[test]
fn the_ports_that_tests_come_from_are_never_offered_to_clients() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    world.coordinate(b, c);
    world.run_for(ms(500));
    let sockets = [(SocketId(900), 7101), (SocketId(901), 7102), (SocketId(902), 7103)];
    let pool = Pool::Observers(Ipv4Addr::UNSPECIFIED.into());
    world.input(c, |endpoint, now| endpoint.handle_sockets_opened(pool, &sockets, now));
    world.run_for(ms(5000));
    let asked: BTreeSet<u16> = world.nodes[b].probes.iter().map(|(_, path)| path.remote.port()).collect();
    assert!([7101, 7102, 7103].iter().all(|port| asked.contains(port)));
    assert!(!asked.contains(&7000) && !asked.contains(&7001));
}

#[test]
fn a_nat_that_does_not_turn_datagrams_around_is_seen_as_such_and_told_by_three_datagrams() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    world.lose = Some(Box::new(|source, to| to == 1 && source == at("198.51.100.2:4001")));
    world.coordinate(b, c);
    world.run_for(ms(10_000));
    assert_eq!(world.report(b).hairpin.map(|finding| finding.value), Some(false));
    assert_eq!(sent_to(&world, b), [at("198.51.100.2:4001"); 3]);
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    world.coordinate(b, c);
    world.run_for(ms(10_000));
    assert_eq!(world.report(b).hairpin.map(|finding| finding.value), Some(true));
}

#[test]
fn coordinators_that_lie_about_our_address_make_us_send_a_few_datagrams_there_and_no_more() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    let asked = captured(&mut world);
    let (link, _) = world.coordinate(b, c);
    world.run_for(ms(500));
    let coordinator = Path { socket: SOCKET, remote: world.outer(c) };
    for n in 1..=100u16 {
        let address = SocketAddr::new([192, 0, 2, 66].into(), n);
        let lie = Frame::ObservedAddress { sequence: u64::from(n), address };
        world.input(b, |endpoint, now| endpoint.handle_frame(link, lie, now));
        // It cares for no limits of its own: every test has a result.
        let (data, key) = asked.get().expect("a test of the new address");
        let tested = Frame::FilterTested { data, rounds: 3, sources: vec![at("203.0.113.1:7000")] };
        world.input(b, |endpoint, now| {
            endpoint.handle_datagram(coordinator, &datagram(data, &key, 0), now);
            endpoint.handle_frame(link, tested, now);
        });
        world.run_for(ms(3000));
    }
    let lies = world.nodes[b].probes.iter().filter(|(_, path)| path.remote.ip() == at("192.0.2.66:1").ip());
    let lies = lies.count();
    assert!((3..=3 * (2 + 5)).contains(&lies), "{lies} in five minutes");
}

#[test]
fn a_private_address_of_a_coordinator_says_nothing_by_its_silence() {
    let mut world = World::new();
    let c = world.coordinator("192.168.7.1", Some("172.17.0.1"));
    let b = world.add(&client(), "10.0.0.2", Some("192.168.7.2"));
    world.nodes[b].filtering = Filtering::AddressDependent;
    world.coordinate(b, c);
    world.run_for(ms(5000));
    assert_eq!(world.filtering(b).map(|(filtering, _)| filtering), Some(Filtering::PortIndependent));
}

#[test]
fn carrier_space_is_evidence_only_where_it_is_the_only_way_out() {
    for (address, other, expected) in [
        ("100.64.3.2", None, Some(true)),
        ("100.64.3.2", Some("192.168.1.2"), None),
        ("192.168.1.2", None, None),
    ] {
        let mut world = World::new();
        let c = world.coordinator("203.0.113.1", None);
        let b = world.add(&client(), address, Some(CLIENT));
        if let Some(other) = other {
            world.add_address(b, other);
        }
        world.coordinate(b, c);
        world.run_for(ms(500));
        assert_eq!(
            world.report(b).carrier_nat.map(|finding| finding.value),
            expected,
            "{address}, {other:?}"
        );
    }
}

#[test]
fn udp_is_blocked_only_if_a_coordinator_of_ours_was_tried_and_open_once_one_saw_us() {
    let (mut world, c, b) = pair(Filtering::EndpointIndependent, true);
    let coordinator = world.nodes[c].peer;
    world.input(b, |endpoint, now| endpoint.coordinator_timed_out(coordinator, now));
    assert_eq!(world.report(b).udp_blocked, None, "it is no coordinator of ours");
    world.input(b, |endpoint, now| {
        endpoint.add_coordinator(coordinator, now);
        endpoint.coordinator_timed_out(coordinator, now);
    });
    assert_eq!(world.report(b).udp_blocked.map(|f| (f.value, f.confidence)), Some((true, Confidence::Low)));
    world.coordinate(b, c);
    world.run_for(ms(500));
    assert_eq!(world.report(b).udp_blocked.map(|f| f.value), Some(false));
}
