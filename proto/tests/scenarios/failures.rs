//! Attempts that fail, in each phase, and what follows.

use std::time::Duration;

use libp2p_punch_proto::{
    VirtualConnectionId,
    command::Command,
    config::Config,
    endpoint::PROBATION,
    event::{FailureReason, Phase},
    wire::frame::{Frame, RejectReason},
};

use crate::{
    harness::{SOCKET, World, at, client, ms},
    sessions::{triangle, triangle_of},
};

#[test]
fn without_a_coordinator_a_dial_waits_a_minute_and_an_upgrade_five_seconds() {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
    let peer = world.nodes[b].peer;
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    world.input(a, |endpoint, now| endpoint.upgrade(peer, now)).unwrap();
    world.run_for(ms(60_000));
    let reason = FailureReason::NoCoordinator;
    assert_eq!(world.failed(a), [(ms(60_000), reason), (ms(65_000), reason)]);
    world.assert_nothing_left(a);
    assert_eq!(world.nodes[a].endpoint.poll_timeout(), None);
}

#[test]
fn a_session_waits_in_discovery_for_a_coordinator_to_come_up() {
    let (mut world, a, b, c) = triangle();
    let link = *world.nodes[a].links.keys().next().unwrap();
    world.unlink(a, link);
    world.connect(a, b).unwrap();
    world.run_for(ms(1000));
    assert_eq!(world.nodes[a].endpoint.phase(&world.nodes[b].peer), Some(Phase::Discovery));
    world.link(a, c);
    world.run_for(ms(1000));
    assert_eq!(world.connected(a).len(), 1);
}

/// Every attempt fails for `reason`, each after `each`; checks retries and backoff.
fn assert_retries(world: &World, node: usize, reason: FailureReason, each: Duration, start: Duration) {
    let retries = world.retries(node);
    assert_eq!(retries.len(), 2);
    let mut expected = start;
    for (i, (at, found, delay)) in retries.iter().enumerate() {
        expected += each;
        assert_eq!((*at, *found), (expected, reason));
        let whole = ms(1000 << i);
        assert!(*delay >= whole / 2 && *delay <= whole, "{delay:?}");
        expected += *delay;
    }
    assert_eq!(world.failed(node), [(expected + each, reason)]);
    let counters = world.nodes[node].endpoint.counters();
    assert_eq!((counters.attempts, counters.failures), (3, 3));
    world.assert_nothing_left(node);
}

#[test]
fn a_silent_coordinator_is_given_its_time_in_each_of_three_attempts() {
    let (mut world, a, b, _) = triangle();
    world.tamper = Some(Box::new(|_, _, _| Vec::new()));
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    assert_retries(&world, a, FailureReason::CoordinationTimeout, ms(10_000), start);
}

#[test]
fn a_first_flight_that_never_comes_is_a_time_out_of_its_own() {
    let config = Config { max_attempts: 1, ..client() };
    let (mut world, a, b, _) = triangle_of(&config);
    world.nodes[a].quic_works = false;
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    assert_eq!(world.failed(a), [(start + ms(5000), FailureReason::SynchronizationTimeout)]);
    world.assert_nothing_left(a);
}

#[test]
fn a_peer_with_no_address_to_probe_is_given_up_after_synchronization() {
    let config = Config { max_attempts: 1, ..client() };
    let (mut world, a, b, _) = triangle_of(&config);
    world.blackhole = true;
    // Of the answer the coordinator's observation is lost, and the rest is private.
    world.tamper = Some(Box::new(|_, _, frame| match frame {
        Frame::PunchAnswer(mut answer) => {
            answer.observed = Some(at("10.1.1.1:9"));
            vec![(ms(0), Frame::PunchAnswer(answer))]
        }
        frame => vec![(ms(0), frame)],
    }));
    // B forgets what it was observed at.
    world.input(b, |endpoint, now| endpoint.handle_socket_down(SOCKET, now));
    world.input(b, |endpoint, now| endpoint.handle_socket_up(SOCKET, at("0.0.0.0:4001"), true, now));
    world.run_for(ms(1000));
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    assert_eq!(world.failed(a), [(start + ms(60 + 2000), FailureReason::NoCandidates)]);
    assert!(world.nodes[a].probes.is_empty());
    world.assert_nothing_left(a);
}

#[test]
fn silence_in_punching_is_tried_again_with_backoff_and_then_fails() {
    let (mut world, a, b, _) = triangle();
    world.blackhole = true;
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    assert_retries(&world, a, FailureReason::PunchingTimeout, ms(5060), start);
    // The responder follows every round and has nothing left either.
    assert_eq!(world.nodes[b].endpoint.counters().attempts, 3);
    world.assert_nothing_left(b);
    let rounds = world.nodes[b].commands.iter().filter(|(_, c)| matches!(c, Command::Accept { .. })).count();
    assert_eq!(rounds, 3);
}

#[test]
fn a_handshake_that_does_not_finish_times_out_in_validation() {
    let config = Config { max_attempts: 1, ..client() };
    let (mut world, a, b, _) = triangle_of(&config);
    world.nodes[b].quic_works = false;
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    assert_eq!(world.failed(a), [(start + ms(75 + 5000), FailureReason::ValidationTimeout)]);
    assert_eq!(world.failed(b), [(start + ms(85 + 5000), FailureReason::ValidationTimeout)]);
    for node in [a, b] {
        world.assert_nothing_left(node);
        let closed = world.nodes[node].commands.iter().filter(|(_, c)| matches!(c, Command::Close { .. }));
        assert_eq!(closed.count(), 1);
    }
}

#[test]
fn a_failed_handshake_is_tried_again_with_a_new_flow() {
    let (mut world, a, b, _) = triangle();
    world.connect(a, b).unwrap();
    world.input(a, |endpoint, now| endpoint.handle_closed(VirtualConnectionId(0), now));
    assert_eq!(world.retries(a).len(), 1);
    world.run_for(ms(3000) + PROBATION);
    assert_eq!(world.connected(a).len(), 1);
    assert_eq!(world.connected(b).len(), 1);
    assert_eq!(world.nodes[a].endpoint.session_of(VirtualConnectionId(0)), None);
    assert!(world.nodes[a].endpoint.session_of(VirtualConnectionId(1)).is_some());
    let counters = world.nodes[a].endpoint.counters();
    assert_eq!((counters.attempts, counters.failures, counters.successes), (2, 1, 1));
}

#[test]
fn a_peer_without_a_listener_is_not_willing_and_is_not_asked_again() {
    let (mut world, a, b, _) = triangle();
    world.input(b, |endpoint, now| endpoint.handle_socket_up(SOCKET, at("0.0.0.0:4001"), false, now));
    let start = world.elapsed();
    world.connect(a, b).unwrap();
    world.run_for(ms(60_000));
    let reason = FailureReason::Rejected(RejectReason::NotWilling);
    assert_eq!(world.failed(a), [(start + ms(100), reason)]);
    assert_eq!(world.nodes[b].endpoint.counters().attempts, 0);
    world.assert_nothing_left(a);
}
