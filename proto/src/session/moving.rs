//! Connected sessions one of whose peers has moved.
//!
//! Challenges of the peer that moved do not get through a NAT in front of the other peer that
//! filters by address and port, until that peer has sent to the new address. A coordinator, which
//! sees both, passes on the new address.

use std::time::{Duration, Instant};

use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::Policy,
    candidate::{self, Candidate, CandidateKind, keep_best},
    command::Command,
    control_streams::ControlStream,
    event::Event,
    probe_budget::probes_for,
    rate_limit::Rate,
    session::{
        Progress, RemoteCandidate, Session, Transition,
        checklist::MAX_PAIRS,
        contact::Contact,
        context::{Context, MAX_ASKED},
        pair::Origin,
        paths::pair_priority_of,
        renewal::RenewalSocket,
    },
    wire::{
        frame::{Frame, PunchMoved},
        keys::MAC_LEN,
    },
};

/// `PUNCH_MOVED` of a peer. Each may cost the probes of one checklist.
const MOVE_RATE: Rate = Rate { interval: Duration::from_secs(1), burst: 3 };

/// Time for the answer of a peer that pauses, at least.
const PAUSE_REPLY_TIMEOUT: Duration = Duration::from_millis(250);
/// Time for the answer of a peer that tells its address, at least. A peer that is heard tells it
/// only if it moves, and then a new path works by then.
const MOVE_TIMEOUT: Duration = Duration::from_millis(100);
/// Time until a path works between peers that hear each other through a coordinator, at least. Both
/// know by then the address of the other. Where no packet gets through, another session with a
/// search is needed.
const REUNION_TIMEOUT: Duration = Duration::from_millis(1_250);

/// Renewals of registrations because a session hears nothing, or its peer says so.
const RENEWAL_RATE: Rate = Rate { interval: Duration::from_secs(20), burst: 3 };

impl Session {
    /// Returns true if both sides know each other through a coordinator, and no path works.
    pub(super) fn is_missing(&self) -> bool {
        self.is_connected() && self.course.contact == Contact::Missing
    }

    /// This peer is seen at another address. Tells a peer whose path is in doubt, through all
    /// coordinators that both sides may have in common.
    pub(super) fn handle_new_address(&mut self, cx: &mut Context<'_>) -> Transition {
        // A session that was connected just now may have no path yet that was validated.
        let has_moved = || cx.env.local.observations.network_changed_since(self.course.started);
        let checklist = self.paths.checklist.as_ref().filter(|_| self.is_connected());
        let is_in_doubt = checklist.is_some_and(|list| {
            !list.is_remapped() && (list.is_in_doubt() || list.selected.is_none() && has_moved())
        });
        if is_in_doubt {
            let candidates = cx.env.local.candidates_for(false);
            self.tell_addresses(cx, candidates);
            self.extend_reunion(cx.now);
        }
        Transition::Stay
    }

    /// Tells the peer at which addresses it finds this peer now.
    fn tell_addresses(&mut self, cx: &mut Context<'_>, candidates: Vec<Candidate>) {
        self.moves.told = self.moves.told.saturating_add(1);
        let Some(keys) = &self.keys else { return };
        let mut moved = PunchMoved {
            peer: self.peer,
            session: self.id,
            sequence: self.moves.told,
            candidates,
            authenticator: [0; MAC_LEN],
        };
        moved.authenticator = keys.authenticate(&moved.covered());
        let coordinators = cx.env.registrations.connected();
        for (_, stream) in coordinators.iter().filter(|(id, _)| *id != self.peer).take(MAX_ASKED) {
            cx.env.out.frame(*stream, Frame::PunchMoved(Box::new(moved.clone())));
        }
    }

    /// The NAT has dropped the mapping of the socket that this session uses: the peer sees this
    /// peer at another address now, or not at all.
    pub(super) fn handle_remapping(&mut self, cx: &mut Context<'_>) -> Transition {
        self.paths.restore_checklist(cx, self.role);
        self.paths.mark_remapped(cx.now);
        self.extend_reunion(cx.now);
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// QUIC sends and hears nothing: a NAT may have dropped its state, or the path is gone. All
    /// paths are probed again, and coordinators hear from this peer, so that they can pass on its
    /// address.
    pub(crate) fn handle_silence(&mut self, cx: &mut Context<'_>) -> Transition {
        if !self.is_connected() {
            return Transition::Stay;
        }
        let progress = self.look_for_peer(cx);
        self.conclude(cx, progress)
    }

    /// The peer was talking, and pauses. One challenge asks if it is there: a peer that only
    /// answers does not notice otherwise that its NAT has lost its state.
    pub(crate) fn handle_pause(&mut self, cx: &mut Context<'_>) -> Transition {
        if !self.is_connected() || self.course.contact != Contact::Kept {
            return Transition::Stay;
        }
        self.paths.restore_checklist(cx, self.role);
        let Some(checklist) = &mut self.paths.checklist else { return Transition::Stay };
        checklist.recheck_selected(cx.now);
        self.course.contact = Contact::Asked;
        self.course.deadline = Some(cx.now + self.paths.time_for(PAUSE_REPLY_TIMEOUT, 3));
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// A peer that was asked if it is there, or that told its address, has had its time.
    pub(super) fn contact_due(&mut self, cx: &mut Context<'_>) -> Progress {
        self.course.deadline = None;
        let has_path = self.paths.has_path();
        match std::mem::take(&mut self.course.contact) {
            Contact::Asked if !has_path => return self.look_for_peer(cx),
            Contact::Told if !has_path => {
                self.course.contact = Contact::Told;
                return self.unheard(cx);
            }
            Contact::Missing if !has_path => {
                self.course.contact = Contact::Lost;
                self.search.end(cx.shared);
                self.search.release_sockets(cx.shared);
                (self.paths.checklist, self.paths.known, self.opening) = (None, None, None);
                cx.env.out.event(Event::PathLost { peer: self.peer, role: self.role });
                cx.env.out.commands.extend(self.flow.map(|flow| Command::Close { flow }));
            }
            _ => {}
        }
        self.poll(cx)
    }

    /// The peer is heard through a coordinator. If no path to it works by the deadline, none will,
    /// unless a search finds one.
    fn heard_through(&mut self, cx: &mut Context<'_>, stream: ControlStreamId, is_elsewhere: bool) {
        match self.course.contact {
            Contact::Lost => {}
            Contact::Missing if !is_elsewhere => {}
            before if !self.paths.has_path() => {
                self.course.contact = Contact::Missing;
                // The peer does not know yet that this peer does not hear it either.
                if before == Contact::Asked {
                    self.paths.mark_remapped(cx.now);
                }
                self.reunite_by(cx.now + self.paths.time_for(REUNION_TIMEOUT, 4));
                self.plan_reunion(cx, stream);
            }
            // The request of the peer may be the only sign that packets do not arrive.
            _ => {
                self.course.contact = Contact::Told;
                self.course.deadline = Some(cx.now + self.paths.time_for(MOVE_TIMEOUT, 3));
                if let Some(checklist) = &mut self.paths.checklist {
                    checklist.recheck_selected(cx.now);
                }
            }
        }
    }

    /// A path has answered.
    pub(super) fn contact_kept(&mut self, cx: &mut Context<'_>) {
        if self.is_connected() && self.course.contact != Contact::Lost && self.paths.has_path() {
            self.course.contact = Contact::Kept;
            (self.course.deadline, self.opening) = (None, None);
            self.search.end(cx.shared);
            self.search.close_sockets(cx, self.flow, &self.paths);
            self.search.release_sockets(cx.shared);
        }
    }

    /// Sets the time by which a path must work again. A search under way keeps its time.
    fn reunite_by(&mut self, deadline: Instant) {
        let is_searching = self.search.plan.as_ref().is_some_and(|search| search.running);
        self.course.deadline = self.course.deadline.filter(|_| is_searching).max(Some(deadline));
    }

    /// This peer knows its new address: a peer that is missing gets its time from now on.
    fn extend_reunion(&mut self, now: Instant) {
        if self.is_missing() {
            self.reunite_by(now + self.paths.time_for(REUNION_TIMEOUT, 4));
        }
    }

    fn look_for_peer(&mut self, cx: &mut Context<'_>) -> Progress {
        self.paths.restart_checklist(cx, self.current());
        self.unheard(cx)
    }

    /// The peer does not hear this peer on the selected path, or the other way round.
    fn unheard(&mut self, cx: &mut Context<'_>) -> Progress {
        self.paths.mark_remapped(cx.now);
        if self.course.contact == Contact::Told {
            let coordinators = cx.env.registrations.connected();
            if let Some((_, stream)) = coordinators.into_iter().find(|(id, _)| *id != self.peer) {
                self.heard_through(cx, stream, true);
            }
        }
        self.poll(cx)?;
        renew_registrations(cx);
        Ok(())
    }

    /// Tells the peer of a session that lost its mapping, if it cannot hear this peer at the new
    /// address.
    pub(super) fn tell_if_unheard(&mut self, cx: &mut Context<'_>) {
        let checklist = self.paths.checklist.as_mut();
        if checklist.is_some_and(|checklist| checklist.takes_unheard()) {
            let candidates = cx.env.local.candidates_for(false);
            self.tell_addresses(cx, candidates);
        }
    }

    /// The peer, or somebody on its way, reports that the peer moved.
    pub(super) fn handle_peer_moved(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        moved: &PunchMoved,
    ) -> Transition {
        if !self.accepts_move(cx, moved) {
            return Transition::Stay;
        }
        self.moves.heard = moved.sequence;
        let policy = Policy {
            prefixes: &cx.env.local.prefixes(),
            public: &cx.env.public_addresses(),
            own: &cx.env.local.own_addresses(),
            coordinator: from.remote,
            observed: None,
        };
        // A peer that reports the address at which it was does not hear this peer.
        let path = self.paths.selected();
        let is_unheard = path.is_some_and(|path| moved.candidates.iter().any(|c| c.address == path.remote));
        let known = self.paths.checklist.as_ref();
        let is_known = |c: &Candidate| known.is_some_and(|list| list.is_announced(c.address));
        let is_elsewhere = !moved.candidates.iter().all(is_known);
        let mut candidates = moved.candidates.clone();
        candidates.retain(|candidate| policy.allows(candidate));
        if keep_best(&mut candidates, cx.env.config.max_candidates) > 0 {
            cx.env.out.cap_hit();
        }
        self.paths.targets = candidates.iter().map(RemoteCandidate::announced).collect();
        self.paths.restore_checklist(cx, self.role);
        self.paths.extend_checklist(cx, self.current(), None);
        if let Some(checklist) = &mut self.paths.checklist {
            checklist.limit_each_destination(probes_for(moved.len()));
            candidates.iter().for_each(|candidate| checklist.revive(candidate.address, cx.now));
            if is_unheard && !checklist.is_in_doubt() {
                checklist.remapped(cx.now);
                renew_registrations(cx);
            }
        }
        self.heard_through(cx, from.id, is_elsewhere);
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// Returns true if a report that the peer moved is authentic, new and within the rate.
    fn accepts_move(&mut self, cx: &mut Context<'_>, moved: &PunchMoved) -> bool {
        let out = &mut cx.env.out;
        if !self.keys().is_some_and(|keys| keys.verify(&moved.covered(), &moved.authenticator)) {
            out.refuse_frame();
            return false;
        }
        // The same report comes through several coordinators. An older one is late, or somebody
        // plays it again.
        if moved.sequence <= self.moves.heard {
            if moved.sequence < self.moves.heard {
                out.refuse_frame();
            }
            return false;
        }
        let is_within_rate = self.moves.heard_rate.take(MOVE_RATE, cx.now);
        if !is_within_rate {
            out.cap_hit();
        }
        is_within_rate
    }

    /// Adds a path from a fresh socket, and tells the peer to expect this peer there. The session
    /// goes there once the path works.
    pub(super) fn handle_renewal(&mut self, cx: &mut Context<'_>, to: RenewalSocket) -> Transition {
        let RenewalSocket { socket, address } = to;
        let (Some(flow), Some(selected)) = (self.flow, self.paths.selected()) else {
            return Transition::Stay;
        };
        let is_usable = selected.socket != socket && selected.remote.is_ipv4() == address.is_ipv4();
        if !self.is_connected() || !is_usable {
            return Transition::Stay;
        }
        let path = Path { socket, remote: selected.remote };
        let kind = CandidateKind::ServerReflexive;
        self.paths.restore_checklist(cx, self.role);
        let priority =
            pair_priority_of(self.role, path.remote.ip(), candidate::priority(kind, path.remote.ip()));
        let Some(checklist) = &mut self.paths.checklist else { return Transition::Stay };
        if let Some(pair) = checklist.get_mut(path) {
            pair.restart(cx.now);
        } else if checklist.pairs().len() < MAX_PAIRS {
            checklist.add(path, priority, Origin::Announced, cx.now);
            cx.env.out.command(Command::Admit { flow, path, heard: false });
        } else {
            cx.env.out.cap_hit();
            return Transition::Stay;
        }
        checklist.move_to(path);
        cx.env.out.counters.renewals += 1;
        let priority = candidate::priority(kind, address.ip());
        self.tell_addresses(cx, vec![Candidate { sequence: 0, address, kind, priority }]);
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// Returns true if the session is connected over this socket.
    pub(super) fn uses(&self, socket: SocketId) -> bool {
        self.is_connected() && self.paths.selected().is_some_and(|path| path.socket == socket)
    }
}

/// Renews the registrations, by which coordinators see this peer at its present address. Peers can
/// cause that, and coordinators count the registrations.
fn renew_registrations(cx: &mut Context<'_>) {
    if cx.shared.renewed_registrations.take(RENEWAL_RATE, cx.now) {
        cx.env.registrations.renew_now(cx.now);
    } else {
        cx.env.out.cap_hit();
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::{Keypair, PeerId};

    use super::*;
    use crate::{
        SessionId,
        candidate::priority,
        config::Config,
        endpoint::Endpoint,
        event::{Phase, SessionRole},
        wire::keys::{ProbeKeys, ProbeSecret},
    };

    /// The control stream of a coordinator.
    const LINK: ControlStreamId = ControlStreamId(1);

    /// The peer's end of a session.
    struct Remote {
        peer: PeerId,
        session: SessionId,
        keys: ProbeKeys,
    }

    fn connected(now: Instant) -> (Endpoint, Remote) {
        let (keypair, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (own, peer) = (keypair.public().to_peer_id(), other.public().to_peer_id());
        let id = SessionId([3; 16]);
        let secrets = [4, 5].map(|byte| ProbeSecret::new([byte; 32]));
        let keys = |side: usize, role| {
            let theirs = secrets[1 - side].public();
            ProbeKeys::derive(&secrets[side], &theirs, id, &own, &peer, role).expect("keys")
        };
        let (ours, theirs) = (keys(0, SessionRole::Initiator), keys(1, SessionRole::Responder));
        let mut endpoint = Endpoint::new(&Config::default(), keypair, [1; 32], 0);
        endpoint.sessions.table.insert(|key| {
            let mut session = Session::new(key, peer, id, SessionRole::Initiator, Phase::Connected, now);
            session.keys = Some(Box::new(ours));
            session
        });
        let coordinator = Keypair::generate_ed25519().public().to_peer_id();
        endpoint.handle_link_up(LINK, coordinator, None, None, now);
        (endpoint, Remote { peer, session: id, keys: theirs })
    }

    #[test]
    fn a_peer_that_says_again_and_again_that_it_moved_is_heard_as_often_as_the_rate_allows() {
        let now = Instant::now();
        let (mut endpoint, Remote { peer, session, keys }) = connected(now);
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
            endpoint.handle_frame(LINK, Frame::PunchMoved(Box::new(moved)), now);
            (endpoint.counters().caps_hit, endpoint.counters().frames_refused)
        };
        (1..=MOVE_RATE.burst).for_each(|sequence| assert_eq!(say(sequence, now), (0, 0)));
        assert_eq!(say(MOVE_RATE.burst + 1, now), (1, 0), "beyond the burst");
        assert_eq!(say(MOVE_RATE.burst + 2, now), (2, 0));
        assert_eq!(say(MOVE_RATE.burst + 3, now + MOVE_RATE.interval), (2, 0), "a while later");
        assert_eq!(say(2, now + 10 * MOVE_RATE.interval), (2, 1), "an older word");
    }
}
