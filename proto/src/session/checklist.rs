//! The pairs of a session, when each is probed, and which one is selected (RFC 8445 §6.1.2, paced
//! for punching).
//!
//! Every pair is probed at 0, 33, 67, 133 ms … after its start, no two probes of a session leave
//! within 5 ms, and only a few pairs are in their opening burst at once. Answers and the
//! challenges that a challenge triggers do not wait.
//!
//! Lost probes are retried here: [`Checklist::poll`] sends a challenge again at the times of
//! [`SCHEDULE`], until the pair answers or fails. A request to a coordinator is repeated by
//! [`initiator`](super::initiator), and a failed attempt by [`lifecycle`](super::lifecycle).

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{
    Path, SocketId,
    event::SessionRole,
    probe_budget::Destination,
    rate_limit::Rate,
    session::pair::{Challenge, MAX_OUTSTANDING, MAX_TRIGGERED, Origin, Pair, SCHEDULE, State},
};

/// The least time between two probes of a session that were not asked for (RFC 8445 §14.2).
pub(crate) const PACE: Duration = Duration::from_millis(5);
/// Unanswered probes, the last of them 67 ms after the first, before a peer that may have seen us
/// move is notified.
const UNHEARD: u8 = 3;
/// Pairs that the peer's own probes may add.
const MAX_PEER_REFLEXIVE: usize = 8;
/// Pairs of one session, and so its paths. 28 candidates with two sockets, and what the
/// peer's probes add.
pub const MAX_PAIRS: usize = 64;
/// Pairs that are made of our sockets and the peer's candidates.
pub(crate) const MAX_FORMED: usize = MAX_PAIRS - MAX_PEER_REFLEXIVE;
/// Challenges answered in one session: the peer sends a dozen for each pair at most, and only
/// within seconds.
pub(crate) const CHALLENGE_RATE: Rate = Rate { interval: Duration::from_millis(10), burst: 100 };

/// The initiator tells the responder which path it selected, and a peer that moved reports its new
/// address, until that is answered.
#[derive(Debug, Clone, Copy)]
struct Nomination {
    sent: u8,
    started: Instant,
}

/// The flight of our QUIC server that waits for the peer to be heard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlightOnceHeard {
    /// The coordinator that passed the request on.
    pub(crate) coordinator: PeerId,
    /// Bytes that may go to an address to which none went before.
    pub(crate) budget: usize,
}

#[derive(Debug)]
pub(crate) struct Checklist {
    pairs: Vec<Pair>,
    role: SessionRole,
    burst: usize,
    /// Probes that may still be sent to paths that never answered.
    budget: u32,
    full_budget: u32,
    /// Probes that one destination may get which never answered.
    destination_budget: u32,
    /// Probes that each destination got before it answered.
    spent: BTreeMap<Destination, u32>,
    /// The coordinator on whose word our server flight went to an address from which nothing came
    /// yet.
    pub(crate) flight_vouched_by: Option<PeerId>,
    /// The server flight for the first announced address from which the peer is heard; `None` once
    /// that went.
    pub(crate) flight_once_heard: Option<FlightOnceHeard>,
    last_sent: Option<Instant>,
    pub(crate) selected: Option<Path>,
    /// Nominated by the peer before it was validated here.
    nominated: Option<Path>,
    nomination: Option<Nomination>,
    /// Our NAT gave up the mapping of the selected path, and it is not known yet whether the peer
    /// hears us over another one.
    remapped: bool,
    /// The path to which the session is to move as soon as it works.
    destination: Option<Path>,
}

/// Memory of an idle session of its checklist.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) path: Path,
    rtt: Duration,
}

/// A challenge to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) path: Path,
    pub(crate) data: [u8; 8],
    pub(crate) nominate: bool,
    /// The other end never answered.
    pub(crate) is_unproven: bool,
}

/// Consequences of an authentic challenge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Answer it.
    pub(crate) answer: bool,
    /// Challenge the path in turn.
    pub(crate) trigger: bool,
    /// The path was unknown and now is a pair.
    pub(crate) is_new: bool,
    /// A cap was met.
    pub(crate) capped: bool,
}

impl Checklist {
    /// `burst` pairs open at once; at most `max_pairs` pairs are probed for their whole schedule.
    pub(crate) fn new(role: SessionRole, burst: usize, max_pairs: usize) -> Self {
        let probes = max_pairs.saturating_mul(SCHEDULE.len());
        let budget = u32::try_from(probes).unwrap_or(u32::MAX);
        Self {
            pairs: Vec::new(),
            role,
            burst,
            budget,
            full_budget: budget,
            destination_budget: u32::MAX,
            spent: BTreeMap::new(),
            flight_vouched_by: None,
            flight_once_heard: None,
            last_sent: None,
            selected: None,
            nominated: None,
            nomination: None,
            remapped: false,
            destination: None,
        }
    }

    /// Gives each destination this many probes until it answers, from now on. The peer named the
    /// destinations.
    pub(crate) fn limit_each_destination(&mut self, probes: u32) {
        self.destination_budget = probes;
        self.spent.clear();
    }

    /// Returns true if the destination of `path` may get this number of probes more.
    pub(crate) fn affords(&self, path: Path, probes: u32) -> bool {
        let spent = self.spent.get(&path.remote.ip().into()).copied().unwrap_or(0);
        spent.saturating_add(probes) <= self.destination_budget
    }

    /// Other bytes went to the destination of `path`, in place of this number of probes.
    pub(crate) fn charge(&mut self, path: Path, probes: u32) {
        let spent = self.spent.entry(path.remote.ip().into()).or_default();
        *spent = spent.saturating_add(probes);
    }

    fn is_affordable(&self, pair: &Pair) -> bool {
        let spent = || self.spent.get(&pair.path.remote.ip().into()).copied().unwrap_or(0);
        pair.rtt.is_some() || (self.budget > 0 && spent() < self.destination_budget)
    }

    pub(crate) fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    fn get(&self, path: Path) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.path == path)
    }

    pub(crate) fn get_mut(&mut self, path: Path) -> Option<&mut Pair> {
        self.pairs.iter_mut().find(|pair| pair.path == path)
    }

    /// Returns true if an authentic probe came on this path.
    pub(crate) fn is_heard(&self, path: Path) -> bool {
        self.get(path).is_some_and(|pair| pair.heard)
    }

    /// Adds a pair, to be probed from `now` on; `false` if it is known.
    pub(crate) fn add(&mut self, path: Path, priority: u64, origin: Origin, now: Instant) -> bool {
        if self.get(path).is_some() {
            return false;
        }
        let pair = Pair {
            path,
            priority,
            origin,
            state: State::Waiting,
            sent: 0,
            triggered: 0,
            heard: false,
            permitted: false,
            started: now,
            rtt: None,
            outstanding: Vec::new(),
        };
        let place = self.pairs.partition_point(|other| {
            (other.origin != Origin::Observed, Reverse(other.priority))
                <= (origin != Origin::Observed, Reverse(priority))
        });
        self.pairs.insert(place, pair);
        true
    }

    /// Removes the pairs of a socket that is gone and returns their paths.
    pub(crate) fn remove_socket(&mut self, socket: SocketId) -> Vec<Path> {
        let gone: Vec<Path> = self.pairs.iter().map(|p| p.path).filter(|p| p.socket == socket).collect();
        self.pairs.retain(|pair| pair.path.socket != socket);
        if self.selected.is_some_and(|path| path.socket == socket) {
            self.selected = None;
            self.nomination = None;
        }
        gone
    }

    /// Removes the pairs from which nothing authentic came and whose remote address is out of date,
    /// and returns their paths.
    pub(crate) fn remove_unheard(&mut self, is_outdated: impl Fn(SocketAddr) -> bool) -> Vec<Path> {
        let is_gone = |pair: &Pair| !pair.heard && is_outdated(pair.path.remote);
        let gone = self.pairs.iter().filter(|pair| is_gone(pair)).map(|pair| pair.path).collect();
        self.pairs.retain(|pair| !is_gone(pair));
        gone
    }

    /// Probes every pair again: the local network changed. A selected path stays selected until it
    /// proves dead, and the peer, to which it looks like another one now, is asked to follow.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.budget = self.full_budget;
        self.spent.clear();
        self.nomination = self.selected.map(|_| Nomination { sent: 0, started: now });
        for pair in &mut self.pairs {
            pair.restart(now);
        }
    }

    /// Probes every pair again, within what is left of the budget: the probes sent so far told the
    /// peer nothing.
    pub(crate) fn repeat(&mut self, now: Instant) {
        self.pairs.iter_mut().for_each(|pair| pair.restart(now));
    }

    /// Probes the selected path again: the peer seems to have moved.
    pub(crate) fn recheck_selected(&mut self, now: Instant) {
        if let Some(pair) = self.selected.and_then(|path| self.get_mut(path))
            && pair.state == State::Succeeded
        {
            pair.restart(now);
        }
    }

    /// Probes the selected path again, whose other end sees this peer at another address now, or
    /// not at all.
    pub(crate) fn remapped(&mut self, now: Instant) {
        self.remapped = true;
        self.nomination = self.selected.map(|_| Nomination { sent: 0, started: now });
        self.recheck_selected(now);
    }

    /// Moves the session to `path` once that works. Of several paths from a fresh socket the peer
    /// may forget others sooner.
    pub(crate) fn move_to(&mut self, path: Path) {
        self.destination = Some(path);
    }

    /// Returns true if the peer must learn that this peer was [`remapped`](Self::remapped): it does
    /// not answer. Says so once.
    pub(crate) fn takes_unheard(&mut self) -> bool {
        let selected = self.selected.and_then(|path| self.get(path));
        let unanswered = selected.filter(|pair| pair.state != State::Succeeded).map_or(0, |pair| pair.sent);
        let unheard = self.remapped && unanswered >= UNHEARD;
        self.remapped &= self.is_in_doubt() && !unheard;
        unheard
    }

    /// Returns true if a probe must show first that the peer does not hear this peer.
    pub(crate) fn is_remapped(&self) -> bool {
        self.remapped
    }

    /// Returns true if a path is selected that may no longer work.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let selected = self.selected.and_then(|path| self.get(path));
        selected.is_some_and(|pair| pair.state != State::Succeeded)
    }

    /// Probes the pairs again that lead to `remote` and have failed.
    pub(crate) fn revive(&mut self, remote: SocketAddr, now: Instant) {
        let failed = |pair: &&mut Pair| pair.path.remote == remote && pair.state == State::Failed;
        self.pairs.iter_mut().filter(failed).for_each(|pair| pair.restart(now));
    }

    /// Returns true if nothing is left to probe.
    pub(crate) fn is_idle(&self) -> bool {
        self.next_due().is_none()
    }

    /// A list that begins with a path that works and is selected already.
    pub(crate) fn resume(mut self, known: Known, now: Instant) -> Self {
        self.add(known.path, 0, Origin::Announced, now);
        if let Some(pair) = self.get_mut(known.path) {
            pair.state = State::Succeeded;
            pair.heard = true;
            pair.rtt = Some(known.rtt);
        }
        self.selected = Some(known.path);
        self
    }

    /// Returns the memory for [`resume`](Self::resume), if a path is selected.
    pub(crate) fn known(&self) -> Option<Known> {
        let pair = self.get(self.selected?)?;
        Some(Known { path: pair.path, rtt: pair.rtt? })
    }

    /// Returns the time of the next [`poll`](Self::poll).
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let paced = self.last_sent.map(|at| at + PACE);
        let probe = self.next_probe().map(|(at, _)| paced.map_or(at, |paced| at.max(paced)));
        let failing = self.pairs.iter().filter_map(Pair::fails_at).min();
        [probe, failing].into_iter().flatten().min()
    }

    /// Returns the next probe and its time, pace aside.
    fn next_probe(&self) -> Option<(Instant, Next)> {
        // A pair that has nothing left to spend must not keep others from their turn.
        let opens = |pair: &&Pair| pair.is_opening() && self.is_affordable(pair);
        let opening = self.pairs.iter().filter(opens).count();
        let mut next: Option<(Instant, Next)> = self.nomination.and_then(|nomination| {
            let after = SCHEDULE.get(usize::from(nomination.sent))?;
            Some((nomination.started + Duration::from_millis(*after), Next::Nomination))
        });
        for (i, pair) in self.pairs.iter().enumerate().filter(|(_, pair)| self.is_affordable(pair)) {
            let due = match pair.state {
                State::Waiting if opening < self.burst => Some(pair.started),
                State::InProgress => pair.next_due(),
                _ => None,
            };
            if let Some(due) = due
                && next.is_none_or(|(at, _)| due < at)
            {
                next = Some((due, Next::Pair(i)));
            }
        }
        next
    }

    /// The next probe that is due, at most one. Also lets pairs fail whose time is over.
    pub(crate) fn poll(&mut self, now: Instant, data: [u8; 8]) -> Option<Due> {
        for pair in self.pairs.iter_mut().filter(|pair| pair.fails_at().is_some_and(|at| at <= now)) {
            pair.state = State::Failed;
            pair.outstanding = Vec::new();
        }
        if self.last_sent.is_some_and(|at| at + PACE > now) {
            return None;
        }
        let (_, next) = self.next_probe().filter(|(at, _)| *at <= now)?;
        self.last_sent = Some(now);
        match next {
            Next::Nomination => {
                let path = self.selected?;
                if let Some(nomination) = &mut self.nomination {
                    nomination.sent += 1;
                    if usize::from(nomination.sent) == SCHEDULE.len() {
                        self.nomination = None;
                    }
                }
                self.challenge(path, data, true, now)
            }
            Next::Pair(index) => {
                let pair = self.pairs.get_mut(index)?;
                if pair.state == State::Waiting {
                    pair.state = State::InProgress;
                    pair.started = now;
                }
                pair.sent += 1;
                let (path, is_unproven) = (pair.path, pair.rtt.is_none());
                if is_unproven {
                    self.budget -= 1;
                    *self.spent.entry(path.remote.ip().into()).or_default() += 1;
                }
                self.challenge(path, data, false, now)
            }
        }
    }

    fn challenge(&mut self, path: Path, data: [u8; 8], nominate: bool, now: Instant) -> Option<Due> {
        let pair = self.get_mut(path)?;
        if pair.outstanding.len() >= MAX_OUTSTANDING {
            pair.outstanding.remove(0);
        }
        pair.outstanding.push(Challenge { data, sent: now, nominate });
        Some(Due { path, data, nominate, is_unproven: pair.rtt.is_none() })
    }

    /// The challenge that an authentic one on `path` triggers at once (RFC 8445 §7.3.1.4).
    pub(crate) fn trigger(&mut self, path: Path, data: [u8; 8], now: Instant) -> Option<Due> {
        let pair = self.get_mut(path)?;
        pair.triggered += 1;
        if pair.state == State::Waiting {
            // It counts as the pair's first.
            pair.state = State::InProgress;
            pair.started = now;
            pair.sent = 1;
        }
        self.challenge(path, data, false, now)
    }

    /// Takes an authentic challenge from `path`.
    pub(crate) fn on_challenge(&mut self, path: Path, priority: u64, nominate: bool, now: Instant) -> Heard {
        let mut heard = Heard { answer: true, ..Heard::default() };
        if self.get(path).is_none() {
            let known = self.pairs.iter().filter(|pair| pair.origin == Origin::PeerReflexive).count();
            if known >= MAX_PEER_REFLEXIVE {
                return Heard { capped: true, ..Heard::default() };
            }
            heard.is_new = self.add(path, priority, Origin::PeerReflexive, now);
        }
        if nominate {
            self.nominated = Some(path);
        }
        if let Some(pair) = self.get_mut(path) {
            pair.heard = true;
            if pair.state == State::Failed {
                pair.restart(now);
            }
            heard.trigger = pair.state != State::Succeeded && pair.triggered < MAX_TRIGGERED;
        }
        heard
    }

    /// Takes an authentic response from `path`. If it answers a challenge sent on that very path,
    /// the path is validated (RFC 9000 §8.2.2) and this is its RTT, with whether it is the first.
    pub(crate) fn on_response(
        &mut self,
        path: Path,
        data: [u8; 8],
        now: Instant,
    ) -> Option<(Duration, bool)> {
        let selected = self.selected;
        let pair = self.get_mut(path)?;
        let index = pair.outstanding.iter().position(|challenge| challenge.data == data)?;
        let challenge = pair.outstanding.remove(index);
        let rtt = now.saturating_duration_since(challenge.sent);
        let first = pair.rtt.is_none();
        pair.rtt = Some(pair.rtt.map_or(rtt, |known| known.min(rtt)));
        pair.state = State::Succeeded;
        pair.heard = true;
        if challenge.nominate && selected == Some(path) {
            self.nomination = None;
        }
        Some((rtt, first))
    }

    /// Selects another path if there is reason to, and returns it.
    ///
    /// The first that is validated is selected by both sides at once. Later the initiator moves to
    /// a clearly better one. Both follow nominations, which the responder makes only if its address
    /// changed, and both leave a path that died. A session that is on its way to another path goes
    /// there whatever else works.
    pub(crate) fn reconsider(&mut self, now: Instant) -> Option<Path> {
        let current = self.selected.and_then(|path| self.get(path));
        let stays = current.is_some_and(|pair| !pair.is_dead());
        let nominated =
            self.nominated.filter(|path| self.get(*path).is_some_and(|pair| pair.state == State::Succeeded));
        let working = || self.pairs.iter().filter(|pair| pair.state == State::Succeeded);
        let moves_to = self.destination.filter(|path| working().any(|pair| pair.path == *path));
        let best = working().min_by_key(|p| p.rank());
        let next = match (self.role, moves_to.or(nominated)) {
            (_, Some(path)) => Some(path),
            (SessionRole::Responder, None) => best.map(|pair| pair.path).filter(|_| !stays),
            (SessionRole::Initiator, None) => best
                .filter(|best| !stays || current.is_some_and(|current| best.is_clearly_better(current)))
                .map(|pair| pair.path),
        };
        if nominated.is_some() {
            self.nominated = None;
        }
        if moves_to.is_some() {
            self.destination = None;
        }
        let next = next.filter(|path| self.selected != Some(*path))?;
        self.selected = Some(next);
        if self.role == SessionRole::Initiator || moves_to.is_some() {
            self.nomination = Some(Nomination { sent: 0, started: now });
        }
        Some(next)
    }

    /// The best path that is known to work in at least one direction, or is thought to.
    pub(crate) fn likeliest(&self) -> Option<Path> {
        let heard = || self.pairs.iter().find(|pair| pair.heard).or(self.pairs.first());
        self.selected.or_else(|| heard().map(|pair| pair.path))
    }

    /// The shortest RTT that was measured.
    pub(crate) fn best_rtt(&self) -> Option<Duration> {
        self.pairs.iter().filter_map(|pair| pair.rtt).min()
    }

    /// Returns true if the peer or its coordinator named `remote`.
    pub(crate) fn is_announced(&self, remote: SocketAddr) -> bool {
        self.pairs.iter().any(|pair| pair.path.remote == remote && pair.origin != Origin::PeerReflexive)
    }
}

#[derive(Debug, Clone, Copy)]
enum Next {
    Nomination,
    Pair(usize),
}

#[cfg(test)]
mod tests;
