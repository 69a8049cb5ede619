//! What the endpoint asks of the transport's path layer.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use libp2p_identity::PeerId;

use crate::{Path, SocketId, VirtualConnectionId, wire::keys::FlightBinding};

/// Whose sockets are opened beside those of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pool {
    /// Those of a flow that searches.
    Session(VirtualConnectionId),
    /// Those at which a coordinator observes, by their local address.
    Observers(IpAddr),
    /// The one with which it is tested whether a packet that comes before its flow harms, by a number of its own.
    EarlyPackets(u32),
    /// Those with which it is measured how long a mapping stands that nobody uses.
    BindingLifetimeTest,
    /// The one to which connected sessions move before our NAT forgets the mapping that they use, by a number of its own.
    Renewal(u32),
    /// The one from which a coordinator tests how its clients' NATs filter, by its local address. No client may ever be told
    /// of its port.
    Filtering(IpAddr),
}

/// One request to the path layer. Commands of a flow are carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start a QUIC client handshake at the virtual address of `flow`; the first flight comes back through
    /// [`Endpoint::handle_first_flight`](crate::endpoint::Endpoint::handle_first_flight).
    Connect {
        /// The new flow.
        flow: VirtualConnectionId,
        /// Whose key the handshake must prove.
        peer: PeerId,
        /// What is known of the round-trip time, for QUIC's first timers.
        rtt: Option<Duration>,
        /// What the connection ID that the first flight goes to must bear.
        binding: FlightBinding,
    },
    /// Feed a peer's first flight to the QUIC server as coming from the virtual address of `flow`.
    Accept {
        /// The new flow.
        flow: VirtualConnectionId,
        /// Whose key the handshake must prove.
        peer: PeerId,
        /// The datagrams that came inside `PUNCH_ME_NOW`.
        first_flight: Vec<Bytes>,
        /// What is known of the round-trip time, for QUIC's first timers.
        rtt: Option<Duration>,
        /// What the connection ID of the first flight must bear, or else the flow fails.
        binding: FlightBinding,
    },
    /// Datagrams from `path` that carry one of the flow's connection IDs are QUIC packets of `flow`. A path has room for a few
    /// flows; those that were `heard` on it take the place of those that were only announced there. Given again for a
    /// path when it is heard for the first time.
    Admit {
        /// The flow.
        flow: VirtualConnectionId,
        /// A path that is probed for it.
        path: Path,
        /// An authentic probe of the flow's session came on it.
        heard: bool,
    },
    /// Until a path is selected, QUIC packets of `flow` may go out on `path`, `budget` bytes in all
    /// (RFC 9000 §8.1: three times what was received). A later one for the same path adds to the budget, and so
    /// does every QUIC packet of the flow that comes on an admitted path.
    Permit {
        /// The flow.
        flow: VirtualConnectionId,
        /// A path that was heard from, or the address that the coordinator observed.
        path: Path,
        /// Bytes of UDP payload that may be sent.
        budget: usize,
        /// Send what is kept again, if it was sent there before: the peer was heard only now, and its NAT may have dropped it.
        again: bool,
    },
    /// `path` is validated and from now on carries what QUIC sends; it is admitted before all that were only heard. What was
    /// held back is sent now; if nothing was heard yet, the first flight is sent again. If it was selected already, it
    /// works again after it did not.
    Select {
        /// The flow.
        flow: VirtualConnectionId,
        /// A validated path.
        path: Path,
    },
    /// `path` no longer belongs to `flow`.
    Forget {
        /// The flow.
        flow: VirtualConnectionId,
        /// A path that was admitted.
        path: Path,
    },
    /// Open up to `count` UDP sockets at `local` on ports of the system's choice, for probes and the packets of sessions
    /// only; answered by [`Endpoint::handle_sockets_opened`](crate::endpoint::Endpoint::handle_sockets_opened). At most once for a
    /// pool.
    OpenSockets {
        /// Whose they are.
        pool: Pool,
        /// The address to bind to, perhaps a wildcard.
        local: IpAddr,
        /// How many are wanted.
        count: usize,
    },
    /// Close the sockets of a pool but these. The end of a flow closes those of its pool.
    CloseSockets {
        /// Whose they are.
        pool: Pool,
        /// Those that stay.
        keep: Vec<SocketId>,
    },
    /// Hand probes on that come to the transport's sockets, even while there is no flow.
    ExpectProbes {
        /// `false` once none is expected any more.
        expected: bool,
    },
    /// End the QUIC connection attempt or the connection of `flow`.
    Close {
        /// The flow.
        flow: VirtualConnectionId,
    },
}
