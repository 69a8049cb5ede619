//! Which pairs of NATs end in a direct connection.

use std::time::Duration;

use libp2p::{core::ConnectedPoint, swarm::SwarmEvent};
use libp2p_punch::Event;
use libp2p_punch_sim::World;
use tokio::time::Instant;

use crate::network::{Site, client, coordinator, run, swarm, until};

/// Dials from `a` to `b` with 25 ms one way between any two; how long that took, or why it failed.
async fn dial(a: Site, b: Site, loss: f64, seed: u64) -> Result<Duration, String> {
    let world = World::new(seed);
    let (c, address) = coordinator(&world);
    let (host_a, host_b) = (a.host(&world, 1, loss), b.host(&world, 2, loss));
    for (x, y) in [(&host_a, &host_b), (&host_a, &c), (&host_b, &c)] {
        world.set_path(x, y, Duration::from_millis(25));
    }
    let mut dialer = swarm(&host_a, 1, client(&address), |punch, _| punch);
    let mut listener = swarm(&host_b, 2, client(&address), |punch, _| punch);
    until(&mut listener, |event| {
        matches!(event, SwarmEvent::Behaviour(Event::Registered { .. })).then_some(())
    })
    .await;
    let peer = run(listener);
    until(&mut dialer, |event| {
        matches!(event, SwarmEvent::Behaviour(Event::Registered { .. })).then_some(())
    })
    .await;
    let begin = Instant::now();
    dialer.dial(peer).expect("the peer is not dialed yet");
    until(&mut dialer, |event| match event {
        SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => {
            let direct = matches!(&endpoint, ConnectedPoint::Dialer { .. } if !endpoint.is_relayed());
            Some(if direct { Ok(begin.elapsed()) } else { Err(format!("{endpoint:?}")) })
        }
        SwarmEvent::OutgoingConnectionError { error, .. } => Some(Err(error.to_string())),
        _ => None,
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn two_peers_behind_nats_with_endpoint_independent_mapping_get_a_direct_connection() {
    let elapsed = dial(Site::EIM_APDF, Site::EIM_APDF, 0.0, 1).await.expect("direct");
    println!("{elapsed:?}");
}
