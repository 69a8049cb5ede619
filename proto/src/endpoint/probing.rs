//! Probes: forming checklists, sending and answering, choosing the path.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use rand::Rng;

use super::Endpoint;
use crate::{
    Path, SocketId,
    address_policy::{Policy, Scope, scope},
    candidate::{self, Candidate, CandidateKind, keep_best, pair_priority},
    command::Command,
    control_streams::ControlStream,
    event::{Event, PathKind, Phase, SessionRole},
    nat::filtering::is_filter_probe,
    probe_budget::probes_for,
    session::{
        Contact, Key, MAX_KEPT, RemoteCandidate, Session,
        checklist::{CHALLENGE_RATE, Checklist},
        pair::{Origin, Pair, State},
    },
    wire::probe::{PROBE_LEN, Probe, tag_of},
};

/// What QUIC may send to where an authentic probe came from, before that path is validated (RFC 9000 §8.1). The path
/// layer adds three times what comes of QUIC itself.
const HEARD_BUDGET: usize = 3 * PROBE_LEN;

impl Endpoint {
    /// A datagram that begins like a probe arrived on `path`.
    pub fn handle_datagram(&mut self, path: Path, datagram: &[u8], now: Instant) {
        if self.observers.has(path.socket) {
            return self.observe_request(path, datagram, now);
        }
        if self.early_packets.owns(path.socket) {
            // An early packet that a filter let in.
            return;
        }
        if self.idling.owns(path.socket) {
            if !self.idling.answered(path.socket, datagram, now) {
                self.out.counters.probes_refused += 1;
            }
            return self.run_idling(now);
        }
        if is_filter_probe(datagram) {
            if !self.filter_probe(path, datagram) {
                self.out.counters.probes_refused += 1;
            }
            return;
        }
        let key = tag_of(datagram).and_then(|tag| self.sessions.of_tag(tag));
        let probe = key.and_then(|key| {
            let keys = self.sessions.get(key)?.keys()?;
            Some((key, Probe::decode(datagram, keys).ok()?))
        });
        let Some((key, probe)) = probe.filter(|(key, _)| self.is_usable(*key, path)) else {
            self.out.counters.probes_refused += 1;
            return;
        };
        self.out.counters.probes_received += 1;
        match probe {
            Probe::Challenge { data, nominate } => self.challenged(key, path, (data, nominate), now),
            Probe::Response { data, .. } => self.answered(key, path, data, now),
        }
        self.settle(key);
    }

    fn is_usable(&self, key: Key, path: Path) -> bool {
        (self.network.socket(path.socket).is_some()
            || self.owns_socket(key, path.socket)
            || self.renewals.owns(path.socket))
            && path.remote.port() != 0
            && scope(path.remote.ip()) != Scope::Never
    }

    fn challenged(&mut self, key: Key, path: Path, (data, nominate): ([u8; 8], bool), now: Instant) {
        let triggered = self.rng.random();
        self.wake(key, now);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let priority = pair_priority_of(session.role, path.remote.ip(), {
            candidate::priority(CandidateKind::PeerReflexive, path.remote.ip())
        });
        let (flow, connected) = (session.flow, session.is_connected());
        let Some(checklist) = &mut session.checklist else { return };
        if !session.answers.take(CHALLENGE_RATE, now) {
            return self.out.cap_hit();
        }
        let was_heard = checklist.is_heard(path);
        let heard = checklist.on_challenge(path, priority, nominate, now);
        if heard.capped {
            self.out.cap_hit();
        }
        let due = if heard.trigger { checklist.trigger(path, triggered, now) } else { None };
        if heard.is_new && connected {
            checklist.recheck_selected(now);
        }
        let Some(keys) = session.keys() else { return };
        if heard.answer {
            self.out.probe(path, Probe::Response { data, observed: path.remote }, keys);
        }
        if let Some(due) = due {
            self.out.probe(due.path, Probe::Challenge { data: due.data, nominate: due.nominate }, keys);
        }
        if let Some(flow) = flow.filter(|_| heard.answer && !was_heard) {
            self.out.command(Command::Admit { flow, path, heard: true });
        }
        if heard.answer {
            self.heard(key, path, now);
        }
    }

    /// An authentic challenge came from `path`: QUIC may answer there, if the peer or its coordinator named the address.
    fn heard(&mut self, key: Key, path: Path, now: Instant) {
        self.validating(key, now);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (role, flow) = (session.role, session.flow);
        let Some(checklist) = &mut session.checklist else { return };
        let unselected = checklist.selected.is_none();
        let announced = checklist.is_announced(path.remote);
        if let Some(flow) = flow.filter(|_| announced && unselected) {
            let once_heard = checklist.flight_once_heard.take();
            if let Some(pair) = checklist.get_mut(path) {
                // The NAT of an initiator lets our server flight in only after the initiator has sent. What went out before
                // that is lost, and goes out again within what is left of the same budget.
                let permit = match (role, pair.permitted) {
                    (SessionRole::Initiator, false) => Some((HEARD_BUDGET, false)),
                    (SessionRole::Initiator, true) => None,
                    (SessionRole::Responder, true) => once_heard.map(|_| (HEARD_BUDGET, true)),
                    // The source may be forged, and nobody but the peer named it.
                    (SessionRole::Responder, false) => once_heard.and_then(|flight| {
                        let is_allowed = self.gate.flights.take(flight.coordinator, now).is_ok();
                        is_allowed.then_some((flight.budget, false))
                    }),
                };
                if let Some((budget, again)) = permit {
                    pair.permitted = true;
                    self.out.command(Command::Permit { flow, path, budget, again });
                }
            }
        }
        self.choose(key, now);
    }

    fn answered(&mut self, key: Key, path: Path, data: [u8; 8], now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (peer, flow) = (session.peer, session.flow);
        let was_asked = matches!(session.contact, Contact::CoordinatorRequest | Contact::Told);
        let Some(checklist) = &mut session.checklist else { return };
        let (in_doubt, was_heard) = (checklist.is_in_doubt(), checklist.is_heard(path));
        let Some((rtt, first)) = checklist.on_response(path, data, now) else { return };
        let works_again = in_doubt && !checklist.is_in_doubt();
        if let Some(flow) = flow {
            if !was_heard {
                self.out.command(Command::Admit { flow, path, heard: true });
            }
            if works_again && !was_asked {
                // What QUIC sent meanwhile is lost.
                self.out.command(Command::Select { flow, path });
            }
        }
        self.validating(key, now);
        if first {
            self.out.event(Event::PathValidated { peer, path, rtt });
        }
        self.choose(key, now);
        self.contact_kept(key);
    }

    /// The first authentic probe begins the phase Validation.
    fn validating(&mut self, key: Key, now: Instant) {
        let phase = self.sessions.get(key).map(|session| session.phase);
        if matches!(phase, Some(Phase::Synchronization | Phase::Punching)) {
            self.give_flight_back(key);
            self.end_search(key);
            self.enter(key, Phase::Validation, now);
        }
    }

    /// The peer has answered: the coordinator on whose word our server flight went out did not lie.
    pub(super) fn give_flight_back(&mut self, key: Key) {
        let checklist = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut());
        let vouched = checklist.and_then(|checklist| checklist.flight_vouched_by.take());
        vouched.iter().for_each(|coordinator| self.gate.flights.give_back(coordinator));
    }

    /// Selects another path if there is reason to, and sends the probe that is due, such as the nomination.
    fn choose(&mut self, key: Key, now: Instant) {
        self.select(key, now);
        self.poll_session(key, now);
    }

    fn select(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (peer, flow, before) = (session.peer, session.flow, session.selected());
        if let Some(path) = session.checklist.as_mut().and_then(|checklist| checklist.reconsider(now))
            && let Some(flow) = flow
        {
            self.out.command(Command::Select { flow, path });
            self.out.event(Event::PathSelected { peer, path });
            if let Some(before) = before.filter(|before| before.socket != path.socket) {
                self.network.observations.leaves(&peer, before.socket);
            }
        }
    }

    /// Sends the probe that is due, if one is, and brings the timers up to date.
    pub(super) fn poll_session(&mut self, key: Key, now: Instant) {
        self.ask_again(key, now);
        let data = self.rng.random();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let due = session.checklist.as_mut().and_then(|checklist| checklist.poll(now, data));
        let phase = session.phase;
        let is_of_peer = session.role == SessionRole::Responder || session.is_connected();
        if let Some(due) = due
            && let Some(keys) = session.keys()
        {
            let destination = due.path.remote.ip().into();
            if is_of_peer && due.is_unproven && !self.probe_budget.take(destination, now) {
                self.out.cap_hit();
            } else {
                self.out.probe(due.path, Probe::Challenge { data: due.data, nominate: due.nominate }, keys);
            }
            if phase == Phase::Synchronization {
                self.enter(key, Phase::Punching, now);
            }
        }
        if self.is_silent(key) || self.sessions.get(key).is_some_and(Session::is_missing) {
            self.pump_search(key, now);
        }
        // A probe that goes unanswered may be the one by which the selected path proves dead.
        self.select(key, now);
        self.tell_if_unheard(key);
        self.settle(key);
    }

    /// Brings the timers up to date, and drops what a connected session that idles does not need.
    pub(super) fn settle(&mut self, key: Key) {
        if let Some(session) = self.sessions.get_mut(key)
            && session.is_connected()
            && session.search.is_none()
            && let Some(flow) = session.flow
            && let Some(checklist) = session.checklist.take_if(|checklist| checklist.is_idle())
        {
            let Some(known) = checklist.known() else {
                // No path works; the peer may yet be heard from another.
                session.checklist = Some(checklist);
                return self.sessions.reschedule(key);
            };
            // What was not probed this time may work as it did.
            let fails = |remote| {
                let mut pairs = checklist.pairs().iter().filter(|pair| pair.path.remote == remote).peekable();
                pairs.peek().is_some() && !pairs.any(|pair| pair.state == State::Succeeded)
            };
            session.targets.retain(|target| !fails(target.remote));
            session.targets.truncate(MAX_KEPT);
            session.targets.shrink_to_fit();
            session.known = Some(Box::new(known));
            for path in checklist.pairs().iter().map(|pair| pair.path).filter(|path| *path != known.path) {
                self.out.command(Command::Forget { flow, path });
            }
            self.close_sockets(key);
        }
        self.sessions.reschedule(key);
    }

    /// Gives a connected session that idled its checklist back.
    pub(super) fn wake(&mut self, key: Key, now: Instant) {
        let (burst, max_pairs) = (self.settings.max_concurrent_attempts, self.settings.max_pairs());
        if let Some(session) = self.sessions.get_mut(key)
            && let Some(known) = session.known.take()
        {
            let checklist = Checklist::new(session.role, burst, max_pairs).resume(*known, now);
            session.checklist = Some(Box::new(checklist));
        }
    }

    /// What may be probed of what a peer signed and its coordinator observed, best first, and the candidates among it.
    fn targets_among(
        &mut self,
        mut candidates: Vec<Candidate>,
        link: &ControlStream,
        observed: Option<SocketAddr>,
    ) -> (Vec<RemoteCandidate>, Vec<Candidate>) {
        let policy = Policy {
            prefixes: &self.network.prefixes(),
            public: &self.public_addresses(),
            own: &self.network.own_addresses(),
            coordinator: link.remote,
            observed,
        };
        // Without a NAT in between, the coordinator sees the peer at one of its own addresses.
        let announced = candidates.iter().find(|candidate| Some(candidate.address) == observed);
        let kind = announced
            .map_or(PathKind::ServerReflexive, |candidate| RemoteCandidate::announced(candidate).kind);
        candidates.retain(|candidate| policy.allows(candidate));
        if keep_best(&mut candidates, self.settings.max_candidates) > 0 {
            self.out.cap_hit();
        }
        let observed = policy.allowed_observed();
        let mut targets: Vec<RemoteCandidate> = observed
            .map(|remote| RemoteCandidate {
                remote,
                priority: candidate::priority(CandidateKind::PeerReflexive, remote.ip()),
                origin: Origin::Observed,
                kind,
            })
            .into_iter()
            .collect();
        let mut known: BTreeSet<SocketAddr> = observed.into_iter().collect();
        let new = candidates.iter().filter(|candidate| known.insert(candidate.address));
        targets.extend(new.map(RemoteCandidate::announced));
        (targets, candidates)
    }

    /// Forms the pairs of our sockets and the addresses that may be probed.
    pub(super) fn form_checklist(
        &mut self,
        key: Key,
        candidates: Vec<Candidate>,
        link: &ControlStream,
        observed: Option<SocketAddr>,
        request_len: usize,
        now: Instant,
    ) {
        let (targets, candidates) = self.targets_among(candidates, link, observed);
        let (burst, max_pairs) = (self.settings.max_concurrent_attempts, self.settings.max_pairs());
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.targets = targets;
        let mut checklist = Checklist::new(session.role, burst, max_pairs);
        checklist.limit_each_destination(probes_for(request_len));
        session.checklist = Some(Box::new(checklist));
        let local = self.network.candidates_for(link.is_loopback());
        self.out.event(Event::Candidates { peer: session.peer, local, remote: candidates });
        self.extend_checklist(key, link.socket, now);
    }

    /// Adds to the checklist of an attempt under way what its peer and a coordinator say by now.
    pub(super) fn extend_targets(
        &mut self,
        key: Key,
        candidates: Vec<Candidate>,
        link: &ControlStream,
        observed: Option<SocketAddr>,
        now: Instant,
    ) {
        let (targets, _) = self.targets_among(candidates, link, observed);
        let max_targets = 2 * self.settings.max_pairs();
        let Some(session) = self.sessions.get_mut(key) else { return };
        for target in targets {
            let is_known = session.targets.iter().any(|known| known.remote == target.remote);
            match session.targets.len() < max_targets {
                _ if is_known => {}
                true => session.targets.push(target),
                false => self.out.cap_hit(),
            }
        }
        self.extend_checklist(key, link.socket, now);
    }

    /// Probes what a newer registration of the peer commits, instead of what an older one did. Budgets and what was heard stay.
    pub(super) fn replace_targets(
        &mut self,
        key: Key,
        candidates: Vec<Candidate>,
        link: &ControlStream,
        observed: Option<SocketAddr>,
        now: Instant,
    ) {
        let (targets, candidates) = self.targets_among(candidates, link, observed);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (Some(checklist), Some(flow)) = (&mut session.checklist, session.flow) else { return };
        for path in checklist.remove_unheard(|remote| targets.iter().all(|target| target.remote != remote)) {
            self.out.command(Command::Forget { flow, path });
        }
        session.targets = targets;
        let local = self.network.candidates_for(link.is_loopback());
        self.out.event(Event::Candidates { peer: session.peer, local, remote: candidates });
        self.extend_checklist(key, link.socket, now);
    }

    /// Adds the pairs that are missing from a checklist; of two sockets `first` comes first.
    pub(super) fn extend_checklist(&mut self, key: Key, first: Option<SocketId>, now: Instant) {
        let max_pairs = self.settings.max_pairs();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (flow, role, selected) = (session.flow, session.role, session.selected());
        let (Some(checklist), Some(flow)) = (&mut session.checklist, flow) else { return };
        for target in &session.targets {
            let mut sockets = self.network.sockets_for(target.remote);
            // The one that the peer knows may have been opened for sessions only.
            let current =
                selected.filter(|path| path.remote.is_ipv4() == target.remote.is_ipv4()).map(|p| p.socket);
            sockets.extend(current.filter(|socket| !sockets.contains(socket)));
            sockets.sort_by_key(|socket| (Some(*socket) != current, Some(*socket) != first));
            for socket in sockets {
                let path = Path { socket, remote: target.remote };
                if checklist.pairs().len() >= max_pairs {
                    return self.out.cap_hit();
                }
                let priority = pair_priority_of(role, target.remote.ip(), target.priority);
                if checklist.add(path, priority, target.origin, now) {
                    self.out.command(Command::Admit { flow, path, heard: false });
                }
            }
        }
    }

    /// Lets the server's flight go to the address that the coordinator observed, within `budget` bytes.
    pub(super) fn permit_observed(
        &mut self,
        key: Key,
        link: &ControlStream,
        observed: Option<SocketAddr>,
        budget: usize,
    ) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (Some(checklist), Some(flow)) = (&mut session.checklist, session.flow) else { return };
        let is_observed =
            |pair: &&Pair| Some(pair.path.remote) == observed && pair.origin == Origin::Observed;
        let usable = || checklist.pairs().iter().filter(is_observed);
        // What the coordinator saw, it saw from over there: through the same socket of ours the NATs know each other.
        let path = usable()
            .find(|pair| Some(pair.path.socket) == link.socket)
            .or_else(|| usable().next())
            .map(|pair| pair.path);
        if let Some(path) = path
            && let Some(pair) = checklist.get_mut(path)
        {
            pair.permitted = true;
            self.out.command(Command::Permit { flow, path, budget, again: false });
        }
    }

    /// Our sockets changed: new pairs are probed at once.
    pub(super) fn extend_checklists(&mut self, now: Instant) {
        for key in self.probing() {
            self.wake(key, now);
            self.extend_checklist(key, None, now);
            self.poll_session(key, now);
        }
    }

    /// A socket is gone: its pairs go, and another path takes over if it carried the connection.
    pub(super) fn shrink_checklists(&mut self, socket: SocketId, now: Instant) {
        for key in self.probing() {
            self.wake(key, now);
            let Some(session) = self.sessions.get_mut(key) else { continue };
            let (Some(checklist), Some(flow)) = (&mut session.checklist, session.flow) else { continue };
            for path in checklist.remove_socket(socket) {
                self.out.command(Command::Forget { flow, path });
            }
            self.extend_checklist(key, None, now);
            self.choose(key, now);
        }
    }

    /// Our addresses changed: every pair is probed anew.
    pub(super) fn restart_checklists(&mut self, now: Instant) {
        for key in self.probing() {
            self.wake(key, now);
            self.extend_checklist(key, None, now);
            if let Some(checklist) = self.sessions.get_mut(key).and_then(|s| s.checklist.as_mut()) {
                checklist.restart(now);
            }
            self.poll_session(key, now);
        }
    }

    fn probing(&self) -> Vec<Key> {
        let has_checklist = |key: &Key| self.sessions.get(*key).is_some_and(Session::is_probing);
        self.sessions.keys().into_iter().filter(has_checklist).collect()
    }
}

/// The priority of a pair whose other end has `remote_priority`. Ours is that of a host candidate: what we send from is
/// always a socket of this host.
pub(super) fn pair_priority_of(role: SessionRole, remote: IpAddr, remote_priority: u32) -> u64 {
    let local = candidate::priority(CandidateKind::Host, remote);
    match role {
        SessionRole::Initiator => pair_priority(local, remote_priority),
        SessionRole::Responder => pair_priority(remote_priority, local),
    }
}
