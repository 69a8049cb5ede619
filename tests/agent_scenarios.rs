//! Sessions between agents, from the wish to connect to the connection or the failure.

mod harness;

use harness::{World, client, ms, server};
use libp2p_punch::core::event::{Phase, SessionRole};

/// A, B behind NATs, C coordinates. A-C 60 ms, B-C 40 ms, A-B 50 ms.
fn triangle() -> (World, usize, usize, usize) {
    let mut world = World::new();
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
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
}
