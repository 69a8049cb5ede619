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

/// Number of bytes with a unit of powers of 1024.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        // Above that, the value would be printed as 1024.
        if value < 1023.95 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_unit_that_a_person_reads() {
        let texts = [0, 1023, 1024, 1 << 20, (1 << 30) - 1, u64::MAX].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 GiB", "16.0 EiB"]);
    }
}
