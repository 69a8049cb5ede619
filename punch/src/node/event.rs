//! Events of a node, and the interface through which a program sees each of them.

use std::{io, time::Duration};

use libp2p::{Multiaddr, PeerId, request_response::OutboundRequestId, swarm::DialError};
use libp2p_punch::transport::ConnectionOrigin;
use libp2p_punch::{
    event::RejectReason,
    event::{Event, FailureReason},
    nat::Report,
    port_mapping,
};

/// Event of a node.
#[derive(Debug)]
pub(crate) enum NodeEvent {
    /// The node listens on an address.
    Listening { address: Multiaddr },
    /// The node cannot listen on addresses, or cannot listen any longer.
    ListenFailed { addresses: Vec<Multiaddr>, cause: String },
    /// A coordinator accepted the registration.
    Registered { coordinator: PeerId },
    /// A coordinator rejected the registration, or, without a reason, cannot be reached.
    RegistrationFailed { coordinator: PeerId, reason: Option<RejectReason> },
    /// The gateway granted a mapping of a port, or refused, or a mapping has ended.
    PortMapping(port_mapping::Event),
    /// New evidence about the NAT.
    Nat(Box<Report>),
    /// Connection to a peer that is not a coordinator.
    Connected(Connection),
    /// The last connection to a peer closed.
    Disconnected { peer: PeerId },
    /// A dial ended without a connection.
    DialFailed { peer: PeerId, error: DialError },
    /// A traversal session ended without a connection.
    SessionFailed {
        peer: PeerId,
        reason: FailureReason,
        /// The session belongs to the dial that [`Node::connect`](super::Node::connect) waits for.
        is_requested: bool,
        /// The peer is connected in another way, for example over a relay.
        is_connected: bool,
    },
    /// A peer sent the bytes back.
    Echoed { request: OutboundRequestId, bytes: usize, rtt: Duration },
    /// A peer did not send the bytes back.
    EchoFailed { request: OutboundRequestId, message: String },
    /// Progress of a session, a path or a relay reservation, as the library reports it.
    Traversal(Event),
}

/// Connection to a peer.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) peer: PeerId,
    /// The connection runs over a relay.
    pub(crate) is_relayed: bool,
    /// Origin of a direct connection; `None` if the connection has closed already.
    pub(crate) origin: Option<ConnectionOrigin>,
    /// Address of the peer, or of the relay.
    pub(crate) remote: Multiaddr,
    /// Time from the request, or from the first sign of the peer, to the connection.
    pub(crate) elapsed: Duration,
}

/// Receiver of every event of a node, before the caller of [`Node::next`](super::Node::next) gets
/// it.
pub(crate) trait Observer: Send {
    /// Takes note of an event. An error ends the call that drives the node.
    fn observe(&mut self, event: &NodeEvent) -> io::Result<()>;
}

/// Observer that ignores every event.
pub(crate) struct Ignore;

impl Observer for Ignore {
    fn observe(&mut self, _: &NodeEvent) -> io::Result<()> {
        Ok(())
    }
}
