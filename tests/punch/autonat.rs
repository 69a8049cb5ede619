//! AutoNAT v2, identify, kad and relays in one swarm with ours.

use std::{collections::BTreeSet, sync::Arc};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, autonat, identify, kad,
    multiaddr::Protocol,
    noise, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    yamux,
};
use libp2p_punch::{Behaviour, Config, Event, RelayEvent, Role};
use libp2p_punch_sim::{Host, World};

use crate::{
    network::{NEVER, Site, client, listening, on_paused_time, parts, run, swarm, until},
    stock::identify,
};

type Kad = kad::Behaviour<kad::store::MemoryStore>;

#[derive(NetworkBehaviour)]
struct Server {
    punch: Behaviour,
    relay: relay::Behaviour,
    identify: identify::Behaviour,
    autonat: autonat::v2::server::Behaviour,
}

#[derive(NetworkBehaviour)]
struct Peer {
    punch: Behaviour,
    relay: relay::client::Behaviour,
    identify: identify::Behaviour,
    kad: Kad,
    autonat_client: autonat::v2::client::Behaviour,
    autonat_server: autonat::v2::server::Behaviour,
}

/// A coordinator, relay and AutoNAT server at 203.0.113.254.
fn server(world: &World) -> Multiaddr {
    let host = world.public_host([203, 0, 113, 254]);
    let mut config = Config::default();
    config.role = Role::Server;
    let mut server = swarm(&host, 254, config, |punch, keypair| Server {
        punch,
        relay: relay::Behaviour::new(keypair.public().to_peer_id(), relay::Config::default()),
        identify: identify(keypair),
        autonat: autonat::v2::server::Behaviour::default(),
    });
    let address: Multiaddr = "/ip4/203.0.113.254/udp/4001/quic-v1".parse().expect("valid");
    server.add_external_address(address.clone());
    address.with(Protocol::P2p(run(server)))
}

fn peer(host: &Arc<Host>, number: u8, config: Config) -> Swarm<Peer> {
    let (keypair, transport, punch) = parts(host, number, config);
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .expect("it is a relay client")
        .with_behaviour(|keypair, relay| {
            let own = keypair.public().to_peer_id();
            let mut kad = Kad::new(own, kad::store::MemoryStore::new(own));
            kad.set_mode(Some(kad::Mode::Server));
            Peer {
                punch,
                relay,
                identify: identify(keypair),
                kad,
                autonat_client: autonat::v2::client::Behaviour::default(),
                autonat_server: autonat::v2::server::Behaviour::default(),
            }
        })
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
        .with_connection_timeout(NEVER)
        .build();
    listening(swarm)
}

async fn reserved(swarm: &mut Swarm<Peer>) {
    until(swarm, |event| {
        matches!(event, SwarmEvent::Behaviour(PeerEvent::Punch(Event::Relay(RelayEvent::Reserved { .. }))))
            .then_some(())
    })
    .await;
}

/// The addresses of a peer in the routing table.
fn routing_addresses(kad: &mut Kad, peer: PeerId) -> BTreeSet<Multiaddr> {
    let mut addresses = BTreeSet::new();
    for bucket in kad.kbuckets() {
        let entries = bucket.iter().filter(|entry| *entry.node.key.preimage() == peer);
        addresses.extend(entries.flat_map(|entry| entry.node.value.iter().cloned().collect::<Vec<_>>()));
    }
    addresses
}

#[test]
fn a_peer_that_only_a_traversal_reaches_is_not_taken_for_reachable() {
    on_paused_time(async {
        let world = World::new(1);
        let address = server(&world);
        let [a, b] = [1, 2].map(|number| Site::EIM_APDF.host(&world, number, 0.0));
        let mut listener = peer(&b, 2, client(&address));
        reserved(&mut listener).await;
        let mut dialer = peer(&a, 1, client(&address));
        reserved(&mut dialer).await;
        let id = *listener.local_peer_id();
        dialer.dial(id).expect("not dialed yet");

        let real: Multiaddr = format!("/ip4/198.51.100.2/udp/4001/quic-v1/p2p/{id}").parse().expect("valid");
        let (mut candidates, mut tested) = (BTreeSet::new(), BTreeSet::new());
        let is_done = |kad: &mut Kad, candidates: &BTreeSet<Multiaddr>, tested: &BTreeSet<Multiaddr>| {
            // The server and the dialer have reported the listener's addresses, and both were asked
            // to dial them.
            candidates.len() >= 2
                && candidates.is_subset(tested)
                && routing_addresses(kad, id) == BTreeSet::from([real.clone()])
        };
        while !is_done(&mut dialer.behaviour_mut().kad, &candidates, &tested) {
            tokio::select! {
                event = listener.select_next_some() => match event {
                    SwarmEvent::NewExternalAddrCandidate { address } => {
                        let is_named = matches!(address.iter().next(), None | Some(Protocol::P2p(_)));
                        assert!(!is_named, "{address}");
                        candidates.insert(address);
                    }
                    SwarmEvent::ExternalAddrConfirmed { address } => panic!("{address} is confirmed"),
                    SwarmEvent::Behaviour(PeerEvent::AutonatClient(event)) => {
                        assert!(event.result.is_err(), "{event:?}");
                        tested.insert(event.tested_addr);
                    }
                    SwarmEvent::Behaviour(PeerEvent::Punch(Event::Relay(RelayEvent::Unreserved { relay, .. }))) => {
                        panic!("the reservation with {relay} is given up")
                    }
                    _ => {}
                },
                _ = dialer.select_next_some() => {}
            }
        }
        assert!(listener.listeners().any(|address| address.iter().any(|part| part == Protocol::P2pCircuit)));
    });
}

/// Runs a peer until AutoNAT has confirmed the address that its NAT gives it.
async fn confirmed(swarm: &mut Swarm<Peer>) {
    until(swarm, |event| {
        matches!(event, SwarmEvent::ExternalAddrConfirmed { address } if address.to_string().starts_with("/ip4/198.51.100."))
            .then_some(())
    })
    .await;
}

/// Runs a peer for a minute. Returns true if it gives up its reservation.
async fn gives_up_its_reservation(swarm: &mut Swarm<Peer>) -> bool {
    let unreserved = until(swarm, |event| {
        matches!(event, SwarmEvent::Behaviour(PeerEvent::Punch(Event::Relay(RelayEvent::Unreserved { .. }))))
            .then_some(())
    });
    tokio::time::timeout(std::time::Duration::from_secs(60), unreserved).await.is_ok()
}

#[test]
fn a_peer_that_only_its_contacts_reach_is_not_taken_for_reachable() {
    on_paused_time(async {
        let world = World::new(1);
        let address = server(&world);
        let mut hidden = peer(&Site::EIM_ADF.host(&world, 2, 0.0), 2, client(&address));
        reserved(&mut hidden).await;
        confirmed(&mut hidden).await;
        assert!(!gives_up_its_reservation(&mut hidden).await);
        assert!(!hidden.behaviour().punch.is_coordinator());
    });
}

#[test]
fn a_peer_behind_a_nat_is_reachable_once_a_stranger_has_reached_it() {
    on_paused_time(async {
        let world = World::new(1);
        let address = server(&world);
        let mut open = peer(&Site::EIM_EIF.host(&world, 2, 0.0), 2, client(&address));
        let id = *open.local_peer_id();
        reserved(&mut open).await;
        confirmed(&mut open).await;
        assert!(!gives_up_its_reservation(&mut open).await);

        let mut stranger = swarm(&Site::Public.host(&world, 1, 0.0), 1, Config::default(), |punch, _| punch);
        let address: Multiaddr =
            format!("/ip4/198.51.100.2/udp/4001/quic-v1/p2p/{id}").parse().expect("valid");
        stranger.dial(address).expect("not dialed yet");
        run(stranger);
        assert!(gives_up_its_reservation(&mut open).await);
        assert!(open.behaviour().punch.is_coordinator());
    });
}
