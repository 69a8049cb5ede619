//! Explanations of failures: a stable code for programs, and a remedy for people.

pub use libp2p_punch_proto::{
    explain::{Explain, Explanation},
    explanations,
};

use std::{error, io, iter};

use libp2p_swarm::DialError;

use crate::{
    config::ConfigError,
    event::{FailureReason, RelayFailure},
    sources::SourceError,
    transport::{ConnectError, ConnectionError, Error},
};

/// Returns the explanation of a failure of this library that is the cause of an error of the swarm.
/// If there are several, a failed traversal comes first.
pub fn of_dial(error: &DialError) -> Option<Explanation> {
    match error {
        DialError::LocalPeerId { .. } => Some(FailureReason::DialSelf.explanation()),
        DialError::WrongPeerId { .. } => Some(WRONG_PEER_ID),
        DialError::Transport(errors) => {
            let all = || errors.iter().flat_map(|(_, error)| causes(error));
            let reason = all().find_map(|cause| cause.downcast_ref::<FailureReason>());
            let error = || all().find_map(|cause| cause.downcast_ref::<Error>());
            reason.map(Explain::explanation).or_else(|| error().map(Explain::explanation))
        }
        _ => None,
    }
}

/// Returns an error and its causes, outermost first. An error within an [`io::Error`] is one, too.
pub fn causes<'a>(
    error: &'a (dyn error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn error::Error + 'static)> {
    iter::successors(Some(error), |error| match error.downcast_ref::<io::Error>() {
        // The source of an `io::Error` leaves out the error that it wraps.
        Some(io) => io.get_ref().map(|inner| inner as &(dyn error::Error + 'static)),
        None => error.source(),
    })
}

/// Explanation of [`Error::WrongPeerId`], which the swarm reports as an error of its own.
const WRONG_PEER_ID: Explanation = Explanation::new(
    "wrong-peer-id",
    "Correct the PeerId or the address: another peer has the address now. The key file of the peer may have been replaced.",
);

explanations! {
    RelayFailure {
        Self::NoRelay => "no-relay",
            "Connect to a coordinator or another peer that relays.";
        Self::Unreachable => "relay-unreachable",
            "Check that the peer has a reservation with one of the relays that this peer knows.";
    }
}

explanations! {
    Error {
        Self::Identity(_) => "identity-unusable",
            "Use an Ed25519 key.";
        Self::Io(_) => "io",
            "Read the message of the operating system. Usual causes: a port in use, the limit of open files, and a service without the right to use netlink.";
        Self::HandshakeTimedOut => "handshake-timeout",
            "Check the address, and that UDP to its port is allowed on the way. An MTU below 1,228 bytes on the way has the same effect.";
        Self::WrongPeerId { .. } => WRONG_PEER_ID.code, WRONG_PEER_ID.remedy;
        Self::NoPeerIdentity => "no-peer-identity",
            "Check that the remote is a libp2p peer.";
        Self::NoActiveListenerForDialAsListener => "no-active-listener",
            "Listen on a QUIC address of the same IP version first.";
        Self::TooManyConnections => "too-many-connections",
            "Raise `quic.max_connections` or `quic.max_connections_per_prefix` if the load is legitimate.";
        Self::HolePunchInProgress(_) => "hole-punch-in-progress",
            "Wait for the punch that is under way.";
        Self::NoRuntime => "no-runtime",
            "Call `libp2p_punch::new` within a tokio runtime.";
        Self::DriverStopped => "driver-stopped",
            "Keep the behaviour alive for as long as the transport, in one swarm. If both live, look for a panic in the log.";
    } wraps {
        Self::Config(error) => error.explanation();
        Self::Connect(error) => error.explanation();
        Self::Connection(error) => error.explanation();
        Self::Traversal(reason) => reason.explanation();
    }
}

explanations! {
    ConnectError {
        _ => "cannot-dial",
            "Check the address and the port, and that a local address of the same IP version exists.";
    }
}

explanations! {
    ConnectionError {
        error if error.is_timed_out() => "connection-timed-out",
            "Nothing was heard of the remote. Check that it runs, and raise `quic.max_idle_timeout` for slow networks.";
        error if error.is_closed_by_peer() => "closed-by-peer",
            "Look into the log of the remote: it closed the connection.";
        _ => "connection-failed",
            "Read the message. If it names a violation of the protocol, update the older of the two sides.";
    }
}

explanations! {
    ConfigError {
        Self::RelayDrain { .. } => "relay-drain",
            "Set `relay_drain` to a day at most.";
        Self::MaxCandidates { .. } => "max-candidates",
            "Set `max_candidates` within its bounds.";
        Self::MaxConcurrentAttempts { .. } => "max-concurrent-attempts",
            "Set `max_concurrent_attempts` within its bounds.";
        Self::ConcurrentAttemptsAboveCandidates { .. } => "concurrent-attempts-above-candidates",
            "Lower `max_concurrent_attempts`, or raise `max_candidates`.";
        Self::MaxAttempts { .. } => "max-attempts",
            "Set `max_attempts` within its bounds.";
        Self::Timeout { .. } => "timeout-out-of-bounds",
            "Set the named time-out within its bounds.";
        Self::BootstrapWithRelayFallback => "bootstrap-with-relay-fallback",
            "Set `relay_fallback` to false, or choose another role.";
        Self::CoordinatorWithoutPeerId { .. } => "coordinator-without-peer-id",
            "Append `/p2p/` and the PeerId of the coordinator to the address.";
        Self::BindAddress { .. } => "bind-address",
            "Write the address as `/ip4/ADDRESS/udp/PORT/quic-v1` or `/ip6/ADDRESS/udp/PORT/quic-v1`.";
        Self::KeepAliveAboveIdle { .. } => "keep-alive-above-idle",
            "Lower `quic.keep_alive_interval`, or raise `quic.max_idle_timeout`.";
        Self::QlogFolder { .. } => "qlog-folder",
            "Create the folder, and let the user of the process write to it.";
        Self::QlogNotBuilt => "qlog-not-built",
            "Build with the cargo feature `qlog`, or leave `quic.qlog` out.";
        Self::OutOfBounds { .. } => "out-of-bounds",
            "Set the named field within the bound that the message states.";
    }
}

explanations! {
    SourceError {
        Self::Malformed { .. } => "coordinator-file-malformed",
            "Write one address of a coordinator a line. Lines that begin with `#` are comments.";
        Self::Unreadable { .. } => "coordinator-file-unreadable",
            "Check the path, and let the user of the process read the file.";
        Self::TooLarge { .. } => "coordinator-file-too-large",
            "Remove coordinators from the file.";
    } wraps {
        Self::Address { cause, .. } => cause.explanation();
    }
}
