//! Peers that are not there yet when they are dialed.

use std::time::Duration;

use libp2p::swarm::SwarmEvent;
use libp2p_punch::{Event, SessionEvent};
use libp2p_punch_proto::{event::FailureReason, wire::frame::RejectReason};
use libp2p_punch_sim::World;
use tokio::time::{Instant, sleep};

use crate::network::{Site, client, coordinator, on_paused_time, registered, run, swarm, until};

#[test]
fn a_peer_that_starts_seconds_after_the_dial_is_connected_directly_by_that_dial() {
    for late in [500, 3_000, 8_000] {
        on_paused_time(async {
            let world = World::new(1);
            let (_, address) = coordinator(&world);
            let mut dialer =
                swarm(&Site::EIM_APDF.host(&world, 1, 0.0), 1, client(&address), |punch, _| punch);
            registered(&mut dialer).await;
            let host = Site::EIM_APDF.host(&world, 2, 0.0);
            let listener = crate::network::keypair(2).public().to_peer_id();
            dialer.dial(listener).expect("not dialed yet");
            let begin = Instant::now();
            let config = client(&address);
            tokio::spawn(async move {
                sleep(Duration::from_millis(late)).await;
                run(swarm(&host, 2, config, |punch, _| punch));
            });
            until(&mut dialer, |event| match event {
                SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { .. })) => Some(()),
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{late} ms late: {error}"),
                SwarmEvent::Behaviour(Event::Session(SessionEvent::Retry { reason, .. })) => {
                    assert_eq!(reason, FailureReason::Rejected(RejectReason::NotConnected));
                    None
                }
                _ => None,
            })
            .await;
            let took = begin.elapsed() - Duration::from_millis(late);
            println!("{late} ms late: {took:?}");
            assert!(took <= Duration::from_millis(1_500), "{late} ms late: {took:?}");
        });
    }
}

#[test]
fn two_programs_that_dial_each_other_as_they_start_are_connected() {
    for seed in 0..40 {
        on_paused_time(async {
            let world = World::new(seed);
            let (_, address) = coordinator(&world);
            let mut swarms = [1, 2].map(|number| {
                let host = Site::EIM_APDF.host(&world, number, 0.0);
                swarm(&host, number, client(&address), |punch, _| punch)
            });
            let [first, second] = &mut swarms;
            let peers = [*first.local_peer_id(), *second.local_peer_id()];
            let connected = |event| match event {
                SwarmEvent::ConnectionEstablished { peer_id, .. } if peers.contains(&peer_id) => Some(()),
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{seed}: {error}"),
                _ => None,
            };
            first.dial(peers[1]).expect("not dialed yet");
            let other = async {
                sleep(Duration::from_millis(seed * 5)).await;
                second.dial(peers[0]).expect("not dialed yet");
                until(second, connected).await;
            };
            tokio::join!(until(first, connected), other);
        });
    }
}
