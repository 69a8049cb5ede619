//! Peers that no coordinator knows when they are dialed, and coordinators that leave in the middle.

use std::{cell::RefCell, rc::Rc, time::Duration};

use libp2p_punch_proto::{
    ControlStreamId,
    config::Config,
    event::{Event, FailureReason, Phase, SessionRole},
    wire::frame::{CoordinatorAddress, Frame, RejectReason},
};

use crate::{
    harness::{SOCKET, World, at, client, ms, server},
    sessions::{triangle, triangle_of},
};

const UNKNOWN: FailureReason = FailureReason::Rejected(RejectReason::NotConnected);

/// A is registered at C, B is not yet. A-C 60 ms, B-C 40 ms, A-B 50 ms.
fn triangle_without_b(config: &Config) -> (World, usize, usize, usize) {
    let mut world = World::new();
    let a = world.add(config, "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(config, "192.168.2.2", Some("203.0.113.2"));
    let c = world.add(&server(), "198.51.100.1", None);
    world.set_latency(a, c, ms(30));
    world.set_latency(b, c, ms(20));
    world.set_latency(a, b, ms(25));
    world.coordinate(a, c);
    world.run_for(ms(1000));
    (world, a, b, c)
}

/// Counts the requests that A sends.
fn count_requests(world: &mut World, a: usize) -> Rc<RefCell<u32>> {
    let count = Rc::new(RefCell::new(0));
    let copy = Rc::clone(&count);
    world.tamper = Some(Box::new(move |from, _, frame| {
        if from == a && matches!(frame, Frame::PunchMeNow(_)) {
            *copy.borrow_mut() += 1;
        }
        vec![(Duration::ZERO, frame)]
    }));
    count
}

#[test]
fn a_peer_that_registers_after_the_dial_is_found_within_a_second_or_so() {
    for late in [500, 3_000, 8_000, 40_000] {
        let (mut world, a, b, c) = triangle_without_b(&client());
        world.connect(a, b).unwrap();
        world.run_for(ms(late));
        let registers = world.elapsed();
        world.coordinate(b, c);
        world.run_for(ms(3_000));
        assert_eq!(world.connected(a).len(), 1, "{late} ms late");
        let took = world.reached(a, SessionRole::Initiator, Phase::Connected).unwrap() - registers;
        // At most a second until the next request, and the registration and the session themselves.
        assert!(took <= ms(1_000 + 40 + 100), "{late} ms late: {took:?}");
        assert_eq!(world.retries(a).len(), 1, "said once");
        assert_eq!(world.retries(a)[0].1, UNKNOWN);
        world.assert_counted(a);
    }
}

#[test]
fn a_dial_that_is_never_dropped_asks_for_a_stranger_for_a_minute_and_says_why_it_fails() {
    let (mut world, a, b, c) = triangle_without_b(&client());
    let requests = count_requests(&mut world, a);
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(Duration::from_secs(120));
    let [(at, reason)] = world.failed(a)[..] else { panic!("{:?}", world.failed(a)) };
    assert_eq!(reason, UNKNOWN);
    let took = at - start;
    assert!(took > ms(59_000) && took <= ms(61_100), "{took:?}");
    let requests = *requests.borrow();
    assert!((55..=130).contains(&requests), "{requests}");
    assert_eq!(world.nodes[c].endpoint.counters().caps_hit, 0, "the coordinator had to limit nothing");
    world.assert_nothing_left(a);
    world.assert_counted(a);
}

#[test]
fn a_dial_that_is_dropped_while_nobody_knows_the_peer_fails_for_that_reason() {
    let (mut world, a, b, _) = triangle_without_b(&client());
    let peer = world.nodes[b].peer;
    for wait in [ms(2_000), ms(65)] {
        world.connect(a, b).unwrap();
        world.run_for(wait);
        world.input(a, |endpoint, now| endpoint.cancel(&peer, now));
        assert_eq!(world.failed(a).last().unwrap().1, UNKNOWN);
        world.assert_nothing_left(a);
    }
}

#[test]
fn a_dial_that_is_dropped_after_seconds_without_a_coordinator_says_so() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
    let peer = world.nodes[b].peer;
    for (wait, reason) in [(1_000, FailureReason::Cancelled), (9_000, FailureReason::NoCoordinator)] {
        world.connect(a, b).unwrap();
        world.run_for(ms(wait));
        world.input(a, |endpoint, now| endpoint.cancel(&peer, now));
        assert_eq!(world.failed(a).last().unwrap().1, reason);
    }
}

#[test]
fn an_upgrade_does_not_wait_for_a_peer_that_nobody_knows() {
    let (mut world, a, b, _) = triangle_without_b(&client());
    let peer = world.nodes[b].peer;
    let start = world.elapsed();
    world.input(a, |endpoint, now| endpoint.upgrade(peer, now)).unwrap();
    world.run_for(ms(5_000));
    assert_eq!(world.failed(a), [(start + ms(60), UNKNOWN)]);
    // A dial that comes meanwhile makes it wait.
    world.input(a, |endpoint, now| endpoint.upgrade(peer, now)).unwrap();
    world.connect(a, b).unwrap();
    world.run_for(ms(5_000));
    assert_eq!(world.failed(a).len(), 1);
}

/// The coordinator restarts: its links end, and its clients are back after these times.
fn restart((world, a, b, c): &mut (World, usize, usize, usize), back: [Duration; 2]) {
    for node in [*a, *b] {
        let links: Vec<ControlStreamId> = world.nodes[node].links.keys().copied().collect();
        links.into_iter().for_each(|link| world.unlink(node, link));
    }
    let mut order = [(back[0], *a), (back[1], *b)];
    order.sort();
    let begin = world.elapsed();
    for (after, node) in order {
        world.run_for(after - (world.elapsed() - begin));
        world.link(node, *c);
    }
}

#[test]
fn a_coordinator_that_restarts_right_after_a_dial_is_asked_again_as_soon_as_it_is_back() {
    for (down, back) in [(0, [1_000, 1_500]), (20, [1_500, 1_000]), (50, [8_000, 8_700]), (55, [700, 650])] {
        let mut all = triangle();
        let (a, b) = (all.1, all.2);
        all.0.connect(a, b).unwrap();
        all.0.run_for(ms(down));
        restart(&mut all, back.map(ms));
        let world = &mut all.0;
        let returned = world.elapsed();
        world.run_for(ms(10_000));
        assert_eq!(world.connected(a).len(), 1, "down after {down} ms, back after {back:?}");
        let took = world.reached(a, SessionRole::Initiator, Phase::Connected).unwrap();
        assert!(took <= returned + ms(1_200), "{down}: {:?}", took - returned);
    }
}

#[test]
fn two_that_dial_each_other_while_they_register_both_connect() {
    // B comes before A, with it, or after it, by every fraction of a round trip.
    for offset in 0..40 {
        let mut world = World::new();
        let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
        let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
        let c = world.add(&server(), "198.51.100.1", None);
        world.coordinate(a, c);
        world.connect(a, b).unwrap();
        world.run_for(ms(offset));
        world.coordinate(b, c);
        world.connect(b, a).unwrap();
        world.run_for(ms(3_000));
        for node in [a, b] {
            assert!(world.failed(node).is_empty(), "{offset} ms: {:?}", world.failed(node));
            assert_eq!(world.connected(node).len(), 1, "{offset} ms");
            assert_eq!(world.nodes[node].endpoint.sessions(), 1, "{offset} ms");
        }
    }
}

#[test]
fn a_hundred_strangers_dialed_at_once_do_not_use_up_what_a_coordinator_takes() {
    let (mut world, a, b, c) = triangle_without_b(&client());
    let strangers: Vec<usize> = (1..=100)
        .map(|n| world.add(&client(), "192.168.3.2", Some(&format!("203.0.113.{}", 100 + n))))
        .collect();
    for stranger in strangers {
        world.connect(a, stranger).unwrap();
    }
    world.run_for(ms(10_000));
    assert!(world.failed(a).is_empty());
    assert_eq!(world.nodes[c].endpoint.counters().caps_hit, 0);
    // There is room for a peer that is there.
    world.coordinate(b, c);
    world.run_for(ms(1_000));
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(1_000));
    assert_eq!(world.reached(a, SessionRole::Initiator, Phase::Connected), Some(start + ms(75)));
    assert_eq!(world.nodes[c].endpoint.counters().caps_hit, 0);
}

#[test]
fn silence_has_the_coordinator_asked_once_a_second_for_the_attempt_under_way() {
    let config = Config { max_attempts: 1, ..client() };
    let (mut world, a, b, _) = triangle_of(&config);
    world.blackhole = true;
    let start = world.elapsed();
    let requests = count_requests(&mut world, a);
    world.connect(a, b).unwrap();
    world.run_for(ms(30_000));
    assert_eq!(world.failed(a), [(start + ms(5_060), FailureReason::PunchingTimeout)]);
    assert_eq!(*requests.borrow(), 1 + 5);
    for node in [a, b] {
        assert_eq!(world.nodes[node].endpoint.counters().attempts, 1, "the same attempt");
        assert_eq!(world.nodes[node].endpoint.counters().frames_refused, 0);
        // Nobody is sent more for that.
        let probes =
            world.nodes[node].probes.iter().filter(|(_, path)| path.remote == world.outer([b, a][node % 2]));
        assert!(probes.count() <= 9);
        world.assert_nothing_left(node);
    }
}

#[test]
fn a_dialer_that_is_seen_elsewhere_by_the_time_it_asks_again_is_connected_by_the_same_attempt() {
    let (mut world, a, b, c) = triangle();
    // The NAT in front of A has lost its mapping, and the coordinator sees the new one half a
    // second later.
    world.move_behind(a, "203.0.113.77");
    let coordinator = world.outer(c);
    if let Some((_, contacted)) = &mut world.nodes[a].nat {
        contacted.insert(coordinator);
    }
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(500));
    let (_, (_, there)) = world.nodes[a].links.iter().next().map(|(link, end)| (*link, *end)).unwrap();
    let (peer, outer) = (world.nodes[a].peer, world.outer(a));
    world.input(c, |endpoint, now| endpoint.handle_link_up(there, peer, Some(outer), Some(SOCKET), now));
    world.run_for(ms(5_000));
    let connected = world.reached(a, SessionRole::Initiator, Phase::Connected).unwrap();
    assert!(connected <= start + ms(1_000 + 125), "{:?}", connected - start);
    assert_eq!(world.nodes[a].endpoint.counters().attempts, 1);
    assert_eq!(world.nodes[b].endpoint.counters().attempts, 1);
}

#[test]
fn an_attempt_whose_peer_has_left_meanwhile_looks_for_it_again() {
    let (mut world, a, b, c) = triangle();
    world.blackhole = true;
    world.connect(a, b).unwrap();
    world.run_for(ms(500));
    let link = *world.nodes[b].links.keys().next().unwrap();
    world.unlink(b, link);
    world.run_for(ms(1_000));
    assert_eq!(world.retries(a).iter().map(|retry| retry.1).collect::<Vec<_>>(), [UNKNOWN]);
    world.blackhole = false;
    world.link(b, c);
    world.run_for(ms(2_000));
    assert_eq!(world.connected(a).len(), 1);
}

/// A has no coordinator, B is registered at C, and A has a control stream to C. A-C 60 ms, B-C 40
/// ms, A-B 50 ms.
fn triangle_with_c_unknown_to_a() -> (World, usize, usize, usize) {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
    let c = world.add(&server(), "198.51.100.1", None);
    world.set_latency(a, c, ms(30));
    world.set_latency(b, c, ms(20));
    world.set_latency(a, b, ms(25));
    world.coordinate(b, c);
    (world, a, b, c)
}

#[test]
fn a_coordinator_that_was_named_for_a_peer_is_asked_for_it_as_soon_as_it_is_connected() {
    let (mut world, a, b, c) = triangle_with_c_unknown_to_a();
    let [at_b, at_c] = [b, c].map(|node| world.nodes[node].peer);
    world.connect(a, b).unwrap();
    world.input(a, |endpoint, now| endpoint.set_coordinators_of(at_b, [at_c].into(), now));
    world.run_for(ms(1_000));
    assert_eq!(world.connected(a).len(), 0);
    let begin = world.elapsed();
    world.link(a, c);
    world.run_for(ms(1_000));
    let took = world.reached(a, SessionRole::Initiator, Phase::Connected).unwrap() - begin;
    assert!(took <= ms(75), "{took:?}");
}

#[test]
fn a_coordinator_that_was_named_for_one_peer_is_asked_for_no_other_and_for_none_afterwards() {
    let (mut world, a, b, c) = triangle_with_c_unknown_to_a();
    let [at_b, at_c] = [b, c].map(|node| world.nodes[node].peer);
    world.link(a, c);
    let count = count_requests(&mut world, a);
    world.input(a, |endpoint, now| endpoint.set_coordinators_of(at_c, [at_c].into(), now));
    world.connect(a, b).unwrap();
    world.run_for(ms(1_000));
    assert_eq!(*count.borrow(), 0, "named for another");
    world.input(a, |endpoint, now| {
        endpoint.set_coordinators_of(at_b, [at_c].into(), now);
        endpoint.set_coordinators_of(at_b, [].into(), now);
    });
    let asked = *count.borrow();
    world.run_for(ms(60_000));
    assert!(asked <= 1 && *count.borrow() <= 1, "{}", count.borrow());
}

#[test]
fn a_node_that_was_named_and_does_not_coordinate_does_not_end_the_dial() {
    let (mut world, a, b, c) = triangle_with_c_unknown_to_a();
    let d = world.add(&client(), "198.51.100.9", None);
    world.set_latency(a, d, ms(5));
    let [at_b, at_c, at_d] = [b, c, d].map(|node| world.nodes[node].peer);
    world.link(a, d);
    world.input(a, |endpoint, now| endpoint.set_coordinators_of(at_b, [at_c, at_d].into(), now));
    world.connect(a, b).unwrap();
    world.run_for(ms(500));
    assert_eq!(world.retries(a).len(), 1, "d does not coordinate");
    world.link(a, c);
    world.run_for(ms(1_000));
    assert_eq!(world.connected(a).len(), 1);
}

/// The coordinators that B named to A, in order.
fn named(world: &World, a: usize, b: usize) -> Vec<Vec<CoordinatorAddress>> {
    let peer_b = world.nodes[b].peer;
    let of_b = |(_, event): &(Duration, Event)| match event {
        Event::PeerCoordinators { peer, coordinators } if *peer == peer_b => Some(coordinators.clone()),
        _ => None,
    };
    world.nodes[a].events.iter().filter_map(of_b).collect()
}

#[test]
fn connected_peers_learn_the_coordinators_of_each_other_and_every_change_of_them() {
    let (mut world, a, b, c) = triangle();
    let d = world.add(&server(), "198.51.100.9", None);
    let address = |world: &World, node: usize| CoordinatorAddress {
        coordinator: world.nodes[node].peer,
        address: world.outer(node),
    };
    world.link(a, b);
    world.run_for(ms(2_000));
    let (at_c, at_d) = (address(&world, c), address(&world, d));
    assert_eq!(named(&world, a, b), [vec![at_c]]);
    assert_eq!(named(&world, b, a), [vec![at_c]]);
    assert_eq!(named(&world, c, a), [] as [Vec<_>; 0], "A's own coordinator needs no coordinators");
    world.coordinate(b, d);
    world.run_for(ms(2_000));
    let mut both = vec![at_c, at_d];
    both.sort();
    assert_eq!(named(&world, a, b), [vec![at_c], both]);
    world.input(b, |endpoint, now| endpoint.remove_coordinator(&at_c.coordinator, now));
    world.run_for(ms(2_000));
    assert_eq!(named(&world, a, b).last(), Some(&vec![at_d]));
}

#[test]
fn coordinators_at_addresses_that_mean_nothing_here_are_ignored_and_so_is_a_flood_of_them() {
    let (mut world, a, b, c) = triangle();
    let (_, link) = world.link(b, a);
    world.run_for(ms(1_000));
    let known = named(&world, a, b).len();
    let address = |coordinator, address: &str| CoordinatorAddress { coordinator, address: at(address) };
    let [peer_a, peer_b, peer_c] = [a, b, c].map(|node| world.nodes[node].peer);
    let useless = vec![
        address(peer_c, "192.168.7.7:1"),
        address(peer_c, "127.0.0.1:1"),
        address(peer_c, "169.254.169.254:80"),
        address(peer_a, "192.0.2.7:1"),
        address(peer_b, "192.0.2.7:1"),
    ];
    world.inject(a, link, Frame::Coordinators(useless), Duration::ZERO);
    world.run_for(ms(10_000));
    assert_eq!(named(&world, a, b).len(), known);
    for _ in 0..100 {
        let coordinators = vec![address(peer_c, "192.0.2.7:1")];
        world.inject(a, link, Frame::Coordinators(coordinators), Duration::ZERO);
    }
    world.run_for(ms(10));
    assert_eq!(named(&world, a, b).len(), known + 5);
    assert!(world.nodes[a].endpoint.counters().caps_hit >= 95);
}

#[test]
fn many_coordinators_that_register_a_peer_one_after_another_are_named_within_the_limits() {
    let (mut world, a, b, c) = triangle();
    world.link(a, b);
    world.run_for(ms(1_000));
    let servers: Vec<_> = (11..18).map(|n| world.add(&server(), &format!("198.51.100.{n}"), None)).collect();
    for server in &servers {
        world.coordinate(b, *server);
        world.run_for(ms(50));
    }
    world.run_for(ms(3_000));
    let mut all: Vec<_> = servers.iter().chain([&c]).map(|node| world.nodes[*node].peer).collect();
    all.sort();
    let last = named(&world, a, b).pop().unwrap_or_default();
    assert_eq!(last.iter().map(|known| known.coordinator).collect::<Vec<_>>(), all);
    let counters = world.nodes[a].endpoint.counters();
    assert_eq!((counters.caps_hit, counters.frames_refused), (0, 0));
}
