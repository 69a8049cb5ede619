//! Limits of the relay of a coordinator.

use std::time::Duration;

use libp2p::relay;

/// Limits of a relay. They are those of a last resort: enough to talk, and to look for a direct
/// path meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelayLimits {
    pub(crate) max_reservations: usize,
    pub(crate) max_circuits: usize,
    pub(crate) max_circuits_per_peer: usize,
    pub(crate) max_circuit_duration: Duration,
    pub(crate) max_circuit_bytes: u64,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            max_reservations: 1024,
            max_circuits: 256,
            max_circuits_per_peer: 8,
            max_circuit_duration: Duration::from_secs(60 * 60),
            max_circuit_bytes: 32 << 20,
        }
    }
}

impl From<RelayLimits> for relay::Config {
    fn from(limits: RelayLimits) -> Self {
        let RelayLimits {
            max_reservations,
            max_circuits,
            max_circuits_per_peer,
            max_circuit_duration,
            max_circuit_bytes,
        } = limits;
        Self {
            max_reservations,
            max_reservations_per_peer: 2,
            max_circuits,
            max_circuits_per_peer,
            max_circuit_duration,
            max_circuit_bytes,
            ..Self::default()
        }
    }
}
