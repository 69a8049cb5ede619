//! QUIC settings for users, and their bounds.

use std::{fmt::Display, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{ConfigError, TIMEOUT};

/// Bounds of [`QuicConfig::initial_mtu`] and [`QuicConfig::max_mtu`] in bytes of UDP payload (RFC
/// 9000 §14.1, §18.2).
pub const MTU: RangeInclusive<u16> = 1_200..=65_527;
/// Bounds of [`QuicConfig::socket_buffer`] in bytes. Operating systems take a 32-bit signed number,
/// and some double it.
pub const SOCKET_BUFFER: RangeInclusive<usize> = 4_096..=1 << 30;

/// Algorithm that finds the rate of a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CongestionController {
    /// RFC 9438. The default of most systems.
    #[default]
    Cubic,
    /// RFC 9002 §7.
    NewReno,
    /// BBR, version 1. Fills paths that lose packets without being full; experimental in quinn.
    Bbr,
}

/// Cipher that a handshake prefers. If the remote insists on another cipher, that cipher is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CipherPreference {
    /// AES-128-GCM where the CPU has instructions for it, ChaCha20-Poly1305 elsewhere.
    #[default]
    ByCpu,
    /// AES-128-GCM first.
    Aes128Gcm,
    /// ChaCha20-Poly1305 first.
    ChaCha20Poly1305,
}

/// QUIC settings. The defaults are those of `libp2p-quic` where it has the setting.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuicConfig {
    /// Time-out of a handshake. Default 5 s, 100 ms..=300 s.
    pub handshake_timeout: Duration,
    /// Silence after which a connection is closed. Default 10 s, 100 ms..=300 s.
    pub max_idle_timeout: Duration,
    /// Silence after which a PING keeps the connection, and the NAT's mapping, alive. Default 5 s,
    /// 100 ms..=300 s and below [`max_idle_timeout`](Self::max_idle_timeout).
    pub keep_alive_interval: Duration,
    /// Bidirectional streams that the remote may have open at once: 16 at first, all of these once
    /// it uses half of them. Default 256, at least 1.
    pub max_concurrent_stream_limit: u32,
    /// Bytes that the remote may send on one stream before we read them. Default 10 MB, at least 1.
    pub max_stream_data: u32,
    /// Bytes that the remote may send on one connection before we read them. Default 15 MB, at
    /// least 1.
    pub max_connection_data: u32,
    /// Bytes of all streams of one connection that are kept for transmission and retransmission: a
    /// connection starts with up to 2.5 MB, and gets more where its path can use it. Default 10 MB,
    /// at least 1.
    pub max_send_data: u32,
    /// The rate. Default [`CongestionController::Cubic`].
    pub congestion_controller: CongestionController,
    /// Search for a larger path MTU than [`initial_mtu`](Self::initial_mtu) (RFC 8899). Default on.
    pub path_mtu_discovery: bool,
    /// UDP payload in bytes that every path is taken to carry. Default 1,200, within
    /// 1,200..=65,527. A larger value breaks connections over paths that do not carry it.
    pub initial_mtu: u16,
    /// UDP payload in bytes up to which the search goes. Default 1,452, within
    /// [`initial_mtu`](Self::initial_mtu)..=65,527. Sessions, which may move to another path at any
    /// time, stop at 1,372. Above 1,472, for jumbo frames and loopback, both sides must want it,
    /// and the memory that each socket reads into grows with it: 3 MB at 1,472, 18 MB at 8,972.
    pub max_mtu: u16,
    /// Receive and send buffer to ask the kernel for, in bytes; `None` leaves its default. Default
    /// 4 MiB, within 4,096..=2^30. The granted sizes:
    /// [`OsNetwork::granted`](crate::io::OsNetwork::granted).
    pub socket_buffer: Option<usize>,
    /// Handshakes under way on one listener from which on a client must first prove its address
    /// (RFC 9000 §8.1.2). Default 64; 0 makes every client do so. The proof costs a client one
    /// round trip, and stops a flood from forged addresses.
    pub retry_threshold: u32,
    /// Handshakes under way on one listener from which on more are refused. Default 1,024, at least
    /// 1. A handshake whose client fell silent costs some 2 kB a second of our upstream until it
    ///    times out.
    pub max_half_open: u32,
    /// Handshakes under way that clients of one network may have on one listener: of an IPv4 /24 or
    /// an IPv6 /48, of one address in private networks; loopback is not limited. `None` for no
    /// share. Default 128, at least 1.
    pub max_half_open_per_prefix: Option<u32>,
    /// Connections of this transport from which on those that peers ask for are refused: by a
    /// listener, or as the initiator of a session. Dials count, and are never refused. `None` for
    /// no limit. Default none, at least 1.
    pub max_connections: Option<u32>,
    /// Connections that peers of one network may ask for, handshakes and sessions included;
    /// networks are those of [`max_half_open_per_prefix`](Self::max_half_open_per_prefix). `None`
    /// for no limit. Default 1,024, at least 1.
    pub max_connections_per_prefix: Option<u32>,
    /// Offer X25519MLKEM768 in dials. Default off: the ClientHello then needs two datagrams. A
    /// listener accepts the group in either case, and prefers it if this is on.
    pub post_quantum: bool,
    /// The cipher. Default [`CipherPreference::ByCpu`].
    pub cipher: CipherPreference,
    /// Let listeners on the IPv6 wildcard announce the link-local addresses (fe80::/10) of the
    /// interfaces too. Default off: an address of that kind cannot be dialed without its zone (RFC
    /// 4007), which differs on each host. To use one, listen on it, `/ip6zone/ZONE/ip6/fe80::…`,
    /// which needs no permission.
    pub link_local: bool,
    /// A folder, made if there is none, for a trace of every connection: one file of JSON text
    /// sequences (RFC 7464) each, `TIME-NUMBER-SIDE.sqlog`, up to 10,000 files. Needs the cargo
    /// feature `qlog`. The tasks that send and receive packets also write them to the trace, which
    /// costs time: use it for diagnosis only. Default none.
    pub qlog: Option<PathBuf>,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            max_idle_timeout: Duration::from_secs(10),
            keep_alive_interval: Duration::from_secs(5),
            max_concurrent_stream_limit: 256,
            max_stream_data: 10_000_000,
            max_connection_data: 15_000_000,
            max_send_data: 10_000_000,
            congestion_controller: CongestionController::default(),
            path_mtu_discovery: true,
            initial_mtu: *MTU.start(),
            max_mtu: 1_452,
            socket_buffer: Some(4 << 20),
            retry_threshold: 64,
            max_half_open: 1_024,
            max_half_open_per_prefix: Some(128),
            max_connections: None,
            max_connections_per_prefix: Some(1_024),
            post_quantum: false,
            cipher: CipherPreference::default(),
            link_local: false,
            qlog: None,
        }
    }
}

impl QuicConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("quic.handshake_timeout", self.handshake_timeout),
            ("quic.max_idle_timeout", self.max_idle_timeout),
            ("quic.keep_alive_interval", self.keep_alive_interval),
        ] {
            if !TIMEOUT.contains(&value) {
                return Err(ConfigError::Timeout { field, value });
            }
        }
        if self.keep_alive_interval >= self.max_idle_timeout {
            return Err(ConfigError::KeepAliveAboveIdle {
                value: self.keep_alive_interval,
                max_idle_timeout: self.max_idle_timeout,
            });
        }
        for (field, value) in [
            ("quic.max_concurrent_stream_limit", Some(self.max_concurrent_stream_limit)),
            ("quic.max_stream_data", Some(self.max_stream_data)),
            ("quic.max_connection_data", Some(self.max_connection_data)),
            ("quic.max_send_data", Some(self.max_send_data)),
            ("quic.max_half_open", Some(self.max_half_open)),
            ("quic.max_half_open_per_prefix", self.max_half_open_per_prefix),
            ("quic.max_connections", self.max_connections),
            ("quic.max_connections_per_prefix", self.max_connections_per_prefix),
        ] {
            if value == Some(0) {
                return Err(out_of_bounds(field, 0, "at least 1"));
            }
        }
        if self.qlog.is_some() && cfg!(not(feature = "qlog")) {
            return Err(ConfigError::QlogNotBuilt);
        }
        if !MTU.contains(&self.initial_mtu) {
            return Err(out_of_bounds("quic.initial_mtu", self.initial_mtu, "within 1200..=65527"));
        }
        if !(self.initial_mtu..=*MTU.end()).contains(&self.max_mtu) {
            let bound = format!("within quic.initial_mtu, which is {}, ..=65527", self.initial_mtu);
            return Err(out_of_bounds("quic.max_mtu", self.max_mtu, bound));
        }
        match self.socket_buffer {
            Some(size) if !SOCKET_BUFFER.contains(&size) => {
                Err(out_of_bounds("quic.socket_buffer", size, "within 4096..=1073741824"))
            }
            _ => Ok(()),
        }
    }
}

fn out_of_bounds(field: &'static str, value: impl Display, bound: impl Into<String>) -> ConfigError {
    ConfigError::OutOfBounds { field, value: value.to_string(), bound: bound.into() }
}
