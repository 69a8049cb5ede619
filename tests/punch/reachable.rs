//! Confirmed addresses that make a peer reachable.

use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p_punch::{Config, Event, RelayEvent, Role};
use libp2p_punch_sim::World;
use tokio::time::sleep;

use crate::{
    network::{Site, client, on_paused_time, registered, run, swarm},
    relaying::{Seen, peer, relay, reserved, watch},
};

const MINUTE: Duration = Duration::from_secs(60);

/// Addresses at which no peer on the Internet reaches a QUIC listener.
const NOT_REACHABLE: [&str; 9] = [
    "/ip4/192.168.1.2/udp/4001/quic-v1",
    "/ip4/10.0.0.7/udp/4001/quic-v1",
    "/ip4/127.0.0.1/udp/4001/quic-v1",
    "/ip4/100.64.1.1/udp/4001/quic-v1",
    "/ip6/fe80::1/udp/4001/quic-v1",
    "/ip6/fd00::1/udp/4001/quic-v1",
    "/ip4/198.51.100.1/tcp/4001",
    "/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5",
    "",
];

#[test]
fn an_address_that_the_internet_does_not_reach_ends_no_reservation() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relay(&world, 254);
        let mut swarm = peer(&world, Site::APDM_RANDOM, 1, client(&address));
        let relay = reserved(&mut swarm).await;
        for confirmed in NOT_REACHABLE {
            swarm.add_external_address(confirmed.parse().expect("valid"));
        }
        let own = *swarm.local_peer_id();
        let seen = watch(&mut swarm, own, MINUTE).await;
        let is_end = |seen: &Seen| matches!(seen, Seen::Punch(Event::Relay(RelayEvent::Unreserved { relay: ended, .. })) if *ended == relay);
        assert!(!seen.iter().any(is_end), "{seen:#?}");
        assert!(swarm.listeners().any(|address| address.iter().any(|part| part == Protocol::P2pCircuit)));
    });
}

/// Returns true if a peer at the public address 203.0.113.1 coordinates once this address is
/// confirmed.
fn coordinates_at(confirmed: &'static str) -> bool {
    on_paused_time(async move {
        let world = World::new(1);
        let mut config = Config::default();
        config.role = Role::Auto;
        let mut coordinator = swarm(&Site::Public.host(&world, 1, 0.0), 1, config, |punch, _| punch);
        coordinator.add_external_address(confirmed.parse().expect("valid"));
        let peer = run(coordinator);
        let address = format!("/ip4/203.0.113.1/udp/4001/quic-v1/p2p/{peer}").parse().expect("valid");
        let mut client = swarm(&Site::EIM_APDF.host(&world, 2, 0.0), 2, client(&address), |punch, _| punch);
        tokio::select! {
            () = registered(&mut client) => true,
            () = sleep(MINUTE) => false,
        }
    })
}

#[test]
fn only_an_address_that_the_internet_reaches_makes_a_coordinator() {
    assert!(coordinates_at("/ip4/203.0.113.1/udp/4001/quic-v1"));
    for confirmed in ["/ip4/192.168.1.2/udp/4001/quic-v1", "/ip4/203.0.113.1/tcp/4001", ""] {
        assert!(!coordinates_at(confirmed), "{confirmed}");
    }
}
