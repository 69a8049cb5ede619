//! The order in which rustls asks.

use std::sync::Mutex;

use libp2p_identity::Keypair;
use rustls::{
    pki_types::ServerName,
    quic::{ClientConnection, ServerConnection, Version},
};

use super::*;
use crate::transport::tls::{Tls, tests::exchange};

/// Writes down which hook was asked, and answers like [`Handshake`].
#[derive(Debug)]
struct Spy(Handshake, Mutex<Vec<&'static str>>);

impl Spy {
    fn note(&self, hook: &'static str) {
        self.1.lock().unwrap().push(hook);
    }
}

impl ResolvesServerCert for Spy {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.note("resolve");
        self.0.resolve(hello)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.note("only_raw_public_keys");
        self.0.only_raw_public_keys()
    }
}

impl ClientCertVerifier for Spy {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.note("root_hint_subjects");
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.note("verify_client_cert");
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.note("verify_tls13_signature");
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.note("supported_verify_schemes");
        self.0.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.note("requires_raw_public_keys");
        self.0.requires_raw_public_keys()
    }
}

fn unset() -> Handshake {
    let shared =
        Tls::new(&Keypair::generate_ed25519(), &crate::config::QuicConfig::default()).unwrap().server;
    let algorithms = shared.provider.signature_verification_algorithms;
    let verifier = Verifier::new(Expected::anyone(), algorithms);
    Handshake { shared, verifier, mode: AtomicU8::new(Mode::Unset as u8) }
}

#[test]
fn rustls_shows_the_client_hello_before_it_asks_anything_else() {
    let spy = Arc::new(Spy(unset(), Mutex::default()));
    let server = Arc::new(config(spy.0.shared.provider.clone(), spy.clone(), true).unwrap());
    let client = Tls::new(&Keypair::generate_ed25519(), &crate::config::QuicConfig::default())
        .unwrap()
        .client
        .rustls(&Expected::anyone());
    let name = ServerName::try_from("libp2p").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), Version::V1, name, Vec::new()).unwrap();
    let mut server = ServerConnection::new(server, Version::V1, Vec::new()).unwrap();
    // Calls during the construction of the configuration do not count.
    spy.1.lock().unwrap().clear();
    exchange(&mut client, &mut server).unwrap();
    let asked = spy.1.lock().unwrap().clone();
    let position = |hook| asked.iter().position(|name| *name == hook);
    assert_eq!(position("resolve"), Some(0), "{asked:?}");
    for hook in ["only_raw_public_keys", "requires_raw_public_keys", "root_hint_subjects"] {
        assert!(position(hook).is_some(), "{hook} is not asked any more: {asked:?}");
    }
    assert!(position("verify_client_cert") < position("verify_tls13_signature"), "{asked:?}");
}

#[test]
fn a_mode_that_was_not_set_refuses_everything() {
    let handshake = unset();
    let raw = handshake.shared.identity.raw.as_ref().unwrap().cert[0].clone();
    let x509 = handshake.shared.identity.x509.cert[0].clone();
    for certificate in [raw, x509] {
        handshake.verify_client_cert(&certificate, &[], UnixTime::now()).unwrap_err();
    }
    assert!(!handshake.only_raw_public_keys() && !handshake.requires_raw_public_keys());
    assert!(handshake.root_hint_subjects().is_empty());
}
