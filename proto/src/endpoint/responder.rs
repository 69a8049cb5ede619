//! Sessions that others ask for.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p_identity::PeerId;
use rand::{Rng, rngs::StdRng};
use sha2::{Digest, Sha256};

use super::{Endpoint, MAX_SESSIONS};
use crate::{
    ControlStreamId, SessionId,
    address_policy::{Scope, scope},
    command::Command,
    control_streams::ControlStream,
    event::{FailureReason, Phase, SessionRole},
    gater::Remote,
    network_prefix::NetworkPrefix,
    outbox::Refusal,
    probe_budget::probes_in,
    rate_limit::{HashedBuckets, PAIR_RATE, PeerBuckets, Rate, Recent},
    session::{
        Key, Session,
        checklist::FlightOnceHeard,
        pair::{self, Pair},
    },
    wire::{
        frame::{MAX_FIRST_FLIGHT_DATAGRAMS, PunchMeNow, PunchRequest, RejectReason},
        keys::{FlightBinding, ProbeKeys},
    },
};

/// Sessions under way that others asked for.
pub(crate) const MAX_RESPONDING: usize = 1024;
/// Connections that one peer may have from sessions that it asked for, and ask for another.
pub(crate) const MAX_CONNECTED_TO_ONE: usize = 4;
/// Requests that one coordinator may pass to us. Each costs a signature check, about 50 µs.
pub(crate) const COORDINATOR_RATE: Rate = Rate { interval: Duration::from_millis(10), burst: 200 };
/// Requests of that burst that are kept for initiators that did not ask through this coordinator in the last [`LATELY`]. As many
/// again are kept for networks from which nobody asked. Initiators that repeat their requests do not silence the others.
pub(crate) const NEWCOMERS: u32 = 50;
/// Memory of the initiators, and their networks, that asked.
pub(crate) const LATELY: Duration = Duration::from_secs(20);
/// Requests beyond [`COORDINATOR_RATE`] of peers that were connected before, through one coordinator.
pub(crate) const ACQUAINTED_RATE: Rate = Rate { interval: Duration::from_millis(10), burst: 100 };
/// Sessions under way that are left for such peers.
pub(crate) const ACQUAINTED_PLACES: usize = 64;
/// Peers that are remembered to have been connected, and for how long.
const MAX_ACQUAINTED: usize = 4096;
const ACQUAINTED_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Buckets of a row of [`HashedBuckets`]: a few coordinators pass on a few hundred requests in a second, and a bucket of a
/// pair is full again after five seconds.
const PAIR_BUCKETS: usize = 4096;
/// For what is remembered for [`LATELY`], of as many requests.
const LATELY_BUCKETS: usize = 16_384;
/// Server flights to addresses that one coordinator names and from which nothing comes. A coordinator that lies can aim
/// them, at most three times the bytes of the request each. An address that answers gives its place back.
pub(crate) const FLIGHT_RATE: Rate = Rate { interval: Duration::from_secs(1), burst: 128 };
/// Bytes of a server flight for each byte of the first flight (RFC 9000 §8.1), to an address that is not validated.
const FLIGHT_FACTOR: usize = 3;
/// Bytes of a server flight to an address that only the initiator named: three times a first flight of one datagram.
const MAX_SIGNED_FLIGHT: usize = 3_600;
/// How long after a request the same one is taken for a repeated one.
const REPETITION_TIMEOUT: Duration = Duration::from_millis(500);
/// Requests remembered, so that one that is played again does nothing.
const MAX_SEEN: usize = 4096;
/// How long they are remembered. A request played again after that costs what any request of that peer costs.
const SEEN_LIFETIME: Duration = Duration::from_secs(600);
/// Coordinators whose request rate is remembered.
const MAX_BUCKETS: usize = 4096;

/// What guards us as a responder.
#[derive(Debug)]
pub(super) struct RequestLimiter {
    coordinators: PeerBuckets,
    /// By coordinator, for peers that were connected before.
    acquainted_requests: PeerBuckets,
    /// Peers that were connected, by a session or with a control stream.
    acquainted: Recent<PeerId, ()>,
    /// By coordinator and the initiator's key, which nobody has proved yet: a coordinator can use up only what comes
    /// through itself.
    askers: HashedBuckets<(PeerId, Bytes)>,
    /// The same, and networks of initiators, that asked lately.
    lately: HashedBuckets<(PeerId, Origin)>,
    initiators: HashedBuckets<PeerId>,
    /// By coordinator: server flights to addresses from which nothing came yet.
    pub(super) flights: PeerBuckets,
    /// By initiator, session and round.
    seen: Recent<(PeerId, SessionId, u32), ()>,
    /// Sessions under way as a responder.
    pub(super) responding: usize,
    /// These by the network of the initiator, oldest first.
    under_way: BTreeMap<Option<NetworkPrefix>, BTreeSet<Key>>,
    /// One more connection is within the limits of the application.
    pub(super) has_room: bool,
}

/// Source of a request, as its coordinator names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Origin {
    Initiator(Bytes),
    LocalAddresses(NetworkPrefix),
}

impl RequestLimiter {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        let lately = Rate { interval: LATELY, burst: 1 };
        Self {
            coordinators: PeerBuckets::new(COORDINATOR_RATE, MAX_BUCKETS),
            acquainted_requests: PeerBuckets::new(ACQUAINTED_RATE, MAX_BUCKETS),
            acquainted: Recent::new(MAX_ACQUAINTED, ACQUAINTED_LIFETIME),
            askers: HashedBuckets::new(PAIR_RATE, PAIR_BUCKETS, rng.random()),
            lately: HashedBuckets::new(lately, LATELY_BUCKETS, rng.random()),
            initiators: HashedBuckets::new(PAIR_RATE, PAIR_BUCKETS, rng.random()),
            flights: PeerBuckets::new(FLIGHT_RATE, MAX_BUCKETS),
            seen: Recent::new(MAX_SEEN, SEEN_LIFETIME),
            responding: 0,
            under_way: BTreeMap::new(),
            has_room: true,
        }
    }

    /// A peer is connected: its requests have a place when strangers ask for more than there is.
    pub(super) fn acquaint(&mut self, peer: PeerId, now: Instant) {
        if self.acquainted.get(&peer, now).is_none() {
            self.acquainted.insert(peer, (), now);
        }
    }

    /// Decides if a request that a coordinator passed on is looked at. Each initiator, and each network, has its own share of
    /// what a coordinator may pass on. The error is the time from which on it may be.
    fn admit(&mut self, coordinator: PeerId, punch: &PunchMeNow, now: Instant) -> Result<(), Instant> {
        let key = &punch.request.initiator;
        let asker = (coordinator, key.clone());
        if !self.askers.has(&asker, now) {
            return Err(self.askers.next(&asker, now));
        }
        let network = network_of(punch);
        let origins = [Some(Origin::Initiator(key.clone())), network.map(Origin::LocalAddresses)];
        let origins = origins.map(|origin| origin.map(|origin| (coordinator, origin)));
        let asked = origins.iter().flatten().filter(|origin| !self.lately.has(origin, now)).count();
        let reserve = NEWCOMERS.saturating_mul(u32::try_from(asked).unwrap_or(u32::MAX));
        let is_admitted = self.coordinators.take_above(reserve, coordinator, now).is_ok()
            || (self.is_acquainted(key, now) && self.acquainted_requests.take(coordinator, now).is_ok());
        if !is_admitted {
            return Err(self.coordinators.next_above(reserve, &coordinator, now));
        }
        for origin in origins.iter().flatten() {
            self.lately.take(origin, now);
        }
        self.askers.take(&asker, now);
        Ok(())
    }

    /// A session that an initiator of this network asked for is under way.
    pub(super) fn enter(&mut self, network: Option<&NetworkPrefix>, key: Key) {
        self.responding += 1;
        self.under_way.entry(network.copied()).or_default().insert(key);
    }

    /// A session is under way no more.
    pub(super) fn leave(&mut self, network: Option<&NetworkPrefix>, key: Key) {
        self.responding = self.responding.saturating_sub(1);
        if let Entry::Occupied(mut keys) = self.under_way.entry(network.copied()) {
            keys.get_mut().remove(&key);
            if keys.get().is_empty() {
                keys.remove();
            }
        }
    }

    /// The sessions under way of the network that has most of them, oldest first; `None` if that is hardly more than
    /// `network` has.
    fn greatest_share(&self, network: Option<NetworkPrefix>) -> Option<&BTreeSet<Key>> {
        let own = self.under_way.get(&network).map_or(0, BTreeSet::len);
        self.under_way.values().max_by_key(|keys| keys.len()).filter(|keys| keys.len() > own + 1)
    }

    /// Returns true if the peer of this public key was connected before.
    fn is_acquainted(&self, key: &[u8], now: Instant) -> bool {
        peer_named_by(key).is_some_and(|peer| self.acquainted.get(&peer, now).is_some())
    }

    /// Sessions under way that `initiator` may find and still ask for one.
    fn max_responding(&self, initiator: &PeerId, now: Instant) -> usize {
        match self.acquainted.get(initiator, now) {
            Some(()) => MAX_RESPONDING,
            None => MAX_RESPONDING - ACQUAINTED_PLACES,
        }
    }
}

/// The network in which the coordinator sees the initiator.
fn network_of(punch: &PunchMeNow) -> Option<NetworkPrefix> {
    NetworkPrefix::of(punch.observed?.ip())
}

/// The PeerId of an encoded public key, without a look at the key itself: the key as it is up to 42 bytes, else its digest.
fn peer_named_by(key: &[u8]) -> Option<PeerId> {
    const IDENTITY: u8 = 0x00;
    const SHA2_256: u8 = 0x12;
    let named = match u8::try_from(key.len()) {
        Ok(len) if len <= 42 => [&[IDENTITY, len][..], key].concat(),
        _ => [&[SHA2_256, 32][..], Sha256::digest(key).as_slice()].concat(),
    };
    PeerId::from_bytes(&named).ok()
}

/// What is to be done with a request.
enum Verdict {
    Accept(Box<ProbeKeys>, PeerId),
    /// It is that of a session under way, in which nothing was heard of the initiator for a while.
    Repeat(Key),
    /// It came before, likely through another coordinator.
    Ignore,
    Reject(Refusal),
}

impl From<RejectReason> for Verdict {
    fn from(reason: RejectReason) -> Self {
        Self::Reject(reason.into())
    }
}

impl Endpoint {
    /// `PUNCH_ME_NOW` for us.
    pub(super) fn requested(
        &mut self,
        (id, link): (ControlStreamId, &ControlStream),
        punch: PunchMeNow,
        now: Instant,
    ) {
        let name = (punch.request.session, punch.request.round);
        match self.judge(&link.peer, &punch, now) {
            Verdict::Accept(keys, initiator) => self.respond((id, link), punch, *keys, initiator, now),
            Verdict::Repeat(key) => self.repeated(key, link, punch, now),
            Verdict::Ignore => {}
            Verdict::Reject(refusal) => {
                match refusal.reason {
                    RejectReason::Malformed | RejectReason::Expired => self.out.refuse_frame(),
                    RejectReason::RateLimited | RejectReason::Full => self.out.cap_hit(),
                    _ => {}
                }
                self.out.reject(id, name, refusal);
            }
        }
    }

    /// Cheap checks come first, the signature before everything that speaks of the initiator.
    fn judge(&mut self, coordinator: &PeerId, punch: &PunchMeNow, now: Instant) -> Verdict {
        let request = &punch.request;
        if !self.registration_client.has_asked(coordinator, now) {
            self.out.refuse_frame();
            return RejectReason::NotWilling.into();
        }
        if let Err(until) = self.gate.admit(*coordinator, punch, now) {
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
        if !self.network.accepts() {
            return RejectReason::NotWilling.into();
        }
        let initiator = match punch.verify() {
            Ok(initiator) if initiator != self.peer => initiator,
            _ => return RejectReason::Malformed.into(),
        };
        let remote = Remote { peer: initiator, address: punch.observed };
        if !self.settings.gater.allows(|gater| gater.allow_connection(&remote, coordinator)) {
            return RejectReason::NotWilling.into();
        }
        let name = (initiator, request.session, request.round);
        let is_seen = self.gate.seen.get(&name, now).is_some();
        let repeated = self.repeats(&initiator, request, now);
        if is_seen && repeated.is_none() {
            return Verdict::Ignore;
        }
        if !self.gate.initiators.take(&initiator, now) {
            let until = self.gate.initiators.next(&initiator, now);
            return Verdict::Reject(Refusal::rate_limited(until, now));
        }
        if let Some(key) = repeated.filter(|_| is_seen) {
            return Verdict::Repeat(key);
        }
        if self.gate.seen.insert(name, (), now) {
            self.out.cap_hit();
        }
        let mut objection = self.objection(&initiator, punch, now);
        if objection == Some(RejectReason::Full) && self.make_room(network_of(punch), now) {
            objection = self.objection(&initiator, punch, now);
        }
        if let Some(reason) = objection {
            return reason.into();
        }
        let (ours, theirs) = (&self.probe_secret, &request.probe_key);
        match ProbeKeys::derive(ours, theirs, request.session, &initiator, &self.peer, SessionRole::Responder)
        {
            Ok(keys) => Verdict::Accept(Box::new(keys), initiator),
            Err(_) => RejectReason::Malformed.into(),
        }
    }

    /// Gives up the oldest silent session of the network that has most places, if those that strangers may have are taken and
    /// `network` has fewer. Returns true if there is one place more.
    fn make_room(&mut self, network: Option<NetworkPrefix>, now: Instant) -> bool {
        if self.gate.responding < MAX_RESPONDING - ACQUAINTED_PLACES {
            return false;
        }
        let share = self.gate.greatest_share(network);
        let Some(key) = share.and_then(|keys| keys.iter().copied().find(|key| self.is_silent(*key))) else {
            return false;
        };
        self.fail(key, FailureReason::TooManySessions, now);
        true
    }

    /// The session under way that a request repeats, if nothing was heard of the initiator meanwhile. What comes through another
    /// coordinator at about the same time as the first repeats nothing.
    fn repeats(&self, initiator: &PeerId, request: &PunchRequest, now: Instant) -> Option<Key> {
        let key = self.sessions.pending_with(initiator).filter(|key| self.is_silent(*key))?;
        let session = self.sessions.get(key)?;
        let is_meant = session.role == SessionRole::Responder
            && (session.id, session.attempt) == (request.session, request.round);
        let since = now.saturating_duration_since(session.phase_since);
        (is_meant && since >= REPETITION_TIMEOUT).then_some(key)
    }

    /// The initiator has asked again, as it does not hear us: it may be elsewhere by now, as its coordinator sees.
    fn repeated(&mut self, key: Key, link: &ControlStream, punch: PunchMeNow, now: Instant) {
        let request = punch.request;
        let known = self.sessions.get(key).and_then(|session| session.checklist.as_ref());
        let is_new = punch.observed.is_some_and(|at| known.is_some_and(|known| !known.is_announced(at)));
        let search = self.sessions.get_mut(key).and_then(|session| session.search.as_mut());
        search.into_iter().for_each(|search| search.asked_again(now));
        self.extend_targets(key, request.candidates, link, punch.observed, now);
        self.retarget_search(key, punch.observed, now);
        self.poll_session(key, now);
        if is_new {
            let bytes: usize = request.first_flight.iter().map(|datagram| datagram.len()).sum();
            self.permit_flight(key, link, (punch.observed, bytes), now);
        }
    }

    /// What speaks against an authentic request, in view of the sessions that there are.
    fn objection(&self, initiator: &PeerId, punch: &PunchMeNow, now: Instant) -> Option<RejectReason> {
        let pending = self.sessions.pending_with(initiator).and_then(|key| self.sessions.get(key));
        if let Some(session) = pending {
            let is_old = session.role == SessionRole::Responder
                && session.id == punch.request.session
                && session.attempt >= punch.request.round;
            if is_old {
                return Some(RejectReason::Expired);
            }
            // Both sides ask at once: the session of the lower PeerId goes on, on both sides.
            let is_ours = session.role == SessionRole::Initiator && session.has_asked();
            if is_ours && self.peer.to_bytes() < initiator.to_bytes() {
                return Some(RejectReason::Superseded);
            }
        }
        let is_responding =
            pending.is_some_and(|session| session.role == SessionRole::Responder && session.is_in_flight());
        let is_wanted = pending.is_some_and(|session| session.wanted);
        let connected = self
            .sessions
            .of_peer(initiator)
            .filter(|key| self.sessions.get(*key).is_some_and(Session::is_connected))
            .count();
        let is_full = (pending.is_none() && self.sessions.len() >= MAX_SESSIONS)
            || (!is_responding && self.gate.responding >= self.gate.max_responding(initiator, now))
            || (!is_responding && !is_wanted && !self.gate.has_room)
            || connected >= MAX_CONNECTED_TO_ONE;
        is_full.then_some(RejectReason::Full)
    }

    /// Takes the responder's part: in a new session, beside the connected ones; or in the one that is under way with
    /// this peer, whose attempt ends with that.
    fn respond(
        &mut self,
        (id, link): (ControlStreamId, &ControlStream),
        punch: PunchMeNow,
        keys: ProbeKeys,
        initiator: PeerId,
        now: Instant,
    ) {
        let request_len = punch.request_len();
        let asked_from = network_of(&punch).map(Box::new);
        let request = punch.request;
        // Another round of an attempt that waits for its turn keeps its place.
        let mut ticket = None;
        let key = match self.sessions.pending_with(&initiator) {
            Some(key) => {
                self.sessions.unname(key);
                let search = self.sessions.get_mut(key).and_then(|session| session.search.as_mut());
                ticket = search.and_then(|search| search.ticket.take());
                self.abandon_attempt(key);
                self.take_part(key, (request.session, request.round));
                self.enter(key, Phase::Synchronization, now);
                key
            }
            None => {
                let role = SessionRole::Responder;
                let session = Session::new(initiator, request.session, role, Phase::Synchronization, now);
                let key = self.sessions.insert(session);
                self.take_part(key, (request.session, request.round));
                self.enter_first(key, now);
                key
            }
        };
        if let Some(session) = self.sessions.get_mut(key) {
            session.asked_from = asked_from;
        }
        self.begin_attempt(key);
        self.sessions.set_keys(key, Some(keys));
        let flow = self.new_flow();
        self.sessions.set_flow(key, Some(flow));
        let bytes: usize = request.first_flight.iter().map(|datagram| datagram.len()).sum();
        let rtt = self.sessions.get(key).and_then(|session| session.earlier.as_ref()?.rtt);
        let binding = FlightBinding::new(&initiator, &request.probe_key);
        let first_flight = request.first_flight;
        self.out.command(Command::Accept { flow, peer: initiator, first_flight, rtt, binding });
        self.form_checklist(key, request.candidates, link, punch.observed, request_len, now);
        self.permit_flight(key, link, (punch.observed, bytes), now);
        self.permit_flight_to_signed(key, punch.observed, bytes, now);
        if let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut()) {
            let budget = FLIGHT_FACTOR * bytes;
            checklist.flight_once_heard = Some(FlightOnceHeard { coordinator: link.peer, budget });
        }
        self.plan_search(key, (id, link), &request.nat, None, now);
        match self.sessions.get_mut(key).and_then(|session| session.search.as_mut()) {
            Some(search) => search.ticket = ticket,
            None => self.searches.left(ticket),
        }
        self.poll_session(key, now);
    }

    /// Lets the server's flight go to where the coordinator sees the initiator, up to three times the bytes of the first flight.
    fn permit_flight(
        &mut self,
        key: Key,
        link: &ControlStream,
        (observed, bytes): (Option<SocketAddr>, usize),
        now: Instant,
    ) {
        if self.gate.flights.take(link.peer, now).is_err() {
            // The flight waits for an authentic probe.
            return self.out.cap_hit();
        }
        if let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut()) {
            checklist.flight_vouched_by = Some(link.peer);
        }
        self.permit_observed(key, link, observed, FLIGHT_FACTOR * bytes);
    }

    /// The coordinator sees the initiator over one address family. Over another one the server's flight goes to the best global
    /// address that the initiator signed, within what the request may cost any address.
    fn permit_flight_to_signed(
        &mut self,
        key: Key,
        observed: Option<SocketAddr>,
        bytes: usize,
        now: Instant,
    ) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (Some(checklist), Some(flow)) = (&mut session.checklist, session.flow) else { return };
        let is_unseen = |pair: &&Pair| {
            pair.origin == pair::Origin::Announced
                && scope(pair.path.remote.ip()) == Scope::Global
                && observed.is_none_or(|seen| seen.is_ipv4() != pair.path.remote.is_ipv4())
        };
        let Some(path) = checklist.pairs().iter().find(is_unseen).map(|pair| pair.path) else { return };
        let budget = (FLIGHT_FACTOR * bytes).min(MAX_SIGNED_FLIGHT);
        let probes = probes_in(budget);
        if !checklist.affords(path, probes) {
            return;
        }
        if !self.probe_budget.take_flight(path.remote.ip().into(), now) {
            // The flight waits for an authentic probe.
            return self.out.cap_hit();
        }
        checklist.charge(path, probes);
        if let Some(pair) = checklist.get_mut(path) {
            pair.permitted = true;
        }
        self.out.command(Command::Permit { flow, path, budget, again: false });
    }

    fn take_part(&mut self, key: Key, (id, attempt): (SessionId, u32)) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.role = SessionRole::Responder;
            session.id = id;
            session.attempt = attempt;
        }
    }
}
