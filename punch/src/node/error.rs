//! Errors of a node, and the reasons why a dial fails.

use std::{error::Error, fmt, io, time::Duration};

use libp2p::{Multiaddr, PeerId, swarm::DialError};
use libp2p_punch::{
    event::FailureReason,
    explain::{self, Explanation, explanations},
};

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
    /// No address of the peer is known.
    NoAddresses,
    /// The dial failed for a reason that the library explains.
    Explained { sentence: String, explanation: Explanation },
    /// The dial failed for another reason.
    Dial(String),
    /// The traversal session failed.
    Session(FailureReason),
    /// The peer is connected, but did not send the bytes back.
    NoEcho(String),
}

impl DialFailure {
    /// Explains why a dial of the swarm failed.
    pub(crate) fn of_dial(error: &DialError) -> Self {
        let sentence = describe_dial_error(error);
        match (error, explain::of_dial(error)) {
            (DialError::NoAddresses, _) => Self::NoAddresses,
            (_, Some(explanation)) => Self::Explained { sentence, explanation },
            (_, None) => Self::Dial(sentence),
        }
    }
}

impl Error for NodeError {}

impl Error for DialFailure {}

explanations! {
    NodeError {
        Self::Build(_) => "swarm-not-built",
            "Use an Ed25519 key. If the key is one, report it as a bug.";
        Self::Listen { .. } => "listen-failed",
            "Choose an address of this machine and a free port.";
        Self::Registration(_) => "coordinator-unreachable",
            "Check that the coordinator runs, that its address and PeerId are right, and that UDP to its port is allowed on the way.";
        Self::Observer(_) => "output-failed",
            "Check where the output of the program goes.";
    } wraps {
        Self::Library(error) => error.explanation();
    }
}

explanations! {
    DialFailure {
        Self::Timeout(_) => "timeout",
            "Check that the peer runs and is registered with the coordinator. Allow more time with `--timeout`.";
        Self::Interrupted => "interrupted",
            "Nothing is wrong: a signal ended the program.";
        Self::NoAddresses => "no-address",
            "Name a coordinator with which the peer is registered.";
        Self::Dial(_) => "dial-failed",
            "Read the message. `RUST_LOG=libp2p_punch=debug` shows what was tried.";
        Self::NoEcho(_) => "no-echo",
            "Check that the peer runs `punch listen`, and dial again.";
    } wraps {
        Self::Node(error) | Self::NoCoordinator(error) => error.explanation();
        Self::Explained { explanation, .. } => *explanation;
        Self::Session(reason) => reason.explanation();
    }
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialFailure::Node(error) | DialFailure::NoCoordinator(error) => error.fmt(f),
            DialFailure::Timeout(time) => write!(f, "no connection within {} s", time.as_secs_f64()),
            DialFailure::Interrupted => f.write_str("interrupted"),
            DialFailure::NoAddresses => f.write_str("no address of the peer is known"),
            DialFailure::Explained { sentence, .. } | DialFailure::Dial(sentence) => f.write_str(sentence),
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
        if text.is_empty() {
            text = more;
        } else if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
