//! Sockets that the system takes away from whole swarms.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{Multiaddr, Swarm, swarm::SwarmEvent};
use libp2p_punch::{Behaviour, Event, SessionEvent};
use libp2p_punch_proto::nat::MappingBehaviour as Mapping;
use libp2p_punch_sim::{Host, World};
use tokio::time::{Instant, timeout_at};

use crate::network::{Site, client, coordinator, on_paused_time, registered, run, swarm, until};

/// Time in which a client must know its NAT.
const ENOUGH: Duration = Duration::from_secs(6);
/// Longer than every idle time-out.
const LONG: Duration = Duration::from_secs(60);

/// Drives a swarm, and returns how often a connection, a listener or an address of it ended.
async fn ends_within(swarm: &mut Swarm<Behaviour>, time: Duration) -> Vec<String> {
    let end = Instant::now() + time;
    let mut ends = Vec::new();
    while let Ok(event) = timeout_at(end, swarm.select_next_some()).await {
        let is_end = matches!(
            event,
            SwarmEvent::ConnectionClosed { .. }
                | SwarmEvent::ListenerClosed { .. }
                | SwarmEvent::ExpiredListenAddr { .. }
                | SwarmEvent::OutgoingConnectionError { .. }
        );
        if is_end {
            ends.push(format!("{event:?}"));
        }
    }
    ends
}

/// Returns the mapping of a newcomer's NAT, as the further ports of the coordinator show it.
async fn mapping(world: &World, number: u8, coordinator: &Multiaddr) -> Option<Mapping> {
    let host = Site::APDM_RANDOM.host(world, number, 0.0);
    let mut newcomer = swarm(&host, number, client(coordinator), |punch, _| punch);
    registered(&mut newcomer).await;
    ends_within(&mut newcomer, ENOUGH).await;
    newcomer.behaviour().nat_report().mapping.as_ref().map(|finding| finding.value)
}

#[test]
fn sockets_that_die_everywhere_cost_no_connection_and_no_coordinator() {
    on_paused_time(async {
        let world = World::new(1);
        let (coordinator, address) = coordinator(&world);
        let hosts: [Arc<Host>; 2] = [1, 2].map(|number| Site::EIM_APDF.host(&world, number, 0.0));
        let mut listener = swarm(&hosts[1], 2, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        let peer = run(listener);
        let mut dialer = swarm(&hosts[0], 1, client(&address), |punch, _| punch);
        registered(&mut dialer).await;
        assert_eq!(ends_within(&mut dialer, ENOUGH).await, [""; 0]);

        assert_eq!(mapping(&world, 3, &address).await, Some(Mapping::AddressAndPortDependent));

        assert!(coordinator.kill_sockets() > 1, "its further ports are sockets, too");
        hosts.iter().for_each(|host| assert!(host.kill_sockets() > 0));
        assert_eq!(ends_within(&mut dialer, LONG).await, [""; 0]);
        let report = dialer.behaviour().nat_report().clone();
        assert!(report.mapping_lifetime.is_none(), "the NAT forgot nothing: {report:?}");

        // The coordinator still introduces peers.
        dialer.dial(peer).unwrap();
        let direct = until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => {
                Some(!endpoint.is_relayed())
            }
            SwarmEvent::Behaviour(Event::Session(SessionEvent::Failed { reason, .. })) => panic!("{reason}"),
            _ => None,
        })
        .await;
        assert!(direct);
        // And its further ports still observe.
        assert_eq!(mapping(&world, 4, &address).await, Some(Mapping::AddressAndPortDependent));

        // A connection that a session made outlives its sockets.
        hosts.iter().for_each(|host| assert!(host.kill_sockets() > 0));
        assert_eq!(ends_within(&mut dialer, LONG).await, [""; 0]);
        assert!(dialer.is_connected(&peer));
    });
}
