//! Statistics and events of one connection.

use std::{fmt, time::Duration};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use super::tls::{Cipher, HandshakeMode};
use crate::carrier::ConnectionNumber;
use libp2p_punch_proto::event::PathKind;

/// Origin of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionOrigin {
    /// We dialed the address.
    Dial,
    /// The peer dialed one of our listen addresses.
    Listener,
    /// The peer dialed while we opened our NAT for it, in the role of the listener, as
    /// `libp2p-dcutr` wants it.
    PunchAsListener,
    /// A traversal session, which either side began, and how it found the address of the peer at
    /// which it connected. Where the session went and when is in
    /// [`SessionEvent`](crate::event::SessionEvent).
    Session(PathKind),
}

impl ConnectionOrigin {
    /// Returns true if the peer is the QUIC client of one of our listeners.
    pub(super) fn is_accepted(self) -> bool {
        matches!(self, Self::Listener | Self::PunchAsListener)
    }
}

impl fmt::Display for ConnectionOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial => f.write_str("dial"),
            Self::Listener => f.write_str("listener"),
            Self::PunchAsListener => f.write_str("punch-as-listener"),
            Self::Session(kind) => kind.fmt(f),
        }
    }
}

/// Statistics of a connection at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// The connection.
    pub connection: ConnectionNumber,
    /// The remote.
    pub peer: PeerId,
    /// Origin of the connection.
    pub through: ConnectionOrigin,
    /// Way in which the remote presented its identity.
    pub handshake: HandshakeMode,
    /// Cipher of the connection.
    pub cipher: Cipher,
    /// The real remote address at present; `None` for a session between two paths.
    pub remote: Option<Multiaddr>,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Least round-trip time on this path. Of a session on any of its paths.
    pub min_rtt: Duration,
    /// Congestion window in bytes.
    pub congestion_window: u64,
    /// Number of reductions of the congestion window.
    pub congestion_events: u64,
    /// UDP payload in bytes that the path is known to carry.
    pub path_mtu: u16,
    /// Packets sent on this path.
    pub packets_sent: u64,
    /// Of these, the lost ones.
    pub packets_lost: u64,
    /// Bytes of the lost ones.
    pub bytes_lost: u64,
    /// UDP datagrams sent.
    pub datagrams_sent: u64,
    /// UDP datagrams received.
    pub datagrams_received: u64,
    /// Bytes of UDP payload sent.
    pub bytes_sent: u64,
    /// Bytes of UDP payload received.
    pub bytes_received: u64,
}

/// Event of a connection, with its statistics at that time.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum StatsEvent {
    /// A connection was authenticated.
    Opened(ConnectionStats),
    /// A connection goes to or comes from another address of its remote.
    Moved(ConnectionStats),
    /// A connection was dropped. These are its last numbers.
    Closed(ConnectionStats),
}

impl StatsEvent {
    /// Returns the statistics at the time of the event.
    pub fn stats(&self) -> &ConnectionStats {
        match self {
            Self::Opened(stats) | Self::Moved(stats) | Self::Closed(stats) => stats,
        }
    }
}
