//! Sessions that end in a connection, and what happens to it.

use libp2p_punch_proto::{
    Path, SocketId, VirtualConnectionId,
    command::Command,
    config::{Config, Role},
    endpoint::PROBATION,
    event::{Event, FailureReason, Phase, SessionRole},
};

use crate::harness::{SOCKET, World, at, client, ms, server};

/// A and B behind NATs of their own, C coordinates. A-C 60 ms, B-C 40 ms, A-B 50 ms.
pub(crate) fn triangle() -> (World, usize, usize, usize) {
    triangle_of(&client())
}

pub(crate) fn triangle_of(config: &Config) -> (World, usize, usize, usize) {
    let mut world = World::new();
    let a = world.add(config, "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(config, "192.168.2.2", Some("203.0.113.2"));
    let c = world.add(&server(), "198.51.100.1", None);
    world.set_latency(a, c, ms(30));
    world.set_latency(b, c, ms(20));
    world.set_latency(a, b, ms(25));
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(1000));
    (world, a, b, c)
}

#[test]
fn a_session_is_validated_and_connected_after_half_of_the_three_round_trips() {
    let (mut world, a, b, _) = triangle();
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(500));
    let initiator = |phase| world.reached(a, SessionRole::Initiator, phase).unwrap() - start;
    let responder = |phase| world.reached(b, SessionRole::Responder, phase).unwrap() - start;
    assert_eq!(initiator(Phase::Discovery), ms(0));
    assert_eq!(initiator(Phase::Coordination), ms(0));
    assert_eq!(initiator(Phase::Synchronization), ms(60));
    assert_eq!(initiator(Phase::Punching), ms(60));
    assert_eq!(initiator(Phase::Validation), ms(75));
    assert_eq!(initiator(Phase::Connected), ms(75));
    assert_eq!(responder(Phase::Synchronization), ms(50));
    assert_eq!(responder(Phase::Punching), ms(50));
    assert_eq!(responder(Phase::Validation), ms(85));
    assert_eq!(responder(Phase::Connected), ms(100));
    let counters = world.nodes[a].endpoint.counters();
    assert_eq!((counters.coordinations, counters.coordination_time), (1, ms(60)));
}

#[test]
fn both_sides_end_on_the_path_between_the_two_outer_addresses() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    for node in [a, b] {
        let counters = world.nodes[node].endpoint.counters();
        assert_eq!((counters.successes, counters.in_flight), (0, 1), "the swarm of the peer may deny it");
    }
    world.run_for(PROBATION);
    for (node, other) in [(a, b), (b, a)] {
        let events = &world.nodes[node].events;
        let selected = events.iter().rev().find_map(|(_, event)| match event {
            Event::PathSelected { path, .. } => Some(*path),
            _ => None,
        });
        assert_eq!(selected.unwrap().remote, world.outer(other));
        let rtt = events.iter().find_map(|(_, event)| match event {
            Event::PathValidated { rtt, .. } => Some(*rtt),
            _ => None,
        });
        assert_eq!(rtt, Some(ms(50)));
        assert_eq!(world.connected(node).len(), 1);
        assert_eq!(world.nodes[node].endpoint.counters().successes, 1);
        assert_eq!(world.nodes[node].endpoint.phase(&world.nodes[other].peer), Some(Phase::Connected));
    }
}

#[test]
fn a_session_whose_connection_a_swarm_denies_is_counted_as_denied_and_leaves_nothing() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    for node in [a, b] {
        world.input(node, |endpoint, now| endpoint.handle_denied(VirtualConnectionId(0), now));
        let counters = world.nodes[node].endpoint.counters();
        assert_eq!((counters.attempts, counters.failures, counters.denied), (1, 1, 1));
        let is_denied = |(_, event): &&(_, Event)| matches!(event, Event::Denied { .. });
        assert_eq!(world.nodes[node].events.iter().filter(is_denied).count(), 1);
        world.assert_nothing_left(node);
    }
}

#[test]
fn a_session_that_lasted_was_not_denied_however_it_ends() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(PROBATION + ms(1000));
    world.input(a, |endpoint, now| endpoint.handle_denied(VirtualConnectionId(0), now));
    let counters = world.nodes[a].endpoint.counters();
    assert_eq!((counters.successes, counters.failures, counters.denied), (1, 0, 0));
    assert!(!world.nodes[a].events.iter().any(|(_, event)| matches!(event, Event::Denied { .. })));
    world.assert_nothing_left(a);
}

#[test]
fn a_connected_session_ends_with_its_flow_and_leaves_nothing() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(6000));
    for node in [a, b] {
        assert_eq!(world.nodes[node].endpoint.sessions(), 1);
        let flow = VirtualConnectionId(0);
        assert!(world.nodes[node].endpoint.session_of(flow).is_some());
        world.input(node, |endpoint, now| endpoint.handle_closed(flow, now));
        world.assert_nothing_left(node);
        assert_eq!(world.nodes[node].endpoint.session_of(flow), None);
        assert!(world.failed(node).is_empty());
    }
}

#[test]
fn an_idle_connected_session_has_no_deadline() {
    let (mut world, a, b, c) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(12_000));
    let peer = world.nodes[c].peer;
    world.input(a, |endpoint, now| endpoint.remove_coordinator(&peer, now));
    assert_eq!(world.nodes[a].endpoint.poll_timeout(), None);
}

#[test]
fn peers_on_one_network_move_to_the_path_inside_it() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&client(), "192.168.1.3", Some("203.0.113.1"));
    let c = world.add(&server(), "198.51.100.1", None);
    world.set_latency(a, b, ms(1));
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(200));
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    for (node, remote) in [(a, at("192.168.1.3:4001")), (b, at("192.168.1.2:4001"))] {
        assert_eq!(world.connected(node).len(), 1);
        let selected = world.nodes[node].commands.iter().rev().find_map(|(_, command)| match command {
            Command::Select { path, .. } => Some(path.remote),
            _ => None,
        });
        assert_eq!(selected, Some(remote));
    }
}

#[test]
fn peers_on_one_host_connect_over_loopback_if_their_coordinator_is_there_too() {
    let mut world = World::new();
    let a = world.add(&client(), "127.0.0.2", None);
    let b = world.add(&client(), "127.0.0.3", None);
    let c = world.add(&server(), "127.0.0.1", None);
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(1000));
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    assert_eq!(connections(&world, a), 1);
    assert_eq!(world.connected(b).len(), 1);
}

#[test]
fn nobody_is_told_loopback_addresses_who_is_elsewhere() {
    let (mut world, a, b, _) = triangle();
    for node in [a, b] {
        world.input(node, |endpoint, now| endpoint.handle_interface_up("127.0.0.1".parse().unwrap(), 8, now));
    }
    world.run_for(ms(1000));
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    for node in [a, b] {
        let all = world.nodes[node].events.iter().find_map(|(_, event)| match event {
            Event::Candidates { local, remote, .. } => Some([local.clone(), remote.clone()].concat()),
            _ => None,
        });
        let all = all.unwrap();
        assert!(!all.is_empty());
        assert!(all.iter().all(|candidate| !candidate.address.ip().is_loopback()), "{all:?}");
    }
}

#[test]
fn nobody_connects_to_itself_and_a_second_wish_joins_the_first() {
    let (mut world, a, b, _) = triangle();
    assert_eq!(world.connect(a, a), Err(FailureReason::DialSelf));
    assert_eq!(world.connect(a, b), Ok(()));
    assert_eq!(world.connect(a, b), Ok(()));
    assert_eq!(world.nodes[a].endpoint.sessions(), 1);
    world.run_for(ms(1000));
    assert_eq!(connections(&world, a), 1);
}

#[test]
fn a_cancelled_session_fails_once_and_leaves_nothing() {
    let (mut world, a, b, _) = triangle();
    let peer = world.nodes[b].peer;
    world.connect(a, b).unwrap();
    world.run_for(ms(40));
    world.input(a, |endpoint, now| endpoint.cancel(&peer, now));
    world.input(a, |endpoint, now| endpoint.cancel(&peer, now));
    assert_eq!(world.failed(a).len(), 1);
    assert_eq!(world.failed(a)[0].1, FailureReason::Cancelled);
    world.assert_nothing_left(a);
    assert!(world.nodes[a].commands.iter().any(|(_, c)| matches!(c, Command::Close { .. })));
}

#[test]
fn when_both_ask_at_once_the_lower_peers_session_connects_both() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.connect(b, a).unwrap();
    world.run_for(ms(3000));
    let (low, high) = match world.nodes[a].peer.to_bytes() < world.nodes[b].peer.to_bytes() {
        true => (a, b),
        false => (b, a),
    };
    assert_eq!(world.connected(low).len(), 1);
    assert_eq!(world.connected(low)[0].1, SessionRole::Initiator);
    assert_eq!(world.connected(high).len(), 1);
    assert_eq!(world.connected(high)[0].1, SessionRole::Responder);
    for node in [low, high] {
        assert!(world.failed(node).is_empty());
        assert!(world.retries(node).is_empty());
        assert_eq!(world.nodes[node].endpoint.sessions(), 1);
        world.assert_counted(node);
    }
}

#[test]
fn one_that_asks_while_it_is_being_asked_joins_that_session() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(55));
    world.connect(b, a).unwrap();
    world.run_for(ms(1000));
    assert_eq!(connections(&world, a), 1);
    assert_eq!(world.connected(b).len(), 1);
    assert_eq!(world.connected(b)[0].1, SessionRole::Responder);
}

#[test]
fn a_responder_that_wants_the_connection_itself_asks_when_the_initiator_gives_up() {
    let (mut world, a, b, _) = triangle_of(&Config { max_attempts: 2, ..client() });
    world.blackhole = true;
    world.connect(a, b).unwrap();
    world.run_for(ms(55));
    world.connect(b, a).unwrap();
    let peer = world.nodes[b].peer;
    world.input(a, |endpoint, now| endpoint.cancel(&peer, now));
    world.blackhole = false;
    world.run_for(ms(10_000));
    assert_eq!(world.retries(b).len(), 1);
    assert_eq!(world.connected(b).len(), 1);
    assert_eq!(world.connected(b)[0].1, SessionRole::Initiator);
}

#[test]
fn a_new_session_beside_a_connected_one_fails_without_touching_it() {
    let (mut world, a, b, _) = triangle_of(&Config { max_attempts: 1, ..client() });
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    let before = [world.nodes[a].commands.len(), world.nodes[b].commands.len()];
    world.nodes[b].quic_works = false;
    world.connect(a, b).unwrap();
    world.run_for(ms(20_000));
    assert_eq!(world.failed(a).len(), 1);
    for (node, before) in [a, b].into_iter().zip(before) {
        let touched = |command: &Command| match command {
            Command::Close { flow } | Command::Select { flow, .. } => *flow == VirtualConnectionId(0),
            _ => false,
        };
        assert!(!world.nodes[node].commands[before..].iter().any(|(_, command)| touched(command)));
        assert!(world.nodes[node].endpoint.session_of(VirtualConnectionId(0)).is_some());
        assert_eq!(world.nodes[node].endpoint.sessions(), 1);
        world.assert_counted(node);
    }
}

#[test]
fn a_thousand_sessions_in_flight_end_and_leave_nothing() {
    let mut world = World::new();
    let config = Config { max_attempts: 1, ..client() };
    let a = world.add(&config, "192.168.1.2", Some("203.0.113.1"));
    let c = world.add(&server(), "198.51.100.1", None);
    world.coordinate(a, c);
    world.run_for(ms(1000));
    let mut connected = 0;
    for _ in 0..1000 {
        let peer = libp2p_identity::PeerId::random();
        connected += usize::from(world.input(a, |endpoint, now| endpoint.connect(peer, now)).is_ok());
    }
    assert_eq!(connected, 1000);
    assert_eq!(world.nodes[a].endpoint.counters().in_flight, 1000);
    assert_eq!(world.nodes[a].endpoint.sessions(), 1000);
    world.run_for(ms(61_000));
    assert_eq!(world.failed(a).len(), 1000);
    world.assert_nothing_left(a);
}

#[test]
fn a_connected_session_probes_its_paths_anew_when_the_network_changes() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(6000));
    let before = world.nodes[a].probes.len();
    world.input(a, |endpoint, now| endpoint.handle_interface_up("10.9.9.9".parse().unwrap(), 24, now));
    assert!(world.nodes[a].probes.len() > before, "a new network: the paths are probed again at once");
    world.run_for(ms(6000));
    for node in [a, b] {
        assert_eq!(world.nodes[node].endpoint.sessions(), 1);
        assert!(world.failed(node).is_empty());
    }
}

#[test]
fn a_connection_follows_a_peer_that_moves_behind_another_nat() {
    let mut world = World::new();
    let a = world.add(&client(), "192.0.2.5", None);
    let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
    let c = world.add(&server(), "198.51.100.1", None);
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(1000));
    world.connect(a, b).unwrap();
    world.run_for(ms(10_000));
    let selects = |world: &World, node: usize| -> Vec<_> {
        let commands = world.nodes[node].commands.iter();
        let remotes = commands.filter_map(|(_, command)| match command {
            Command::Select { path, .. } => Some(path.remote),
            _ => None,
        });
        remotes.collect()
    };
    assert_eq!(selects(&world, a), [at("203.0.113.2:4001")]);
    world.move_behind(b, "203.0.113.99");
    world.input(b, |endpoint, now| endpoint.handle_interface_up("10.9.9.9".parse().unwrap(), 24, now));
    world.run_for(ms(20 + 267));
    assert_eq!(selects(&world, a), [at("203.0.113.2:4001"), at("203.0.113.99:4001")]);
    world.run_for(ms(10_000));
    assert_eq!(selects(&world, b), [at("192.0.2.5:4001"); 2], "the second time because it works again");
    for node in [a, b] {
        assert_eq!(
            world.nodes[node].endpoint.phase(&world.nodes[if node == a { b } else { a }].peer),
            Some(Phase::Connected)
        );
    }
}

#[test]
fn a_connection_moves_to_another_socket_when_its_own_goes() {
    let mut world = World::new();
    let a = world.add(&client(), "192.0.2.5", None);
    let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
    let c = world.add(&server(), "198.51.100.1", None);
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(1000));
    world.connect(a, b).unwrap();
    world.run_for(ms(10_000));
    let before = world.nodes[b].probes.len();
    world.input(b, |endpoint, now| endpoint.handle_socket_up(SocketId(2), at("0.0.0.0:4002"), true, now));
    world.input(b, |endpoint, now| endpoint.handle_socket_down(SOCKET, now));
    let fresh = Path { socket: SocketId(2), remote: at("192.0.2.5:4001") };
    assert!(world.nodes[b].probes[before..].iter().any(|(_, path)| *path == fresh));
    let forgotten = world.nodes[b].commands.iter().any(|(_, command)| match command {
        Command::Forget { path, .. } => path.socket == SOCKET,
        _ => false,
    });
    assert!(forgotten);
}

#[test]
fn a_bootstrap_coordinates_and_a_client_does_not() {
    for (config, expected) in
        [(Config { role: Role::Bootstrap, ..Config::default() }, 1), (client(), 0), (Config::default(), 0)]
    {
        let mut world = World::new();
        let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
        let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
        let c = world.add(&config, "198.51.100.1", None);
        world.coordinate(a, c);
        world.coordinate(b, c);
        world.run_for(ms(1000));
        world.connect(a, b).unwrap();
        world.run_for(ms(1000));
        assert_eq!(connections(&world, a), expected, "{:?}", config.role);
    }
}

fn connections(world: &World, node: usize) -> usize {
    let events = world.nodes[node].events.iter();
    events.filter(|(_, event)| matches!(event, Event::Connected { .. })).count()
}

/// The initiator's QUIC handshake ends before the coordinator answers, as where the coordinator is
/// far away.
fn connected_before_the_answer() -> (World, [usize; 3], VirtualConnectionId, Path) {
    let (mut world, a, b, c) = triangle();
    world.set_latency(a, c, ms(2_000));
    world.connect(a, b).unwrap();
    world.run_for(ms(2_100));
    let flow = *world.nodes[a].flows.keys().last().unwrap();
    let path = Path { socket: SOCKET, remote: world.outer(b) };
    world.input(a, |endpoint, now| endpoint.handle_established(flow, path, now));
    (world, [a, b, c], flow, path)
}

#[test]
fn a_connection_that_is_made_before_the_coordinator_answers_is_validated_with_the_answer() {
    let (mut world, [a, b, _], flow, path) = connected_before_the_answer();
    assert_eq!(connections(&world, a), 1);
    let is_probed = |world: &World| world.nodes[a].probes.iter().any(|(_, to)| to.remote == path.remote);
    assert!(!is_probed(&world), "nothing can be validated yet");
    let is_selection = |command: &Command| matches!(command, Command::Select { flow: f, .. } if *f == flow);
    assert!(!world.nodes[a].commands.iter().any(|(_, command)| is_selection(command)));
    world.run_for(ms(3_000));
    let selected = Command::Select { flow, path };
    assert!(world.nodes[a].commands.iter().any(|(_, command)| *command == selected));
    assert_eq!(connections(&world, a), 1, "once");
    assert_eq!(world.nodes[a].endpoint.phase(&world.nodes[b].peer), Some(Phase::Connected));
    let counters = world.nodes[a].endpoint.counters();
    assert_eq!((counters.successes, counters.failures, counters.in_flight), (1, 0, 0));
}

#[test]
fn a_connection_for_which_no_coordinator_ever_answers_is_closed() {
    let (mut world, [a, _, c], flow, _) = connected_before_the_answer();
    for link in world.nodes[a].links.keys().copied().collect::<Vec<_>>() {
        world.input(a, |endpoint, now| endpoint.handle_link_down(link, now));
    }
    assert_eq!(connections(&world, a), 1, "the coordinator is no longer needed for that: {c}");
    world.run_for(ms(20_000));
    assert!(world.nodes[a].commands.iter().any(|(_, command)| *command == Command::Close { flow }));
    let lost = |event: &Event| matches!(event, Event::PathLost { .. });
    assert_eq!(world.nodes[a].events.iter().filter(|(_, event)| lost(event)).count(), 1);
}
