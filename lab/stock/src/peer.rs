//! A peer behind a NAT: relay client, identify and DCUtR, all as they come, on libp2p-quic or on
//! our transport.

use std::{process::ExitCode, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, Transport as _,
    core::{muxing::StreamMuxerBox, transport::Boxed},
    dcutr, identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise, quic, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    yamux,
};
use serde_json::json;
use tokio::time::timeout;

use crate::{Failure, Quic, print};

/// Time after which an unused connection closes.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for the relay to report our address.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Protocols of a peer.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    relay: relay::client::Behaviour,
    identify: identify::Behaviour,
    dcutr: dcutr::Behaviour,
}

/// A peer that listens on a free port and has exchanged addresses with the relay, as DCUtR needs
/// it.
pub(crate) async fn start(relay: &Multiaddr, quic: Quic) -> Result<Swarm<Behaviour>, Failure> {
    let key = Keypair::generate_ed25519();
    let transport = transport(&key, quic)?;
    let mut swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_other_transport(|_| transport)?
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|key, relay| Behaviour {
            relay,
            identify: identify::Behaviour::new(identify::Config::new(
                "/punch-lab/1.0.0".into(),
                key.public(),
            )),
            dcutr: dcutr::Behaviour::new(key.public().to_peer_id()),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_CONNECTION_TIMEOUT))
        .build();
    swarm.listen_on("/ip4/0.0.0.0/udp/0/quic-v1".parse()?)?;
    // The dial uses this socket only if it exists already.
    let listening = async {
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                let loopback =
                    address.iter().any(|part| matches!(part, Protocol::Ip4(ip) if ip.is_loopback()));
                if !loopback {
                    return;
                }
            }
        }
    };
    timeout(START_TIMEOUT, listening).await?;
    swarm.dial(relay.clone())?;
    let known = async {
        let (mut told, mut learnt) = (false, false);
        while !(told && learnt) {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Sent { .. })) => told = true,
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { .. })) => {
                    learnt = true
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(Failure::from(error)),
                _ => {}
            }
        }
        Ok(())
    };
    timeout(START_TIMEOUT, known).await??;
    Ok(swarm)
}

fn transport(key: &Keypair, quic: Quic) -> Result<Boxed<(PeerId, StreamMuxerBox)>, Failure> {
    Ok(match quic {
        Quic::Stock => quic::tokio::Transport::new(quic::Config::new(key))
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
            .boxed(),
        Quic::Punch => libp2p_punch::Transport::new(key, libp2p_punch::Config::default())?
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
            .boxed(),
    })
}

/// Waits for peers until it is killed.
pub(crate) async fn listen(relay: Multiaddr, quic: Quic) -> Result<ExitCode, Failure> {
    let mut swarm = start(&relay, quic).await?;
    let own: PeerId = *swarm.local_peer_id();
    swarm.listen_on(relay.clone().with(Protocol::P2pCircuit))?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Relay(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                renewal: false,
                ..
            })) => {
                let address = relay.clone().with(Protocol::P2pCircuit).with(Protocol::P2p(own));
                print(&json!({ "event": "listening", "address": address }))?;
                print(&json!({ "event": "registered", "coordinator": relay_peer_id.to_string() }))?;
            }
            SwarmEvent::ListenerClosed { reason: Err(error), .. } => return Err(error.into()),
            _ => {}
        }
    }
}
