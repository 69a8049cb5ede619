//! Statistics of connections: by call, and as events.
//!
//! Without calls and subscribers nothing is collected. A call reads QUIC's own counters under the
//! connection's lock. Events report only the opening, the moving and the closing of connections.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt, channel::mpsc};
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use super::{
    live::ConnectionTable,
    tls::{Cipher, HandshakeMode},
};
use libp2p_punch_proto::event::PathKind;

/// Number of one connection of a transport. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionNumber(pub(super) u64);

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

/// Handle to the statistics of a transport, usable from anywhere: clone it before the transport
/// goes into a swarm.
#[derive(Debug, Clone)]
pub struct Stats(Arc<ConnectionTable>);

impl Stats {
    pub(super) fn new(registry: Arc<ConnectionTable>) -> Self {
        Self(registry)
    }

    /// Returns the number of moves of clients, or claims of a move, that were refused. Nothing more
    /// was sent to the new address, because the client had moved too often or too many clients had
    /// moved there. See `docs/protocol.md` §8.
    pub fn moves_refused(&self) -> u64 {
        self.0.moves().refused()
    }

    /// Every connection that the swarm holds, oldest first.
    pub fn connections(&self) -> Vec<ConnectionStats> {
        self.0.live().iter().map(|live| live.stats()).collect()
    }

    /// The connections with `peer`, oldest first.
    pub fn of_peer(&self, peer: &PeerId) -> Vec<ConnectionStats> {
        self.0.live().iter().filter(|live| live.peer() == *peer).map(|live| live.stats()).collect()
    }

    /// Returns the statistics of one connection; `None` once it is gone.
    pub fn connection(&self, connection: ConnectionNumber) -> Option<ConnectionStats> {
        self.0.get(connection).map(|live| live.stats())
    }

    /// Returns a stream of the events from now on. A slow reader misses some; see
    /// [`StatsEvents::missed`].
    pub fn events(&self) -> Option<StatsEvents> {
        let (sender, receiver) = mpsc::channel(Self::BACKLOG);
        let missed = self.0.subscribe(sender)?;
        Some(StatsEvents { receiver, missed })
    }

    /// Event streams at once.
    pub const MAX_SUBSCRIBERS: usize = 16;
    /// Events that wait for a slow reader of a stream.
    pub const BACKLOG: usize = 256;
}

/// A stream of [`StatsEvent`]s. It ends with the transport and its last connection.
#[derive(Debug)]
pub struct StatsEvents {
    receiver: mpsc::Receiver<StatsEvent>,
    missed: Arc<std::sync::atomic::AtomicU64>,
}

impl StatsEvents {
    /// Events that this stream lost because it was not read in time.
    pub fn missed(&self) -> u64 {
        self.missed.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Stream for StatsEvents {
    type Item = StatsEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StatsEvent>> {
        self.receiver.poll_next_unpin(cx)
    }
}
