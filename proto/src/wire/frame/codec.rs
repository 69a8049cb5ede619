//! Frames to bytes. [`decode`](super::decode) is the way back.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    CoordinatorAddress, Frame, ObserverOffer, PortPrediction, PunchMoved, PunchRequest, Registration,
    RejectReason,
    wire::{is_v6, put_address, put_bytes, put_ip, put_varint},
};
use crate::{
    SessionId,
    candidate::{Candidate, CandidateKind},
    config::Disclosure,
    rate_limit::Rate,
};

/// Bytes of type and payload that a frame may have.
pub const MAX_FRAME_LEN: usize = 16 * 1024;
/// Candidates that one frame may carry.
pub const MAX_FRAME_CANDIDATES: usize = 256;
/// Coordinators that one frame may name; it names at least one.
pub const MAX_FRAME_COORDINATORS: usize = 8;
/// Largest number of datagrams of a first flight, which has at least one.
pub const MAX_FIRST_FLIGHT_DATAGRAMS: usize = 2;
/// Bytes that each datagram of a first flight may have.
pub const MAX_FIRST_FLIGHT_DATAGRAM: usize = 1500;
/// Bytes of a signature: that of the largest libp2p key, RSA with 8,192 bits.
pub const MAX_SIGNATURE_LEN: usize = 1024;
/// Bytes of a public key's protobuf encoding: that of RSA with 8,192 bits has 1,067.
pub const MAX_PUBLIC_KEY_LEN: usize = 1200;
/// Bytes of a NAT report.
pub const MAX_NAT_REPORT_LEN: usize = 64;
/// Largest number of ports of an offer to observe, which has at least one.
pub const MAX_OBSERVER_PORTS: usize = 4;
/// Largest number of sources of a filtering test.
pub const MAX_FILTER_SOURCES: usize = 4;
/// The longest lifetime of a registration, one day.
pub const MAX_REGISTRATION_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest lifetime of a request, five minutes.
pub const MAX_PUNCH_LIFETIME: Duration = Duration::from_secs(300);
/// The longest time after which a refused request may be sent again, five minutes.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// The longest time from one request that an allowance grants to the next.
pub const MAX_ALLOWANCE_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of a [`PeerId`]: the identity multihash of a key of 42 bytes has 44, that of a SHA-256 34.
pub(crate) const MAX_PEER_ID_LEN: usize = 64;

pub(super) const OBSERVED_ADDRESS_V4: u64 = 0x9f81a6;
pub(super) const OBSERVED_ADDRESS_V6: u64 = 0x9f81a7;
pub(super) const ADD_ADDRESS_V4: u64 = 0x3d7e90;
pub(super) const ADD_ADDRESS_V6: u64 = 0x3d7e91;
pub(super) const PUNCH_ME_NOW_V4: u64 = 0x3d7e92;
pub(super) const PUNCH_ME_NOW_V6: u64 = 0x3d7e93;
pub(super) const REMOVE_ADDRESS: u64 = 0x3d7e94;
pub(super) const PUNCH_ME_NOW: u64 = 0x3d7e95;
pub(super) const PUNCH_ANSWER_V4: u64 = 0x3d7e96;
pub(super) const PUNCH_ANSWER_V6: u64 = 0x3d7e97;
pub(super) const PUNCH_ANSWER: u64 = 0x3d7e98;
pub(super) const PUNCH_REJECTED: u64 = 0x3d7e99;
pub(super) const REGISTER: u64 = 0x3d7e9a;
pub(super) const REGISTER_TO_ACCEPTED: u64 = 0x3d7eaa;
pub(super) const PUNCH_ACCEPTED: u64 = 0x3d7eab;
pub(super) const REGISTERED: u64 = 0x3d7e9b;
pub(super) const REGISTER_REJECTED: u64 = 0x3d7e9c;
pub(super) const OBSERVER: u64 = 0x3d7e9d;
pub(super) const PROBE_OBSERVED_V4: u64 = 0x3d7e9e;
pub(super) const PROBE_OBSERVED_V6: u64 = 0x3d7e9f;
pub(super) const PORT_PREDICTION: u64 = 0x3d7ea0;
pub(super) const PUNCH_MOVED: u64 = 0x3d7ea8;
pub(super) const COORDINATORS: u64 = 0x3d7ea9;
pub(super) const FILTER_TEST: u64 = 0x3d7ea1;
pub(super) const FILTER_TESTED: u64 = 0x3d7ea2;
pub(super) const FILTERING_ASSIST_REQUEST: u64 = 0x3d7ea3;
pub(super) const FILTERING_ASSIST_RESPONSE: u64 = 0x3d7ea4;
pub(super) const OBSERVER_AT_V4: u64 = 0x3d7ea6;
pub(super) const OBSERVER_AT_V6: u64 = 0x3d7ea7;

pub(super) const FAMILY_V4: u64 = 4;
pub(super) const FAMILY_V6: u64 = 6;

/// Appends `frame` to `out`, with its length first.
///
/// Never fails and never writes a frame above [`MAX_FRAME_LEN`]: A list or byte string above its
/// cap is cut. Numbers above [`VARINT_MAX`](super::VARINT_MAX) and lifetimes above their maximum
/// are written as that maximum. Fractions of a second (registration) or of a millisecond (request)
/// are dropped. An IPv4-mapped IPv6 address is written as IPv4; flow label and scope are not
/// written. The caller ensures that ports are not 0 and that no byte string or first flight is
/// empty: a receiver refuses those. Frames from [`PunchRequest::sign`] and [`Registration::sign`]
/// always fit.
pub fn encode(frame: &Frame, out: &mut BytesMut) {
    let mut body = BytesMut::with_capacity(128);
    encode_body(frame, &mut body);
    put_varint(out, body.len() as u64);
    out.put_slice(&body);
}

fn encode_body(frame: &Frame, out: &mut BytesMut) {
    match frame {
        Frame::ObservedAddress { sequence, address } => {
            put_varint(out, if is_v6(*address) { OBSERVED_ADDRESS_V6 } else { OBSERVED_ADDRESS_V4 });
            put_varint(out, *sequence);
            put_address(out, *address);
        }
        Frame::AddAddress(candidate) => {
            put_varint(out, if is_v6(candidate.address) { ADD_ADDRESS_V6 } else { ADD_ADDRESS_V4 });
            put_candidate(out, candidate);
        }
        Frame::RemoveAddress { sequence } => {
            put_varint(out, REMOVE_ADDRESS);
            put_varint(out, *sequence);
        }
        Frame::Register { registration, disclosure } => put_register(out, registration, *disclosure),
        Frame::Registered { generation, lifetime, allowance } => {
            put_registered(out, *generation, *lifetime, *allowance);
        }
        Frame::RegisterRejected { generation, reason, retry_after } => {
            put_varint(out, REGISTER_REJECTED);
            put_varint(out, *generation);
            put_varint(out, reason_code(*reason));
            put_retry_after(out, *retry_after);
        }
        Frame::PunchMeNow(punch) => {
            put_observed(out, punch.observed, [PUNCH_ME_NOW, PUNCH_ME_NOW_V4, PUNCH_ME_NOW_V6]);
            put_request(out, &punch.request);
            put_first_flight(out, &punch.request.first_flight);
            put_bytes(out, &punch.signature, MAX_SIGNATURE_LEN);
            put_nat(out, &punch.request.nat);
        }
        Frame::PunchAnswer(answer) => {
            put_observed(out, answer.observed, [PUNCH_ANSWER, PUNCH_ANSWER_V4, PUNCH_ANSWER_V6]);
            out.put_slice(&answer.session.0);
            put_varint(out, answer.round.into());
            put_registration(out, &answer.registration);
            put_candidates(out, answer.candidates.iter());
            put_nat(out, &answer.registration.nat);
        }
        Frame::PunchAccepted { session, round } => put_accepted(out, session, *round),
        Frame::PunchRejected { session, round, reason, retry_after } => {
            put_varint(out, PUNCH_REJECTED);
            out.put_slice(&session.0);
            put_varint(out, (*round).into());
            put_varint(out, reason_code(*reason));
            put_retry_after(out, *retry_after);
        }
        Frame::Observer(offer) => put_offer(out, None, offer),
        Frame::ObserverAt { ip, offer } => put_offer(out, Some(*ip), offer),
        Frame::ProbeObserved { data, address } => {
            put_varint(out, if is_v6(*address) { PROBE_OBSERVED_V6 } else { PROBE_OBSERVED_V4 });
            out.put_slice(data);
            put_address(out, *address);
        }
        Frame::PortPrediction(window) => put_window(out, window),
        Frame::PunchMoved(moved) => put_moved(out, moved),
        Frame::Coordinators(coordinators) => put_coordinators(out, coordinators),
        Frame::FilterTest { data, key } => put_test(out, FILTER_TEST, data, key),
        Frame::FilterTested { data, rounds, sources } => put_tested(out, data, *rounds, sources),
        Frame::FilteringAssistRequest { data, key, target } => {
            put_test(out, FILTERING_ASSIST_REQUEST, data, key);
            put_family(out, *target);
        }
        Frame::FilteringAssistResponse { data, rounds, source } => put_asked(out, data, *rounds, *source),
    }
}

fn put_registered(out: &mut BytesMut, generation: u64, lifetime: Duration, allowance: Rate) {
    put_varint(out, REGISTERED);
    put_varint(out, generation);
    put_registration_lifetime(out, lifetime);
    put_allowance(out, allowance);
}

/// An offer to observe, at this IP address or at that of the connection.
fn put_offer(out: &mut BytesMut, ip: Option<IpAddr>, offer: &ObserverOffer) {
    match ip {
        None => put_varint(out, OBSERVER),
        Some(ip) => {
            put_varint(out, if ip.to_canonical().is_ipv6() { OBSERVER_AT_V6 } else { OBSERVER_AT_V4 });
            put_ip(out, ip);
        }
    }
    let ports = offer.ports.get(..MAX_OBSERVER_PORTS).unwrap_or(&offer.ports);
    put_varint(out, ports.len() as u64);
    ports.iter().for_each(|port| out.put_u16(*port));
    out.put_slice(&offer.token);
    out.put_slice(&offer.key);
}

fn put_window(out: &mut BytesMut, window: &PortPrediction) {
    put_varint(out, PORT_PREDICTION);
    put_bytes(out, &window.peer.to_bytes(), MAX_PEER_ID_LEN);
    out.put_slice(&window.session.0);
    put_varint(out, window.round.into());
    out.put_u16(window.port);
    out.put_u16(window.step);
    out.put_slice(&window.authenticator);
}

fn put_moved(out: &mut BytesMut, moved: &PunchMoved) {
    put_varint(out, PUNCH_MOVED);
    put_bytes(out, &moved.peer.to_bytes(), MAX_PEER_ID_LEN);
    out.put_slice(&moved.session.0);
    put_varint(out, moved.sequence.into());
    put_candidates(out, moved.candidates.iter());
    out.put_slice(&moved.authenticator);
}

fn put_coordinators(out: &mut BytesMut, coordinators: &[CoordinatorAddress]) {
    put_varint(out, COORDINATORS);
    let coordinators = coordinators.get(..MAX_FRAME_COORDINATORS).unwrap_or(coordinators);
    put_varint(out, coordinators.len() as u64);
    for CoordinatorAddress { coordinator, address } in coordinators {
        put_bytes(out, &coordinator.to_bytes(), MAX_PEER_ID_LEN);
        put_family(out, *address);
    }
}

/// The beginning of a frame that asks for the datagrams of a filtering test.
fn put_test(out: &mut BytesMut, frame_type: u64, data: &[u8; 8], key: &[u8; 32]) {
    put_varint(out, frame_type);
    out.put_slice(data);
    out.put_slice(key);
}

/// Writes the rounds and the source of another coordinator's part of a filtering test.
fn put_asked(out: &mut BytesMut, data: &[u8; 8], rounds: u8, source: Option<SocketAddr>) {
    put_varint(out, FILTERING_ASSIST_RESPONSE);
    out.put_slice(data);
    out.put_u8(rounds);
    source.iter().for_each(|source| put_family(out, *source));
}

/// Writes the rounds and the sources of a filtering test.
fn put_tested(out: &mut BytesMut, data: &[u8; 8], rounds: u8, sources: &[SocketAddr]) {
    put_varint(out, FILTER_TESTED);
    out.put_slice(data);
    out.put_u8(rounds);
    let sources = sources.get(..MAX_FILTER_SOURCES).unwrap_or(sources);
    put_varint(out, sources.len() as u64);
    sources.iter().for_each(|source| put_family(out, *source));
}

/// The family, and the address.
fn put_family(out: &mut BytesMut, address: SocketAddr) {
    put_varint(out, if is_v6(address) { FAMILY_V6 } else { FAMILY_V4 });
    put_address(out, address);
}

/// The NAT report that ends a frame; nothing if there is none.
pub(super) fn put_nat(out: &mut BytesMut, report: &[u8]) {
    if !report.is_empty() {
        put_bytes(out, report, MAX_NAT_REPORT_LEN);
    }
}

/// Writes the address that one of three types has.
fn put_observed(out: &mut BytesMut, observed: Option<SocketAddr>, [none, v4, v6]: [u64; 3]) {
    match observed {
        None => put_varint(out, none),
        Some(address) => {
            put_varint(out, if is_v6(address) { v6 } else { v4 });
            put_address(out, address);
        }
    }
}

/// Sequence number, address and port as in the draft, then kind and priority.
fn put_candidate(out: &mut BytesMut, candidate: &Candidate) {
    put_varint(out, candidate.sequence);
    put_address(out, candidate.address);
    put_varint(out, kind_code(candidate.kind));
    put_varint(out, candidate.priority.into());
}

/// The count, and every candidate after its address family.
pub(super) fn put_candidates<'a>(
    out: &mut BytesMut,
    candidates: impl ExactSizeIterator<Item = &'a Candidate>,
) {
    let count = candidates.len().min(MAX_FRAME_CANDIDATES);
    put_varint(out, count as u64);
    for candidate in candidates.take(count) {
        put_varint(out, if is_v6(candidate.address) { FAMILY_V6 } else { FAMILY_V4 });
        put_candidate(out, candidate);
    }
}

/// The fields of a request before its first flight.
pub(super) fn put_request(out: &mut BytesMut, request: &PunchRequest) {
    out.put_slice(&request.session.0);
    put_varint(out, request.round.into());
    put_bytes(out, &request.initiator, MAX_PUBLIC_KEY_LEN);
    put_bytes(out, &request.responder.to_bytes(), MAX_PEER_ID_LEN);
    let millis = request.lifetime.min(MAX_PUNCH_LIFETIME).as_millis();
    put_varint(out, u64::try_from(millis).unwrap_or(super::VARINT_MAX));
    out.put_slice(&request.probe_key);
    put_candidates(out, request.candidates.iter());
}

/// The count, and every datagram after its length.
pub(super) fn put_first_flight(out: &mut BytesMut, datagrams: &[Bytes]) {
    let count = datagrams.len().min(MAX_FIRST_FLIGHT_DATAGRAMS);
    put_varint(out, count as u64);
    for datagram in datagrams.iter().take(count) {
        put_bytes(out, datagram, MAX_FIRST_FLIGHT_DATAGRAM);
    }
}

/// Whole seconds.
pub(super) fn put_registration_lifetime(out: &mut BytesMut, lifetime: Duration) {
    put_varint(out, lifetime.min(MAX_REGISTRATION_LIFETIME).as_secs());
}

fn put_allowance(out: &mut BytesMut, allowance: Rate) {
    put_varint(out, allowance.burst.into());
    let interval = allowance.interval.min(MAX_ALLOWANCE_INTERVAL).as_micros();
    put_varint(out, u64::try_from(interval).unwrap_or(u64::MAX));
}

fn put_retry_after(out: &mut BytesMut, retry_after: Duration) {
    let millis = retry_after.min(MAX_RETRY_AFTER).as_millis();
    put_varint(out, u64::try_from(millis).unwrap_or(u64::MAX));
}

fn put_registration(out: &mut BytesMut, registration: &Registration) {
    put_bytes(out, &registration.peer, MAX_PUBLIC_KEY_LEN);
    put_varint(out, registration.generation);
    put_registration_lifetime(out, registration.lifetime);
    out.put_slice(&registration.probe_key);
    put_bytes(out, &registration.signature, MAX_SIGNATURE_LEN);
}

fn put_accepted(out: &mut BytesMut, session: &SessionId, round: u32) {
    put_varint(out, PUNCH_ACCEPTED);
    out.put_slice(&session.0);
    put_varint(out, round.into());
}

fn put_register(out: &mut BytesMut, registration: &Registration, disclosure: Disclosure) {
    let frame_type = match disclosure {
        Disclosure::ToAll => REGISTER,
        Disclosure::ToAccepted => REGISTER_TO_ACCEPTED,
    };
    put_varint(out, frame_type);
    put_registration(out, registration);
    put_bytes(out, &registration.public_signature, MAX_SIGNATURE_LEN);
    put_nat(out, &registration.nat);
}

fn kind_code(kind: CandidateKind) -> u64 {
    match kind {
        CandidateKind::Host => 0,
        CandidateKind::ServerReflexive => 1,
        CandidateKind::PeerReflexive => 2,
        CandidateKind::Predicted => 3,
        CandidateKind::PortMapped => 4,
        CandidateKind::Relayed => 5,
    }
}

fn reason_code(reason: RejectReason) -> u64 {
    match reason {
        RejectReason::NotConnected => 1,
        RejectReason::RateLimited => 2,
        RejectReason::NotWilling => 3,
        RejectReason::Expired => 4,
        RejectReason::Unsupported => 5,
        RejectReason::Full => 6,
        RejectReason::Malformed => 7,
        RejectReason::Superseded => 8,
    }
}
