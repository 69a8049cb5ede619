//! Requests of other peers for a session.

use std::time::Instant;

use libp2p_identity::PeerId;

use crate::{
    AttemptId,
    config::Disclosure,
    control_streams::ControlStream,
    event::{FailureReason, Phase, SessionRole},
    gater::Remote,
    network_prefix::NetworkPrefix,
    outbox::Refusal,
    session::{
        Key, Session,
        context::Context,
        request_limiter::{ACQUAINTED_PLACES, MAX_CONNECTED_TO_ONE, MAX_RESPONDING, network_of},
        responder::AcceptedRequest,
        sessions::{MAX_SESSIONS, Sessions},
    },
    wire::{
        frame::{Frame, MAX_FIRST_FLIGHT_DATAGRAMS, PunchMeNow, PunchRequest, RejectReason},
        keys::ProbeKeys,
    },
};

/// Decision on a request.
enum Verdict {
    Accept(Box<ProbeKeys>, PeerId),
    /// The request is that of a session under way, in which nothing was heard of the initiator for
    /// a while.
    Repeat(Key),
    /// The request came before, likely through another coordinator, and its session is under way.
    UnderWay,
    /// The request came before, and has no session.
    Ignore,
    Reject(Refusal),
}

impl From<RejectReason> for Verdict {
    fn from(reason: RejectReason) -> Self {
        Self::Reject(reason.into())
    }
}

/// The coordinator may disclose our candidates to the initiator, if it waits for that.
fn admit(cx: &mut Context<'_>, coordinator: &ControlStream, attempt: AttemptId) {
    if cx.env.config.disclosure == Disclosure::ToAccepted {
        let AttemptId { session, round } = attempt;
        cx.env.out.frame(coordinator.id, Frame::PunchAccepted { session, round });
    }
}

impl Sessions {
    /// `PUNCH_ME_NOW` for this peer.
    pub(crate) fn handle_request(&mut self, cx: &mut Context<'_>, from: &ControlStream, punch: PunchMeNow) {
        let attempt = punch.request.attempt();
        match self.judge(cx, &from.peer, &punch) {
            Verdict::Accept(keys, initiator) => {
                admit(cx, from, attempt);
                self.accept(cx, initiator, AcceptedRequest { from, punch, keys: *keys });
            }
            Verdict::Repeat(key) => {
                admit(cx, from, attempt);
                self.table.update(cx, key, |session, cx| session.handle_repeated_request(cx, from, punch));
            }
            Verdict::UnderWay => admit(cx, from, attempt),
            Verdict::Ignore => {}
            Verdict::Reject(refusal) => {
                match refusal.reason {
                    RejectReason::Malformed | RejectReason::Expired => cx.env.out.refuse_frame(),
                    RejectReason::RateLimited | RejectReason::Full => cx.env.out.cap_hit(),
                    _ => {}
                }
                cx.env.out.reject(from.id, attempt, refusal);
            }
        }
    }

    /// Judges a request. Cheap checks come first, the signature before everything that depends on
    /// the initiator.
    fn judge(&mut self, cx: &mut Context<'_>, coordinator: &PeerId, punch: &PunchMeNow) -> Verdict {
        let (request, now, own) = (&punch.request, cx.now, cx.env.identity.peer);
        if !cx.env.registrations.has_asked(coordinator, now) {
            cx.env.out.refuse_frame();
            return RejectReason::NotWilling.into();
        }
        if let Err(until) = self.requests.admit(*coordinator, punch, now) {
            return Verdict::Reject(Refusal::rate_limited(until, now));
        }
        if request.lifetime.is_zero() {
            return RejectReason::Expired.into();
        }
        let flight = &request.first_flight;
        if flight.is_empty()
            || flight.len() > MAX_FIRST_FLIGHT_DATAGRAMS
            || flight.iter().any(|datagram| datagram.is_empty())
        {
            return RejectReason::Malformed.into();
        }
        if !cx.env.local.accepts() {
            return RejectReason::NotWilling.into();
        }
        let initiator = match punch.verify() {
            Ok(initiator) if initiator != own => initiator,
            _ => return RejectReason::Malformed.into(),
        };
        let remote = Remote { peer: initiator, address: punch.observed };
        if !cx.env.config.gater.allows(|gater| gater.allow_connection(&remote, coordinator)) {
            return RejectReason::NotWilling.into();
        }
        let name = (initiator, request.session, request.round);
        let is_seen = self.requests.seen.get(&name, now).is_some();
        let repeated = self.table.pending_with(&initiator);
        let repeated = repeated.filter(|session| session.is_repeated_by(cx, request));
        if is_seen && repeated.is_none() {
            return match self.table.pending_with(&initiator).is_some_and(|session| session.answers(request)) {
                true => Verdict::UnderWay,
                false => Verdict::Ignore,
            };
        }
        if !self.requests.initiators.take(&initiator, now) {
            let until = self.requests.initiators.next(&initiator, now);
            return Verdict::Reject(Refusal::rate_limited(until, now));
        }
        if let Some(session) = repeated.filter(|_| is_seen) {
            return Verdict::Repeat(session.key);
        }
        if self.requests.seen.insert(name, (), now) {
            cx.env.out.cap_hit();
        }
        let mut objection = self.objection(own, &initiator, request, now);
        if objection == Some(RejectReason::Full) && self.make_room(cx, network_of(punch)) {
            objection = self.objection(own, &initiator, request, now);
        }
        if let Some(reason) = objection {
            return reason.into();
        }
        let (ours, theirs) = (&cx.env.identity.probe_secret, &request.probe_key);
        match ProbeKeys::derive(ours, theirs, request.session, &initiator, &own, SessionRole::Responder) {
            Ok(keys) => Verdict::Accept(Box::new(keys), initiator),
            Err(_) => RejectReason::Malformed.into(),
        }
    }

    /// Gives up the oldest silent session of the network that has most places, if those that
    /// strangers may have are taken and `network` has fewer. Returns true if there is one place
    /// more.
    fn make_room(&mut self, cx: &mut Context<'_>, network: Option<NetworkPrefix>) -> bool {
        if self.table.responding() < MAX_RESPONDING - ACQUAINTED_PLACES {
            return false;
        }
        let is_silent = |key: &Key| self.table.get(*key).is_some_and(|session| session.course.is_silent());
        let share = self.table.greatest_share(network);
        let Some(key) = share.and_then(|keys| keys.iter().copied().find(is_silent)) else { return false };
        self.table.update(cx, key, |session, cx| session.fail(cx, FailureReason::TooManySessions));
        true
    }

    /// Returns the objection to an authentic request, in view of the sessions that exist.
    fn objection(
        &self,
        own: PeerId,
        initiator: &PeerId,
        request: &PunchRequest,
        now: Instant,
    ) -> Option<RejectReason> {
        let pending = self.table.pending_with(initiator);
        if let Some(session) = pending {
            let is_old = session.role == SessionRole::Responder
                && session.id == request.session
                && session.attempt >= request.round;
            if is_old {
                return Some(RejectReason::Expired);
            }
            // Both sides ask at once: the session of the lower PeerId goes on, on both sides.
            let is_ours = session.role == SessionRole::Initiator && session.has_asked();
            if is_ours && own.to_bytes() < initiator.to_bytes() {
                return Some(RejectReason::Superseded);
            }
        }
        let is_responding = pending
            .is_some_and(|session| session.role == SessionRole::Responder && session.course.is_in_flight());
        let is_wanted = pending.is_some_and(|session| session.course.wanted);
        let connected = self.table.of_peer(initiator).filter(|session| session.is_connected()).count();
        let is_full = (pending.is_none() && self.table.len() >= MAX_SESSIONS)
            || (!is_responding && self.table.responding() >= self.requests.max_responding(initiator, now))
            || (!is_responding && !is_wanted && !self.requests.has_room)
            || connected >= MAX_CONNECTED_TO_ONE;
        is_full.then_some(RejectReason::Full)
    }

    /// Takes the role of the responder: in a new session, in addition to the connected ones, or in
    /// the session that is under way with this peer.
    fn accept(&mut self, cx: &mut Context<'_>, initiator: PeerId, request: AcceptedRequest<'_>) {
        match self.table.pending_with(&initiator).map(|session| session.key) {
            Some(key) => self.table.update(cx, key, |session, cx| session.handle_request(cx, request)),
            None => {
                let (id, now) = (request.punch.request.session, cx.now);
                let (role, phase) = (SessionRole::Responder, Phase::Synchronization);
                let key = self.table.insert(|key| Session::new(key, initiator, id, role, phase, now));
                self.table.update(cx, key, |session, cx| session.begin_response(cx, request));
            }
        }
    }
}
