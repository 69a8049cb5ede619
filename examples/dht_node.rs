//! A node of a DHT with one bootstrap address and no configured coordinator.
//!
//! ```sh
//! cargo run --features kad --example dht_node                          # on a host that others reach
//! cargo run --features kad --example dht_node -- BOOTSTRAP             # behind a NAT; prints its PeerId
//! cargo run --features kad --example dht_node -- BOOTSTRAP PEER_ID     # behind another NAT, dials that peer
//! ```
//!
//! BOOTSTRAP is an address that the first one printed, `/ip4/…/udp/…/quic-v1/p2p/…`. All three also
//! work on one host.

use std::{env, error::Error, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, SwarmBuilder, identify,
    identity::Keypair,
    kad::{self, store::MemoryStore},
    multiaddr::Protocol,
    ping,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_punch::{Config, Event, RegistrationEvent, Role, SessionEvent};

#[derive(NetworkBehaviour)]
struct Behaviour {
    punch: libp2p_punch::Behaviour,
    kad: libp2p_punch::kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let bootstrap: Option<Multiaddr> = arguments.next().map(|text| text.parse()).transpose()?;
    let target: Option<PeerId> = arguments.next().map(|text| text.parse()).transpose()?;

    let keypair = Keypair::generate_ed25519();
    let local_peer = keypair.public().to_peer_id();
    // A node with `Role::Auto` coordinates once AutoNAT or the application has confirmed a global
    // address of it.
    let role = if bootstrap.is_some() { Role::Auto } else { Role::Server };
    let (transport, mut punch) = libp2p_punch::new(&keypair, {
        let mut config = Config::default();
        config.role = role;
        config
    })?;
    // Dials of a peer ask the DHT which nodes are nearest to it: these coordinate for it.
    let kad = kad::Behaviour::new(local_peer, MemoryStore::new(local_peer));
    let kad = libp2p_punch::kad::Behaviour::new(kad, punch.coordinator_lookup());

    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)?
        .with_behaviour(|keypair| Behaviour {
            punch,
            kad,
            identify: identify::Behaviour::new(identify::Config::new("/example/1".into(), keypair.public())),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(1))),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(10)))
        // The default, 10 s, would cut retries off.
        .with_connection_timeout(Duration::from_secs(60))
        .build();
    swarm.listen_on("/ip4/0.0.0.0/udp/0/quic-v1".parse()?)?;
    println!("I am {local_peer}");

    if let Some(address) = bootstrap {
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            return Err(format!("{address} must end in /p2p/PEER_ID").into());
        };
        swarm.behaviour_mut().kad.add_address(&peer, address);
        swarm.behaviour_mut().kad.bootstrap()?;
    } else {
        swarm.behaviour_mut().kad.set_mode(Some(kad::Mode::Server));
    }

    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => println!("listening on {address}/p2p/{local_peer}"),
            // Kademlia learns addresses from identify, as in every libp2p application.
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) if info.protocols.contains(&kad::PROTOCOL_NAME) => {
                for address in info.listen_addrs {
                    swarm.behaviour_mut().kad.add_address(&peer_id, address);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Punch(event)) => {
                report(&event);
                let is_registered = matches!(event, Event::Registration(RegistrationEvent::Accepted { .. }));
                if let Some(peer) = target.filter(|peer| is_registered && !swarm.is_connected(peer)) {
                    swarm.dial(peer)?;
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping)) if Some(ping.peer) == target => {
                println!("ping {}: {:?}", ping.peer, ping.result);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } if peer_id == target => {
                println!("no connection: {error}");
            }
            _ => {}
        }
    }
}

/// Prints an event of the behaviour that a person wants to see.
fn report(event: &Event) {
    match event {
        Event::Registration(RegistrationEvent::CoordinatorFound { coordinator, .. }) => {
            println!("found the coordinator {coordinator}");
        }
        Event::Registration(RegistrationEvent::Accepted { coordinator, .. }) => {
            println!("registered with {coordinator}");
        }
        Event::Session(SessionEvent::Connected { peer, kind, .. }) => {
            println!("connected to {peer} directly, at an address that is {kind}");
        }
        _ => {}
    }
}
