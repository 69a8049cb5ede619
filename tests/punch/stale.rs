//! Dials while the coordinator does not know where a peer is: a NAT has lost its state, or the peer
//! was started again.

use std::{sync::Arc, time::Duration};

use libp2p::swarm::SwarmEvent;
use libp2p_punch::{Behaviour, Event, SessionEvent};
use libp2p_punch_sim::{Gateway, Host, Link, Nat, Ports, World};
use tokio::time::{Instant, sleep, timeout};

use crate::network::{client, coordinator, on_paused_time, registered, run, swarm, until};

/// Creates a host behind a NAT that keeps no ports, so that no peer finds it at its old address.
fn site(world: &World, number: u8) -> (Arc<Gateway>, Arc<Host>) {
    let gateway = world.nat(Nat { ports: Ports::Random, ..Nat::default() }, [198, 51, 100, number]);
    let host = gateway.host([192, 168, number, 2]);
    (gateway, host)
}

/// Waits for the dial to end in a direct connection.
async fn connected(dialer: &mut libp2p::Swarm<Behaviour>) -> Duration {
    let begin = Instant::now();
    until(dialer, |event| match event {
        SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { .. })) => Some(()),
        SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
        _ => None,
    })
    .await;
    begin.elapsed()
}

/// Returns the duration of a dial right after the NAT of the dialer, or of the listener, has lost
/// its state. The loss comes `later` than a minute after the start.
fn after_a_reboot(which: usize, later: Duration) -> Duration {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let sites = [site(&world, 1), site(&world, 2)];
        let mut dialer = swarm(&sites[0].1, 1, client(&address), |punch, _| punch);
        registered(&mut dialer).await;
        let mut listener = swarm(&sites[1].1, 2, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        let listener = run(listener);
        let _ = timeout(Duration::from_secs(60) + later, until(&mut dialer, |_| None::<()>)).await;
        sites[which].0.flush();
        dialer.dial(listener).expect("not dialed yet");
        connected(&mut dialer).await
    })
}

#[test]
fn a_dialer_whose_nat_lost_its_state_is_direct_when_the_coordinator_is_asked_again() {
    for later in [0, 1_000, 2_500, 4_000] {
        let took = after_a_reboot(0, Duration::from_millis(later));
        println!("dialer, {later} ms: {took:?}");
        assert!(took <= Duration::from_millis(1_400), "{later} ms: {took:?}");
    }
}

#[test]
fn a_listener_whose_nat_lost_its_state_is_direct_soon_after_the_coordinator_hears_it_again() {
    for later in [0, 1_000, 2_500, 4_000] {
        let took = after_a_reboot(1, Duration::from_millis(later));
        println!("listener, {later} ms: {took:?}");
        // No packet reaches the host before it sends a keep-alive, every 5 s. The coordinator
        // checks once a second, and is asked once a second.
        assert!(took <= Duration::from_millis(7_200), "{later} ms: {took:?}");
    }
}

#[test]
fn a_listener_that_was_killed_and_started_again_is_found_by_a_dial_in_between() {
    for back in [500, 2_500] {
        on_paused_time(async {
            let world = World::new(1);
            let (_, address) = coordinator(&world);
            let (_, first) = site(&world, 1);
            let mut dialer = swarm(&first, 1, client(&address), |punch, _| punch);
            registered(&mut dialer).await;
            let (gateway, second) = site(&world, 2);
            let mut listener = swarm(&second, 2, client(&address), |punch, _| punch);
            registered(&mut listener).await;
            let listener = run(listener);
            sleep(Duration::from_secs(20)).await;
            // No packet reports its end.
            world.set_link(&gateway, Link { loss: 1.0, ..Link::with_latency(Duration::ZERO) });
            dialer.dial(listener).expect("not dialed yet");
            let (_, third) = site(&world, 3);
            tokio::spawn(async move {
                sleep(Duration::from_millis(back)).await;
                run(swarm(&third, 2, client(&address), |punch, _| punch));
            });
            let took = connected(&mut dialer).await;
            println!("back after {back} ms: {took:?}");
            assert!(took <= Duration::from_millis(back + 1_500), "back after {back} ms: {took:?}");
        });
    }
}
