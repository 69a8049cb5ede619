//! Status of the connection to each peer, from events of the swarm alone.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_punch::{event::Phase, explain::causes};
use libp2p_swarm::ConnectionError;
use tokio::{sync::watch, time::Instant};

use crate::error::{ConnectError, innermost};

/// Closed connections of which the status is kept. The oldest give way.
pub(crate) const MAX_CLOSED: usize = 1_024;

/// Status of the connection to a peer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ConnectionStatus {
    /// There was no connection, and no attempt at one, or it was too long ago to be remembered.
    Unknown,
    /// The node tries to connect, because the application asked for it.
    #[non_exhaustive]
    Connecting {
        /// Start of the attempt.
        since: Instant,
        /// Present step.
        step: ConnectStep,
    },
    /// There is a connection.
    #[non_exhaustive]
    Connected {
        /// Start of the connection.
        since: Instant,
        /// Route of the best connection to the peer.
        route: Route,
        /// Address of the peer, or of the relay. `None` while a session has no path.
        address: Option<Multiaddr>,
        /// Latest round-trip time; `None` before the first measurement.
        rtt: Option<Duration>,
    },
    /// There was a connection, or an attempt at one.
    #[non_exhaustive]
    Closed {
        /// Time of the end.
        since: Instant,
        /// Reason of the end.
        reason: CloseReason,
    },
}

impl ConnectionStatus {
    /// Returns true while there is a connection.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }

    fn without_rtt(&self) -> Self {
        match self.clone() {
            Self::Connected { since, route, address, .. } => {
                Self::Connected { since, route, address, rtt: None }
            }
            other => other,
        }
    }

    /// Returns true while there is a connection without a relay.
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Connected { route: Route::Direct, .. })
    }
}

/// Step of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectStep {
    /// Known addresses of the peer are dialed.
    Dialing,
    /// A traversal session is under way.
    #[non_exhaustive]
    Traversal {
        /// Phase of the session.
        phase: Phase,
        /// Number of the attempt, from 0.
        attempt: u32,
    },
}

/// Route of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// From host to host.
    Direct,
    /// Over a relay. The node goes on to look for a direct path.
    Relayed,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        })
    }
}

/// Reason for which there is no connection any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// This node closed it.
    #[error("this node closed it")]
    Local,
    /// The peer closed it.
    #[error("the peer closed it")]
    Peer,
    /// Nobody used it.
    #[error("it was idle")]
    Idle,
    /// The peer is not heard any more.
    #[error("the peer does not answer")]
    TimedOut,
    /// It failed in another way.
    #[error("it failed: {cause}")]
    Failed {
        /// The cause.
        cause: String,
    },
    /// It never came to be.
    #[error(transparent)]
    NotConnected(Box<ConnectError>),
}

impl CloseReason {
    /// Describes why the last connection to a peer closed that this node did not close.
    pub(crate) fn of(cause: Option<&ConnectionError>) -> Self {
        match cause {
            // The library closes a connection that another one replaces, or that lost its paths.
            None => Self::Local,
            Some(ConnectionError::KeepAliveTimeout) => Self::Idle,
            Some(ConnectionError::IO(error)) => {
                let connection = causes(error).find_map(|cause| cause.downcast_ref::<libp2p_punch::Error>());
                match connection {
                    Some(libp2p_punch::Error::Connection(error)) if error.is_closed_by_peer() => Self::Peer,
                    Some(libp2p_punch::Error::Connection(error)) if error.is_timed_out() => Self::TimedOut,
                    _ => Self::Failed { cause: innermost(error) },
                }
            }
        }
    }
}

/// Status of the connection to one peer, as it changes.
///
/// A slow watcher misses statuses in between, and never the latest one.
#[derive(Debug, Clone)]
pub struct StatusWatch(watch::Receiver<ConnectionStatus>);

impl StatusWatch {
    /// Returns the present status.
    pub fn current(&self) -> ConnectionStatus {
        self.0.borrow().clone()
    }

    /// Waits for another status than the last one that this method returned. `None` after the end
    /// of the node.
    ///
    /// Cancel safe: no status is lost if the future is dropped.
    pub async fn changed(&mut self) -> Option<ConnectionStatus> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// Waits until the status is one that `is_wanted` accepts, and returns it. `None` if the node
    /// ends before.
    pub async fn wait_for(
        &mut self,
        is_wanted: impl FnMut(&ConnectionStatus) -> bool,
    ) -> Option<ConnectionStatus> {
        self.0.wait_for(is_wanted).await.ok().map(|status| status.clone())
    }
}

/// The status of each peer, shared by the node's task and its handles.
#[derive(Debug, Default)]
pub(crate) struct StatusTable(Mutex<Statuses>);

#[derive(Debug, Default)]
struct Statuses {
    of_peers: HashMap<PeerId, watch::Sender<ConnectionStatus>>,
    /// The node has ended: no status changes any more.
    has_ended: bool,
}

impl StatusTable {
    pub(crate) fn get(&self, peer: &PeerId) -> ConnectionStatus {
        self.lock().of_peers.get(peer).map_or(ConnectionStatus::Unknown, |status| status.borrow().clone())
    }

    /// Returns all known statuses, in the order of the PeerIds.
    pub(crate) fn all(&self) -> Vec<(PeerId, ConnectionStatus)> {
        let mut all: Vec<_> =
            self.lock().of_peers.iter().map(|(peer, status)| (*peer, status.borrow().clone())).collect();
        all.sort_by_key(|(peer, _)| *peer);
        all.retain(|(_, status)| *status != ConnectionStatus::Unknown);
        all
    }

    pub(crate) fn watch(&self, peer: PeerId) -> StatusWatch {
        let mut table = self.lock();
        if table.has_ended {
            let status = table.of_peers.get(&peer).map(|status| status.borrow().clone());
            return StatusWatch(watch::channel(status.unwrap_or(ConnectionStatus::Unknown)).1);
        }
        forget_oldest(&mut table.of_peers);
        let unknown = || watch::Sender::new(ConnectionStatus::Unknown);
        StatusWatch(table.of_peers.entry(peer).or_insert_with(unknown).subscribe())
    }

    /// Returns true if more than the round-trip time changed.
    pub(crate) fn set(&self, peer: PeerId, status: ConnectionStatus) -> bool {
        let mut table = self.lock();
        let is_open =
            matches!(status, ConnectionStatus::Connecting { .. } | ConnectionStatus::Connected { .. });
        let unknown = || watch::Sender::new(ConnectionStatus::Unknown);
        let entry = table.of_peers.entry(peer).or_insert_with(unknown);
        let mut is_news = false;
        entry.send_if_modified(|known| {
            is_news = known.without_rtt() != status.without_rtt();
            *known != status && {
                *known = status;
                true
            }
        });
        if !is_open {
            forget_oldest(&mut table.of_peers);
        }
        is_news
    }

    /// Ends all watches. The statuses stay as they are.
    pub(crate) fn end(&self) {
        let mut table = self.lock();
        table.has_ended = true;
        // The receivers of a sender that is replaced keep its last status.
        for status in table.of_peers.values_mut() {
            let last = status.borrow().clone();
            *status = watch::Sender::new(last);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Statuses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the number of closed connections that nobody watches within [`MAX_CLOSED`].
fn forget_oldest(table: &mut HashMap<PeerId, watch::Sender<ConnectionStatus>>) {
    if table.len() <= MAX_CLOSED {
        return;
    }
    let ended = |status: &watch::Sender<ConnectionStatus>| match &*status.borrow() {
        _ if status.receiver_count() > 0 => None,
        ConnectionStatus::Unknown => Some(None),
        ConnectionStatus::Closed { since, .. } => Some(Some(*since)),
        _ => None,
    };
    let mut closed: Vec<_> =
        table.iter().filter_map(|(peer, status)| Some((ended(status)?, *peer))).collect();
    let Some(surplus @ 1..) = closed.len().checked_sub(MAX_CLOSED) else { return };
    closed.sort_unstable();
    closed.iter().take(surplus).for_each(|(_, peer)| drop(table.remove(peer)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> ConnectionStatus {
        ConnectionStatus::Closed { since: Instant::now(), reason: CloseReason::Idle }
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_many_closed_connections_is_forgotten() {
        let table = StatusTable::default();
        let peers: Vec<PeerId> = (0..=MAX_CLOSED).map(|_| PeerId::random()).collect();
        let watched = PeerId::random();
        table.set(watched, closed());
        let watch = table.watch(watched);
        for peer in &peers {
            tokio::time::advance(Duration::from_millis(1)).await;
            table.set(*peer, closed());
        }
        assert_eq!(table.get(&peers[0]), ConnectionStatus::Unknown);
        assert_ne!(table.get(&peers[1]), ConnectionStatus::Unknown);
        assert_ne!(table.get(&watched), ConnectionStatus::Unknown);
        drop(watch);
    }
}
