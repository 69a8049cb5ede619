//! Sources of coordinators that may know a peer: a DHT, a directory, a file.
//!
//! A dial of a peer that no coordinator of ours knows asks each source. What a source finds is named to the driver for as long as
//! that peer is looked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::{Stream, StreamExt, channel::mpsc};
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

use super::discovery::nearest_to;

/// Peers to look up that wait for a source. With more, a source that does not keep up misses some.
const MAX_REQUESTS: usize = 256;
/// Coordinators found that wait for the behaviour.
const MAX_ANSWERS: usize = 256;
/// Coordinators that were found for one peer and have not been asked yet.
const MAX_SPARE: usize = 32;
/// Own dials of sources that have not begun.
const MAX_OWN_DIALS: usize = 1024;

/// A coordinator that may know a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) peer: PeerId,
    pub(super) coordinator: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
}

/// The end of one source of coordinators: a stream of the peers that are to be looked up. Made by
/// [`Behaviour::coordinator_lookup`](super::Behaviour::coordinator_lookup).
///
/// A peer may come more than once. A few coordinators are asked at a time, those nearest to the peer by Kademlia's
/// distance first. Those that cannot be reached, or do not know the peer, make room for others.
#[derive(Debug)]
pub struct CoordinatorLookup {
    requests: mpsc::Receiver<PeerId>,
    answers: mpsc::Sender<Found>,
    own_dials: OwnDials,
}

impl CoordinatorLookup {
    /// Says that `coordinator`, which can be dialed at `addresses`, may know `peer`. Returns false if the behaviour has no room for
    /// it at the moment, or is gone.
    pub fn found(&mut self, peer: PeerId, coordinator: PeerId, addresses: Vec<Multiaddr>) -> bool {
        self.answers.try_send(Found { peer, coordinator, addresses }).is_ok()
    }

    /// Says that the source itself is about to make this dial, for which nothing is to be looked up.
    pub fn dials(&self, dial: ConnectionId) {
        self.own_dials.insert(dial);
    }
}

impl Stream for CoordinatorLookup {
    type Item = PeerId;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PeerId>> {
        self.get_mut().requests.poll_next_unpin(cx)
    }
}

/// Dials that sources make themselves.
#[derive(Debug, Clone, Default)]
struct OwnDials(Arc<Mutex<BTreeSet<ConnectionId>>>);

impl OwnDials {
    fn insert(&self, dial: ConnectionId) {
        let mut dials = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dials.insert(dial);
        if dials.len() > MAX_OWN_DIALS {
            dials.pop_first();
        }
    }

    fn remove(&self, dial: &ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(dial)
    }
}

/// All sources.
#[derive(Debug)]
pub(super) struct Lookups {
    sources: Vec<mpsc::Sender<PeerId>>,
    answers: (mpsc::Sender<Found>, mpsc::Receiver<Found>),
    own_dials: OwnDials,
    /// Coordinators that have not been asked yet, by the peer that is looked up.
    spare: BTreeMap<PeerId, Vec<Found>>,
}

impl Lookups {
    pub(super) fn new() -> Self {
        Self {
            sources: Vec::new(),
            answers: mpsc::channel(MAX_ANSWERS),
            own_dials: OwnDials::default(),
            spare: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self) -> CoordinatorLookup {
        let (sender, requests) = mpsc::channel(MAX_REQUESTS);
        self.sources.push(sender);
        CoordinatorLookup { requests, answers: self.answers.0.clone(), own_dials: self.own_dials.clone() }
    }

    /// Returns true if there is no source.
    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Returns true for a dial that a source makes itself. A dial is asked about once.
    pub(super) fn is_own_dial(&self, dial: &ConnectionId) -> bool {
        self.own_dials.remove(dial)
    }

    /// Asks all sources for coordinators of `peer`, unless that has been done.
    pub(super) fn begin(&mut self, peer: PeerId) {
        if self.is_empty() || self.spare.contains_key(&peer) {
            return;
        }
        self.spare.insert(peer, Vec::new());
        self.sources.retain_mut(|source| match source.try_send(peer) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%peer, %error, "a source of coordinators is not asked");
                !error.is_disconnected()
            }
        });
    }

    /// Nobody looks for `peer` any longer.
    pub(super) fn end(&mut self, peer: &PeerId) {
        self.spare.remove(peer);
    }

    /// Returns the peers that are looked up.
    pub(super) fn peers(&self) -> Vec<PeerId> {
        self.spare.keys().copied().collect()
    }

    /// Keeps a coordinator for later. What is found of a peer that nobody looks for is dropped, as is what there is no room for.
    pub(super) fn keep(&mut self, found: Found) {
        if let Some(spare) = self.spare.get_mut(&found.peer)
            && spare.len() < MAX_SPARE
            && !spare.iter().any(|other| other.coordinator == found.coordinator)
        {
            spare.push(found);
        }
    }

    /// Returns true if a coordinator is kept for `peer`.
    pub(super) fn has_spare(&self, peer: &PeerId) -> bool {
        self.spare.get(peer).is_some_and(|spare| !spare.is_empty())
    }

    /// Takes the coordinator nearest to `peer` of those that are kept for it.
    pub(super) fn next(&mut self, peer: &PeerId) -> Option<Found> {
        let spare = self.spare.get_mut(peer)?;
        let nearest = nearest_to(peer, spare.iter().map(|found| found.coordinator))?;
        let place = spare.iter().position(|found| found.coordinator == nearest)?;
        Some(spare.swap_remove(place))
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        match self.answers.1.poll_next_unpin(cx) {
            Poll::Ready(Some(found)) => Poll::Ready(found),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
