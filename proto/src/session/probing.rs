//! Probes: forming checklists, sending and answering, choosing the path.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use rand::Rng;

use crate::{
    Path, SocketId,
    address_policy::Policy,
    candidate::{self, Candidate, CandidateKind, keep_best, pair_priority},
    command::Command,
    config::Config,
    control_streams::ControlStream,
    event::{Event, PathKind, Phase, SessionRole},
    probe_budget::probes_for,
    session::{
        MAX_KEPT, Progress, RemoteCandidate, Session, Transition,
        checklist::{CHALLENGE_RATE, Checklist, MAX_FORMED},
        contact::Contact,
        context::Context,
        pair::{Origin, State},
    },
    wire::probe::{PROBE_LEN, Probe},
};

/// Bytes that QUIC may send to the source of an authentic probe before that path is validated (RFC
/// 9000 §8.1). The path layer adds three times the bytes that QUIC itself receives there.
const HEARD_BUDGET: usize = 3 * PROBE_LEN;

/// Addresses of the peer, as the peer signed them and as its coordinator observes them.
#[derive(Debug)]
pub(super) struct RemoteAddresses<'a> {
    /// The control stream to the coordinator.
    pub(super) from: &'a ControlStream,
    pub(super) candidates: Vec<Candidate>,
    pub(super) observed: Option<SocketAddr>,
}

impl Config {
    /// Returns the number of pairs that the peer's candidates and the local sockets may form: an
    /// IPv4 and an IPv6 listener, or two interfaces, times the candidates, as far as there is room.
    pub(super) fn max_pairs(&self) -> usize {
        (2 * self.max_candidates).min(MAX_FORMED)
    }
}

impl Session {
    /// An authentic probe arrived on `path`.
    pub(super) fn handle_probe(&mut self, cx: &mut Context<'_>, path: Path, probe: Probe) -> Transition {
        let progress = match probe {
            Probe::Challenge { data, nominate } => self.challenged(cx, path, data, nominate),
            Probe::Response { data, .. } => self.answered(cx, path, data),
        };
        if progress.is_ok() {
            self.settle(cx);
        }
        self.conclude(cx, progress)
    }

    fn challenged(&mut self, cx: &mut Context<'_>, path: Path, data: [u8; 8], nominate: bool) -> Progress {
        let triggered = cx.env.rng.random();
        self.restore_checklist(cx);
        let connected = self.is_connected();
        let priority = self.pair_priority(path.remote.ip(), {
            candidate::priority(CandidateKind::PeerReflexive, path.remote.ip())
        });
        let Some(checklist) = &mut self.paths.checklist else { return Ok(()) };
        if !self.paths.answers.take(CHALLENGE_RATE, cx.now) {
            cx.env.out.cap_hit();
            return Ok(());
        }
        let was_heard = checklist.is_heard(path);
        let heard = checklist.on_challenge(path, priority, nominate, cx.now);
        if heard.capped {
            cx.env.out.cap_hit();
        }
        let due = if heard.trigger { checklist.trigger(path, triggered, cx.now) } else { None };
        if heard.is_new && connected {
            checklist.recheck_selected(cx.now);
        }
        let Some(keys) = &self.keys else { return Ok(()) };
        if heard.answer {
            cx.env.out.probe(path, Probe::Response { data, observed: path.remote }, keys);
        }
        if let Some(due) = due {
            cx.env.out.probe(due.path, Probe::Challenge { data: due.data, nominate: due.nominate }, keys);
        }
        if let Some(flow) = self.flow.filter(|_| heard.answer && !was_heard) {
            cx.env.out.command(Command::Admit { flow, path, heard: true });
        }
        if heard.answer {
            self.validating(cx);
            self.permit_heard(cx, path);
            self.select(cx);
            return self.poll(cx);
        }
        Ok(())
    }

    /// An authentic challenge came from `path`: QUIC may answer there, if the peer or its
    /// coordinator named the address.
    fn permit_heard(&mut self, cx: &mut Context<'_>, path: Path) {
        let (Some(checklist), Some(flow)) = (&mut self.paths.checklist, self.flow) else { return };
        if checklist.selected.is_some() || !checklist.is_announced(path.remote) {
            return;
        }
        let once_heard = checklist.flight_once_heard.take();
        let Some(pair) = checklist.get_mut(path) else { return };
        // The NAT of an initiator lets the server's flight in only after the initiator has sent. A
        // flight that went out before that is lost, and goes out again within what is left of the
        // same budget.
        let permit = match (self.role, pair.permitted) {
            (SessionRole::Initiator, false) => Some((HEARD_BUDGET, false)),
            (SessionRole::Initiator, true) => None,
            (SessionRole::Responder, true) => once_heard.map(|_| (HEARD_BUDGET, true)),
            // The source may be forged, and nobody but the peer named it.
            (SessionRole::Responder, false) => once_heard.and_then(|flight| {
                let is_allowed = cx.shared.flights.take(flight.coordinator, cx.now).is_ok();
                is_allowed.then_some((flight.budget, false))
            }),
        };
        if let Some((budget, again)) = permit {
            pair.permitted = true;
            cx.env.out.command(Command::Permit { flow, path, budget, again });
        }
    }

    fn answered(&mut self, cx: &mut Context<'_>, path: Path, data: [u8; 8]) -> Progress {
        let (peer, flow) = (self.peer, self.flow);
        let was_asked = matches!(self.course.contact, Contact::Asked | Contact::Told);
        let Some(checklist) = &mut self.paths.checklist else { return Ok(()) };
        let (in_doubt, was_heard) = (checklist.is_in_doubt(), checklist.is_heard(path));
        let Some((rtt, first)) = checklist.on_response(path, data, cx.now) else { return Ok(()) };
        let works_again = in_doubt && !checklist.is_in_doubt();
        if let Some(flow) = flow {
            if !was_heard {
                cx.env.out.command(Command::Admit { flow, path, heard: true });
            }
            if works_again && !was_asked {
                // The packets that QUIC sent meanwhile are lost.
                cx.env.out.command(Command::Select { flow, path });
            }
        }
        self.validating(cx);
        if first {
            cx.env.out.event(Event::PathValidated { peer, path, rtt });
        }
        self.select(cx);
        self.poll(cx)?;
        self.contact_kept(cx);
        Ok(())
    }

    /// The first authentic probe begins the phase Validation.
    fn validating(&mut self, cx: &mut Context<'_>) {
        if self.course.is_silent() {
            self.give_flight_back(cx);
            self.search.end(cx.shared);
            self.enter(cx, Phase::Validation);
        }
    }

    /// The peer has answered: the coordinator on whose word the server's flight went out did not
    /// lie.
    pub(super) fn give_flight_back(&mut self, cx: &mut Context<'_>) {
        let checklist = self.paths.checklist.as_mut();
        if let Some(coordinator) = checklist.and_then(|checklist| checklist.flight_vouched_by.take()) {
            cx.shared.flights.give_back(&coordinator);
        }
    }

    /// Selects another path if there is reason to.
    fn select(&mut self, cx: &mut Context<'_>) {
        let (peer, before) = (self.peer, self.paths.selected());
        let checklist = self.paths.checklist.as_mut();
        if let Some(path) = checklist.and_then(|checklist| checklist.reconsider(cx.now))
            && let Some(flow) = self.flow
        {
            cx.env.out.command(Command::Select { flow, path });
            cx.env.out.event(Event::PathSelected { peer, path });
            if let Some(before) = before.filter(|before| before.socket != path.socket) {
                cx.env.local.observations.leaves(&peer, before.socket);
            }
        }
    }

    /// Sends the probe that is due, such as a nomination, and continues with everything else that
    /// is due.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Progress {
        self.ask_again(cx)?;
        let data = cx.env.rng.random();
        let due = self.paths.checklist.as_mut().and_then(|checklist| checklist.poll(cx.now, data));
        let is_of_peer = self.role == SessionRole::Responder || self.is_connected();
        if let Some(due) = due
            && let Some(keys) = &self.keys
        {
            let destination = due.path.remote.ip().into();
            if is_of_peer && due.is_unproven && !cx.shared.probes.take(destination, cx.now) {
                cx.env.out.cap_hit();
            } else {
                let challenge = Probe::Challenge { data: due.data, nominate: due.nominate };
                cx.env.out.probe(due.path, challenge, keys);
            }
            if self.course.phase == Phase::Synchronization {
                self.enter(cx, Phase::Punching);
            }
        }
        if self.course.is_silent() || self.is_missing() {
            self.run_search(cx)?;
        }
        // A probe that goes unanswered may be the one by which the selected path proves dead.
        self.select(cx);
        self.tell_if_unheard(cx);
        self.settle(cx);
        Ok(())
    }

    /// Drops what a connected session that idles does not need.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) {
        let Some(flow) = self.flow.filter(|_| self.is_connected() && self.search.plan.is_none()) else {
            return;
        };
        let checklist = self.paths.checklist.as_ref().filter(|checklist| checklist.is_idle());
        let Some(checklist) = checklist else { return };
        // Without a path that works the peer may yet be heard from another.
        let Some(known) = checklist.known() else { return };
        // An address that was not probed this time may work as it did.
        let fails = |remote| {
            let mut pairs = checklist.pairs().iter().filter(|pair| pair.path.remote == remote).peekable();
            pairs.peek().is_some() && !pairs.any(|pair| pair.state == State::Succeeded)
        };
        self.paths.targets.retain(|target| !fails(target.remote));
        self.paths.targets.truncate(MAX_KEPT);
        self.paths.targets.shrink_to_fit();
        self.paths.known = Some(Box::new(known));
        for path in checklist.pairs().iter().map(|pair| pair.path).filter(|path| *path != known.path) {
            cx.env.out.command(Command::Forget { flow, path });
        }
        self.paths.checklist = None;
        self.close_sockets(cx);
    }

    /// Gives a connected session that idled its checklist back.
    pub(super) fn restore_checklist(&mut self, cx: &Context<'_>) {
        if let Some(known) = self.paths.known.take() {
            let checklist = self.empty_checklist(&cx.env.config).resume(*known, cx.now);
            self.paths.checklist = Some(Box::new(checklist));
        }
    }

    fn empty_checklist(&self, config: &Config) -> Checklist {
        Checklist::new(self.role, config.max_concurrent_attempts, config.max_pairs())
    }

    /// Forms the pairs of the local sockets and the addresses that may be probed.
    pub(super) fn form_checklist(
        &mut self,
        cx: &mut Context<'_>,
        remote: RemoteAddresses<'_>,
        request_len: usize,
    ) {
        let from = remote.from;
        let (targets, candidates) = targets_among(cx, remote);
        self.paths.targets = targets;
        let mut checklist = self.empty_checklist(&cx.env.config);
        checklist.limit_each_destination(probes_for(request_len));
        self.paths.checklist = Some(Box::new(checklist));
        let local = cx.env.local.candidates_for(from.is_loopback());
        cx.env.out.event(Event::Candidates { peer: self.peer, local, remote: candidates });
        self.extend_checklist(cx, from.socket);
    }

    /// Adds to the checklist of an attempt under way the addresses that the peer and a coordinator
    /// name by now.
    pub(super) fn extend_targets(&mut self, cx: &mut Context<'_>, remote: RemoteAddresses<'_>) {
        let first = remote.from.socket;
        let (targets, _) = targets_among(cx, remote);
        let max_targets = 2 * cx.env.config.max_pairs();
        for target in targets {
            let is_known = self.paths.targets.iter().any(|known| known.remote == target.remote);
            match self.paths.targets.len() < max_targets {
                _ if is_known => {}
                true => self.paths.targets.push(target),
                false => cx.env.out.cap_hit(),
            }
        }
        self.extend_checklist(cx, first);
    }

    /// Probes the addresses of a newer registration of the peer instead of those of an older one.
    /// Budgets and answers stay.
    pub(super) fn replace_targets(&mut self, cx: &mut Context<'_>, remote: RemoteAddresses<'_>) {
        let from = remote.from;
        let (targets, candidates) = targets_among(cx, remote);
        let (Some(checklist), Some(flow)) = (&mut self.paths.checklist, self.flow) else { return };
        for path in checklist.remove_unheard(|remote| targets.iter().all(|target| target.remote != remote)) {
            cx.env.out.command(Command::Forget { flow, path });
        }
        self.paths.targets = targets;
        let local = cx.env.local.candidates_for(from.is_loopback());
        cx.env.out.event(Event::Candidates { peer: self.peer, local, remote: candidates });
        self.extend_checklist(cx, from.socket);
    }

    /// Adds the pairs that are missing from a checklist; of two sockets `first` comes first.
    pub(super) fn extend_checklist(&mut self, cx: &mut Context<'_>, first: Option<SocketId>) {
        let max_pairs = cx.env.config.max_pairs();
        let (role, selected) = (self.role, self.paths.selected());
        let (Some(checklist), Some(flow)) = (&mut self.paths.checklist, self.flow) else { return };
        for target in &self.paths.targets {
            let mut sockets = cx.env.local.sockets_for(target.remote);
            // The socket that the peer knows may have been opened for sessions only.
            let current =
                selected.filter(|path| path.remote.is_ipv4() == target.remote.is_ipv4()).map(|p| p.socket);
            sockets.extend(current.filter(|socket| !sockets.contains(socket)));
            sockets.sort_by_key(|socket| (Some(*socket) != current, Some(*socket) != first));
            for socket in sockets {
                let path = Path { socket, remote: target.remote };
                if checklist.pairs().len() >= max_pairs {
                    return cx.env.out.cap_hit();
                }
                let priority = pair_priority_of(role, target.remote.ip(), target.priority);
                if checklist.add(path, priority, target.origin, cx.now) {
                    cx.env.out.command(Command::Admit { flow, path, heard: false });
                }
            }
        }
    }

    /// The local sockets changed: new pairs are probed at once.
    pub(super) fn handle_sockets_changed(&mut self, cx: &mut Context<'_>) -> Transition {
        self.restore_checklist(cx);
        self.extend_checklist(cx, None);
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// A socket is gone: its pairs go, and another path takes over if it carried the connection.
    pub(super) fn handle_socket_down(&mut self, cx: &mut Context<'_>, socket: SocketId) -> Transition {
        self.restore_checklist(cx);
        if !self.forget_socket(cx, socket) {
            return Transition::Stay;
        }
        self.extend_checklist(cx, None);
        self.select(cx);
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// Removes the paths of a socket from the checklist. Returns false if there is none.
    pub(super) fn forget_socket(&mut self, cx: &mut Context<'_>, socket: SocketId) -> bool {
        let (Some(checklist), Some(flow)) = (&mut self.paths.checklist, self.flow) else { return false };
        for path in checklist.remove_socket(socket) {
            cx.env.out.command(Command::Forget { flow, path });
        }
        true
    }

    /// The local addresses changed: every pair is probed again.
    pub(super) fn handle_network_changed(&mut self, cx: &mut Context<'_>) -> Transition {
        self.restart_checklist(cx);
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// Probes every pair again, and those that are missing.
    pub(super) fn restart_checklist(&mut self, cx: &mut Context<'_>) {
        self.restore_checklist(cx);
        self.extend_checklist(cx, None);
        if let Some(checklist) = &mut self.paths.checklist {
            checklist.restart(cx.now);
        }
    }

    pub(super) fn pair_priority(&self, remote: IpAddr, remote_priority: u32) -> u64 {
        pair_priority_of(self.role, remote, remote_priority)
    }
}

/// Returns the addresses that may be probed, the best first, and the candidates among them.
fn targets_among(
    cx: &mut Context<'_>,
    remote: RemoteAddresses<'_>,
) -> (Vec<RemoteCandidate>, Vec<Candidate>) {
    let RemoteAddresses { from, mut candidates, observed } = remote;
    let policy = Policy {
        prefixes: &cx.env.local.prefixes(),
        public: &cx.env.public_addresses(),
        own: &cx.env.local.own_addresses(),
        coordinator: from.remote,
        observed,
    };
    // Without a NAT in between, the coordinator sees the peer at one of its own addresses.
    let announced = candidates.iter().find(|candidate| Some(candidate.address) == observed);
    let kind =
        announced.map_or(PathKind::ServerReflexive, |candidate| RemoteCandidate::announced(candidate).kind);
    candidates.retain(|candidate| policy.allows(candidate));
    if keep_best(&mut candidates, cx.env.config.max_candidates) > 0 {
        cx.env.out.cap_hit();
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

/// Returns the priority of a pair whose other end has `remote_priority`. The local end is a host
/// candidate: packets always leave from a socket of this host.
fn pair_priority_of(role: SessionRole, remote: IpAddr, remote_priority: u32) -> u64 {
    let local = candidate::priority(CandidateKind::Host, remote);
    match role {
        SessionRole::Initiator => pair_priority(local, remote_priority),
        SessionRole::Responder => pair_priority(remote_priority, local),
    }
}
