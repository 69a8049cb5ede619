//! Mapping behaviour of a NAT (RFC 4787 §4.1).

use std::net::{IpAddr, SocketAddr};

/// Condition for the reuse of an existing mapping of an internal endpoint (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mapping {
    /// For every destination (EIM).
    EndpointIndependent,
    /// For the same destination address (ADM).
    AddressDependent,
    /// For the same destination address and port (APDM).
    AddressAndPortDependent,
}

/// The part of the destination that a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    Everywhere,
    Address(IpAddr),
    Endpoint(SocketAddr),
}

impl Mapping {
    pub(crate) fn scope(self, remote: SocketAddr) -> Scope {
        match self {
            Self::EndpointIndependent => Scope::Everywhere,
            Self::AddressDependent => Scope::Address(remote.ip()),
            Self::AddressAndPortDependent => Scope::Endpoint(remote),
        }
    }
}
