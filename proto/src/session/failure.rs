//! Consequences of the reasons for which attempts fail.

use crate::{event::FailureReason, wire::frame::RejectReason};

/// Returns true if another attempt may have another outcome.
pub(super) fn is_retryable(reason: FailureReason) -> bool {
    match reason {
        FailureReason::Rejected(reason) => is_temporary(reason),
        FailureReason::CoordinationTimeout
        | FailureReason::CoordinatorLost
        | FailureReason::Forged
        | FailureReason::NoCandidates
        | FailureReason::SynchronizationTimeout
        | FailureReason::PunchingTimeout
        | FailureReason::NatMeasured
        | FailureReason::ValidationTimeout
        | FailureReason::Handshake => true,
        // Discovery has had its time-out to wait for a coordinator.
        FailureReason::NoCoordinator
        | FailureReason::Cancelled
        | FailureReason::TooManySessions
        | FailureReason::Hopeless
        | FailureReason::DialSelf => false,
    }
}

/// Returns true if no attempt to punch came of it because coordinators could not, or would not for
/// the moment, pass the request on.
///
/// A node that was named as a coordinator may be none, or may say so only to end the attempt: with
/// `has_others`, no rejection ends it.
pub(super) fn is_miss(reason: FailureReason, has_others: bool) -> bool {
    match reason {
        FailureReason::CoordinatorLost => true,
        FailureReason::Rejected(_) if has_others => true,
        FailureReason::Rejected(reason) => is_temporary(reason) || reason == RejectReason::NotConnected,
        _ => false,
    }
}

/// Returns true if the peer that rejected a request may accept one in a moment.
pub(super) fn is_temporary(reason: RejectReason) -> bool {
    match reason {
        RejectReason::RateLimited | RejectReason::Full | RejectReason::Expired | RejectReason::Superseded => {
            true
        }
        RejectReason::NotConnected
        | RejectReason::NotWilling
        | RejectReason::Unsupported
        | RejectReason::Malformed => false,
    }
}
