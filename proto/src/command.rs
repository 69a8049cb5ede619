//! Requests of the endpoint to the transport's path layer.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use libp2p_identity::PeerId;

use crate::{Path, SocketId, VirtualConnectionId, wire::keys::FlightBinding};

/// Owner of sockets that are opened in addition to those of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pool {
    /// Sockets of a virtual connection that searches.
    Session(VirtualConnectionId),
    /// Sockets at which a coordinator observes, by their local address.
    Observers(IpAddr),
    /// Socket of a test for harm by early packets, by a number of its own.
    EarlyPackets(u32),
    /// Sockets that measure the lifetime of an idle mapping.
    BindingLifetimeTest,
    /// Socket to which connected sessions move before our NAT drops their mapping, by a number of
    /// its own.
    Renewal(u32),
    /// Socket from which a coordinator tests how its clients' NATs filter, by its local address. No
    /// client may learn its port before the test.
    Filtering(IpAddr),
}

/// Request to the path layer. Commands of a virtual connection are carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start a QUIC client handshake at the virtual address of `flow`; the first flight comes back
    /// through [`Endpoint::handle_first_flight`](crate::endpoint::Endpoint::handle_first_flight).
    Connect {
        /// The new virtual connection.
        flow: VirtualConnectionId,
        /// Peer whose key the handshake must prove.
        peer: PeerId,
        /// Known round-trip time, for QUIC's first timers.
        rtt: Option<Duration>,
        /// Binding that the connection ID of the first flight must bear.
        binding: FlightBinding,
    },
    /// Feed a peer's first flight to the QUIC server as coming from the virtual address of `flow`.
    Accept {
        /// The new virtual connection.
        flow: VirtualConnectionId,
        /// Peer whose key the handshake must prove.
        peer: PeerId,
        /// The datagrams that came inside `PUNCH_ME_NOW`.
        first_flight: Vec<Bytes>,
        /// Known round-trip time, for QUIC's first timers.
        rtt: Option<Duration>,
        /// Binding that the connection ID of the first flight must bear, or else the virtual
        /// connection fails.
        binding: FlightBinding,
    },
    /// Take datagrams from `path` with a connection ID of `flow` as its QUIC packets. A path has
    /// room for a few virtual connections; those that were `heard` on it replace those that were
    /// only announced there. Repeated for a path when it is heard for the first time.
    Admit {
        /// The virtual connection.
        flow: VirtualConnectionId,
        /// A path that is probed for it.
        path: Path,
        /// An authentic probe of its session came on the path.
        heard: bool,
    },
    /// Until a path is selected, QUIC packets of `flow` may go out on `path`, `budget` bytes in all
    /// (RFC 9000 §8.1: three times what was received). A later permit for the same path adds to the
    /// budget, and so does every QUIC packet of the virtual connection on an admitted path.
    Permit {
        /// The virtual connection.
        flow: VirtualConnectionId,
        /// A path that was heard from, or the address that the coordinator observed.
        path: Path,
        /// Bytes of UDP payload that may be sent.
        budget: usize,
        /// Send kept datagrams again that were sent there before: the peer was heard only now, and
        /// its NAT may have dropped them.
        again: bool,
    },
    /// Send QUIC packets on `path` from now on: it is validated, and is admitted before all paths
    /// that were only heard. Kept datagrams are sent now; if nothing was heard yet, the first
    /// flight is sent again. A path that was selected already works again after a failure.
    Select {
        /// The virtual connection.
        flow: VirtualConnectionId,
        /// A validated path.
        path: Path,
    },
    /// `path` no longer belongs to `flow`.
    Forget {
        /// The virtual connection.
        flow: VirtualConnectionId,
        /// A path that was admitted.
        path: Path,
    },
    /// Open up to `count` UDP sockets at `local` on ports of the system's choice, for probes and
    /// the packets of sessions only; answered by
    /// [`Endpoint::handle_sockets_opened`](crate::endpoint::Endpoint::handle_sockets_opened). At
    /// most once for a pool.
    OpenSockets {
        /// Owner of the sockets.
        pool: Pool,
        /// The address to bind to, perhaps a wildcard.
        local: IpAddr,
        /// Number of sockets.
        count: usize,
    },
    /// Close the sockets of a pool but these. The end of a virtual connection closes the sockets of
    /// its pool.
    CloseSockets {
        /// Owner of the sockets.
        pool: Pool,
        /// Sockets to keep.
        keep: Vec<SocketId>,
    },
    /// Pass on probes that come to the transport's sockets, even without a virtual connection.
    ExpectProbes {
        /// `false` once none is expected any more.
        expected: bool,
    },
    /// End the QUIC connection attempt or the connection of `flow`.
    Close {
        /// The virtual connection.
        flow: VirtualConnectionId,
    },
}
