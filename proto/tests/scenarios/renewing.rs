//! Connected sessions whose NAT gives mappings up, or whose coordinator says so.

use std::net::SocketAddr;

use libp2p_punch_proto::{
    ControlStreamId, SocketId,
    command::{Command, Pool},
    wire::frame::{Frame, ObserverOffer},
};

use crate::{
    harness::{World, at, ms},
    sessions::triangle,
};

const OBSERVER: &str = "198.51.100.1:7001";
const VICTIM: &str = "192.0.2.66:6";

/// A and B are connected, over a control stream of theirs, too; C knows both and observes B. The
/// links of B to C and to A.
fn connected() -> (World, usize, [ControlStreamId; 2]) {
    let (mut world, a, b, c) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(10_000));
    let (_, to_a) = world.link(a, b);
    let link = *world.nodes[b].links.iter().find(|(_, (other, _))| *other == c).unwrap().0;
    let offer = ObserverOffer { ports: vec![at(OBSERVER).port()], token: [1; 8], key: [2; 32] };
    world.input(b, |endpoint, now| endpoint.handle_frame(link, Frame::Observer(offer), now));
    world.run_for(ms(10_000));
    (world, b, [link, to_a])
}

/// Peers see B at another port.
fn see(world: &mut World, b: usize, links: &[ControlStreamId], number: u16) {
    let address = SocketAddr::new(at("203.0.113.2:1").ip(), 5000 + number);
    for link in links {
        let frame = Frame::ObservedAddress { sequence: 100 + u64::from(number), address };
        world.input(b, |endpoint, now| endpoint.handle_frame(*link, frame, now));
    }
}

/// The pools that B wanted for its sessions.
fn pools(world: &World, b: usize) -> Vec<Pool> {
    let pool = |command: &Command| match command {
        Command::OpenSockets { pool: pool @ Pool::Renewal(_), count: 1, .. } => Some(*pool),
        _ => None,
    };
    world.nodes[b].commands.iter().filter_map(|(_, command)| pool(command)).collect()
}

/// Opens what B wanted last, and has C say where it sees that.
fn open(world: &mut World, b: usize, [link, _]: [ControlStreamId; 2], seen: SocketAddr) {
    let (pools, before) = (pools(world, b), world.nodes[b].probes.len());
    let socket = SocketId(7000 + u32::try_from(pools.len()).unwrap());
    let pool = *pools.last().unwrap();
    world.input(b, |endpoint, now| endpoint.handle_sockets_opened(pool, &[(socket, 7000)], now));
    let (_, path) = world.nodes[b].probes[before];
    assert_eq!((path.socket, path.remote), (socket, at(OBSERVER)));
    let data = world.nodes[b].probe[11..19].try_into().unwrap();
    let answer = Frame::ProbeObserved { data, address: seen };
    world.input(b, |endpoint, now| endpoint.handle_frame(link, answer, now));
}

#[test]
fn a_session_moves_once_before_the_mapping_it_uses_is_as_old_as_one_that_was_given_up() {
    let (mut world, b, links) = connected();
    world.run_for(ms(30_000));
    see(&mut world, b, &links, 1);
    // What was given up stood for 51 s.
    world.run_for(ms(25_000));
    assert_eq!(pools(&world, b), []);
    world.run_for(ms(7_000));
    assert_eq!(pools(&world, b), [Pool::Renewal(1)]);
}

#[test]
fn nothing_is_opened_as_long_as_no_mapping_in_use_was_given_up() {
    let (mut world, b, _) = connected();
    world.run_for(ms(600_000));
    assert_eq!(pools(&world, b), []);
}

#[test]
fn one_peer_that_sees_us_elsewhere_while_another_does_not_makes_nothing_move() {
    let (mut world, b, links) = connected();
    world.run_for(ms(30_000));
    see(&mut world, b, &links[..1], 1);
    world.run_for(ms(600_000));
    assert_eq!(pools(&world, b), []);
}

#[test]
fn an_observer_that_sees_our_new_socket_at_another_host_is_not_believed() {
    let (mut world, b, links) = connected();
    see(&mut world, b, &links, 1);
    while pools(&world, b).is_empty() {
        world.run_for(ms(100));
    }
    let refused = world.nodes[b].endpoint.counters().frames_refused;
    open(&mut world, b, links, at(VICTIM));
    world.run_for(ms(1_000));
    assert_eq!(world.nodes[b].endpoint.counters().frames_refused, refused + 1);
    assert_eq!(world.nodes[b].endpoint.counters().renewals, 0);
    assert!(world.nodes.iter().all(|node| node.probes.iter().all(|(_, path)| path.remote != at(VICTIM))));
}

#[test]
fn peers_that_see_us_elsewhere_every_second_make_nothing_move() {
    let (mut world, b, links) = connected();
    for number in 1..60 {
        see(&mut world, b, &links, number);
        world.run_for(ms(1_000));
    }
    // No mapping lasted for ten seconds, and the last mapping lasts longer than the earlier ones
    // suggest.
    world.run_for(ms(600_000));
    assert_eq!(pools(&world, b), []);
}

#[test]
fn peers_that_see_us_elsewhere_again_and_again_cost_a_socket_in_ten_seconds_and_a_move_in_five_at_most() {
    let (mut world, b, links) = connected();
    let mut opened = 0;
    for second in 0..600u16 {
        if second % 15 == 0 {
            see(&mut world, b, &links, second);
        }
        world.run_for(ms(1_000));
        if pools(&world, b).len() > opened {
            opened += 1;
            open(&mut world, b, links, SocketAddr::new(at("203.0.113.2:1").ip(), 10_000 + second));
        }
    }
    let moves = world.nodes[b].endpoint.counters().renewals;
    assert!((30..=60).contains(&opened) && (30..=120).contains(&moves), "{opened} sockets, {moves} moves");
}

#[test]
fn the_socket_of_sessions_that_moved_is_closed_when_the_last_session_ends() {
    let (mut world, b, links) = connected();
    see(&mut world, b, &links, 1);
    while pools(&world, b).is_empty() {
        world.run_for(ms(100));
    }
    open(&mut world, b, links, at("203.0.113.2:7777"));
    world.run_for(ms(5_000));
    assert_eq!(world.nodes[b].endpoint.counters().renewals, 1);
    let closed = |world: &World| {
        let closes = |command: &Command| matches!(command, Command::CloseSockets { pool: Pool::Renewal(1), keep } if keep.is_empty());
        world.nodes[b].commands.iter().any(|(_, command)| closes(command))
    };
    assert!(!closed(&world), "a session uses it");
    let flows: Vec<_> = world.nodes[b].flows.keys().copied().collect();
    for flow in flows {
        world.input(b, |endpoint, now| endpoint.handle_closed(flow, now));
    }
    world.run_for(ms(10_000));
    assert!(closed(&world), "nothing uses it");
}
