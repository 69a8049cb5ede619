//! Sockets to which connected sessions move before our NAT forgets the mapping that they use.
//!
//! A NAT that gives up mappings in use cuts every path over them at once, and the peer's packets meet nobody until both
//! sides have found each other again. So once it is known how long mappings stand, sessions go to a fresh socket in time: the
//! old path works until the new one does. One socket serves all sessions, as a NAT that maps independently of the
//! endpoint shows it to all peers at one address; with any other NAT nothing is done.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{SocketId, session::Key};

/// How often the sessions are looked at, once mappings are known to end.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long after a round of moves the next one may begin: those who were told need to find us.
pub(crate) const ROUND_INTERVAL: Duration = Duration::from_secs(5);
/// From one session's move to the next, within what coordinators pass on of one peer.
pub(crate) const MOVE_INTERVAL: Duration = Duration::from_millis(25);
/// How long a request to an observer may go unanswered before the next one.
pub(crate) const SAMPLE_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Requests to observers for one socket.
pub(crate) const MAX_SAMPLES: usize = 8;
/// No mapping is left behind sooner, whatever observers say: moves cost probes.
pub(crate) const MIN_AGE: Duration = Duration::from_secs(10);

/// A socket for sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fresh {
    /// The number of its pool.
    pub(crate) pool: u32,
    pub(crate) socket: SocketId,
    /// Where it is seen, and since when.
    pub(crate) mapping: Option<(SocketAddr, Instant)>,
}

/// What is under way.
#[derive(Debug, Default)]
pub(crate) enum Stage {
    #[default]
    Idle,
    /// A socket is being opened.
    Opening { pool: u32 },
    /// Observers are asked where it is seen.
    Sampling { socket: SocketId, samples: usize },
    /// Sessions are moved to it, one after the other.
    Moving { sessions: VecDeque<Key> },
}

/// The sockets, and what is under way.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    pub(crate) stage: Stage,
    /// When the stage is looked at.
    pub(crate) due: Option<Instant>,
    /// The latest last.
    pub(crate) sockets: Vec<Fresh>,
    pools: u32,
}

impl Renewals {
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.due
    }

    /// The number of a new pool.
    pub(crate) fn new_pool(&mut self) -> u32 {
        self.pools = self.pools.wrapping_add(1);
        self.pools
    }

    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.sockets.iter().any(|fresh| fresh.socket == socket)
    }

    /// Since when the mapping of one of these sockets stands.
    pub(crate) fn mapped_since(&self, socket: SocketId) -> Option<Instant> {
        let fresh = self.sockets.iter().find(|fresh| fresh.socket == socket)?;
        fresh.mapping.map(|(_, since)| since)
    }

    /// The latest socket, if it is known where it is seen.
    pub(crate) fn latest(&self) -> Option<(SocketId, SocketAddr, Instant)> {
        let fresh = self.sockets.last()?;
        fresh.mapping.map(|(address, since)| (fresh.socket, address, since))
    }

    /// Notes where the latest socket is seen.
    pub(crate) fn seen(&mut self, address: SocketAddr, now: Instant) {
        if let Some(fresh) = self.sockets.last_mut() {
            fresh.mapping = Some((address, now));
        }
    }

    /// Looks at the sessions within a second, unless something is under way.
    pub(crate) fn look_by(&mut self, at: Instant) {
        if matches!(self.stage, Stage::Idle) {
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
    }

    /// Nothing is under way any more; the sessions are looked at again after a while.
    pub(crate) fn rest(&mut self, now: Instant) {
        (self.stage, self.due) = (Stage::Idle, Some(now + ROUND_INTERVAL));
    }
}
