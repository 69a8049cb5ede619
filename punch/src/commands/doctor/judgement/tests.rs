use std::collections::BTreeSet;

use libp2p_punch::event::{NatKinds, PathKind, RelayFailure};
use libp2p_punch_node::{Multiaddr, PeerId};

use super::*;
use crate::commands::doctor::facts::{Candidates, Session};

fn address() -> Multiaddr {
    format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{}", PeerId::random()).parse().unwrap()
}

/// Facts of a machine with a network, a coordinator, and a peer that is not connected.
fn facts() -> Facts {
    let mut facts = Facts::new(PeerId::random(), vec![address()], Vec::new());
    facts.interfaces = vec!["/ip4/192.0.2.7/udp/1/quic-v1".parse().unwrap()];
    facts.outcome = Outcome::Failed(ConnectError::NoAddresses);
    facts
}

/// Facts with a coordinator that did not answer the node, and answers of its address.
fn silent(udp: UdpAnswer, tcp: bool) -> Facts {
    let mut facts = facts();
    let coordinator = &mut facts.coordinators[0];
    let address = coordinator.address.clone();
    coordinator.dial = Some(Err(ConnectError::Transport { address, cause: "timed out".into() }));
    coordinator.probe = Some(Probe::Answers { udp, tcp });
    facts.outcome = Outcome::NotTried;
    facts
}

/// Facts with a coordinator that has registered this peer.
fn registered() -> Facts {
    let mut facts = facts();
    let coordinator = &mut facts.coordinators[0];
    coordinator.dial = Some(Ok(()));
    coordinator.coordinates = Some(true);
    coordinator.registration = Some(Ok(Some(Duration::from_millis(20))));
    facts
}

/// Facts with a session that failed for these reasons.
fn session(failures: &[FailureReason]) -> Facts {
    let mut facts = registered();
    facts.session.failures = failures.to_vec();
    if let Some(reason) = failures.last() {
        facts.outcome = Outcome::Failed(ConnectError::Traversal(*reason));
    }
    facts
}

/// Facts with a session whose probes met silence.
fn silence(reason: FailureReason, nats: NatKinds) -> Facts {
    let mut facts = session(&[reason]);
    facts.session.coordination = Some(Duration::from_millis(40));
    facts.session.candidates = Some(Candidates { local: 2, remote: 3 });
    facts.session.nats = Some(nats);
    facts
}

fn code(facts: &Facts) -> (&'static str, u8) {
    let verdict = verdict(facts);
    (verdict.code, verdict.fault.exit_code())
}

fn states(facts: &Facts, wanted: State) -> Vec<Step> {
    let findings = judge(facts).findings.into_iter();
    findings.filter(|finding| finding.state == wanted).map(|finding| finding.step).collect()
}

#[test]
fn the_answers_of_its_address_tell_why_a_coordinator_is_silent() {
    for (udp, tcp, expected) in [
        (UdpAnswer::Refused, true, ("coordinator-down", 22)),
        (UdpAnswer::Silence, false, ("coordinator-silent", 22)),
        (UdpAnswer::Silence, true, ("udp-blocked", 21)),
        (UdpAnswer::Forbidden, false, ("udp-forbidden-here", 20)),
        (UdpAnswer::NoRoute, false, ("no-route", 20)),
        (UdpAnswer::NotSent("too many open files".into()), false, ("no-socket", 20)),
        (UdpAnswer::Server, false, ("coordinator-handshake", 22)),
    ] {
        assert_eq!(code(&silent(udp.clone(), tcp)), expected, "{udp:?}, {tcp}");
    }
}

#[test]
fn a_machine_without_a_network_is_not_told_about_routes() {
    let mut facts = silent(UdpAnswer::NoRoute, false);
    facts.interfaces.clear();
    assert_eq!(code(&facts), ("no-network", 20));
    assert_eq!(states(&facts, State::Failed), [Step::Interfaces, Step::UdpOut, Step::Coordinator]);
}

#[test]
fn udp_is_not_blocked_if_another_coordinator_is_heard() {
    let mut facts = silent(UdpAnswer::Silence, true);
    let mut other = Coordinator::new(address());
    let address = other.address.clone();
    other.dial = Some(Err(ConnectError::Transport { address, cause: "timed out".into() }));
    other.probe = Some(Probe::Answers { udp: UdpAnswer::Refused, tcp: true });
    facts.coordinators.push(other);
    assert_eq!(code(&facts), ("coordinator-down", 22));
    assert!(states(&facts, State::Passed).contains(&Step::UdpOut));
}

#[test]
fn a_coordinator_with_another_id_is_named_before_one_that_is_silent() {
    let mut facts = silent(UdpAnswer::Silence, false);
    let mut wrong = Coordinator::new(address());
    let (expected, obtained) = (PeerId::random(), PeerId::random());
    let address = wrong.address.clone();
    wrong.dial = Some(Err(ConnectError::WrongPeer { expected, obtained, address }));
    facts.coordinators.push(wrong);
    assert_eq!(code(&facts), ("coordinator-wrong-id", 22));
    assert!(verdict(&facts).sentence.contains(&obtained.to_string()));
}

#[test]
fn a_node_that_does_not_coordinate_is_none_of_the_coordinators() {
    let mut facts = registered();
    facts.coordinators[0].coordinates = Some(false);
    facts.coordinators[0].registration = None;
    assert_eq!(code(&facts), ("not-a-coordinator", 22));
}

#[test]
fn a_step_that_was_not_reached_is_not_tested() {
    let facts = session(&[FailureReason::Rejected(RejectReason::NotConnected)]);
    assert_eq!(code(&facts), ("peer-not-connected", 23));
    assert_eq!(states(&facts, State::Failed), [Step::PeerKnown]);
    assert_eq!(
        states(&facts, State::NotTested),
        [Step::RequestForwarded, Step::PeerAnswered, Step::Probes, Step::Path, Step::Handshake, Step::Relay]
    );
}

#[test]
fn a_refusal_of_the_coordinator_is_the_cause() {
    let limited = session(&[FailureReason::Rejected(RejectReason::RateLimited), FailureReason::Cancelled]);
    assert_eq!(code(&limited), ("rate-limited", 25));
    assert_eq!(states(&limited, State::Failed), [Step::RequestForwarded]);
    let answered = session(&[
        FailureReason::Rejected(RejectReason::NotConnected),
        FailureReason::Rejected(RejectReason::RateLimited),
    ]);
    assert_eq!(code(&answered), ("peer-not-connected", 23));
    let mut unregistered = session(&[FailureReason::NoCoordinator]);
    unregistered.coordinators[0].registration = Some(Err(RejectReason::Full));
    assert_eq!(code(&unregistered), ("full", 22));
}

#[test]
fn two_random_nats_need_a_relay() {
    let random = NatKinds::default();
    let mut nats = random;
    (nats.local, nats.remote) = (NatKind::Random, NatKind::Random);
    for reason in [FailureReason::Hopeless, FailureReason::PunchingTimeout] {
        let mut facts = silence(reason, nats);
        facts.relay = Some(Err(RelayFailure::NoRelay));
        assert_eq!(code(&facts), ("hopeless", 24));
        let sentence = verdict(&facts).sentence;
        assert!(
            sentence.contains("the NAT of this machine is random") && sentence.contains("no relay"),
            "{sentence}"
        );
        assert_eq!(
            states(&facts, State::Failed),
            [Step::PeerAnswered, Step::Probes, Step::Path, Step::Relay]
        );
    }
    assert_eq!(code(&silence(FailureReason::PunchingTimeout, random)), ("punching-timeout", 24));
}

#[test]
fn another_peer_at_the_address_is_the_cause_unless_a_coordinator_knows_the_peer() {
    let (expected, obtained) = (PeerId::random(), PeerId::random());
    let wrong = ConnectError::WrongPeer { expected, obtained, address: address() };
    let mut facts = session(&[FailureReason::Rejected(RejectReason::NotConnected)]);
    facts.addresses = vec![address()];
    facts.dial_failures = vec![wrong.clone()];
    assert_eq!(code(&facts), ("wrong-peer", 23));
    let mut known = silence(FailureReason::PunchingTimeout, NatKinds::default());
    known.dial_failures = vec![wrong];
    assert_eq!(code(&known), ("punching-timeout", 24));
}

#[test]
fn a_connection_is_no_failure_and_a_relayed_one_tells_why_it_is_not_direct() {
    let mut direct = registered();
    direct.outcome = Outcome::Direct { address: Some(address()), after: Duration::from_millis(75) };
    direct.session = Session {
        coordination: Some(Duration::from_millis(40)),
        answered: Some(Duration::from_millis(10)),
        connected: Some((PathKind::ServerReflexive, Duration::from_millis(5))),
        candidates: Some(Candidates { local: 1, remote: 1 }),
        ..Session::default()
    };
    assert_eq!(code(&direct), ("direct", 0));
    assert_eq!(states(&direct, State::Failed), []);
    let mut relayed = silence(FailureReason::PunchingTimeout, NatKinds::default());
    relayed.outcome = Outcome::Relayed { after: Duration::from_secs(1) };
    assert_eq!(code(&relayed), ("relayed", 10));
    assert!(verdict(&relayed).sentence.contains("no probe was answered"));
}

#[test]
fn every_fault_has_its_exit_code() {
    let faults = [
        Fault::None,
        Fault::OnlyRelayed,
        Fault::Unknown,
        Fault::ThisMachine,
        Fault::Network,
        Fault::Coordinator,
        Fault::Peer,
        Fault::Nats,
        Fault::Limits,
    ];
    assert_eq!(faults.map(Fault::exit_code).into_iter().collect::<BTreeSet<_>>().len(), faults.len());
}
