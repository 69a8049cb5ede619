//! The server's side: one port for raw keys, certificates and RFC 7250.
//!
//! Only the ClientHello shows the format of a client, and rustls 0.23 fixes the format in the
//! configuration. So every connection gets a small configuration of its own, whose hooks share the
//! mode. rustls calls `ResolvesServerCert::resolve`, which sees the ClientHello, before it asks
//! `only_raw_public_keys`, `requires_raw_public_keys` and `root_hint_subjects`. No document
//! promises that order: a test pins it, and a mode that was not set refuses everything.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use quinn_proto::{
    ConnectionId,
    crypto::{self, rustls::QuicServerConfig},
    transport_parameters::TransportParameters,
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{
        CertificateType, ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use super::{
    ALPN_LIBP2P, ALPN_RAW, RAW_MARKER,
    identity::Identity,
    session::Watched,
    verify::{ANY_SCHEME, Accept, Expected, Verifier},
};

/// Identity format of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    /// The ClientHello was not seen: refuse everything.
    Unset = 0,
    /// A libp2p certificate on both sides.
    X509 = 1,
    /// Raw keys on both sides, negotiated by RFC 7250.
    Rfc7250 = 2,
    /// Raw keys on both sides, negotiated by ALPN.
    RawAlpn = 3,
}

/// State that all server handshakes of one identity share.
pub(super) struct Shared {
    identity: Arc<Identity>,
    provider: Arc<CryptoProvider>,
    marker: Vec<DistinguishedName>,
    /// Configuration for everything that does not depend on the connection; refuses every
    /// handshake.
    refusing: Arc<QuicServerConfig>,
}

impl Shared {
    pub(super) fn new(
        identity: Arc<Identity>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let refusing = config(provider.clone(), Arc::new(Refuse), false)?;
        Ok(Self {
            identity,
            provider,
            marker: vec![DistinguishedName::from(RAW_MARKER.to_vec())],
            refusing: Arc::new(refusing.try_into()?),
        })
    }

    /// Returns the configuration of one handshake.
    pub(super) fn rustls(self: &Arc<Self>, expected: &Expected) -> Result<ServerConfig, Error> {
        let handshake = Handshake {
            verifier: Verifier::new(expected.clone(), self.provider.signature_verification_algorithms),
            shared: self.clone(),
            mode: AtomicU8::new(Mode::Unset as u8),
        };
        config(self.provider.clone(), Arc::new(handshake), self.identity.raw.is_some())
    }
}

/// Returns a configuration; `raw` is true if there is a raw key to present, which [`ALPN_RAW`]
/// promises.
fn config<H>(provider: Arc<CryptoProvider>, hooks: Arc<H>, raw: bool) -> Result<ServerConfig, Error>
where
    H: ResolvesServerCert + ClientCertVerifier + 'static,
{
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(hooks.clone())
        .with_cert_resolver(hooks);
    config.alpn_protocols =
        if raw { vec![ALPN_RAW.to_vec(), ALPN_LIBP2P.to_vec()] } else { vec![ALPN_LIBP2P.to_vec()] };
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// quinn's hook: every handshake gets a configuration of its own, and a session of quinn's own
/// kind.
pub(super) struct Server {
    shared: Arc<Shared>,
    expected: Expected,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, expected: Expected) -> Self {
        Self { shared, expected }
    }
}

impl crypto::ServerConfig for Server {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<crypto::Keys, crypto::UnsupportedVersion> {
        self.shared.refusing.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.shared.refusing.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let config = self
            .shared
            .rustls(&self.expected)
            .ok()
            .and_then(|config| QuicServerConfig::try_from(config).ok());
        // The same steps succeeded in `Shared::new`; should they ever fail here, the handshake is
        // refused.
        let config = config.map_or_else(|| self.shared.refusing.clone(), Arc::new);
        Watched::boxed(config.start_session(version, params))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// Hooks of one handshake.
struct Handshake {
    shared: Arc<Shared>,
    verifier: Verifier,
    mode: AtomicU8,
}

impl Handshake {
    fn mode(&self) -> Mode {
        match self.mode.load(Relaxed) {
            1 => Mode::X509,
            2 => Mode::Rfc7250,
            3 => Mode::RawAlpn,
            _ => Mode::Unset,
        }
    }

    fn accept(&self) -> Accept {
        match self.mode() {
            Mode::Unset => Accept::NOTHING,
            Mode::X509 => Accept::X509,
            Mode::Rfc7250 | Mode::RawAlpn => Accept::RAW,
        }
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("mode", &self.mode()).finish_non_exhaustive()
    }
}

/// Returns the identity format that a client supports. Raw keys need Ed25519 signatures and, by RFC
/// 7250, must be offered in both directions.
fn mode_of(hello: &ClientHello<'_>) -> Mode {
    let raw = |types: Option<&[CertificateType]>| {
        types.is_some_and(|types| types.contains(&CertificateType::RawPublicKey))
    };
    if !hello.signature_schemes().contains(&SignatureScheme::ED25519) {
        Mode::X509
    } else if raw(hello.server_cert_types()) && raw(hello.client_cert_types()) {
        Mode::Rfc7250
    } else if hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == ALPN_RAW)) {
        Mode::RawAlpn
    } else {
        Mode::X509
    }
}

impl ResolvesServerCert for Handshake {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let (mode, key) = match (&self.shared.identity.raw, mode_of(&hello)) {
            (Some(raw), mode @ (Mode::Rfc7250 | Mode::RawAlpn)) => (mode, raw),
            _ => (Mode::X509, &self.shared.identity.x509),
        };
        self.mode.store(mode as u8, Relaxed);
        Some(key.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        self.mode() == Mode::Rfc7250
    }
}

impl ClientCertVerifier for Handshake {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        if self.mode() == Mode::RawAlpn { &self.shared.marker } else { &[] }
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verifier.certificate(end_entity, intermediates, self.accept())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.signature(message, cert, signed, self.accept())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        match self.mode() {
            Mode::Rfc7250 | Mode::RawAlpn => vec![SignatureScheme::ED25519],
            Mode::X509 | Mode::Unset => ANY_SCHEME.to_vec(),
        }
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.mode() == Mode::Rfc7250
    }
}

/// Hooks that refuse every handshake.
#[derive(Debug)]
struct Refuse;

impl ResolvesServerCert for Refuse {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

impl ClientCertVerifier for Refuse {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::BadSignature.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ANY_SCHEME.to_vec()
    }
}
