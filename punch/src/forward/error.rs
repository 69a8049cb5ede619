//! Reasons for which a connection is not forwarded, or ends early.

use std::io;

use libp2p_punch::explain::explanations;

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

explanations! {
    ForwardError {
        Self::NotConnected(_) => "forward-not-connected",
            "Check that the peer runs, and that both machines have a network.";
        Self::Lost(_) => "forward-lost",
            "Connect again: the next local connection makes the one to the peer again.";
        Self::Aborted => "forward-aborted",
            "Look at the service, or the program, at the other end: it broke the connection off.";
        Self::Local(_) => "forward-local",
            "Look at the program at this end: it broke the connection off.";
        Self::Protocol(_) => "forward-protocol",
            "Use the same version of the program at both sides. If it is the same, report it as a bug.";
        Self::Endpoint(_) => "not-a-port",
            "Have the peer ask for HOST:PORT.";
        Self::NoRequest => "no-request",
            "Nothing is wrong here: the peer opened a stream and sent nothing.";
        Self::NoAnswer => "no-answer",
            "Check that the peer runs `punch forward --allow`.";
        Self::NoTicket { .. } => "forward-no-ticket",
            "Give the peer the present ticket if it may connect.";
        Self::NotAllowed { .. } => "port-not-allowed",
            "Name the port with `--allow` if peers may reach it.";
        Self::Busy => "forward-busy",
            "Close connections that are no longer used.";
        Self::Unreachable { .. } => "port-unreachable",
            "Start the service, or correct its name and port.";
        Self::Refused { .. } => "forward-refused",
            "Read the reason, which the peer has stated. Its ticket and its list may have changed.";
    }
}
