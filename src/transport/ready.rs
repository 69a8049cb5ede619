//! Connections that sessions ended in and that no dial waits for. The behaviour dials their real
//! addresses.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libp2p_identity::PeerId;

use super::Connection;

/// Connections to be collected, by peer and real remote address. Each session has at most one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<Mutex<BTreeMap<(PeerId, SocketAddr), Connection>>>);

impl Ready {
    /// Keeps a connection for the dial that the behaviour is about to make.
    pub(crate) fn keep(&self, peer: PeerId, remote: SocketAddr, connection: Connection) {
        self.lock().insert((peer, remote), connection);
    }

    pub(crate) fn take(&self, peer: PeerId, remote: SocketAddr) -> Option<Connection> {
        self.lock().remove(&(peer, remote))
    }

    /// Closes a connection that no dial has collected.
    pub(crate) fn discard(&self, peer: &PeerId, remote: SocketAddr) {
        self.lock().remove(&(*peer, remote));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(PeerId, SocketAddr), Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
