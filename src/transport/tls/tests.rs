//! Handshakes in memory, between two rustls connections.

use libp2p_identity::Keypair;
use rustls::{
    ClientConfig, Error as TlsError, ServerConfig,
    client::danger::ServerCertVerifier,
    pki_types::ServerName,
    quic::{ClientConnection, ServerConnection, Version},
};

use super::*;

/// Knowledge of one side about the other after the handshake: certificate and ALPN.
#[derive(Debug)]
struct Seen {
    peer: PeerId,
    mode: HandshakeMode,
    alpn: Vec<u8>,
}

/// Side that refused, and its reason.
#[derive(Debug, PartialEq)]
pub(super) enum Failed {
    Client(TlsError),
    Server(TlsError),
    /// Neither side has data to send, and the handshake is not done.
    Stuck,
}

/// Transfers one flight, part by part: keys change between parts.
macro_rules! carry {
    ($from:ident to $to:ident, $failed:expr) => {
        loop {
            let mut part = Vec::new();
            let keys = $from.write_hs(&mut part);
            if part.is_empty() && keys.is_none() {
                break;
            }
            $to.read_hs(&part).map_err($failed)?;
        }
    };
}

/// Runs both sides until they are done.
pub(super) fn exchange(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Failed> {
    for _ in 0..4 {
        carry!(client to server, Failed::Server);
        carry!(server to client, Failed::Client);
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    Err(Failed::Stuck)
}

fn handshake(client: ClientConfig, server: ServerConfig) -> Result<(Seen, Seen), Failed> {
    let name = ServerName::try_from("libp2p").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), Version::V1, name, Vec::new()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server), Version::V1, Vec::new()).unwrap();
    exchange(&mut client, &mut server)?;
    let seen = |chain: Option<&[CertificateDer<'_>]>, alpn: Option<&[u8]>| {
        let (peer, mode) = verify::peer_of_checked(&chain.unwrap()[0]).unwrap();
        Seen { peer, mode, alpn: alpn.unwrap().to_vec() }
    };
    let by_client = seen(client.peer_certificates(), client.alpn_protocol());
    Ok((by_client, seen(server.peer_certificates(), server.alpn_protocol())))
}

fn tls(keypair: &Keypair) -> Tls {
    Tls::new(keypair, &QuicConfig::default()).unwrap()
}

fn ours(
    client: &Keypair,
    to: Option<PeerId>,
    server: &Keypair,
    from: Option<PeerId>,
) -> Result<(Seen, Seen), Failed> {
    let client = tls(client).client.rustls(&Expected::new(to));
    handshake(client, tls(server).server.rustls(&Expected::new(from)).unwrap())
}

fn id(keypair: &Keypair) -> PeerId {
    keypair.public().to_peer_id()
}

#[test]
fn two_ed25519_peers_of_ours_exchange_raw_keys() {
    let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    for (to, from) in [(None, None), (Some(id(&b)), Some(id(&a)))] {
        let (by_client, by_server) = ours(&a, to, &b, from).unwrap();
        assert_eq!((by_client.peer, by_client.mode), (id(&b), HandshakeMode::RawPublicKey));
        assert_eq!((by_server.peer, by_server.mode), (id(&a), HandshakeMode::RawPublicKey));
        assert_eq!((&*by_client.alpn, &*by_server.alpn), (ALPN_RAW, ALPN_RAW));
    }
}

#[test]
fn every_pair_of_key_kinds_authenticates_in_both_directions() {
    let kinds = || [Keypair::generate_ed25519(), Keypair::generate_secp256k1(), Keypair::generate_ecdsa()];
    for (i, a) in kinds().iter().enumerate() {
        for (j, b) in kinds().iter().enumerate() {
            let (expected, alpn) = if i == 0 && j == 0 {
                (HandshakeMode::RawPublicKey, ALPN_RAW)
            } else {
                (HandshakeMode::X509, ALPN_LIBP2P)
            };
            for (to, from) in [(None, None), (Some(id(b)), Some(id(a)))] {
                let (by_client, by_server) = ours(a, to, b, from).unwrap();
                assert_eq!((by_client.peer, by_client.mode), (id(b), expected), "{i} to {j}");
                assert_eq!((by_server.peer, by_server.mode), (id(a), expected), "{i} to {j}");
                assert_eq!((&*by_client.alpn, &*by_server.alpn), (alpn, alpn), "{i} to {j}");
            }
        }
    }
}

#[test]
fn stock_peers_get_certificates() {
    let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let stock_client = libp2p_tls::make_client_config(&a, Some(id(&b))).unwrap();
    let stock_server = libp2p_tls::make_server_config(&b).unwrap();
    for (client, server) in [
        (stock_client, tls(&b).server.rustls(&Expected::new(Some(id(&a)))).unwrap()),
        (tls(&a).client.rustls(&Expected::new(Some(id(&b)))), stock_server),
    ] {
        let (by_client, by_server) = handshake(client, server).unwrap();
        assert_eq!((by_client.peer, by_client.mode), (id(&b), HandshakeMode::X509));
        assert_eq!((by_server.peer, by_server.mode), (id(&a), HandshakeMode::X509));
        assert_eq!((&*by_client.alpn, &*by_server.alpn), (ALPN_LIBP2P, ALPN_LIBP2P));
    }
}

#[test]
fn the_client_refuses_another_server_and_says_which() {
    let (a, b, c) = (Keypair::generate_ed25519(), Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let refused = Failed::Client(rustls::CertificateError::ApplicationVerificationFailure.into());
    assert_eq!(ours(&a, Some(id(&c)), &b, None).unwrap_err(), refused);
    // A pinned key that is not Ed25519 makes the client ask for a certificate.
    let secp = Keypair::generate_secp256k1();
    assert_eq!(ours(&a, Some(id(&secp)), &b, None).unwrap_err(), refused);
}

#[test]
fn the_server_refuses_another_client() {
    let (a, b, c) = (Keypair::generate_ed25519(), Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let refused = Failed::Server(rustls::CertificateError::ApplicationVerificationFailure.into());
    assert_eq!(ours(&a, Some(id(&b)), &b, Some(id(&c))).unwrap_err(), refused);
    let secp = Keypair::generate_secp256k1();
    assert_eq!(ours(&secp, Some(id(&b)), &b, Some(id(&c))).unwrap_err(), refused);
}

/// A client that negotiates raw keys by RFC 7250, as rustls does it.
#[derive(Debug)]
struct Rfc7250(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Rfc7250 {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct RawVerifier(verify::Verifier);

impl ServerCertVerifier for RawVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, TlsError> {
        self.0.certificate(end_entity, intermediates, verify::Accept::RAW)?;
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, TlsError> {
        Err(rustls::CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, TlsError> {
        self.0.signature(message, cert, signed, verify::Accept::RAW)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[test]
fn a_client_that_negotiates_by_rfc_7250_gets_raw_keys() {
    let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let mut client = tls(&a).client.rustls(&Expected::anyone());
    client.alpn_protocols = vec![ALPN_LIBP2P.to_vec()];
    client.client_auth_cert_resolver = Arc::new(Rfc7250(Identity::new(&a).unwrap().raw.unwrap()));
    let verifier = verify::Verifier::new(
        Expected::new(Some(id(&b))),
        provider(Side::Client, &QuicConfig::default()).signature_verification_algorithms,
    );
    client.dangerous().set_certificate_verifier(Arc::new(RawVerifier(verifier)));
    let server = tls(&b).server.rustls(&Expected::new(Some(id(&a)))).unwrap();
    let (by_client, by_server) = handshake(client, server).unwrap();
    assert_eq!((by_client.peer, by_client.mode), (id(&b), HandshakeMode::RawPublicKey));
    assert_eq!((by_server.peer, by_server.mode), (id(&a), HandshakeMode::RawPublicKey));
    assert_eq!(&*by_server.alpn, ALPN_LIBP2P);
}

#[test]
fn nothing_is_resumed_and_the_server_name_stays_home() {
    let keypair = Keypair::generate_ed25519();
    let client = tls(&keypair).client.rustls(&Expected::anyone());
    assert!(!client.enable_sni && !client.enable_early_data);
    let server = tls(&keypair).server.rustls(&Expected::anyone()).unwrap();
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.session_storage.can_cache());
}

#[test]
fn the_client_hello_fits_one_datagram() {
    let keypair = Keypair::generate_ed25519();
    let config = tls(&keypair).client.rustls(&Expected::anyone());
    let name = ServerName::try_from("libp2p").unwrap();
    // quinn's transport parameters take less than 100 bytes.
    let mut client = ClientConnection::new(Arc::new(config), Version::V1, name, vec![0; 100]).unwrap();
    let mut hello = Vec::new();
    assert!(client.write_hs(&mut hello).is_none());
    assert!(hello.len() < 1_000, "{}", hello.len());
}

#[test]
fn the_first_cipher_is_the_one_that_the_cpu_is_fast_at() {
    let first =
        provider(Side::Client, &QuicConfig::default()).cipher_suites.first().map(|suite| suite.suite());
    let expected = if has_aes() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
    } else {
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    };
    assert_eq!(first, Some(expected));
    assert_eq!(provider(Side::Client, &QuicConfig::default()).cipher_suites.len(), 3);
}
