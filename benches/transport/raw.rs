//! Endpoints of quinn without libp2p.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use libp2p_identity::Keypair;
use libp2p_punch::config::QuicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::{CertifiedKey, SingleCertAndKey},
};

/// `tuned`: with what `libp2p_punch` sets by default. Its handshakes do not authenticate the
/// client, so they are not to be compared.
pub(crate) fn server(tuned: bool) -> quinn::Endpoint {
    let keypair = Keypair::generate_ed25519();
    let mut config = if tuned {
        let (certificate, key) = libp2p_tls::certificate::generate(&keypair).expect("a certificate");
        let key = aws_lc_rs::sign::any_ecdsa_type(&key).expect("an ECDSA key");
        let certified = CertifiedKey::new(vec![certificate], key);
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        tls.alpn_protocols = vec![b"libp2p".to_vec()];
        tls.send_tls13_tickets = 0;
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("AES")))
    } else {
        let tls = libp2p_tls::make_server_config(&keypair).expect("a certificate");
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("AES")))
    };
    if tuned {
        config.transport_config(transport());
    }
    endpoint(Some(config), buffer(tuned))
}

/// Returns a client endpoint; `tuned` as for [`server`].
pub(crate) fn client(tuned: bool) -> quinn::Endpoint {
    let tls = if tuned {
        let mut tls = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"libp2p".to_vec()];
        tls
    } else {
        let keypair = Keypair::generate_ed25519();
        let mut tls = libp2p_tls::make_client_config(&keypair, None).expect("a certificate");
        // Resumption would skip the measured handshake; the other stacks do not resume.
        tls.resumption = Resumption::disabled();
        tls
    };
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("AES")));
    if tuned {
        config.transport_config(transport());
    }
    let mut endpoint = endpoint(None, buffer(tuned));
    endpoint.set_default_client_config(config);
    endpoint
}

/// Returns an endpoint on loopback.
fn endpoint(server: Option<quinn::ServerConfig>, buffer: Option<usize>) -> quinn::Endpoint {
    quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        server,
        socket(buffer),
        Arc::new(quinn::TokioRuntime),
    )
    .expect("a runtime")
}

/// Binds a UDP socket on loopback. Without `buffer`, the socket keeps the kernel's default sizes.
fn socket(buffer: Option<usize>) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    if let Some(buffer) = buffer {
        let view = socket2::SockRef::from(&socket);
        view.set_recv_buffer_size(buffer).expect("a size");
        view.set_send_buffer_size(buffer).expect("a size");
    }
    socket
}

fn buffer(tuned: bool) -> Option<usize> {
    QuicConfig::default().socket_buffer.filter(|_| tuned)
}

/// Transport parameters of `libp2p_punch`.
fn transport() -> Arc<quinn::TransportConfig> {
    let ours = QuicConfig::default();
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(ours.max_concurrent_stream_limit.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(ours.max_stream_data.into())
        .receive_window(ours.max_connection_data.into())
        .send_window(2_500_000)
        .keep_alive_interval(Some(ours.keep_alive_interval))
        .initial_rtt(Duration::from_millis(100))
        .allow_spin(false);
    Arc::new(transport)
}

/// Ciphers of `libp2p_punch` on a CPU with AES.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// Checks nothing.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
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
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
