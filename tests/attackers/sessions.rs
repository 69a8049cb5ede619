//! Places that sessions which are over keep from new ones.

use tokio::time::Instant;

use crate::support::*;

/// More than the 8 virtual connections that take packets from one address at one socket, within the
/// time that a virtual connection lingers.
const SESSIONS: usize = 11;
/// Duration of a dial here: one and a half round trips.
const DIAL: Duration = Duration::from_millis(65);

#[tokio::test(start_paused = true)]
async fn sessions_that_follow_each_other_do_not_wait_for_the_places_of_those_that_ended() {
    let world = World::new(1);
    let coordinator = coordinator(&world);
    let [mut dialer, mut responder] = [2, 3].map(|n| {
        let host = world.public_host([203, 0, 113, n]);
        swarm(host, n, {
            let mut config = Config::default();
            config.coordinators = vec![coordinator.clone()];
            config
        })
    });
    registered(&mut responder).await;
    registered(&mut dialer).await;
    let peer = run(responder);
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    for _ in 0..SESSIONS {
        let dialed = Instant::now();
        dialer.dial(peer).unwrap();
        until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => Some(()),
            SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
            _ => None,
        })
        .await;
        longest = longest.max(dialed.elapsed());
        dialer.disconnect_peer_id(peer).unwrap();
        until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionClosed { peer_id, .. } if peer_id == peer => Some(()),
            _ => None,
        })
        .await;
    }
    let refused = dialer.behaviour().counters().paths.paths_refused;
    println!(
        "{SESSIONS} sessions in {:?}: the longest dial took {longest:?}, {refused} paths were refused",
        start.elapsed()
    );
    assert_eq!(refused, 0);
    assert!(longest <= DIAL, "{longest:?}");
}
