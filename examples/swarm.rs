//! An ordinary swarm with ping and identify, and libp2p-punch in the place of libp2p-quic.
//!
//! ```sh
//! cargo run --example swarm                              # a peer that others can reach: it coordinates
//! cargo run --example swarm -- COORDINATOR               # a peer behind a NAT; prints its PeerId
//! cargo run --example swarm -- COORDINATOR PEER_ID       # another one, which dials the first
//! ```
//!
//! COORDINATOR is an address that the first one printed, `/ip4/…/udp/…/quic-v1/p2p/…`.

use std::{env, error::Error, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, SwarmBuilder, identify,
    identity::Keypair,
    ping,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_punch::{Config, Event, RegistrationEvent, Role};

#[derive(NetworkBehaviour)]
struct Behaviour {
    punch: libp2p_punch::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let coordinator: Option<Multiaddr> = arguments.next().map(|text| text.parse()).transpose()?;
    let peer: Option<PeerId> = arguments.next().map(|text| text.parse()).transpose()?;

    let keypair = Keypair::generate_ed25519();
    let mut config = Config::default();
    config.role = if coordinator.is_some() { Role::Auto } else { Role::Server };
    config.coordinators = coordinator.into_iter().collect();
    let (transport, punch) = libp2p_punch::new(&keypair, config)?;
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)?
        .with_behaviour(|keypair| Behaviour {
            punch,
            identify: identify::Behaviour::new(identify::Config::new("/example/1".into(), keypair.public())),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(1))),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        // The default, 10 s, would cut retries off.
        .with_connection_timeout(Duration::from_secs(60))
        .build();
    swarm.listen_on("/ip4/0.0.0.0/udp/0/quic-v1".parse()?)?;
    println!("I am {}", swarm.local_peer_id());

    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => {
                println!("listening on {address}/p2p/{}", swarm.local_peer_id())
            }
            // From here on, a peer is reached by its PeerId alone.
            SwarmEvent::Behaviour(BehaviourEvent::Punch(Event::Registration(
                RegistrationEvent::Accepted { .. },
            ))) => {
                if let Some(peer) = peer {
                    swarm.dial(peer)?;
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Punch(event)) => println!("{event:?}"),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => {
                println!("ping {}: {:?}", event.peer, event.result)
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => println!("no connection: {error}"),
            _ => {}
        }
    }
}
