//! Being registered with coordinators, so that others can reach us.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use rand::rngs::StdRng;

use crate::{
    ControlStreamId, backoff,
    candidate::Candidate,
    config::Disclosure,
    control_streams::{ControlStream, ControlStreams},
    event::{Event, RegistrationStatus},
    local_addresses::LocalAddresses,
    outbox::{Outbox, Refusal},
    wire::frame::{Frame, Registration, RejectReason, VARINT_MAX},
};

/// Requested lifetime. Renewed at half of it, so that one lost renewal does no harm.
const LIFETIME: Duration = Duration::from_secs(300);
/// Changes of candidates within this time are announced together.
const COALESCE_DELAY: Duration = Duration::from_millis(10);
/// Largest number of stale answers that count against a coordinator. A coordinator with current
/// answers regains its rank after as many dials.
const MAX_STALE_ANSWERS: u32 = 8;
/// Coordinators whose answers take this much longer than those of the nearest are as good as that
/// one.
const NEARBY: Duration = Duration::from_millis(50);
/// The most coordinators that are remembered because their registrations of this peer have not
/// expired.
const MAX_LEFT: usize = 64;
/// Delay before a coordinator that is not willing is asked again; it may have become reachable
/// itself.
const UNWILLING_RETRY_DELAY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Entry {
    stream: Option<ControlStreamId>,
    /// Candidates that were announced on `stream`.
    announced: Vec<Candidate>,
    /// Time of the next `REGISTER`.
    due: Option<Instant>,
    /// The `REGISTER` that has not been answered, and until when it may be.
    sent: Option<(u64, Instant)>,
    /// The generation last sent on `stream`.
    generation: Option<u64>,
    registered_until: Option<Instant>,
    /// Time from the last `REGISTER` that was answered to the answer.
    rtt: Option<Duration>,
    failures: u32,
    /// Answers for peers that were older than those of other coordinators, less those that were
    /// not, up to [`MAX_STALE_ANSWERS`].
    stale_answers: u32,
}

impl Entry {
    fn lose_stream(&mut self) {
        let Entry { failures, stale_answers, rtt, .. } = *self;
        *self = Entry { failures, stale_answers, rtt, ..Entry::default() };
    }

    fn due_by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn is_registered(&self) -> bool {
        self.stream.is_some() && self.registered_until.is_some()
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let due = self.due.filter(|_| self.stream.is_some());
        [due, self.sent.map(|(_, at)| at), self.registered_until].into_iter().flatten()
    }
}

/// Preference among coordinators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    is_unregistered: bool,
    stale_answers: u32,
    /// Its answers take longer than those of the nearest one, by more than [`NEARBY`].
    is_far: bool,
}

/// Answer of a coordinator to a `REGISTER`.
pub(crate) struct Grant {
    pub(crate) generation: u64,
    pub(crate) lifetime: Duration,
}

/// Contents of a registration, and the control streams that it may go over.
pub(crate) struct Announcement<'a> {
    pub(crate) keypair: &'a Keypair,
    pub(crate) probe_key: [u8; 32],
    /// The NAT report.
    pub(crate) nat: Bytes,
    pub(crate) disclosure: Disclosure,
    pub(crate) local: &'a LocalAddresses,
    pub(crate) streams: &'a ControlStreams,
}

#[derive(Debug)]
pub(crate) struct RegistrationClient {
    entries: BTreeMap<PeerId, Entry>,
    /// Coordinators that are no longer used, and when their registrations of this peer expire.
    left: BTreeMap<PeerId, Instant>,
    /// Of the last `REGISTER` to any coordinator.
    generation: u64,
    /// Time-out of an answer, and time for which a lack of registrations is no error.
    patience: Duration,
    /// Until when it is no error to be registered nowhere.
    patient_until: Option<Instant>,
    status: Option<RegistrationStatus>,
}

impl RegistrationClient {
    /// Registrations have generations above `generation`.
    pub(crate) fn new(generation: u64, patience: Duration) -> Self {
        // The wire has room for larger generations, whatever the clock.
        let generation = generation.min(VARINT_MAX / 2);
        Self {
            entries: BTreeMap::new(),
            left: BTreeMap::new(),
            generation,
            patience,
            patient_until: None,
            status: None,
        }
    }

    pub(crate) fn add(&mut self, peer: PeerId, stream: Option<ControlStreamId>, now: Instant) -> bool {
        if self.entries.contains_key(&peer) {
            return false;
        }
        let due = stream.map(|_| now);
        self.entries.insert(peer, Entry { stream, due, ..Entry::default() });
        self.patient_until = Some(now + self.patience);
        true
    }

    /// Ends the use of a coordinator. Its registration of this peer stays in force until it
    /// expires.
    pub(crate) fn remove(&mut self, peer: &PeerId, now: Instant) {
        self.left.retain(|_, until| *until > now);
        let entry = self.entries.remove(peer);
        if let Some(until) = entry.and_then(|entry| entry.registered_until)
            && self.left.len() < MAX_LEFT
        {
            self.left.insert(*peer, until);
        }
    }

    /// Asks a coordinator to end a registration: a REGISTER with the lifetime 0, without an answer.
    pub(crate) fn withdraw(
        &mut self,
        coordinator: &PeerId,
        keypair: &Keypair,
        probe_key: [u8; 32],
        out: &mut Outbox,
    ) {
        let Some(entry) = self.entries.get(coordinator) else { return };
        let (Some(stream), Some(_)) = (entry.stream, entry.generation) else { return };
        self.generation += 1;
        let candidates = &entry.announced;
        // A key that cannot sign has not registered either.
        if let Ok(withdrawal) =
            Registration::sign(keypair, self.generation, Duration::ZERO, probe_key, candidates, Bytes::new())
        {
            out.frame(stream, Frame::Register { registration: withdrawal, disclosure: Disclosure::ToAll });
        }
    }

    /// Returns true if `peer` is a coordinator of ours.
    pub(crate) fn contains(&self, peer: &PeerId) -> bool {
        self.entries.contains_key(peer)
    }

    /// Returns true if `peer` is a coordinator that this peer asked to coordinate for it, and that
    /// may still do so.
    pub(crate) fn has_asked(&self, peer: &PeerId, now: Instant) -> bool {
        self.entries.get(peer).is_some_and(|entry| entry.generation.is_some())
            || self.left.get(peer).is_some_and(|until| *until > now)
    }

    /// Returns the coordinators that have registered this peer, in the order of their PeerIds.
    pub(crate) fn registered(&self) -> impl Iterator<Item = (PeerId, ControlStreamId)> {
        let registered = self.entries.iter().filter(|(_, entry)| entry.is_registered());
        registered.filter_map(|(peer, entry)| Some((*peer, entry.stream?)))
    }

    /// Returns the connected coordinators: those that registered us first, and of these those with
    /// current answers first.
    pub(crate) fn connected(&self) -> Vec<(PeerId, ControlStreamId)> {
        let mut all: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(peer, entry)| {
                Some(((!entry.is_registered(), entry.stale_answers), *peer, entry.stream?))
            })
            .collect();
        all.sort();
        all.into_iter().map(|(_, peer, stream)| (peer, stream)).collect()
    }

    /// The coordinators that are connected, each with its rank: the lowest is asked first. Those of
    /// one rank are equally good.
    pub(crate) fn ranked(&self) -> Vec<(Rank, PeerId, ControlStreamId)> {
        let connected = || self.entries.iter().filter(|(_, entry)| entry.stream.is_some());
        let nearest = connected().filter_map(|(_, entry)| entry.rtt).min();
        let is_far = |rtt: Duration| nearest.is_some_and(|nearest| rtt > nearest + NEARBY);
        let rank = |entry: &Entry| Rank {
            is_unregistered: !entry.is_registered(),
            stale_answers: entry.stale_answers,
            is_far: entry.rtt.is_some_and(is_far),
        };
        connected().filter_map(|(peer, entry)| Some((rank(entry), *peer, entry.stream?))).collect()
    }

    /// A coordinator answered for a peer with an older registration than another coordinator did,
    /// or with none of that peer; or another one answered first that was asked later.
    pub(crate) fn answered_stale(&mut self, peer: &PeerId) {
        if let Some(entry) = self.entries.get_mut(peer) {
            entry.stale_answers = (entry.stale_answers + 1).min(MAX_STALE_ANSWERS);
        }
    }

    /// A coordinator answered for a peer with the newest registration that is known.
    pub(crate) fn answered_current(&mut self, peer: &PeerId) {
        if let Some(entry) = self.entries.get_mut(peer) {
            entry.stale_answers = entry.stale_answers.saturating_sub(1);
        }
    }

    /// Handles a new control stream to a coordinator. The stream is used if there is no other, or
    /// if only this stream shows the coordinator our address.
    pub(crate) fn stream_up(
        &mut self,
        peer: &PeerId,
        stream: ControlStreamId,
        streams: &ControlStreams,
        now: Instant,
    ) {
        let shows =
            |stream| streams.get(stream).is_some_and(|stream: &ControlStream| stream.remote.is_some());
        if let Some(entry) = self.entries.get_mut(peer)
            && entry.stream.is_none_or(|current| shows(stream) && !shows(current))
        {
            entry.lose_stream();
            entry.stream = Some(stream);
            entry.due = Some(now);
        }
    }

    /// Handles the end of a control stream to a coordinator; `other` is a remaining stream.
    pub(crate) fn stream_down(
        &mut self,
        peer: &PeerId,
        stream: ControlStreamId,
        other: Option<ControlStreamId>,
        now: Instant,
    ) {
        if let Some(entry) = self.entries.get_mut(peer)
            && entry.stream == Some(stream)
        {
            entry.lose_stream();
            entry.stream = other;
            entry.due = other.map(|_| now);
        }
    }

    /// Our candidates changed, and more may change in a moment.
    pub(crate) fn candidates_changed(&mut self, now: Instant) {
        self.renew_by(now + COALESCE_DELAY);
    }

    /// Our NAT was measured, and peers that ask for us must know at once; or coordinators must see
    /// where we are now.
    pub(crate) fn renew_now(&mut self, now: Instant) {
        self.renew_by(now);
    }

    fn renew_by(&mut self, at: Instant) {
        for entry in self.entries.values_mut().filter(|entry| entry.stream.is_some()) {
            // A coordinator that just turned us down is not asked sooner because of that.
            if entry.failures == 0 {
                entry.due_by(at);
            }
        }
    }

    /// A coordinator accepted; `false` if it was not asked for that.
    pub(crate) fn accepted(
        &mut self,
        peer: &PeerId,
        Grant { generation, lifetime }: Grant,
        now: Instant,
        out: &mut Outbox,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(peer) else { return false };
        // An answer to an earlier request may come after another was sent; it counts, but does not
        // answer the later request.
        if entry.generation.is_none_or(|last| generation > last) || lifetime.is_zero() {
            return false;
        }
        let lifetime = lifetime.min(LIFETIME);
        let is_new = entry.registered_until.is_none();
        let sent = entry.sent.take_if(|(sent, _)| *sent == generation);
        let rtt = sent.map(|(_, until)| self.patience.saturating_sub(until.saturating_duration_since(now)));
        entry.rtt = rtt.or(entry.rtt);
        entry.failures = 0;
        entry.registered_until = Some(now + lifetime);
        entry.due_by(now + lifetime / 2);
        if is_new {
            out.event(Event::Registered { coordinator: *peer, rtt });
        } else if let Some(rtt) = rtt {
            // An answer that nobody waits for is no news: a coordinator could send many.
            out.event(Event::RegistrationRenewed { coordinator: *peer, rtt });
        }
        true
    }

    /// A coordinator turned us down, or no longer coordinates; `false` if that is not about our
    /// last request.
    pub(crate) fn rejected(
        &mut self,
        peer: &PeerId,
        generation: u64,
        refusal: Refusal,
        now: Instant,
        rng: &mut StdRng,
        out: &mut Outbox,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(peer) else { return false };
        if entry.generation != Some(generation) {
            return false;
        }
        let Refusal { reason, retry_after } = refusal;
        let delay = match reason {
            RejectReason::RateLimited | RejectReason::Full => {
                backoff::after_refusal(retry_after, entry.failures, rng)
            }
            _ => UNWILLING_RETRY_DELAY,
        };
        entry.sent = None;
        // An earlier registration stays in force if it is only too soon for another.
        entry.registered_until.take_if(|_| reason != RejectReason::RateLimited);
        entry.failures = entry.failures.saturating_add(1);
        entry.due = Some(now + delay);
        out.event(Event::RegistrationRejected { coordinator: *peer, reason });
        true
    }

    /// Sends the registrations that are due, and reports the status if it has changed.
    pub(crate) fn handle_timeout(
        &mut self,
        announcement: &Announcement<'_>,
        now: Instant,
        rng: &mut StdRng,
        out: &mut Outbox,
    ) {
        for entry in self.entries.values_mut() {
            if entry.registered_until.is_some_and(|at| at <= now) {
                entry.registered_until = None;
            }
            if entry.sent.is_some_and(|(_, at)| at <= now) {
                entry.sent = None;
                entry.due_by(now + backoff::RETRY.delay(entry.failures, rng));
                entry.failures = entry.failures.saturating_add(1);
            }
            let Some(stream) = entry.stream else { continue };
            if entry.due.is_none_or(|at| at > now) {
                continue;
            }
            entry.due = None;
            let loopback = announcement.streams.get(stream).is_some_and(|stream| stream.is_loopback());
            let candidates = announcement.local.candidates_for(loopback);
            self.generation += 1;
            // Only a key that cannot sign fails here, and there is nothing to try again.
            let Ok(registration) = Registration::sign(
                announcement.keypair,
                self.generation,
                LIFETIME,
                announcement.probe_key,
                &candidates,
                announcement.nat.clone(),
            ) else {
                continue;
            };
            for gone in entry.announced.iter().filter(|c| !candidates.contains(c)) {
                out.frame(stream, Frame::RemoveAddress { sequence: gone.sequence });
            }
            for new in candidates.iter().filter(|c| !entry.announced.contains(c)) {
                out.frame(stream, Frame::AddAddress(*new));
            }
            entry.announced = candidates;
            entry.generation = Some(self.generation);
            entry.sent = Some((self.generation, now + self.patience));
            let disclosure = announcement.disclosure;
            out.frame(stream, Frame::Register { registration, disclosure });
        }
        self.report(now, out);
    }

    fn report(&mut self, now: Instant, out: &mut Outbox) {
        let configured = self.entries.len();
        let registered = self.entries.values().filter(|entry| entry.is_registered()).count();
        if self.patient_until.is_some_and(|at| at <= now) {
            self.patient_until = None;
        }
        let status = match registered {
            _ if configured == 0 => None,
            0 if self.patient_until.is_some() && self.status.is_none() => None,
            0 => Some(RegistrationStatus::None { configured }),
            _ if registered * 2 > configured => Some(RegistrationStatus::Majority { registered, configured }),
            _ => Some(RegistrationStatus::Partial { registered, configured }),
        };
        if status != self.status {
            self.status = status;
            out.events.extend(status.map(Event::Registration));
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let patience = self.patient_until.filter(|_| !self.entries.is_empty());
        self.entries.values().flat_map(Entry::deadlines).chain(patience).min()
    }
}
