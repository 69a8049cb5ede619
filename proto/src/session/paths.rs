//! Remote addresses of a session, and the paths to them.
//!
//! [`Paths`] forms the checklist from the candidates of the peer, extends it, and tells the path
//! layer which paths are admitted, permitted, selected and forgotten. It does not know phases, and
//! sends no probes: `probing` does.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{
    Path, SocketId, VirtualConnectionId,
    address_policy::{Policy, Scope, scope},
    candidate::{self, Candidate, CandidateKind, keep_best, pair_priority},
    command::Command,
    config::Config,
    control_streams::ControlStream,
    event::{Event, PathKind, SessionRole},
    probe_budget::{probes_for, probes_in},
    rate_limit::TokenBucket,
    session::{
        Attempt, MAX_KEPT, RemoteCandidate,
        checklist::{Checklist, Known, MAX_FORMED},
        context::Context,
        pair::{self, Origin, Pair, State},
    },
    wire::probe::PROBE_LEN,
};

/// Bytes that QUIC may send to the source of an authentic probe before that path is validated (RFC
/// 9000 §8.1). The path layer adds three times the bytes that QUIC itself receives there.
const HEARD_BUDGET: usize = 3 * PROBE_LEN;

/// Bytes of a server flight for each byte of the first flight (RFC 9000 §8.1), to an address that
/// is not validated.
pub(super) const FLIGHT_FACTOR: usize = 3;
/// Bytes of a server flight to an address that only the initiator named: three times a first flight
/// of one datagram.
const MAX_SIGNED_FLIGHT: usize = 3_600;
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

/// Remote addresses of a session, and the paths to them.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    pub(crate) targets: Vec<RemoteCandidate>,
    pub(crate) checklist: Option<Box<Checklist>>,
    /// Takes the place of the checklist while a connected session has nothing to probe.
    pub(crate) known: Option<Box<Known>>,
    /// Bounds the answers to the peer's challenges.
    pub(super) answers: TokenBucket,
}

impl Paths {
    /// Returns the path that carries the connection.
    pub(crate) fn selected(&self) -> Option<Path> {
        let selected = self.checklist.as_ref().and_then(|checklist| checklist.selected);
        selected.or(self.known.as_ref().map(|known| known.path))
    }

    /// Returns true if the path that carries the connection has answered its last challenges.
    pub(crate) fn has_path(&self) -> bool {
        match &self.checklist {
            Some(checklist) => checklist.selected.is_some() && !checklist.is_in_doubt(),
            None => self.known.is_some(),
        }
    }

    /// Returns the time that the peer has for a procedure of this number of round trips.
    pub(crate) fn time_for(&self, least: Duration, round_trips: u32) -> Duration {
        let measured = self.checklist.as_ref().and_then(|checklist| checklist.best_rtt());
        least.max(measured.unwrap_or_default() * round_trips)
    }

    /// Returns true if there are paths to probe.
    pub(crate) fn is_probing(&self) -> bool {
        self.checklist.is_some() || self.known.is_some()
    }

    /// Gives a connected session that idled its checklist back.
    pub(super) fn restore_checklist(&mut self, cx: &Context<'_>, role: SessionRole) {
        if let Some(known) = self.known.take() {
            let checklist = empty_checklist(role, &cx.env.config).resume(*known, cx.now);
            self.checklist = Some(Box::new(checklist));
        }
    }

    /// Forms the pairs of the local sockets and the addresses that may be probed.
    pub(super) fn form_checklist(
        &mut self,
        cx: &mut Context<'_>,
        of: Attempt,
        remote: RemoteAddresses<'_>,
        request_len: usize,
    ) {
        let from = remote.from;
        let (targets, candidates) = targets_among(cx, remote);
        self.targets = targets;
        let mut checklist = empty_checklist(of.role, &cx.env.config);
        checklist.limit_each_destination(probes_for(request_len));
        self.checklist = Some(Box::new(checklist));
        let local = cx.env.local.candidates_for(from.is_loopback());
        cx.env.out.event(Event::Candidates { peer: of.peer, local, remote: candidates });
        self.extend_checklist(cx, of, from.socket);
    }

    /// Adds to the checklist of an attempt under way the addresses that the peer and a coordinator
    /// name by now.
    pub(super) fn extend_targets(&mut self, cx: &mut Context<'_>, of: Attempt, remote: RemoteAddresses<'_>) {
        let first = remote.from.socket;
        let (targets, _) = targets_among(cx, remote);
        let max_targets = 2 * cx.env.config.max_pairs();
        for target in targets {
            let is_known = self.targets.iter().any(|known| known.remote == target.remote);
            match self.targets.len() < max_targets {
                _ if is_known => {}
                true => self.targets.push(target),
                false => cx.env.out.cap_hit(),
            }
        }
        self.extend_checklist(cx, of, first);
    }

    /// Probes the addresses of a newer registration of the peer instead of those of an older one.
    /// Budgets and answers stay.
    pub(super) fn replace_targets(&mut self, cx: &mut Context<'_>, of: Attempt, remote: RemoteAddresses<'_>) {
        let from = remote.from;
        let (targets, candidates) = targets_among(cx, remote);
        let (Some(checklist), Some(flow)) = (&mut self.checklist, of.flow) else { return };
        for path in checklist.remove_unheard(|remote| targets.iter().all(|target| target.remote != remote)) {
            cx.env.out.command(Command::Forget { flow, path });
        }
        self.targets = targets;
        let local = cx.env.local.candidates_for(from.is_loopback());
        cx.env.out.event(Event::Candidates { peer: of.peer, local, remote: candidates });
        self.extend_checklist(cx, of, from.socket);
    }

    /// Adds the pairs that are missing from a checklist; of two sockets `first` comes first.
    pub(super) fn extend_checklist(&mut self, cx: &mut Context<'_>, of: Attempt, first: Option<SocketId>) {
        let max_pairs = cx.env.config.max_pairs();
        let selected = self.selected();
        let (Some(checklist), Some(flow)) = (&mut self.checklist, of.flow) else { return };
        for target in &self.targets {
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
                let priority = pair_priority_of(of.role, target.remote.ip(), target.priority);
                if checklist.add(path, priority, target.origin, cx.now) {
                    cx.env.out.command(Command::Admit { flow, path, heard: false });
                }
            }
        }
    }

    /// Removes the paths of a socket from the checklist. Returns false if there is none.
    pub(super) fn forget_socket(&mut self, cx: &mut Context<'_>, of: Attempt, socket: SocketId) -> bool {
        let (Some(checklist), Some(flow)) = (&mut self.checklist, of.flow) else { return false };
        for path in checklist.remove_socket(socket) {
            cx.env.out.command(Command::Forget { flow, path });
        }
        true
    }

    /// Probes every pair again, and those that are missing.
    pub(super) fn restart_checklist(&mut self, cx: &mut Context<'_>, of: Attempt) {
        self.restore_checklist(cx, of.role);
        self.extend_checklist(cx, of, None);
        if let Some(checklist) = &mut self.checklist {
            checklist.restart(cx.now);
        }
    }

    pub(super) fn mark_remapped(&mut self, now: Instant) {
        if let Some(checklist) = &mut self.checklist {
            checklist.remapped(now);
        }
    }

    /// Selects another path if there is reason to.
    pub(super) fn select(&mut self, cx: &mut Context<'_>, of: Attempt) {
        let (peer, before) = (of.peer, self.selected());
        let checklist = self.checklist.as_mut();
        if let Some(path) = checklist.and_then(|checklist| checklist.reconsider(cx.now))
            && let Some(flow) = of.flow
        {
            cx.env.out.command(Command::Select { flow, path });
            cx.env.out.event(Event::PathSelected { peer, path });
            if let Some(before) = before.filter(|before| before.socket != path.socket) {
                cx.env.local.observations.leaves(&peer, before.socket);
            }
        }
    }

    /// An authentic challenge came from `path`: QUIC may answer there, if the peer or its
    /// coordinator named the address.
    pub(super) fn permit_heard(&mut self, cx: &mut Context<'_>, of: Attempt, path: Path) {
        let (Some(checklist), Some(flow)) = (&mut self.checklist, of.flow) else { return };
        if checklist.selected.is_some() || !checklist.is_announced(path.remote) {
            return;
        }
        let once_heard = checklist.flight_once_heard.take();
        let Some(pair) = checklist.get_mut(path) else { return };
        // The NAT of an initiator lets the server's flight in only after the initiator has sent. A
        // flight that went out before that is lost, and goes out again within what is left of the
        // same budget.
        let permit = match (of.role, pair.permitted) {
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

    /// Lets the server's flight go to where the coordinator sees the initiator, up to three times
    /// the bytes of the first flight.
    pub(super) fn permit_flight(
        &mut self,
        cx: &mut Context<'_>,
        of: Attempt,
        from: &ControlStream,
        observed: Option<SocketAddr>,
        bytes: usize,
    ) {
        if cx.shared.flights.take(from.peer, cx.now).is_err() {
            // The flight waits for an authentic probe.
            return cx.env.out.cap_hit();
        }
        let (Some(checklist), Some(flow)) = (&mut self.checklist, of.flow) else { return };
        checklist.flight_vouched_by = Some(from.peer);
        let is_observed =
            |pair: &&Pair| Some(pair.path.remote) == observed && pair.origin == pair::Origin::Observed;
        let usable = || checklist.pairs().iter().filter(is_observed);
        // The coordinator saw that address from the network of its stream: through the same local
        // socket the NATs know each other.
        let path = usable()
            .find(|pair| Some(pair.path.socket) == from.socket)
            .or_else(|| usable().next())
            .map(|pair| pair.path);
        if let Some(path) = path
            && let Some(pair) = checklist.get_mut(path)
        {
            pair.permitted = true;
            let budget = FLIGHT_FACTOR * bytes;
            cx.env.out.command(Command::Permit { flow, path, budget, again: false });
        }
    }

    /// The coordinator sees the initiator over one address family. Over another one the server's
    /// flight goes to the best global address that the initiator signed, within what the request
    /// may cost any address.
    pub(super) fn permit_flight_to_signed(
        &mut self,
        cx: &mut Context<'_>,
        of: Attempt,
        observed: Option<SocketAddr>,
        bytes: usize,
    ) {
        let (Some(checklist), Some(flow)) = (&mut self.checklist, of.flow) else { return };
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
        if !cx.shared.probes.take_flight(path.remote.ip().into(), cx.now) {
            // The flight waits for an authentic probe.
            return cx.env.out.cap_hit();
        }
        checklist.charge(path, probes);
        if let Some(pair) = checklist.get_mut(path) {
            pair.permitted = true;
        }
        cx.env.out.command(Command::Permit { flow, path, budget, again: false });
    }

    /// The peer has answered: the coordinator on whose word the server's flight went out did not
    /// lie.
    pub(super) fn give_flight_back(&mut self, cx: &mut Context<'_>) {
        let checklist = self.checklist.as_mut();
        if let Some(coordinator) = checklist.and_then(|checklist| checklist.flight_vouched_by.take()) {
            cx.shared.flights.give_back(&coordinator);
        }
    }

    /// Drops what a connected session that idles does not need. Returns false if it still probes.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>, flow: Option<VirtualConnectionId>) -> bool {
        let Some(flow) = flow else { return false };
        let checklist = self.checklist.as_ref().filter(|checklist| checklist.is_idle());
        let Some(checklist) = checklist else { return false };
        // Without a path that works the peer may yet be heard from another.
        let Some(known) = checklist.known() else { return false };
        // An address that was not probed this time may work as it did.
        let fails = |remote| {
            let mut pairs = checklist.pairs().iter().filter(|pair| pair.path.remote == remote).peekable();
            pairs.peek().is_some() && !pairs.any(|pair| pair.state == State::Succeeded)
        };
        self.targets.retain(|target| !fails(target.remote));
        self.targets.truncate(MAX_KEPT);
        self.targets.shrink_to_fit();
        self.known = Some(Box::new(known));
        for path in checklist.pairs().iter().map(|pair| pair.path).filter(|path| *path != known.path) {
            cx.env.out.command(Command::Forget { flow, path });
        }
        self.checklist = None;
        true
    }
}

fn empty_checklist(role: SessionRole, config: &Config) -> Checklist {
    Checklist::new(role, config.max_concurrent_attempts, config.max_pairs())
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
pub(super) fn pair_priority_of(role: SessionRole, remote: IpAddr, remote_priority: u32) -> u64 {
    let local = candidate::priority(CandidateKind::Host, remote);
    match role {
        SessionRole::Initiator => pair_priority(local, remote_priority),
        SessionRole::Responder => pair_priority(remote_priority, local),
    }
}
