//! Reasons for which a node cannot start, connect or open a stream.

use std::{error::Error, io, time::Duration};

use libp2p_core::{Multiaddr, multiaddr};
use libp2p_identity::PeerId;
use libp2p_punch::{
    event::{FailureReason, Phase},
    explain::causes,
};
use libp2p_swarm::DialError;

use crate::{key_file::KeyFileError, status::CloseReason, target::TargetError, ticket::TicketError};

/// Reason for which a node cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The key file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The configuration breaks a rule, or the transport cannot start.
    #[error(transparent)]
    Punch(#[from] libp2p_punch::Error),
    /// The key cannot be used for Noise, which protects connections over relays.
    #[error("the identity key cannot be used for Noise: {0}")]
    Noise(#[from] libp2p_noise::Error),
    /// The configuration of the DNS resolvers cannot be read.
    #[error("the DNS resolvers of this machine are unknown: {0}")]
    Resolvers(#[source] io::Error),
    /// A text is not an address.
    #[error("{text:?} is not an address: {cause}")]
    Address {
        /// The text.
        text: String,
        /// The cause.
        cause: multiaddr::Error,
    },
    /// The time-out of attempts to connect is out of bounds.
    #[error("connect_timeout is {value:?}, it must be within 100 ms..=300 s")]
    ConnectTimeout {
        /// The value found.
        value: Duration,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// The cause.
        cause: String,
    },
    /// The name of a protocol does not begin with a slash.
    #[error("the protocol name {name:?} does not begin with a slash")]
    ProtocolName {
        /// The name.
        name: String,
    },
}

/// Reason for which there is no connection to a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The target does not name a peer.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The peer is this node itself.
    #[error("the peer is this node itself")]
    DialSelf,
    /// No address and no coordinator of the peer is known.
    #[error("no address and no coordinator of the peer is known")]
    NoAddresses,
    /// Another peer answered at the address.
    #[error("expected peer {expected}, but {obtained} answered at {address}")]
    WrongPeer {
        /// The peer that was asked for.
        expected: PeerId,
        /// The peer that answered.
        obtained: PeerId,
        /// The address.
        address: Multiaddr,
    },
    /// No path through the NATs was found, and no relay helped.
    #[error("no direct path to the peer: {0}")]
    Traversal(FailureReason),
    /// An address of the peer does not answer as it should. If there are several, the first.
    #[error("no connection to {address}: {cause}")]
    Transport {
        /// The address.
        address: Multiaddr,
        /// The cause.
        cause: String,
    },
    /// A limit or another rule of this node forbids the connection.
    #[error("this node refused the connection: {cause}")]
    Denied {
        /// The cause.
        cause: String,
    },
    /// There was no connection in time.
    #[error("no connection within {after:?}{}", .phase.map(|phase| format!(", in the phase {phase}")).unwrap_or_default())]
    TimedOut {
        /// The time that was allowed.
        after: Duration,
        /// Phase of the traversal at that time, if there was one.
        phase: Option<Phase>,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Shutdown,
}

impl ConnectError {
    /// Describes why a dial of `peer` failed.
    pub(crate) fn of_dial(peer: PeerId, error: &DialError) -> Self {
        if let DialError::Transport(errors) = error
            && let Some(reason) = errors.iter().find_map(|(_, error)| traversal_failure(error))
        {
            return Self::Traversal(reason);
        }
        match error {
            DialError::LocalPeerId { .. } => Self::DialSelf,
            DialError::NoAddresses => Self::NoAddresses,
            DialError::WrongPeerId { obtained, address } => {
                Self::WrongPeer { expected: peer, obtained: *obtained, address: address.clone() }
            }
            DialError::Denied { cause } => Self::Denied { cause: innermost(cause) },
            DialError::Aborted => Self::Denied { cause: "the dial was aborted".to_owned() },
            DialError::Transport(errors) => {
                let mut failures = errors.iter().map(|(address, error)| Self::of_address(address, error));
                let first = failures.next().unwrap_or(Self::NoAddresses);
                // That says more than an address that does not answer.
                let is_answer = |failure: &Self| matches!(failure, Self::WrongPeer { .. });
                if is_answer(&first) { first } else { failures.find(is_answer).unwrap_or(first) }
            }
            other => Self::Denied { cause: innermost(other) },
        }
    }

    /// Describes why the dial of one address failed.
    pub(crate) fn of_address(address: &Multiaddr, error: &(dyn Error + 'static)) -> Self {
        if let Some(reason) = traversal_failure(error) {
            return Self::Traversal(reason);
        }
        match causes(error).find_map(|cause| cause.downcast_ref()) {
            Some(libp2p_punch::Error::WrongPeerId { expected, got: Some(obtained) }) => {
                Self::WrongPeer { expected: *expected, obtained: **obtained, address: address.clone() }
            }
            _ => Self::Transport { address: address.clone(), cause: innermost(error) },
        }
    }
}

/// Reason for which a stream cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The connection is closed.
    #[error("the connection is closed: {0}")]
    Closed(CloseReason),
    /// The peer does not speak the protocol.
    #[error("the peer does not speak {protocol}")]
    Unsupported {
        /// Name of the protocol.
        protocol: String,
    },
    /// The peer did not allow another stream in time.
    #[error("the peer allows no further stream")]
    TimedOut,
    /// The stream failed while it was opened.
    #[error("the stream cannot be opened: {cause}")]
    Io {
        /// The cause.
        cause: String,
    },
}

/// Reason for which a message was not acknowledged. The peer may have received it nevertheless,
/// unless it was never sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is longer than [`MAX_MESSAGE_LEN`](crate::MAX_MESSAGE_LEN). It was not sent.
    #[error("the message has {len} bytes, and at most {} are allowed", crate::MAX_MESSAGE_LEN)]
    TooLong {
        /// Length of the message.
        len: usize,
    },
    /// There is no connection to the peer. The message was not sent.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The stream to the peer cannot be opened. The message was not sent.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The stream to the peer ended first.
    #[error("the peer has not acknowledged the message: {cause}")]
    NotAcknowledged {
        /// Reason of the end of the stream.
        cause: String,
    },
    /// The peer did not acknowledge the message in time.
    #[error("the peer has not acknowledged the message within {after:?}")]
    TimedOut {
        /// The time that was allowed.
        after: Duration,
    },
    /// The node was shut down.
    #[error("the node was shut down")]
    Shutdown,
}

impl SendError {
    pub(crate) fn not_acknowledged(error: &io::Error) -> Self {
        Self::NotAcknowledged { cause: innermost(error) }
    }
}

/// Reason for which a node has no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketUnavailable {
    /// The node has no address and no coordinator yet.
    #[error("no address and no coordinator of this node is known yet")]
    NoAddresses,
    /// The ticket would break a rule.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The node was shut down.
    #[error("the node was shut down")]
    Shutdown,
}

/// The node was shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node was shut down")]
pub struct ShutDown;

/// Returns the reason of a traversal that failed, if that is the cause of the error.
fn traversal_failure(error: &(dyn Error + 'static)) -> Option<FailureReason> {
    causes(error).find_map(|cause| cause.downcast_ref().copied())
}

/// Message of the innermost cause, which names the fault itself.
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}
