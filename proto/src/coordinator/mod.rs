//! Server side of coordination: the table of registered peers, and forwarding of `PUNCH_ME_NOW`.
//!
//! A coordinator verifies no signatures: the end peers do, and the coordinator can only drop
//! frames. In its own name it states only the address at which it sees a peer.

pub(crate) mod registrations;
pub(crate) mod server;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;
use sha2::{Digest, Sha256};

use crate::{
    AttemptId, ControlStreamId, NetworkPrefix, SessionId,
    address_policy::{Scope, scope},
    candidate::Candidate,
    config::{CoordinatorLimits, Disclosure},
    control_streams::{ControlStream, ControlStreams},
    coordinator::registrations::{Full, MAX_ANNOUNCED, NewRegistration, Registered, Registrations},
    gater::{Remote, SharedGater},
    nat::observer::OBSERVE_RATE,
    outbox::{Outbox, Refusal},
    rate_limit::{Rate, Recent, RecentBuckets, TokenBucket},
    wire::frame::{Frame, PortPrediction, PunchAnswer, PunchMeNow, PunchMoved, Registration, RejectReason},
};

/// The longest a registration lasts without another `REGISTER`.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// `OBSERVED_ADDRESS`es of one peer, over all its control streams, so that a new stream gives no
/// more of them. One comes with every stream and with every change of our address.
pub(crate) const OBSERVED_RATE: Rate = Rate { interval: Duration::from_secs(1), burst: 5 };
/// COORDINATORS of one peer: its coordinators.
pub(crate) const COORDINATORS_RATE: Rate = Rate { interval: Duration::from_secs(1), burst: 5 };
/// Requests whose `PUNCH_ACCEPTED` or `PUNCH_REJECTED` can still be brought back to the initiator.
const MAX_FORWARDS: usize = 65_536;
/// Pairs of an initiator and a responder whose rate is remembered.
const MAX_PAIRS: usize = 65_536;
/// Peers that left and whose limits are remembered.
const MAX_DEPARTED: usize = 16_384;
/// Time in which a responder may send its `PUNCH_ACCEPTED` or `PUNCH_REJECTED`.
const FORWARD_LIFETIME: Duration = Duration::from_secs(10);

/// Remaining allowance of a peer.
#[derive(Debug, Clone, Copy, Default)]
struct Allowance {
    register: TokenBucket,
    punch: TokenBucket,
    observe: TokenBucket,
    observed: TokenBucket,
    coordinators: TokenBucket,
}

impl Allowance {
    fn is_full(&self, now: Instant) -> bool {
        let Self { register, punch, observe, observed, coordinators } = self;
        [register, punch, observe, observed, coordinators].into_iter().all(|bucket| bucket.is_full(now))
    }
}

/// A peer that is connected.
#[derive(Debug, Default)]
struct Client {
    /// Number of its control streams.
    streams: usize,
    allowance: Allowance,
}

#[derive(Debug, Clone, Copy)]
struct Forward {
    initiator: PeerId,
    stream: ControlStreamId,
    round: u32,
    /// The initiator gets its answer once the responder has accepted the request.
    owes_answer: bool,
}

#[derive(Debug)]
pub(crate) struct Coordinator {
    active: bool,
    limits: CoordinatorLimits,
    gater: SharedGater,
    clients: BTreeMap<PeerId, Client>,
    /// Until every bucket is full again. Otherwise leaving and coming back would be a way to more.
    departed: Recent<PeerId, Allowance>,
    /// Candidates announced on each control stream.
    announced: BTreeMap<ControlStreamId, Arc<Vec<Candidate>>>,
    registry: Registrations,
    /// By responder and session.
    forwards: Recent<(PeerId, SessionId), Forward>,
    /// By initiator and responder: no initiator uses up the allowance of a responder at this
    /// coordinator.
    pairs: RecentBuckets<(PeerId, PeerId)>,
}

impl Coordinator {
    pub(crate) fn new(active: bool, limits: CoordinatorLimits, gater: SharedGater) -> Self {
        let rates =
            [limits.register_rate, limits.request_rate, OBSERVE_RATE, OBSERVED_RATE, COORDINATORS_RATE];
        let departed_lifetime = rates.into_iter().map(Rate::time_to_fill).max().unwrap_or_default();
        Self {
            active,
            limits,
            gater,
            clients: BTreeMap::new(),
            departed: Recent::new(MAX_DEPARTED, departed_lifetime),
            announced: BTreeMap::new(),
            registry: Registrations::new(limits.max_registrations),
            forwards: Recent::new(MAX_FORWARDS, FORWARD_LIFETIME),
            pairs: RecentBuckets::new(limits.pair_rate, MAX_PAIRS),
        }
    }

    /// Returns true if this peer coordinates for others: they reach it without help.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    /// Begins or ends to coordinate. At the end, registered peers get a rejection.
    pub(crate) fn set_active(&mut self, active: bool, out: &mut Outbox) {
        self.active = active;
        if !active {
            self.announced.clear();
            for entry in self.registry.clear() {
                reject_registration(
                    entry.stream,
                    entry.registration.generation,
                    RejectReason::NotWilling,
                    out,
                );
            }
        }
    }

    pub(crate) fn stream_up(&mut self, peer: PeerId, now: Instant) {
        let departed = &self.departed;
        let client = self.clients.entry(peer).or_insert_with(|| {
            let allowance = departed.get(&peer, now).copied().unwrap_or_default();
            Client { streams: 0, allowance }
        });
        client.streams += 1;
    }

    pub(crate) fn stream_down(&mut self, id: ControlStreamId, peer: &PeerId, now: Instant) {
        self.announced.remove(&id);
        if self.registry.get(peer).is_some_and(|entry| entry.stream == id) {
            self.registry.remove(peer);
        }
        if let Some(client) = self.clients.get_mut(peer) {
            client.streams = client.streams.saturating_sub(1);
            if client.streams == 0 {
                let allowance = client.allowance;
                self.clients.remove(peer);
                if !allowance.is_full(now) {
                    self.departed.insert(*peer, allowance, now);
                }
            }
        }
    }

    /// Returns the number of peers that are registered.
    pub(crate) fn registrations(&self) -> usize {
        self.registry.len()
    }

    /// Returns the time at which the next registration expires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.registry.next_expiry()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.registry.expire(now);
        self.forwards.expire(now);
    }

    pub(crate) fn add_address(&mut self, stream: ControlStreamId, candidate: Candidate, out: &mut Outbox) {
        if !self.active {
            return;
        }
        let announced = Arc::make_mut(self.announced.entry(stream).or_default());
        let known = announced.iter().position(|known| known.sequence == candidate.sequence);
        if let Some(known) = known.and_then(|index| announced.get_mut(index)) {
            *known = candidate;
        } else if announced.len() < MAX_ANNOUNCED {
            announced.push(candidate);
        } else {
            out.cap_hit();
            out.refuse_frame();
        }
    }

    pub(crate) fn remove_address(&mut self, stream: ControlStreamId, sequence: u64) {
        if let Some(announced) = self.announced.get_mut(&stream) {
            Arc::make_mut(announced).retain(|candidate| candidate.sequence != sequence);
        }
    }

    pub(crate) fn register(
        &mut self,
        from: &ControlStream,
        registration: Registration,
        disclosure: Disclosure,
        now: Instant,
        out: &mut Outbox,
    ) {
        let generation = registration.generation;
        if registration.lifetime.is_zero() {
            return self.withdraw(from, &registration, out);
        }
        match self.try_register(from, registration, disclosure, now) {
            Ok((lifetime, evicted)) => {
                let allowance = self.limits.request_rate;
                out.counters.registrations_accepted += 1;
                out.frame(from.id, Frame::Registered { generation, lifetime, allowance });
                if let Some(evicted) = evicted {
                    out.cap_hit();
                    out.counters.registrations_evicted += 1;
                    reject_registration(
                        evicted.stream,
                        evicted.registration.generation,
                        RejectReason::Full,
                        out,
                    );
                }
            }
            Err(refusal) => {
                out.counters.registrations_rejected.count(refusal.reason);
                match refusal.reason {
                    RejectReason::Full | RejectReason::RateLimited => out.cap_hit(),
                    RejectReason::Malformed => out.refuse_frame(),
                    _ => {}
                }
                reject_registration(from.id, generation, refusal, out);
            }
        }
    }

    /// Ends the registration of a peer that asks for it, over the control stream of the
    /// registration. There is no answer.
    fn withdraw(&mut self, from: &ControlStream, withdrawal: &Registration, out: &mut Outbox) {
        let is_later = |entry: &Registered| {
            entry.stream == from.id && entry.registration.generation < withdrawal.generation
        };
        if is_key_of(&withdrawal.peer, &from.peer) && self.registry.get(&from.peer).is_some_and(is_later) {
            self.registry.remove(&from.peer);
        } else {
            out.refuse_frame();
        }
    }

    fn try_register(
        &mut self,
        from: &ControlStream,
        registration: Registration,
        disclosure: Disclosure,
        now: Instant,
    ) -> Result<(Duration, Option<Registered>), Refusal> {
        if !self.active {
            return Err(RejectReason::NotWilling.into());
        }
        let (rate, client) = (self.limits.register_rate, self.clients.entry(from.peer).or_default());
        if !client.allowance.register.take(rate, now) {
            return Err(Refusal::rate_limited(client.allowance.register.next(rate, now), now));
        }
        if !self.gater.allows(|gater| gater.allow_registration(&remote_of(from))) {
            return Err(RejectReason::NotWilling.into());
        }
        let known = self.registry.get(&from.peer);
        let is_older = known.is_some_and(|entry| {
            entry.stream == from.id && entry.registration.generation >= registration.generation
        });
        if is_older || !is_key_of(&registration.peer, &from.peer) {
            return Err(RejectReason::Malformed.into());
        }
        let lifetime = registration.lifetime.min(MAX_LIFETIME);
        let new = NewRegistration {
            peer: from.peer,
            stream: from.id,
            network: from.remote.and_then(|remote| NetworkPrefix::of(remote.ip())),
            registration,
            disclosure,
            candidates: self.announced.get(&from.id).cloned().unwrap_or_default(),
            lifetime,
        };
        let evicted = self.registry.insert(new, now).map_err(|Full| RejectReason::Full)?;
        Ok((lifetime, evicted))
    }

    /// Forwards a request. Answers it with the responder's registration: at once, or when the
    /// responder has accepted it.
    pub(crate) fn punch_me_now(
        &mut self,
        from: &ControlStream,
        mut punch: Box<PunchMeNow>,
        streams: &ControlStreams,
        now: Instant,
        out: &mut Outbox,
    ) {
        let attempt = punch.request.attempt();
        let (responder, session) = (punch.request.responder, attempt.session);
        let (responder_stream, disclosure) = match self.try_forward(from, &punch, now) {
            Ok(entry) => (entry.stream, entry.disclosure),
            Err(refusal) => {
                out.counters.requests_rejected.count(refusal.reason);
                match refusal.reason {
                    RejectReason::RateLimited => out.cap_hit(),
                    RejectReason::Malformed => out.refuse_frame(),
                    _ => {}
                }
                return out.reject(from.id, attempt, refusal);
            }
        };
        out.counters.requests_forwarded += 1;
        let owes_answer = disclosure == Disclosure::ToAccepted;
        let forward = Forward { initiator: from.peer, stream: from.id, round: attempt.round, owes_answer };
        if self.forwards.insert((responder, session), forward, now) {
            out.cap_hit();
        }
        if !owes_answer {
            self.answer(&responder, from, attempt, streams, out);
        }
        punch.observed = from.remote;
        out.frame(responder_stream, Frame::PunchMeNow(punch));
    }

    /// Answers the request of an initiator with the registration of the responder.
    fn answer(
        &self,
        responder: &PeerId,
        initiator: &ControlStream,
        attempt: AttemptId,
        streams: &ControlStreams,
        out: &mut Outbox,
    ) {
        let Some(entry) = self.registry.get(responder) else { return };
        let AttemptId { session, round } = attempt;
        let observed = streams.get(entry.stream).and_then(|stream| stream.remote);
        let (registration, candidates) = match share_network(initiator.remote, observed) {
            true => (entry.registration.without_public_signature(), entry.candidates.to_vec()),
            false => entry.registration.public_part(&entry.candidates),
        };
        let answer = PunchAnswer { session, round, registration, candidates, observed };
        out.frame(initiator.id, Frame::PunchAnswer(Box::new(answer)));
    }

    /// A responder has accepted a request that we passed on. Answers the initiator, once.
    pub(crate) fn accepted(
        &mut self,
        responder: &PeerId,
        attempt: AttemptId,
        streams: &ControlStreams,
        now: Instant,
        out: &mut Outbox,
    ) {
        let forward = self.forwards.get_mut(&(*responder, attempt.session), now);
        let Some(forward) = forward.filter(|forward| forward.owes_answer && forward.round == attempt.round)
        else {
            return out.refuse_frame();
        };
        forward.owes_answer = false;
        // The initiator may have gone meanwhile.
        if let Some(initiator) = streams.get(forward.stream) {
            self.answer(responder, initiator, attempt, streams, out);
        }
    }

    fn try_forward(
        &mut self,
        from: &ControlStream,
        punch: &PunchMeNow,
        now: Instant,
    ) -> Result<&Registered, Refusal> {
        let request = &punch.request;
        if !self.active {
            return Err(RejectReason::NotWilling.into());
        }
        let (rate, client) = (self.limits.request_rate, self.clients.entry(from.peer).or_default());
        if !client.allowance.punch.take(rate, now) {
            return Err(Refusal::rate_limited(client.allowance.punch.next(rate, now), now));
        }
        if request.lifetime.is_zero() {
            return Err(RejectReason::Expired.into());
        }
        // A request in another peer's name is not forwarded; the responder would detect it, at a
        // higher cost.
        if !is_key_of(&request.initiator, &from.peer) {
            return Err(RejectReason::Malformed.into());
        }
        if !self.allows_request(from, &request.responder) {
            return Err(RejectReason::NotWilling.into());
        }
        let taken = self.forwards.get(&(request.responder, request.session), now);
        if taken.is_some_and(|forward| forward.initiator != from.peer) {
            return Err(RejectReason::Malformed.into());
        }
        let known = self.registry.get(&request.responder).filter(|entry| entry.expires > now);
        if known.is_none() {
            return Err(RejectReason::NotConnected.into());
        }
        let pair = (from.peer, request.responder);
        if !self.pairs.take(pair, now) {
            return Err(Refusal::rate_limited(self.pairs.next(&pair, now), now));
        }
        self.registry.ask_for(&request.responder, now).ok_or(RejectReason::NotConnected.into())
    }

    fn allows_request(&self, from: &ControlStream, responder: &PeerId) -> bool {
        self.gater.allows(|gater| gater.allow_request(&remote_of(from), responder))
    }

    /// Returns true if a peer is registered over this control stream.
    pub(crate) fn serves(&self, peer: &PeerId, stream: ControlStreamId) -> bool {
        self.registry.get(peer).is_some_and(|entry| entry.stream == stream)
    }

    /// Returns true if a peer's request to an observer is answered.
    pub(crate) fn may_observe(&mut self, peer: &PeerId, now: Instant) -> bool {
        self.active
            && self
                .clients
                .get_mut(peer)
                .is_some_and(|client| client.allowance.observe.take(OBSERVE_RATE, now))
    }

    /// Returns true if a peer's report of our address is accepted.
    pub(crate) fn may_tell(&mut self, peer: &PeerId, now: Instant) -> bool {
        self.clients.get_mut(peer).is_some_and(|client| client.allowance.observed.take(OBSERVED_RATE, now))
    }

    /// Returns true if a peer's report of its coordinators is accepted.
    pub(crate) fn may_name_coordinators(&mut self, peer: &PeerId, now: Instant) -> bool {
        let take = |client: &mut Client| client.allowance.coordinators.take(COORDINATORS_RATE, now);
        self.clients.get_mut(peer).is_some_and(take)
    }

    /// Forwards a port prediction to the other peer of a session that we coordinate, or to a
    /// registered peer: connected peers search too. A peer without such a session refuses the
    /// frame.
    pub(crate) fn window(
        &mut self,
        from: &ControlStream,
        mut window: Box<PortPrediction>,
        now: Instant,
        out: &mut Outbox,
    ) {
        let (sender, to) = (from.peer, window.peer);
        let forward = |responder| self.forwards.get(&(responder, window.session), now).copied();
        let as_responder =
            forward(sender).filter(|forward| forward.initiator == to).map(|forward| forward.stream);
        let as_initiator = || {
            forward(to).filter(|forward| forward.initiator == sender)?;
            self.registry.get(&to).map(|entry| entry.stream)
        };
        let registered = || {
            let is_served = self.active && self.allows_request(from, &to);
            let entry = self.registry.get(&to).filter(|entry| is_served && entry.expires > now)?;
            Some(entry.stream)
        };
        let Some(receiver) = as_responder.or_else(as_initiator).or_else(registered) else {
            return out.refuse_frame();
        };
        if !self.clients.entry(sender).or_default().allowance.punch.take(self.limits.request_rate, now) {
            return out.cap_hit();
        }
        window.peer = sender;
        out.frame(receiver, Frame::PortPrediction(window));
    }

    /// Passes on where a peer has moved, to another that is registered; they have a session, or the
    /// receiver refuses it.
    pub(crate) fn moved(
        &mut self,
        from: &ControlStream,
        mut moved: Box<PunchMoved>,
        now: Instant,
        out: &mut Outbox,
    ) {
        if !self.active {
            return out.refuse_frame();
        }
        if !self.clients.entry(from.peer).or_default().allowance.punch.take(self.limits.request_rate, now) {
            return out.cap_hit();
        }
        // Peers ask all their coordinators, and at least one should know the other.
        let is_allowed = self.allows_request(from, &moved.peer);
        let receiver = self.registry.get(&moved.peer).filter(|entry| is_allowed && entry.expires > now);
        if let Some(receiver) = receiver.map(|entry| entry.stream) {
            moved.peer = from.peer;
            out.counters.requests_forwarded += 1;
            out.frame(receiver, Frame::PunchMoved(moved));
        } else {
            out.counters.requests_rejected.count(RejectReason::NotConnected);
        }
    }

    /// Brings a responder's `PUNCH_REJECTED` back to the initiator, if we passed the request on;
    /// `false` if not.
    pub(crate) fn rejected(
        &mut self,
        responder: &PeerId,
        attempt: AttemptId,
        refusal: Refusal,
        now: Instant,
        out: &mut Outbox,
    ) -> bool {
        match self.forwards.get(&(*responder, attempt.session), now) {
            Some(forward) if forward.round == attempt.round => {
                out.reject(forward.stream, attempt, refusal);
                true
            }
            _ => false,
        }
    }
}

/// Returns true if two clients may learn each other's private addresses: they have one public
/// address, or both are in networks of this peer's own.
fn share_network(initiator: Option<SocketAddr>, responder: Option<SocketAddr>) -> bool {
    let (Some(initiator), Some(responder)) = (initiator, responder) else { return false };
    let [ours, theirs] = [initiator, responder].map(|address| address.ip().to_canonical());
    if scope(ours) != Scope::Global || scope(theirs) != Scope::Global {
        return scope(ours) != Scope::Global && scope(theirs) != Scope::Global;
    }
    match (ours, theirs) {
        (IpAddr::V6(ours), IpAddr::V6(theirs)) => ours.to_bits() >> 64 == theirs.to_bits() >> 64,
        _ => ours == theirs,
    }
}

fn remote_of(stream: &ControlStream) -> Remote {
    Remote { peer: stream.peer, address: stream.remote }
}

fn reject_registration(to: ControlStreamId, generation: u64, refusal: impl Into<Refusal>, out: &mut Outbox) {
    let Refusal { reason, retry_after } = refusal.into();
    out.frame(to, Frame::RegisterRejected { generation, reason, retry_after });
}

/// Returns true if `key`, a public key in protobuf encoding, is that of `peer`, without decoding
/// the key.
///
/// A PeerId is a multihash of the encoded key: identity up to 42 bytes, SHA-256 above (libp2p
/// peer-ids specification).
fn is_key_of(key: &[u8], peer: &PeerId) -> bool {
    const IDENTITY: u8 = 0x00;
    const SHA2_256: u8 = 0x12;
    let multihash = peer.to_bytes();
    match (multihash.split_first_chunk(), u8::try_from(key.len())) {
        (Some((&[IDENTITY, length], digest)), Ok(found)) => length == found && digest == key,
        (Some((&[SHA2_256, 32], digest)), _) => digest == Sha256::digest(key).as_slice(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;

    #[test]
    fn clients_with_one_public_address_or_in_networks_of_ours_learn_private_addresses() {
        let at = |address: &str| Some(SocketAddr::new(address.parse().unwrap(), 4001));
        for (ours, theirs, share) in [
            ("203.0.113.1", "203.0.113.1", true),
            ("203.0.113.1", "203.0.113.2", false),
            ("203.0.113.1", "::ffff:203.0.113.1", true),
            ("2001:db8:1:2::3", "2001:db8:1:2::4", true),
            ("2001:db8:1:2::3", "2001:db8:1:3::3", false),
            ("203.0.113.1", "2001:db8:1:2::3", false),
            ("192.168.1.2", "10.0.0.3", true),
            ("127.0.0.1", "192.168.1.2", true),
            ("192.168.1.2", "203.0.113.1", false),
        ] {
            assert_eq!(share_network(at(ours), at(theirs)), share, "{ours}, {theirs}");
            assert_eq!(share_network(at(theirs), at(ours)), share, "{theirs}, {ours}");
        }
        assert!(!share_network(None, at("192.168.1.2")) && !share_network(None, None));
    }

    #[test]
    fn a_key_is_told_from_another_without_decoding_it() {
        let ours = Keypair::generate_ed25519();
        let other = Keypair::generate_ed25519();
        assert!(is_key_of(&ours.public().encode_protobuf(), &ours.public().to_peer_id()));
        assert!(!is_key_of(&other.public().encode_protobuf(), &ours.public().to_peer_id()));
        assert!(!is_key_of(&[], &ours.public().to_peer_id()));
        let hashed = [&[0x12, 32][..], &Sha256::digest([7; 64])].concat();
        let hashed = PeerId::from_bytes(&hashed).unwrap();
        assert!(is_key_of(&[7; 64], &hashed));
        assert!(!is_key_of(&[8; 64], &hashed));
    }
}
