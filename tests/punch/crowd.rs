//! Many sessions at once.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use libp2p::{Swarm, swarm::SwarmEvent};
use libp2p_punch::{Behaviour, Event, SessionEvent};
use libp2p_punch_proto::endpoint::PROBATION;
use libp2p_punch_sim::World;
use tokio::time::{Instant, timeout};

use crate::network::{Site, client, coordinator, on_paused_time, registered, run, swarm, until};

/// Number of dialers behind NATs, and of listeners; each dialer dials each listener.
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
                    SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { elapsed, .. })) => {
                        assert!(elapsed < Duration::from_secs(1), "a session took {elapsed:?}");
                        Some(1)
                    }
                    SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                    _ => None,
                })
                .await;
            }
            // A connection counts once no swarm can deny it any more.
            let never = until(&mut dialer, |_| None::<()>);
            assert!(timeout(2 * PROBATION, never).await.is_err());
            let counters = dialer.behaviour().counters().protocol;
            assert_eq!(counters.attempts, counters.successes, "{counters:?}");
            connected
        });
        all.collect::<FuturesUnordered<_>>().collect::<Vec<_>>().await.iter().sum::<usize>()
    });
    assert_eq!(sessions, usize::from(SIDE).pow(2));
}

/// Number of dials beyond the frames that wait for a control stream, and within the burst that a
/// coordinator forwards.
const HUNDRED: u8 = 100;

#[test]
fn one_peer_reaches_a_hundred_others_at_once() {
    on_paused_time(async {
        let world = World::new(2);
        let (_, address) = coordinator(&world);
        let mut listeners = Vec::new();
        for number in 1..=HUNDRED {
            let host = Site::Public.host(&world, number, 0.0);
            let mut swarm = swarm(&host, number, client(&address), |punch, _| punch);
            registered(&mut swarm).await;
            listeners.push(run(swarm));
        }
        let host = Site::EIM_APDF.host(&world, HUNDRED + 1, 0.0);
        let mut dialer = swarm(&host, HUNDRED + 1, client(&address), |punch, _| punch);
        registered(&mut dialer).await;
        for peer in &listeners {
            dialer.dial(*peer).expect("not dialed yet");
        }
        for _ in &listeners {
            connected(&mut dialer).await;
        }
    });
}

#[test]
fn a_hundred_peers_reach_one_at_once() {
    on_paused_time(async {
        let world = World::new(3);
        let (_, address) = coordinator(&world);
        let host = Site::EIM_APDF.host(&world, HUNDRED + 1, 0.0);
        let mut listener = swarm(&host, HUNDRED + 1, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        let listener = run(listener);
        let mut dialers = Vec::new();
        for number in 1..=HUNDRED {
            let host = Site::Public.host(&world, number, 0.0);
            let mut swarm = swarm(&host, number, client(&address), |punch, _| punch);
            registered(&mut swarm).await;
            dialers.push(swarm);
        }
        let all = dialers.into_iter().map(|mut dialer| async move {
            dialer.dial(listener).expect("not dialed yet");
            connected(&mut dialer).await;
        });
        assert_eq!(all.collect::<FuturesUnordered<_>>().count().await, usize::from(HUNDRED));
    });
}

/// Waits for the next session to connect, at its first attempt.
async fn connected(dialer: &mut Swarm<Behaviour>) {
    until(dialer, |event| match event {
        SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { .. })) => Some(()),
        SwarmEvent::Behaviour(Event::Session(SessionEvent::Retry { reason, .. })) => {
            panic!("another attempt was needed: {reason}")
        }
        SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
        _ => None,
    })
    .await;
}

/// Number of dials beyond the searches of one peer at a time.
const TWENTY: u8 = 20;

/// Each needs 256 sockets of the listener, which has room for two at a time.
#[test]
fn twenty_that_need_a_search_of_the_same_peer_have_their_turns_and_end_direct() {
    on_paused_time(async {
        let world = World::new(4);
        let (_, address) = coordinator(&world);
        let host = Site::APDM_RANDOM.host(&world, TWENTY + 1, 0.0);
        let mut listener = swarm(&host, TWENTY + 1, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        // Until its NAT is measured.
        let _ = timeout(Duration::from_secs(5), until(&mut listener, |_| None::<()>)).await;
        let listener = run(listener);
        let mut dialers = Vec::new();
        for number in 1..=TWENTY {
            let host = Site::EIM_APDF.host(&world, number, 0.0);
            let mut swarm = swarm(&host, number, client(&address), |punch, _| punch);
            registered(&mut swarm).await;
            dialers.push(swarm);
        }
        let all = dialers.into_iter().map(|mut dialer| async move {
            let begin = Instant::now();
            dialer.dial(listener).expect("not dialed yet");
            // A dial that waits for long needs another attempt: its QUIC handshake has a time-out.
            until(&mut dialer, |event| match event {
                SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { .. })) => Some(()),
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                _ => None,
            })
            .await;
            begin.elapsed()
        });
        let mut times = all.collect::<FuturesUnordered<_>>().collect::<Vec<_>>().await;
        times.sort();
        println!("{times:?}");
        assert_eq!(times.len(), usize::from(TWENTY));
    });
}
