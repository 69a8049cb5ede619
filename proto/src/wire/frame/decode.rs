//! Bytes to frames.

use std::{net::SocketAddr, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use libp2p_identity::PeerId;

use super::{
    CoordinatorAddress, DecodeError, Frame, ObserverOffer, PortPrediction, PunchAnswer, PunchMeNow,
    PunchMoved, PunchRequest, Registration, RejectReason,
    codec::*,
    wire::{Reader, peek_varint},
};
use crate::{
    SessionId,
    candidate::{Candidate, CandidateKind},
    config::Disclosure,
    rate_limit::Rate,
};

/// Takes the next frame off the front of `buffer`; `None` if more bytes are needed.
///
/// Frames of unknown type are skipped. A length above [`MAX_FRAME_LEN`] is refused as soon as it is
/// read. A caller that reads only after `None` therefore never buffers more than one frame and one
/// read.
///
/// # Errors
///
/// Any breach of the format. What is left in `buffer` is of no use then: close the stream.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
    loop {
        let Some((length, prefix)) = peek_varint(buffer) else { return Ok(None) };
        let body = match usize::try_from(length) {
            Ok(body) if body <= MAX_FRAME_LEN => body,
            _ => return Err(DecodeError::FrameTooLong { length }),
        };
        if buffer.len() < prefix + body {
            return Ok(None);
        }
        buffer.advance(prefix);
        if let Some(frame) = decode_body(&buffer.split_to(body))? {
            return Ok(Some(frame));
        }
    }
}

/// The frame in `body`; `None` if its type is unknown.
fn decode_body(body: &[u8]) -> Result<Option<Frame>, DecodeError> {
    let r = &mut Reader::new(body);
    let frame_type = r.varint("frame type")?;
    let frame = match frame_type {
        OBSERVED_ADDRESS_V4 | OBSERVED_ADDRESS_V6 => Frame::ObservedAddress {
            sequence: r.varint("sequence number")?,
            address: r.address("observed address", frame_type == OBSERVED_ADDRESS_V6)?,
        },
        ADD_ADDRESS_V4 | ADD_ADDRESS_V6 => Frame::AddAddress(candidate(r, frame_type == ADD_ADDRESS_V6)?),
        REMOVE_ADDRESS => Frame::RemoveAddress { sequence: r.varint("sequence number")? },
        REGISTER => register(r, Disclosure::ToAll)?,
        REGISTER_TO_ACCEPTED => register(r, Disclosure::ToAccepted)?,
        REGISTERED => {
            let (generation, lifetime) = (r.varint("generation")?, registration_lifetime(r)?);
            Frame::Registered { generation, lifetime, allowance: allowance(r)? }
        }
        REGISTER_REJECTED => {
            let (generation, reason) = (r.varint("generation")?, reason(r)?);
            Frame::RegisterRejected { generation, reason, retry_after: retry_after(r)? }
        }
        PUNCH_ME_NOW | PUNCH_ME_NOW_V4 | PUNCH_ME_NOW_V6 => {
            let mut punch = PunchMeNow {
                observed: observed(r, frame_type, [PUNCH_ME_NOW_V4, PUNCH_ME_NOW_V6])?,
                request: request(r)?,
                signature: r.bytes("signature", MAX_SIGNATURE_LEN)?,
            };
            punch.request.nat = nat(r)?;
            Frame::PunchMeNow(Box::new(punch))
        }
        PUNCH_ANSWER | PUNCH_ANSWER_V4 | PUNCH_ANSWER_V6 => {
            let mut answer = PunchAnswer {
                observed: observed(r, frame_type, [PUNCH_ANSWER_V4, PUNCH_ANSWER_V6])?,
                session: SessionId(r.array("session")?),
                round: r.u32("round")?,
                registration: registration(r)?,
                candidates: candidates(r)?,
            };
            answer.registration.nat = nat(r)?;
            Frame::PunchAnswer(Box::new(answer))
        }
        PUNCH_ACCEPTED => {
            Frame::PunchAccepted { session: SessionId(r.array("session")?), round: r.u32("round")? }
        }
        PUNCH_REJECTED => Frame::PunchRejected {
            session: SessionId(r.array("session")?),
            round: r.u32("round")?,
            reason: reason(r)?,
            retry_after: retry_after(r)?,
        },
        OBSERVER => Frame::Observer(offer(r)?),
        OBSERVER_AT_V4 | OBSERVER_AT_V6 => Frame::ObserverAt {
            ip: r.ip("observer address", frame_type == OBSERVER_AT_V6)?,
            offer: offer(r)?,
        },
        PROBE_OBSERVED_V4 | PROBE_OBSERVED_V6 => Frame::ProbeObserved {
            data: r.array("data")?,
            address: r.address("observed address", frame_type == PROBE_OBSERVED_V6)?,
        },
        PORT_PREDICTION => Frame::PortPrediction(Box::new(window(r)?)),
        PUNCH_MOVED => Frame::PunchMoved(Box::new(moved(r)?)),
        COORDINATORS => Frame::Coordinators(coordinators(r)?),
        FILTER_TEST => Frame::FilterTest { data: r.array("data")?, key: r.array("filtering key")? },
        FILTER_TESTED => tested(r)?,
        FILTERING_ASSIST_REQUEST => ask(r)?,
        FILTERING_ASSIST_RESPONSE => asked(r)?,
        _ => return Ok(None),
    };
    match r.remaining() {
        0 => Ok(Some(frame)),
        count => Err(DecodeError::TrailingBytes { frame_type, count }),
    }
}

fn observed(
    r: &mut Reader<'_>,
    frame_type: u64,
    [v4, v6]: [u64; 2],
) -> Result<Option<SocketAddr>, DecodeError> {
    if frame_type == v4 || frame_type == v6 {
        r.address("observed address", frame_type == v6).map(Some)
    } else {
        Ok(None)
    }
}

fn candidate(r: &mut Reader<'_>, v6: bool) -> Result<Candidate, DecodeError> {
    Ok(Candidate {
        sequence: r.varint("sequence number")?,
        address: r.address("candidate address", v6)?,
        kind: kind(r)?,
        priority: r.u32("candidate priority")?,
    })
}

fn candidates(r: &mut Reader<'_>) -> Result<Vec<Candidate>, DecodeError> {
    let count = r.varint_up_to("candidate count", MAX_FRAME_CANDIDATES as u64)?;
    (0..count)
        .map(|_| {
            let v6 = is_family_v6(r, "candidate family")?;
            candidate(r, v6)
        })
        .collect()
}

fn is_family_v6(r: &mut Reader<'_>, field: &'static str) -> Result<bool, DecodeError> {
    match r.varint(field)? {
        FAMILY_V4 => Ok(false),
        FAMILY_V6 => Ok(true),
        _ => Err(DecodeError::Invalid { field, cause: "neither 4 nor 6" }),
    }
}

fn request(r: &mut Reader<'_>) -> Result<PunchRequest, DecodeError> {
    Ok(PunchRequest {
        session: SessionId(r.array("session")?),
        round: r.u32("round")?,
        initiator: r.bytes("initiator", MAX_PUBLIC_KEY_LEN)?,
        responder: peer_id(r, "responder")?,
        lifetime: Duration::from_millis(
            r.varint_up_to("request lifetime", MAX_PUNCH_LIFETIME.as_secs() * 1000)?,
        ),
        probe_key: r.array("probe key")?,
        candidates: candidates(r)?,
        first_flight: first_flight(r)?,
        nat: Bytes::new(),
    })
}

fn window(r: &mut Reader<'_>) -> Result<PortPrediction, DecodeError> {
    let window = PortPrediction {
        peer: peer_id(r, "peer")?,
        session: SessionId(r.array("session")?),
        round: r.u32("round")?,
        port: u16::from_be_bytes(r.array("port")?),
        step: u16::from_be_bytes(r.array("step")?),
        authenticator: r.array("authenticator")?,
    };
    match (window.port, window.step) {
        (0, 2..) => Err(DecodeError::Invalid { field: "step", cause: "above 1 without a port" }),
        _ => Ok(window),
    }
}

fn moved(r: &mut Reader<'_>) -> Result<PunchMoved, DecodeError> {
    Ok(PunchMoved {
        peer: peer_id(r, "peer")?,
        session: SessionId(r.array("session")?),
        sequence: r.u32("sequence")?,
        candidates: candidates(r)?,
        authenticator: r.array("authenticator")?,
    })
}

fn coordinators(r: &mut Reader<'_>) -> Result<Vec<CoordinatorAddress>, DecodeError> {
    match r.varint_up_to("coordinator count", MAX_FRAME_COORDINATORS as u64)? {
        0 => Err(DecodeError::Invalid { field: "coordinator count", cause: "there are none" }),
        count => (0..count).map(|_| coordinator(r)).collect(),
    }
}

fn coordinator(r: &mut Reader<'_>) -> Result<CoordinatorAddress, DecodeError> {
    let coordinator = peer_id(r, "coordinator")?;
    Ok(CoordinatorAddress { coordinator, address: family(r, "coordinator family", "coordinator address")? })
}

fn peer_id(r: &mut Reader<'_>, field: &'static str) -> Result<PeerId, DecodeError> {
    PeerId::from_bytes(&r.bytes(field, MAX_PEER_ID_LEN)?)
        .map_err(|_| DecodeError::Invalid { field, cause: "not a peer ID" })
}

fn nonzero(r: &mut Reader<'_>, field: &'static str) -> Result<u16, DecodeError> {
    match u16::from_be_bytes(r.array(field)?) {
        0 => Err(DecodeError::Invalid { field, cause: "0" }),
        value => Ok(value),
    }
}

fn offer(r: &mut Reader<'_>) -> Result<ObserverOffer, DecodeError> {
    Ok(ObserverOffer { ports: ports(r)?, token: r.array("token")?, key: r.array("observation key")? })
}

fn ports(r: &mut Reader<'_>) -> Result<Vec<u16>, DecodeError> {
    match r.varint_up_to("observer ports", MAX_OBSERVER_PORTS as u64)? {
        0 => Err(DecodeError::Invalid { field: "observer ports", cause: "there are none" }),
        count => (0..count).map(|_| nonzero(r, "observer port")).collect(),
    }
}

fn first_flight(r: &mut Reader<'_>) -> Result<Vec<Bytes>, DecodeError> {
    let count = r.varint_up_to("first flight", MAX_FIRST_FLIGHT_DATAGRAMS as u64)?;
    if count == 0 {
        return Err(DecodeError::Invalid { field: "first flight", cause: "it has no datagram" });
    }
    (0..count).map(|_| r.bytes("first flight datagram", MAX_FIRST_FLIGHT_DATAGRAM)).collect()
}

fn registration_lifetime(r: &mut Reader<'_>) -> Result<Duration, DecodeError> {
    let max = MAX_REGISTRATION_LIFETIME.as_secs();
    Ok(Duration::from_secs(r.varint_up_to("registration lifetime", max)?))
}

fn allowance(r: &mut Reader<'_>) -> Result<Rate, DecodeError> {
    let burst = r.u32("requests at once")?;
    let max = MAX_ALLOWANCE_INTERVAL.as_secs() * 1_000_000;
    Ok(Rate { burst, interval: Duration::from_micros(r.varint_up_to("request interval", max)?) })
}

fn retry_after(r: &mut Reader<'_>) -> Result<Duration, DecodeError> {
    Ok(Duration::from_millis(r.varint_up_to("retry after", MAX_RETRY_AFTER.as_secs() * 1000)?))
}

fn registration(r: &mut Reader<'_>) -> Result<Registration, DecodeError> {
    Ok(Registration {
        peer: r.bytes("registered peer", MAX_PUBLIC_KEY_LEN)?,
        generation: r.varint("generation")?,
        lifetime: registration_lifetime(r)?,
        probe_key: r.array("probe key")?,
        nat: Bytes::new(),
        signature: r.bytes("signature", MAX_SIGNATURE_LEN)?,
        public_signature: Bytes::new(),
    })
}

fn register(r: &mut Reader<'_>, disclosure: Disclosure) -> Result<Frame, DecodeError> {
    let mut registration = registration(r)?;
    registration.public_signature = r.bytes("public signature", MAX_SIGNATURE_LEN)?;
    registration.nat = nat(r)?;
    Ok(Frame::Register { registration, disclosure })
}

fn kind(r: &mut Reader<'_>) -> Result<CandidateKind, DecodeError> {
    Ok(match r.varint("candidate kind")? {
        0 => CandidateKind::Host,
        1 => CandidateKind::ServerReflexive,
        2 => CandidateKind::PeerReflexive,
        3 => CandidateKind::Predicted,
        4 => CandidateKind::PortMapped,
        5 => CandidateKind::Relayed,
        _ => return Err(DecodeError::Invalid { field: "candidate kind", cause: "unknown" }),
    })
}

fn reason(r: &mut Reader<'_>) -> Result<RejectReason, DecodeError> {
    Ok(match r.varint("reason")? {
        1 => RejectReason::NotConnected,
        2 => RejectReason::RateLimited,
        3 => RejectReason::NotWilling,
        4 => RejectReason::Expired,
        5 => RejectReason::Unsupported,
        6 => RejectReason::Full,
        7 => RejectReason::Malformed,
        8 => RejectReason::Superseded,
        _ => return Err(DecodeError::Invalid { field: "reason", cause: "unknown" }),
    })
}

fn tested(r: &mut Reader<'_>) -> Result<Frame, DecodeError> {
    let (data, rounds) = (r.array("data")?, u8::from_be_bytes(r.array("rounds")?));
    Ok(Frame::FilterTested { data, rounds, sources: sources(r)? })
}

fn ask(r: &mut Reader<'_>) -> Result<Frame, DecodeError> {
    let (data, key) = (r.array("data")?, r.array("filtering key")?);
    Ok(Frame::FilteringAssistRequest { data, key, target: family(r, "target family", "target")? })
}

fn asked(r: &mut Reader<'_>) -> Result<Frame, DecodeError> {
    let (data, rounds) = (r.array("data")?, u8::from_be_bytes(r.array("rounds")?));
    let source = match r.remaining() {
        0 => None,
        _ => Some(family(r, "source family", "source")?),
    };
    Ok(Frame::FilteringAssistResponse { data, rounds, source })
}

fn sources(r: &mut Reader<'_>) -> Result<Vec<SocketAddr>, DecodeError> {
    let count = r.varint_up_to("source count", MAX_FILTER_SOURCES as u64)?;
    (0..count).map(|_| family(r, "source family", "source")).collect()
}

/// A family, and an address of it.
fn family(r: &mut Reader<'_>, kind: &'static str, field: &'static str) -> Result<SocketAddr, DecodeError> {
    let v6 = is_family_v6(r, kind)?;
    r.address(field, v6)
}

fn nat(r: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
    if r.remaining() == 0 { Ok(Bytes::new()) } else { r.bytes("NAT report", MAX_NAT_REPORT_LEN) }
}
