//! Times and peer ids as they are printed.

use std::time::Duration;

use libp2p::PeerId;

/// Milliseconds with three decimals.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Last characters of a peer id; the first ones are the same for all Ed25519 keys.
pub(crate) fn short(peer: &PeerId) -> String {
    let id = peer.to_string();
    format!("…{}", id.get(id.len().saturating_sub(8)..).unwrap_or_default())
}
