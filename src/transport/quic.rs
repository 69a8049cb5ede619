//! quinn's configurations, from an identity and [`QuicConfig`].

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use libp2p_identity::{Keypair, PeerId};
use quinn::{EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt, congestion};
use quinn_proto::{
    HashedConnectionIdGenerator,
    crypto::{CryptoError, HmacKey},
};
use sha2::Sha256;

use super::{
    Error,
    limits::Limits,
    path::{SessionConfigs, SessionKeys},
    qlog::{Qlog, Side},
    tls::{Expected, Tls},
    window::FIRST_SEND_WINDOW,
};
use crate::config::{CongestionController, QuicConfig};

/// QUIC version 1 (RFC 9000), the only supported version.
pub(super) const VERSION: u32 = 1;
/// Assumed round-trip time of a connection before the first sample. RFC 9002 §6.2.2 recommends 333
/// ms, and a lost first flight then costs a second; too low a value costs no more than a spurious
/// retransmission.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Bounds of a session's known round-trip time: a value below the timer granularity of RFC 9002
/// §6.1.2 has no effect, and the RFC's own default is the upper bound.
const SESSION_RTT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(333));
/// Largest UDP payload that a session searches for: the payload of a 1,420-byte tunnel over IPv6. A
/// session may move to another path at any time, and each byte above that path's MTU then costs a
/// black-hole detection.
const SESSION_MTU: u16 = 1_372;
/// Payload for which quinn makes room in its receive buffer, and which it announces to its peers
/// (RFC 9000 §18.2): Ethernet over IPv4.
const USUAL_PAYLOAD: u16 = 1_472;
/// Streams that a remote may open before it has shown that it needs more. QUIC's state for each is
/// allocated ahead: 256 of them cost 21 KB a connection, and most connections of a peer are idle.
/// See `Connection::raise_stream_limit`.
pub(super) const FIRST_STREAMS: u32 = 16;

/// Makes the configurations of every QUIC connection of one identity. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Quic {
    tls: Tls,
    keys: EndpointSecret,
    transport: Arc<TransportConfig>,
    server: Arc<quinn::ServerConfig>,
    config: QuicConfig,
    /// Writer of the traces of all connections; `None` without traces.
    qlog: Option<Arc<Qlog>>,
}

impl Quic {
    pub(crate) fn new(keypair: &Keypair, config: &QuicConfig) -> Result<Self, Error> {
        let tls = Tls::new(keypair, config)?;
        let transport = Arc::new(transport(config));
        let mut server = quinn::ServerConfig::with_crypto(tls.server_config(Expected::anyone()));
        server.transport_config(transport.clone());
        // A client keeps its connection when its own address, or that of its NAT, changes (RFC 9000
        // §9). The swarm gets an event.
        server.migration(true);
        Ok(Self {
            tls,
            keys: EndpointSecret::new(keypair),
            transport,
            server: Arc::new(server),
            config: config.clone(),
            qlog: config.qlog.as_deref().map(Qlog::open).transpose()?.map(Arc::new),
        })
    }

    /// Returns the settings of the user.
    pub(crate) fn config(&self) -> &QuicConfig {
        &self.config
    }

    /// The limits on connections.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            connections: self.config.max_connections,
            connections_per_prefix: self.config.max_connections_per_prefix,
            streams: self.config.max_concurrent_stream_limit,
            send_window: self.config.max_send_data.into(),
        }
    }

    /// Returns the time-out of a handshake.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        self.config.handshake_timeout
    }

    /// Returns the configuration of the endpoint of the binding whose socket is bound to `local`.
    pub(crate) fn endpoint_config(&self, local: SocketAddr) -> EndpointConfig {
        let keys = self.keys.of_socket(local);
        let mut endpoint = EndpointConfig::new(Arc::new(ResetKey(keys.reset)));
        let [a, b, c, d, e, f, g, h, ..] = keys.connection_id;
        let key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
        endpoint.supported_versions(vec![VERSION]);
        // The fixed bit distinguishes QUIC from probes (RFC 9443 §2), so peers must not learn that
        // they may clear it. This keeps the transport parameter of RFC 9287 §3 out of the
        // handshake.
        endpoint.grease_quic_bit(false);
        if self.config.max_mtu > USUAL_PAYLOAD {
            // Otherwise quinn would announce its default limit to our peers. The configuration's
            // bounds are QUIC's own.
            let _ = endpoint.max_udp_payload_size(self.config.max_mtu);
        }
        endpoint
    }

    /// The keys of the session endpoint.
    pub(crate) fn session_keys(&self) -> SessionKeys {
        let keys = self.keys.of_sessions();
        SessionKeys { reset: Arc::new(ResetKey(keys.reset)), cid: keys.connection_id }
    }

    /// For a plain dial.
    pub(crate) fn client_config(&self, expected: &Expected) -> quinn::ClientConfig {
        client(self.tls.client_config(expected.clone()), self.transport(Side::Client))
    }

    /// For plain connections from anyone.
    pub(crate) fn server_config(&self) -> Arc<quinn::ServerConfig> {
        self.server.clone()
    }

    /// For a plain connection that needs something of its own: that it come from the expected peer,
    /// or that it be traced. `None` if the configuration for all of them will do.
    pub(crate) fn own_server_config(&self, expected: Option<&Expected>) -> Option<Arc<quinn::ServerConfig>> {
        if expected.is_none() && self.qlog.is_none() {
            return None;
        }
        let mut server = (*self.server).clone();
        if let Some(expected) = expected {
            server.crypto = self.tls.server_config(expected.clone());
        }
        server.transport_config(self.transport(Side::Server));
        Some(Arc::new(server))
    }

    /// Returns the transport configuration of one plain connection.
    fn transport(&self, side: Side) -> Arc<TransportConfig> {
        match &self.qlog {
            None => self.transport.clone(),
            Some(qlog) => {
                let mut transport = transport(&self.config);
                qlog.attach(&mut transport, side);
                Arc::new(transport)
            }
        }
    }

    fn session_transport(&self, rtt: Option<Duration>, side: Side) -> TransportConfig {
        let mut transport = transport(&self.config);
        let (low, high) = SESSION_RTT;
        transport.initial_rtt(rtt.map_or(INITIAL_RTT, |rtt| rtt.clamp(low, high)));
        transport.mtu_discovery_config(mtu_discovery(&self.config, SESSION_MTU));
        if let Some(qlog) = &self.qlog {
            qlog.attach(&mut transport, side);
        }
        transport
    }
}

impl SessionConfigs for Quic {
    fn client(&self, peer: PeerId, rtt: Option<Duration>) -> quinn::ClientConfig {
        let crypto = self.tls.client_config(Expected::new(Some(peer)));
        client(crypto, Arc::new(self.session_transport(rtt, Side::Client)))
    }

    fn server(&self, peer: PeerId, rtt: Option<Duration>) -> Arc<quinn::ServerConfig> {
        let mut server = (*self.server).clone();
        server.crypto = self.tls.server_config(Expected::new(Some(peer)));
        server.transport_config(Arc::new(self.session_transport(rtt, Side::Server)));
        // A session's address is virtual, and only the path layer moves.
        server.migration(false);
        Arc::new(server)
    }
}

fn client(
    crypto: Arc<dyn quinn_proto::crypto::ClientConfig>,
    transport: Arc<TransportConfig>,
) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(crypto);
    config.transport_config(transport);
    config
}

fn transport(config: &QuicConfig) -> TransportConfig {
    let idle = u32::try_from(config.max_idle_timeout.as_millis()).unwrap_or(u32::MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(config.max_concurrent_stream_limit.min(FIRST_STREAMS).into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(config.max_stream_data.into())
        .receive_window(config.max_connection_data.into())
        .max_idle_timeout(Some(VarInt::from_u32(idle).into()))
        .keep_alive_interval(Some(config.keep_alive_interval))
        .initial_rtt(INITIAL_RTT)
        .send_window(FIRST_SEND_WINDOW.min(config.max_send_data.into()))
        .initial_mtu(config.initial_mtu)
        .mtu_discovery_config(mtu_discovery(config, config.max_mtu))
        .allow_spin(false);
    match config.congestion_controller {
        CongestionController::Cubic => {
            transport.congestion_controller_factory(Arc::new(congestion::CubicConfig::default()))
        }
        CongestionController::NewReno => {
            transport.congestion_controller_factory(Arc::new(congestion::NewRenoConfig::default()))
        }
        CongestionController::Bbr => {
            transport.congestion_controller_factory(Arc::new(congestion::BbrConfig::default()))
        }
    };
    transport
}

/// Returns the configuration of MTU discovery up to `highest`, and never beyond the user's limit.
fn mtu_discovery(config: &QuicConfig, highest: u16) -> Option<MtuDiscoveryConfig> {
    config.path_mtu_discovery.then(|| {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(highest.min(config.max_mtu));
        discovery
    })
}

/// Derives the keys of each endpoint. The keys are the same after a restart, so that remotes of old
/// connections learn of the restart at once. The endpoint still recognises its connection IDs, and
/// can compute the token of each (RFC 9000 §10.3).
///
/// No two sockets share a key. Otherwise a stranger could make one socket reset a connection of
/// another socket (RFC 9000 §21.11).
#[derive(Clone)]
struct EndpointSecret(Hkdf<Sha256>);

/// Keys of one endpoint.
#[derive(Debug, PartialEq, Eq)]
struct EndpointKeys {
    /// Makes stateless-reset tokens.
    reset: [u8; 32],
    /// Marks connection IDs.
    connection_id: [u8; 32],
}

impl EndpointSecret {
    fn new(keypair: &Keypair) -> Self {
        // Some kinds of identity have no secret to derive from; theirs is random.
        let secret = keypair.derive_secret(b"libp2p-punch quic endpoint keys").unwrap_or_else(rand::random);
        Self(Hkdf::new(None, &secret))
    }

    /// Derives the keys of the endpoint whose socket is bound to `local`.
    fn of_socket(&self, local: SocketAddr) -> EndpointKeys {
        self.keys(local.to_string().as_bytes())
    }

    /// The keys of the session endpoint, which has no socket of its own.
    fn of_sessions(&self) -> EndpointKeys {
        self.keys(b"sessions")
    }

    fn keys(&self, endpoint: &[u8]) -> EndpointKeys {
        let expand = |purpose: &[u8]| {
            let mut key = [0; 32];
            // HKDF-SHA256 refuses nothing below 8,160 bytes; a refusal would leave a random key.
            if self.0.expand_multi_info(&[purpose, endpoint], &mut key).is_err() {
                key = rand::random();
            }
            key
        };
        EndpointKeys { reset: expand(b"stateless reset "), connection_id: expand(b"connection id ") }
    }
}

impl fmt::Debug for EndpointSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSecret").finish_non_exhaustive()
    }
}

/// HMAC-SHA256.
struct ResetKey([u8; 32]);

impl ResetKey {
    fn mac(&self, data: &[u8]) -> Option<Hmac<Sha256>> {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(data);
        Some(mac)
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        if let Some(mac) = self.mac(data) {
            let tag = mac.finalize().into_bytes();
            signature_out.iter_mut().zip(tag).for_each(|(out, byte)| *out = byte);
        }
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        self.mac(data).and_then(|mac| mac.verify_slice(signature).ok()).ok_or(CryptoError)
    }
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResetKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_key_signs_and_verifies() {
        let key = ResetKey([7; 32]);
        let mut tag = vec![0; key.signature_len()];
        key.sign(b"connection id", &mut tag);
        assert!(key.verify(b"connection id", &tag).is_ok());
        assert!(key.verify(b"another id", &tag).is_err());
        assert_ne!(tag, vec![0; 32]);
    }

    #[test]
    fn endpoint_keys_survive_a_restart_and_belong_to_one_socket_of_one_identity() {
        let (ours, theirs) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let sockets = ["0.0.0.0:4001", "0.0.0.0:4002", "[::]:4001", "192.0.2.1:4001"];
        let keys = |keypair: &Keypair| {
            let secret = EndpointSecret::new(keypair);
            let of_sockets = sockets.map(|socket| secret.of_socket(socket.parse().unwrap()));
            of_sockets.into_iter().chain([secret.of_sessions()]).collect::<Vec<_>>()
        };
        assert_eq!(keys(&ours), keys(&ours));
        let all: Vec<_> = [keys(&ours), keys(&theirs)]
            .iter()
            .flatten()
            .flat_map(|keys| [keys.reset, keys.connection_id])
            .collect();
        assert!(all.iter().enumerate().all(|(i, key)| !all[..i].contains(key)));
    }

    #[test]
    fn every_kind_of_key_makes_a_configuration() {
        for keypair in [Keypair::generate_ed25519(), Keypair::generate_secp256k1(), Keypair::generate_ecdsa()]
        {
            Quic::new(&keypair, &QuicConfig::default()).unwrap();
        }
    }
}
