//! The client's side: offers both encodings where that can work, and pins the peer.

use std::{fmt, sync::Arc};

use libp2p_identity::PeerId;
use quinn_proto::{
    ConnectError,
    crypto::{self, rustls::QuicClientConfig},
    transport_parameters::TransportParameters,
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};

use super::{
    ALPN_LIBP2P, ALPN_RAW, RAW_MARKER,
    identity::{self, Identity},
    session::Watched,
    verify::{ANY_SCHEME, Accept, Expected, Verifier},
};

/// State that all client handshakes of one identity share.
pub(super) struct Shared {
    identity: Arc<Identity>,
    algorithms: WebPkiSupportedAlgorithms,
    template: ClientConfig,
}

impl Shared {
    pub(super) fn new(identity: Arc<Identity>, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let algorithms = provider.signature_verification_algorithms;
        let own = Own { identity: identity.clone(), raw: false };
        // Replaced for every handshake; until then no peer is expected, so none is accepted.
        let nobody =
            Pinned { verifier: Verifier::new(Expected::anyone(), algorithms), accept: Accept::NOTHING };
        let mut template = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(nobody))
            .with_client_cert_resolver(Arc::new(own));
        // A resumed handshake skips the verifier, and so the pin.
        template.resumption = Resumption::disabled();
        template.enable_sni = false;
        Ok(Self { identity, algorithms, template })
    }

    /// Returns the configuration of one handshake.
    pub(super) fn rustls(&self, expected: &Expected) -> ClientConfig {
        let raw = self.identity.raw.is_some()
            && expected.peer().is_none_or(|peer: PeerId| identity::may_be_raw(&peer));
        let accept = if raw { Accept::BOTH } else { Accept::X509 };
        let mut config = self.template.clone();
        config.alpn_protocols =
            if raw { vec![ALPN_RAW.to_vec(), ALPN_LIBP2P.to_vec()] } else { vec![ALPN_LIBP2P.to_vec()] };
        config.client_auth_cert_resolver = Arc::new(Own { identity: self.identity.clone(), raw });
        let pinned = Pinned { verifier: Verifier::new(expected.clone(), self.algorithms), accept };
        config.dangerous().set_certificate_verifier(Arc::new(pinned));
        config
    }
}

/// quinn's hook: every handshake gets a verifier of its own.
pub(super) struct Client {
    shared: Arc<Shared>,
    expected: Expected,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, expected: Expected) -> Self {
        Self { shared, expected }
    }
}

impl crypto::ClientConfig for Client {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn crypto::Session>, ConnectError> {
        // Fails only without AES-128-GCM, which QUIC v1 needs for its Initial packets (RFC 9001
        // §5).
        let config = QuicClientConfig::try_from(self.shared.rustls(&self.expected))
            .map_err(|_| ConnectError::UnsupportedVersion)?;
        Arc::new(config).start_session(version, server_name, params).map(Watched::boxed)
    }
}

#[derive(Debug)]
struct Pinned {
    verifier: Verifier,
    accept: Accept,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier.certificate(end_entity, intermediates, self.accept)?;
        Ok(ServerCertVerified::assertion())
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
        self.verifier.signature(message, cert, signed, self.accept)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ANY_SCHEME.to_vec()
    }
}

/// Chooses the identity that we present by the request of the server.
#[derive(Debug)]
struct Own {
    identity: Arc<Identity>,
    raw: bool,
}

impl ResolvesClientCert for Own {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let raw_is_wanted =
            self.raw && authorities.contains(&RAW_MARKER) && schemes.contains(&SignatureScheme::ED25519);
        match &self.identity.raw {
            Some(raw) if raw_is_wanted => Some(raw.clone()),
            _ => Some(self.identity.x509.clone()),
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("expected", &self.expected).finish_non_exhaustive()
    }
}
