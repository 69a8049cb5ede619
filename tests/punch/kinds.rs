//! Paths of sessions, as applications and operators see them.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{PeerId, swarm::SwarmEvent};
use libp2p_punch::{
    Event, SessionEvent,
    transport::{ConnectionOrigin, Stats},
};
use libp2p_punch_proto::event::PathKind;
use libp2p_punch_sim::{Host, Nat, World};

use crate::{
    nats::{self, APDM_SEQUENTIAL, observed},
    network::{Site, client, coordinator, on_paused_time, swarm_and_stats, until},
};

/// Reports of one side about its connection with `peer`: by its event, and by its statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    event: Option<PathKind>,
    stats: Option<ConnectionOrigin>,
}

impl Told {
    fn note(&mut self, peer: PeerId, event: SwarmEvent<Event>, stats: &Stats) {
        match event {
            SwarmEvent::Behaviour(Event::Session(SessionEvent::Connected { peer: with, kind, .. }))
                if with == peer =>
            {
                self.event = Some(kind);
            }
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => {
                self.stats = stats.of_peer(&peer).first().map(|stats| stats.through);
            }
            _ => {}
        }
    }

    fn is_complete(&self) -> bool {
        self.event.is_some() && self.stats.is_some()
    }
}

/// Both sides of a connection between two hosts, the dialer's first. `trips` are the round trips of
/// both to the coordinator, and to each other.
async fn between(world: &World, [a, b]: [Arc<Host>; 2], trips: [u64; 3], max_failed: u32) -> [PathKind; 2] {
    let (c, address) = coordinator(world);
    for (x, y, trip) in [(&a, &c, trips[0]), (&b, &c, trips[1]), (&a, &b, trips[2])] {
        world.set_path(x, y, Duration::from_millis(trip) / 2);
    }
    let peer = |host, seed| swarm_and_stats(host, seed, client(&address), |punch, _| punch);
    let (mut listener, listener_stats) = peer(&b, 2);
    observed(&mut listener).await;
    let (mut dialer, dialer_stats) = peer(&a, 1);
    tokio::select! {
        () = observed(&mut dialer) => {}
        () = until(&mut listener, |_| None) => {}
    }
    let [at_a, at_b] = [*dialer.local_peer_id(), *listener.local_peer_id()];
    dialer.dial(at_b).expect("not dialed yet");
    let (mut told, mut failed) = ([Told::default(); 2], 0);
    while !told.iter().all(Told::is_complete) {
        tokio::select! {
            event = dialer.select_next_some() => {
                if let SwarmEvent::OutgoingConnectionError { error, .. } = &event {
                    failed += 1;
                    assert!(failed <= max_failed, "{error}");
                    dialer.dial(at_b).expect("the dial has ended");
                }
                told[0].note(at_b, event, &dialer_stats);
            }
            event = listener.select_next_some() => told[1].note(at_a, event, &listener_stats),
        }
    }
    told.map(|told| {
        let kind = told.event.expect("it is complete");
        assert_eq!(told.stats, Some(ConnectionOrigin::Session(kind)));
        kind
    })
}

const EVEN: [u64; 3] = [50; 3];

fn of_sites(sites: [Site; 2]) -> [PathKind; 2] {
    at_distances(sites, EVEN)
}

fn at_distances(sites: [Site; 2], trips: [u64; 3]) -> [PathKind; 2] {
    on_paused_time(async {
        let world = World::new(1);
        let hosts = [1, 2].map(|n| nats::host(sites[usize::from(n) - 1], &world, n, 0.0, None));
        // One birthday search of 380 meets no open port.
        let max_failed = if sites.contains(&Site::APDM_RANDOM) { 2 } else { 0 };
        between(&world, hosts, trips, max_failed).await
    })
}

#[test]
fn a_peer_without_a_nat_is_reached_at_an_address_of_its_own() {
    assert_eq!(of_sites([Site::Public, Site::Public]), [PathKind::Host, PathKind::Host]);
    assert_eq!(of_sites([Site::EIM_APDF, Site::Public]), [PathKind::Host, PathKind::ServerReflexive]);
}

#[test]
fn peers_in_one_network_are_reached_at_addresses_of_their_own() {
    let kinds = on_paused_time(async {
        let world = World::new(1);
        let gateway = world.nat(Nat::default(), [198, 51, 100, 1]);
        let hosts = [2, 3].map(|last| gateway.host([192, 168, 1, last]));
        between(&world, hosts, EVEN, 0).await
    });
    assert_eq!(kinds, [PathKind::Host; 2]);
}

#[test]
fn punched_holes_lead_to_where_observers_see_the_peer() {
    for site in [Site::EIM_APDF, Site::EIM_APDF_PORT_NOT_KEPT, Site::NatBehindNat] {
        assert_eq!(of_sites([site, Site::EIM_APDF]), [PathKind::ServerReflexive; 2], "{site:?}");
    }
}

#[test]
fn a_fresh_socket_is_found_where_the_coordinator_sees_it() {
    // The listener's packets arrive before the dialer, which is far from the coordinator, has
    // opened its NAT for them.
    let kinds = at_distances([Site::Bare, Site::EIM_APDF], [200, 20, 40]);
    assert_eq!(kinds, [PathKind::ServerReflexive; 2]);
}

#[test]
fn a_nat_that_maps_anew_for_every_destination_makes_its_peer_peer_reflexive() {
    let kinds = of_sites([Site::APDM_RANDOM, Site::EIM_EIF]);
    assert_eq!(kinds, [PathKind::ServerReflexive, PathKind::PeerReflexive]);
}

#[test]
fn what_a_search_or_a_prediction_found_is_told_as_such_on_both_sides() {
    for (hard, kind) in [(Site::APDM_RANDOM, PathKind::Searched), (APDM_SEQUENTIAL, PathKind::Predicted)] {
        assert_eq!(of_sites([hard, Site::EIM_APDF]), [kind; 2], "{hard:?} dials");
        assert_eq!(of_sites([Site::EIM_APDF, hard]), [kind; 2], "{hard:?} is dialed");
    }
    assert_eq!(of_sites([APDM_SEQUENTIAL; 2]), [PathKind::Predicted; 2]);
}
