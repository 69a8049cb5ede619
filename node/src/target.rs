//! Names of peers: a PeerId, an address or a ticket.

use std::{convert::Infallible, str::FromStr};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use crate::ticket::{Ticket, TicketError};

/// Peer to connect to, and what is known of its addresses.
///
/// It is made from a [`PeerId`], a [`Ticket`], a [`Multiaddr`] that ends with `/p2p/PEER_ID`, or
/// the text of one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub(crate) peer: PeerId,
    /// Addresses to dial. Those over relays name coordinators of the peer.
    pub(crate) addresses: Vec<Multiaddr>,
}

impl Target {
    /// Returns the peer that is named.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Returns the known addresses of the peer. Those over relays name coordinators of the peer.
    pub fn addresses(&self) -> &[Multiaddr] {
        &self.addresses
    }
}

/// Reason for which something does not name a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The text is not a ticket that can be read.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The text is not an address.
    #[error("{text:?} is not an address: {cause}")]
    Address {
        /// The text.
        text: String,
        /// The cause.
        cause: String,
    },
    /// The address does not name its peer. Without a PeerId nobody could tell who answers.
    #[error("the address {address} does not end with /p2p/PEER_ID")]
    NoPeerId {
        /// The address.
        address: Multiaddr,
    },
    /// The text is none of what names a peer.
    #[error("{text:?} is not a ticket, an address or a PeerId: {cause}")]
    Unknown {
        /// The text.
        text: String,
        /// Reason for which the text is not a PeerId.
        cause: String,
    },
}

impl From<Infallible> for TargetError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<PeerId> for Target {
    fn from(peer: PeerId) -> Self {
        Self { peer, addresses: Vec::new() }
    }
}

impl From<&PeerId> for Target {
    fn from(peer: &PeerId) -> Self {
        Self::from(*peer)
    }
}

impl From<&Ticket> for Target {
    fn from(ticket: &Ticket) -> Self {
        let peer = ticket.peer();
        let circuits = ticket.coordinators().iter().cloned().map(|coordinator| {
            // The address of a coordinator is that of a relay, too.
            coordinator.with(Protocol::P2pCircuit)
        });
        let addresses = ticket.addresses().iter().cloned().chain(circuits);
        Self { peer, addresses: addresses.map(|address| address.with(Protocol::P2p(peer))).collect() }
    }
}

impl From<Ticket> for Target {
    fn from(ticket: Ticket) -> Self {
        Self::from(&ticket)
    }
}

impl TryFrom<Multiaddr> for Target {
    type Error = TargetError;

    fn try_from(address: Multiaddr) -> Result<Self, TargetError> {
        match address.iter().last() {
            Some(Protocol::P2p(peer)) => Ok(Self { peer, addresses: vec![address] }),
            _ => Err(TargetError::NoPeerId { address }),
        }
    }
}

impl TryFrom<&Multiaddr> for Target {
    type Error = TargetError;

    fn try_from(address: &Multiaddr) -> Result<Self, TargetError> {
        address.clone().try_into()
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        if text.starts_with('/') {
            let address: Result<Multiaddr, _> = text.parse();
            return address
                .map_err(|error| TargetError::Address { text: text.to_owned(), cause: error.to_string() })?
                .try_into();
        }
        match text.parse::<Ticket>() {
            Ok(ticket) => Ok(ticket.into()),
            Err(TicketError::Prefix) => match text.parse::<PeerId>() {
                Ok(peer) => Ok(peer.into()),
                Err(error) => Err(TargetError::Unknown { text: text.to_owned(), cause: error.to_string() }),
            },
            Err(error) => Err(error.into()),
        }
    }
}

impl TryFrom<&str> for Target {
    type Error = TargetError;

    fn try_from(text: &str) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl TryFrom<&String> for Target {
    type Error = TargetError;

    fn try_from(text: &String) -> Result<Self, TargetError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWGC6bJ9Ex8uHSrKDhwHSVRBLm8nGwGBXAaGLQvFP6aVgy";

    #[test]
    fn each_name_of_a_peer_is_understood() {
        let peer: PeerId = PEER.parse().unwrap();
        assert_eq!(PEER.parse(), Ok(Target::from(peer)));
        let address: Multiaddr = format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{PEER}").parse().unwrap();
        assert_eq!(address.to_string().parse(), Ok(Target { peer, addresses: vec![address.clone()] }));
        let relay: Multiaddr = format!("/ip4/192.0.2.2/udp/2/quic-v1/p2p/{PEER}").parse().unwrap();
        let ticket = Ticket::new(peer, [address.clone()], [relay.clone()]).unwrap();
        let circuit = relay.with(Protocol::P2pCircuit).with(Protocol::P2p(peer));
        assert_eq!(ticket.to_string().parse(), Ok(Target { peer, addresses: vec![address, circuit] }));
    }

    #[test]
    fn the_error_names_the_cause() {
        let error = |text: &str| text.parse::<Target>().unwrap_err();
        assert_eq!(error("punchx"), TargetError::Ticket(TicketError::Truncated));
        assert!(matches!(error("/ip4/1.2.3"), TargetError::Address { .. }));
        assert!(matches!(error("/ip4/192.0.2.1/udp/1/quic-v1"), TargetError::NoPeerId { .. }));
        assert!(matches!(error("nobody"), TargetError::Unknown { .. }));
    }
}
