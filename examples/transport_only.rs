//! The transport alone, as a drop-in for libp2p-quic: two swarms on loopback ping each other.

use std::error::Error;

use futures::StreamExt;
use libp2p::{Swarm, SwarmBuilder, ping, swarm::SwarmEvent};
use libp2p_punch::{Config, Transport};

fn swarm() -> Result<Swarm<ping::Behaviour>, Box<dyn Error>> {
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_other_transport(|keypair| Ok(Transport::new(keypair, Config::default())?))?
        .with_behaviour(|_| ping::Behaviour::default())?
        .build())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut listener, mut dialer) = (swarm()?, swarm()?);
    listener.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse()?)?;
    loop {
        tokio::select! {
            event = listener.select_next_some() => {
                if let SwarmEvent::NewListenAddr { address, .. } = event {
                    println!("dialing {address}");
                    dialer.dial(address)?;
                }
            }
            event = dialer.select_next_some() => {
                if let SwarmEvent::Behaviour(ping) = event {
                    println!("{} answered: {:?}", ping.peer, ping.result?);
                    return Ok(());
                }
            }
        }
    }
}
