//! Identity keys as TLS keys: Ed25519 as a raw public key, every key inside a libp2p certificate.

use std::{fmt, sync::Arc};

use libp2p_identity::{Keypair, PeerId, PublicKey, ed25519};
use rustls::{
    Error, SignatureAlgorithm, SignatureScheme,
    pki_types::{CertificateDer, SubjectPublicKeyInfoDer},
    sign::{CertifiedKey, Signer, SigningKey},
};

/// `SEQUENCE { SEQUENCE { OID 1.3.101.112 } BIT STRING (0 unused bits) }`: the one DER form of an
/// Ed25519 SubjectPublicKeyInfo (RFC 8410 §4), up to the 32 bytes of the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Length of an Ed25519 SubjectPublicKeyInfo.
const SPKI_LENGTH: usize = SPKI_PREFIX.len() + 32;

/// Identity that we present in handshakes.
#[derive(Debug)]
pub(super) struct Identity {
    /// The identity key itself; `None` unless it is Ed25519.
    pub(super) raw: Option<Arc<CertifiedKey>>,
    /// A certificate that the identity key vouches for.
    pub(super) x509: Arc<CertifiedKey>,
}

impl Identity {
    pub(super) fn new(keypair: &Keypair) -> Result<Self, crate::transport::Error> {
        let (certificate, key) = libp2p_tls::certificate::generate(keypair)
            .map_err(|error| crate::transport::Error::Identity(error.into()))?;
        let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key)
            .map_err(|error| crate::transport::Error::Identity(error.into()))?;
        let raw = RawKey::new(keypair).map(|key| {
            let spki = CertificateDer::from(key.spki.to_vec());
            Arc::new(CertifiedKey::new(vec![spki], Arc::new(key)))
        });
        Ok(Self { raw, x509: Arc::new(CertifiedKey::new(vec![certificate], key)) })
    }
}

/// Returns true if the peer's identity is an Ed25519 key. Other identities cannot answer with a raw
/// key.
pub(super) fn may_be_raw(peer: &PeerId) -> bool {
    // A PeerId of up to 42 bytes of key is the key itself under the identity multihash, code 0
    // (libp2p peer-ids specification).
    let multihash = peer.as_ref();
    multihash.code() == 0
        && PublicKey::try_decode_protobuf(multihash.digest()).is_ok_and(|key| key.try_into_ed25519().is_ok())
}

/// Returns the peer of a SubjectPublicKeyInfo. `None` unless it is 44 bytes of Ed25519.
pub(super) fn peer_of_spki(der: &[u8]) -> Option<PeerId> {
    let key = der.strip_prefix(&SPKI_PREFIX)?;
    if key.len() != 32 {
        return None;
    }
    Some(PublicKey::from(ed25519::PublicKey::try_from_bytes(key).ok()?).to_peer_id())
}

/// Signs with the identity keypair in place: the secret never leaves it.
#[derive(Clone)]
struct RawKey {
    keypair: Keypair,
    spki: [u8; SPKI_LENGTH],
}

impl RawKey {
    fn new(keypair: &Keypair) -> Option<Self> {
        let key = keypair.public().try_into_ed25519().ok()?.to_bytes();
        let mut spki = [0; SPKI_LENGTH];
        let (prefix, rest) = spki.split_at_mut(SPKI_PREFIX.len());
        prefix.copy_from_slice(&SPKI_PREFIX);
        rest.copy_from_slice(&key);
        Some(Self { keypair: keypair.clone(), spki })
    }
}

impl fmt::Debug for RawKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawKey").finish_non_exhaustive()
    }
}

impl SigningKey for RawKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(&self.spki[..]))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for RawKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.keypair.sign(message).map_err(|error| Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ed25519_key_and_its_spki_name_the_same_peer() {
        let keypair = Keypair::generate_ed25519();
        let key = RawKey::new(&keypair).unwrap();
        assert_eq!(peer_of_spki(&key.spki), Some(keypair.public().to_peer_id()));
        assert!(may_be_raw(&keypair.public().to_peer_id()));
    }

    #[test]
    fn only_the_exact_44_bytes_are_an_spki() {
        let key = RawKey::new(&Keypair::generate_ed25519()).unwrap();
        assert_eq!(peer_of_spki(&key.spki[..43]), None);
        assert_eq!(peer_of_spki(&[&key.spki[..], &[0]].concat()), None);
        let mut other = key.spki;
        other[8] ^= 1;
        assert_eq!(peer_of_spki(&other), None);
        assert_eq!(peer_of_spki(&[]), None);
    }

    #[test]
    fn other_keys_have_no_raw_form() {
        for keypair in [Keypair::generate_secp256k1(), Keypair::generate_ecdsa()] {
            assert!(RawKey::new(&keypair).is_none());
            assert!(!may_be_raw(&keypair.public().to_peer_id()));
        }
        assert!(!may_be_raw(&PeerId::random()));
    }

    #[test]
    fn the_secret_is_not_printed() {
        let key = RawKey::new(&Keypair::generate_ed25519()).unwrap();
        assert_eq!(format!("{key:?}"), "RawKey { .. }");
    }
}
