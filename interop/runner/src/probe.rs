//! A client that shares no code with our transport: plain quinn and rustls, with a raw Ed25519 key.
//! It makes handshakes with raw keys as this crate does, and writes its secrets down, so that
//! tshark can read the identity of our listener.

use std::{
    fs::File,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use interop_testplan::key::KeyType;
use quinn::{Endpoint, crypto::rustls::QuicClientConfig};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, KeyLog, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    sign::CertifiedKey,
};

/// The protocol in whose handshakes both sides present raw keys, and the one of libp2p
/// certificates.
const PROTOCOLS: [&[u8]; 2] = [b"libp2p-raw", b"libp2p"];
/// Prefix of the 32 bytes of a secret key in PKCS#8 (RFC 8410 §7).
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// Prefix of the 32 bytes of a public key in a SubjectPublicKeyInfo (RFC 8410 §4).
pub(crate) const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Makes one handshake with a listener of the loopback interface, and writes its secrets into a
/// file.
pub(crate) async fn handshake(port: u16, secrets: &Path) -> anyhow::Result<()> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = RawKeys(provider.signature_verification_algorithms);
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(own_key()?));
    tls.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    tls.enable_sni = false;
    tls.key_log = Arc::new(Log(Mutex::new(File::create(secrets)?)));
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connection = endpoint.connect_with(config, remote, "libp2p")?.await.context("the handshake")?;
    connection.close(0_u32.into(), &[]);
    endpoint.wait_idle().await;
    Ok(())
}

/// A fresh key, presented as it is.
fn own_key() -> anyhow::Result<Own> {
    let keypair = KeyType::Ed25519.keypair()?.try_into_ed25519()?;
    let secret = PrivatePkcs8KeyDer::from([&PKCS8[..], keypair.secret().as_ref()].concat());
    let public = CertificateDer::from([&SPKI[..], &keypair.public().to_bytes()].concat());
    let key = aws_lc_rs::sign::any_eddsa_type(&secret)?;
    Ok(Own(Arc::new(CertifiedKey::new(vec![public], key))))
}

#[derive(Debug)]
struct Own(Arc<CertifiedKey>);

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any raw key whose owner has signed the handshake.
#[derive(Debug)]
struct RawKeys(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for RawKeys {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Writes secrets in the format that tshark reads.
#[derive(Debug)]
struct Log(Mutex<File>);

impl KeyLog for Log {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A missing line makes the capture unreadable, and that fails the check.
        let _ = writeln!(file, "{label} {} {}", hex(client_random), hex(secret));
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
