//! Limits of the configuration, for every way in which a connection comes about.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::support::*;

const LIMIT: u32 = 3;
const DIALERS: u8 = 7;

/// The connections of a victim with this configuration after [`DIALERS`] have dialed it by
/// sessions, and the number of sessions that were established.
async fn connections_by_sessions(quic: QuicConfig, address_of: impl Fn(u8) -> [u8; 4]) -> (usize, usize) {
    let world = World::new(1);
    let coordinator = coordinator(&world);
    // The box lets nothing in that was not asked for, so that no plain dial gets through.
    let host = world.nat(Nat::default(), [192, 0, 2, 2]).host([192, 168, 2, 2]);
    let mut config = Config::default();
    config.coordinators = vec![coordinator.clone()];
    let mut victim = swarm(host, 2, {
        let mut config = config.clone();
        config.quic = quic;
        config
    });
    registered(&mut victim).await;
    let peer = *victim.local_peer_id();
    let (sessions, established) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, ever) = (sessions.clone(), established.clone());
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::ConnectionEstablished { endpoint, .. } = victim.select_next_some().await {
                ever.fetch_add(usize::from(endpoint.is_listener()), Relaxed);
            }
            let counters = victim.network_info();
            now.store(counters.connection_counters().num_established() as usize, Relaxed);
        }
    });
    for n in 10..10 + DIALERS {
        let mut dialer = swarm(world.public_host(address_of(n)), n, config.clone());
        registered(&mut dialer).await;
        dialer.dial(peer).unwrap();
        until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => Some(()),
            SwarmEvent::OutgoingConnectionError { peer_id, .. } if peer_id == Some(peer) => Some(()),
            _ => None,
        })
        .await;
        run(dialer);
    }
    (sessions.load(Relaxed), established.load(Relaxed))
}

#[tokio::test(start_paused = true)]
async fn connections_of_sessions_count_for_the_limit_on_connections() {
    let mut quic = QuicConfig::default();
    quic.max_connections = Some(LIMIT);
    let (connections, ever) = connections_by_sessions(quic, |n| [198, 51, n, 1]).await;
    println!("max_connections is {LIMIT}: {connections} connections, {ever} of them by sessions");
    // One connection is that with the coordinator, which the victim dialed.
    assert_eq!((connections, ever), (LIMIT as usize, LIMIT as usize - 1));
}

#[tokio::test(start_paused = true)]
async fn connections_of_sessions_count_for_the_share_of_a_network() {
    let mut quic = QuicConfig::default();
    quic.max_connections_per_prefix = Some(LIMIT);
    let (connections, ever) = connections_by_sessions(quic, |n| [198, 51, 100, n]).await;
    println!("max_connections_per_prefix is {LIMIT}: {ever} sessions of one /24, {connections} connections");
    assert_eq!(ever, LIMIT as usize);
}
