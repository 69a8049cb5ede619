//! The test vectors of `docs/protocol.md`, encoded and decoded.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test is a caller")]

use std::{collections::BTreeMap, fmt::Debug, net::SocketAddr, str::FromStr, time::Duration};

use bytes::{Bytes, BytesMut};
use hmac::{Hmac, Mac};
use libp2p_identity::{Keypair, PeerId};
use libp2p_punch_proto::{
    SessionId,
    candidate::{Candidate, CandidateKind},
    config::Disclosure,
    event::SessionRole,
    nat::{binding_lifetime, filtering::datagram, observer},
    rate_limit::Rate,
    wire::{
        frame::{
            CoordinatorAddress, Frame, ObserverOffer, PortPrediction, PunchAnswer, PunchMeNow, PunchMoved,
            PunchRequest, Registration, RejectReason, decode, encode,
        },
        keys::{ProbeKeys, ProbeSecret},
        probe::{Probe, tag_of},
    },
};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// One fenced block: `key = value` lines, of which a key may have several; a line that begins with
/// a blank goes on with the value above.
#[derive(Debug, Default)]
struct Vector(BTreeMap<String, Vec<String>>);

impl Vector {
    fn parse(block: &str) -> Self {
        let mut vector = Self::default();
        let mut last = String::new();
        for line in block.lines() {
            if line.starts_with(' ') {
                let value = vector.0.get_mut(&last).and_then(|values| values.last_mut());
                value.expect("a value to go on with").push_str(line.trim());
            } else {
                let (key, value) = line.split_once(" = ").expect("key = value");
                last = key.to_owned();
                vector.0.entry(last.clone()).or_default().push(value.to_owned());
            }
        }
        vector
    }

    fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    fn text(&self, key: &str) -> &str {
        match self.all(key) {
            [value] => value,
            values => panic!("{key} has {} values in {self:?}", values.len()),
        }
    }

    fn parsed<T: FromStr<Err: Debug>>(&self, key: &str) -> T {
        self.text(key).parse().expect("a well-formed vector")
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        unhex(self.text(key))
    }

    fn array<const N: usize>(&self, key: &str) -> [u8; N] {
        self.bytes(key).try_into().expect("a well-formed vector")
    }

    fn keypair(&self) -> Keypair {
        Keypair::ed25519_from_bytes(self.bytes("seed")).expect("a well-formed vector")
    }

    fn peer(&self, key: &str) -> PeerId {
        PeerId::from_bytes(&self.bytes(key)).expect("a well-formed vector")
    }

    fn session(&self) -> SessionId {
        SessionId(self.array("session"))
    }

    fn observed(&self) -> Option<SocketAddr> {
        (self.text("observed") != "none").then(|| self.parsed("observed"))
    }

    fn lifetime(&self) -> Duration {
        Duration::from_secs(self.parsed("lifetime-s"))
    }

    fn nat(&self) -> Bytes {
        self.all("nat").first().map(|hex| unhex(hex).into()).unwrap_or_default()
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.all("candidate").iter().map(|text| candidate(text)).collect()
    }

    fn request(&self) -> PunchRequest {
        PunchRequest {
            session: self.session(),
            round: self.parsed("round"),
            initiator: self.keypair().public().encode_protobuf().into(),
            responder: self.peer("responder-peer-id"),
            lifetime: Duration::from_millis(self.parsed("lifetime-ms")),
            probe_key: self.array("probe-key"),
            candidates: self.candidates(),
            nat: self.nat(),
            first_flight: self.all("datagram").iter().map(|hex| unhex(hex).into()).collect(),
        }
    }

    fn registration(&self) -> Registration {
        let (generation, probe_key) = (self.parsed("generation"), self.array("probe-key"));
        Registration::sign(
            &self.keypair(),
            generation,
            self.lifetime(),
            probe_key,
            &self.candidates(),
            self.nat(),
        )
        .expect("a well-formed vector")
    }

    fn retry_after(&self) -> Duration {
        Duration::from_millis(self.parsed("retry-after-ms"))
    }

    fn offer(&self) -> ObserverOffer {
        let ports = self.all("port").iter().map(|port| port.parse().expect("a port")).collect();
        ObserverOffer { ports, token: self.array("token"), key: self.array("key") }
    }

    fn coordinators(&self) -> Vec<CoordinatorAddress> {
        let coordinators = self.all("coordinator").iter().map(|text| {
            let (peer, address) = text.split_once(' ').expect("a peer ID and an address");
            let coordinator = PeerId::from_bytes(&unhex(peer)).expect("a peer ID");
            CoordinatorAddress { coordinator, address: address.parse().expect("an address") }
        });
        coordinators.collect()
    }

    /// The frame by which a coordinator or a responder answers.
    fn answer(&self) -> Frame {
        let generation = || self.parsed("generation");
        let reason = || reason(self.text("reason"));
        match self.text("frame") {
            "REGISTERED" => Frame::Registered {
                generation: generation(),
                lifetime: self.lifetime(),
                allowance: Rate {
                    burst: self.parsed("requests-at-once"),
                    interval: Duration::from_micros(self.parsed("request-interval-us")),
                },
            },
            "REGISTER_REJECTED" => Frame::RegisterRejected {
                generation: generation(),
                reason: reason(),
                retry_after: self.retry_after(),
            },
            "PUNCH_ANSWER" => Frame::PunchAnswer(Box::new(PunchAnswer {
                session: self.session(),
                round: self.parsed("round"),
                registration: Registration { public_signature: Bytes::new(), ..self.registration() },
                candidates: self.candidates(),
                observed: self.observed(),
            })),
            "PUNCH_ACCEPTED" => Frame::PunchAccepted { session: self.session(), round: self.parsed("round") },
            "PUNCH_REJECTED" => Frame::PunchRejected {
                session: self.session(),
                round: self.parsed("round"),
                reason: reason(),
                retry_after: self.retry_after(),
            },
            other => panic!("{other} is no answer"),
        }
    }

    fn frame(&self) -> Frame {
        match self.text("frame") {
            "OBSERVED_ADDRESS" => {
                Frame::ObservedAddress { sequence: self.parsed("sequence"), address: self.parsed("address") }
            }
            "ADD_ADDRESS" => Frame::AddAddress(candidate(self.text("candidate"))),
            "REMOVE_ADDRESS" => Frame::RemoveAddress { sequence: self.parsed("sequence") },
            "REGISTER" => Frame::Register {
                registration: self.registration(),
                disclosure: match self.text("disclosure") {
                    "all" => Disclosure::ToAll,
                    _ => Disclosure::ToAccepted,
                },
            },
            "REGISTERED" | "REGISTER_REJECTED" | "PUNCH_ANSWER" | "PUNCH_ACCEPTED" | "PUNCH_REJECTED" => {
                self.answer()
            }
            "PUNCH_ME_NOW" => {
                let request = self.request();
                let signature = request.sign(&self.keypair()).expect("a well-formed vector");
                Frame::PunchMeNow(Box::new(PunchMeNow { request, signature, observed: self.observed() }))
            }
            "OBSERVER" => Frame::Observer(self.offer()),
            "OBSERVER_AT" => Frame::ObserverAt { ip: self.parsed("ip"), offer: self.offer() },
            "PROBE_OBSERVED" => {
                Frame::ProbeObserved { data: self.array("data"), address: self.parsed("address") }
            }
            "PORT_PREDICTION" => Frame::PortPrediction(Box::new(PortPrediction {
                peer: self.peer("peer"),
                session: self.session(),
                round: self.parsed("round"),
                port: self.parsed("port"),
                step: self.parsed("step"),
                authenticator: self.array("authenticator"),
            })),
            "PUNCH_MOVED" => Frame::PunchMoved(Box::new(PunchMoved {
                peer: self.peer("peer"),
                session: self.session(),
                sequence: self.parsed("sequence"),
                candidates: self.candidates(),
                authenticator: self.array("authenticator"),
            })),
            "COORDINATORS" => Frame::Coordinators(self.coordinators()),
            "FILTER_TEST" => Frame::FilterTest { data: self.array("data"), key: self.array("key") },
            "FILTER_TESTED" => {
                let sources = self.all("source").iter().map(|text| text.parse().expect("an address"));
                let (data, rounds) = (self.array("data"), self.parsed("rounds"));
                Frame::FilterTested { data, rounds, sources: sources.collect() }
            }
            "FILTERING_ASSIST_REQUEST" => {
                let (data, key) = (self.array("data"), self.array("key"));
                Frame::FilteringAssistRequest { data, key, target: self.parsed("target") }
            }
            "FILTERING_ASSIST_RESPONSE" => {
                let source = self.all("source").first().map(|text| text.parse().expect("an address"));
                Frame::FilteringAssistResponse {
                    data: self.array("data"),
                    rounds: self.parsed("rounds"),
                    source,
                }
            }
            other => panic!("unknown frame {other}"),
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("a well-formed vector"))
        .collect()
}

fn candidate(text: &str) -> Candidate {
    let [sequence, kind, priority, address] = text.split(' ').collect::<Vec<_>>()[..] else {
        panic!("not a candidate: {text}")
    };
    let kind = match kind {
        "Host" => CandidateKind::Host,
        "ServerReflexive" => CandidateKind::ServerReflexive,
        "PortMapped" => CandidateKind::PortMapped,
        other => panic!("unknown kind {other}"),
    };
    Candidate {
        sequence: sequence.parse().expect("a well-formed vector"),
        kind,
        priority: priority.parse().expect("a well-formed vector"),
        address: address.parse().expect("a well-formed vector"),
    }
}

fn reason(text: &str) -> RejectReason {
    match text {
        "NotConnected" => RejectReason::NotConnected,
        "RateLimited" => RejectReason::RateLimited,
        "Full" => RejectReason::Full,
        "Superseded" => RejectReason::Superseded,
        other => panic!("unknown reason {other}"),
    }
}

/// The vectors that have `key`.
fn vectors(key: &str) -> Vec<Vector> {
    let blocks = DOCUMENT.split("```vector\n").skip(1);
    let vectors = blocks.map(|rest| Vector::parse(rest.split("```").next().expect("a well-formed vector")));
    vectors.filter(|vector| !vector.all(key).is_empty()).collect()
}

/// The derivation of probe keys.
fn key_vector() -> Vector {
    let mut found = vectors("keys");
    assert_eq!(found.len(), 1);
    found.remove(0)
}

/// The keys of the document's derivation, as the peer of `role` has them.
fn derivation(role: SessionRole) -> ProbeKeys {
    let vector = key_vector();
    let (own, theirs) = match role {
        SessionRole::Initiator => ("initiator-secret", "responder-public"),
        SessionRole::Responder => ("responder-secret", "initiator-public"),
    };
    let (own, theirs) = (ProbeSecret::new(vector.array(own)), vector.array(theirs));
    let (initiator, responder) = (vector.peer("initiator-peer-id"), vector.peer("responder-peer-id"));
    ProbeKeys::derive(&own, &theirs, vector.session(), &initiator, &responder, role)
        .expect("a well-formed vector")
}

#[test]
fn every_frame_encodes_to_and_decodes_from_the_bytes_of_the_document() {
    let mut seen = BTreeMap::<String, usize>::new();
    for vector in vectors("frame") {
        let (frame, bytes) = (vector.frame(), vector.bytes("bytes"));
        let mut buffer = BytesMut::new();
        encode(&frame, &mut buffer);
        assert_eq!(buffer.to_vec(), bytes, "{vector:?}");
        assert_eq!(decode(&mut BytesMut::from(&bytes[..])), Ok(Some(frame)), "{vector:?}");
        *seen.entry(vector.text("frame").to_owned()).or_default() += 1;
    }
    let expected = [
        ("ADD_ADDRESS", 2),
        ("COORDINATORS", 1),
        ("FILTERING_ASSIST_REQUEST", 2),
        ("FILTERING_ASSIST_RESPONSE", 3),
        ("FILTER_TEST", 1),
        ("FILTER_TESTED", 2),
        ("OBSERVED_ADDRESS", 2),
        ("OBSERVER", 1),
        ("OBSERVER_AT", 2),
        ("PROBE_OBSERVED", 2),
        ("PUNCH_ACCEPTED", 1),
        ("PUNCH_ANSWER", 3),
        ("PUNCH_ME_NOW", 3),
        ("PUNCH_MOVED", 1),
        ("PUNCH_REJECTED", 3),
        ("PORT_PREDICTION", 2),
        ("REGISTER", 2),
        ("REGISTERED", 1),
        ("REGISTER_REJECTED", 1),
        ("REMOVE_ADDRESS", 1),
    ];
    assert_eq!(seen, expected.map(|(name, count)| (name.to_owned(), count)).into());
}

#[test]
fn what_peers_of_a_session_tell_each_other_bears_the_authenticator_of_the_document() {
    let mac_key = key_vector().bytes("initiator-mac-key");
    let authentic = |covered: &[u8], authenticator: [u8; 16]| {
        let mac = Hmac::<Sha256>::new_from_slice(&mac_key).expect("a well-formed vector");
        mac.chain_update(covered).verify_truncated_left(&authenticator).is_ok()
    };
    let mut seen = 0;
    for vector in vectors("frame") {
        // Before the authenticator, from the session on.
        let domain = match vector.text("frame") {
            "PORT_PREDICTION" => "libp2p-punch/1.0.0 punch-window",
            "PUNCH_MOVED" => "libp2p-punch/1.0.0 punch-moved",
            _ => continue,
        };
        let (bytes, session) = (vector.bytes("bytes"), vector.session().0);
        let at = bytes.windows(16).position(|window| window == session).expect("the session is in it");
        let covered = [domain.as_bytes(), &bytes[at..bytes.len() - 16]].concat();
        assert!(authentic(&covered, vector.array("authenticator")), "{vector:?}");
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn both_signatures_are_those_of_the_document_and_verify() {
    let vectors = vectors("signature");
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let (keypair, expected) = (vector.keypair(), vector.bytes("bytes"));
        let peer = keypair.public().to_peer_id();
        assert!(keypair.public().verify(&vector.bytes("signed"), &expected));
        match vector.text("signature") {
            "punch-me-now" => {
                let request = vector.request();
                assert_eq!(request.sign(&keypair).expect("a well-formed vector"), expected);
                let punch = PunchMeNow { request, signature: expected.into(), observed: None };
                assert_eq!(punch.verify().expect("a well-formed vector"), peer);
            }
            "registration" => {
                let registration = vector.registration();
                assert_eq!(registration.signature, expected);
                assert!(registration.verify(&peer, &vector.candidates()).is_ok());
            }
            other => panic!("unknown signature {other}"),
        }
    }
}

#[test]
fn the_key_derivation_gives_what_the_document_says() {
    let vector = key_vector();
    for side in ["initiator", "responder"] {
        let secret = ProbeSecret::new(vector.array(&format!("{side}-secret")));
        assert_eq!(secret.public(), vector.array(&format!("{side}-public")));
    }
    let secret = StaticSecret::from(vector.array::<32>("initiator-secret"));
    let shared = secret.diffie_hellman(&PublicKey::from(vector.array::<32>("responder-public")));
    assert_eq!(shared.to_bytes(), vector.array("shared-secret"));
    let (initiator, responder) = (derivation(SessionRole::Initiator), derivation(SessionRole::Responder));
    assert_eq!(initiator.remote_tag(), vector.array("initiator-tag"));
    assert_eq!(responder.remote_tag(), vector.array("responder-tag"));
    assert_eq!(initiator.local_tag(), responder.remote_tag());
    assert_eq!(responder.local_tag(), initiator.remote_tag());
}

#[test]
fn every_probe_encodes_to_and_decodes_from_the_bytes_of_the_document() {
    let vectors = vectors("probe");
    assert_eq!(vectors.len(), 4);
    for vector in vectors {
        let data = vector.array("data");
        let probe = match vector.text("probe") {
            "challenge" => Probe::Challenge { data, nominate: vector.text("nominate") == "yes" },
            "response" => Probe::Response { data, observed: vector.parsed("observed") },
            other => panic!("unknown probe {other}"),
        };
        let (initiator, responder) = (derivation(SessionRole::Initiator), derivation(SessionRole::Responder));
        let (sender, receiver) = match vector.text("sender") {
            "initiator" => (initiator, responder),
            "responder" => (responder, initiator),
            other => panic!("unknown sender {other}"),
        };
        let bytes = vector.bytes("bytes");
        assert_eq!(probe.encode(&sender).to_vec(), bytes, "{vector:?}");
        assert_eq!(Probe::decode(&bytes, &receiver), Ok(probe), "{vector:?}");
        assert_eq!(tag_of(&bytes), Some(receiver.local_tag()));
        let mac_key = key_vector().bytes(&format!("{}-mac-key", vector.text("sender")));
        let (covered, authenticator) = bytes.split_at(bytes.len() - 16);
        let mac =
            Hmac::<Sha256>::new_from_slice(&mac_key).expect("a well-formed vector").chain_update(covered);
        assert!(mac.verify_truncated_left(authenticator).is_ok(), "{vector:?}");
    }
}

#[test]
fn the_datagram_of_a_filtering_test_is_that_of_the_document() {
    let vectors = vectors("filter-probe");
    assert_eq!(vectors.len(), 1);
    for vector in vectors {
        let (data, key) = (vector.array("data"), vector.array::<32>("key"));
        let made = datagram(data, &key, vector.parsed("filter-probe"));
        assert_eq!(made.to_vec(), vector.bytes("bytes"));
        let (covered, authenticator) = made.split_at(made.len() - 16);
        let mac = Hmac::<Sha256>::new_from_slice(&key).expect("a well-formed vector").chain_update(covered);
        assert!(mac.verify_truncated_left(authenticator).is_ok());
    }
}

#[test]
fn requests_to_observers_with_and_without_early_packets_are_those_of_the_document() {
    let vectors = vectors("observe");
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let offer =
            ObserverOffer { ports: Vec::new(), token: vector.array("token"), key: vector.array::<32>("key") };
        let made = match vector.text("observe") {
            "early" => observer::provocation(&offer, vector.array("data")),
            _ => observer::request(&offer, vector.array("data")),
        };
        assert_eq!(made.to_vec(), vector.bytes("bytes"));
    }
}

#[test]
fn requests_for_a_later_answer_and_the_answers_are_those_of_the_document() {
    let vectors = vectors("hold");
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let (data, key) = (vector.array("data"), vector.array::<32>("key"));
        let made = match vector.text("hold") {
            "request" => {
                let offer = ObserverOffer { ports: Vec::new(), token: vector.array("token"), key };
                binding_lifetime::request(&offer, data, vector.parsed("delay-s"))
            }
            _ => binding_lifetime::answer(&key, data, vector.text("late") == "yes"),
        };
        assert_eq!(made.to_vec(), vector.bytes("bytes"));
    }
}
