//! Reasons for which a connection is not forwarded, or ends early.

use std::io;

use super::endpoint::{Endpoint, EndpointError};

/// Reason for which a connection is not forwarded, or ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// There is no connection to the peer.
    #[error("cannot reach the peer: {0}")]
    NotConnected(String),
    /// The stream to the peer failed.
    #[error("the connection to the peer was lost: {0}")]
    Lost(io::Error),
    /// The peer, or its end of the connection, has gone before the end of the data.
    #[error("the other end broke the connection off")]
    Aborted,
    /// The local end of the connection failed.
    #[error("the connection on this side broke: {0}")]
    Local(io::Error),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// A peer asked for something that is no port.
    #[error("a peer asked for no port: {0}")]
    Endpoint(#[from] EndpointError),
    /// A peer sent no request in time.
    #[error("a peer sent no request in time")]
    NoRequest,
    /// A peer did not answer in time.
    #[error("the peer does not answer: its program hangs, or forwards nothing")]
    NoAnswer,
    /// A peer showed the wrong secret.
    #[error("a peer without the ticket asked for {target}")]
    NoTicket { target: Endpoint },
    /// The allow-list does not have the port.
    #[error("{target} is not allowed: the list has other ports")]
    NotAllowed { target: Endpoint },
    /// Too many connections are open.
    #[error("too many connections are open")]
    Busy,
    /// There is no connection to the port.
    #[error("cannot connect to {target}: {cause}")]
    Unreachable { target: Endpoint, cause: String },
    /// The peer refused, for a reason that it states.
    #[error("the peer refused: {detail}")]
    Refused { detail: String },
}
