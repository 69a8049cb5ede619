//! Searches of a session: what follows if plain probes meet silence, by the table of
//! `docs/protocol.md` §7.5.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;

use crate::{
    ControlStreamId, SocketId, VirtualConnectionId,
    command::{Command, Pool},
    control_streams::ControlStream,
    event::NatKinds,
    event::{Event, FailureReason, PathKind, Phase, SessionRole},
    local_addresses::Family,
    nat::{
        observer::{Purpose, Sample},
        strategy::{NatProfile, Strategy, strategy},
    },
    session::{
        Progress, RemoteCandidate, Session, Transition,
        context::{Context, Shared},
        pair::Origin,
        paths::Paths,
        port_search::{
            Action, Admission, MAX_WAIT, SEARCH_TIMEOUT, SILENCE_TIMEOUT, Search, SearchPlan, Window,
        },
    },
    wire::{
        frame::{Frame, PortPrediction},
        keys::MAC_LEN,
        probe::Probe,
    },
};

/// Longest time for which plain probes are waited for, however far the peer is.
const MAX_SILENCE: Duration = Duration::from_secs(1);

/// Delay of the search of a connected session after both sides know each other's addresses: plain
/// probes get a round trip first.
const REUNION_SILENCE: Duration = Duration::from_millis(50);

/// Search of a session, and its sockets.
#[derive(Debug, Default)]
pub(crate) struct SessionSearch {
    /// The search that follows if plain probes meet silence.
    pub(super) plan: Option<Box<Search>>,
    /// Kind of the paths that the search of this attempt finds.
    pub(super) finds: Option<PathKind>,
    /// Sockets that were opened for a search and are still open.
    sockets: Vec<SocketId>,
    /// Sockets that the attempt under way may open, of those of all searches: at most 256.
    reserved: u16,
}

/// Knowledge from which a search is planned.
#[derive(Debug)]
pub(super) struct PlannedFrom<'a> {
    /// The control stream to the coordinator that both sides use.
    pub(super) stream: &'a ControlStream,
    /// The NAT profile of the peer.
    pub(super) theirs: NatProfile,
    /// Time that the coordinator took to answer, if it is known.
    pub(super) coordination: Option<Duration>,
}

impl SessionSearch {
    /// Returns true if the session opened this socket.
    pub(super) fn owns(&self, socket: SocketId) -> bool {
        self.sockets.contains(&socket)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.plan.as_ref().and_then(|search| search.next_due())
    }

    /// Aims the search at the address where a coordinator sees the peer now.
    pub(super) fn retarget(&mut self, observed: Option<SocketAddr>, now: Instant) {
        if let (Some(observed), Some(search)) = (observed, &mut self.plan) {
            search.retarget(observed, now);
        }
    }

    /// Sends no more probes of the search. Its sockets stay until `Session::close_sockets`.
    pub(super) fn end(&mut self, shared: &mut Shared) {
        if let Some(search) = self.plan.take() {
            shared.searches.left(search.turn.ticket);
            if search.running {
                shared.searches.ended();
            }
        }
    }

    /// Lets other searches open the sockets that this attempt no longer needs.
    pub(super) fn release_sockets(&mut self, shared: &mut Shared) {
        shared.searches.closed(usize::from(std::mem::take(&mut self.reserved)));
    }

    /// Closes all sockets of an attempt that is abandoned, those that are being opened included.
    pub(super) fn abandon_sockets(&mut self, cx: &mut Context<'_>, flow: Option<VirtualConnectionId>) {
        let sockets = std::mem::take(&mut self.sockets);
        let is_opening = self.reserved > 0;
        if let Some(flow) = flow.filter(|_| is_opening || !sockets.is_empty()) {
            cx.env.out.command(Command::CloseSockets { pool: Pool::Session(flow), keep: Vec::new() });
        }
        self.release_sockets(cx.shared);
    }

    /// Closes the sockets of a session but those that a path which works may need.
    pub(super) fn close_sockets(
        &mut self,
        cx: &mut Context<'_>,
        flow: Option<VirtualConnectionId>,
        paths: &Paths,
    ) {
        if self.sockets.is_empty() {
            return;
        }
        let known = paths.known.as_ref().map(|known| known.path.socket);
        let checklist = paths.checklist.as_ref();
        let is_used = |id: &SocketId| {
            known == Some(*id)
                || checklist.is_some_and(|list| list.pairs().iter().any(|pair| pair.path.socket == *id))
        };
        let before = self.sockets.len();
        self.sockets.retain(is_used);
        self.sockets.shrink_to_fit();
        if self.sockets.len() != before {
            self.keep_sockets(cx, flow);
        }
    }

    /// Closes the sockets of the pool that are not in use.
    pub(super) fn keep_sockets(&self, cx: &mut Context<'_>, flow: Option<VirtualConnectionId>) {
        if let Some(flow) = flow {
            let (pool, keep) = (Pool::Session(flow), self.sockets.clone());
            cx.env.out.command(Command::CloseSockets { pool, keep });
        }
    }
}

impl Session {
    /// Prepares the search that follows if plain probes meet silence.
    pub(super) fn plan_search(&mut self, cx: &mut Context<'_>, from: PlannedFrom<'_>) {
        let PlannedFrom { stream, theirs, coordination } = from;
        let ours = cx.nat_profile();
        let ours = self.opening.as_ref().map_or(ours, |opening| opening.told);
        self.course.earlier_mut().nats = NatKinds { local: ours.nat_kind(), remote: theirs.nat_kind() };
        // The profiles of the round before are compared once in a round.
        let before = self.course.earlier_mut().traits.replace((ours, theirs));
        let before = before.filter(|_| self.search.plan.is_none());
        let is_news = |(o, t): &(NatProfile, NatProfile)| !(o.acts_like(&ours) && t.acts_like(&theirs));
        let news = before.is_some_and(|before| is_news(&before));
        let first = self.attempt == 0 || news;
        let Some(checklist) = &self.paths.checklist else { return };
        let observed = || checklist.pairs().iter().filter(|pair| pair.origin == Origin::Observed);
        let known =
            observed().find(|pair| Some(pair.path.socket) == stream.socket).or_else(|| observed().next());
        let Some(path) = known.map(|pair| pair.path) else { return };
        let strategy = strategy(&ours, &theirs, first);
        let has_mapped_port = cx.env.local.has_mapped_port()
            || self.paths.targets.iter().any(|target| target.kind == PathKind::PortMapped);
        let silence = match news {
            // The probes to a mapped port are all that this attempt has.
            _ if strategy == Strategy::Impossible && has_mapped_port => MAX_SILENCE,
            // The round before ended because plain probes had met silence and a NAT had been
            // measured meanwhile.
            true => Duration::ZERO,
            false => SILENCE_TIMEOUT.max(2 * coordination.unwrap_or_default()).min(MAX_SILENCE),
        };
        let plan = SearchPlan {
            strategy,
            theirs,
            stream: stream.id,
            from: path.socket,
            target: path.remote,
            begins: cx.now + silence,
        };
        self.search.plan = Some(Box::new(Search::new(plan, &mut cx.env.rng)));
    }

    /// As [`plan_search`](Self::plan_search), in an attempt that has a plan already. A search that
    /// has begun, or that waits for its turn, goes on.
    pub(super) fn plan_search_again(&mut self, cx: &mut Context<'_>, from: PlannedFrom<'_>) {
        if self.search.plan.as_ref().is_some_and(|search| !search.running && search.turn.ticket.is_none()) {
            self.plan_search(cx, from);
        }
    }

    /// Prepares the search by which a connected session finds its peer again, if only a search can.
    /// The search is limited to the IP address at which the peer was validated, whatever the peer
    /// says of itself.
    pub(super) fn plan_reunion(&mut self, cx: &mut Context<'_>, stream: ControlStreamId) {
        let traits = self.course.earlier.as_ref().and_then(|earlier| earlier.traits);
        let (Some((ours, theirs)), Some(path)) = (traits, self.paths.selected()) else { return };
        // A peer that has lost its mapping is also seen where it was, until its observers forget
        // that.
        let is_new = |target: &&RemoteCandidate| {
            target.kind == PathKind::ServerReflexive
                && target.remote.ip() == path.remote.ip()
                && target.remote != path.remote
        };
        let target = self.paths.targets.iter().find(is_new).map_or(path.remote, |target| target.remote);
        if let Some(search) = &mut self.search.plan {
            return search.retarget(target, cx.now);
        }
        let strategy = strategy(&ours, &theirs, true);
        let usable = cx.env.local.sockets_for(target);
        let socket = cx.env.streams.get(stream).and_then(|stream| stream.socket);
        let from = socket.filter(|socket| usable.contains(socket)).or(usable.first().copied());
        let Some(from) = from.filter(|_| strategy.is_search()) else { return };
        let begins = cx.now + REUNION_SILENCE;
        let plan = SearchPlan { strategy, theirs, stream, from, target, begins };
        self.search.plan = Some(Box::new(Search::new(plan, &mut cx.env.rng)));
    }

    /// Carries out the actions of the search that are due.
    pub(super) fn run_search(&mut self, cx: &mut Context<'_>) -> Progress {
        loop {
            let data = cx.env.rng.random();
            let is_connected = self.is_connected();
            let Some(search) = &mut self.search.plan else { return Ok(()) };
            match search.poll(cx.now) {
                None => return Ok(()),
                Some(Action::Silence) if is_connected => self.begin_search(cx),
                Some(Action::Silence) => self.met_silence(cx)?,
                Some(Action::Turn)
                    if !is_connected
                        && search.turn.is_abandoned(cx.now)
                        && self.role == SessionRole::Responder =>
                {
                    return Err(FailureReason::PunchingTimeout);
                }
                Some(Action::Turn) => self.begin_search(cx),
                Some(Action::Sample(socket)) => {
                    let (stream, family) = (search.plan.stream, Family::of(search.plan.target.ip()));
                    let sample = Sample { stream, family, purpose: Purpose::Session(self.key), socket };
                    cx.nat.sample(&mut cx.env.at(cx.now), sample, data);
                }
                Some(Action::Tell(window)) => self.tell_window(cx, window),
                Some(Action::Shoot(path)) => {
                    if let Some(keys) = &self.keys {
                        cx.env.out.counters.search_probes_sent += 1;
                        cx.env.out.probe(path, Probe::Challenge { data, nominate: false }, keys);
                    }
                }
            }
        }
    }

    /// Plain probes met silence: the strategy is followed, if the profile that the peer was told,
    /// by which it chose its own part, still holds.
    fn met_silence(&mut self, cx: &mut Context<'_>) -> Progress {
        let ours = cx.nat_profile();
        let Some(search) = &mut self.search.plan else { return Ok(()) };
        let told = self.opening.as_ref().map(|opening| opening.told);
        let maps_since = self.opening.as_ref().is_some_and(|opening| !opening.told_mapped_port);
        let outdated = told.is_some_and(|told| !ours.acts_like(&told));
        let again = strategy(&ours, &search.plan.theirs, true);
        match if outdated { again } else { search.plan.strategy } {
            // The other side only needs the address of the fresh socket, even if it does not expect
            // one.
            Strategy::ProbeOnly | Strategy::FreshSocket if again == Strategy::FreshSocket => {
                search.plan.strategy = Strategy::FreshSocket;
                self.begin_search(cx);
            }
            // The gateway has granted a mapping since the request: the next one names it.
            Strategy::Impossible if maps_since && cx.env.local.has_mapped_port() => {
                return Err(FailureReason::NatMeasured);
            }
            Strategy::Impossible => return Err(FailureReason::Hopeless),
            _ if outdated => return Err(FailureReason::NatMeasured),
            Strategy::ProbeOnly => {}
            _ => self.begin_search(cx),
        }
        Ok(())
    }

    fn begin_search(&mut self, cx: &mut Context<'_>) {
        let is_connected = self.is_connected();
        let (Some(search), Some(flow)) = (&mut self.search.plan, self.flow) else { return };
        if search.is_held() {
            search.hold();
            self.course.deadline = Some(cx.now + MAX_WAIT);
            return;
        }
        let budget = &mut cx.shared.searches;
        let sockets = search.sockets().min(budget.max_sockets().max(search.least_sockets()));
        let from = cx.env.local.socket(search.plan.from).map(|socket| socket.local.ip());
        let admission = match from {
            // It would wait for ever.
            Some(_) if sockets > budget.max_sockets() => Admission::Never,
            Some(_) => budget.admit(search.turn.ticket, search.plan.target.ip(), sockets, cx.now),
            None => Admission::Never,
        };
        let (Some(local), Admission::Now) = (from, admission) else {
            if let Admission::Later(ticket) = admission {
                // A connected session has no time to wait for but until its deadline.
                if search.queue(ticket, cx.now) && !is_connected {
                    self.course.deadline = Some(cx.now + MAX_WAIT);
                    cx.env.out.counters.searches_queued += 1;
                    self.tell_turn(cx, false);
                }
                return;
            }
            budget.left(search.turn.ticket);
            self.search.plan = None;
            return cx.env.out.cap_hit();
        };
        let waited = search.turn.ticket.is_some() && !is_connected;
        search.begun(cx.now);
        self.search.finds = search.finds();
        self.search.reserved = u16::try_from(sockets).unwrap_or(u16::MAX);
        self.course.deadline = Some(cx.now + SEARCH_TIMEOUT);
        cx.env.out.counters.searches += 1;
        if sockets > 0 {
            cx.env.out.command(Command::OpenSockets { pool: Pool::Session(flow), local, count: sockets });
        }
        cx.env.out.event(Event::Search { peer: self.peer, sockets });
        if waited {
            self.tell_turn(cx, true);
        }
    }

    /// Tells the peer that the search of this side waits for its turn, or begins now: a window
    /// without a port.
    fn tell_turn(&self, cx: &mut Context<'_>, begins: bool) {
        self.tell_window(cx, Window { port: 0, step: u16::from(begins) });
    }

    /// Tells the peer where in its sequence the local NAT is, or where a fresh socket is.
    fn tell_window(&self, cx: &mut Context<'_>, Window { port, step }: Window) {
        let (Some(search), Some(keys)) = (&self.search.plan, self.keys()) else { return };
        let mut window = PortPrediction {
            peer: self.peer,
            session: self.id,
            round: self.attempt,
            port,
            step,
            authenticator: [0; MAC_LEN],
        };
        window.authenticator = keys.authenticate(&window.covered());
        cx.env.out.frame(search.plan.stream, Frame::PortPrediction(Box::new(window)));
    }

    /// The sockets of a search are open.
    pub(crate) fn handle_sockets_opened(
        &mut self,
        cx: &mut Context<'_>,
        sockets: &[(SocketId, u16)],
    ) -> Transition {
        let opened: Vec<_> = sockets.iter().map(|(id, _)| *id).collect();
        let search = self.search.plan.as_mut();
        let Some(search) = search.filter(|search| opened.len() >= search.least_sockets()) else {
            // Plain probes came through meanwhile, or there are too few file descriptors. In the
            // latter case plain probes go on, and so do the sockets of an earlier search.
            if self.search.plan.is_some() {
                cx.env.out.cap_hit();
                self.search.end(cx.shared);
                self.search.release_sockets(cx.shared);
            }
            self.search.keep_sockets(cx, self.flow);
            return Transition::Stay;
        };
        search.opened(&opened, cx.now);
        self.search.sockets.extend(opened);
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// A coordinator sees a socket of this session at `port`.
    pub(super) fn handle_sample(&mut self, cx: &mut Context<'_>, socket: SocketId, port: u16) -> Transition {
        let owns = self.search.owns(socket);
        let Some(search) = self.search.plan.as_mut().filter(|_| owns) else { return Transition::Stay };
        if let Some(window) = search.sampled(socket, port, cx.now) {
            self.tell_window(cx, window);
        }
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// The peer, or somebody on its way, reports where in its sequence the peer's NAT is.
    pub(super) fn handle_window(&mut self, cx: &mut Context<'_>, window: &PortPrediction) -> Transition {
        let authentic = self.keys().is_some_and(|keys| keys.verify(&window.covered(), &window.authenticator));
        if !authentic {
            cx.env.out.refuse_frame();
            return Transition::Stay;
        }
        let Some(search) = &mut self.search.plan else { return Transition::Stay };
        let begins = if window.port != 0 {
            search.follow(Window { port: window.port, step: window.step }, cx.now)
        } else if self.course.phase == Phase::Connected {
            // A connected session does not wait.
            return Transition::Stay;
        } else {
            let begins = search.peer_turn(window.step != 0, cx.now);
            if search.waits_for_peer() {
                let latest = self.course.phase_since + MAX_WAIT;
                self.course.deadline = self.course.deadline.map(|deadline| deadline.max(latest));
            } else if search.running && window.step != 0 {
                self.course.deadline = Some(cx.now + SEARCH_TIMEOUT);
            }
            begins
        };
        if begins {
            self.begin_search(cx);
        }
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }
}
