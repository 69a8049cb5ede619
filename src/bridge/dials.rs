//! Dials of the swarm that a session may answer.

use std::{collections::BTreeMap, sync::Arc};

use libp2p_identity::PeerId;

use crate::{
    offers::Offer,
    transport::{Connection, Error, notice::Reply},
};
use libp2p_punch_proto::event::FailureReason;

/// A dial with an offer. It lives until the behaviour learns of the end of the dial.
#[derive(Debug)]
enum Dial {
    /// The swarm has not polled the offered address yet: other addresses are ahead of it.
    Begun,
    /// The offered address is polled.
    Waiting { offer: Arc<Offer>, reply: Reply },
    /// The session failed before the swarm polled the offered address.
    Failed(FailureReason),
}

/// Dials and upgrades that want a connection with one peer.
#[derive(Debug, Default)]
struct Wanted {
    /// By the number of the offer.
    dials: BTreeMap<u16, Dial>,
    /// Dials of plain addresses of the peer. They take the connection if the offered address is not
    /// polled.
    joined: Vec<Reply>,
    /// Reason of the session's failure, while its dials wait for a relay.
    ended: Option<FailureReason>,
    /// The behaviour wants a session whether or not a dial has an offer.
    upgrade: bool,
}

/// Dials in flight, by peer. The session of a peer answers one waiting dial.
#[derive(Debug)]
pub(super) struct Dials {
    wanted: BTreeMap<PeerId, Wanted>,
    /// The behaviour decides on the end of a dial whose session failed.
    may_relay: bool,
}

impl Dials {
    pub(super) fn new(may_relay: bool) -> Self {
        Self { wanted: BTreeMap::new(), may_relay }
    }

    /// The swarm dials the peer. Returns false if that is known.
    pub(super) fn begin(&mut self, offer: &Offer) -> bool {
        let dials = &mut self.wanted.entry(offer.peer()).or_default().dials;
        let is_new = !dials.contains_key(&offer.number());
        dials.entry(offer.number()).or_insert(Dial::Begun);
        is_new
    }

    /// The swarm polls the offered address. Returns true if a session has to answer it.
    pub(super) fn wait(&mut self, offer: &Arc<Offer>, reply: Reply) -> bool {
        let wanted = self.wanted.entry(offer.peer()).or_default();
        if let Some(Dial::Failed(reason)) = wanted.dials.get(&offer.number()) {
            // The dial may have been dropped meanwhile.
            let _ = reply.send(Err(Error::Traversal(*reason)));
            return false;
        }
        wanted.dials.insert(offer.number(), Dial::Waiting { offer: offer.clone(), reply });
        wanted.ended.is_none()
    }

    /// A plain address of the peer is dialed, while a dial of the peer has an offer, which may not
    /// have begun yet.
    pub(super) fn join(&mut self, peer: PeerId, reply: Reply) {
        let joined = &mut self.wanted.entry(peer).or_default().joined;
        joined.retain(|reply| !reply.is_canceled());
        joined.push(reply);
    }

    /// Removes a dial that has ended, with any outcome. Returns true if no dial or upgrade needs a
    /// session with its peer any more.
    pub(super) fn remove(&mut self, offer: &Offer) -> bool {
        let Some(wanted) = self.wanted.get_mut(&offer.peer()) else { return false };
        let was_known = wanted.dials.remove(&offer.number()).is_some();
        if !wanted.dials.is_empty() {
            return false;
        }
        let is_unwanted = was_known && !wanted.upgrade;
        wanted.joined.clear();
        wanted.ended = None;
        if !wanted.upgrade {
            self.wanted.remove(&offer.peer());
        }
        is_unwanted
    }

    /// No session can begin for this dial.
    pub(super) fn refuse(&mut self, offer: &Offer, reason: FailureReason) {
        if let Some(wanted) = self.wanted.get_mut(&offer.peer())
            && let Some(Dial::Waiting { reply, .. }) =
                wanted.dials.insert(offer.number(), Dial::Failed(reason))
        {
            let _ = reply.send(Err(Error::Traversal(reason)));
        }
    }

    /// Gives the connection to a dial that waits for it, or else to a dial of a plain address;
    /// without either, returns it.
    pub(super) fn succeed(&mut self, peer: PeerId, connection: Connection) -> Option<Connection> {
        let Some(wanted) = self.wanted.get_mut(&peer) else { return Some(connection) };
        wanted.ended = None;
        wanted.upgrade = false;
        let untaken = wanted.give(peer, connection);
        if wanted.dials.is_empty() {
            self.wanted.remove(&peer);
        }
        untaken
    }

    /// Returns true if a dial or the behaviour wants a connection with `peer`.
    pub(super) fn wants(&self, peer: &PeerId) -> bool {
        self.wanted.get(peer).is_some_and(|wanted| wanted.upgrade || !wanted.dials.is_empty())
    }

    /// Returns a dial of the peer that waits for a session, and not for a relay.
    pub(super) fn waiting(&self, peer: &PeerId) -> Option<Arc<Offer>> {
        let wanted = self.wanted.get(peer).filter(|wanted| wanted.ended.is_none())?;
        wanted.dials.values().find_map(|dial| match dial {
            Dial::Waiting { offer, .. } => Some(offer.clone()),
            _ => None,
        })
    }

    /// The session failed. If a relay may help, the dials go on waiting until the behaviour, which
    /// gets a report, releases them.
    pub(super) fn end(&mut self, peer: PeerId, reason: FailureReason) {
        let Some(wanted) = self.wanted.get_mut(&peer) else { return };
        wanted.upgrade = false;
        wanted.ended = Some(reason);
        if wanted.dials.is_empty() {
            self.wanted.remove(&peer);
        } else if !self.may_relay || reason == FailureReason::Cancelled {
            self.release(&peer);
        }
    }

    /// Fails the dials whose session has failed.
    pub(super) fn release(&mut self, peer: &PeerId) {
        let Some(wanted) = self.wanted.get_mut(peer) else { return };
        let Some(reason) = wanted.ended.take() else { return };
        // Plain dials go on by themselves.
        wanted.joined.clear();
        for dial in wanted.dials.values_mut() {
            if let Dial::Waiting { reply, .. } = std::mem::replace(dial, Dial::Failed(reason)) {
                // The dial may have been dropped meanwhile.
                let _ = reply.send(Err(Error::Traversal(reason)));
            }
        }
    }

    /// The behaviour wants a session with `peer`, also when no dial waits for it.
    pub(super) fn upgrade(&mut self, peer: PeerId) {
        self.wanted.entry(peer).or_default().upgrade = true;
    }
}

impl Wanted {
    fn give(&mut self, peer: PeerId, mut connection: Connection) -> Option<Connection> {
        while let Some(reply) = self.next_reply() {
            match reply.send(Ok((peer, connection))) {
                // The dial was dropped.
                Err(Ok((_, unsent))) => connection = unsent,
                _ => return None,
            }
        }
        Some(connection)
    }

    fn next_reply(&mut self) -> Option<Reply> {
        let is_waiting = |dial: &Dial| matches!(dial, Dial::Waiting { .. });
        let number = self.dials.iter().find(|(_, dial)| is_waiting(dial)).map(|(number, _)| *number);
        match number.and_then(|number| self.dials.remove(&number)) {
            Some(Dial::Waiting { reply, .. }) => Some(reply),
            _ => self.joined.pop(),
        }
    }
}
