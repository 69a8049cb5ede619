//! Errors of a node, and the reasons why a dial fails.

use std::{error::Error, fmt, io, time::Duration};

use libp2p::{Multiaddr, PeerId, swarm::DialError};
use libp2p_punch::{event::FailureReason, event::RejectReason};

/// Error after which a node cannot go on.
#[derive(Debug)]
pub(crate) enum NodeError {
    /// The library refused the configuration, or could not start.
    Library(libp2p_punch::Error),
    /// The swarm could not be built.
    Build(Box<dyn Error + Send + Sync>),
    /// Addresses cannot be listened on.
    Listen { addresses: Vec<Multiaddr>, cause: String },
    /// No coordinator accepted the registration; the message of each.
    Registration(Vec<(PeerId, String)>),
    /// The observer failed.
    Observer(io::Error),
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeError::Library(error) => error.fmt(f),
            NodeError::Build(error) => error.fmt(f),
            NodeError::Listen { addresses, cause } => {
                let addresses: Vec<String> = addresses.iter().map(Multiaddr::to_string).collect();
                write!(f, "cannot listen on {}: {cause}", addresses.join(", "))
            }
            NodeError::Registration(answers) => {
                let answers = answers.iter().map(|(peer, message)| format!("{peer}: {message}"));
                let answers = answers.collect::<Vec<_>>().join("; ");
                write!(f, "no coordinator accepted the registration ({answers})")
            }
            NodeError::Observer(error) => error.fmt(f),
        }
    }
}

/// Reason why a dial, or the exchange after it, failed.
#[derive(Debug)]
pub(crate) enum DialFailure {
    /// The node itself cannot go on.
    Node(NodeError),
    /// No coordinator accepted the registration.
    NoCoordinator(NodeError),
    /// No connection within this time.
    Timeout(Duration),
    /// The user ended the program.
    Interrupted,
    /// The dial of the swarm failed.
    Dial(DialError),
    /// The traversal session failed.
    Session(FailureReason),
    /// The peer is connected, but did not send the bytes back.
    NoEcho(String),
}

impl DialFailure {
    /// Identifier for programs: `reason` of a `failed` line.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            DialFailure::Node(_) => "node",
            DialFailure::NoCoordinator(_) => "no_coordinator",
            DialFailure::Timeout(_) => "timeout",
            DialFailure::Interrupted => "interrupted",
            DialFailure::Dial(DialError::LocalPeerId { .. }) => "dial_self",
            DialFailure::Dial(DialError::NoAddresses) => "no_addresses",
            DialFailure::Dial(DialError::WrongPeerId { .. }) => "wrong_peer_id",
            DialFailure::Dial(_) => "dial",
            DialFailure::Session(reason) => session_code(*reason),
            DialFailure::NoEcho(_) => "no_echo",
        }
    }
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialFailure::Node(error) | DialFailure::NoCoordinator(error) => error.fmt(f),
            DialFailure::Timeout(time) => write!(f, "no connection within {} s", time.as_secs_f64()),
            DialFailure::Interrupted => f.write_str("interrupted"),
            DialFailure::Dial(error) => f.write_str(&describe_dial_error(error)),
            DialFailure::Session(reason) => reason.fmt(f),
            DialFailure::NoEcho(cause) => write!(f, "connected, but nothing came back: {cause}"),
        }
    }
}

impl From<NodeError> for DialFailure {
    fn from(error: NodeError) -> Self {
        DialFailure::Node(error)
    }
}

/// Identifier of the reason why a session failed.
pub(crate) fn session_code(reason: FailureReason) -> &'static str {
    match reason {
        FailureReason::NoCoordinator => "no_coordinator",
        FailureReason::CoordinationTimeout => "coordination_timeout",
        FailureReason::CoordinatorLost => "coordinator_lost",
        FailureReason::Rejected(reason) => rejection_code(reason),
        FailureReason::Forged => "forged",
        FailureReason::NoCandidates => "no_candidates",
        FailureReason::SynchronizationTimeout => "synchronization_timeout",
        FailureReason::PunchingTimeout => "punching_timeout",
        FailureReason::NatMeasured => "nat_measured",
        FailureReason::Hopeless => "hopeless",
        FailureReason::ValidationTimeout => "validation_timeout",
        FailureReason::Handshake => "handshake",
        FailureReason::Cancelled => "cancelled",
        FailureReason::TooManySessions => "too_many_sessions",
        FailureReason::DialSelf => "dial_self",
        _ => "other",
    }
}

fn rejection_code(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::NotConnected => "not_connected",
        RejectReason::RateLimited => "rate_limited",
        RejectReason::NotWilling => "not_willing",
        RejectReason::Expired => "expired",
        RejectReason::Unsupported => "unsupported",
        RejectReason::Full => "full",
        RejectReason::Malformed => "malformed",
        RejectReason::Superseded => "superseded",
        _ => "other",
    }
}

/// Describes in one line why a dial failed.
pub(super) fn describe_dial_error(error: &DialError) -> String {
    match error {
        DialError::LocalPeerId { .. } => FailureReason::DialSelf.to_string(),
        DialError::NoAddresses => "no address of the peer is known".into(),
        DialError::WrongPeerId { obtained, .. } => format!("another peer answered: {obtained}"),
        DialError::Transport(errors) => match errors.first() {
            Some((address, error)) => format!("{address}: {}", innermost(error)),
            None => "no address of the peer is known".into(),
        },
        other => innermost(other),
    }
}

/// Message of the innermost cause, which names the fault itself.
fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

/// Message of an error and of those causes that add to it.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
