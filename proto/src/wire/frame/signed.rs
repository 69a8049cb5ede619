//! Signed statements of peers: a coordinator can drop them but not forge or redirect them.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use libp2p_identity::{DecodingError, Keypair, PeerId, PublicKey, SigningError};
use sha2::{Digest, Sha256};

use super::{
    MAX_FIRST_FLIGHT_DATAGRAM, MAX_FIRST_FLIGHT_DATAGRAMS, MAX_FRAME_CANDIDATES, PortPrediction, PunchAnswer,
    PunchMeNow, PunchMoved, PunchRequest, Registration,
    codec::{
        MAX_NAT_REPORT_LEN, MAX_PUBLIC_KEY_LEN, put_candidates, put_first_flight, put_nat,
        put_registration_lifetime, put_request,
    },
    wire::{put_bytes, put_varint},
};
use crate::{
    address_policy::{Scope, scope},
    candidate::Candidate,
};

const REQUEST_DOMAIN: &[u8] = b"libp2p-punch/1.0.0 punch-me-now";
const REGISTRATION_DOMAIN: &[u8] = b"libp2p-punch/1.0.0 registration";
const MOVED_DOMAIN: &[u8] = b"libp2p-punch/1.0.0 punch-moved";
const WINDOW_DOMAIN: &[u8] = b"libp2p-punch/1.0.0 punch-window";

/// Reason for a failure to sign.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A list or a byte string is above its cap, so no frame could carry it.
    #[error("{field}: {found} is above {max}")]
    AboveCap {
        /// The field.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The largest length allowed.
        max: usize,
    },
    /// A field has a value that receivers refuse.
    #[error("{field}: {cause}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The rule that it breaks.
        cause: &'static str,
    },
    /// The request names another key than the signing key.
    #[error("the request names another initiator than the signing key")]
    WrongKey,
    /// The key refused.
    #[error("the key could not sign: {0}")]
    Key(#[from] SigningError),
}

/// Reason for disbelief in a statement that a peer should have signed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The public key is malformed, or of a type that this build does not support.
    #[error("the public key cannot be used: {0}")]
    Key(#[from] DecodingError),
    /// The public key is that of another peer.
    #[error("the public key is that of {found}, who was not expected")]
    WrongPeer {
        /// Peer of the key.
        found: PeerId,
    },
    /// The signature is wrong.
    #[error("the signature of {peer} is wrong")]
    Signature {
        /// Peer whose signature is expected.
        peer: PeerId,
    },
}

impl PunchRequest {
    /// Returns the signature of `keypair` over this request.
    ///
    /// # Errors
    ///
    /// `keypair` is not that of [`initiator`](Self::initiator), or the request breaks a rule of the
    /// format (see [`encode`](super::encode)), or the key cannot sign.
    pub fn sign(&self, keypair: &Keypair) -> Result<Bytes, SignError> {
        if self.initiator != keypair.public().encode_protobuf() {
            return Err(SignError::WrongKey);
        }
        check_key(&self.initiator)?;
        check_candidates(&self.candidates)?;
        check_cap("NAT report", self.nat.len(), MAX_NAT_REPORT_LEN)?;
        check_cap("first flight", self.first_flight.len(), MAX_FIRST_FLIGHT_DATAGRAMS)?;
        if self.first_flight.is_empty() {
            return Err(SignError::Invalid { field: "first flight", cause: "it has no datagram" });
        }
        for datagram in &self.first_flight {
            check_cap("first flight datagram", datagram.len(), MAX_FIRST_FLIGHT_DATAGRAM)?;
            if datagram.is_empty() {
                return Err(SignError::Invalid { field: "first flight datagram", cause: "it is empty" });
            }
        }
        Ok(keypair.sign(&self.signed_bytes())?.into())
    }

    /// Returns the signed bytes: domain, the request as on the wire up to the first flight, SHA-256
    /// of the first flight as on the wire, and the NAT report if there is one.
    fn signed_bytes(&self) -> BytesMut {
        let mut out = BytesMut::from(REQUEST_DOMAIN);
        put_request(&mut out, self);
        let mut flight = BytesMut::new();
        put_first_flight(&mut flight, &self.first_flight);
        out.put_slice(&Sha256::digest(&flight));
        put_nat(&mut out, &self.nat);
        out
    }
}

impl PunchMeNow {
    /// Returns the length of the initiator's part on the wire, without the header of the frame.
    pub(crate) fn request_len(&self) -> usize {
        let mut out = BytesMut::new();
        put_request(&mut out, &self.request);
        put_first_flight(&mut out, &self.request.first_flight);
        out.len() + self.signature.len() + self.request.nat.len()
    }

    /// Checks the initiator's signature and returns the initiator.
    ///
    /// # Errors
    ///
    /// The public key cannot be used, or the signature is not its own over this request.
    pub fn verify(&self) -> Result<PeerId, VerifyError> {
        let key = PublicKey::try_decode_protobuf(&self.request.initiator)?;
        let peer = key.to_peer_id();
        if key.verify(&self.request.signed_bytes(), &self.signature) {
            Ok(peer)
        } else {
            Err(VerifyError::Signature { peer })
        }
    }
}

impl Registration {
    /// Returns a registration of the peer of `keypair`, signed by that key. The order of
    /// `candidates` does not matter.
    ///
    /// # Errors
    ///
    /// There are too many candidates, or one has port 0, or the key cannot sign.
    pub fn sign(
        keypair: &Keypair,
        generation: u64,
        lifetime: Duration,
        probe_key: [u8; 32],
        candidates: &[Candidate],
        nat: Bytes,
    ) -> Result<Self, SignError> {
        check_candidates(candidates)?;
        check_cap("NAT report", nat.len(), MAX_NAT_REPORT_LEN)?;
        let peer = Bytes::from(keypair.public().encode_protobuf());
        check_key(&peer)?;
        let (signature, public_signature) = (Bytes::new(), Bytes::new());
        let mut registration =
            Self { peer, generation, lifetime, probe_key, nat, signature, public_signature };
        let sign =
            |candidates: &[Candidate]| keypair.sign(&registration.signed_bytes(candidates)).map(Bytes::from);
        let public = public_candidates(candidates);
        let signature = sign(candidates)?;
        let public_signature =
            if public.len() == candidates.len() { signature.clone() } else { sign(&public)? };
        (registration.signature, registration.public_signature) = (signature, public_signature);
        Ok(registration)
    }

    /// Returns what strangers learn of a registration that commits `candidates`: the global ones,
    /// and the registration that commits these.
    pub(crate) fn public_part(&self, candidates: &[Candidate]) -> (Self, Vec<Candidate>) {
        let signature = self.public_signature.clone();
        (Self { signature, ..self.without_public_signature() }, public_candidates(candidates))
    }

    /// Returns this registration as an answer has it.
    pub(crate) fn without_public_signature(&self) -> Self {
        Self { public_signature: Bytes::new(), ..self.clone() }
    }

    /// Checks that `expected` signed this registration and that it commits exactly `candidates`, in
    /// any order.
    ///
    /// # Errors
    ///
    /// The public key cannot be used, or is that of another peer, or the signature is not its own.
    pub fn verify(&self, expected: &PeerId, candidates: &[Candidate]) -> Result<(), VerifyError> {
        let key = PublicKey::try_decode_protobuf(&self.peer)?;
        let found = key.to_peer_id();
        if found != *expected {
            return Err(VerifyError::WrongPeer { found });
        }
        if key.verify(&self.signed_bytes(candidates), &self.signature) {
            Ok(())
        } else {
            Err(VerifyError::Signature { peer: found })
        }
    }

    /// Returns the signed bytes: domain, the registration as on the wire without its signature, the
    /// candidates by sequence number, and the NAT report if there is one.
    fn signed_bytes(&self, candidates: &[Candidate]) -> BytesMut {
        let mut out = BytesMut::from(REGISTRATION_DOMAIN);
        put_bytes(&mut out, &self.peer, MAX_PUBLIC_KEY_LEN);
        put_varint(&mut out, self.generation);
        put_registration_lifetime(&mut out, self.lifetime);
        out.put_slice(&self.probe_key);
        let mut sorted: Vec<&Candidate> = candidates.iter().collect();
        sorted.sort_by_key(|candidate| candidate.sequence);
        put_candidates(&mut out, sorted.into_iter());
        put_nat(&mut out, &self.nat);
        out
    }
}

/// Returns the candidates that strangers may learn.
fn public_candidates(candidates: &[Candidate]) -> Vec<Candidate> {
    candidates.iter().filter(|candidate| scope(candidate.address.ip()) == Scope::Global).copied().collect()
}

impl PortPrediction {
    /// Returns the bytes that the authenticator covers: domain, session, round, port and step as on
    /// the wire.
    pub(crate) fn covered(&self) -> BytesMut {
        let mut out = BytesMut::from(WINDOW_DOMAIN);
        out.put_slice(&self.session.0);
        put_varint(&mut out, self.round.into());
        out.put_u16(self.port);
        out.put_u16(self.step);
        out
    }
}

impl PunchMoved {
    /// Returns the bytes on the wire, without the header of the frame.
    pub(crate) fn len(&self) -> usize {
        self.covered().len() - MOVED_DOMAIN.len() + self.authenticator.len()
    }

    /// Returns the bytes that the authenticator covers: domain, session, sequence number and
    /// candidates as on the wire.
    pub(crate) fn covered(&self) -> BytesMut {
        let mut out = BytesMut::from(MOVED_DOMAIN);
        out.put_slice(&self.session.0);
        put_varint(&mut out, self.sequence.into());
        put_candidates(&mut out, self.candidates.iter());
        out
    }
}

impl PunchAnswer {
    /// Checks that `expected` signed the registration with these candidates. The address that the
    /// coordinator observed is the coordinator's own word and not covered.
    ///
    /// # Errors
    ///
    /// As [`Registration::verify`].
    pub fn verify(&self, expected: PeerId) -> Result<(), VerifyError> {
        self.registration.verify(&expected, &self.candidates)
    }
}

fn check_cap(field: &'static str, found: usize, max: usize) -> Result<(), SignError> {
    if found > max { Err(SignError::AboveCap { field, found, max }) } else { Ok(()) }
}

fn check_key(key: &[u8]) -> Result<(), SignError> {
    check_cap("public key", key.len(), MAX_PUBLIC_KEY_LEN)
}

fn check_candidates(candidates: &[Candidate]) -> Result<(), SignError> {
    check_cap("candidates", candidates.len(), MAX_FRAME_CANDIDATES)?;
    if candidates.iter().any(|candidate| candidate.address.port() == 0) {
        return Err(SignError::Invalid { field: "candidate address", cause: "port 0" });
    }
    Ok(())
}
