//! Procedures of an initiator: the first flight, requests to coordinators, and their answers.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p_identity::PeerId;
use rand::Rng;

use crate::{
    ControlStreamId, backoff,
    candidate::Candidate,
    command::Command,
    control_streams::ControlStream,
    event::{FailureReason, Phase},
    nat::strategy::NatProfile,
    outbox::Refusal,
    session::{
        Lookup, Progress, Session, Transition,
        context::{Context, MAX_ASKED},
        failure::is_temporary,
        paths::RemoteAddresses,
        searching::PlannedFrom,
    },
    wire::{
        frame::{
            Frame, MAX_FIRST_FLIGHT_DATAGRAMS, PunchAnswer, PunchMeNow, PunchRequest, Registration,
            RejectReason,
        },
        keys::{FlightBinding, ProbeKeys, ProbeSecret},
    },
};

/// Coordinators that are asked in place of one that does not know the peer. Few round trips then
/// find the one that does among many.
const ASKED_INSTEAD: usize = 2;
/// Silence of a peer after which another coordinator is asked, too. A coordinator that is slow or
/// lies costs a dial this much. It is longer than the session of a pair takes that is not on
/// opposite sides of the earth, so that most sessions ask one coordinator.
const STAGGER: Duration = Duration::from_millis(250);
/// Time without a sign of the peer after which coordinators are asked again, while the attempt goes
/// on.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Reply of a coordinator to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyState {
    Pending,
    Answered,
    Rejected(Refusal),
    Forged,
    Lost,
}

/// Request to one coordinator.
#[derive(Debug)]
pub(crate) struct CoordinatorRequest {
    pub(crate) peer: PeerId,
    pub(crate) stream: ControlStreamId,
    pub(crate) reply: ReplyState,
    /// The request was repeated, because nothing is heard of the peer.
    pub(crate) again: bool,
    /// The last answer.
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
    fn new(registration: &Registration, candidates: &[Candidate]) -> Self {
        let mut addresses: Vec<SocketAddr> = candidates.iter().map(|candidate| candidate.address).collect();
        addresses.sort_unstable();
        let Registration { generation, probe_key, .. } = *registration;
        Self { generation, probe_key, addresses }
    }

    /// Returns true if both lead to the same addresses of the same process. Each coordinator has a
    /// generation of its own.
    fn agrees_with(&self, other: &Self) -> bool {
        (self.probe_key, &self.addresses) == (other.probe_key, &other.addresses)
    }
}

/// State of an initiator until it has an answer.
#[derive(Debug)]
pub(crate) struct InitiatorState {
    secret: ProbeSecret,
    pub(super) first_flight: Vec<Bytes>,
    pub(super) asked: Vec<CoordinatorRequest>,
    asked_at: Option<Instant>,
    /// Bytes of the request on the wire.
    request_len: usize,
    /// Time at which another coordinator is asked, or those that were asked are asked again, if
    /// nothing was heard of the peer.
    pub(super) ask_again: Option<Instant>,
    /// Time from which on the coordinators that were asked may be asked again.
    repeat_at: Option<Instant>,
    /// The NAT profile that the responder was told.
    pub(super) told: NatProfile,
    /// The request named a mapped port of this peer.
    pub(super) told_mapped_port: bool,
    /// The answer in use.
    pub(super) used: Option<Answered>,
    /// The peer's probe key in an earlier attempt in which nothing was heard of the peer. Answers
    /// with any other key count more, whatever their generation: the clock of the peer may have
    /// been set back between two of its processes.
    unheard_key: Option<[u8; 32]>,
}

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

impl InitiatorState {
    fn new(secret: ProbeSecret, unheard_key: Option<[u8; 32]>) -> Self {
        Self {
            secret,
            first_flight: Vec::new(),
            asked: Vec::new(),
            asked_at: None,
            request_len: 0,
            ask_again: None,
            repeat_at: None,
            told: NatProfile::default(),
            told_mapped_port: false,
            used: None,
            unheard_key,
        }
    }

    /// Returns true if `answer` takes the place of the one in use.
    fn prefers(&self, answer: &Answered) -> bool {
        let rank = |answer: &Answered| (Some(answer.probe_key) != self.unheard_key, answer.generation);
        self.used.as_ref().is_none_or(|used| rank(answer) > rank(used))
    }

    fn has_asked(&self, stream: ControlStreamId) -> bool {
        self.asked.iter().any(|asked| asked.stream == stream)
    }

    fn has_answered(&self, stream: ControlStreamId) -> bool {
        self.asked.iter().any(|asked| asked.reply == ReplyState::Answered && asked.stream == stream)
    }

    /// Notes a request to these coordinators.
    fn note_requests(&mut self, coordinators: &[(PeerId, ControlStreamId)]) {
        for (peer, stream) in coordinators {
            match self.asked.iter_mut().find(|asked| asked.stream == *stream) {
                Some(asked) => asked.again = true,
                None => self.asked.push(CoordinatorRequest {
                    peer: *peer,
                    stream: *stream,
                    reply: ReplyState::Pending,
                    again: false,
                    answer: None,
                }),
            }
        }
    }

    /// Compares an answer of `coordinator` with that in use, and takes it into use if it is newer.
    /// Coordinators whose answers are out of date lose rank.
    fn compare(&mut self, cx: &mut Context<'_>, coordinator: &PeerId, answered: &Answered) -> News {
        let registrations = &mut cx.env.registrations;
        let agrees = self.used.as_ref().is_none_or(|used| used.agrees_with(answered));
        let is_preferred = self.prefers(answered);
        if is_preferred {
            self.used = Some(answered.clone());
        }
        match (agrees, is_preferred) {
            (true, _) => {
                registrations.answered_current(coordinator);
                News::Same
            }
            (false, true) => {
                let is_outdated = |asked: &&CoordinatorRequest| {
                    asked.answer.as_ref().is_some_and(|earlier| !earlier.agrees_with(answered))
                };
                let outdated = self.asked.iter().filter(is_outdated);
                outdated.for_each(|asked| registrations.answered_stale(&asked.peer));
                News::Newer
            }
            (false, false) => {
                registrations.answered_stale(coordinator);
                News::Stale
            }
        }
    }

    /// Lowers the rank of coordinators that were asked before this one, which has answered, and are
    /// silent.
    fn outrun(&self, cx: &mut Context<'_>, coordinator: &PeerId) {
        let earlier = self.asked.iter().take_while(|asked| asked.peer != *coordinator);
        for slow in earlier.filter(|asked| asked.reply == ReplyState::Pending) {
            cx.env.registrations.answered_stale(&slow.peer);
        }
    }

    /// Returns the shortest time after which a coordinator that refused the request may take
    /// another.
    fn retry_after(&self) -> Duration {
        let known = self.asked.iter().filter_map(|asked| match asked.reply {
            ReplyState::Rejected(refusal) if is_temporary(refusal.reason) => Some(refusal.retry_after),
            _ => None,
        });
        known.min().unwrap_or_default()
    }

    /// Returns the reason to fail if no coordinator is left that may help.
    fn check_replies(&self) -> Progress {
        let may_help =
            |asked: &CoordinatorRequest| matches!(asked.reply, ReplyState::Pending | ReplyState::Answered);
        if self.asked.iter().any(may_help) {
            return Ok(());
        }
        let reasons = || {
            self.asked.iter().filter_map(|asked| match asked.reply {
                ReplyState::Rejected(refusal) => Some(refusal.reason),
                _ => None,
            })
        };
        let has = |reply| self.asked.iter().any(|asked| asked.reply == reply);
        Err(match reasons().find(|reason| is_temporary(*reason)) {
            Some(reason) => FailureReason::Rejected(reason),
            None if has(ReplyState::Forged) => FailureReason::Forged,
            // The control stream will be up again before the next attempt, or Discovery finds out.
            None if has(ReplyState::Lost) => FailureReason::CoordinatorLost,
            None => {
                let is_unknown = |reason: &RejectReason| *reason == RejectReason::NotConnected;
                let reason = reasons().find(is_unknown).or_else(|| reasons().next_back());
                reason.map_or(FailureReason::CoordinationTimeout, FailureReason::Rejected)
            }
        })
    }
}

impl Session {
    /// Begins a new session as the initiator.
    pub(super) fn begin(&mut self, cx: &mut Context<'_>) -> Transition {
        self.course.begin_attempt(cx);
        self.course.enter_first(cx, self.current());
        self.prepare(cx, None);
        Transition::Stay
    }

    /// A dial waits for the session: coordinators are asked again for the peer until the time of a
    /// look-up has passed.
    pub(super) fn handle_dial(&mut self, cx: &mut Context<'_>) -> Transition {
        let until = cx.now + cx.env.config.lookup_timeout;
        self.course.look_up_until(until);
        if self.course.phase == Phase::Discovery && self.flow.is_none() && !self.awaits_turn() {
            self.course.deadline = self.course.deadline.max(Some(until));
        }
        Transition::Stay
    }

    /// Returns the connected coordinators that may be asked for the peer, the best first. Those of
    /// this peer and those that were named for the other one alternate. Equally good ones come in
    /// an order of this pair's own, so that pairs share them.
    fn coordinators(&self, cx: &Context<'_>) -> Vec<(PeerId, ControlStreamId)> {
        let place = |coordinator: &PeerId| {
            let mut hasher = DefaultHasher::new();
            (cx.env.identity.peer, self.peer, coordinator).hash(&mut hasher);
            hasher.finish()
        };
        let mut ranked = cx.env.registrations.ranked();
        ranked.sort_by_key(|(rank, coordinator, _)| (*rank, place(coordinator)));
        let mut own: Vec<_> = ranked.into_iter().map(|(_, coordinator, id)| (coordinator, id)).collect();
        let mut named = cx.named_for(&self.peer);
        named.sort_by_key(|(coordinator, _)| place(coordinator));
        // Another attempt begins with another coordinator.
        for coordinators in [&mut own, &mut named] {
            let shift = self.course.failures as usize % coordinators.len().max(1);
            coordinators.rotate_left(shift);
        }
        let longest = own.len().max(named.len());
        let alternating = (0..longest).flat_map(|place| [own.get(place), named.get(place)]);
        alternating.flatten().copied().collect()
    }

    /// Returns true if a coordinator takes a request of this session now. Half of each allowance is
    /// left for requests that are not repeated.
    fn takes_now(&self, cx: &Context<'_>, coordinator: &PeerId) -> bool {
        match self.course.lookup.as_ref().is_some_and(|lookup| lookup.misses > 0) {
            true => cx.shared.pacing.has_spare(coordinator, cx.now),
            false => cx.shared.pacing.next(coordinator, cx.now) <= cx.now,
        }
    }

    /// Begins an attempt once a coordinator takes its request: `first`, or else the one that does
    /// soonest. Without any coordinator the session waits for one.
    fn prepare(&mut self, cx: &mut Context<'_>, first: Option<&PeerId>) {
        let coordinators = self.coordinators(cx);
        let soonest = coordinators.iter().min_by_key(|(coordinator, _)| {
            let is_other = first.is_some_and(|first| first != coordinator);
            (is_other, !self.takes_now(cx, coordinator), cx.shared.pacing.next(coordinator, cx.now))
        });
        let Some((coordinator, _)) = soonest.copied() else { return };
        let at = cx.shared.pacing.next(&coordinator, cx.now);
        cx.shared.pacing.charge(coordinator, cx.now);
        self.course.earlier_mut().turn = Some(coordinator);
        if at <= cx.now {
            self.open(cx);
        } else {
            self.course.deadline = Some(at);
        }
    }

    /// Has the path layer make a first flight.
    pub(super) fn open(&mut self, cx: &mut Context<'_>) {
        let flow = cx.new_virtual_connection();
        let secret = ProbeSecret::new(cx.env.rng.random());
        let binding = FlightBinding::new(&cx.env.identity.peer, &secret.public());
        let timeout = match self.course.phase {
            Phase::Discovery => cx.env.config.phase_timeouts.discovery,
            _ => cx.env.config.coordination_timeout,
        };
        self.course.deadline = Some(cx.now + timeout);
        let unheard_key = self.course.earlier.as_ref().and_then(|earlier| earlier.unheard_key);
        self.opening = Some(Box::new(InitiatorState::new(secret, unheard_key)));
        self.flow = Some(flow);
        let rtt = self.course.earlier_rtt();
        cx.env.out.command(Command::Connect { flow, peer: self.peer, rtt, binding });
    }

    /// The back-off is over.
    pub(super) fn try_again(&mut self, cx: &mut Context<'_>) -> Progress {
        if let Some(Lookup { until, misses, missed: Some(missed) }) = self.course.lookup.as_deref().copied() {
            if cx.now >= until {
                return Err(missed);
            }
            let coordinators = self.coordinators(cx);
            let mut all = coordinators.iter();
            let has_spare = all.any(|(coordinator, _)| cx.shared.pacing.has_spare(coordinator, cx.now));
            if !coordinators.is_empty() && !has_spare {
                let delay = backoff::LOOKUP.delay(misses, &mut cx.env.rng);
                self.course.deadline = Some(until.min(cx.now + delay));
                return Ok(());
            }
        }
        self.try_with(cx, None);
        Ok(())
    }

    /// Begins another attempt, in which `first` is asked first.
    fn try_with(&mut self, cx: &mut Context<'_>, first: Option<&PeerId>) {
        self.course.begin_attempt(cx);
        self.prepare(cx, first);
        if !self.awaits_turn() && self.flow.is_none() {
            self.course.enter(cx, self.current(), Phase::Discovery);
        }
    }

    /// A coordinator is connected that this session may ask. A session that waits for one, or for
    /// one that knows the peer, goes on.
    pub(super) fn handle_coordinator(&mut self, cx: &mut Context<'_>, coordinator: &PeerId) -> Transition {
        let progress = self.use_coordinator(cx, coordinator);
        self.conclude(cx, progress)
    }

    fn use_coordinator(&mut self, cx: &mut Context<'_>, coordinator: &PeerId) -> Progress {
        let is_resting = self.is_resting();
        let lookup = self.course.lookup.as_mut();
        if let Some(lookup) = lookup.filter(|lookup| is_resting && lookup.misses > 0) {
            // The peer likely registers there within the next moments.
            lookup.misses = 1;
            self.try_with(cx, Some(coordinator));
            return Ok(());
        }
        if self.course.phase == Phase::Coordination
            && self.opening.as_ref().is_some_and(|opening| opening.asked_at.is_some())
        {
            self.ask_others(cx, |other| other == coordinator, 1)?;
        }
        if self.course.phase != Phase::Discovery {
            return Ok(());
        }
        match (&self.opening, self.flow) {
            (Some(opening), Some(_)) if !opening.first_flight.is_empty() => return self.ask(cx),
            (_, None) if !self.awaits_turn() => self.prepare(cx, Some(coordinator)),
            _ => {}
        }
        Ok(())
    }

    /// The first flight was captured: one or two datagrams, to travel inside `PUNCH_ME_NOW`.
    pub(super) fn handle_first_flight(&mut self, cx: &mut Context<'_>, datagrams: Vec<Bytes>) -> Transition {
        let awaited = matches!(self.course.phase, Phase::Discovery | Phase::Coordination);
        let opening = self.opening.as_mut();
        let Some(opening) = opening.filter(|opening| awaited && opening.first_flight.is_empty()) else {
            return Transition::Stay;
        };
        if datagrams.is_empty()
            || datagrams.len() > MAX_FIRST_FLIGHT_DATAGRAMS
            || datagrams.iter().any(Bytes::is_empty)
        {
            return self.fail(cx, FailureReason::Handshake);
        }
        opening.first_flight = datagrams;
        let progress = self.ask(cx);
        self.conclude(cx, progress)
    }

    /// Sends `PUNCH_ME_NOW` to the coordinator whose turn it is, and to the best of the other kind:
    /// of those that were named for the peer, or of this peer's own.
    fn ask(&mut self, cx: &mut Context<'_>) -> Progress {
        if self.opening.is_none() {
            return Ok(());
        }
        let turn = self.course.take_turn();
        let coordinators = self.coordinators(cx);
        let is_its_turn = |(id, _): &&(PeerId, _)| turn.as_ref() == Some(id);
        let reserved = coordinators.iter().find(is_its_turn).copied();
        let Some(first) = reserved.or(coordinators.first().copied()) else {
            // Back to waiting, with the flight at hand; only a retry is not in Discovery already.
            if self.course.phase != Phase::Discovery {
                self.course.enter(cx, self.current(), Phase::Discovery);
            }
            return Ok(());
        };
        let is_own = |id: &PeerId| cx.env.registrations.contains(id);
        let is_other_kind = |(id, _): &&(PeerId, _)| is_own(id) != is_own(&first.0) && self.takes_now(cx, id);
        let second = coordinators.iter().find(is_other_kind).copied();
        if reserved.is_none() {
            cx.shared.pacing.charge(first.0, cx.now);
        }
        if let Some((coordinator, _)) = second {
            cx.shared.pacing.charge(coordinator, cx.now);
        }
        let told = cx.nat_profile();
        if let Some(opening) = &mut self.opening {
            opening.asked_at = Some(cx.now);
            opening.repeat_at = Some(cx.now + SILENCE_TIMEOUT);
            opening.told = told;
            opening.told_mapped_port = cx.env.local.has_mapped_port();
        }
        let asked: Vec<_> = [Some(first), second].into_iter().flatten().collect();
        self.send_request(cx, &asked)
    }

    /// Sends `PUNCH_ME_NOW` of the attempt under way to these coordinators, with the candidates of
    /// this moment.
    fn send_request(&mut self, cx: &mut Context<'_>, coordinators: &[(PeerId, ControlStreamId)]) -> Progress {
        let Some(opening) = &self.opening else { return Ok(()) };
        let identity = &cx.env.identity;
        let loopback = coordinators
            .iter()
            .any(|(_, id)| cx.env.streams.get(*id).is_some_and(ControlStream::is_loopback));
        let request = PunchRequest {
            session: self.id,
            round: self.attempt,
            initiator: identity.keypair.public().encode_protobuf().into(),
            responder: self.peer,
            lifetime: cx.env.config.coordination_timeout,
            probe_key: opening.secret.public(),
            candidates: cx.env.local.candidates_for(loopback),
            nat: opening.told.encode(),
            first_flight: opening.first_flight.clone(),
        };
        // Only a key that cannot sign, or a flight that is no flight, fails here.
        let signature = request.sign(&identity.keypair).map_err(|_| FailureReason::Handshake)?;
        if self.course.phase == Phase::Discovery {
            self.course.enter(cx, self.current(), Phase::Coordination);
        }
        let Some(opening) = &mut self.opening else { return Ok(()) };
        let punch = PunchMeNow { request, signature, observed: None };
        opening.request_len = punch.request_len();
        opening.ask_again = Some(cx.now + STAGGER);
        opening.note_requests(coordinators);
        for (_, stream) in coordinators {
            cx.env.out.frame(*stream, Frame::PunchMeNow(Box::new(punch.clone())));
        }
        Ok(())
    }

    /// Asks coordinators if nothing was heard of the peer for a while. A coordinator that has not
    /// been asked may answer sooner than those that were, or know better. The peer may have told
    /// those that answered where it is by now, or they may see this peer elsewhere.
    pub(super) fn ask_again(&mut self, cx: &mut Context<'_>) -> Progress {
        let is_unanswered = self.course.phase == Phase::Coordination || self.is_unanswered();
        let is_silent = self.course.is_silent();
        let opening = self.opening.as_mut();
        let Some(opening) = opening.filter(|opening| opening.ask_again.is_some_and(|at| at <= cx.now)) else {
            return Ok(());
        };
        if !is_unanswered && !is_silent {
            opening.ask_again = None;
            return Ok(());
        }
        let repeat_at = opening.repeat_at.unwrap_or(cx.now);
        let asks_another = is_unanswered || opening.asked.len() < MAX_ASKED;
        opening.ask_again = Some(if repeat_at > cx.now { repeat_at } else { cx.now + SILENCE_TIMEOUT });
        if asks_another && self.ask_others(cx, |_| true, 1)? {
            return Ok(());
        }
        if is_silent && repeat_at <= cx.now {
            return self.repeat_request(cx);
        }
        Ok(())
    }

    /// Asks coordinators again that were asked in this attempt, those first that answered.
    fn repeat_request(&mut self, cx: &mut Context<'_>) -> Progress {
        let Some(opening) = &self.opening else { return Ok(()) };
        let mut coordinators = self.coordinators(cx);
        coordinators.retain(|(coordinator, _)| self.takes_now(cx, coordinator));
        coordinators.sort_by_key(|(_, stream)| !opening.has_answered(*stream));
        coordinators.truncate(MAX_ASKED);
        for (coordinator, _) in &coordinators {
            cx.shared.pacing.charge(*coordinator, cx.now);
        }
        self.send_request(cx, &coordinators)?;
        if let Some(opening) = &mut self.opening {
            opening.repeat_at = Some(cx.now + SILENCE_TIMEOUT);
            opening.ask_again = opening.repeat_at;
        }
        Ok(())
    }

    /// Asks up to `count` coordinators that were not asked in this attempt. Returns true if there
    /// is one.
    fn ask_others(
        &mut self,
        cx: &mut Context<'_>,
        may_ask: impl Fn(&PeerId) -> bool,
        count: usize,
    ) -> Result<bool, FailureReason> {
        let Some(opening) = &self.opening else { return Ok(false) };
        let mut others = self.coordinators(cx);
        others.retain(|(coordinator, stream)| {
            may_ask(coordinator) && !opening.has_asked(*stream) && self.takes_now(cx, coordinator)
        });
        others.truncate(count);
        if others.is_empty() {
            return Ok(false);
        }
        for (coordinator, _) in &others {
            cx.shared.pacing.charge(*coordinator, cx.now);
        }
        self.send_request(cx, &others)?;
        Ok(true)
    }

    /// A coordinator reports where the responder may be reached. Every answer counts that the
    /// responder signed, and of different ones the newest.
    pub(super) fn handle_answer(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        answer: PunchAnswer,
    ) -> Transition {
        let progress = self.take_answer(cx, from, answer);
        self.conclude(cx, progress)
    }

    fn take_answer(&mut self, cx: &mut Context<'_>, from: &ControlStream, answer: PunchAnswer) -> Progress {
        let (peer, phase, attempt) = (self.peer, self.course.phase, self.attempt);
        let is_unanswered = self.is_unanswered();
        // A slow coordinator may answer a request that is no longer of interest.
        let opening = self.opening.as_mut().filter(|_| attempt == answer.round);
        let Some(opening) = opening else { return Ok(()) };
        let (asked_at, request_len) = (opening.asked_at, opening.request_len);
        let awaited = |asked: &&mut CoordinatorRequest| {
            asked.peer == from.peer && (asked.reply == ReplyState::Pending || asked.again)
        };
        let Some(asked) = opening.asked.iter_mut().find(awaited) else {
            cx.env.out.refuse_frame();
            return Ok(());
        };
        let again = std::mem::take(&mut asked.again);
        let keys = cx.env.identity.keys_of(&opening.secret, &answer, peer);
        let Some(keys) = keys else {
            asked.reply = ReplyState::Forged;
            cx.env.registrations.answered_stale(&from.peer);
            cx.env.out.refuse_frame();
            return self.turned_down(cx);
        };
        asked.reply = ReplyState::Answered;
        let answered = Answered::new(&answer.registration, &answer.candidates);
        asked.answer = Some(answered.clone());
        if let Some(lookup) = &mut self.course.lookup {
            (lookup.misses, lookup.missed) = (0, None);
        }
        let coordination = asked_at.map(|at| cx.now.saturating_duration_since(at));
        cx.env.out.coordinated(coordination);
        opening.outrun(cx, &from.peer);
        let news = opening.compare(cx, &from.peer, &answered);
        let remote = RemoteAddresses { from, candidates: answer.candidates, observed: answer.observed };
        if phase == Phase::Connected {
            // The responder was faster than its coordinator. Its path is known by QUIC packets, and
            // can be validated now.
            if is_unanswered || news == News::Newer {
                self.keys = Some(Box::new(keys));
                self.paths.form_checklist(cx, self.current(), remote, request_len);
                self.poll(cx)?;
            }
            return Ok(());
        }
        let theirs = NatProfile::parse(&answer.registration.nat);
        let plan = PlannedFrom { stream: from, theirs, coordination };
        let observed = remote.observed;
        match news {
            _ if phase == Phase::Coordination => {
                self.keys = Some(Box::new(keys));
                self.course.enter(cx, self.current(), Phase::Synchronization);
                self.paths.form_checklist(cx, self.current(), remote, request_len);
                self.plan_search(cx, plan);
            }
            // The peer itself was heard.
            _ if !self.course.is_silent() => return Ok(()),
            News::Newer => {
                self.peer_renewed(cx, keys);
                self.paths.replace_targets(cx, self.current(), remote);
                self.plan_search_again(cx, plan);
            }
            News::Same => {
                self.paths.extend_targets(cx, self.current(), remote);
                if again {
                    self.search.retarget(observed, cx.now);
                }
            }
            News::Stale => return Ok(()),
        }
        self.poll(cx)
    }

    /// Takes the keys of another registration than that in use. With other keys the peer is another
    /// process: it knows nothing of the probes sent so far.
    fn peer_renewed(&mut self, cx: &Context<'_>, keys: ProbeKeys) {
        if self.keys().is_none_or(|known| known.local_tag() == keys.local_tag()) {
            return;
        }
        self.keys = Some(Box::new(keys));
        if let Some(checklist) = &mut self.paths.checklist {
            checklist.repeat(cx.now);
        }
    }

    /// Returns true if a rejection of this round by `from` answers a request of this session.
    pub(super) fn awaits_rejection(&self, from: &PeerId, round: u32) -> bool {
        // A slow coordinator that answers an earlier attempt is no offender.
        let Some(opening) = self.opening.as_ref().filter(|_| self.attempt == round) else { return true };
        opening.asked.iter().any(|asked| asked.may_be_rejected_by(from))
    }

    /// A coordinator, or the responder through it, rejects the request of this round.
    pub(super) fn handle_rejection(
        &mut self,
        cx: &mut Context<'_>,
        from: &PeerId,
        round: u32,
        refusal: Refusal,
    ) -> Transition {
        let opening = self.opening.as_mut().filter(|_| self.attempt == round);
        let asked = opening.and_then(|o| o.asked.iter_mut().find(|asked| asked.may_be_rejected_by(from)));
        let Some(asked) = asked else { return Transition::Stay };
        // A responder that has taken a request once may find it too often now; the attempt goes on.
        if std::mem::take(&mut asked.again) && refusal.reason != RejectReason::NotConnected {
            return Transition::Stay;
        }
        // The responder's own session with this peer goes on instead. Its request is on its way
        // here, so wait for that.
        if refusal.reason == RejectReason::Superseded {
            return Transition::Stay;
        }
        asked.reply = ReplyState::Rejected(refusal);
        let progress = self.turned_down(cx);
        self.conclude(cx, progress)
    }

    /// The control stream to a coordinator is gone, and so is the chance that the coordinator
    /// answers.
    pub(super) fn handle_coordinator_lost(
        &mut self,
        cx: &mut Context<'_>,
        stream: ControlStreamId,
    ) -> Transition {
        let Some(opening) = &mut self.opening else { return Transition::Stay };
        let pending =
            |asked: &&mut CoordinatorRequest| asked.stream == stream && asked.reply == ReplyState::Pending;
        let Some(asked) = opening.asked.iter_mut().find(pending) else { return Transition::Stay };
        asked.reply = ReplyState::Lost;
        let progress = self.turned_down(cx);
        self.conclude(cx, progress)
    }

    /// A coordinator turned the request down, or cannot answer it any more: others are asked in its
    /// place. Fails the attempt if no coordinator is left that may help.
    fn turned_down(&mut self, cx: &mut Context<'_>) -> Progress {
        // Once the peer itself was heard, the word of a coordinator counts no more.
        let is_heard = matches!(self.course.phase, Phase::Validation | Phase::Connected);
        let asks_others = !is_heard || self.is_unanswered();
        if asks_others && self.ask_others(cx, |_| true, ASKED_INSTEAD)? || is_heard {
            return Ok(());
        }
        let Some(opening) = &self.opening else { return Ok(()) };
        let progress = opening.check_replies();
        let retry_after = opening.retry_after();
        if progress.is_err() && !retry_after.is_zero() {
            self.course.earlier_mut().retry_after = retry_after;
        }
        progress
    }
}

impl CoordinatorRequest {
    fn may_be_rejected_by(&self, from: &PeerId) -> bool {
        let is_open = self.again || matches!(self.reply, ReplyState::Pending | ReplyState::Answered);
        is_open && self.peer == *from
    }
}
