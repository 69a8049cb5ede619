//! TLS 1.3 with libp2p identities: three kinds of peers on one port.
//!
//! - **Ours, both Ed25519**: the identity keys themselves are exchanged as raw
//!   SubjectPublicKeyInfo, at about half the CPU of certificates. rustls 0.23 cannot offer both
//!   encodings by RFC 7250 in one handshake, so the client offers two ALPNs, `[libp2p-raw,
//!   libp2p]`. A server that picks the first sends its raw key, and marks its CertificateRequest so
//!   that the client answers with one. The handshake transcript protects the choice.
//! - **Stock libp2p, and keys that are not Ed25519**: ALPN `libp2p` and libp2p certificates (libp2p
//!   TLS specification).
//! - **RFC 7250 clients** that offer raw public keys in both directions, with ALPN `libp2p`.
//!
//! The expected peer is pinned *inside* the handshake, on either side, so a wrong peer never
//! sees a byte of the application. Resumption would skip that check: there are no tickets, no
//! stored sessions and no 0-RTT. Keys are never logged and no server name is sent.

mod client;
mod der;
mod identity;
mod server;
mod session;
mod verify;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use libp2p_identity::{Keypair, PeerId};
use quinn_proto::crypto;
use rustls::{
    CipherSuite, NamedGroup,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::CertificateDer,
};

pub use self::session::Cipher;
pub(crate) use self::verify::Expected;
use self::{client::Client, identity::Identity, server::Server};
use super::Error;
use crate::config::{CipherPreference, QuicConfig};

/// ALPN of libp2p (libp2p TLS specification).
const ALPN_LIBP2P: &[u8] = b"libp2p";
/// ALPN of a handshake in which both sides present raw Ed25519 keys.
const ALPN_RAW: &[u8] = b"libp2p-raw";
/// The DER Name `CN=libp2p-raw`. A server that picked [`ALPN_RAW`] names it as the certificate
/// authority in its CertificateRequest: the only message by which rustls can inform a client before
/// it presents its own key.
const RAW_MARKER: &[u8] = &[
    0x30, 0x15, 0x31, 0x13, 0x30, 0x11, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x0a, b'l', b'i', b'b', b'p',
    b'2', b'p', b'-', b'r', b'a', b'w',
];

/// Way in which the remote presented its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeMode {
    /// As an Ed25519 key (RFC 7250 and RFC 8410).
    RawPublicKey,
    /// As a libp2p certificate.
    X509,
}

/// TLS configuration of one identity.
#[derive(Clone)]
pub(crate) struct Tls {
    client: Arc<client::Shared>,
    server: Arc<server::Shared>,
}

impl Tls {
    /// Makes the key and the certificate that this peer presents.
    pub(crate) fn new(keypair: &Keypair, config: &QuicConfig) -> Result<Self, Error> {
        let identity = Arc::new(Identity::new(keypair)?);
        let client = client::Shared::new(identity.clone(), Arc::new(provider(Side::Client, config)))
            .map_err(|error| Error::Identity(error.into()))?;
        let server = server::Shared::new(identity, Arc::new(provider(Side::Server, config)))
            .map_err(Error::Identity)?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    /// The client's side of handshakes that must end at the expected peer.
    pub(crate) fn client_config(&self, expected: Expected) -> Arc<dyn crypto::ClientConfig> {
        Arc::new(Client::new(self.client.clone(), expected))
    }

    /// The server's side of handshakes that must end at the expected peer.
    pub(crate) fn server_config(&self, expected: Expected) -> Arc<dyn crypto::ServerConfig> {
        Arc::new(Server::new(self.server.clone(), expected))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Returns the peer of a connection. The handshake must have ended, since it checks this identity.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Result<(PeerId, HandshakeMode), Error> {
    let chain =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let end_entity = chain.as_ref().and_then(|chain| chain.first()).ok_or(Error::NoPeerIdentity)?;
    verify::peer_of_checked(end_entity).ok_or(Error::NoPeerIdentity)
}

/// Returns the cipher of a connection. The handshake must have ended.
pub(crate) fn cipher_of(connection: &quinn::Connection) -> Result<Cipher, Error> {
    let cipher = connection.handshake_data().and_then(|any| any.downcast::<Cipher>().ok());
    cipher.map(|cipher| *cipher).ok_or(Error::NoPeerIdentity)
}

/// Checks that both readers agree on a certificate that passes the full check.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(der: &[u8]) {
    let read = verify::peer_of_checked(der).map(|(peer, _)| peer);
    if let Some(checked) = verify::check_any(der) {
        assert_eq!(read, Some(checked));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// TLS 1.3 only; the preferred cipher and key exchange first.
fn provider(side: Side, config: &QuicConfig) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let aes = match config.cipher {
        CipherPreference::ByCpu => has_aes(),
        CipherPreference::Aes128Gcm => true,
        CipherPreference::ChaCha20Poly1305 => false,
    };
    let ciphers = if aes {
        // AES-256 is last in either order: it buys nothing here and its SHA-384 costs 86 us a
        // handshake.
        [
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
        ]
    } else {
        [
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
        ]
    };
    provider.cipher_suites = ciphers
        .iter()
        .filter_map(|wanted| {
            aws_lc_rs::ALL_CIPHER_SUITES.iter().find(|suite| suite.suite() == *wanted).copied()
        })
        .collect();
    // A post-quantum share makes the ClientHello span two datagrams. A client does not list the
    // group, since a server that prefers it would request it at the cost of a round trip. A server
    // accepts the group from clients that insist.
    let mut groups = vec![NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];
    match side {
        _ if config.post_quantum => groups.insert(0, NamedGroup::X25519MLKEM768),
        Side::Client => {}
        Side::Server => groups.push(NamedGroup::X25519MLKEM768),
    }
    provider.kx_groups = groups
        .iter()
        .filter_map(|wanted| aws_lc_rs::ALL_KX_GROUPS.iter().find(|group| group.name() == *wanted).copied())
        .collect();
    provider
}

/// Returns true if the CPU has instructions for AES.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
