//! Checks between two implementations, and the direction of the dial.

use std::fmt;

use interop_testplan::{features::Feature, key::KeyType};
use serde::Serialize;

/// Direction of the dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Direction {
    /// The other implementation dials, we listen.
    TheyDial,
    /// We dial, the other implementation listens.
    WeDial,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::TheyDial, Self::WeDial];
}

/// Check between two implementations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// See [`Feature`].
    Feature(Feature),
    /// A ping over IPv6.
    Ipv6,
    /// A ping with us having an identity key of this type.
    OurKey(KeyType),
    /// A ping with them having one.
    TheirKey(KeyType),
    /// Our handshake as tshark reads it: the version, the fixed bit, the ALPNs, no server's name.
    Wire,
    /// Handshake of a foreign client with raw keys and our listener, as tshark reads it.
    WireRawKey,
    /// The official suite's transport test, unified-testing.
    TransportUnified,
    /// The official suite's transport test, test-plans.
    TransportLegacy,
    /// The official suite's perf test, unified-testing.
    PerfUnified,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature(feature) => write!(f, "{feature}"),
            Self::Wire => f.write_str("wire"),
            Self::WireRawKey => f.write_str("wire-raw-key"),
            Self::Ipv6 => f.write_str("ipv6"),
            Self::OurKey(key) => write!(f, "our-key-{key}"),
            Self::TheirKey(key) => write!(f, "their-key-{key}"),
            Self::TransportUnified => f.write_str("contract-transport-unified"),
            Self::TransportLegacy => f.write_str("contract-transport-test-plans"),
            Self::PerfUnified => f.write_str("contract-perf-unified"),
        }
    }
}
