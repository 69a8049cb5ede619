//! Verifier of a remote's identity, the same on both sides.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libp2p_identity::PeerId;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, SubjectPublicKeyInfoDer},
};

use super::{HandshakeMode, der, identity};

/// Schemes for handshakes that may carry a certificate, as libp2p-tls lists them. PKCS #1 is for
/// signatures inside certificates only (RFC 8446 §4.2.3).
pub(super) const ANY_SCHEME: [SignatureScheme; 9] = [
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA256,
];

/// Peer that a handshake must end at, and the other peer that it met instead.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    peer: Option<PeerId>,
    got: Arc<OnceLock<PeerId>>,
}

impl Expected {
    /// Any peer will do.
    pub(crate) fn anyone() -> Self {
        Self::default()
    }

    /// Only `peer` will do, or anyone if there is none.
    pub(crate) fn new(peer: Option<PeerId>) -> Self {
        Self { peer, got: Arc::default() }
    }

    pub(super) fn peer(&self) -> Option<PeerId> {
        self.peer
    }

    /// Explains why the handshake failed.
    pub(crate) fn explain(&self, error: quinn::ConnectionError) -> crate::transport::Error {
        crate::transport::Error::handshake(error, self.peer, self.got.get().copied())
    }

    fn check(&self, peer: PeerId) -> Result<(), Error> {
        if self.peer.is_none_or(|expected| expected == peer) {
            return Ok(());
        }
        // Only the first peer is kept; a handshake meets no second.
        let _ = self.got.set(peer);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}

/// Encodings of an identity that one handshake may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Accept {
    pub(super) raw: bool,
    pub(super) x509: bool,
}

impl Accept {
    pub(super) const NOTHING: Self = Self { raw: false, x509: false };
    pub(super) const RAW: Self = Self { raw: true, x509: false };
    pub(super) const X509: Self = Self { raw: false, x509: true };
    pub(super) const BOTH: Self = Self { raw: true, x509: true };
}

/// Verifier of one handshake: the certificate first, then the signature that proves its key.
#[derive(Debug)]
pub(super) struct Verifier {
    expected: Expected,
    algorithms: WebPkiSupportedAlgorithms,
    /// Checking a libp2p certificate costs two signatures, so it is done once.
    checked: Mutex<Option<Checked>>,
}

#[derive(Debug)]
struct Checked {
    der: Vec<u8>,
    spki: Vec<u8>,
}

impl Verifier {
    pub(super) fn new(expected: Expected, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { expected, algorithms, checked: Mutex::new(None) }
    }

    /// Checks the identity of the remote: exactly one key or libp2p certificate, of the expected
    /// peer.
    pub(super) fn certificate(
        &self,
        end_entity: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        accept: Accept,
    ) -> Result<(), Error> {
        if !rest.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        let (peer, spki) = check(end_entity, accept)?;
        self.expected.check(peer)?;
        let checked = Checked { der: end_entity.to_vec(), spki };
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = Some(checked);
        Ok(())
    }

    /// Checks the signature of a CertificateVerify message (RFC 8446 §4.4.3) by the key that was
    /// checked before.
    pub(super) fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        accept: Accept,
    ) -> Result<HandshakeSignatureValid, Error> {
        if accept == Accept::NOTHING {
            return Err(CertificateError::BadEncoding.into());
        }
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(checked) = checked.as_ref().filter(|checked| checked.der == certificate.as_ref()) else {
            return Err(CertificateError::BadEncoding.into());
        };
        if identity::peer_of_spki(&checked.der).is_some() && signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let spki = SubjectPublicKeyInfoDer::from(checked.spki.as_slice());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

/// Returns the peer of a checked certificate or key, and the encoding. The encoding is read from
/// the content, never from the negotiation.
pub(super) fn peer_of_checked(certificate: &[u8]) -> Option<(PeerId, HandshakeMode)> {
    if let Some(peer) = identity::peer_of_spki(certificate) {
        return Some((peer, HandshakeMode::RawPublicKey));
    }
    Some((der::certificate(certificate)?.host_key.to_peer_id(), HandshakeMode::X509))
}

/// Checks a key or certificate in full: its peer, and the SubjectPublicKeyInfo that must sign the
/// handshake.
fn check(certificate: &CertificateDer<'_>, accept: Accept) -> Result<(PeerId, Vec<u8>), Error> {
    if let Some(peer) = identity::peer_of_spki(certificate).filter(|_| accept.raw) {
        return Ok((peer, certificate.to_vec()));
    }
    if !accept.x509 {
        return Err(CertificateError::BadEncoding.into());
    }
    // Validity, the self-signature, and the identity key's signature over the certificate's key.
    let peer = libp2p_tls::certificate::parse(certificate)?.peer_id();
    match der::certificate(certificate) {
        // Two readers must agree on the checked content.
        Some(read) if read.host_key.to_peer_id() == peer => Ok((peer, read.spki.to_vec())),
        _ => Err(CertificateError::BadEncoding.into()),
    }
}

/// The peer of a key or certificate of any kind that passes the full check.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn check_any(der: &[u8]) -> Option<PeerId> {
    check(&CertificateDer::from(der), Accept::BOTH).ok().map(|(peer, _)| peer)
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;

    fn verifier(expected: Expected) -> Verifier {
        Verifier::new(
            expected,
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms,
        )
    }

    fn certificate_of(keypair: &Keypair) -> CertificateDer<'static> {
        libp2p_tls::certificate::generate(keypair).unwrap().0
    }

    #[test]
    fn a_certificate_names_its_peer_and_a_second_one_is_refused() {
        let keypair = Keypair::generate_ed25519();
        let der = certificate_of(&keypair);
        let verifier = verifier(Expected::anyone());
        verifier.certificate(&der, &[], Accept::X509).unwrap();
        assert_eq!(peer_of_checked(&der), Some((keypair.public().to_peer_id(), HandshakeMode::X509)));
        verifier.certificate(&der, std::slice::from_ref(&der), Accept::X509).unwrap_err();
    }

    #[test]
    fn encodings_that_were_not_negotiated_are_refused() {
        let der = certificate_of(&Keypair::generate_ed25519());
        for accept in [Accept::NOTHING, Accept::RAW] {
            verifier(Expected::anyone()).certificate(&der, &[], accept).unwrap_err();
        }
    }

    #[test]
    fn another_peer_is_refused_and_remembered() {
        let (keypair, other) = (Keypair::generate_ed25519(), PeerId::random());
        let expected = Expected::new(Some(other));
        let error =
            verifier(expected.clone()).certificate(&certificate_of(&keypair), &[], Accept::BOTH).unwrap_err();
        assert_eq!(error, CertificateError::ApplicationVerificationFailure.into());
        assert_eq!(expected.got.get(), Some(&keypair.public().to_peer_id()));
    }

    #[test]
    fn a_changed_byte_is_refused_or_says_nothing() {
        let der = certificate_of(&Keypair::generate_ed25519());
        let genuine = check(&der, Accept::BOTH).unwrap();
        let mut refused = 0;
        for position in 0..der.len() {
            let mut bytes = der.to_vec();
            bytes[position] ^= 0xff;
            match check(&bytes.into(), Accept::BOTH) {
                Ok(read) => assert_eq!(read, genuine, "{position}"),
                Err(_) => refused += 1,
            }
        }
        // Only the framing of the outer signature is not signed.
        assert!(refused + 8 > der.len(), "{refused} of {}", der.len());
    }

    #[test]
    fn bytes_behind_a_certificate_are_refused() {
        let mut bytes = certificate_of(&Keypair::generate_ed25519()).to_vec();
        assert!(check(&bytes.clone().into(), Accept::BOTH).is_ok());
        bytes.push(0);
        assert!(check(&bytes.into(), Accept::BOTH).is_err());
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics_and_is_never_accepted(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            proptest::prop_assert!(check(&bytes.clone().into(), Accept::BOTH).is_err() || identity::peer_of_spki(&bytes).is_some());
            let _ = peer_of_checked(&bytes);
        }

        #[test]
        fn garbage_after_a_good_beginning_never_panics(cut in 0usize..400, tail in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let der = certificate_of(&Keypair::generate_ed25519());
            let mut bytes = der[..cut.min(der.len() - 1)].to_vec();
            bytes.extend(tail);
            if bytes != der.as_ref() {
                proptest::prop_assert!(check(&bytes.clone().into(), Accept::BOTH).is_err());
            }
            let _ = peer_of_checked(&bytes);
        }
    }
}
