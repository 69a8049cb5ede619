//! The hole punching suites: stock relay client and dcutr on our transport.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, anyhow, bail};
use futures::StreamExt;
use interop_testplan::resp::Client;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, dcutr, identify,
    identity::Keypair,
    multiaddr::Protocol,
    ping, relay,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
};

use crate::{
    AGENT,
    env::{self, Dialect, HolePunchTest},
};

/// Time-out that is longer than both sides of every suite need.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(NetworkBehaviour)]
struct Behaviour {
    relay: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

pub(crate) async fn run(test: &HolePunchTest) -> anyhow::Result<()> {
    tokio::time::timeout(TIMEOUT, punch(test)).await.context("no direct connection")?
}

async fn punch(test: &HolePunchTest) -> anyhow::Result<()> {
    let mut swarm = swarm()?;
    let mut redis = Client::connect(&test.redis).await?;
    let relay = relay_address(&mut redis, test).await?;
    listen(&mut swarm, test.ip).await?;
    meet_relay(&mut swarm, relay.clone()).await?;
    let circuit = relay.with(Protocol::P2pCircuit);
    if !test.is_dialer {
        swarm.listen_on(circuit)?;
        return wait(&mut swarm, &mut redis, test).await;
    }
    let peer = listener_peer(&mut redis, test).await?;
    swarm.dial(circuit.with(Protocol::P2p(peer)))?;
    let rtt = direct_ping(&mut swarm, peer).await?.as_secs_f64() * 1e3;
    match test.dialect {
        Dialect::Unified { .. } => {
            println!("latency:\n  handshake_plus_one_rtt: {rtt:.3}\n  ping_rtt: {rtt:.3}\n  unit: ms")
        }
        Dialect::Legacy => println!(r#"{{"rtt_to_holepunched_peer_millis":{}}}"#, rtt.round()),
    }
    Ok(())
}

fn swarm() -> anyhow::Result<Swarm<Behaviour>> {
    let keypair = Keypair::generate_ed25519();
    let transport = libp2p_punch::Transport::new(&keypair, libp2p_punch::Config::default())?;
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)?
        .with_relay_client(libp2p::noise::Config::new, libp2p::yamux::Config::default)?
        .with_behaviour(|keypair, relay| {
            let peer = keypair.public().to_peer_id();
            let identify = identify::Config::new("/interop/1.0.0".into(), keypair.public());
            Behaviour {
                relay,
                dcutr: dcutr::Behaviour::new(peer),
                identify: identify::Behaviour::new(identify.with_agent_version(AGENT.into())),
                ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(1))),
            }
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(TIMEOUT))
        .build();
    Ok(swarm)
}

async fn relay_address(redis: &mut Client, test: &HolePunchTest) -> anyhow::Result<Multiaddr> {
    let address = match &test.dialect {
        Dialect::Unified { test_key } => redis.get(&format!("{test_key}_relay_multiaddr"), TIMEOUT).await?,
        Dialect::Legacy => redis.pop("RELAY_QUIC_ADDRESS", TIMEOUT).await?,
    };
    address.parse().with_context(|| format!("{address} is no address"))
}

async fn listener_peer(redis: &mut Client, test: &HolePunchTest) -> anyhow::Result<PeerId> {
    let peer = match &test.dialect {
        Dialect::Unified { test_key } => redis.get(&format!("{test_key}_listener_peer_id"), TIMEOUT).await?,
        Dialect::Legacy => redis.pop("LISTEN_CLIENT_PEER_ID", TIMEOUT).await?,
    };
    peer.parse().with_context(|| format!("{peer} is no peer"))
}

async fn listen(swarm: &mut Swarm<Behaviour>, ip: IpAddr) -> anyhow::Result<()> {
    swarm.listen_on(env::listen_address(ip))?;
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await
            && (env::is_public(&address) || !ip.is_unspecified())
        {
            return Ok(());
        }
    }
}

/// Connects to the relay and learns from it where others see us.
async fn meet_relay(swarm: &mut Swarm<Behaviour>, address: Multiaddr) -> anyhow::Result<()> {
    let relay = env::peer_of(&address)?;
    let opts = DialOpts::from(address);
    let dial = opts.connection_id();
    swarm.dial(opts)?;
    let (mut told, mut heard) = (false, false);
    while !(told && heard) {
        match swarm.select_next_some().await {
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } if connection_id == dial => {
                return Err(anyhow!(error).context("the relay"));
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Sent { peer_id, .. })) => {
                told |= peer_id == relay;
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) if peer_id == relay => {
                swarm.add_external_address(info.observed_addr);
                heard = true;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The listener's part: a reservation, its identity for the dialer, and staying there.
async fn wait(swarm: &mut Swarm<Behaviour>, redis: &mut Client, test: &HolePunchTest) -> anyhow::Result<()> {
    let peer = swarm.local_peer_id().to_string();
    let mut published = false;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Relay(relay::client::Event::ReservationReqAccepted {
                ..
            })) if !published => {
                published = true;
                match &test.dialect {
                    Dialect::Unified { test_key } => {
                        redis.set(&format!("{test_key}_listener_peer_id"), &peer).await?;
                    }
                    Dialect::Legacy => redis.push("LISTEN_CLIENT_PEER_ID", &peer).await?,
                }
            }
            SwarmEvent::ListenerClosed { reason, .. } if !published => {
                reason.context("the reservation")?;
                bail!("the reservation ended");
            }
            event => tracing::debug!(?event),
        }
    }
}

/// Waits for dcutr to succeed, and for a ping over the connection that it made.
async fn direct_ping(swarm: &mut Swarm<Behaviour>, peer: PeerId) -> anyhow::Result<Duration> {
    let mut direct: Option<ConnectionId> = None;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Dcutr(dcutr::Event { remote_peer_id, result }))
                if remote_peer_id == peer =>
            {
                direct = Some(result?);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { connection, result, .. }))
                if direct == Some(connection) =>
            {
                return Ok(result?);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(remote), error, .. }
                if remote == peer && !swarm.is_connected(&peer) =>
            {
                return Err(anyhow!(error).context("the circuit"));
            }
            event => tracing::debug!(?event),
        }
    }
}
