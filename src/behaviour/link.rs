//! Messages of the behaviour and its handlers to the driver.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use super::{event::Event, frames::FrameSender};
use crate::offers::{self, Offer};
use libp2p_punch_proto::{ControlStreamId, wire::frame::Frame};

/// Message to the driver, in the order of the events.
#[derive(Debug)]
pub(crate) enum Input {
    /// A libp2p connection was established, over any transport.
    Opened { link: ControlStreamId, peer: PeerId, route: Route },
    /// Both sides of that connection speak the control protocol; frames to the peer go into
    /// `frames`.
    Speaks { link: ControlStreamId, frames: FrameSender },
    /// The peer of a connection is at another address now.
    Moved { link: ControlStreamId, remote: SocketAddr },
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
    /// An interface of ours has an address that it did not have.
    InterfaceUp,
    /// A connection with this peer was closed here, because it could not move with our address.
    /// `dialed` is where the peer was dialed, if it was, and not through a session.
    Lost { peer: PeerId, dialed: Option<SocketAddr> },
}

/// UDP path of a connection, as its libp2p address describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// A QUIC connection to this very address.
    Udp(SocketAddr),
    /// A QUIC connection to an address that only the transport knows: a DNS name, or a punched
    /// path.
    Unresolved,
    /// No QUIC connection of ours: another transport, or a relay in between.
    Other,
}

impl Route {
    pub(crate) fn of(address: &Multiaddr) -> Self {
        let mut parts = address.iter();
        if address.iter().any(|part| part == Protocol::P2pCircuit) {
            return Route::Other;
        }
        if offers::is_offer(address) {
            return Route::Unresolved;
        }
        let ip = match parts.next() {
            Some(Protocol::Ip4(ip)) => Some(ip.into()),
            Some(Protocol::Ip6(ip)) => Some(ip.into()),
            Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => None,
            _ => return Route::Other,
        };
        match (ip, parts.next(), parts.next()) {
            (Some(ip), Some(Protocol::Udp(port)), Some(Protocol::QuicV1)) => {
                Route::Udp(SocketAddr::new(ip, port))
            }
            (None, Some(Protocol::Udp(_)), Some(Protocol::QuicV1)) => Route::Unresolved,
            (None, Some(Protocol::P2p(_)) | None, None) => Route::Unresolved,
            _ => Route::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offers::Offers;

    #[test]
    fn an_address_tells_what_is_known_of_its_udp_path() {
        let peer = PeerId::random();
        for (address, route) in [
            ("/ip4/192.0.2.1/udp/4001/quic-v1".to_owned(), Route::Udp(([192, 0, 2, 1], 4001).into())),
            (
                format!("/ip6/2001:db8::1/udp/1/quic-v1/p2p/{peer}"),
                Route::Udp("[2001:db8::1]:1".parse().unwrap()),
            ),
            (format!("/p2p/{peer}"), Route::Other),
            (Offers::default().open(peer).unwrap().address().to_string(), Route::Unresolved),
            ("/dns4/example.org/udp/4001/quic-v1".to_owned(), Route::Unresolved),
            (format!("/dnsaddr/example.org/p2p/{peer}"), Route::Unresolved),
            ("/ip4/192.0.2.1/tcp/4001".to_owned(), Route::Other),
            ("/dns4/example.org/tcp/4001".to_owned(), Route::Other),
            (format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{peer}/p2p-circuit/p2p/{peer}"), Route::Other),
            (format!("/p2p/{peer}/p2p-circuit"), Route::Other),
            ("/ip4/192.0.2.1/udp/1/webrtc-direct".to_owned(), Route::Other),
        ] {
            assert_eq!(Route::of(&address.parse().unwrap()), route, "{address}");
        }
    }
}
