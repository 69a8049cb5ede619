//! What is known of the NAT in front of a socket, from what observers saw.

/// How a NAT maps (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MappingBehaviour {
    /// The same external port for every destination (EIM).
    EndpointIndependent,
    /// One external port for each destination address (ADM).
    AddressDependent,
    /// One external port for each destination address and port (APDM).
    AddressAndPortDependent,
}
