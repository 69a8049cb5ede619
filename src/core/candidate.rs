//! Addresses at which a peer may be reached (RFC 8445 §5.1).

use std::net::SocketAddr;

/// Where a candidate comes from (RFC 8445 §5.1.1; `Predicted` and `PortMapped` are ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of a local interface.
    Host,
    /// What an observer saw us at.
    ServerReflexive,
    /// Learnt from an authenticated probe of the peer.
    PeerReflexive,
    /// Where a sequential NAT is expected to put the next mapping.
    Predicted,
    /// A mapping that a gateway granted (NAT-PMP, PCP, UPnP).
    PortMapped,
    /// An address on a relay.
    Relayed,
}

/// An address at which a peer may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Names the candidate among those of its peer, as in `ADD_ADDRESS` and `REMOVE_ADDRESS`.
    pub sequence: u64,
    /// Where it comes from.
    pub kind: CandidateKind,
    /// RFC 8445 §5.1.2; larger is better.
    pub priority: u32,
    /// The address itself.
    pub address: SocketAddr,
}
