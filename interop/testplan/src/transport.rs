//! The transport suites: the listener publishes its address, the dialer connects and pings.

use std::time::Instant;

use anyhow::Context;
use interop_testplan::{features, key::KeyType, node::Node, protocol::PING, resp::Client};
use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::{
    AGENT,
    env::{self, Contract, Dialect},
    punch,
};

pub(crate) async fn run(contract: &Contract) -> anyhow::Result<()> {
    let keypair = KeyType::Ed25519.keypair()?;
    let mut node = Node::start(punch(&keypair)?, &keypair, AGENT)?;
    let mut redis = Client::connect(&contract.redis).await?;
    if !contract.is_dialer {
        let address = listen(&mut node, contract).await?;
        redis.push(&contract.listener_key(), &address.to_string()).await?;
        // The suite stops the listener when the dialer is done.
        tokio::time::sleep(contract.timeout).await;
        return Ok(());
    }
    let address = redis.pop(&contract.listener_key(), contract.timeout).await?;
    println!("{}", tokio::time::timeout(contract.timeout, dial(&mut node, contract, &address)).await??);
    Ok(())
}

/// Listens at the address of the suite; publishes an address that the dialer's container can reach.
pub(crate) async fn listen(node: &mut Node, contract: &Contract) -> anyhow::Result<Multiaddr> {
    let first = node.listen(env::listen_address(contract.ip)).await?;
    if !contract.ip.is_unspecified() {
        return Ok(first);
    }
    let address = node.listening_on(env::is_public).await?;
    Ok(address.with(Protocol::P2p(node.peer())))
}

async fn dial(node: &mut Node, contract: &Contract, address: &str) -> anyhow::Result<String> {
    let address: Multiaddr = address.parse().with_context(|| format!("{address} is no address"))?;
    let start = Instant::now();
    let peer = node.dial(address).await?;
    let mut stream = node.open(peer, PING).await?;
    // One ping is for both figures: py-libp2p's test program answers one and then ends.
    let ping = features::ping_once(&mut stream).await?.as_secs_f64() * 1e3;
    let handshake_plus_one_rtt = start.elapsed().as_secs_f64() * 1e3;
    Ok(match contract.dialect {
        Dialect::Unified { .. } => format!(
            "latency:\n  handshake_plus_one_rtt: {handshake_plus_one_rtt:.3}\n  ping_rtt: {ping:.3}\n  unit: ms"
        ),
        // The third l is theirs.
        Dialect::Legacy => format!(
            r#"{{"handshakePlusOneRTTMillis":{handshake_plus_one_rtt:.3},"pingRTTMilllis":{ping:.3}}}"#
        ),
    })
}
