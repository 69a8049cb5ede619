//! The connections to peers that speak the control protocol.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{ControlStreamId, SocketId};

/// A control stream to a peer, and the ends of its connection.
#[derive(Debug, Clone)]
pub(crate) struct ControlStream {
    pub(crate) id: ControlStreamId,
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
    /// Control stream to `peer`, over which nothing was sent yet.
    pub(crate) fn new(
        id: ControlStreamId,
        peer: PeerId,
        remote: Option<SocketAddr>,
        socket: Option<SocketId>,
    ) -> Self {
        Self {
            id,
            peer,
            remote,
            socket,
            next_observation: 0,
            last_observation: None,
            moved: None,
            told_observers: false,
            told_observers_at: false,
        }
    }

    /// Returns the time from which the peer is known to be where it seems to be; `None` if it has
    /// always been there.
    pub(crate) fn proven_at(&self) -> Option<Instant> {
        self.moved.map(|at| at + VALIDATION_TIME)
    }

    /// Returns true if the peer is known to be where it seems to be.
    pub(crate) fn is_proven(&self, now: Instant) -> bool {
        self.proven_at().is_none_or(|at| at <= now)
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
    pub(crate) fn insert(&mut self, stream: ControlStream) {
        self.remove(stream.id);
        self.by_peer.insert((stream.peer, stream.id));
        self.by_id.insert(stream.id, stream);
    }

    pub(crate) fn remove(&mut self, id: ControlStreamId) -> Option<ControlStream> {
        let stream = self.by_id.remove(&id)?;
        self.by_peer.remove(&(stream.peer, id));
        Some(stream)
    }

    pub(crate) fn get(&self, id: ControlStreamId) -> Option<&ControlStream> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ControlStreamId) -> Option<&mut ControlStream> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ControlStream> {
        self.by_id.values()
    }

    /// Returns copies of all control streams.
    pub(crate) fn all(&self) -> Vec<ControlStream> {
        self.by_id.values().cloned().collect()
    }

    /// Returns the address at which the peer of a control stream is seen, with the sequence number
    /// of the `OBSERVED_ADDRESS` that tells the peer of it.
    pub(crate) fn observe(&mut self, id: ControlStreamId) -> Option<(u64, SocketAddr)> {
        let stream = self.get_mut(id)?;
        let address = stream.remote?;
        let sequence = stream.next_observation;
        stream.next_observation += 1;
        Some((sequence, address))
    }

    /// Notes the sequence number of an `OBSERVED_ADDRESS` from the peer. Returns false unless it is
    /// above all before it.
    pub(crate) fn takes_observation(&mut self, id: ControlStreamId, sequence: u64) -> bool {
        let Some(stream) = self.get_mut(id) else { return false };
        let is_new = stream.last_observation.is_none_or(|last| sequence > last);
        if is_new {
            stream.last_observation = Some(sequence);
        }
        is_new
    }

    /// Notes that `OBSERVER` is sent on a control stream. Returns true the first time.
    pub(crate) fn told_observers(&mut self, id: ControlStreamId) -> bool {
        self.get_mut(id).is_some_and(|stream| !std::mem::replace(&mut stream.told_observers, true))
    }

    /// Notes that `OBSERVER_AT` is sent on a control stream. Returns true the first time.
    pub(crate) fn told_observers_at(&mut self, id: ControlStreamId) -> bool {
        self.get_mut(id).is_some_and(|stream| !std::mem::replace(&mut stream.told_observers_at, true))
    }

    /// Returns a control stream to `peer`, one over UDP whose ends are known if there is one.
    pub(crate) fn best_of(&self, peer: &PeerId) -> Option<ControlStreamId> {
        let all = self.by_peer.range((*peer, ControlStreamId(0))..=(*peer, ControlStreamId(u64::MAX)));
        let known = |id: &ControlStreamId| self.get(*id).is_some_and(|stream| stream.remote.is_some());
        all.map(|(_, id)| *id).max_by_key(|id| (known(id), *id))
    }
}
