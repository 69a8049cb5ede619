//! Connected sessions one of whose peers has moved.
//!
//! Its challenges do not get through a NAT in front of the other peer that filters by address and port, until that peer
//! has sent to the new address. So a coordinator, which sees both, passes on where it is.

use std::time::{Duration, Instant};

use super::{Endpoint, initiator::MAX_ASKED};
use crate::{
    ControlStreamId, SocketId, VirtualConnectionId,
    address_policy::Policy,
    candidate::{Candidate, keep_best},
    command::Command,
    control_streams::ControlStream,
    event::Event,
    probe_budget::probes_for,
    rate_limit::Rate,
    session::{Contact, Key, RemoteCandidate, Session},
    wire::{
        frame::{Frame, PunchMoved},
        keys::MAC_LEN,
    },
};

/// How often a peer may say that it moved. Each time may cost the probes of one checklist.
const MOVE_RATE: Rate = Rate { interval: Duration::from_secs(1), burst: 3 };

/// How long a peer that pauses may take to answer, at least.
const PAUSE_REPLY_TIMEOUT: Duration = Duration::from_millis(250);
/// The same for a peer that says where it is: one that is heard says so only if it moves, and then a new path works by then.
const MOVE: Duration = Duration::from_millis(100);
/// How long it may take, at least, until a path works between peers that hear each other through a coordinator. Both know by then
/// where the other is; what does not get through needs another session, with a search.
const REUNION_TIMEOUT: Duration = Duration::from_millis(1_250);

/// How often we renew registrations because a session hears nothing, or its peer says so.
const RENEWAL_RATE: Rate = Rate { interval: Duration::from_secs(20), burst: 3 };

impl Endpoint {
    /// We have learned a new address of ours: peers whose paths are in doubt are told, through all coordinators that both
    /// sides may have in common.
    pub(super) fn tell_moved(&mut self, now: Instant) {
        let observations = &self.network.observations;
        let in_doubt = |session: &Session| {
            let checklist = session.checklist.as_ref().filter(|_| session.is_connected());
            // A session that has just been connected may have no path yet that was validated.
            let has_moved = || observations.network_changed_since(session.started);
            checklist.is_some_and(|list| {
                !list.is_remapped() && (list.is_in_doubt() || list.selected.is_none() && has_moved())
            })
        };
        let mut told = self.sessions.keys();
        told.retain(|key| self.sessions.get(*key).is_some_and(in_doubt));
        for key in told {
            self.tell_where(key, self.network.candidates_for(false));
            self.extend_reunion(key, now);
        }
    }

    /// Tells the peer of a session at which addresses it finds us now.
    pub(super) fn tell_where(&mut self, key: Key, candidates: Vec<Candidate>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.moves_told = session.moves_told.saturating_add(1);
        let Some(keys) = session.keys() else { return };
        let (peer, name, sequence) = (session.peer, session.id, session.moves_told);
        let mut moved = PunchMoved { peer, session: name, sequence, candidates, authenticator: [0; MAC_LEN] };
        moved.authenticator = keys.authenticate(&moved.covered());
        let coordinators = self.registration_client.connected();
        for (_, link) in coordinators.iter().filter(|(id, _)| *id != peer).take(MAX_ASKED) {
            self.out.frame(*link, Frame::PunchMoved(Box::new(moved.clone())));
        }
    }

    /// Our NAT has given up the mapping of `socket`: the peers of sessions that use it see another address of ours now, or
    /// nothing any more.
    pub(super) fn remapped(&mut self, socket: SocketId, now: Instant) {
        let is_hit = |session: &Session| {
            session.is_connected() && session.selected().is_some_and(|path| path.socket == socket)
        };
        for key in self.sessions.keys() {
            if !self.sessions.get(key).is_some_and(is_hit) {
                continue;
            }
            self.wake(key, now);
            if let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut())
            {
                checklist.remapped(now);
            }
            self.extend_reunion(key, now);
            self.poll_session(key, now);
        }
    }

    /// QUIC sends to the peer of `flow` and hears nothing: a NAT may have forgotten us, or the path is gone. All paths are probed
    /// anew, and coordinators hear from us, so that they can tell where we are now.
    pub fn handle_silent(&mut self, flow: VirtualConnectionId, now: Instant) {
        if let Some(key) = self.sessions.of_flow(flow)
            && self.sessions.get(key).is_some_and(Session::is_connected)
        {
            self.silent(key, now);
        }
    }

    /// The peer of `flow` was talking, and pauses. One challenge asks whether it is there: someone who only answers does not notice
    /// otherwise that its NAT has lost its state.
    pub fn handle_quiet(&mut self, flow: VirtualConnectionId, now: Instant) {
        let Some(key) = self.sessions.of_flow(flow) else { return };
        let is_kept = |session: &Session| session.is_connected() && session.contact == Contact::Kept;
        if !self.sessions.get(key).is_some_and(is_kept) {
            return;
        }
        self.wake(key, now);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(checklist) = &mut session.checklist else { return };
        checklist.recheck_selected(now);
        session.contact = Contact::CoordinatorRequest;
        session.deadline = Some(now + session.time_for(PAUSE_REPLY_TIMEOUT, 3));
        self.poll_session(key, now);
    }

    /// A peer that was asked whether it is there, or that says it is elsewhere, has had its time.
    pub(super) fn contact_due(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.deadline = None;
        let has_path = session.has_path();
        let contact = session.contact;
        let (peer, role, flow) = (session.peer, session.role, session.flow);
        session.contact = Contact::Kept;
        match contact {
            Contact::CoordinatorRequest if !has_path => return self.silent(key, now),
            Contact::Told if !has_path => {
                session.contact = Contact::Told;
                return self.unheard(key, now);
            }
            Contact::Missing if !has_path => {
                session.contact = Contact::Lost;
                self.end_search(key);
                self.release_sockets(key);
                let Some(session) = self.sessions.get_mut(key) else { return };
                (session.checklist, session.known, session.opening) = (None, None, None);
                self.out.event(Event::PathLost { peer, role });
                self.out.commands.extend(flow.map(|flow| Command::Close { flow }));
            }
            _ => {}
        }
        self.poll_session(key, now);
    }

    /// The peer is heard through a coordinator. If no path to it works by the deadline, none will, unless a search finds one.
    fn told_of(&mut self, key: Key, link: ControlStreamId, is_elsewhere: bool, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let is_missing = !session.has_path();
        match session.contact {
            Contact::Lost => return,
            Contact::Missing if !is_elsewhere => return,
            before if is_missing => {
                session.contact = Contact::Missing;
                // The peer does not know yet that we do not hear it either.
                if let Some(checklist) = &mut session.checklist
                    && before == Contact::CoordinatorRequest
                {
                    checklist.remapped(now);
                }
                session.reunite_by(now + session.time_for(REUNION_TIMEOUT, 4));
                self.plan_reunion(key, link, now);
            }
            // That it asks for us may be all that shows us that our packets do not arrive.
            _ => {
                session.contact = Contact::Told;
                session.deadline = Some(now + session.time_for(MOVE, 3));
                session.checklist.iter_mut().for_each(|checklist| checklist.recheck_selected(now));
            }
        }
        self.sessions.reschedule(key);
    }

    /// A path has answered.
    pub(super) fn contact_kept(&mut self, key: Key) {
        if let Some(session) = self.sessions.get_mut(key)
            && session.is_connected()
            && session.contact != Contact::Lost
            && session.has_path()
        {
            (session.contact, session.deadline, session.opening) = (Contact::Kept, None, None);
            self.end_search(key);
            self.close_sockets(key);
            self.release_sockets(key);
            self.sessions.reschedule(key);
        }
    }

    /// We know our address anew: a peer that is missing gets its time from now on.
    fn extend_reunion(&mut self, key: Key, now: Instant) {
        if let Some(session) = self.sessions.get_mut(key)
            && session.is_missing()
        {
            session.reunite_by(now + session.time_for(REUNION_TIMEOUT, 4));
            self.sessions.reschedule(key);
        }
    }

    fn silent(&mut self, key: Key, now: Instant) {
        self.wake(key, now);
        self.extend_checklist(key, None, now);
        if let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut()) {
            checklist.restart(now);
        }
        self.unheard(key, now);
    }

    /// The peer does not hear us on the selected path, or we do not hear it.
    fn unheard(&mut self, key: Key, now: Instant) {
        if let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut()) {
            checklist.remapped(now);
        }
        let coordinators = self.registration_client.connected();
        if let Some(session) = self.sessions.get(key).filter(|session| session.contact == Contact::Told)
            && let Some((_, link)) = coordinators.into_iter().find(|(id, _)| *id != session.peer)
        {
            self.told_of(key, link, true, now);
        }
        self.poll_session(key, now);
        self.show_coordinators(now);
    }

    /// Renews our registrations, by which coordinators see where we are. Peers can bring us to that, and coordinators count
    /// how often we do.
    fn show_coordinators(&mut self, now: Instant) {
        if self.shown.take(RENEWAL_RATE, now) {
            self.registration_client.renew_now(now);
        } else {
            self.out.cap_hit();
        }
    }

    /// Tells the peer of a session that lost its mapping, if it cannot hear us where we are now.
    pub(super) fn tell_if_unheard(&mut self, key: Key) {
        let checklist = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut());
        if checklist.is_some_and(|checklist| checklist.takes_unheard()) {
            self.tell_where(key, self.network.candidates_for(false));
        }
    }

    /// A peer says, or somebody on its way does, that it moved; `false` if no session of ours is meant.
    pub(super) fn peer_moved(
        &mut self,
        id: ControlStreamId,
        link: &ControlStream,
        moved: &PunchMoved,
        now: Instant,
    ) -> bool {
        let is_meant = |session: &Session| session.id == moved.session && session.is_connected();
        let key =
            self.sessions.of_peer(&moved.peer).find(|key| self.sessions.get(*key).is_some_and(is_meant));
        let Some((key, session)) = key.and_then(|key| Some((key, self.sessions.get_mut(key)?))) else {
            return false;
        };
        if !session.keys().is_some_and(|keys| keys.verify(&moved.covered(), &moved.authenticator)) {
            self.out.refuse_frame();
            return true;
        }
        // The same word comes through several coordinators. An older one is late, or somebody plays it again.
        if moved.sequence <= session.moves_heard {
            if moved.sequence < session.moves_heard {
                self.out.refuse_frame();
            }
            return true;
        }
        if !session.moves.take(MOVE_RATE, now) {
            self.out.cap_hit();
            return true;
        }
        session.moves_heard = moved.sequence;
        let public = self.public_addresses();
        let Some(session) = self.sessions.get_mut(key) else { return true };
        let policy = Policy {
            prefixes: &self.network.prefixes(),
            public: &public,
            own: &self.network.own_addresses(),
            coordinator: link.remote,
            observed: None,
        };
        // A peer that says it is where it was does not hear us.
        let path = session.selected();
        let is_unheard = path.is_some_and(|path| moved.candidates.iter().any(|c| c.address == path.remote));
        let known = session.checklist.as_ref();
        let is_known = |c: &Candidate| known.is_some_and(|list| list.is_announced(c.address));
        let is_elsewhere = !moved.candidates.iter().all(is_known);
        let mut candidates = moved.candidates.clone();
        candidates.retain(|candidate| policy.allows(candidate));
        if keep_best(&mut candidates, self.settings.max_candidates) > 0 {
            self.out.cap_hit();
        }
        session.targets = candidates.iter().map(RemoteCandidate::announced).collect();
        self.wake(key, now);
        self.extend_checklist(key, None, now);
        if let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut()) {
            checklist.limit_each_destination(probes_for(moved.len()));
            candidates.iter().for_each(|candidate| checklist.revive(candidate.address, now));
            if is_unheard && !checklist.is_in_doubt() {
                checklist.remapped(now);
                self.show_coordinators(now);
            }
        }
        self.told_of(key, id, is_elsewhere, now);
        self.poll_session(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::{Keypair, PeerId};

    use super::*;
    use crate::{
        SessionId,
        candidate::{CandidateKind, priority},
        config::Config,
        event::{Phase, SessionRole},
        wire::keys::{ProbeKeys, ProbeSecret},
    };

    /// The peer's end of a session.
    struct Remote {
        peer: PeerId,
        session: SessionId,
        keys: ProbeKeys,
    }

    fn connected(now: Instant) -> (Endpoint, Remote) {
        let config = Config::default();
        let mut endpoint = Endpoint::new(&config, Keypair::generate_ed25519(), [1; 32], 0);
        let (peer, id) = (Keypair::generate_ed25519().public().to_peer_id(), SessionId([3; 16]));
        let secrets = [4, 5].map(|byte| ProbeSecret::new([byte; 32]));
        let keys = |own: usize, role| {
            let theirs = secrets[1 - own].public();
            ProbeKeys::derive(&secrets[own], &theirs, id, &endpoint.peer, &peer, role).expect("keys")
        };
        let (ours, theirs) = (keys(0, SessionRole::Initiator), keys(1, SessionRole::Responder));
        let session = Session::new(peer, id, SessionRole::Initiator, Phase::Connected, now);
        let key = endpoint.sessions.insert(session);
        endpoint.sessions.set_keys(key, Some(ours));
        (endpoint, Remote { peer, session: id, keys: theirs })
    }

    #[test]
    fn a_peer_that_says_again_and_again_that_it_moved_is_heard_as_often_as_the_rate_allows() {
        let now = Instant::now();
        let (mut endpoint, Remote { peer, session, keys }) = connected(now);
        let link = ControlStream {
            peer: Keypair::generate_ed25519().public().to_peer_id(),
            remote: None,
            socket: None,
            next_observation: 0,
            last_observation: None,
            moved: None,
            told_observers: false,
            told_observers_at: false,
        };
        let mut say = |sequence: u32, now| {
            let address = ([203, 0, 113, 9], 4001).into();
            let kind = CandidateKind::ServerReflexive;
            let candidate = Candidate {
                sequence: sequence.into(),
                kind,
                priority: priority(kind, [203, 0, 113, 9].into()),
                address,
            };
            let authenticator = [0; MAC_LEN];
            let mut moved =
                PunchMoved { peer, session, sequence, candidates: vec![candidate], authenticator };
            moved.authenticator = keys.authenticate(&moved.covered());
            assert!(endpoint.peer_moved(ControlStreamId(1), &link, &moved, now), "it is of this session");
            (endpoint.out.counters.caps_hit, endpoint.out.counters.frames_refused)
        };
        (1..=MOVE_RATE.burst).for_each(|sequence| assert_eq!(say(sequence, now), (0, 0)));
        assert_eq!(say(MOVE_RATE.burst + 1, now), (1, 0), "beyond the burst");
        assert_eq!(say(MOVE_RATE.burst + 2, now), (2, 0));
        assert_eq!(say(MOVE_RATE.burst + 3, now + MOVE_RATE.interval), (2, 0), "a while later");
        assert_eq!(say(2, now + 10 * MOVE_RATE.interval), (2, 1), "an older word");
    }
}
