//! Reasons of failures of the transport and of its connections.

use std::{io, net::SocketAddr};

use libp2p_identity::PeerId;
use quinn::TransportErrorCode;

use crate::config::ConfigError;
use libp2p_punch_proto::event::FailureReason;

/// The TLS alert `access_denied` (RFC 8446 §6.2), which rustls sends for a peer that the
/// application refused. Our verifier raises it for one reason only: a valid key of another peer.
const ACCESS_DENIED: u8 = 49;

/// Errors of the [`Transport`](super::Transport) and of a [`Connection`](super::Connection).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration breaks one of its rules.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity key cannot be used for TLS.
    #[error("the identity key cannot be used for TLS")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// QUIC refused to start dialing.
    #[error(transparent)]
    Connect(ConnectError),
    /// The handshake or the established connection failed.
    #[error(transparent)]
    Connection(ConnectionError),
    /// A socket, the interface watcher or the routing table failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The handshake took longer than
    /// [`QuicConfig::handshake_timeout`](crate::config::QuicConfig::handshake_timeout).
    #[error("the handshake with the remote timed out")]
    HandshakeTimedOut,
    /// Another peer than the dialed peer answered. That peer was refused during the handshake,
    /// before any byte of the application.
    #[error("expected peer {expected}, found {}", .got.as_ref().map_or_else(|| "another".to_owned(), |peer| peer.to_string()))]
    WrongPeerId {
        /// The peer that was dialed.
        expected: PeerId,
        /// The peer that answered, where it is known. Boxed, since errors travel in every result.
        got: Option<Box<PeerId>>,
    },
    /// The handshake ended without an identity of the remote.
    #[error("the remote did not prove an identity")]
    NoPeerIdentity,
    /// A dial in the role of the listener needs a listener that sends from the right address.
    #[error("a dial in the role of the listener needs an active listener")]
    NoActiveListenerForDialAsListener,
    /// An incoming connection was beyond
    /// [`QuicConfig::max_connections`](crate::config::QuicConfig::max_connections) or
    /// [`QuicConfig::max_connections_per_prefix`](crate::config::QuicConfig::max_connections_per_prefix).
    #[error("quic.max_connections or quic.max_connections_per_prefix allows no further connection")]
    TooManyConnections,
    /// A hole punch towards this address is under way already.
    #[error("a hole punch towards {0} is under way already")]
    HolePunchInProgress(SocketAddr),
    /// No direct path to the peer was found.
    #[error("no direct path to the peer")]
    Traversal(#[source] FailureReason),
    /// There is no tokio runtime to run in.
    #[error("there is no tokio runtime: call this within one")]
    NoRuntime,
    /// The task that carries out traversals has ended.
    #[error("the traversal driver has stopped")]
    DriverStopped,
}

/// Reason for which QUIC refused to start dialing.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ConnectError(quinn::ConnectError);

/// Reason for which a QUIC handshake or connection failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct ConnectionError(quinn::ConnectionError);

impl ConnectionError {
    /// Returns true if the remote closed the connection.
    pub fn is_closed_by_peer(&self) -> bool {
        matches!(
            self.0,
            quinn::ConnectionError::ApplicationClosed(_) | quinn::ConnectionError::ConnectionClosed(_)
        )
    }

    /// Returns true if nothing was heard of the remote for the idle time-out.
    pub fn is_timed_out(&self) -> bool {
        matches!(self.0, quinn::ConnectionError::TimedOut)
    }
}

impl From<quinn::ConnectError> for Error {
    fn from(error: quinn::ConnectError) -> Self {
        Self::Connect(ConnectError(error))
    }
}

impl From<quinn::ConnectionError> for Error {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Connection(ConnectionError(error))
    }
}

impl Error {
    /// Returns true if a handshake waited in vain. A peer that refuses the handshake or presents
    /// another key has answered.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::HandshakeTimedOut | Self::Connection(ConnectionError(quinn::ConnectionError::TimedOut))
        )
    }

    /// Explains why a handshake failed in which `expected` was pinned and, perhaps, `got` was met.
    pub(crate) fn handshake(
        error: quinn::ConnectionError,
        expected: Option<PeerId>,
        got: Option<PeerId>,
    ) -> Self {
        match (&error, expected) {
            (quinn::ConnectionError::TransportError(e), Some(expected))
                if e.code == TransportErrorCode::crypto(ACCESS_DENIED) =>
            {
                Self::WrongPeerId { expected, got: got.map(Box::new) }
            }
            _ => error.into(),
        }
    }
}

impl From<Error> for libp2p_core::transport::TransportError<Error> {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}
