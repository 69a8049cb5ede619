//! Losses of the network: all back-offs end as soon as there is evidence that the network works
//! again.

use std::time::Duration;

use futures::StreamExt;
use libp2p::{PeerId, Swarm, swarm::SwarmEvent};
use libp2p_punch::{Behaviour, Event, RegistrationEvent};
use libp2p_punch_sim::World;
use tokio::time::{Instant, timeout};

use crate::network::{Site, client, coordinator, on_paused_time, registered, run, swarm, until};

async fn drive(swarm: &mut Swarm<Behaviour>, time: Duration) {
    let _ = timeout(time, until(swarm, |_| None::<()>)).await;
}

/// Returns the time from `begin` to the connection with the peer.
async fn connected(swarm: &mut Swarm<Behaviour>, peer: PeerId, begin: Instant) -> Duration {
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => return begin.elapsed(),
            SwarmEvent::OutgoingConnectionError { peer_id: Some(id), error, .. } if id == peer => {
                panic!("after {:?}: {error}", begin.elapsed())
            }
            _ => {}
        }
    }
}

#[test]
fn a_peer_whose_interface_comes_back_is_registered_and_dials_within_a_second_and_a_half() {
    for offline in [30, 60, 70, 80, 90, 100, 110, 120, 180, 300, 600] {
        for dials in [false, true] {
            on_paused_time(async {
                let world = World::new(1);
                let (_, address) = coordinator(&world);
                let mut other = swarm(&Site::EIM_APDF.host(&world, 2, 0.0), 2, client(&address), |p, _| p);
                registered(&mut other).await;
                let other = run(other);
                let host = Site::EIM_APDF.host(&world, 1, 0.0);
                let mut me = swarm(&host, 1, client(&address), |punch, _| punch);
                registered(&mut me).await;
                drive(&mut me, Duration::from_secs(60)).await;
                host.interface_down([192, 168, 1, 2]);
                drive(&mut me, Duration::from_secs(offline)).await;
                host.interface_up([192, 168, 1, 2]);
                let begin = Instant::now();
                let took = if dials {
                    me.dial(other).expect("not dialed yet");
                    connected(&mut me, other, begin).await
                } else {
                    until(&mut me, |event| {
                        matches!(
                            event,
                            SwarmEvent::Behaviour(Event::Registration(RegistrationEvent::Accepted { .. }))
                        )
                        .then_some(())
                    })
                    .await;
                    begin.elapsed()
                };
                println!("offline {offline} s, dials {dials}: {took:?}");
                assert!(took <= Duration::from_millis(1_500), "offline {offline} s, dials {dials}: {took:?}");
            });
        }
    }
}

#[test]
fn a_dial_that_waits_makes_coordinators_due_although_no_interface_has_changed() {
    for away in [60, 90, 120, 300] {
        on_paused_time(async {
            let world = World::new(1);
            let (c, address) = coordinator(&world);
            let mut other = swarm(&Site::EIM_APDF.host(&world, 2, 0.0), 2, client(&address), |p, _| p);
            registered(&mut other).await;
            let other = run(other);
            let host = Site::EIM_APDF.host(&world, 1, 0.0);
            let mut me = swarm(&host, 1, client(&address), |punch, _| punch);
            registered(&mut me).await;
            drive(&mut me, Duration::from_secs(60)).await;
            world.block(&host, &c);
            drive(&mut me, Duration::from_secs(away)).await;
            world.unblock(&host, &c);
            let begin = Instant::now();
            me.dial(other).expect("not dialed yet");
            let took = connected(&mut me, other, begin).await;
            println!("away {away} s: {took:?}");
            assert!(took <= Duration::from_secs(4), "away {away} s: {took:?}");
        });
    }
}
