//! Dials of the swarm that wait for a session.

use std::{
    collections::{BTreeMap, BTreeSet},
    task::{Context, Poll},
};

use futures::channel::oneshot;
use libp2p_identity::PeerId;

use crate::{
    core::event::FailureReason,
    transport::{Connection, Error, notice::DialRequest},
};

type Reply = oneshot::Sender<Result<(PeerId, Connection), Error>>;

/// Dials in flight, by peer. The session of a peer answers the first that still waits.
#[derive(Debug)]
pub(super) struct Dials {
    waiting: BTreeMap<PeerId, Vec<Reply>>,
    /// Why the sessions failed whose dials wait for what a relay can do.
    ended: BTreeMap<PeerId, FailureReason>,
    /// Sessions that the behaviour wants, whether or not a dial waits for them.
    upgrades: BTreeSet<PeerId>,
    /// Connections that the next dial of the peer gets.
    ready: BTreeMap<PeerId, Connection>,
    /// The behaviour decides when a dial whose session failed has failed.
    may_relay: bool,
}

impl Dials {
    pub(super) fn new(may_relay: bool) -> Self {
        Self {
            waiting: BTreeMap::new(),
            ended: BTreeMap::new(),
            upgrades: BTreeSet::new(),
            ready: BTreeMap::new(),
            may_relay,
        }
    }

    pub(super) fn add(&mut self, request: DialRequest) {
        self.waiting.entry(request.peer).or_default().push(request.reply);
    }

    /// Gives the connection to a dial that waits for it; without one, gives it back.
    pub(super) fn succeed(&mut self, peer: PeerId, connection: Connection) -> Result<(), Connection> {
        self.ended.remove(&peer);
        self.upgrades.remove(&peer);
        let mut outcome = Ok((peer, connection));
        for reply in self.waiting.remove(&peer).unwrap_or_default() {
            match reply.send(outcome) {
                Ok(()) => return Ok(()),
                Err(unsent) => outcome = unsent,
            }
        }
        outcome.map_or(Ok(()), |(_, connection)| Err(connection))
    }

    /// The session failed. If a relay may help, the dials go on waiting until the behaviour, which is told,
    /// releases them.
    pub(super) fn end(&mut self, peer: PeerId, reason: FailureReason) {
        self.upgrades.remove(&peer);
        if self.waiting.contains_key(&peer) {
            self.ended.insert(peer, reason);
            if !self.may_relay || reason == FailureReason::Cancelled {
                self.release(&peer);
            }
        }
    }

    /// Fails the dials whose session has failed, and drops a connection that nobody collects.
    pub(super) fn release(&mut self, peer: &PeerId) {
        self.ready.remove(peer);
        let Some(reason) = self.ended.remove(peer) else { return };
        for reply in self.waiting.remove(peer).unwrap_or_default() {
            // Whoever dialed may have lost interest; then nobody needs to know.
            let _ = reply.send(Err(Error::Traversal(reason)));
        }
    }

    /// The behaviour wants a session with `peer`, also when no dial waits for it.
    pub(super) fn upgrade(&mut self, peer: PeerId) {
        self.upgrades.insert(peer);
    }

    /// Keeps a connection for the dial that the behaviour is about to make.
    pub(super) fn keep(&mut self, peer: PeerId, connection: Connection) {
        self.ready.insert(peer, connection);
    }

    /// Answers a dial with the connection that is kept for it; without one, gives it back.
    pub(super) fn collect(&mut self, request: DialRequest) -> Option<DialRequest> {
        let Some(connection) = self.ready.remove(&request.peer) else { return Some(request) };
        // If the dial was dropped, the connection goes with it.
        let _ = request.reply.send(Ok((request.peer, connection)));
        None
    }

    /// Peers whose every dial was dropped, because the swarm got there by another address or gave up.
    pub(super) fn cancelled(&mut self, cx: &mut Context<'_>) -> Vec<PeerId> {
        for replies in self.waiting.values_mut() {
            replies.retain_mut(|reply| reply.poll_canceled(cx) == Poll::Pending);
        }
        let is_gone = |replies: &Vec<Reply>| replies.is_empty();
        let gone: Vec<_> =
            self.waiting.iter().filter(|(_, replies)| is_gone(replies)).map(|(peer, _)| *peer).collect();
        for peer in &gone {
            self.waiting.remove(peer);
            self.ended.remove(peer);
        }
        gone.into_iter().filter(|peer| !self.upgrades.contains(peer)).collect()
    }
}
