//! Words for what the library reports: short ones for programs, sentences for people.

use libp2p::swarm::DialError;
use libp2p_punch::core::{
    candidate::{Candidate, CandidateKind},
    event::{Event, FailureReason},
    frame::RejectReason,
};

use crate::report::{milliseconds, short};

/// The value of `reason` in a `failed` line.
pub(crate) fn word(reason: FailureReason) -> &'static str {
    match reason {
        FailureReason::NoCoordinator => "no_coordinator",
        FailureReason::CoordinationTimeout => "coordination_timeout",
        FailureReason::CoordinatorLost => "coordinator_lost",
        FailureReason::Rejected(reason) => rejection(reason),
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
    }
}

fn rejection(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::NotConnected => "not_connected",
        RejectReason::RateLimited => "rate_limited",
        RejectReason::NotWilling => "not_willing",
        RejectReason::Expired => "expired",
        RejectReason::Unsupported => "unsupported",
        RejectReason::Full => "full",
        RejectReason::Malformed => "malformed",
        RejectReason::Superseded => "superseded",
    }
}

/// Why a dial failed, in one line.
pub(crate) fn of_dial(error: &DialError) -> String {
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

/// The message of the innermost cause, which is the one that says what happened.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

/// What a person is told of an event that has no JSON line: a label and a text.
pub(crate) fn describe(event: &Event) -> Option<(&'static str, String)> {
    Some(match event {
        Event::Retry { peer, attempt, reason, delay } => (
            "retry",
            format!("attempt {} in {:.1} s with {}: {reason}", attempt + 2, delay.as_secs_f64(), short(peer)),
        ),
        Event::Candidates { local, remote, .. } => {
            ("candidates", format!("ours {}; theirs {}", candidates(local), candidates(remote)))
        }
        Event::PathValidated { path, rtt, .. } => {
            ("path", format!("to {} answers after {} ms", path.remote, milliseconds(*rtt)))
        }
        Event::Observed { observer, address, .. } => {
            ("observed", format!("{} sees us at {address}", short(observer)))
        }
        Event::Relayed { peer, relay } => {
            let relay = relay.as_ref().map(|relay| format!(" over {}", short(relay)));
            ("relayed", format!("{} is connected{}", short(peer), relay.unwrap_or_default()))
        }
        Event::PathLost { peer, .. } => {
            ("lost", format!("every path to {}: its NAT, or ours, forgot us", short(peer)))
        }
        Event::RelayFailed { peer, reason } => ("no relay", format!("to {}: {reason}", short(peer))),
        Event::Upgraded { peer } => ("upgraded", format!("{} is connected directly now", short(peer))),
        Event::Reserved { relay } => ("reserved", format!("with the relay {}", short(relay))),
        Event::Unreserved { relay } => ("unreserved", format!("with the relay {}", short(relay))),
        _ => return None,
    })
}

/// A list such as `host 192.168.1.2:4001, reflexive 203.0.113.7:4001`.
pub(crate) fn candidates(all: &[Candidate]) -> String {
    if all.is_empty() {
        return "none".into();
    }
    let words = all.iter().map(|candidate| format!("{} {}", kind(candidate.kind), candidate.address));
    words.collect::<Vec<_>>().join(", ")
}

/// A short word for a kind of candidate.
pub(crate) fn kind(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::ServerReflexive => "reflexive",
        CandidateKind::PeerReflexive => "peer-reflexive",
        CandidateKind::Predicted => "predicted",
        CandidateKind::PortMapped => "mapped",
        CandidateKind::Relayed => "relayed",
    }
}
