//! Report of one observer on a socket.

use std::{net::SocketAddr, time::Instant};

use libp2p_identity::PeerId;

use crate::ControlStreamId;

/// A peer that reports where it sees this peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observer {
    /// The control stream over which it reports.
    pub(crate) stream: ControlStreamId,
    pub(crate) peer: PeerId,
    /// The address from which it sees this peer.
    pub(crate) address: SocketAddr,
}

/// Report of an observer on a socket.
#[derive(Debug, Clone)]
pub(super) struct Observation {
    pub(super) by: Observer,
    /// Address at which the observer sees this peer.
    pub(super) seen: SocketAddr,
    pub(super) at: Instant,
    /// The observer saw a request, not a connection. The mapping shows the behaviour of the NAT,
    /// but other peers cannot use it.
    pub(super) is_probe: bool,
    /// End of the observation, set when its connection has ended.
    pub(super) expires: Option<Instant>,
    /// Another observer has seen the mapping replaced. The observation does not count until its
    /// observer reports again, or until this time.
    pub(super) doubted: Option<Instant>,
    /// The observer reported the end of a mapping that other observers, or the observer itself, saw
    /// again. Its report alone no longer ends a mapping.
    pub(super) is_refuted: bool,
}

impl Observation {
    pub(super) fn new(by: Observer, seen: SocketAddr, at: Instant) -> Self {
        Self { by, seen, at, is_probe: false, expires: None, doubted: None, is_refuted: false }
    }

    /// Returns true if this observation replaces an older one: from the same address, or over the
    /// same connection after the observer has moved.
    pub(super) fn replaces(&self, older: &Self) -> bool {
        let is_same_stream = self.by.stream == older.by.stream && !self.is_probe && !older.is_probe;
        self.by.peer == older.by.peer && (self.by.address == older.by.address || is_same_stream)
    }
}
