//! Tests of the codec of frames.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use libp2p_identity::{Keypair, PeerId};

use super::*;
use crate::candidate::CandidateKind;

fn candidate(sequence: u64, address: &str) -> Candidate {
    let kind = CandidateKind::ServerReflexive;
    Candidate { sequence, kind, priority: 0x64ff_ffff, address: address.parse().unwrap() }
}

fn request(keypair: &Keypair) -> PunchRequest {
    PunchRequest {
        session: SessionId([1; 16]),
        round: 2,
        initiator: keypair.public().encode_protobuf().into(),
        responder: PeerId::random(),
        lifetime: Duration::from_millis(10_000),
        probe_key: [3; 32],
        candidates: vec![candidate(7, "192.0.2.1:4001"), candidate(5, "[2001:db8::1]:4001")],
        nat: Bytes::new(),
        first_flight: vec![Bytes::from_static(&[0xc0; 1200]), Bytes::from_static(&[0xc1; 400])],
    }
}

fn punch(keypair: &Keypair) -> PunchMeNow {
    let request = request(keypair);
    let signature = request.sign(keypair).unwrap();
    PunchMeNow { request, signature, observed: None }
}

fn answer(keypair: &Keypair) -> PunchAnswer {
    let candidates = vec![candidate(7, "192.0.2.1:4001"), candidate(5, "[2001:db8::1]:4001")];
    let registration =
        Registration::sign(keypair, 9, Duration::from_secs(120), [4; 32], &candidates, Bytes::new()).unwrap();
    PunchAnswer { session: SessionId([1; 16]), round: 2, registration, candidates, observed: None }
}

/// A frame of these bytes of type and payload.
fn framed(body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    wire::put_varint(&mut out, body.len() as u64);
    out.put_slice(body);
    out
}

fn decode_body(parts: &[&[u8]]) -> Result<Option<Frame>, DecodeError> {
    decode(&mut framed(&parts.concat()))
}

const ADD_V4: &[u8] = &[0x80, 0x3d, 0x7e, 0x90];
const ADD_V6: &[u8] = &[0x80, 0x3d, 0x7e, 0x91];
const REMOVE: &[u8] = &[0x80, 0x3d, 0x7e, 0x94];
const REJECTED: &[u8] = &[0x80, 0x3d, 0x7e, 0x9c];
const REGISTERED: &[u8] = &[0x80, 0x3d, 0x7e, 0x9b];

fn every_kind_of_key() -> [Keypair; 3] {
    [Keypair::generate_ed25519(), Keypair::generate_secp256k1(), Keypair::generate_ecdsa()]
}

#[test]
fn an_empty_or_cut_buffer_asks_for_more() {
    let mut whole = BytesMut::new();
    encode(&Frame::RemoveAddress { sequence: 5 }, &mut whole);
    for length in 0..whole.len() {
        let mut buffer = BytesMut::from(&whole[..length]);
        assert_eq!(decode(&mut buffer), Ok(None));
        assert_eq!(buffer.len(), length);
    }
}

#[test]
fn unknown_frames_are_skipped_with_their_length() {
    let mut buffer = framed(&[0x21, 1, 2, 3]);
    buffer.extend_from_slice(&framed(&[0x22]));
    encode(&Frame::RemoveAddress { sequence: 5 }, &mut buffer);
    buffer.put_u8(0x05);
    assert_eq!(decode(&mut buffer), Ok(Some(Frame::RemoveAddress { sequence: 5 })));
    assert_eq!(&buffer[..], [0x05]);
}

#[test]
fn a_frame_that_is_too_long_is_refused_before_it_is_there() {
    let mut buffer = BytesMut::new();
    wire::put_varint(&mut buffer, MAX_FRAME_LEN as u64 + 1);
    assert_eq!(decode(&mut buffer), Err(DecodeError::FrameTooLong { length: MAX_FRAME_LEN as u64 + 1 }));
    let mut buffer = BytesMut::new();
    wire::put_varint(&mut buffer, MAX_FRAME_LEN as u64);
    assert_eq!(decode(&mut buffer), Ok(None));
}

#[test]
fn a_frame_without_type_and_a_known_frame_with_a_tail_are_refused() {
    assert_eq!(decode_body(&[]), Err(DecodeError::Truncated { field: "frame type" }));
    assert_eq!(
        decode_body(&[REMOVE, &[5, 0]]),
        Err(DecodeError::TrailingBytes { frame_type: 0x3d7e94, count: 1 })
    );
    assert_eq!(decode_body(&[REMOVE]), Err(DecodeError::Truncated { field: "sequence number" }));
}

#[test]
fn numbers_may_be_longer_than_they_need_to_be() {
    assert_eq!(decode_body(&[REMOVE, &[0x40, 5]]), Ok(Some(Frame::RemoveAddress { sequence: 5 })));
}

#[test]
fn port_0_mapped_addresses_and_unknown_codes_are_refused() {
    let field = "candidate address";
    assert_eq!(
        decode_body(&[ADD_V4, &[1, 192, 0, 2, 1, 0, 0, 0, 0]]),
        Err(DecodeError::Invalid { field, cause: "port 0" })
    );
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
    assert_eq!(
        decode_body(&[ADD_V6, &[1], &mapped, &[0x0f, 0xa1, 0, 0]]),
        Err(DecodeError::Invalid { field, cause: "an IPv4-mapped IPv6 address" })
    );
    assert_eq!(
        decode_body(&[ADD_V4, &[1, 192, 0, 2, 1, 0x0f, 0xa1, 6, 0]]),
        Err(DecodeError::Invalid { field: "candidate kind", cause: "unknown" })
    );
    for reason in [0, 9] {
        assert_eq!(
            decode_body(&[REJECTED, &[1, reason]]),
            Err(DecodeError::Invalid { field: "reason", cause: "unknown" })
        );
    }
}

#[test]
fn numbers_above_their_caps_are_refused() {
    // 86,401 seconds.
    assert_eq!(
        decode_body(&[REGISTERED, &[1, 0x80, 0x01, 0x51, 0x81]]),
        Err(DecodeError::AboveCap { field: "registration lifetime", found: 86_401, max: 86_400 })
    );
    // A second and a microsecond.
    assert_eq!(
        decode_body(&[REGISTERED, &[1, 1, 1, 0x80, 0x0f, 0x42, 0x41]]),
        Err(DecodeError::AboveCap { field: "request interval", found: 1_000_001, max: 1_000_000 })
    );
    // 300,001 milliseconds.
    assert_eq!(
        decode_body(&[REJECTED, &[1, 2, 0x80, 0x04, 0x93, 0xe1]]),
        Err(DecodeError::AboveCap { field: "retry after", found: 300_001, max: 300_000 })
    );
    // A priority of 2^32.
    assert_eq!(
        decode_body(&[ADD_V4, &[1, 192, 0, 2, 1, 0x0f, 0xa1, 0, 0xc0, 0, 0, 1, 0, 0, 0, 0]]),
        Err(DecodeError::AboveCap { field: "candidate priority", found: 1 << 32, max: u32::MAX.into() })
    );
}

#[test]
fn what_is_above_a_cap_is_cut_so_that_every_frame_fits() {
    let big = Bytes::from(vec![0xff; 5000]);
    let candidates =
        vec![Candidate { sequence: u64::MAX, priority: u32::MAX, ..candidate(0, "[2001:db8::1]:4001") }; 300];
    let request = PunchRequest {
        initiator: big.clone(),
        candidates: candidates.clone(),
        lifetime: Duration::MAX,
        first_flight: vec![big.clone(); 3],
        nat: big.clone(),
        round: u32::MAX,
        ..request(&Keypair::generate_ed25519())
    };
    let observed = Some("[2001:db8::1]:4001".parse().unwrap());
    let registration = Registration {
        peer: big.clone(),
        generation: u64::MAX,
        lifetime: Duration::MAX,
        probe_key: [4; 32],
        nat: big.clone(),
        signature: big.clone(),
        public_signature: Bytes::new(),
    };
    let (session, round) = (SessionId([1; 16]), u32::MAX);
    for frame in [
        Frame::PunchMeNow(Box::new(PunchMeNow { request, signature: big, observed })),
        Frame::PunchAnswer(Box::new(PunchAnswer { session, round, registration, candidates, observed })),
    ] {
        let mut buffer = BytesMut::new();
        encode(&frame, &mut buffer);
        match decode(&mut buffer) {
            Ok(Some(Frame::PunchMeNow(punch))) => {
                assert_eq!(punch.request.lifetime, MAX_PUNCH_LIFETIME);
                assert_eq!(punch.request.candidates.len(), MAX_FRAME_CANDIDATES);
                assert_eq!(punch.request.candidates[0].sequence, VARINT_MAX);
                let lengths: Vec<usize> = punch.request.first_flight.iter().map(Bytes::len).collect();
                assert_eq!(lengths, [MAX_FIRST_FLIGHT_DATAGRAM; MAX_FIRST_FLIGHT_DATAGRAMS]);
                assert_eq!(punch.signature.len(), MAX_SIGNATURE_LEN);
            }
            Ok(Some(Frame::PunchAnswer(answer))) => {
                assert_eq!(answer.registration.lifetime, MAX_REGISTRATION_LIFETIME);
                assert_eq!(answer.registration.peer.len(), MAX_PUBLIC_KEY_LEN);
                assert_eq!(answer.candidates.len(), MAX_FRAME_CANDIDATES);
            }
            other => panic!("{other:?}"),
        }
        assert!(buffer.is_empty());
    }
}

#[test]
fn a_request_names_its_initiator_whatever_the_type_of_the_key() {
    for keypair in every_kind_of_key() {
        let punch = punch(&keypair);
        assert_eq!(punch.verify().unwrap(), keypair.public().to_peer_id());
        let mut buffer = BytesMut::new();
        encode(&Frame::PunchMeNow(Box::new(punch.clone())), &mut buffer);
        assert_eq!(decode(&mut buffer), Ok(Some(Frame::PunchMeNow(Box::new(punch)))));
    }
}

#[test]
fn a_change_to_any_field_of_a_request_breaks_its_signature() {
    let keypair = Keypair::generate_ed25519();
    let changes: [fn(&mut PunchRequest); 10] = [
        |r| r.session.0[15] ^= 1,
        |r| r.round += 1,
        |r| r.initiator = Keypair::generate_ed25519().public().encode_protobuf().into(),
        |r| r.responder = PeerId::random(),
        |r| r.lifetime += Duration::from_millis(1),
        |r| r.probe_key[31] ^= 1,
        |r| r.candidates[1].address = "[2001:db8::2]:4001".parse().unwrap(),
        |r| r.candidates.truncate(1),
        |r| r.first_flight[1] = Bytes::from_static(b"other"),
        |r| r.first_flight.swap(0, 1),
    ];
    for change in changes {
        let mut punch = punch(&keypair);
        change(&mut punch.request);
        assert!(matches!(punch.verify(), Err(VerifyError::Signature { .. })), "{punch:?}");
    }
}

#[test]
fn a_coordinator_may_add_what_it_observed_without_breaking_a_signature() {
    let keypair = Keypair::generate_ed25519();
    let (mut punch, mut answer) = (punch(&keypair), answer(&keypair));
    punch.observed = Some("198.51.100.1:9".parse().unwrap());
    answer.observed = punch.observed;
    assert!(punch.verify().is_ok());
    assert!(answer.verify(keypair.public().to_peer_id()).is_ok());
}

#[test]
fn an_answer_is_believed_only_if_the_expected_peer_signed_it() {
    for keypair in every_kind_of_key() {
        let peer = keypair.public().to_peer_id();
        let answer = answer(&keypair);
        assert!(answer.verify(peer).is_ok());
        assert!(matches!(
            answer.verify(PeerId::random()),
            Err(VerifyError::WrongPeer { found }) if found == peer
        ));
    }
}

#[test]
fn a_change_to_any_field_of_a_registration_breaks_its_signature() {
    let keypair = Keypair::generate_ed25519();
    let changes: [fn(&mut PunchAnswer); 6] = [
        |a| a.registration.generation += 1,
        |a| a.registration.lifetime += Duration::from_secs(1),
        |a| a.registration.probe_key[0] ^= 1,
        |a| a.candidates[0].priority += 1,
        |a| a.candidates.truncate(1),
        |a| a.registration.signature = Bytes::from_static(b"no"),
    ];
    for change in changes {
        let mut answer = answer(&keypair);
        change(&mut answer);
        let result = answer.verify(keypair.public().to_peer_id());
        assert!(matches!(result, Err(VerifyError::Signature { .. })), "{answer:?}");
    }
}

#[test]
fn a_registration_does_not_depend_on_the_order_of_its_candidates() {
    let keypair = Keypair::generate_ed25519();
    let mut answer = answer(&keypair);
    answer.candidates.reverse();
    assert!(answer.verify(keypair.public().to_peer_id()).is_ok());
}

#[test]
fn a_signature_over_a_registration_is_none_over_a_request() {
    let keypair = Keypair::generate_ed25519();
    let mut punch = punch(&keypair);
    punch.signature = answer(&keypair).registration.signature;
    assert!(matches!(punch.verify(), Err(VerifyError::Signature { .. })));
}

#[test]
fn nothing_is_signed_that_no_frame_can_carry() {
    let keypair = Keypair::generate_ed25519();
    let changes: [fn(&mut PunchRequest); 6] = [
        |r| r.first_flight.clear(),
        |r| r.first_flight[0] = Bytes::new(),
        |r| r.first_flight[0] = Bytes::from_static(&[0; MAX_FIRST_FLIGHT_DATAGRAM + 1]),
        |r| r.first_flight.push(Bytes::from_static(b"third")),
        |r| r.candidates = vec![r.candidates[0]; MAX_FRAME_CANDIDATES + 1],
        |r| r.candidates[0].address.set_port(0),
    ];
    for change in changes {
        let mut request = request(&keypair);
        change(&mut request);
        assert!(request.sign(&keypair).is_err(), "{request:?}");
    }
    let request = request(&keypair);
    assert!(matches!(request.sign(&Keypair::generate_ed25519()), Err(SignError::WrongKey)));
}

#[test]
fn a_key_that_is_none_is_refused() {
    let mut punch = punch(&Keypair::generate_ed25519());
    punch.request.initiator = Bytes::from_static(b"no key");
    assert!(matches!(punch.verify(), Err(VerifyError::Key(_))));
}
