//! A dial through the relay, and the upgrade by DCUtR.

use std::{process::ExitCode, time::Duration};

use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol, swarm::SwarmEvent};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::{
    Failure, Quic,
    peer::{self, BehaviourEvent},
    print,
};

const RELAYED: u8 = 10;
const FAILED: u8 = 11;
/// Time for the other side to try again after a failed upgrade.
const RETRY_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends with the direct connection, or once DCUtR has given up, or after the time-out.
pub(crate) async fn run(
    peer: PeerId,
    relay: Multiaddr,
    patience: Duration,
    quic: Quic,
) -> Result<ExitCode, Failure> {
    let mut swarm = match peer::start(&relay, quic).await {
        Ok(swarm) => swarm,
        Err(error) => return failed(peer, "coordinator-unreachable", &error.to_string()),
    };
    let asked = Instant::now();
    let mut deadline = asked + patience;
    let mut relayed = false;
    swarm.dial(relay.with(Protocol::P2pCircuit).with(Protocol::P2p(peer)))?;
    while let Ok(event) = timeout_at(deadline, swarm.select_next_some()).await {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => {
                let direct = !endpoint.is_relayed();
                print(&json!({
                    "event": "connected",
                    "peer": peer.to_string(),
                    "path": if direct { "direct" } else { "relayed" },
                    "remote": endpoint.get_remote_address(),
                    "elapsed_ms": asked.elapsed().as_secs_f64() * 1e3,
                }))?;
                if direct {
                    return Ok(ExitCode::SUCCESS);
                }
                relayed = true;
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(who), error, .. }
                if who == peer && !relayed =>
            {
                return failed(peer, "dial-failed", &error.to_string());
            }
            SwarmEvent::Behaviour(BehaviourEvent::Dcutr(event)) if event.result.is_err() => {
                deadline = deadline.min(Instant::now() + RETRY_TIMEOUT);
            }
            _ => {}
        }
    }
    if relayed { Ok(ExitCode::from(RELAYED)) } else { failed(peer, "timeout", "no connection in time") }
}

fn failed(peer: PeerId, code: &str, message: &str) -> Result<ExitCode, Failure> {
    print(&json!({ "event": "failed", "peer": peer.to_string(), "code": code, "message": message }))?;
    Ok(ExitCode::from(FAILED))
}
