//! Searches: what sessions do when plain probes met silence, by the table of `docs/protocol.md` §7.5.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;

use super::Endpoint;
use crate::{
    ControlStreamId, SocketId, VirtualConnectionId,
    command::{Command, Pool},
    control_streams::ControlStream,
    event::{Event, FailureReason, PathKind, Phase, SessionRole},
    local_addresses::Family,
    nat::{
        observer::Purpose,
        strategy::{NatProfile, Strategy, strategy},
    },
    session::{
        Key, RemoteCandidate, Session,
        pair::Origin,
        port_search::{Action, Admission, MAX_WAIT, SEARCH_TIMEOUT, SILENCE_TIMEOUT, Search, Window},
    },
    wire::{
        frame::{Frame, PortPrediction},
        keys::MAC_LEN,
        probe::Probe,
    },
};

/// However far the peer is, plain probes are not waited for longer than this.
const MAX_SILENCE: Duration = Duration::from_secs(1);

/// Delay of the search of a connected session after both sides know each other's addresses: plain probes get a round trip first.
const REUNION_SILENCE: Duration = Duration::from_millis(50);

impl Endpoint {
    /// Prepares what follows if plain probes meet silence. `coordination` is how long the coordinator took, if known.
    pub(super) fn plan_search(
        &mut self,
        key: Key,
        (id, link): (ControlStreamId, &ControlStream),
        theirs: &[u8],
        coordination: Option<Duration>,
        now: Instant,
    ) {
        let (ours, theirs) = (self.traits(), NatProfile::parse(theirs));
        let Some(session) = self.sessions.get_mut(key) else { return };
        let ours = session.opening.as_ref().map_or(ours, |opening| opening.told);
        // The reports of the round before are compared once in a round.
        let before =
            session.earlier_mut().traits.replace((ours, theirs)).filter(|_| session.search.is_none());
        let is_news = |(o, t): &(NatProfile, NatProfile)| !(o.acts_like(&ours) && t.acts_like(&theirs));
        let news = before.is_some_and(|before| is_news(&before));
        let first = session.attempt == 0 || news;
        let plan = (strategy(&ours, &theirs, first), theirs);
        let Some(checklist) = session.checklist.as_ref() else { return };
        let observed = || checklist.pairs().iter().filter(|pair| pair.origin == Origin::Observed);
        let known =
            observed().find(|pair| Some(pair.path.socket) == link.socket).or_else(|| observed().next());
        let Some(path) = known.map(|pair| pair.path) else { return };
        let silence = match news {
            // The round before ended because plain probes had met silence and a NAT had been measured meanwhile.
            true => Duration::ZERO,
            false => SILENCE_TIMEOUT.max(2 * coordination.unwrap_or_default()).min(MAX_SILENCE),
        };
        let search = Search::new(plan, id, path.socket, path.remote, now + silence, &mut self.rng);
        session.search = Some(Box::new(search));
    }

    /// As [`plan_search`](Self::plan_search), in an attempt that has a plan already. What has begun, or waits for its turn, goes on.
    pub(super) fn plan_search_anew(
        &mut self,
        key: Key,
        from: (ControlStreamId, &ControlStream),
        theirs: &[u8],
        coordination: Option<Duration>,
        now: Instant,
    ) {
        let session = self.sessions.get_mut(key);
        let Some(search) = session.and_then(|session| session.search.as_ref()) else { return };
        if !search.running && search.ticket.is_none() {
            self.plan_search(key, from, theirs, coordination, now);
        }
    }

    /// A coordinator sees the peer of a session at this address now: the search aims there.
    pub(super) fn retarget_search(&mut self, key: Key, observed: Option<SocketAddr>, now: Instant) {
        let session = self.sessions.get_mut(key);
        if let Some(observed) = observed
            && let Some(search) = session.and_then(|session| session.search.as_mut())
        {
            search.retarget(observed, now);
        }
    }

    /// Prepares the search by which a connected session finds its peer again, if only a search can. Nothing but the IP address is
    /// searched at which the peer was validated, whatever it says of itself.
    pub(super) fn plan_reunion(&mut self, key: Key, link: ControlStreamId, now: Instant) {
        let socket = self.links.get(link).and_then(|link| link.socket);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let traits = session.earlier.as_ref().and_then(|earlier| earlier.traits);
        let (Some((ours, theirs)), Some(path)) = (traits, session.selected()) else { return };
        // A peer that has lost its mapping is also seen where it was, until its observers forget that.
        let is_new = |target: &&RemoteCandidate| {
            target.kind == PathKind::ServerReflexive
                && target.remote.ip() == path.remote.ip()
                && target.remote != path.remote
        };
        let target = session.targets.iter().find(is_new).map_or(path.remote, |target| target.remote);
        if let Some(search) = &mut session.search {
            return search.retarget(target, now);
        }
        let plan = strategy(&ours, &theirs, true);
        let usable = self.network.sockets_for(target);
        let from = socket.filter(|socket| usable.contains(socket)).or(usable.first().copied());
        let Some(from) = from.filter(|_| plan.is_search()) else { return };
        let search = Search::new((plan, theirs), link, from, target, now + REUNION_SILENCE, &mut self.rng);
        session.search = Some(Box::new(search));
    }

    /// Does what the search of a session wants done by now.
    pub(super) fn pump_search(&mut self, key: Key, now: Instant) {
        loop {
            let data = self.rng.random();
            let Some(session) = self.sessions.get_mut(key) else { return };
            let is_connected = session.is_connected();
            let Some(search) = &mut session.search else { return };
            match search.poll(now) {
                None => return,
                Some(Action::Silence) if is_connected => self.begin_search(key, now),
                Some(Action::Silence) => self.silence(key, now),
                Some(Action::Turn)
                    if !is_connected
                        && search.is_abandoned(now)
                        && session.role == SessionRole::Responder =>
                {
                    return self.fail(key, FailureReason::PunchingTimeout, now);
                }
                Some(Action::Turn) => self.begin_search(key, now),
                Some(Action::Sample(socket)) => {
                    let (link, family) = (search.link, Family::of(search.target.ip()));
                    let purpose = Purpose::Session(key);
                    let sample = self.observing.sample(link, family, purpose, socket, data, now);
                    if let Some((path, payload)) = sample {
                        self.out.transmits.push_back(crate::outbox::Transmit { path, payload });
                    }
                }
                Some(Action::Tell(window)) => self.tell_window(key, window),
                Some(Action::Shoot(path)) => {
                    if let Some(keys) = session.keys() {
                        self.out.counters.search_probes_sent += 1;
                        self.out.probe(path, Probe::Challenge { data, nominate: false }, keys);
                    }
                }
            }
        }
    }

    /// Plain probes met silence: the strategy is followed, if what the peer was told of us, by which it chose its own
    /// part, still holds.
    fn silence(&mut self, key: Key, now: Instant) {
        let ours = self.traits();
        let Some(session) = self.sessions.get(key) else { return };
        let Some(search) = &session.search else { return };
        let told = session.opening.as_ref().map(|opening| opening.told);
        let outdated = told.is_some_and(|told| !ours.acts_like(&told));
        let anew = strategy(&ours, &search.theirs, true);
        let plan = if outdated { anew } else { search.strategy };
        match plan {
            // The other side has only to be told where; that it does not expect it does not matter.
            Strategy::ProbeOnly | Strategy::FreshSocket if anew == Strategy::FreshSocket => {
                if let Some(search) = self.sessions.get_mut(key).and_then(|session| session.search.as_mut()) {
                    search.strategy = Strategy::FreshSocket;
                }
                self.begin_search(key, now);
            }
            Strategy::Impossible => self.fail(key, FailureReason::Hopeless, now),
            _ if outdated => self.fail(key, FailureReason::NatMeasured, now),
            Strategy::ProbeOnly => {}
            _ => self.begin_search(key, now),
        }
    }

    fn begin_search(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let is_connected = session.is_connected();
        let (Some(search), Some(flow)) = (&mut session.search, session.flow) else { return };
        if search.is_held() {
            search.hold();
            session.deadline = Some(now + MAX_WAIT);
            return;
        }
        let sockets = search.sockets().min(self.searches.max_sockets().max(search.least_sockets()));
        let from = self.network.socket(search.from());
        let admission = match from {
            // It would wait for ever.
            Some(_) if sockets > self.searches.max_sockets() => Admission::Never,
            Some(_) => self.searches.admit(search.ticket, search.target.ip(), sockets, now),
            None => Admission::Never,
        };
        let (Some(from), Admission::Now) = (from, admission) else {
            if let Admission::Later(ticket) = admission {
                // A connected session has no time to wait for but until its deadline.
                if search.queue(ticket, now) && !is_connected {
                    session.deadline = Some(now + MAX_WAIT);
                    self.out.counters.searches_queued += 1;
                    self.tell_turn(key, false);
                }
                return;
            }
            self.searches.left(search.ticket);
            session.search = None;
            return self.out.cap_hit();
        };
        let waited = search.ticket.is_some() && !is_connected;
        search.begun(now);
        self.out.counters.searches += 1;
        session.deadline = Some(now + SEARCH_TIMEOUT);
        let peer = session.peer;
        session.reserved = u16::try_from(sockets).unwrap_or(u16::MAX);
        session.sought = search.finds();
        if sockets > 0 {
            let local = from.local.ip();
            self.out.command(Command::OpenSockets { pool: Pool::Session(flow), local, count: sockets });
        }
        self.out.event(Event::Search { peer, sockets });
        if waited {
            self.tell_turn(key, true);
        }
    }

    /// Tells the peer that our search waits for its turn, or begins now: a window without a port.
    fn tell_turn(&mut self, key: Key, begins: bool) {
        self.tell_window(key, Window { port: 0, step: u16::from(begins) });
    }

    /// Tells the peer where in its sequence our NAT is, or where a fresh socket is.
    fn tell_window(&mut self, key: Key, Window { port, step }: Window) {
        let Some(session) = self.sessions.get(key) else { return };
        let (Some(search), Some(keys)) = (&session.search, session.keys()) else { return };
        let mut window = PortPrediction {
            peer: session.peer,
            session: session.id,
            round: session.attempt,
            port,
            step,
            authenticator: [0; MAC_LEN],
        };
        window.authenticator = keys.authenticate(&window.covered());
        self.out.frame(search.link, Frame::PortPrediction(Box::new(window)));
    }

    /// The sockets of a search are open.
    pub(super) fn search_opened(
        &mut self,
        flow: VirtualConnectionId,
        sockets: &[(SocketId, u16)],
        now: Instant,
    ) {
        let Some(key) = self.sessions.of_flow(flow) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(search) = &mut session.search else {
            // Plain probes came through meanwhile.
            let keep = session.sockets.clone();
            return self.out.command(Command::CloseSockets { pool: Pool::Session(flow), keep });
        };
        let opened: Vec<_> = sockets.iter().map(|(id, _)| *id).collect();
        if opened.len() < search.least_sockets() {
            // For want of file descriptors. Plain probes go on, and so do the sockets of an earlier search.
            let keep = session.sockets.clone();
            self.out.cap_hit();
            self.end_search(key);
            self.release_sockets(key);
            return self.out.command(Command::CloseSockets { pool: Pool::Session(flow), keep });
        }
        session.sockets.extend(&opened);
        search.opened(&opened, now);
        self.poll_session(key, now);
    }

    /// The coordinator saw a sample of our NAT.
    pub(super) fn search_sampled(&mut self, key: Key, socket: SocketId, port: u16, now: Instant) {
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.sockets.contains(&socket))
        else {
            return;
        };
        let Some(search) = &mut session.search else { return };
        if let Some(window) = search.sampled(socket, port, now) {
            self.tell_window(key, window);
        }
        self.poll_session(key, now);
    }

    /// The peer, or somebody on its way, says where in its sequence the peer's NAT is; `false` if we coordinate for both.
    pub(super) fn search_window(&mut self, window: &PortPrediction, now: Instant) -> bool {
        let is_meant = |session: &Session| session.id == window.session && session.attempt == window.round;
        let mut all = self.sessions.of_peer(&window.peer);
        let Some(key) = all.find(|key| self.sessions.get(*key).is_some_and(is_meant)) else { return false };
        drop(all);
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let authentic =
            session.keys().is_some_and(|keys| keys.verify(&window.covered(), &window.authenticator));
        match &mut session.search {
            Some(search) if authentic && window.port == 0 => {
                // Who is connected does not wait.
                if session.phase == Phase::Connected {
                    return true;
                }
                let begins = search.peer_turn(window.step != 0, now);
                if search.waits_for_peer() {
                    let latest = session.phase_since + MAX_WAIT;
                    session.deadline = session.deadline.map(|deadline| deadline.max(latest));
                } else if search.running && window.step != 0 {
                    session.deadline = Some(now + SEARCH_TIMEOUT);
                }
                if begins {
                    self.begin_search(key, now);
                }
                self.poll_session(key, now);
            }
            Some(search) if authentic => {
                if search.follow(Window { port: window.port, step: window.step }, now) {
                    self.begin_search(key, now);
                }
                self.poll_session(key, now);
            }
            _ if !authentic => self.out.refuse_frame(),
            _ => {}
        }
        true
    }

    /// Shoots no more. Its sockets stay until [`close_sockets`](Self::close_sockets).
    pub(super) fn end_search(&mut self, key: Key) {
        if let Some(search) = self.sessions.get_mut(key).and_then(|session| session.search.take()) {
            self.searches.left(search.ticket);
            if search.running {
                self.searches.ended();
            }
        }
    }

    /// Lets other searches open the sockets that this attempt no longer needs.
    pub(super) fn release_sockets(&mut self, key: Key) {
        if let Some(session) = self.sessions.get_mut(key) {
            self.searches.closed(usize::from(std::mem::take(&mut session.reserved)));
        }
    }

    /// Closes all sockets of an attempt that is abandoned, those that are being opened included.
    pub(super) fn abandon_sockets(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let sockets = std::mem::take(&mut session.sockets);
        let is_opening = session.reserved > 0;
        if let Some(flow) = session.flow.filter(|_| is_opening || !sockets.is_empty()) {
            self.out.command(Command::CloseSockets { pool: Pool::Session(flow), keep: Vec::new() });
        }
        self.release_sockets(key);
    }

    /// Closes the sockets of a session but those that a path which works may need.
    pub(super) fn close_sockets(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key).filter(|session| !session.sockets.is_empty()) else {
            return;
        };
        let known = session.known.as_ref().map(|known| known.path.socket);
        let checklist = session.checklist.as_ref();
        let is_used = |id: &SocketId| {
            known == Some(*id)
                || checklist.is_some_and(|list| list.pairs().iter().any(|pair| pair.path.socket == *id))
        };
        let before = session.sockets.len();
        session.sockets.retain(is_used);
        session.sockets.shrink_to_fit();
        if session.sockets.len() != before
            && let Some(flow) = session.flow
        {
            let keep = session.sockets.clone();
            self.out.command(Command::CloseSockets { pool: Pool::Session(flow), keep });
        }
    }

    /// Whether `socket` is one that this session opened.
    pub(super) fn owns_socket(&self, key: Key, socket: SocketId) -> bool {
        self.sessions.get(key).is_some_and(|session| session.sockets.contains(&socket))
    }

    /// Whether the session is still without an answer.
    pub(super) fn is_silent(&self, key: Key) -> bool {
        let phase = self.sessions.get(key).map(|session| session.phase);
        matches!(phase, Some(Phase::Synchronization | Phase::Punching))
    }
}
