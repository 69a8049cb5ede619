//! The connections to peers that speak the control protocol.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{ControlStreamId, SocketId};

#[derive(Debug, Clone)]
pub(crate) struct ControlStream {
    pub(crate) peer: PeerId,
    /// Address of the peer, if the connection uses UDP.
    pub(crate) remote: Option<SocketAddr>,
    /// Our end of it.
    pub(crate) socket: Option<SocketId>,
    /// Sequence number of the next `OBSERVED_ADDRESS` to send.
    pub(crate) next_observation: u64,
    /// Sequence number of the last `OBSERVED_ADDRESS` received.
    pub(crate) last_observation: Option<u64>,
    /// Time of the last change of an end of the connection.
    pub(crate) moved: Option<Instant>,
    /// `OBSERVER` was sent.
    pub(crate) told_observers: bool,
    /// `OBSERVER_AT` was sent.
    pub(crate) told_observers_at: bool,
}

/// Time after which an address to which a connection has moved counts as proven. QUIC follows a
/// client at once, and goes back after three probe time-outs without an answer (RFC 9000 §8.2.4,
/// §9.3).
const VALIDATION_TIME: Duration = Duration::from_secs(4);

impl ControlStream {
    /// From when on the peer is known to be where it seems to be; `None` if it has always been
    /// there.
    pub(crate) fn proven_at(&self) -> Option<Instant> {
        self.moved.map(|at| at + VALIDATION_TIME)
    }

    pub(crate) fn is_loopback(&self) -> bool {
        self.remote.is_some_and(|remote| remote.ip().is_loopback())
    }
}

#[derive(Debug, Default)]
pub(crate) struct ControlStreams {
    by_id: BTreeMap<ControlStreamId, ControlStream>,
    by_peer: BTreeSet<(PeerId, ControlStreamId)>,
}

impl ControlStreams {
    pub(crate) fn insert(&mut self, id: ControlStreamId, link: ControlStream) {
        self.remove(id);
        self.by_peer.insert((link.peer, id));
        self.by_id.insert(id, link);
    }

    pub(crate) fn remove(&mut self, id: ControlStreamId) -> Option<ControlStream> {
        let link = self.by_id.remove(&id)?;
        self.by_peer.remove(&(link.peer, id));
        Some(link)
    }

    pub(crate) fn get(&self, id: ControlStreamId) -> Option<&ControlStream> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ControlStreamId) -> Option<&mut ControlStream> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ControlStreamId, &ControlStream)> {
        self.by_id.iter().map(|(id, link)| (*id, link))
    }

    /// All links, as they are now.
    pub(crate) fn all(&self) -> Vec<(ControlStreamId, ControlStream)> {
        self.by_id.iter().map(|(id, link)| (*id, link.clone())).collect()
    }

    /// Notes that `OBSERVER` is sent on a link; whether that is the first time.
    pub(crate) fn told_observers(&mut self, id: ControlStreamId) -> bool {
        self.get_mut(id).is_some_and(|link| !std::mem::replace(&mut link.told_observers, true))
    }

    /// Notes that `OBSERVER_AT` is sent on a link. Returns true the first time.
    pub(crate) fn told_observers_at(&mut self, id: ControlStreamId) -> bool {
        self.get_mut(id).is_some_and(|link| !std::mem::replace(&mut link.told_observers_at, true))
    }

    /// Returns the control stream to `peer`: a stream over UDP with known ends, if there is one.
    pub(crate) fn best_of(&self, peer: &PeerId) -> Option<ControlStreamId> {
        let all = self.by_peer.range((*peer, ControlStreamId(0))..=(*peer, ControlStreamId(u64::MAX)));
        let known = |id: &ControlStreamId| self.get(*id).is_some_and(|link| link.remote.is_some());
        all.map(|(_, id)| *id).max_by_key(|id| (known(id), *id))
    }
}
