//! Messages of peers that are played again later.

use std::{cell::RefCell, rc::Rc, time::Duration};

use libp2p_punch_proto::{
    ControlStreamId,
    wire::frame::{Frame, PunchMoved},
};

use crate::harness::{SOCKET, World, at, client, ms, server};

/// Returns the control stream of a node to another node.
fn link(world: &World, node: usize, to: usize) -> ControlStreamId {
    let mut links = world.nodes[node].links.iter();
    *links.find(|(_, (other, _))| *other == to).unwrap().0
}

/// The peer goes behind another NAT, and its coordinator sees it there.
fn move_behind(world: &mut World, peer: usize, coordinator: usize, number: u8) {
    let outer = format!("203.0.113.{number}");
    world.move_behind(peer, &outer);
    let inner = [10, 9, 9, number].into();
    world.input(peer, |endpoint, now| endpoint.handle_interface_up(inner, 24, now));
    world.run_for(ms(20));
    let (id, link) = (world.nodes[peer].peer, link(world, coordinator, peer));
    let outer = at(&format!("{outer}:4001"));
    world.input(coordinator, |endpoint, now| {
        endpoint.handle_link_up(link, id, Some(outer), Some(SOCKET), now)
    });
}

#[test]
fn a_word_of_ten_minutes_ago_that_a_peer_moved_leads_to_no_probe() {
    let mut world = World::new();
    let coordinator = world.add(&server(), "198.51.100.1", None);
    let listener = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let mover = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
    for node in [listener, mover] {
        world.coordinate(node, coordinator);
    }
    world.run_for(ms(1_000));
    world.connect(mover, listener).unwrap();
    world.run_for(ms(5_000));
    let kept: Rc<RefCell<Vec<PunchMoved>>> = Rc::default();
    let all = kept.clone();
    world.tamper = Some(Box::new(move |from, to, frame| {
        if let Frame::PunchMoved(moved) = &frame
            && (from, to) == (coordinator, listener)
        {
            all.borrow_mut().push((**moved).clone());
        }
        vec![(Duration::ZERO, frame)]
    }));
    move_behind(&mut world, mover, coordinator, 50);
    world.run_for(ms(10_000));
    move_behind(&mut world, mover, coordinator, 60);
    world.run_for(ms(600_000));
    let old = kept.borrow()[0].clone();
    let abandoned = at("203.0.113.50:4001");
    assert!(old.candidates.iter().any(|candidate| candidate.address == abandoned), "{old:?}");
    let before = world.nodes[listener].probes.len();
    let link = link(&world, listener, coordinator);
    for _ in 0..60 {
        let again = Frame::PunchMoved(Box::new(old.clone()));
        world.input(listener, |endpoint, now| endpoint.handle_frame(link, again, now));
        world.run_for(ms(1_000));
    }
    let probes = &world.nodes[listener].probes[before..];
    let stale = probes.iter().filter(|(_, path)| path.remote == abandoned).count();
    println!("{stale} probes at an address that the peer has left, {} in all, in 60 s", probes.len());
    assert_eq!(stale, 0);
    assert_eq!(probes.len(), 0);
}
