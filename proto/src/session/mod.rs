//! What is kept of a session, and the table of all of them.

pub(crate) mod checklist;
pub(crate) mod pair;
pub(crate) mod port_search;
pub(crate) mod renewal;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p_identity::PeerId;

use crate::{
    ControlStreamId, Path, SessionId, SocketId, VirtualConnectionId,
    candidate::{Candidate, CandidateKind},
    event::{FailureReason, PathKind, Phase, SessionRole},
    nat::strategy::NatProfile,
    network_prefix::NetworkPrefix,
    outbox::Refusal,
    rate_limit::TokenBucket,
    session::{
        checklist::{Checklist, Known},
        pair::Origin,
        port_search::Search,
    },
    wire::{
        frame::Registration,
        keys::{ProbeKeys, ProbeSecret, TAG_LEN},
    },
};

/// A connection of this age was not denied by the other side's swarm, which takes a round trip.
pub const PROBATION: Duration = Duration::from_secs(2);

/// Names a session inside the endpoint. The name on the wire is of the initiator's choosing, and so not one to rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

/// How a coordinator that we asked stands to the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyState {
    Pending,
    Answered,
    Rejected(Refusal),
    Forged,
    Lost,
}

#[derive(Debug)]
pub(crate) struct CoordinatorRequest {
    pub(crate) peer: PeerId,
    pub(crate) link: ControlStreamId,
    pub(crate) standing: ReplyState,
    /// It was asked once more, because nothing is heard of the peer.
    pub(crate) again: bool,
    /// Its last answer.
    pub(crate) answer: Option<Answered>,
}

/// Registration of a peer as a coordinator answered it, signed by the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) generation: u64,
    pub(crate) probe_key: [u8; 32],
    addresses: Vec<SocketAddr>,
}

impl Answered {
    pub(crate) fn new(registration: &Registration, candidates: &[Candidate]) -> Self {
        let mut addresses: Vec<SocketAddr> = candidates.iter().map(|candidate| candidate.address).collect();
        addresses.sort_unstable();
        let Registration { generation, probe_key, .. } = *registration;
        Self { generation, probe_key, addresses }
    }

    /// Returns true if both lead to the same addresses of the same process. Each coordinator has a generation of its own.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        (self.probe_key, &self.addresses) == (other.probe_key, &other.addresses)
    }
}

/// What an initiator needs until it has an answer.
#[derive(Debug)]
pub(crate) struct InitiatorState {
    pub(crate) secret: ProbeSecret,
    pub(crate) first_flight: Vec<Bytes>,
    pub(crate) asked: Vec<CoordinatorRequest>,
    pub(crate) asked_at: Option<Instant>,
    /// Bytes of the request on the wire.
    pub(crate) request_len: usize,
    /// Time at which another coordinator is asked, or those that were asked are asked again, if nothing was heard of the peer.
    pub(crate) ask_again: Option<Instant>,
    /// Time from which on those that were asked may be asked again.
    pub(crate) repeat_at: Option<Instant>,
    /// What the responder was told of our NAT.
    pub(crate) told: NatProfile,
    /// The answer in use.
    pub(crate) used: Option<Answered>,
    /// The peer's probe key in an earlier attempt in which nothing was heard of the peer. Answers with any other key count more,
    /// whatever their generation: the clock of the peer may have been set back between two of its processes.
    pub(crate) unheard_key: Option<[u8; 32]>,
}

impl InitiatorState {
    /// Returns true if `answer` takes the place of the one in use.
    pub(crate) fn prefers(&self, answer: &Answered) -> bool {
        let rank = |answer: &Answered| (Some(answer.probe_key) != self.unheard_key, answer.generation);
        self.used.as_ref().is_none_or(|used| rank(answer) > rank(used))
    }
}

/// Whether the peer of a connected session is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Contact {
    #[default]
    Kept,
    /// It was asked, as it pauses; until the deadline.
    CoordinatorRequest,
    /// It has told, through a coordinator, where it is. The path that we know is challenged, until the deadline.
    Told,
    /// It has, and the path that we know does not work; until the deadline.
    Missing,
    /// Its connection is being closed.
    Lost,
}

/// How coordinators are asked again for a peer that they do not know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup {
    pub(crate) until: Instant,
    /// How often in a row they were asked in vain, and why last time.
    pub(crate) misses: u32,
    pub(crate) missed: Option<FailureReason>,
}

/// State that one attempt of a session leaves to the next.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// The shortest round-trip time that was measured.
    pub(crate) rtt: Option<Duration>,
    /// NAT reports of both sides in the last round, ours first.
    pub(crate) traits: Option<(NatProfile, NatProfile)>,
    /// The peer's probe key in the last attempt that a coordinator answered and in which nothing was heard of the peer.
    pub(crate) unheard_key: Option<[u8; 32]>,
    /// Time after which those that refused the last request take another; zero if they did not say.
    pub(crate) retry_after: Duration,
    /// The coordinator at which the first request of the attempt counts already, until the request is sent.
    pub(crate) turn: Option<PeerId>,
}

/// Addresses of the peer that an idle session remembers.
pub(crate) const MAX_KEPT: usize = 3;

/// An address of the peer that may be probed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemoteCandidate {
    pub(crate) remote: SocketAddr,
    /// RFC 8445 §5.1.2.
    pub(crate) priority: u32,
    pub(crate) origin: Origin,
    pub(crate) kind: PathKind,
}

impl RemoteCandidate {
    /// What the peer itself announced.
    pub(crate) fn announced(candidate: &Candidate) -> Self {
        let kind = match candidate.kind {
            CandidateKind::Host => PathKind::Host,
            CandidateKind::PortMapped => PathKind::PortMapped,
            CandidateKind::PeerReflexive => PathKind::PeerReflexive,
            CandidateKind::Predicted => PathKind::Predicted,
            CandidateKind::ServerReflexive | CandidateKind::Relayed => PathKind::ServerReflexive,
        };
        let Candidate { address: remote, priority, .. } = *candidate;
        Self { remote, priority, origin: Origin::Announced, kind }
    }
}

/// An attempt whose outcome is not counted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptState {
    /// There is none: the session rests, or its outcome is counted.
    None,
    /// The attempt has not led to a connection yet.
    InFlight,
    /// The attempt has led to a connection, which a swarm may deny.
    Probation,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) peer: PeerId,
    pub(crate) id: SessionId,
    pub(crate) role: SessionRole,
    /// The initiator's number of this attempt, from 0.
    pub(crate) attempt: u32,
    /// How many attempts of our own have failed.
    pub(crate) failures: u32,
    /// Somebody here waits for the connection.
    pub(crate) wanted: bool,
    /// Asking coordinators again for the peer, if a dial waits.
    pub(crate) lookup: Option<Box<Lookup>>,
    pub(crate) contact: Contact,
    pub(crate) phase: Phase,
    pub(crate) phase_since: Instant,
    pub(crate) started: Instant,
    pub(crate) attempt_state: AttemptState,
    /// When the phase is over, or the backoff between two attempts.
    pub(crate) deadline: Option<Instant>,
    pub(crate) flow: Option<VirtualConnectionId>,
    pub(crate) opening: Option<Box<InitiatorState>>,
    pub(crate) targets: Vec<RemoteCandidate>,
    pub(crate) checklist: Option<Box<Checklist>>,
    /// Instead of the checklist, as long as a connected session has nothing to probe.
    pub(crate) known: Option<Box<Known>>,
    /// For the answers to the peer's challenges.
    pub(crate) answers: TokenBucket,
    /// For the peer's words that it moved.
    pub(crate) moves: TokenBucket,
    /// The sequence number of our last word that we moved.
    pub(crate) moves_told: u32,
    /// The highest sequence number of the peer's words that it moved.
    pub(crate) moves_heard: u32,
    /// Findings of earlier attempts. A connected session keeps them only if the two sides need a search to meet again.
    pub(crate) earlier: Option<Box<Earlier>>,
    /// What follows if plain probes meet silence.
    pub(crate) search: Option<Box<Search>>,
    /// What a path is that the search of this attempt found.
    pub(crate) sought: Option<PathKind>,
    /// Sockets that were opened for the search and are still open.
    pub(crate) sockets: Vec<SocketId>,
    /// Sockets that the attempt under way may open, out of those of all searches: at most 256.
    pub(crate) reserved: u16,
    /// The network of an initiator that asked for it, if it is known.
    pub(crate) asked_from: Option<Box<NetworkPrefix>>,
    keys: Option<Box<ProbeKeys>>,
    scheduled: Option<Instant>,
}

impl Session {
    pub(crate) fn new(peer: PeerId, id: SessionId, role: SessionRole, phase: Phase, now: Instant) -> Self {
        Self {
            peer,
            id,
            role,
            attempt: 0,
            failures: 0,
            wanted: role == SessionRole::Initiator,
            contact: Contact::Kept,
            lookup: None,
            phase,
            phase_since: now,
            started: now,
            attempt_state: AttemptState::None,
            deadline: None,
            flow: None,
            opening: None,
            targets: Vec::new(),
            checklist: None,
            known: None,
            answers: TokenBucket::default(),
            moves: TokenBucket::default(),
            moves_told: 0,
            moves_heard: 0,
            earlier: None,
            search: None,
            sought: None,
            sockets: Vec::new(),
            reserved: 0,
            asked_from: None,
            keys: None,
            scheduled: None,
        }
    }

    pub(crate) fn keys(&self) -> Option<&ProbeKeys> {
        self.keys.as_deref()
    }

    /// Returns the findings of earlier attempts, to be added to.
    pub(crate) fn earlier_mut(&mut self) -> &mut Earlier {
        self.earlier.get_or_insert_with(Box::default)
    }

    /// Returns the time after which those that refused the last request take another, once.
    pub(crate) fn take_retry_after(&mut self) -> Duration {
        self.earlier.as_mut().map(|earlier| std::mem::take(&mut earlier.retry_after)).unwrap_or_default()
    }

    /// Returns true if an attempt has not led to a connection yet, and has not failed.
    pub(crate) fn is_in_flight(&self) -> bool {
        self.attempt_state == AttemptState::InFlight
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// When the attempt that led to the connection counts as a success, unless a swarm denies the connection before.
    pub(crate) fn probation_end(&self) -> Option<Instant> {
        (self.attempt_state == AttemptState::Probation).then(|| self.phase_since + PROBATION)
    }

    /// The path that carries the connection.
    pub(crate) fn selected(&self) -> Option<Path> {
        let selected = self.checklist.as_ref().and_then(|checklist| checklist.selected);
        selected.or(self.known.as_ref().map(|known| known.path))
    }

    /// Whether a path carries the connection that has answered its last challenges.
    pub(crate) fn has_path(&self) -> bool {
        match &self.checklist {
            Some(checklist) => checklist.selected.is_some() && !checklist.is_in_doubt(),
            None => self.known.is_some(),
        }
    }

    /// The time that the peer has for something that takes one round trip.
    pub(crate) fn time_for(&self, least: Duration, round_trips: u32) -> Duration {
        let measured = self.checklist.as_ref().and_then(|checklist| checklist.best_rtt());
        least.max(measured.unwrap_or_default() * round_trips)
    }

    /// Returns true if the connection was made before a coordinator said where the peer is.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.is_connected() && self.opening.is_some() && self.checklist.is_none()
    }

    /// Sets when a path must work again. A search under way keeps its time.
    pub(crate) fn reunite_by(&mut self, deadline: Instant) {
        let is_searching = self.search.as_ref().is_some_and(|search| search.running);
        self.deadline = self.deadline.filter(|_| is_searching).max(Some(deadline));
    }

    /// Returns true if both sides know each other through a coordinator, and no path works.
    pub(crate) fn is_missing(&self) -> bool {
        self.is_connected() && self.contact == Contact::Missing
    }

    /// Whether it waits between two attempts.
    pub(crate) fn is_resting(&self) -> bool {
        !self.is_in_flight() && !self.is_connected()
    }

    /// Returns true if the attempt begins once a coordinator takes its request.
    pub(crate) fn awaits_turn(&self) -> bool {
        self.flow.is_none() && self.earlier.as_ref().is_some_and(|earlier| earlier.turn.is_some())
    }

    /// Returns the coordinator at which the first request of the attempt counts already, once.
    pub(crate) fn take_turn(&mut self) -> Option<PeerId> {
        self.earlier.as_mut().and_then(|earlier| earlier.turn.take())
    }

    /// A dial waits: coordinators are asked again for the peer until then.
    pub(crate) fn look_up_until(&mut self, until: Instant) {
        let lookup = self.lookup.get_or_insert_with(|| Box::new(Lookup { until, misses: 0, missed: None }));
        lookup.until = lookup.until.max(until);
    }

    /// Whether it has paths to probe.
    pub(crate) fn is_probing(&self) -> bool {
        self.checklist.is_some() || self.known.is_some()
    }

    /// How the other end of a path of this session was found. What nobody named is the work of the search, if there was one.
    pub(crate) fn kind_of(&self, path: Path) -> PathKind {
        let named = self.targets.iter().find(|target| target.remote == path.remote);
        match named.filter(|_| !self.sockets.contains(&path.socket)) {
            Some(target) => target.kind,
            None => self.sought.unwrap_or(PathKind::PeerReflexive),
        }
    }

    /// Whether a coordinator has our request.
    pub(crate) fn has_asked(&self) -> bool {
        self.opening.as_ref().is_some_and(|opening| !opening.asked.is_empty())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let probe = self.checklist.as_ref().and_then(|checklist| checklist.next_due());
        let search = self.search.as_ref().and_then(|search| search.next_due());
        let ask = self.opening.as_ref().and_then(|opening| opening.ask_again);
        [self.deadline, self.probation_end(), probe, search, ask].into_iter().flatten().min()
    }
}

/// All sessions, with every way to find one.
#[derive(Debug, Default)]
pub(crate) struct Table {
    all: BTreeMap<Key, Box<Session>>,
    /// By a hash of the peer, which takes a tenth of the memory. Who makes hashes collide makes look-ups of its own
    /// sessions slower.
    by_peer: BTreeSet<(u64, Key)>,
    by_flow: BTreeMap<VirtualConnectionId, Key>,
    by_tag: BTreeMap<[u8; TAG_LEN], Key>,
    /// Only the names that we chose ourselves.
    by_id: BTreeMap<SessionId, Key>,
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

    pub(crate) fn insert(&mut self, session: Session) -> Key {
        let key = Key(self.next_key);
        self.next_key += 1;
        self.by_peer.insert((hash(&session.peer), key));
        self.all.insert(key, Box::new(session));
        key
    }

    /// Removes a session with every trace of it.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<Session>> {
        self.set_flow(key, None);
        self.set_keys(key, None);
        self.unname(key);
        let session = self.all.remove(&key)?;
        self.by_peer.remove(&(hash(&session.peer), key));
        if let Some(at) = session.scheduled {
            self.timers.remove(&(at, key));
        }
        Some(session)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Session> {
        self.all.get(&key).map(Box::as_ref)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Session> {
        self.all.get_mut(&key).map(Box::as_mut)
    }

    pub(crate) fn of_peer(&self, peer: &PeerId) -> impl Iterator<Item = Key> {
        let (peer, hash) = (*peer, hash(peer));
        self.by_peer
            .range((hash, Key(0))..=(hash, Key(u64::MAX)))
            .map(|(_, key)| *key)
            .filter(move |key| self.get(*key).is_some_and(|session| session.peer == peer))
    }

    /// The session with `peer` that has no connection yet; there is at most one.
    pub(crate) fn pending_with(&self, peer: &PeerId) -> Option<Key> {
        self.of_peer(peer).find(|key| self.get(*key).is_some_and(|session| !session.is_connected()))
    }

    pub(crate) fn of_flow(&self, flow: VirtualConnectionId) -> Option<Key> {
        self.by_flow.get(&flow).copied()
    }

    pub(crate) fn of_tag(&self, tag: [u8; TAG_LEN]) -> Option<Key> {
        self.by_tag.get(&tag).copied()
    }

    pub(crate) fn of_id(&self, id: SessionId) -> Option<Key> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn set_flow(&mut self, key: Key, flow: Option<VirtualConnectionId>) {
        let Some(session) = self.all.get_mut(&key) else { return };
        if let Some(old) = std::mem::replace(&mut session.flow, flow) {
            self.by_flow.remove(&old);
        }
        if let Some(new) = flow {
            self.by_flow.insert(new, key);
        }
    }

    pub(crate) fn set_keys(&mut self, key: Key, keys: Option<ProbeKeys>) {
        let Some(session) = self.all.get_mut(&key) else { return };
        if let Some(old) = &session.keys
            && self.by_tag.get(&old.local_tag()) == Some(&key)
        {
            self.by_tag.remove(&old.local_tag());
        }
        if let Some(new) = &keys {
            self.by_tag.insert(new.local_tag(), key);
        }
        session.keys = keys.map(Box::new);
    }

    /// Gives the session a name of ours, by which answers find it.
    pub(crate) fn name(&mut self, key: Key, id: SessionId) {
        self.unname(key);
        if let Some(session) = self.all.get_mut(&key) {
            session.id = id;
            self.by_id.insert(id, key);
        }
    }

    /// Answers no longer find the session.
    pub(crate) fn unname(&mut self, key: Key) {
        if let Some(session) = self.all.get(&key)
            && self.by_id.get(&session.id) == Some(&key)
        {
            self.by_id.remove(&session.id);
        }
    }

    /// Brings the timers up to date with what the session waits for.
    pub(crate) fn reschedule(&mut self, key: Key) {
        let Some(session) = self.all.get_mut(&key) else { return };
        let next = session.next_deadline();
        if session.scheduled == next {
            return;
        }
        if let Some(old) = std::mem::replace(&mut session.scheduled, next) {
            self.timers.remove(&(old, key));
        }
        if let Some(new) = next {
            self.timers.insert((new, key));
        }
    }

    /// Whether some session has formed a pair with a remote address like this.
    pub(crate) fn has_probed(&self, is_it: impl Fn(SocketAddr) -> bool) -> bool {
        let checklists = self.all.values().filter_map(|session| session.checklist.as_ref());
        checklists.flat_map(|checklist| checklist.pairs()).any(|pair| is_it(pair.path.remote))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Returns true if the time of this session has come.
    pub(crate) fn is_due(&self, key: Key, now: Instant) -> bool {
        self.get(key).and_then(|session| session.scheduled).is_some_and(|at| at <= now)
    }

    /// The sessions whose time has come.
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
