//! The keys that make the probes of a session unforgeable.

use std::fmt;

use bytes::{BufMut, BytesMut};
use hkdf::Hkdf;
use libp2p_identity::PeerId;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

pub use crate::wire::mac::MAC_LEN;
use crate::{
    SessionId,
    event::SessionRole,
    wire::{
        frame::wire::put_bytes,
        mac::{BLOCK_LEN, MacKey},
    },
};

const DOMAIN: &[u8] = b"libp2p-punch/1.0.0 probe";
const FLIGHT_DOMAIN: &[u8] = b"libp2p-punch/1.0.0 first flight";
/// Bytes of the destination connection ID of a first flight: the longest of QUIC version 1.
pub const FLIGHT_CID_LEN: usize = 20;
/// Leading bytes of that connection ID that are random: the least that RFC 9000 §7.2 asks for.
const FLIGHT_NONCE_LEN: usize = 8;
/// Bytes of one session tag.
pub const TAG_LEN: usize = 8;

/// Reason for a failure to derive probe keys from two X25519 keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The other key is of low order, so that the shared secret is known to everybody (RFC 7748
    /// §6.1).
    #[error("the peer's probe key is of low order")]
    NonContributory,
    /// HKDF gives no output of this length.
    #[error("the key derivation function gives no output of this length")]
    OutputLength,
}

/// An X25519 secret: that of one session for an initiator, that of a registration for a responder.
#[derive(Clone)]
pub struct ProbeSecret {
    secret: StaticSecret,
    public: [u8; 32],
}

impl ProbeSecret {
    /// The secret made of 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        let secret = StaticSecret::from(bytes);
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    /// Returns the public key for the other peer.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }
}

impl From<[u8; 32]> for ProbeSecret {
    fn from(bytes: [u8; 32]) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for ProbeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeSecret").finish_non_exhaustive()
    }
}

/// Binding of the connection IDs of first flights to the request that carries them.
///
/// QUIC routes a first flight by the connection ID that its client chose. Without the binding, a
/// peer that sees a request could put its first flight into a request of its own. The responder's
/// endpoint would then take the honest copy for a repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlightBinding([u8; 32]);

impl FlightBinding {
    /// Of the requests of `initiator` with this probe key.
    pub fn new(initiator: &PeerId, probe_key: &[u8; 32]) -> Self {
        let mut bound = BytesMut::from(FLIGHT_DOMAIN);
        put_bytes(&mut bound, &initiator.to_bytes(), usize::MAX);
        bound.put_slice(probe_key);
        Self(Sha256::digest(&bound).into())
    }

    /// A connection ID for a first flight; the nonce must be unpredictable (RFC 9000 §7.2).
    pub fn connection_id(&self, nonce: [u8; FLIGHT_NONCE_LEN]) -> [u8; FLIGHT_CID_LEN] {
        let tag = Sha256::new().chain_update(self.0).chain_update(nonce).finalize();
        let mut id = [0; FLIGHT_CID_LEN];
        let (head, tail) = id.split_at_mut(FLIGHT_NONCE_LEN);
        head.copy_from_slice(&nonce);
        tail.iter_mut().zip(tag).for_each(|(to, from)| *to = from);
        id
    }

    /// Returns true if the connection ID belongs to such a request.
    pub fn covers(&self, connection_id: &[u8]) -> bool {
        let nonce = connection_id.first_chunk().copied();
        nonce.is_some_and(|nonce| self.connection_id(nonce) == connection_id)
    }
}

/// The keys of one session as one of its peers uses them.
///
/// Each direction has its own key and tag, so that a probe that is reflected to its sender does not
/// verify.
#[derive(Clone)]
pub struct ProbeKeys {
    local: MacKey,
    remote: MacKey,
    local_tag: [u8; TAG_LEN],
    remote_tag: [u8; TAG_LEN],
}

impl ProbeKeys {
    /// The keys that come of our X25519 secret and the other peer's public key.
    ///
    /// An initiator gives the secret of the session and the key of the responder's registration, a
    /// responder the secret of its registration and the key of the request. `role` is our own.
    ///
    /// # Errors
    ///
    /// [`KeyError::NonContributory`] if the shared secret is all zeros.
    pub fn derive(
        own: &ProbeSecret,
        theirs: &[u8; 32],
        session: SessionId,
        initiator: &PeerId,
        responder: &PeerId,
        role: SessionRole,
    ) -> Result<Self, KeyError> {
        let shared = own.secret.diffie_hellman(&PublicKey::from(*theirs));
        if !shared.was_contributory() {
            return Err(KeyError::NonContributory);
        }
        let (initiator_key, responder_key) = match role {
            SessionRole::Initiator => (&own.public, theirs),
            SessionRole::Responder => (theirs, &own.public),
        };
        let mut info = BytesMut::from(DOMAIN);
        info.put_slice(&session.0);
        for peer in [initiator, responder] {
            put_bytes(&mut info, &peer.to_bytes(), usize::MAX);
        }
        info.put_slice(initiator_key);
        info.put_slice(responder_key);
        let kdf = Hkdf::<Sha256>::new(None, shared.as_bytes());
        let from_initiator = Direction::expand(&kdf, &info, b"initiator")?;
        let from_responder = Direction::expand(&kdf, &info, b"responder")?;
        let (local, remote) = match role {
            SessionRole::Initiator => (from_responder, from_initiator),
            SessionRole::Responder => (from_initiator, from_responder),
        };
        Ok(Self { local: local.mac, remote: remote.mac, local_tag: local.tag, remote_tag: remote.tag })
    }

    /// The tag that the probes carry which we receive.
    pub fn local_tag(&self) -> [u8; TAG_LEN] {
        self.local_tag
    }

    /// The tag that the probes carry which we send.
    pub fn remote_tag(&self) -> [u8; TAG_LEN] {
        self.remote_tag
    }

    /// Returns the key of the probes that this peer sends.
    pub(crate) fn sending_key(&self) -> &MacKey {
        &self.remote
    }

    /// Returns the key of the probes that this peer receives.
    pub(crate) fn receiving_key(&self) -> &MacKey {
        &self.local
    }

    /// Returns the authenticator of a part of a frame that this peer sends.
    pub(crate) fn authenticate(&self, covered: &[u8]) -> [u8; MAC_LEN] {
        self.remote.authenticate(covered)
    }

    /// Returns true if `authenticator` is that of the other peer, in constant time.
    pub(crate) fn verify(&self, covered: &[u8], authenticator: &[u8; MAC_LEN]) -> bool {
        self.local.verify(covered, authenticator)
    }
}

impl fmt::Debug for ProbeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The tags are on the wire anyway.
        f.debug_struct("ProbeKeys")
            .field("local_tag", &self.local_tag)
            .field("remote_tag", &self.remote_tag)
            .finish_non_exhaustive()
    }
}

/// Key and tag of the probes of one direction.
struct Direction {
    mac: MacKey,
    tag: [u8; TAG_LEN],
}

impl Direction {
    fn expand(kdf: &Hkdf<Sha256>, info: &[u8], sender: &[u8]) -> Result<Self, KeyError> {
        let mut key = [0; BLOCK_LEN];
        let mut tag = [0; TAG_LEN];
        kdf.expand_multi_info(&[info, sender, b" mac"], &mut key).map_err(|_| KeyError::OutputLength)?;
        kdf.expand_multi_info(&[info, sender, b" tag"], &mut tag).map_err(|_| KeyError::OutputLength)?;
        Ok(Self { mac: MacKey::of_block(&key), tag })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId([7; 16]);

    fn peers() -> (PeerId, PeerId) {
        let peer = |seed: u8| {
            libp2p_identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id()
        };
        (peer(1), peer(2))
    }

    fn derive(role: SessionRole, session: SessionId, peers: (PeerId, PeerId)) -> ProbeKeys {
        let (initiator, responder) = (ProbeSecret::new([3; 32]), ProbeSecret::new([4; 32]));
        let (own, theirs) = match role {
            SessionRole::Initiator => (initiator, responder.public()),
            SessionRole::Responder => (responder, initiator.public()),
        };
        ProbeKeys::derive(&own, &theirs, session, &peers.0, &peers.1, role).unwrap()
    }

    #[test]
    fn what_one_side_authenticates_only_the_other_side_verifies() {
        let a = derive(SessionRole::Initiator, SESSION, peers());
        let b = derive(SessionRole::Responder, SESSION, peers());
        assert_eq!(a.local_tag(), b.remote_tag());
        assert_eq!(a.remote_tag(), b.local_tag());
        assert_ne!(a.local_tag(), a.remote_tag());
        assert!(b.verify(b"probe", &a.authenticate(b"probe")));
        assert!(a.verify(b"probe", &b.authenticate(b"probe")));
        assert!(!a.verify(b"probe", &a.authenticate(b"probe")));
        assert!(!b.verify(b"other", &a.authenticate(b"probe")));
    }

    #[test]
    fn the_keys_are_bound_to_the_session_and_to_both_peers() {
        let a = derive(SessionRole::Initiator, SESSION, peers());
        let (initiator, responder) = peers();
        for other in [
            derive(SessionRole::Responder, SessionId([8; 16]), (initiator, responder)),
            derive(SessionRole::Responder, SESSION, (responder, responder)),
            derive(SessionRole::Responder, SESSION, (initiator, initiator)),
        ] {
            assert_ne!(a.remote_tag(), other.local_tag());
            assert!(!other.verify(b"probe", &a.authenticate(b"probe")));
        }
    }

    #[test]
    fn a_key_of_low_order_is_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        for theirs in [[0; 32], one] {
            let (a, b) = peers();
            let keys = ProbeKeys::derive(
                &ProbeSecret::new([3; 32]),
                &theirs,
                SESSION,
                &a,
                &b,
                SessionRole::Initiator,
            );
            assert_eq!(keys.unwrap_err(), KeyError::NonContributory);
        }
    }

    #[test]
    fn the_connection_id_of_a_first_flight_belongs_to_one_initiator_and_probe_key() {
        let [a, b] = [1, 2].map(|seed| {
            let keypair = libp2p_identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap();
            FlightBinding::new(&keypair.public().to_peer_id(), &[7; 32])
        });
        let id = a.connection_id([9; FLIGHT_NONCE_LEN]);
        assert!(a.covers(&id));
        assert!(!b.covers(&id), "another initiator");
        assert!(!a.covers(&id[..19]) && !a.covers(&[9; 4]) && !a.covers(&[]), "cut short");
        let mut other = id;
        other[19] ^= 1;
        assert!(!a.covers(&other));
        assert_ne!(id, a.connection_id([8; FLIGHT_NONCE_LEN]));
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = format!("{:?}", ProbeSecret::new([0xab; 32]));
        assert_eq!(secret, "ProbeSecret { .. }");
        let keys = derive(SessionRole::Initiator, SESSION, peers());
        let expected = format!(
            "ProbeKeys {{ local_tag: {:?}, remote_tag: {:?}, .. }}",
            keys.local_tag(),
            keys.remote_tag()
        );
        assert_eq!(format!("{keys:?}"), expected);
    }
}
