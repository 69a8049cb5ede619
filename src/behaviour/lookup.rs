//! Sources of coordinators that may know a peer: a DHT, a directory, a file.
//!
//! Each source is asked for a dialed peer that no coordinator of ours knows, or that no known relay
//! reaches. The driver gets the found coordinators while the search for that peer lasts.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, channel::mpsc};
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

use super::discovery::nearest_to;

/// Requests that wait for one source. Further requests wait for all sources.
const MAX_REQUESTS: usize = 16;
/// Coordinators found that wait for the behaviour.
const MAX_ANSWERS: usize = 256;
/// Coordinators that were found for one peer and not asked yet.
pub(crate) const MAX_SPARE: usize = 32;
/// Coordinators of one peer that are remembered because they were asked.
const MAX_TRIED: usize = 256;
/// Time after which a coordinator makes room for another, if the peer is not connected by then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The same, if it is known that no coordinator which has answered knows the peer.
const UNKNOWN_TIMEOUT: Duration = Duration::from_millis(500);
/// Own dials of sources that have not begun.
const MAX_OWN_DIALS: usize = 1024;

/// A coordinator that may know a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) peer: PeerId,
    pub(super) coordinator: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
}

/// The end of one source of coordinators: a stream of the peers to look up. Made by
/// [`Behaviour::coordinator_lookup`](super::Behaviour::coordinator_lookup).
///
/// A peer may come more than once. A few coordinators are asked at a time, those nearest to the
/// peer by Kademlia's distance first. Unreachable coordinators, and coordinators that do not know
/// the peer, make room for others.
#[derive(Debug)]
pub struct CoordinatorLookup {
    requests: mpsc::Receiver<PeerId>,
    answers: mpsc::Sender<Found>,
    own_dials: OwnDials,
}

impl CoordinatorLookup {
    /// Reports a `coordinator`, with its `addresses`, that may know `peer`. Returns false if the
    /// behaviour has no room at the moment, or is gone.
    pub fn found(&mut self, peer: PeerId, coordinator: PeerId, addresses: Vec<Multiaddr>) -> bool {
        self.answers.try_send(Found { peer, coordinator, addresses }).is_ok()
    }

    /// Announces a dial of the source itself, which needs no lookup.
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
    /// By the peer that is looked up.
    lookups: BTreeMap<PeerId, Lookup>,
    /// Peers for which the sources have no request yet.
    waiting: VecDeque<PeerId>,
    /// This peer, if the sources are to look for the nodes near it.
    refresh: Option<PeerId>,
}

/// Coordinators of one peer.
#[derive(Debug, Default)]
struct Lookup {
    /// Found, and not asked yet.
    spare: Vec<Found>,
    /// Being asked since then.
    asked: BTreeMap<PeerId, Instant>,
    /// Asked at some time.
    tried: BTreeSet<PeerId>,
}

impl Lookups {
    pub(super) fn new() -> Self {
        Self {
            sources: Vec::new(),
            answers: mpsc::channel(MAX_ANSWERS),
            own_dials: OwnDials::default(),
            lookups: BTreeMap::new(),
            waiting: VecDeque::new(),
            refresh: None,
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
        if !self.is_empty() && !self.lookups.contains_key(&peer) {
            self.lookups.insert(peer, Lookup::default());
            self.waiting.push_back(peer);
        }
    }

    /// Asks all sources for the coordinators near this peer itself. A source finds them by
    /// connecting to them; its answers are not needed.
    pub(super) fn refresh(&mut self, local_peer: PeerId) {
        self.refresh = Some(local_peer);
    }

    /// Ends the lookup of `peer`.
    pub(super) fn end(&mut self, peer: &PeerId) {
        self.lookups.remove(peer);
    }

    /// Returns the peers that are looked up.
    pub(super) fn peers(&self) -> Vec<PeerId> {
        self.lookups.keys().copied().collect()
    }

    /// Keeps a coordinator for later. A coordinator of a peer without a lookup is dropped, and so
    /// is a coordinator that was asked, or that does not fit.
    pub(super) fn keep(&mut self, found: Found) {
        if let Some(lookup) = self.lookups.get_mut(&found.peer)
            && lookup.spare.len() < MAX_SPARE
            && !lookup.tried.contains(&found.coordinator)
            && !lookup.spare.iter().any(|other| other.coordinator == found.coordinator)
        {
            lookup.spare.push(found);
        }
    }

    /// Returns true if a coordinator is kept for `peer`.
    pub(super) fn has_spare(&self, peer: &PeerId) -> bool {
        self.lookups.get(peer).is_some_and(|lookup| !lookup.spare.is_empty())
    }

    /// Takes the nearest of the coordinators that are kept for `peer`. It counts as asked from now
    /// on.
    pub(super) fn next(&mut self, peer: &PeerId, now: Instant) -> Option<Found> {
        let lookup = self.lookups.get_mut(peer)?;
        let nearest = nearest_to(peer, lookup.spare.iter().map(|found| found.coordinator))?;
        let place = lookup.spare.iter().position(|found| found.coordinator == nearest)?;
        if lookup.tried.len() < MAX_TRIED {
            lookup.tried.insert(nearest);
        }
        lookup.asked.insert(nearest, now);
        Some(lookup.spare.swap_remove(place))
    }

    /// `coordinator` may still help to reach `peer`, and gets its time again.
    pub(super) fn renew(&mut self, peer: &PeerId, coordinator: &PeerId, now: Instant) {
        let lookup = self.lookups.get_mut(peer);
        if let Some(since) = lookup.and_then(|lookup| lookup.asked.get_mut(coordinator)) {
            *since = now;
        }
    }

    /// `coordinator` is no longer asked for `peer`.
    pub(super) fn give_up(&mut self, peer: &PeerId, coordinator: &PeerId) {
        if let Some(lookup) = self.lookups.get_mut(peer) {
            lookup.asked.remove(coordinator);
        }
    }

    /// Returns the coordinators of `peer` that have had time to answer that they do not know it,
    /// while others wait for their turn.
    pub(super) fn unknowing(&self, peer: &PeerId, now: Instant) -> Vec<PeerId> {
        self.asked_for(peer, UNKNOWN_TIMEOUT, now)
    }

    /// Returns each coordinator that has not helped in time, while others wait for their turn, with
    /// the peer that it was asked for.
    pub(super) fn overdue(&self, now: Instant) -> Vec<(PeerId, PeerId)> {
        let of = |peer| self.asked_for(peer, ANSWER_TIMEOUT, now).into_iter().map(|id| (id, *peer));
        self.lookups.keys().flat_map(of).collect()
    }

    fn asked_for(&self, peer: &PeerId, time: Duration, now: Instant) -> Vec<PeerId> {
        let lookup = self.lookups.get(peer).filter(|lookup| !lookup.spare.is_empty());
        let asked = lookup.into_iter().flat_map(|lookup| &lookup.asked);
        asked.filter(|(_, since)| now >= **since + time).map(|(coordinator, _)| *coordinator).collect()
    }

    /// Returns the time at which a coordinator is overdue.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let waiting = self.lookups.values().filter(|lookup| !lookup.spare.is_empty());
        waiting.flat_map(|lookup| lookup.asked.values()).min().map(|since| *since + ANSWER_TIMEOUT)
    }

    /// Sends the next peers to the sources that have room.
    fn tell(&mut self, cx: &mut Context<'_>) {
        if let Some(local_peer) = self.refresh
            && self.send(local_peer, cx)
        {
            self.refresh = None;
        }
        while let Some(peer) = self.waiting.front().copied() {
            if self.lookups.contains_key(&peer) && !self.send(peer, cx) {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Sends a peer to all sources. Returns false if some source has no room.
    fn send(&mut self, peer: PeerId, cx: &mut Context<'_>) -> bool {
        let is_ready = |source: &mut mpsc::Sender<PeerId>| !matches!(source.poll_ready(cx), Poll::Pending);
        let all_ready = self.sources.iter_mut().map(is_ready).fold(true, |all, ready| all & ready);
        if all_ready {
            self.sources.retain_mut(|source| source.try_send(peer).is_ok());
        }
        all_ready
    }

    /// Returns the next coordinator that was found.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        self.tell(cx);
        match self.answers.1.poll_next_unpin(cx) {
            Poll::Ready(Some(found)) => Poll::Ready(found),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
