//! All sessions, with every way to find one.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use libp2p_identity::PeerId;

use crate::{
    SessionId, VirtualConnectionId,
    event::Event,
    network_prefix::NetworkPrefix,
    session::{Index, Key, Outcome, Session, Transition, context::Context},
    wire::keys::TAG_LEN,
};

/// Table of all sessions. An input goes through [`update`](Self::update), which keeps the indexes
/// and timers true.
#[derive(Debug, Default)]
pub(crate) struct Table {
    all: BTreeMap<Key, Box<Session>>,
    /// By a hash of the peer, which takes a tenth of the memory. A peer that makes hashes collide
    /// makes look-ups of its own sessions slower.
    by_peer: BTreeSet<(u64, Key)>,
    by_virtual_connection: BTreeMap<VirtualConnectionId, Key>,
    by_tag: BTreeMap<[u8; TAG_LEN], Key>,
    /// Only the names that this peer chose.
    by_id: BTreeMap<SessionId, Key>,
    /// Attempts under way as a responder, by the network of the initiator, oldest first.
    responding: BTreeMap<Option<NetworkPrefix>, BTreeSet<Key>>,
    /// Number of these attempts.
    responding_count: usize,
    timers: BTreeSet<(Instant, Key)>,
    next_key: u64,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.all.keys().copied().collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.all.values().map(Box::as_ref)
    }

    /// Returns the keys of the sessions of which this is true.
    pub(crate) fn keys_of(&self, is_meant: impl Fn(&Session) -> bool) -> Vec<Key> {
        let meant = self.all.iter().filter(|(_, session)| is_meant(session));
        meant.map(|(key, _)| *key).collect()
    }

    /// Adds a session under a new key.
    pub(crate) fn insert(&mut self, session: impl FnOnce(Key) -> Session) -> Key {
        let key = Key(self.next_key);
        self.next_key += 1;
        let session = Box::new(session(key));
        self.by_peer.insert((hash(&session.peer), key));
        self.index(key, &Index::default(), &session.index());
        self.all.insert(key, session);
        key
    }

    /// Gives an input to a session, and follows its transition.
    pub(crate) fn update(
        &mut self,
        cx: &mut Context<'_>,
        key: Key,
        input: impl FnOnce(&mut Session, &mut Context<'_>) -> Transition,
    ) {
        let Some(session) = self.all.get_mut(&key) else { return };
        let before = session.index();
        let transition = input(session, cx);
        let after = session.index();
        if before != after {
            self.index(key, &before, &after);
        }
        if let Transition::Done(outcome) = transition {
            self.remove(cx, key, outcome);
        }
    }

    /// Gives an input to each of these sessions.
    pub(crate) fn update_all(
        &mut self,
        cx: &mut Context<'_>,
        keys: Vec<Key>,
        mut input: impl FnMut(&mut Session, &mut Context<'_>) -> Transition,
    ) {
        for key in keys {
            self.update(cx, key, &mut input);
        }
    }

    /// Removes a session with every trace of it, and reports its failure.
    fn remove(&mut self, cx: &mut Context<'_>, key: Key, outcome: Outcome) {
        let Some(session) = self.all.remove(&key) else { return };
        self.index(key, &session.index(), &Index::default());
        self.by_peer.remove(&(hash(&session.peer), key));
        if let Outcome::Failed(reason) = outcome {
            let elapsed = cx.now.saturating_duration_since(session.course.started);
            let (peer, role, nats) = (session.peer, session.role, session.course.nats());
            cx.env.out.event(Event::Failed { peer, role, reason, elapsed, nats });
        }
    }

    fn index(&mut self, key: Key, before: &Index, after: &Index) {
        if before.virtual_connection != after.virtual_connection {
            before.virtual_connection.map(|old| self.by_virtual_connection.remove(&old));
            after.virtual_connection.map(|new| self.by_virtual_connection.insert(new, key));
        }
        if before.tag != after.tag {
            if let Some(old) = before.tag
                && self.by_tag.get(&old) == Some(&key)
            {
                self.by_tag.remove(&old);
            }
            after.tag.map(|new| self.by_tag.insert(new, key));
        }
        if before.id != after.id {
            if let Some(old) = before.id
                && self.by_id.get(&old) == Some(&key)
            {
                self.by_id.remove(&old);
            }
            after.id.map(|new| self.by_id.insert(new, key));
        }
        if before.deadline != after.deadline {
            before.deadline.map(|old| self.timers.remove(&(old, key)));
            after.deadline.map(|new| self.timers.insert((new, key)));
        }
        if before.responding != after.responding {
            if let Some(old) = before.responding
                && let Entry::Occupied(mut keys) = self.responding.entry(old)
            {
                self.responding_count -= 1;
                keys.get_mut().remove(&key);
                if keys.get().is_empty() {
                    keys.remove();
                }
            }
            if let Some(new) = after.responding {
                self.responding_count += 1;
                self.responding.entry(new).or_default().insert(key);
            }
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Session> {
        self.all.get(&key).map(Box::as_ref)
    }

    pub(crate) fn of_peer(&self, peer: &PeerId) -> impl Iterator<Item = &Session> {
        let (peer, hash) = (*peer, hash(peer));
        self.by_peer
            .range((hash, Key(0))..=(hash, Key(u64::MAX)))
            .filter_map(|(_, key)| self.get(*key))
            .filter(move |session| session.peer == peer)
    }

    /// Returns the session with `peer` that has no connection yet. There is at most one.
    pub(crate) fn pending_with(&self, peer: &PeerId) -> Option<&Session> {
        self.of_peer(peer).find(|session| !session.is_connected())
    }

    pub(crate) fn of_virtual_connection(&self, id: VirtualConnectionId) -> Option<Key> {
        self.by_virtual_connection.get(&id).copied()
    }

    pub(crate) fn of_tag(&self, tag: [u8; TAG_LEN]) -> Option<&Session> {
        self.get(*self.by_tag.get(&tag)?)
    }

    pub(crate) fn of_id(&self, id: SessionId) -> Option<&Session> {
        self.get(*self.by_id.get(&id)?)
    }

    /// Returns the number of attempts under way as a responder.
    pub(crate) fn responding(&self) -> usize {
        self.responding_count
    }

    /// Returns the attempts under way as a responder for the network that has most of them, oldest
    /// first; `None` if that is hardly more than `network` has.
    pub(crate) fn greatest_share(&self, network: Option<NetworkPrefix>) -> Option<&BTreeSet<Key>> {
        let own = self.responding.get(&network).map_or(0, BTreeSet::len);
        self.responding.values().max_by_key(|keys| keys.len()).filter(|keys| keys.len() > own + 1)
    }

    /// Returns true if a session has formed a pair with this remote address, at any port if none is
    /// given.
    pub(crate) fn has_probed(&self, ip: IpAddr, port: Option<u16>) -> bool {
        let is_it = |remote: SocketAddr| remote.ip() == ip && port.is_none_or(|port| port == remote.port());
        let checklists = self.iter().filter_map(|session| session.paths.checklist.as_ref());
        checklists.flat_map(|checklist| checklist.pairs()).any(|pair| is_it(pair.path.remote))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Returns the sessions whose time has come.
    pub(crate) fn due(&self, now: Instant) -> Vec<Key> {
        self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, key)| *key).collect()
    }
}

fn hash(peer: &PeerId) -> u64 {
    let mut hasher = DefaultHasher::new();
    peer.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;
    use crate::{
        SocketId,
        session::{MAX_KEPT, RemoteCandidate, checklist::Known},
        wire::keys::ProbeKeys,
    };

    #[test]
    fn an_idle_connected_session_costs_at_most_a_kibibyte() {
        let entries = size_of::<(Key, Box<Session>)>()
            + size_of::<(u64, Key)>()
            + size_of::<(VirtualConnectionId, Key)>()
            + size_of::<([u8; TAG_LEN], Key)>()
            + size_of::<(SessionId, Key)>();
        let sizes = [
            size_of::<Session>(),
            size_of::<ProbeKeys>(),
            size_of::<Known>(),
            MAX_KEPT * size_of::<RemoteCandidate>(),
            size_of::<SocketId>(),
            // Nodes of a B-tree are at least half full.
            2 * entries,
        ];
        assert!(sizes.iter().sum::<usize>() <= 1024, "{sizes:?}");
    }
}
