//! Many sessions at once.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use libp2p::swarm::SwarmEvent;
use libp2p_punch::Event;
use libp2p_punch_sim::World;

use crate::network::{Site, client, coordinator, on_paused_time, registered, run, swarm, until};

/// Peers behind NATs that dial, and as many that are dialed; each of the one dials each of the other.
const SIDE: u8 = 32;

#[test]
fn a_thousand_sessions_at_once_all_end_direct() {
    let sessions = on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let mut listeners = Vec::new();
        let mut dialers = Vec::new();
        for number in 1..=2 * SIDE {
            let host = Site::EIM_APDF.host(&world, number, 0.0);
            let mut swarm = swarm(&host, number, client(&address), |punch, _| punch);
            registered(&mut swarm).await;
            match number <= SIDE {
                true => listeners.push(run(swarm)),
                false => dialers.push(swarm),
            }
        }
        let listeners = &listeners;
        let all = dialers.into_iter().map(|mut dialer| async move {
            for peer in listeners {
                dialer.dial(*peer).expect("not dialed yet");
            }
            let mut connected = 0;
            while connected < listeners.len() {
                connected += until(&mut dialer, |event| match event {
                    SwarmEvent::Behaviour(Event::Connected { elapsed, .. }) => {
                        assert!(elapsed < Duration::from_secs(1), "a session took {elapsed:?}");
                        Some(1)
                    }
                    SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                    _ => None,
                })
                .await;
            }
            let counters = dialer.behaviour().counters();
            assert_eq!(counters.attempts, counters.successes, "{counters:?}");
            connected
        });
        all.collect::<FuturesUnordered<_>>().collect::<Vec<_>>().await.iter().sum::<usize>()
    });
    assert_eq!(sessions, usize::from(SIDE).pow(2));
}
