//! Facts about attempts to connect, for those who ask why there is no connection.

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_punch::event::{RegistrationEvent, RelayEvent, SessionEvent};
use libp2p_swarm::DialError;
use tokio::sync::broadcast;

use crate::error::{ConnectError, innermost};

/// Facts that wait for a slow subscriber.
pub(crate) const BACKLOG: usize = 1_024;

/// Fact about the connections of a node, as the node observed it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Diagnostic {
    /// Progress or outcome of a traversal session.
    Session(SessionEvent),
    /// Answer of a coordinator, or another fact about registrations.
    Registration(RegistrationEvent),
    /// Result of a relay, or a relayed connection.
    Relay(RelayEvent),
    /// A connection was established.
    #[non_exhaustive]
    Connected {
        /// The peer.
        peer: PeerId,
        /// Address of the peer, or of the peer over a relay.
        address: Multiaddr,
    },
    /// A connected peer described itself.
    #[non_exhaustive]
    Identified {
        /// The peer.
        peer: PeerId,
        /// True if the peer coordinates for others.
        coordinates: bool,
    },
    /// A dial failed.
    #[non_exhaustive]
    DialFailed {
        /// The peer that was dialed, if the address named one.
        peer: Option<PeerId>,
        /// Failures of the addresses. If there was none, the failure of the dial.
        failures: Vec<ConnectError>,
    },
    /// The subscriber was too slow and lost facts.
    #[non_exhaustive]
    Missed {
        /// Number of the lost facts.
        count: u64,
    },
}

/// Facts about the connections of a node, from its start on.
///
/// [`NodeBuilder::diagnostics`] returns them.
///
/// [`NodeBuilder::diagnostics`]: crate::NodeBuilder::diagnostics
#[derive(Debug)]
pub struct Diagnostics(broadcast::Receiver<Diagnostic>);

impl Diagnostics {
    pub(crate) fn new(receiver: broadcast::Receiver<Diagnostic>) -> Self {
        Self(receiver)
    }

    /// Waits for the next fact. `None` after the end of the node.
    ///
    /// Cancel safe: no fact is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Diagnostic> {
        match self.0.recv().await {
            Ok(diagnostic) => Some(diagnostic),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Diagnostic::Missed { count }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Describes a failed dial, each of its addresses by itself.
pub(crate) fn of_dial_error(peer: Option<PeerId>, error: &DialError) -> Diagnostic {
    let failures = match (error, peer) {
        (DialError::Transport(errors), _) if !errors.is_empty() => {
            errors.iter().map(|(address, error)| ConnectError::of_address(address, error)).collect()
        }
        (error, Some(peer)) => vec![ConnectError::of_dial(peer, error)],
        (error, None) => vec![ConnectError::Denied { cause: innermost(error) }],
    };
    Diagnostic::DialFailed { peer, failures }
}
