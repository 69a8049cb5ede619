//! Messages of the behaviour and its handlers to the driver.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use libp2p_identity::PeerId;

use super::{event::Event, frames::FrameSender};
use crate::{carrier::ConnectionNumber, offers::Offer};
use libp2p_punch_proto::{ControlStreamId, wire::frame::Frame};

/// Message to the driver, in the order of the events.
#[derive(Debug)]
pub(crate) enum Input {
    /// Both sides of a connection speak the control protocol.
    Speaks {
        link: ControlStreamId,
        peer: PeerId,
        /// The QUIC connection, if one carries the control stream directly.
        connection: Option<ConnectionNumber>,
        /// Takes frames to the peer.
        frames: FrameSender,
    },
    /// The peer of a connection is at another address now.
    Moved { link: ControlStreamId },
    /// A frame came in.
    Received { link: ControlStreamId, frame: Frame },
    /// The control stream is gone; the connection may still be there.
    Silent { link: ControlStreamId },
    /// The connection is gone.
    Closed { link: ControlStreamId },
    /// Stay registered with this peer.
    AddCoordinator(PeerId),
    /// No longer.
    RemoveCoordinator(PeerId),
    /// These coordinators may know `peer`, which is looked for. None of them may once it no longer
    /// is.
    CoordinatorsOf { peer: PeerId, coordinators: BTreeSet<PeerId> },
    /// An external address of ours is confirmed, or none is any longer.
    Reachable(bool),
    /// The confirmed external addresses are these.
    ExternalAddresses(Vec<SocketAddr>),
    /// Look for a direct path to this peer, which is connected over a relay.
    Upgrade(PeerId),
    /// The swarm dials a peer, and polls the offered address unless another address leads to a
    /// connection.
    Dialing(Arc<Offer>),
    /// The dial of this offer has ended, with any outcome.
    DialEnded(Arc<Offer>),
    /// No dial collects the connection to this peer.
    Discard { peer: PeerId, remote: SocketAddr },
    /// No relay helped: dials that still wait for this peer fail with the reason of the traversal.
    Release(PeerId),
}

/// Message from the driver.
#[derive(Debug)]
pub(crate) enum FromDriver {
    /// An event for the application.
    Event(Event),
    /// A connection to this peer exists without a dial that waits for it: the next dial of its real
    /// address gets it.
    Collect { peer: PeerId, remote: SocketAddr },
    /// No attempt was made to find a direct path to this peer.
    NotUpgrading(PeerId),
    /// An interface of ours has an address that it did not have.
    InterfaceUp,
    /// A connection with this peer was closed here, because it could not move with our address.
    /// `dialed` is where the peer was dialed, if it was, and not through a session.
    Lost { peer: PeerId, dialed: Option<SocketAddr> },
}
