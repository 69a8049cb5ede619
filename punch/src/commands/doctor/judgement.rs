//! The judgement of `punch doctor`: from facts to findings and a verdict.
//!
//! A finding tells what was observed. A step whose result was not observed is not tested, whatever
//! the other steps make likely.

use std::time::Duration;

use libp2p_punch::{
    event::{FailureReason, NatKind, RejectReason},
    explain::{Explain, Explanation},
};
use libp2p_punch_node::ConnectError;

use super::{
    cause::Cause,
    facts::{Coordinator, Facts, Outcome},
    probe::{Probe, UdpAnswer},
};

/// Steps of a connection, in the order in which they are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Interfaces,
    UdpOut,
    Coordinator,
    Registration,
    PeerAddress,
    PeerKnown,
    RequestForwarded,
    PeerAnswered,
    Probes,
    Path,
    Handshake,
    Relay,
}

impl Step {
    /// Returns the name for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Interfaces => "interfaces",
            Self::UdpOut => "UDP out",
            Self::Coordinator => "coordinator",
            Self::Registration => "registration",
            Self::PeerAddress => "peer's address",
            Self::PeerKnown => "peer known",
            Self::RequestForwarded => "request forwarded",
            Self::PeerAnswered => "peer answered",
            Self::Probes => "probes",
            Self::Path => "path",
            Self::Handshake => "handshake",
            Self::Relay => "relay",
        }
    }
}

/// Result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Passed,
    Failed,
    NotTested,
}

/// Observation of a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) step: Step,
    pub(super) state: State,
    pub(super) text: String,
    pub(super) time: Option<Duration>,
    pub(super) explanation: Option<Explanation>,
}

impl Finding {
    fn passed(step: Step, text: impl Into<String>, time: Option<Duration>) -> Self {
        Self { step, state: State::Passed, text: text.into(), time, explanation: None }
    }

    fn failed(step: Step, text: impl Into<String>) -> Self {
        Self { step, state: State::Failed, text: text.into(), time: None, explanation: None }
    }

    fn because(step: Step, failure: &impl Explain) -> Self {
        Self { explanation: Some(failure.explanation()), ..Self::failed(step, failure.to_string()) }
    }

    fn not_tested(step: Step, text: impl Into<String>) -> Self {
        Self { step, state: State::NotTested, text: text.into(), time: None, explanation: None }
    }
}

/// Place of the fault, which decides on the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// None: there is a direct connection.
    None,
    /// There is a connection over a relay alone.
    OnlyRelayed,
    /// The cause was not found.
    Unknown,
    ThisMachine,
    Network,
    Coordinator,
    Peer,
    Nats,
    Limits,
}

impl Fault {
    /// Returns the exit code.
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::OnlyRelayed => 10,
            Self::Unknown => 11,
            Self::ThisMachine => 20,
            Self::Network => 21,
            Self::Coordinator => 22,
            Self::Peer => 23,
            Self::Nats => 24,
            Self::Limits => 25,
        }
    }
}

/// Answer to the question why the peer cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) fault: Fault,
    pub(super) code: &'static str,
    pub(super) sentence: String,
    pub(super) remedy: &'static str,
}

/// Findings, and what follows from them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Diagnosis {
    pub(super) findings: Vec<Finding>,
    pub(super) verdict: Verdict,
}

/// Judges the facts.
pub(super) fn judge(facts: &Facts) -> Diagnosis {
    let mut findings = vec![interfaces(facts), udp_out(facts)];
    findings.extend(facts.coordinators.iter().flat_map(|it| coordinator(it, facts)));
    if facts.coordinators.is_empty() {
        findings.push(Finding::not_tested(Step::Coordinator, "no coordinator is named"));
    }
    findings.extend(peer_address(facts));
    findings.extend([
        peer_known(facts),
        request_forwarded(facts),
        peer_answered(facts),
        probes(facts),
        path(facts),
        handshake(facts),
        relay(facts),
    ]);
    Diagnosis { findings, verdict: verdict(facts) }
}

fn interfaces(facts: &Facts) -> Finding {
    match facts.interfaces.len() {
        0 => Finding::failed(Step::Interfaces, "this node listens on loopback alone"),
        1 => Finding::passed(Step::Interfaces, "1 address", None),
        count => Finding::passed(Step::Interfaces, format!("{count} addresses"), None),
    }
}

/// Returns true if anything came back over UDP from a machine.
fn is_udp_heard(facts: &Facts) -> bool {
    let is_heard = |coordinator: &Coordinator| match (&coordinator.dial, &coordinator.probe) {
        (Some(Ok(()) | Err(ConnectError::WrongPeer { .. })), _) => true,
        (_, Some(Probe::Answers { udp, .. })) => {
            matches!(udp, UdpAnswer::Server | UdpAnswer::Refused)
        }
        _ => false,
    };
    facts.coordinators.iter().any(is_heard)
        || facts.session.answered.is_some()
        || facts.dial_failures.iter().any(|it| matches!(it, ConnectError::WrongPeer { .. }))
        || matches!(facts.outcome, Outcome::Direct { .. })
}

fn udp_out(facts: &Facts) -> Finding {
    if is_udp_heard(facts) {
        return Finding::passed(Step::UdpOut, "answers come back", None);
    }
    let causes = facts.coordinators.iter().filter_map(|it| coordinator_cause(it, facts));
    let about_udp = |cause: &Cause| {
        matches!(
            cause,
            Cause::Forbidden { .. }
                | Cause::NoSocket { .. }
                | Cause::UdpBlocked { .. }
                | Cause::NoRoute { .. }
                | Cause::NoNetwork { .. }
                | Cause::CoordinatorSilent { .. }
        )
    };
    match causes.into_iter().find(about_udp) {
        Some(cause) => Finding::because(Step::UdpOut, &cause),
        None => Finding::not_tested(Step::UdpOut, "no datagram was sent that must be answered"),
    }
}

/// Returns the reason for which a coordinator is not connected or does not help.
fn coordinator_cause(coordinator: &Coordinator, facts: &Facts) -> Option<Cause> {
    let address = coordinator.address.clone();
    let failure = match &coordinator.dial {
        Some(Ok(())) if coordinator.coordinates == Some(false) => {
            return Some(Cause::NotACoordinator { address });
        }
        Some(Ok(())) => return None,
        None => None,
        Some(Err(ConnectError::WrongPeer { expected, obtained, .. })) => {
            let (expected, obtained) = (*expected, *obtained);
            return Some(Cause::WrongCoordinator { expected, obtained, address });
        }
        Some(Err(failure)) => Some(failure),
    };
    let (udp, tcp) = match &coordinator.probe {
        Some(Probe::NoSuchName { name, cause }) => {
            return Some(Cause::NoSuchName { name: name.clone(), cause: cause.clone() });
        }
        Some(Probe::Answers { udp, tcp }) => (udp, *tcp),
        None => return failure.map(|_| Cause::CoordinatorSilent { address }),
    };
    Some(match udp {
        // It was not dialed to an end.
        UdpAnswer::Server if failure.is_none() => return None,
        UdpAnswer::Server => Cause::CoordinatorHandshake {
            address,
            cause: failure.map_or_else(|| "it does not end in time".into(), ToString::to_string),
        },
        UdpAnswer::Refused => Cause::CoordinatorDown { address },
        UdpAnswer::Forbidden => Cause::Forbidden { address },
        UdpAnswer::NotSent(cause) => Cause::NoSocket { cause: cause.clone() },
        UdpAnswer::NoRoute if facts.interfaces.is_empty() => Cause::NoNetwork { address },
        UdpAnswer::NoRoute => Cause::NoRoute { address },
        // Where other datagrams pass, only this address is silent.
        UdpAnswer::Silence if tcp && !is_udp_heard(facts) => Cause::UdpBlocked { address },
        UdpAnswer::Silence => Cause::CoordinatorSilent { address },
    })
}

fn coordinator(coordinator: &Coordinator, facts: &Facts) -> Vec<Finding> {
    let finding = match coordinator_cause(coordinator, facts) {
        Some(cause) => Finding { time: coordinator.after, ..Finding::because(Step::Coordinator, &cause) },
        None if !coordinator.is_connected() => {
            Finding::not_tested(Step::Coordinator, format!("{}: no dial has ended", coordinator.address))
        }
        None => {
            let willing = match coordinator.coordinates {
                Some(_) => "connected, and coordinates",
                None => "connected, and has not described itself",
            };
            let text = format!("{}: {willing}", coordinator.address);
            Finding::passed(Step::Coordinator, text, coordinator.after)
        }
    };
    let registration = match coordinator.registration {
        Some(Ok(rtt)) => Finding::passed(Step::Registration, "this peer is registered", rtt),
        Some(Err(reason)) => Finding::because(Step::Registration, &Cause::Refused(reason)),
        None => Finding::not_tested(Step::Registration, "the coordinator has not answered one"),
    };
    vec![finding, registration]
}

fn peer_address(facts: &Facts) -> Vec<Finding> {
    if facts.addresses.is_empty() {
        return Vec::new();
    }
    if facts.dial_failures.is_empty() {
        let is_answered =
            matches!(facts.outcome, Outcome::Direct { .. }) && facts.session.connected.is_none();
        return vec![if is_answered {
            Finding::passed(Step::PeerAddress, "the peer answers", None)
        } else {
            Finding::not_tested(Step::PeerAddress, "no result was observed")
        }];
    }
    facts.dial_failures.iter().map(|failure| Finding::because(Step::PeerAddress, failure)).collect()
}

/// Returns the rejection that ended the last attempt that was rejected.
fn rejection(facts: &Facts) -> Option<RejectReason> {
    facts.session.failures.iter().rev().find_map(|failure| match failure {
        FailureReason::Rejected(reason) => Some(*reason),
        _ => None,
    })
}

fn peer_known(facts: &Facts) -> Finding {
    match rejection(facts) {
        _ if facts.session.coordination.is_some() => {
            Finding::passed(Step::PeerKnown, "a coordinator knows the peer", None)
        }
        Some(reason @ RejectReason::NotConnected) => Finding::because(Step::PeerKnown, &reason),
        _ => Finding::not_tested(Step::PeerKnown, "no coordinator answered for the peer"),
    }
}

fn request_forwarded(facts: &Facts) -> Finding {
    let step = Step::RequestForwarded;
    if let Some(time) = facts.session.coordination {
        return Finding::passed(step, "the coordinator passed the request on", Some(time));
    }
    let refused = |failure: &&FailureReason| {
        matches!(
            failure,
            FailureReason::CoordinationTimeout | FailureReason::CoordinatorLost | FailureReason::Forged
        ) || matches!(failure, FailureReason::Rejected(reason) if *reason != RejectReason::NotConnected)
    };
    match facts.session.failures.iter().rev().find(refused) {
        Some(reason) => Finding::because(step, reason),
        None => Finding::not_tested(step, "no request reached a coordinator that knows the peer"),
    }
}

/// Returns true if the peer met silence after a request that was passed on.
fn is_silent(facts: &Facts) -> bool {
    let is_silence =
        |reason: &FailureReason| matches!(reason, FailureReason::PunchingTimeout | FailureReason::Hopeless);
    facts.session.failures.iter().any(is_silence) && facts.session.answered.is_none()
}

fn peer_answered(facts: &Facts) -> Finding {
    let step = Step::PeerAnswered;
    match (&facts.outcome, facts.session.answered) {
        (_, Some(rtt)) => Finding::passed(step, "the peer answers probes", Some(rtt)),
        (Outcome::Direct { after, .. } | Outcome::Relayed { after }, None) => {
            Finding::passed(step, "the peer is connected", Some(*after))
        }
        _ if is_silent(facts) => Finding::failed(step, "nothing came from the peer"),
        _ => Finding::not_tested(step, "no probe was sent to the peer"),
    }
}

fn probes(facts: &Facts) -> Finding {
    let Some(candidates) = facts.session.candidates else {
        return Finding::not_tested(Step::Probes, "no probe was sent");
    };
    let searched = facts.session.search.map(|sockets| format!(", and a search with {sockets} sockets"));
    let sent = format!(
        "{} addresses of this peer to {} of the peer{}",
        candidates.local,
        candidates.remote,
        searched.unwrap_or_default()
    );
    match facts.session.answered {
        Some(_) => Finding::passed(Step::Probes, format!("{sent}: answers came in"), facts.session.probing),
        None if is_silent(facts) => Finding::failed(Step::Probes, format!("{sent}: no answer came in")),
        None => Finding::not_tested(Step::Probes, format!("{sent}: the session ended before an answer")),
    }
}

fn path(facts: &Facts) -> Finding {
    match (&facts.session.connected, &facts.outcome) {
        (Some((kind, _)), _) => {
            Finding::passed(Step::Path, format!("the address of the peer is {kind}"), None)
        }
        (None, Outcome::Direct { address: Some(address), .. }) => {
            Finding::passed(Step::Path, address.to_string(), None)
        }
        _ if is_silent(facts) => Finding::failed(Step::Path, "no path was found"),
        _ => Finding::not_tested(Step::Path, "no path was looked for to its end"),
    }
}

fn handshake(facts: &Facts) -> Finding {
    let step = Step::Handshake;
    let fault = |reason: &&FailureReason| {
        matches!(reason, FailureReason::ValidationTimeout | FailureReason::Handshake)
    };
    match (&facts.session.connected, &facts.outcome) {
        (Some((_, time)), _) => Finding::passed(step, "the peer has proved its PeerId", Some(*time)),
        (None, Outcome::Direct { .. }) => Finding::passed(step, "the peer has proved its PeerId", None),
        _ => match facts.session.failures.iter().rev().find(fault) {
            Some(reason) => Finding::because(step, reason),
            None => Finding::not_tested(step, "no path carried one"),
        },
    }
}

fn relay(facts: &Facts) -> Finding {
    match (&facts.relay, &facts.outcome) {
        (Some(Ok(relay)), _) => {
            let relay = relay.map(|relay| format!(" over {relay}")).unwrap_or_default();
            Finding::passed(Step::Relay, format!("connected{relay}"), None)
        }
        (None, Outcome::Relayed { .. }) => Finding::passed(Step::Relay, "connected", None),
        (Some(Err(reason)), _) => Finding::because(Step::Relay, reason),
        (None, _) => Finding::not_tested(Step::Relay, "no relay was asked"),
    }
}

fn verdict(facts: &Facts) -> Verdict {
    let peer = facts.peer;
    match &facts.outcome {
        Outcome::Direct { .. } => Verdict {
            fault: Fault::None,
            code: "direct",
            sentence: format!("{peer} is reached directly"),
            remedy: "Nothing is wrong.",
        },
        Outcome::Relayed { .. } => relayed(facts),
        Outcome::NotTried | Outcome::Failed(_) => {
            let Judged { fault, explanation, sentence } = failure(facts);
            let sentence = format!("{peer} cannot be reached: {sentence}");
            Verdict { fault, code: explanation.code, sentence, remedy: explanation.remedy }
        }
    }
}

fn relayed(facts: &Facts) -> Verdict {
    let sentence = format!("{} is reached over a relay alone", facts.peer);
    let (sentence, remedy) = match session_failure(facts) {
        Some(judged) => (format!("{sentence}: {}", judged.sentence), judged.explanation.remedy),
        None => (
            format!("{sentence} so far: no attempt at a direct path has ended"),
            "Allow more time with --timeout.",
        ),
    };
    Verdict { fault: Fault::OnlyRelayed, code: "relayed", sentence, remedy }
}

/// A failure, and the place of its fault.
struct Judged {
    fault: Fault,
    explanation: Explanation,
    sentence: String,
}

impl Judged {
    fn new(fault: Fault, failure: &impl Explain) -> Self {
        Self { fault, explanation: failure.explanation(), sentence: failure.to_string() }
    }
}

/// Returns the cause that explains the other failures: the first step that failed, unless a later
/// one got further without it.
fn failure(facts: &Facts) -> Judged {
    let wrong_peer = facts.dial_failures.iter().find(|it| matches!(it, ConnectError::WrongPeer { .. }));
    if let Some(wrong) = wrong_peer.filter(|_| facts.session.coordination.is_none()) {
        return Judged::new(Fault::Peer, wrong);
    }
    let helps = |it: &Coordinator| it.is_connected() && it.coordinates != Some(false);
    let is_helped = facts.coordinators.iter().any(helps) || facts.session.coordination.is_some();
    if let Some(cause) = first_cause(facts).filter(|_| !is_helped) {
        return Judged::new(fault_of(&cause), &cause);
    }
    if let Some(judged) = session_failure(facts) {
        return judged;
    }
    match &facts.outcome {
        Outcome::Failed(error @ ConnectError::Transport { .. }) => Judged::new(Fault::Peer, error),
        Outcome::Failed(error @ ConnectError::Denied { .. }) => Judged::new(Fault::ThisMachine, error),
        Outcome::Failed(error) => Judged::new(Fault::Unknown, error),
        _ => Judged::new(Fault::Unknown, &ConnectError::NoAddresses),
    }
}

/// Returns the cause that says most, of those of all coordinators.
fn first_cause(facts: &Facts) -> Option<Cause> {
    let causes = facts.coordinators.iter().filter_map(|coordinator| coordinator_cause(coordinator, facts));
    causes.min_by_key(|cause| match cause {
        Cause::WrongCoordinator { .. }
        | Cause::NoNetwork { .. }
        | Cause::NoSocket { .. }
        | Cause::Forbidden { .. } => 0,
        Cause::CoordinatorSilent { .. } => 2,
        _ => 1,
    })
}

fn fault_of(cause: &Cause) -> Fault {
    match cause {
        Cause::NoNetwork { .. }
        | Cause::NoSocket { .. }
        | Cause::Forbidden { .. }
        | Cause::NoRoute { .. }
        | Cause::NoSuchName { .. } => Fault::ThisMachine,
        Cause::UdpBlocked { .. } => Fault::Network,
        Cause::CoordinatorDown { .. }
        | Cause::CoordinatorSilent { .. }
        | Cause::CoordinatorHandshake { .. }
        | Cause::WrongCoordinator { .. }
        | Cause::NotACoordinator { .. } => Fault::Coordinator,
        Cause::Refused(reason) => fault_of_rejection(*reason),
    }
}

fn fault_of_rejection(reason: RejectReason) -> Fault {
    match reason {
        RejectReason::RateLimited => Fault::Limits,
        RejectReason::NotConnected | RejectReason::NotWilling => Fault::Peer,
        // The coordinator is full, or does not understand the request.
        _ => Fault::Coordinator,
    }
}

/// Returns the failure of the session with the peer that says most.
fn session_failure(facts: &Facts) -> Option<Judged> {
    let failures = &facts.session.failures;
    let says_little =
        |reason: &&FailureReason| matches!(reason, FailureReason::Cancelled | FailureReason::NatMeasured);
    // An answer about the peer says more than a later refusal to answer again.
    let is_answer = |reason: &&FailureReason| **reason == FailureReason::Rejected(RejectReason::NotConnected);
    let last = failures.iter().rev().find(|reason| !says_little(reason)).or(failures.last())?;
    let reason = match last {
        FailureReason::Rejected(_) | FailureReason::NoCoordinator => {
            failures.iter().find(is_answer).unwrap_or(last)
        }
        last => last,
    };
    let refusal = facts.coordinators.iter().find_map(|coordinator| coordinator.registration?.err());
    if let (FailureReason::NoCoordinator, Some(refusal)) = (reason, refusal) {
        let cause = Cause::Refused(refusal);
        return Some(Judged::new(fault_of(&cause), &cause));
    }
    let are_random = facts
        .session
        .nats
        .is_some_and(|nats| nats.local == NatKind::Random && nats.remote == NatKind::Random);
    let reason = match reason {
        FailureReason::PunchingTimeout if are_random => FailureReason::Hopeless,
        reason => *reason,
    };
    let mut judged = Judged::new(fault_of_session(reason), &reason);
    if let (Some(nats), Fault::Nats) = (facts.session.nats, judged.fault) {
        for (whose, kind) in [("of this machine", nats.local), ("of the peer", nats.remote)] {
            if kind != NatKind::Unknown {
                judged.sentence.push_str(&format!("; the NAT {whose} is {}", kind.name()));
            }
        }
    }
    if let Some(Err(failure)) = facts.relay {
        judged.sentence.push_str(&format!("; {failure}"));
    }
    Some(judged)
}

fn fault_of_session(reason: FailureReason) -> Fault {
    match reason {
        FailureReason::NoCoordinator
        | FailureReason::CoordinationTimeout
        | FailureReason::CoordinatorLost
        | FailureReason::Forged => Fault::Coordinator,
        FailureReason::Rejected(reason) => fault_of_rejection(reason),
        FailureReason::NoCandidates
        | FailureReason::SynchronizationTimeout
        | FailureReason::TooManySessions
        | FailureReason::DialSelf => Fault::ThisMachine,
        FailureReason::PunchingTimeout | FailureReason::NatMeasured | FailureReason::Hopeless => Fault::Nats,
        FailureReason::ValidationTimeout => Fault::Network,
        FailureReason::Handshake => Fault::Peer,
        _ => Fault::Unknown,
    }
}

#[cfg(test)]
mod tests;
