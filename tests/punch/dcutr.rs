//! An unmodified libp2p-dcutr on our transport: relayed connections become direct ones.

use std::time::Duration;

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, dcutr, identify,
    multiaddr::Protocol,
    relay,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent},
};
use libp2p_punch::{Behaviour, Config, Event, NatEvent};
use libp2p_punch_sim::World;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    network::{Site, on_paused_time, until},
    relaying::{self, relayed_swarm},
};

/// Time-out that only a failing test reaches, on any machine: the dialer's own time-outs are over
/// long before.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// Time in which a second connection would show.
const AFTER: Duration = Duration::from_secs(1);

/// Behaviours of peers without a coordinator.
#[derive(NetworkBehaviour)]
struct Stock {
    punch: Behaviour,
    relay: relay::client::Behaviour,
    identify: identify::Behaviour,
    dcutr: dcutr::Behaviour,
}

/// Creates a peer that is connected to the relay and knows the address at which the relay sees it.
async fn stock(world: &World, site: Site, number: u8, relay: &Multiaddr) -> Swarm<Stock> {
    let host = site.host(world, number, 0.0);
    let mut swarm = relayed_swarm(&host, number, Config::default(), |punch, relay, keypair| Stock {
        punch,
        relay,
        identify: identify::Behaviour::new(identify::Config::new("/test/1".to_owned(), keypair.public())),
        dcutr: dcutr::Behaviour::new(keypair.public().to_peer_id()),
    });
    swarm.dial(relay.clone()).expect("not dialed yet");
    until(&mut swarm, |event| {
        matches!(event, SwarmEvent::Behaviour(StockEvent::Punch(Event::Nat(NatEvent::Observed { .. }))))
            .then_some(())
    })
    .await;
    swarm
}

/// Open direct connections to `peer`, and the reports of dcutr that it made one.
#[derive(Debug, Default)]
struct Seen {
    direct: Vec<ConnectionId>,
    upgraded: bool,
}

impl Seen {
    fn note(&mut self, peer: PeerId, event: SwarmEvent<StockEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. }
                if peer_id == peer && !endpoint.is_relayed() =>
            {
                self.direct.push(connection_id);
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.direct.retain(|id| *id != connection_id)
            }
            SwarmEvent::Behaviour(StockEvent::Dcutr(dcutr::Event { result, .. })) => {
                self.upgraded |= result.is_ok();
            }
            _ => {}
        }
    }
}

/// Connects two peers behind this kind of NAT over a relay, and waits for the result of dcutr.
async fn upgrade(site: Site) -> [Seen; 2] {
    let world = World::new(1);
    let (_, relay, _) = relaying::relay(&world, 254);
    let mut listener = stock(&world, site, 2, &relay).await;
    listener.listen_on(relay.clone().with(Protocol::P2pCircuit)).expect("the relay client listens");
    until(&mut listener, |event| match event {
        SwarmEvent::NewListenAddr { address, .. } => {
            address.iter().any(|part| part == Protocol::P2pCircuit).then_some(())
        }
        _ => None,
    })
    .await;
    let mut dialer = stock(&world, site, 1, &relay).await;
    let peers = [*dialer.local_peer_id(), *listener.local_peer_id()];
    dialer.dial(relay.with(Protocol::P2pCircuit).with(Protocol::P2p(peers[1]))).expect("not dialed yet");

    let [mut at_dialer, mut at_listener] = [Seen::default(), Seen::default()];
    let mut end = Instant::now() + PATIENCE;
    loop {
        tokio::select! {
            () = sleep_until(end) => return [at_dialer, at_listener],
            event = dialer.select_next_some() => at_dialer.note(peers[1], event),
            event = listener.select_next_some() => at_listener.note(peers[0], event),
        }
        if at_dialer.upgraded && at_listener.upgraded {
            end = end.min(Instant::now() + AFTER);
        }
    }
}

fn is_upgraded_to_one_direct_connection(site: Site) {
    let seen = on_paused_time(async { timeout(3 * PATIENCE, upgrade(site)).await.expect("it ends") });
    for seen in &seen {
        assert!(seen.upgraded, "{site:?}: {seen:?}");
        assert_eq!(seen.direct.len(), 1, "{site:?}: {seen:?}");
    }
}

#[test]
fn dcutr_makes_exactly_one_direct_connection() {
    is_upgraded_to_one_direct_connection(Site::EIM_APDF);
}

#[test]
fn dcutr_gets_through_nats_that_do_not_keep_the_port() {
    is_upgraded_to_one_direct_connection(Site::EIM_APDF_PORT_NOT_KEPT);
}
