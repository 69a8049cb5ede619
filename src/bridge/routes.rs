//! UDP paths of libp2p connections.
//!
//! The transport reports each connection that it authenticated, and later the swarm reports the
//! same connection by its multiaddr, which may be a DNS name or an offered address. The two are
//! matched here.

use std::collections::{BTreeMap, VecDeque};

use libp2p_identity::PeerId;

use crate::behaviour::link::Route;
use libp2p_punch_proto::Path;

/// Connections of one peer, and peers, whose libp2p side has not been seen yet. The swarm may drop
/// a connection between the two reports, so the oldest entry is dropped when the table is full.
const MAX_PER_PEER: usize = 8;
const MAX_PEERS: usize = 1024;

/// Connections that the transport reported and the swarm has not yet.
#[derive(Debug, Default)]
pub(super) struct Routes {
    unclaimed: BTreeMap<PeerId, VecDeque<Path>>,
    order: VecDeque<PeerId>,
}

impl Routes {
    pub(super) fn add(&mut self, peer: PeerId, path: Path) {
        if !self.unclaimed.contains_key(&peer) {
            self.order.push_back(peer);
            if self.order.len() > MAX_PEERS
                && let Some(oldest) = self.order.pop_front()
            {
                self.unclaimed.remove(&oldest);
            }
        }
        let paths = self.unclaimed.entry(peer).or_default();
        paths.push_back(path);
        if paths.len() > MAX_PER_PEER {
            paths.pop_front();
        }
    }

    /// The path beneath a connection of `peer` that the swarm reports with this route.
    pub(super) fn claim(&mut self, peer: &PeerId, route: Route) -> Option<Path> {
        let paths = self.unclaimed.get_mut(peer)?;
        let index = match route {
            Route::Udp(address) => paths.iter().position(|path| path.remote == address)?,
            Route::Unresolved => 0,
            Route::Other => return None,
        };
        let path = paths.remove(index);
        if paths.is_empty() {
            self.unclaimed.remove(peer);
            self.order.retain(|other| other != peer);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p_punch_proto::SocketId;

    fn path(port: u16) -> Path {
        Path { socket: SocketId(0), remote: ([192, 0, 2, 1], port).into() }
    }

    #[test]
    fn a_connection_is_claimed_by_its_address_or_else_the_oldest_first() {
        let (mut routes, peer) = (Routes::default(), PeerId::random());
        (1..=3).for_each(|port| routes.add(peer, path(port)));
        assert_eq!(routes.claim(&peer, Route::Udp(path(2).remote)), Some(path(2)));
        assert_eq!(routes.claim(&peer, Route::Other), None);
        assert_eq!(routes.claim(&peer, Route::Unresolved), Some(path(1)));
        assert_eq!(routes.claim(&peer, Route::Udp(path(1).remote)), None);
        assert_eq!(routes.claim(&peer, Route::Unresolved), Some(path(3)));
        assert_eq!(routes.claim(&peer, Route::Unresolved), None);
        assert!(routes.unclaimed.is_empty() && routes.order.is_empty());
    }

    #[test]
    fn what_nobody_claims_is_bounded() {
        let mut routes = Routes::default();
        for _ in 0..2 * MAX_PEERS {
            let peer = PeerId::random();
            (1..=20).for_each(|port| routes.add(peer, path(port)));
        }
        assert_eq!(routes.unclaimed.len(), MAX_PEERS);
        assert!(routes.unclaimed.values().all(|paths| paths.len() == MAX_PER_PEER));
    }
}
