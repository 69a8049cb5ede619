//! Connected sessions one of whose peers gets another address, with a NAT that filters by address
//! and port before each.

use std::{net::SocketAddr, time::Duration};

use libp2p_punch_proto::{
    ControlStreamId, VirtualConnectionId,
    command::Command,
    event::Phase,
    wire::frame::{Frame, PunchMoved},
};

use crate::{
    harness::{SOCKET, World, at, ms},
    sessions::triangle,
};

const BEFORE: &str = "203.0.113.2:4001";
const AFTER: &str = "203.0.113.99:4001";
const VICTIM: &str = "192.0.2.66:6";

/// A and B are connected, and C knows both.
fn connected() -> (World, usize, usize, usize) {
    let (mut world, a, b, c) = triangle();
    world.connect(a, b).unwrap();
    world.run_for(ms(10_000));
    (world, a, b, c)
}

/// The end of the control stream between two peers that belongs to the first.
fn link(world: &World, at: usize, to: usize) -> ControlStreamId {
    let mut links = world.nodes[at].links.iter();
    *links.find(|(_, (other, _))| *other == to).unwrap().0
}

/// B goes behind another NAT, and half a round trip later C sees it there.
fn move_b(world: &mut World, b: usize, c: usize) {
    world.move_behind(b, "203.0.113.99");
    world.input(b, |endpoint, now| endpoint.handle_interface_up("10.9.9.9".parse().unwrap(), 24, now));
    world.run_for(ms(20));
    let (peer, link) = (world.nodes[b].peer, link(world, c, b));
    world.input(c, |endpoint, now| endpoint.handle_link_up(link, peer, Some(at(AFTER)), Some(SOCKET), now));
}

/// The paths that A has selected.
fn selected(world: &World, a: usize) -> Vec<SocketAddr> {
    let select = |(_, command): &(Duration, Command)| match command {
        Command::Select { path, .. } => Some(path.remote),
        _ => None,
    };
    world.nodes[a].commands.iter().filter_map(select).collect()
}

#[test]
fn the_other_peer_follows_with_a_coordinators_help() {
    let (mut world, a, b, c) = connected();
    move_b(&mut world, b, c);
    world.run_for(ms(200));
    assert_eq!(selected(&world, a), [at(BEFORE), at(AFTER)]);
    world.run_for(ms(10_000));
    for (node, other) in [(a, b), (b, a)] {
        assert_eq!(world.nodes[node].endpoint.phase(&world.nodes[other].peer), Some(Phase::Connected));
    }
}

#[test]
fn without_a_coordinator_the_other_peer_hears_nothing_of_it() {
    let (mut world, a, b, c) = connected();
    world.tamper = Some(Box::new(|_, _, frame| match frame {
        Frame::PunchMoved(_) => vec![],
        other => vec![(Duration::ZERO, other)],
    }));
    move_b(&mut world, b, c);
    world.run_for(ms(10_000));
    assert_eq!(selected(&world, a), [at(BEFORE)]);
}

#[test]
fn nobody_is_told_of_a_new_address_as_long_as_the_path_works() {
    let (mut world, _, b, c) = connected();
    let before = world.nodes[c].endpoint.counters().requests_forwarded;
    let (peer, link) = (world.nodes[b].peer, link(&world, c, b));
    world.input(c, |endpoint, now| endpoint.handle_link_up(link, peer, Some(at(AFTER)), Some(SOCKET), now));
    world.run_for(ms(1_000));
    assert_eq!(world.nodes[c].endpoint.counters().requests_forwarded, before);
}

/// Returns the PUNCH_MOVED of B, as A would get it.
fn said(world: &mut World, b: usize, c: usize) -> PunchMoved {
    let (sender, receiver) = std::sync::mpsc::channel();
    world.tamper = Some(Box::new(move |_, _, frame| match frame {
        Frame::PunchMoved(moved) => {
            // Nobody waits for what is said later.
            let _ = sender.send(*moved);
            vec![]
        }
        other => vec![(Duration::ZERO, other)],
    }));
    move_b(world, b, c);
    world.run_for(ms(200));
    let moved = receiver.try_recv().unwrap();
    PunchMoved { peer: world.nodes[b].peer, ..moved }
}

#[test]
fn a_coordinator_that_says_where_a_peer_moved_is_not_believed() {
    let (mut world, a, b, c) = connected();
    let mut moved = said(&mut world, b, c);
    moved.candidates[0].address = at(VICTIM);
    let (link, refused) = (link(&world, a, c), world.nodes[a].endpoint.counters().frames_refused);
    world.input(a, |endpoint, now| endpoint.handle_frame(link, Frame::PunchMoved(Box::new(moved)), now));
    world.run_for(ms(10_000));
    assert_eq!(world.nodes[a].endpoint.counters().frames_refused, refused + 1);
    assert!(world.nodes[a].probes.iter().all(|(_, path)| path.remote != at(VICTIM)));
}

#[test]
fn saying_it_again_and_again_costs_no_more_probes_than_saying_it_once() {
    let (mut world, a, b, c) = connected();
    let moved = said(&mut world, b, c);
    world.blackhole = true;
    let (link, before) = (link(&world, a, c), world.nodes[a].probes.len());
    for _ in 0..100 {
        let frame = Frame::PunchMoved(Box::new(moved.clone()));
        world.input(a, |endpoint, now| endpoint.handle_frame(link, frame, now));
        world.run_for(ms(10));
    }
    world.run_for(ms(10_000));
    let sent = world.nodes[a].probes[before..].len();
    let most = 9 * (moved.candidates.len() + 1);
    assert!((1..=most).contains(&sent), "{sent} probes, {most} at most");
}

/// Returns the virtual connection of A's session.
fn flow(world: &World, a: usize) -> VirtualConnectionId {
    let connect = |(_, command): &(Duration, Command)| match command {
        Command::Connect { flow, .. } => Some(*flow),
        _ => None,
    };
    world.nodes[a].commands.iter().find_map(connect).unwrap()
}

#[test]
fn a_session_that_hears_nothing_probes_its_path_and_shows_its_coordinator_where_it_is() {
    let (mut world, a, b, c) = connected();
    let (flow, before) = (flow(&world, a), world.nodes[a].probes.len());
    let registered = std::rc::Rc::new(std::cell::Cell::new(0));
    let (seen, told) = (registered.clone(), std::rc::Rc::new(std::cell::Cell::new(0)));
    let moved = told.clone();
    world.tamper = Some(Box::new(move |from, to, frame| {
        match &frame {
            Frame::Register { .. } if (from, to) == (a, c) => seen.set(seen.get() + 1),
            Frame::PunchMoved(_) if (from, to) == (a, c) => moved.set(moved.get() + 1),
            _ => {}
        }
        vec![(Duration::ZERO, frame)]
    }));
    world.input(a, |endpoint, now| endpoint.handle_silent(flow, now));
    world.run_for(ms(1_000));
    let probed: Vec<_> = world.nodes[a].probes[before..].iter().map(|(_, path)| path.remote).collect();
    assert!(probed.contains(&at(BEFORE)) && probed.len() <= 18, "{probed:?}");
    assert_eq!((registered.get(), told.get()), (1, 0), "the peer answered, and need not be told");
    world.blackhole = true;
    world.input(a, |endpoint, now| endpoint.handle_silent(flow, now));
    world.run_for(ms(1_000));
    assert_eq!((registered.get(), told.get()), (2, 1));
    for _ in 0..60 {
        world.input(a, |endpoint, now| endpoint.handle_silent(flow, now));
        world.run_for(ms(1_000));
    }
    assert!(registered.get() <= 6, "{} registrations in a minute", registered.get());
    assert_eq!(world.nodes[b].endpoint.phase(&world.nodes[a].peer), Some(Phase::Connected));
    let nobody = VirtualConnectionId(77);
    let before = world.nodes[a].probes.len();
    world.input(a, |endpoint, now| endpoint.handle_silent(nobody, now));
    assert_eq!(world.nodes[a].probes.len(), before);
}
