//! Explanations of failures: a stable code for programs, and a remedy for people.
//!
//! The sentence about a failure is its `Display`. The documentation has all explanations in
//! `docs/troubleshooting.md`.

use std::error::Error;

/// Code and remedy of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Explanation {
    /// Identifier for programs, such as `no-coordinator`: lower-case words, joined by hyphens. No
    /// other failure has it, and later versions keep it.
    pub code: &'static str,
    /// One or two sentences for people that say how to remove the cause.
    pub remedy: &'static str,
}

impl Explanation {
    /// Creates an explanation.
    pub const fn new(code: &'static str, remedy: &'static str) -> Self {
        Self { code, remedy }
    }
}

/// Failure that explains itself.
///
/// ```
/// use libp2p_punch_proto::{event::FailureReason, explain::Explain};
///
/// let reason = FailureReason::NoCoordinator;
/// println!("{reason} ({}). {}", reason.code(), reason.remedy());
/// ```
pub trait Explain: Error {
    /// Explanations of this type's own failures, in the order of its variants. A failure that wraps
    /// another one has the explanation of the wrapped one, which is not repeated here.
    const EXPLANATIONS: &'static [Explanation];

    /// Returns the explanation of this failure.
    fn explanation(&self) -> Explanation;

    /// Returns the code of this failure.
    fn code(&self) -> &'static str {
        self.explanation().code
    }

    /// Returns the remedy for this failure.
    fn remedy(&self) -> &'static str {
        self.explanation().remedy
    }
}

/// Implements [`Explain`] for a type by a table: pattern, code, remedy. The patterns after `wraps`
/// take the explanation of another failure. The compiler refuses a table without all variants.
///
/// ```
/// use libp2p_punch_proto::{event::FailureReason, explain::Explain, explanations};
///
/// #[derive(Debug)]
/// enum Failure {
///     NoPower,
///     Session(FailureReason),
/// }
/// # impl std::fmt::Display for Failure {
/// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("failed") }
/// # }
/// # impl std::error::Error for Failure {}
///
/// explanations! {
///     Failure {
///         Self::NoPower => "no-power", "Plug it in.";
///     } wraps {
///         Self::Session(reason) => reason.explanation();
///     }
/// }
/// assert_eq!(Failure::NoPower.code(), "no-power");
/// assert_eq!(Failure::Session(FailureReason::Hopeless).code(), "hopeless");
/// ```
#[macro_export]
macro_rules! explanations {
    ($type:ty {
        $($own:pat $(if $guard:expr)? => $code:expr, $remedy:expr;)*
    } $(wraps {
        $($wrapping:pat => $explanation:expr;)*
    })?) => {
        impl $crate::explain::Explain for $type {
            const EXPLANATIONS: &'static [$crate::explain::Explanation] =
                &[$($crate::explain::Explanation::new($code, $remedy),)*];

            fn explanation(&self) -> $crate::explain::Explanation {
                match self {
                    $($own $(if $guard)? => $crate::explain::Explanation::new($code, $remedy),)*
                    $($($wrapping => $explanation,)*)?
                }
            }
        }
    };
}

explanations! {
    crate::event::FailureReason {
        Self::NoCoordinator => "no-coordinator",
            "Check that a coordinator is configured or found, that it runs, and that UDP to its port is allowed on the way.";
        Self::CoordinationTimeout => "coordination-timeout",
            "Check that the coordinator runs and is not overloaded. Configure a second coordinator.";
        Self::CoordinatorLost => "coordinator-lost",
            "Look into the log of the coordinator for a restart or a closed connection. Configure a second coordinator.";
        Self::Forged => "answer-forged",
            "Do not use this coordinator: it is faulty or hostile. Use another one.";
        Self::NoCandidates => "no-candidates",
            "Let one of both peers listen on a routable address and register with a coordinator outside its network. Check the gater and `host_candidates`.";
        Self::SynchronizationTimeout => "synchronization-timeout",
            "Check the load of this machine and the limit of open files, then dial again.";
        Self::PunchingTimeout => "punching-timeout",
            "Check that no firewall of either peer blocks UDP. Allow port mapping at one router, or provide a relay.";
        Self::NatMeasured => "nat-measured",
            "Dial again: the NAT is measured now.";
        Self::Hopeless => "hopeless",
            "Provide a relay. A port forwarding at either router, or IPv6 at both, also gives a direct path.";
        Self::ValidationTimeout => "validation-timeout",
            "Check that datagrams of 1,200 bytes pass in both directions: a tunnel or a VPN with a smaller MTU drops them.";
        Self::Handshake => "handshake-failed",
            "Check that both peers run versions that fit, and that the PeerId is the one of the peer.";
        Self::Cancelled => "cancelled",
            "Nothing is wrong: this side gave the dial up. Allow a longer time-out if that was the cause.";
        Self::TooManySessions => "too-many-sessions",
            "Dial fewer peers at once, or wait until other dials have ended.";
        Self::DialSelf => "dial-self",
            "Dial the PeerId of another peer.";
    } wraps {
        Self::Rejected(reason) => reason.explanation();
    }
}

explanations! {
    crate::wire::frame::RejectReason {
        Self::NotConnected => "peer-not-connected",
            "Check that the peer runs and is registered with the same coordinator. Its PeerId may have changed with its key file.";
        Self::RateLimited => "rate-limited",
            "Wait, and dial fewer peers at once. The operator of the coordinator can raise `request_rate` and `pair_rate`.";
        Self::NotWilling => "not-willing",
            "Ask a peer with the role of a coordinator. The gater of the other side may exclude this peer.";
        Self::Expired => "request-expired",
            "Dial again. If it happens often, the coordinator or the way to it is overloaded.";
        Self::Unsupported => "not-supported",
            "Update the older of the two sides.";
        Self::Full => "full",
            "Use another coordinator, or dial later. The operator of the coordinator can raise `max_registrations`.";
        Self::Malformed => "request-malformed",
            "Update the older of the two sides. If both are current, report it as a bug.";
        Self::Superseded => "superseded",
            "Nothing is wrong: both peers dialed at once, and the dial of the other peer continues.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::FailureReason, wire::frame::RejectReason};

    #[test]
    fn a_rejected_request_has_the_explanation_of_the_rejection() {
        let reason = RejectReason::RateLimited;
        assert_eq!(FailureReason::Rejected(reason).explanation(), reason.explanation());
        assert_eq!(reason.code(), "rate-limited");
    }
}
