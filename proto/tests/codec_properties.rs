//! Properties of all frames, all probes and all bytes.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test is a caller")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use libp2p_identity::{Keypair, PeerId};
use libp2p_punch_proto::{
    SessionId,
    candidate::{Candidate, CandidateKind},
    config::Disclosure,
    event::SessionRole,
    rate_limit::Rate,
    wire::{
        frame::{
            CoordinatorAddress, Frame, MAX_ALLOWANCE_INTERVAL, MAX_PUNCH_LIFETIME, MAX_REGISTRATION_LIFETIME,
            MAX_RETRY_AFTER, ObserverOffer, PortPrediction, PunchAnswer, PunchMeNow, PunchMoved,
            PunchRequest, Registration, RejectReason, VARINT_MAX, decode, encode,
        },
        keys::{ProbeKeys, ProbeSecret},
        probe::{PROBE_LEN, Probe, ProbeError, tag_of},
    },
};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
};

fn varint() -> impl Strategy<Value = u64> {
    prop_oneof![0..64_u64, 64..16_384_u64, 16_384..(1_u64 << 30), (1 << 30)..=VARINT_MAX]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), 1..=u16::MAX).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let kind = select(vec![
        CandidateKind::Host,
        CandidateKind::ServerReflexive,
        CandidateKind::PeerReflexive,
        CandidateKind::Predicted,
        CandidateKind::PortMapped,
        CandidateKind::Relayed,
    ]);
    (varint(), kind, any::<u32>(), address()).prop_map(|(sequence, kind, priority, address)| Candidate {
        sequence,
        kind,
        priority,
        address,
    })
}

fn reason() -> impl Strategy<Value = RejectReason> {
    select(vec![
        RejectReason::NotConnected,
        RejectReason::RateLimited,
        RejectReason::NotWilling,
        RejectReason::Expired,
        RejectReason::Unsupported,
        RejectReason::Full,
        RejectReason::Malformed,
        RejectReason::Superseded,
    ])
}

fn byte_string(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 1..=max).prop_map(Bytes::from)
}

fn nat_report() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=64).prop_map(Bytes::from)
}

fn registration_lifetime() -> impl Strategy<Value = Duration> {
    (0..=MAX_REGISTRATION_LIFETIME.as_secs()).prop_map(Duration::from_secs)
}

fn peer() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(|seed| {
        Keypair::ed25519_from_bytes(seed).expect("any seed makes a key").public().to_peer_id()
    })
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(SessionId)
}

prop_compose! {
    fn registration()(
        peer in byte_string(64),
        generation in varint(),
        lifetime in registration_lifetime(),
        probe_key in any::<[u8; 32]>(),
        nat in nat_report(),
        signature in byte_string(80),
    ) -> Registration {
        let public_signature = Bytes::new();
        Registration { peer, generation, lifetime, probe_key, nat, signature, public_signature }
    }
}

prop_compose! {
    fn request()(
        session in session(),
        round in any::<u32>(),
        initiator in byte_string(64),
        responder in peer(),
        lifetime in 0..=MAX_PUNCH_LIFETIME.as_secs() * 1000,
        probe_key in any::<[u8; 32]>(),
        candidates in vec(candidate(), 0..12),
        nat in nat_report(),
        first_flight in vec(byte_string(1500), 1..=2),
    ) -> PunchRequest {
        let lifetime = Duration::from_millis(lifetime);
        PunchRequest {
            session, round, initiator, responder, lifetime, probe_key, candidates, nat, first_flight,
        }
    }
}

prop_compose! {
    fn punch_me_now()(
        request in request(),
        signature in byte_string(80),
        observed in option::of(address()),
    ) -> Frame {
        Frame::PunchMeNow(Box::new(PunchMeNow { request, signature, observed }))
    }
}

prop_compose! {
    fn punch_answer()(
        session in session(),
        round in any::<u32>(),
        registration in registration(),
        candidates in vec(candidate(), 0..12),
        observed in option::of(address()),
    ) -> Frame {
        Frame::PunchAnswer(Box::new(PunchAnswer { session, round, registration, candidates, observed }))
    }
}

prop_compose! {
    fn window()(
        peer in peer(),
        session in session(),
        round in any::<u32>(),
        port in 1..=u16::MAX,
        step in any::<u16>(),
        authenticator in any::<[u8; 16]>(),
    ) -> PortPrediction {
        PortPrediction { peer, session, round, port, step, authenticator }
    }
}

prop_compose! {
    fn moved()(
        peer in peer(),
        session in session(),
        sequence in any::<u32>(),
        candidates in vec(candidate(), 0..12),
        authenticator in any::<[u8; 16]>(),
    ) -> PunchMoved {
        PunchMoved { peer, session, sequence, candidates, authenticator }
    }
}

fn coordinator_address() -> impl Strategy<Value = CoordinatorAddress> {
    (peer(), address()).prop_map(|(coordinator, address)| CoordinatorAddress { coordinator, address })
}

fn allowance() -> impl Strategy<Value = Rate> {
    let max = u64::try_from(MAX_ALLOWANCE_INTERVAL.as_micros()).expect("a second");
    (any::<u32>(), 0..=max)
        .prop_map(|(burst, micros)| Rate { burst, interval: Duration::from_micros(micros) })
}

fn retry_after() -> impl Strategy<Value = Duration> {
    let max = u64::try_from(MAX_RETRY_AFTER.as_millis()).expect("five minutes");
    (0..=max).prop_map(Duration::from_millis)
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (varint(), address()).prop_map(|(sequence, address)| Frame::ObservedAddress { sequence, address }),
        candidate().prop_map(Frame::AddAddress),
        varint().prop_map(|sequence| Frame::RemoveAddress { sequence }),
        (registration(), byte_string(80), any::<bool>()).prop_map(
            |(registration, public_signature, to_all)| {
                let disclosure = if to_all { Disclosure::ToAll } else { Disclosure::ToAccepted };
                Frame::Register {
                    registration: Registration { public_signature, ..registration },
                    disclosure,
                }
            }
        ),
        (varint(), registration_lifetime(), allowance()).prop_map(|(generation, lifetime, allowance)| {
            Frame::Registered { generation, lifetime, allowance }
        }),
        (varint(), reason(), retry_after()).prop_map(|(generation, reason, retry_after)| {
            Frame::RegisterRejected { generation, reason, retry_after }
        }),
        punch_me_now(),
        punch_answer(),
        (session(), any::<u32>()).prop_map(|(session, round)| Frame::PunchAccepted { session, round }),
        (session(), any::<u32>(), reason(), retry_after()).prop_map(
            |(session, round, reason, retry_after)| Frame::PunchRejected {
                session,
                round,
                reason,
                retry_after
            }
        ),
        (vec(1..=u16::MAX, 1..=4), any::<[u8; 8]>(), any::<[u8; 32]>())
            .prop_map(|(ports, token, key)| Frame::Observer(ObserverOffer { ports, token, key })),
        (address(), vec(1..=u16::MAX, 1..=4), any::<[u8; 8]>(), any::<[u8; 32]>()).prop_map(
            |(address, ports, token, key)| Frame::ObserverAt {
                ip: address.ip(),
                offer: ObserverOffer { ports, token, key }
            }
        ),
        (any::<[u8; 8]>(), address()).prop_map(|(data, address)| Frame::ProbeObserved { data, address }),
        (any::<[u8; 8]>(), any::<[u8; 32]>()).prop_map(|(data, key)| Frame::FilterTest { data, key }),
        (any::<[u8; 8]>(), any::<u8>(), vec(address(), 0..=4))
            .prop_map(|(data, rounds, sources)| Frame::FilterTested { data, rounds, sources }),
        (any::<[u8; 8]>(), any::<[u8; 32]>(), address())
            .prop_map(|(data, key, target)| Frame::FilteringAssistRequest { data, key, target }),
        (any::<[u8; 8]>(), any::<u8>(), option::of(address()))
            .prop_map(|(data, rounds, source)| Frame::FilteringAssistResponse { data, rounds, source }),
        window().prop_map(|window| Frame::PortPrediction(Box::new(window))),
        moved().prop_map(|moved| Frame::PunchMoved(Box::new(moved))),
        vec(coordinator_address(), 1..=8).prop_map(Frame::Coordinators),
    ]
}

fn probe() -> impl Strategy<Value = Probe> {
    prop_oneof![
        (any::<[u8; 8]>(), any::<bool>()).prop_map(|(data, nominate)| Probe::Challenge { data, nominate }),
        (any::<[u8; 8]>(), address()).prop_map(|(data, observed)| Probe::Response { data, observed }),
    ]
}

/// The keys of an initiator and of its responder.
fn keys() -> (ProbeKeys, ProbeKeys) {
    let peer = |seed: u8| {
        Keypair::ed25519_from_bytes([seed; 32]).expect("any seed makes a key").public().to_peer_id()
    };
    let (initiator, responder) = (ProbeSecret::new([3; 32]), ProbeSecret::new([4; 32]));
    let derive = |own: &ProbeSecret, theirs: [u8; 32], role| {
        ProbeKeys::derive(own, &theirs, SessionId([7; 16]), &peer(1), &peer(2), role)
            .expect("keys of full order")
    };
    (
        derive(&initiator, responder.public(), SessionRole::Initiator),
        derive(&responder, initiator.public(), SessionRole::Responder),
    )
}

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut out = BytesMut::new();
    frames.iter().for_each(|frame| encode(frame, &mut out));
    out
}

/// Decodes whatever there is; what comes out must encode to something that decodes to the same.
fn decode_all(buffer: &mut BytesMut) -> Result<(), TestCaseError> {
    while let Ok(Some(frame)) = decode(buffer) {
        let again = decode(&mut encoded(std::slice::from_ref(&frame)));
        prop_assert_eq!(again, Ok(Some(frame)));
    }
    Ok(())
}

proptest! {
    #[test]
    fn frames_decode_to_what_was_encoded_however_the_stream_is_cut(
        frames in vec(frame(), 1..5),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let bytes = encoded(&frames);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let (mut buffer, mut decoded) = (BytesMut::new(), Vec::new());
        for window in cuts.windows(2) {
            buffer.extend_from_slice(&bytes[window[0]..window[1]]);
            while let Some(frame) = decode(&mut buffer).unwrap() {
                decoded.push(frame);
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(decoded, frames);
    }

    #[test]
    fn a_cut_frame_asks_for_more_and_stays_in_the_buffer(frame in frame(), cut in any::<Index>()) {
        let whole = encoded(&[frame]);
        let length = cut.index(whole.len());
        let mut buffer = BytesMut::from(&whole[..length]);
        prop_assert_eq!(decode(&mut buffer), Ok(None));
        prop_assert_eq!(&buffer[..], &whole[..length]);
    }

    #[test]
    fn a_frame_whose_length_says_less_than_it_needs_is_refused(frame in frame(), cut in any::<Index>()) {
        let whole = encoded(&[frame]);
        let body = &whole[1 << (whole[0] >> 6)..];
        // The four bytes of the type stay: without them it would be another one.
        let body = &body[..4 + cut.index(body.len() - 4)];
        let mut buffer = BytesMut::new();
        buffer.extend_from_slice(&(0x8000_0000 | u32::try_from(body.len()).unwrap()).to_be_bytes());
        buffer.extend_from_slice(body);
        // A NAT report ends some frames, and may be missing: cut right before it, a frame has what
        // it needs.
        if let Ok(decoded) = decode(&mut buffer) {
            let again = encoded(&[decoded.expect("the type is known")]);
            prop_assert_eq!(&again[1 << (again[0] >> 6)..], body);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        decode_all(&mut BytesMut::from(&bytes[..]))?;
    }

    #[test]
    fn arbitrary_payloads_of_known_types_never_panic(
        frame_type in prop_oneof![0x9f81a6..=0x9f81a7_u32, 0x3d7e90..=0x3d7e9d_u32],
        payload in vec(prop_oneof![3 => 0..8_u8, 1 => any::<u8>()], 0..250),
    ) {
        let mut buffer = BytesMut::new();
        let length = u32::try_from(payload.len() + 4).unwrap();
        buffer.extend_from_slice(&(0x8000_0000 | length).to_be_bytes());
        buffer.extend_from_slice(&(0x8000_0000 | frame_type).to_be_bytes());
        buffer.extend_from_slice(&payload);
        decode_all(&mut buffer)?;
    }

    #[test]
    fn a_frame_with_a_changed_byte_never_panics(frame in frame(), at in any::<Index>(), change in 1..=u8::MAX) {
        let mut buffer = encoded(&[frame]);
        let at = at.index(buffer.len());
        buffer[at] ^= change;
        decode_all(&mut buffer)?;
    }

    #[test]
    fn probes_decode_to_what_was_encoded_and_only_at_the_other_end(probe in probe()) {
        let (initiator, responder) = keys();
        for (from, to) in [(&initiator, &responder), (&responder, &initiator)] {
            let datagram = probe.encode(from);
            prop_assert_eq!(Probe::decode(&datagram, to), Ok(probe));
            prop_assert_eq!(Probe::decode(&datagram, from), Err(ProbeError::Tag));
        }
    }

    #[test]
    fn a_probe_with_any_single_bit_flipped_is_refused(probe in probe()) {
        let (initiator, responder) = keys();
        let datagram = probe.encode(&initiator);
        for bit in 0..PROBE_LEN * 8 {
            let mut flipped = datagram;
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Probe::decode(&flipped, &responder).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn arbitrary_datagrams_never_panic_and_are_no_probes(
        mut bytes in prop_oneof![vec(any::<u8>(), 0..100), vec(any::<u8>(), PROBE_LEN)],
        right_header in any::<bool>(),
    ) {
        let (initiator, responder) = keys();
        if right_header && let Some(start) = bytes.first_chunk_mut::<11>() {
            start.copy_from_slice(&Probe::Challenge { data: [0; 8], nominate: false }.encode(&initiator)[..11]);
            let expected = (bytes.len() == PROBE_LEN).then(|| responder.local_tag());
            prop_assert_eq!(tag_of(&bytes), expected);
        }
        prop_assert!(Probe::decode(&bytes, &responder).is_err());
    }
}
