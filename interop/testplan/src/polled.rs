//! Implementations without events for connections: they are polled.

use std::{future::Future, time::Duration};

use libp2p::PeerId;
use tokio::{io::AsyncReadExt, time::Instant};

use crate::report::Line;

/// Interval between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// An implementation that can be asked.
pub trait Polled: Sync {
    /// Returns the connected peers.
    fn peers(&self) -> impl Future<Output = anyhow::Result<Vec<PeerId>>> + Send;
}

/// Reports opened and closed connections until standard input ends.
///
/// # Errors
///
/// If it does not answer, or standard input cannot be read.
pub async fn report(polled: &impl Polled) -> anyhow::Result<()> {
    let mut ignored = Vec::new();
    let mut input = tokio::io::stdin();
    tokio::select! {
        watched = watch(polled) => watched,
        ended = input.read_to_end(&mut ignored) => Ok(ended.map(drop)?),
    }
}

async fn watch(polled: &impl Polled) -> anyhow::Result<()> {
    let mut known = Vec::new();
    loop {
        let now = polled.peers().await?;
        for peer in now.iter().filter(|peer| !known.contains(*peer)) {
            Line::Connected { peer: peer.to_string() }.print();
        }
        for peer in known.iter().filter(|peer| !now.contains(peer)) {
            Line::Closed { peer: peer.to_string() }.print();
        }
        known = now;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits until it is no longer connected with a peer; false if it still is after `timeout`.
///
/// # Errors
///
/// If it does not answer.
pub async fn gone(polled: &impl Polled, peer: PeerId, timeout: Duration) -> anyhow::Result<bool> {
    let end = Instant::now() + timeout;
    while Instant::now() < end {
        if !polled.peers().await?.contains(&peer) {
            return Ok(true);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(false)
}
