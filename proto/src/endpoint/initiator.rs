//! Sessions that we ask for.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p_identity::PeerId;
use rand::Rng;

use super::{Endpoint, check_connect, lifecycle::is_temporary};
use crate::{
    ControlStreamId, SessionId, VirtualConnectionId, backoff,
    command::Command,
    control_streams::ControlStream,
    event::{FailureReason, Phase, SessionRole},
    nat::strategy::NatProfile,
    outbox::Refusal,
    session::{Answered, CoordinatorRequest, InitiatorState, Key, Lookup, ReplyState, Session},
    wire::{
        frame::{Frame, MAX_FIRST_FLIGHT_DATAGRAMS, PunchAnswer, PunchMeNow, PunchRequest, RejectReason},
        keys::{FlightBinding, ProbeKeys, ProbeSecret},
    },
};

/// Coordinators that an attempt asks while nothing is heard of the peer although one of them has answered.
pub(super) const MAX_ASKED: usize = 3;
/// Coordinators that are asked in place of one that does not know the peer. So few round trips find the one that does among many.
const ASKED_INSTEAD: usize = 2;
/// Silence of a peer after which another coordinator is asked, too. One that is slow or lies costs a dial this much.
/// It is longer than the session of a pair takes that is not on opposite sides of the earth, so that most ask one coordinator.
pub(super) const STAGGER: Duration = Duration::from_millis(250);
/// How long nothing is heard of a peer before coordinators are asked again, while the attempt goes on.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Comparison of an answer with the one in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// It leads to the same addresses of the same process.
    Same,
    /// It is newer, and says something else.
    Newer,
    /// It is older, and says something else.
    Stale,
}

impl Endpoint {
    /// Begins a session with `peer` for a dial, or joins the one that has no connection yet, whoever began it. Coordinators are
    /// asked again for a peer that they do not know, until the dial is [`cancelled`](Self::cancel) or
    /// [`Config::lookup_timeout`](crate::config::Config::lookup_timeout) has passed.
    ///
    /// # Errors
    ///
    /// [`FailureReason::DialSelf`] and [`FailureReason::TooManySessions`]; no session begins then.
    pub fn connect(&mut self, peer: PeerId, now: Instant) -> Result<(), FailureReason> {
        let key = self.want(peer, now)?;
        let until = now + self.settings.lookup_timeout;
        if let Some(session) = self.sessions.get_mut(key) {
            session.look_up_until(until);
            if session.phase == Phase::Discovery && session.flow.is_none() && !session.awaits_turn() {
                session.deadline = session.deadline.max(Some(until));
            }
        }
        self.sessions.reschedule(key);
        Ok(())
    }

    /// As [`connect`](Self::connect), where no dial waits: the peer is connected over a relay. If no coordinator knows it, the
    /// session fails at once.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    pub fn upgrade(&mut self, peer: PeerId, now: Instant) -> Result<(), FailureReason> {
        self.want(peer, now).map(drop)
    }

    fn want(&mut self, peer: PeerId, now: Instant) -> Result<Key, FailureReason> {
        if let Some(key) = self.sessions.pending_with(&peer) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.wanted = true;
            }
            return Ok(key);
        }
        check_connect(self, &peer)?;
        let id = self.new_session_id();
        let session = Session::new(peer, id, SessionRole::Initiator, Phase::Discovery, now);
        let key = self.sessions.insert(session);
        self.sessions.name(key, id);
        self.begin_attempt(key);
        self.enter_first(key, now);
        self.prepare(key, None, now);
        self.sessions.reschedule(key);
        Ok(key)
    }

    /// Connected coordinators that were named for `peer` and that this peer is not registered with.
    fn named_for(&self, peer: &PeerId) -> Vec<(PeerId, ControlStreamId)> {
        let named = self.named.get(peer).into_iter().flatten();
        named
            .filter(|coordinator| !self.registration_client.contains(coordinator))
            .filter_map(|coordinator| Some((*coordinator, self.links.best_of(coordinator)?)))
            .collect()
    }

    /// Connected coordinators that may be asked for the peer of a session, the best first: those of this peer and those that were
    /// named for the other one alternate. Equally good ones come in an order of this pair's own, so that pairs share them.
    fn coordinators_for(&self, session: &Session) -> Vec<(PeerId, ControlStreamId)> {
        let place = |coordinator: &PeerId| {
            let mut hasher = DefaultHasher::new();
            (self.peer, session.peer, coordinator).hash(&mut hasher);
            hasher.finish()
        };
        let mut ranked = self.registration_client.ranked();
        ranked.sort_by_key(|(rank, coordinator, _)| (*rank, place(coordinator)));
        let mut own: Vec<_> = ranked.into_iter().map(|(_, coordinator, link)| (coordinator, link)).collect();
        let mut named = self.named_for(&session.peer);
        named.sort_by_key(|(coordinator, _)| place(coordinator));
        // Another attempt begins with another coordinator.
        for coordinators in [&mut own, &mut named] {
            let shift = session.failures as usize % coordinators.len().max(1);
            coordinators.rotate_left(shift);
        }
        let longest = own.len().max(named.len());
        let alternating = (0..longest).flat_map(|place| [own.get(place), named.get(place)]);
        alternating.flatten().copied().collect()
    }

    /// Returns true if a coordinator takes a request of this session now. Half of each allowance is left for requests that are not
    /// repeated.
    fn takes_now(&self, coordinator: &PeerId, session: &Session, now: Instant) -> bool {
        match session.lookup.as_ref().is_some_and(|lookup| lookup.misses > 0) {
            true => self.pacing.has_spare(coordinator, now),
            false => self.pacing.next(coordinator, now) <= now,
        }
    }

    /// Begins an attempt once a coordinator takes its request: `first`, or else the one that does soonest. Without any coordinator
    /// the session waits for one.
    fn prepare(&mut self, key: Key, first: Option<&PeerId>, now: Instant) {
        let Some(session) = self.sessions.get(key) else { return };
        let coordinators = self.coordinators_for(session);
        let soonest = coordinators.iter().min_by_key(|(coordinator, _)| {
            let is_other = first.is_some_and(|first| first != coordinator);
            (is_other, !self.takes_now(coordinator, session, now), self.pacing.next(coordinator, now))
        });
        let Some((coordinator, _)) = soonest.copied() else { return };
        let at = self.pacing.next(&coordinator, now);
        self.pacing.charge(coordinator, now);
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.earlier_mut().turn = Some(coordinator);
        if at <= now {
            self.open(key, now);
        } else {
            session.deadline = Some(at);
        }
    }

    pub(super) fn new_session_id(&mut self) -> SessionId {
        SessionId(self.rng.random())
    }

    pub(super) fn new_flow(&mut self) -> VirtualConnectionId {
        let flow = VirtualConnectionId(self.next_flow);
        self.next_flow += 1;
        flow
    }

    /// Has the path layer make a first flight.
    pub(super) fn open(&mut self, key: Key, now: Instant) {
        let flow = self.new_flow();
        let secret = ProbeSecret::new(self.rng.random());
        let binding = FlightBinding::new(&self.peer, &secret.public());
        let Some(session) = self.sessions.get_mut(key) else { return };
        let timeout = match session.phase {
            Phase::Discovery => self.settings.phase_timeouts.discovery,
            _ => self.settings.coordination_timeout,
        };
        session.deadline = Some(now + timeout);
        session.opening = Some(Box::new(InitiatorState {
            secret,
            first_flight: Vec::new(),
            asked: Vec::new(),
            asked_at: None,
            request_len: 0,
            ask_again: None,
            repeat_at: None,
            told: NatProfile::default(),
            used: None,
            unheard_key: session.earlier.as_ref().and_then(|earlier| earlier.unheard_key),
        }));
        let (peer, rtt) = (session.peer, session.earlier.as_ref().and_then(|earlier| earlier.rtt));
        self.sessions.set_flow(key, Some(flow));
        self.out.command(Command::Connect { flow, peer, rtt, binding });
        self.sessions.reschedule(key);
    }

    /// The backoff is over.
    pub(super) fn try_again(&mut self, key: Key, now: Instant) {
        if let Some(session) = self.sessions.get_mut(key)
            && let Some(Lookup { until, misses, missed: Some(missed) }) = session.lookup.as_deref().copied()
        {
            if now >= until {
                return self.fail(key, missed, now);
            }
            let coordinators = self.sessions.get(key).map(|session| self.coordinators_for(session));
            let has_spare =
                |(coordinator, _): &(PeerId, ControlStreamId)| self.pacing.has_spare(coordinator, now);
            if coordinators.is_some_and(|all| !all.is_empty() && !all.iter().any(has_spare)) {
                let delay = backoff::lookup_delay(misses, &mut self.rng);
                if let Some(session) = self.sessions.get_mut(key) {
                    session.deadline = Some(until.min(now + delay));
                }
                return self.sessions.reschedule(key);
            }
        }
        self.try_with(key, None, now);
    }

    /// Begins another attempt, in which `first` is asked first.
    fn try_with(&mut self, key: Key, first: Option<&PeerId>, now: Instant) {
        self.begin_attempt(key);
        self.prepare(key, first, now);
        let Some(session) = self.sessions.get(key) else { return };
        if !session.awaits_turn() && session.flow.is_none() {
            self.enter(key, Phase::Discovery, now);
        }
        self.sessions.reschedule(key);
    }

    /// A coordinator is connected: sessions that wait for one, or for one that knows the peer, go on.
    pub(super) fn coordinator_arrived(&mut self, coordinator: &PeerId, now: Instant) {
        for key in self.sessions.keys() {
            if !self.sessions.get(key).is_some_and(|session| self.may_ask(coordinator, &session.peer)) {
                continue;
            }
            let Some(session) = self.sessions.get_mut(key) else { continue };
            let is_resting = session.is_resting();
            if let Some(lookup) = session.lookup.as_mut().filter(|lookup| is_resting && lookup.misses > 0) {
                // The peer likely registers there within the next moments.
                lookup.misses = 1;
                self.try_with(key, Some(coordinator), now);
                continue;
            }
            if session.phase == Phase::Coordination
                && session.opening.as_ref().is_some_and(|opening| opening.asked_at.is_some())
            {
                self.ask_others(key, |other| other == coordinator, 1, now);
            }
            let Some(session) = self.sessions.get(key).filter(|s| s.phase == Phase::Discovery) else {
                continue;
            };
            match (&session.opening, session.flow) {
                (Some(opening), Some(_)) if !opening.first_flight.is_empty() => self.ask(key, now),
                (_, None) if !session.awaits_turn() => self.prepare(key, Some(coordinator), now),
                _ => {}
            }
            self.sessions.reschedule(key);
        }
    }

    /// The first flight of `flow` was captured: one or two datagrams, to travel inside `PUNCH_ME_NOW`.
    pub fn handle_first_flight(&mut self, flow: VirtualConnectionId, datagrams: Vec<Bytes>, now: Instant) {
        let Some(key) = self.sessions.of_flow(flow) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let awaited = matches!(session.phase, Phase::Discovery | Phase::Coordination);
        let Some(opening) = session.opening.as_mut().filter(|o| awaited && o.first_flight.is_empty()) else {
            return;
        };
        if datagrams.is_empty()
            || datagrams.len() > MAX_FIRST_FLIGHT_DATAGRAMS
            || datagrams.iter().any(Bytes::is_empty)
        {
            return self.fail(key, FailureReason::Handshake, now);
        }
        opening.first_flight = datagrams;
        self.ask(key, now);
        self.sessions.reschedule(key);
    }

    /// Sends `PUNCH_ME_NOW` to the coordinator whose turn it is, and to the best of the other kind: of those that were named for
    /// the peer, or of this peer's own.
    fn ask(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.opening.is_some()) else {
            return;
        };
        let turn = session.take_turn();
        let Some(session) = self.sessions.get(key) else { return };
        let coordinators = self.coordinators_for(session);
        let is_its_turn = |(id, _): &&(PeerId, _)| turn.as_ref() == Some(id);
        let reserved = coordinators.iter().find(is_its_turn).copied();
        let Some(first) = reserved.or(coordinators.first().copied()) else {
            // Back to waiting, with the flight at hand; only a retry is not in Discovery already.
            if session.phase != Phase::Discovery {
                self.enter(key, Phase::Discovery, now);
            }
            return;
        };
        let is_own = |id: &PeerId| self.registration_client.contains(id);
        let is_other_kind =
            |(id, _): &&(PeerId, _)| is_own(id) != is_own(&first.0) && self.takes_now(id, session, now);
        let second = coordinators.iter().find(is_other_kind).copied();
        if reserved.is_none() {
            self.pacing.charge(first.0, now);
        }
        if let Some((coordinator, _)) = second {
            self.pacing.charge(coordinator, now);
        }
        let told = self.traits();
        if let Some(opening) = self.sessions.get_mut(key).and_then(|session| session.opening.as_mut()) {
            opening.asked_at = Some(now);
            opening.repeat_at = Some(now + SILENCE_TIMEOUT);
            opening.told = told;
        }
        self.send_request(key, [Some(first), second].into_iter().flatten().collect(), now);
    }

    /// Sends `PUNCH_ME_NOW` of the attempt under way to these coordinators, with what we know of ourselves by now.
    fn send_request(&mut self, key: Key, coordinators: Vec<(PeerId, ControlStreamId)>, now: Instant) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some(opening) = &session.opening else { return };
        let loopback = coordinators
            .iter()
            .any(|(_, link)| self.links.get(*link).is_some_and(ControlStream::is_loopback));
        let request = PunchRequest {
            session: session.id,
            round: session.attempt,
            initiator: self.keypair.public().encode_protobuf().into(),
            responder: session.peer,
            lifetime: self.settings.coordination_timeout,
            probe_key: opening.secret.public(),
            candidates: self.network.candidates_for(loopback),
            nat: opening.told.encode(),
            first_flight: opening.first_flight.clone(),
        };
        // Only a key that cannot sign, or a flight that is no flight, fails here.
        let Ok(signature) = request.sign(&self.keypair) else {
            return self.fail(key, FailureReason::Handshake, now);
        };
        if session.phase == Phase::Discovery {
            self.enter(key, Phase::Coordination, now);
        }
        let Some(opening) = self.sessions.get_mut(key).and_then(|session| session.opening.as_mut()) else {
            return;
        };
        let punch = PunchMeNow { request, signature, observed: None };
        opening.request_len = punch.request_len();
        opening.ask_again = Some(now + STAGGER);
        for (peer, link) in coordinators {
            match opening.asked.iter_mut().find(|asked| asked.link == link) {
                Some(asked) => asked.again = true,
                None => {
                    opening.asked.push(CoordinatorRequest {
                        peer,
                        link,
                        standing: ReplyState::Pending,
                        again: false,
                        answer: None,
                    });
                }
            }
            self.out.frame(link, Frame::PunchMeNow(Box::new(punch.clone())));
        }
    }

    /// Nothing was heard of the peer for a while. A coordinator that has not been asked may answer sooner than those that were, or
    /// know better. To those that answered the peer may have told by now where it is, or they may see us elsewhere.
    pub(super) fn ask_again(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let is_unanswered = session.phase == Phase::Coordination || session.is_unanswered();
        let is_probing = matches!(session.phase, Phase::Synchronization | Phase::Punching);
        let Some(opening) = session.opening.as_mut().filter(|o| o.ask_again.is_some_and(|at| at <= now))
        else {
            return;
        };
        if !is_unanswered && !is_probing {
            opening.ask_again = None;
            return;
        }
        let repeat_at = opening.repeat_at.unwrap_or(now);
        let asks_another = is_unanswered || opening.asked.len() < MAX_ASKED;
        opening.ask_again = Some(if repeat_at > now { repeat_at } else { now + SILENCE_TIMEOUT });
        if asks_another && self.ask_others(key, |_| true, 1, now) {
            return;
        }
        if is_probing && repeat_at <= now {
            self.repeat_request(key, now);
        }
    }

    /// Asks coordinators again that were asked in this attempt, those first that answered.
    fn repeat_request(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some(opening) = &session.opening else { return };
        let has_answered = |link| {
            let answered = |asked: &&CoordinatorRequest| asked.standing == ReplyState::Answered;
            opening.asked.iter().filter(answered).any(|asked| asked.link == link)
        };
        let mut coordinators = self.coordinators_for(session);
        coordinators.retain(|(coordinator, _)| self.takes_now(coordinator, session, now));
        coordinators.sort_by_key(|(_, link)| !has_answered(*link));
        coordinators.truncate(MAX_ASKED);
        for (coordinator, _) in &coordinators {
            self.pacing.charge(*coordinator, now);
        }
        self.send_request(key, coordinators, now);
        if let Some(opening) = self.sessions.get_mut(key).and_then(|session| session.opening.as_mut()) {
            opening.repeat_at = Some(now + SILENCE_TIMEOUT);
            opening.ask_again = opening.repeat_at;
        }
    }

    /// Asks up to `count` coordinators that were not asked in this attempt. Returns true if any was.
    fn ask_others(
        &mut self,
        key: Key,
        may_ask: impl Fn(&PeerId) -> bool,
        count: usize,
        now: Instant,
    ) -> bool {
        let Some(session) = self.sessions.get(key) else { return false };
        let Some(opening) = &session.opening else { return false };
        let mut others = self.coordinators_for(session);
        others.retain(|(coordinator, link)| {
            may_ask(coordinator)
                && !opening.asked.iter().any(|asked| asked.link == *link)
                && self.takes_now(coordinator, session, now)
        });
        others.truncate(count);
        if others.is_empty() {
            return false;
        }
        for (coordinator, _) in &others {
            self.pacing.charge(*coordinator, now);
        }
        self.send_request(key, others, now);
        true
    }

    /// A coordinator says where the responder may be reached. Every answer counts that the responder signed, and of different
    /// ones the newest.
    pub(super) fn punch_answer(
        &mut self,
        (id, link): (ControlStreamId, &ControlStream),
        answer: PunchAnswer,
        now: Instant,
    ) {
        let key = self.sessions.of_id(answer.session);
        let Some((key, session)) = key.and_then(|key| Some((key, self.sessions.get_mut(key)?))) else {
            return self.out.refuse_frame();
        };
        let (peer, phase, attempt) = (session.peer, session.phase, session.attempt);
        let is_unanswered = session.is_unanswered();
        // A slow coordinator may answer a request that is no longer of interest.
        let Some(opening) = session.opening.as_mut().filter(|_| attempt == answer.round) else { return };
        let (asked_at, request_len, secret) = (opening.asked_at, opening.request_len, opening.secret.clone());
        let awaited = |a: &&mut CoordinatorRequest| {
            a.peer == link.peer && (a.standing == ReplyState::Pending || a.again)
        };
        let Some(asked) = opening.asked.iter_mut().find(awaited) else { return self.out.refuse_frame() };
        let again = std::mem::take(&mut asked.again);
        let keys = answer.verify(peer).ok().and_then(|()| {
            let theirs = &answer.registration.probe_key;
            ProbeKeys::derive(&secret, theirs, answer.session, &self.peer, &peer, SessionRole::Initiator).ok()
        });
        let Some(keys) = keys else {
            asked.standing = ReplyState::Forged;
            self.registration_client.answered_stale(&link.peer);
            self.out.refuse_frame();
            return self.turned_down(key, now);
        };
        asked.standing = ReplyState::Answered;
        let answered = Answered::new(&answer.registration, &answer.candidates);
        asked.answer = Some(answered.clone());
        if let Some(lookup) = &mut session.lookup {
            (lookup.misses, lookup.missed) = (0, None);
        }
        self.out.counters.coordinations += 1;
        self.out.counters.coordination_time +=
            asked_at.map(|at| now.saturating_duration_since(at)).unwrap_or_default();
        self.outrun(key, &link.peer);
        let news = self.compare(key, &link.peer, answered);
        if phase == Phase::Connected {
            // The responder was faster than its coordinator. Its path is known by QUIC packets, and can be validated now.
            if is_unanswered || matches!(news, News::Newer) {
                self.sessions.set_keys(key, Some(keys));
                self.form_checklist(key, answer.candidates, link, answer.observed, request_len, now);
                self.poll_session(key, now);
            }
            return;
        }
        let nat = answer.registration.nat;
        let coordination = asked_at.map(|at| now.saturating_duration_since(at));
        let (candidates, observed) = (answer.candidates, answer.observed);
        match news {
            _ if phase == Phase::Coordination => {
                self.sessions.set_keys(key, Some(keys));
                self.enter(key, Phase::Synchronization, now);
                self.form_checklist(key, candidates, link, observed, request_len, now);
                self.plan_search(key, (id, link), &nat, coordination, now);
                self.poll_session(key, now);
            }
            // The peer itself was heard.
            _ if !self.is_silent(key) => {}
            News::Newer => {
                self.peer_renewed(key, keys, now);
                self.replace_targets(key, candidates, link, observed, now);
                self.plan_search_anew(key, (id, link), &nat, coordination, now);
                self.poll_session(key, now);
            }
            News::Same => {
                self.extend_targets(key, candidates, link, observed, now);
                if again {
                    self.retarget_search(key, observed, now);
                }
                self.poll_session(key, now);
            }
            News::Stale => {}
        }
    }

    /// A coordinator has answered: those that were asked before it and are silent lose rank.
    fn outrun(&mut self, key: Key, coordinator: &PeerId) {
        let Some(opening) = self.sessions.get(key).and_then(|session| session.opening.as_ref()) else {
            return;
        };
        let earlier = opening.asked.iter().take_while(|asked| asked.peer != *coordinator);
        for slow in earlier.filter(|asked| asked.standing == ReplyState::Pending) {
            self.registration_client.answered_stale(&slow.peer);
        }
    }

    /// Compares an answer of `coordinator` with that in use, and takes it into use if it is newer. Coordinators whose answers are
    /// out of date lose rank.
    fn compare(&mut self, key: Key, coordinator: &PeerId, answered: Answered) -> News {
        let session = self.sessions.get_mut(key);
        let Some(opening) = session.and_then(|session| session.opening.as_mut()) else { return News::Stale };
        let agrees = opening.used.as_ref().is_none_or(|used| used.agrees_with(&answered));
        let is_preferred = opening.prefers(&answered);
        if is_preferred {
            opening.used = Some(answered.clone());
        }
        match (agrees, is_preferred) {
            (true, _) => {
                self.registration_client.answered_current(coordinator);
                News::Same
            }
            (false, true) => {
                let is_outdated = |asked: &&CoordinatorRequest| {
                    asked.answer.as_ref().is_some_and(|earlier| !earlier.agrees_with(&answered))
                };
                let outdated = opening.asked.iter().filter(is_outdated);
                outdated.for_each(|asked| self.registration_client.answered_stale(&asked.peer));
                News::Newer
            }
            (false, false) => {
                self.registration_client.answered_stale(coordinator);
                News::Stale
            }
        }
    }

    /// The peer has another registration than that in use. With other keys it is another process: it knows nothing of the probes
    /// sent so far.
    fn peer_renewed(&mut self, key: Key, keys: ProbeKeys, now: Instant) {
        let known = self.sessions.get(key).and_then(|session| session.keys());
        if known.is_none_or(|known| known.local_tag() == keys.local_tag()) {
            return;
        }
        self.sessions.set_keys(key, Some(keys));
        if let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut()) {
            checklist.repeat(now);
        }
    }

    /// A coordinator, or the responder through it, says no; `false` if that answers nothing we asked.
    pub(super) fn punch_rejected(
        &mut self,
        from: &PeerId,
        (id, round): (SessionId, u32),
        refusal: Refusal,
        now: Instant,
    ) -> bool {
        let Some(key) = self.sessions.of_id(id) else { return false };
        let current = self.sessions.get_mut(key).filter(|session| session.attempt == round);
        // As in `punch_answer`, a slow coordinator is no offender.
        let Some(opening) = current.and_then(|session| session.opening.as_mut()) else { return true };
        let unanswered = |a: &&mut CoordinatorRequest| {
            a.again || matches!(a.standing, ReplyState::Pending | ReplyState::Answered)
        };
        let Some(asked) = opening.asked.iter_mut().filter(unanswered).find(|a| a.peer == *from) else {
            return false;
        };
        // What the responder has taken once it may find too often now; the attempt goes on.
        if std::mem::take(&mut asked.again) && refusal.reason != RejectReason::NotConnected {
            return true;
        }
        // The responder's own session to us goes on instead: its request is on its way here, so wait for that.
        if refusal.reason != RejectReason::Superseded {
            asked.standing = ReplyState::Rejected(refusal);
            self.turned_down(key, now);
        }
        true
    }

    /// A coordinator turned the request down, or cannot answer it any more: others are asked in its place.
    fn turned_down(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get(key) else { return };
        let is_heard = matches!(session.phase, Phase::Validation | Phase::Connected);
        if is_heard && !session.is_unanswered() || !self.ask_others(key, |_| true, ASKED_INSTEAD, now) {
            self.judge_standings(key, now);
        }
        self.sessions.reschedule(key);
    }

    /// The link to a coordinator is gone, and so is the chance that it answers.
    pub(super) fn coordinator_lost(&mut self, link: ControlStreamId, now: Instant) {
        for key in self.sessions.keys() {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            let Some(opening) = &mut session.opening else { continue };
            let pending = |a: &&mut CoordinatorRequest| a.link == link && a.standing == ReplyState::Pending;
            if let Some(asked) = opening.asked.iter_mut().find(pending) {
                asked.standing = ReplyState::Lost;
                self.turned_down(key, now);
            }
        }
    }

    /// Fails the attempt if no coordinator is left that may help.
    fn judge_standings(&mut self, key: Key, now: Instant) {
        // Once the peer itself was heard, a coordinator's word counts no more.
        let is_heard = |session: &&Session| matches!(session.phase, Phase::Validation | Phase::Connected);
        let unheard = self.sessions.get(key).filter(|session| !is_heard(session));
        let Some(opening) = unheard.and_then(|session| session.opening.as_ref()) else { return };
        let hopeful =
            |a: &CoordinatorRequest| matches!(a.standing, ReplyState::Pending | ReplyState::Answered);
        if opening.asked.iter().any(hopeful) {
            return;
        }
        let reasons = || {
            opening.asked.iter().filter_map(|a| match a.standing {
                ReplyState::Rejected(refusal) => Some(refusal.reason),
                _ => None,
            })
        };
        let retry_after = opening.asked.iter().filter_map(|a| match a.standing {
            ReplyState::Rejected(Refusal { reason, retry_after }) if is_temporary(reason) => {
                Some(retry_after)
            }
            _ => None,
        });
        let retry_after = retry_after.min().unwrap_or_default();
        let lost = opening.asked.iter().any(|a| a.standing == ReplyState::Lost);
        let forged = opening.asked.iter().any(|a| a.standing == ReplyState::Forged);
        let reason = match reasons().find(|reason| is_temporary(*reason)) {
            Some(reason) => FailureReason::Rejected(reason),
            None if forged => FailureReason::Forged,
            // The link will be up again before the next attempt, or Discovery finds out.
            None if lost => FailureReason::CoordinatorLost,
            None => {
                let is_unknown = |reason: &RejectReason| *reason == RejectReason::NotConnected;
                let reason = reasons().find(is_unknown).or_else(|| reasons().next_back());
                reason.map_or(FailureReason::CoordinationTimeout, FailureReason::Rejected)
            }
        };
        if !retry_after.is_zero()
            && let Some(session) = self.sessions.get_mut(key)
        {
            session.earlier_mut().retry_after = retry_after;
        }
        self.fail(key, reason, now);
    }
}
