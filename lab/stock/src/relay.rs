//! A public relay.

use std::process::ExitCode;

use futures::StreamExt;
use libp2p::{
    Multiaddr, SwarmBuilder, identify, multiaddr::Protocol, relay, swarm::NetworkBehaviour, swarm::SwarmEvent,
};
use serde_json::json;

use crate::{Failure, print};

#[derive(NetworkBehaviour)]
struct Behaviour {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
}

/// Relays until it is killed.
pub(crate) async fn run(listen: Vec<Multiaddr>) -> Result<ExitCode, Failure> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|key| Behaviour {
            relay: relay::Behaviour::new(key.public().to_peer_id(), relay::Config::default()),
            identify: identify::Behaviour::new(identify::Config::new(
                "/punch-lab/1.0.0".into(),
                key.public(),
            )),
        })?
        .build();
    for address in listen {
        swarm.listen_on(address)?;
    }
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => {
                // Reservations name the relay's external addresses.
                swarm.add_external_address(address.clone());
                let address = address.with(Protocol::P2p(*swarm.local_peer_id()));
                print(&json!({ "event": "listening", "address": address }))?;
            }
            SwarmEvent::ListenerClosed { reason: Err(error), .. } => return Err(error.into()),
            _ => {}
        }
    }
}
