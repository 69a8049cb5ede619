//! Looking for a peer whose NAT gives every destination another port, when plain probes met
//! silence.
//!
//! | strategy | sends from | to | shots |
//! |---|---|---|---|
//! | BirthdayOpen | 256 sockets of its own | the address at which the coordinator saw the peer | 2 a socket |
//! | BirthdayScan | the session's socket | distinct ports of that IP address, in random order | 1,500 |
//! | PredictOpen | 32 sockets of its own | the address at which the coordinator saw the peer | 2 a socket |
//! | PredictScan | the session's socket | the 48 ports after the one that the peer sampled; that one itself if the peer is FreshSocket | 2 a port; 12 |
//! | FreshSocket | one socket of its own | the address at which the coordinator saw the peer | 12 |
//! | BirthdayScanFresh | five sockets of its own, one after the other | as BirthdayScan | 256 a socket |
//! | PredictScanFresh | one socket of its own | the 48 ports after the one that the peer sampled | 1 a port |
//! | PredictBoth | 32 sockets of its own | the 20th port after the one that the peer sampled, then the 58th | 1 a socket each |
//!
//! Towards a peer whose NAT early packets harm, BirthdayOpen and PredictOpen wait: that peer is
//! BirthdayScanFresh or PredictScanFresh, and says where a fresh socket is once all shots of that
//! socket have left. Only then do they send there, BirthdayOpen once a socket. So each shot of
//! theirs comes after the flow that it is to meet.
//!
//! A shot is one challenge, 300 of them leave in a second, and none to another IP address than the
//! one that the coordinator observed. That makes [`MAX_SHOTS`] the most that an address which never
//! answered gets in one search.

mod search_budget;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng};

#[cfg(test)]
pub(crate) use self::search_budget::MAX_SEARCH_SOCKETS;
#[cfg(test)]
pub(crate) use self::search_budget::MAX_SEARCHES;
#[cfg(test)]
pub(crate) use self::search_budget::MAX_WAITING;
#[cfg(test)]
pub(crate) use self::search_budget::TARGET_RATE;
pub(crate) use self::search_budget::{Admission, SearchBudget, Ticket};

use crate::{
    ControlStreamId, Path, SocketId,
    event::PathKind,
    nat::strategy::{Allocation, LEAST_SPRAY, NatProfile, Strategy, WINDOW_SOCKETS, gcd},
};

/// Time of silence after plain probes before a search begins.
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_millis(400);
/// Time that a search may last: the shots take five seconds, and the last one is given time to be
/// answered.
pub(crate) const SEARCH_TIMEOUT: Duration = Duration::from_millis(5500);
/// Time between two shots: 300 in a second.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_nanos(3_333_334);
/// Shots of a search.
pub(crate) const MAX_SHOTS: u32 = 1500;
/// Sockets of the side whose NAT gives random ports.
pub(crate) const SPRAY_SOCKETS: usize = 256;
/// Ports that are looked at after the one that a peer sampled.
const WINDOW: u32 = 48;
/// The places in the peer's sequence that both sides aim at, one after the other. The first run of
/// mappings has the first unless another host took it, or more than 19 before; the second run, in
/// which every socket sends to another port and so gets another mapping, has the second.
const AIMS: [u32; 2] = [20, 58];
/// Fresh sockets from which a peer scans whose NAT early packets harm.
const SCAN_RUNS: usize = 5;
/// Shots from each: the other side sprays at one while the next one scans, which takes as long.
const SCAN_RUN: u32 = 256;
/// Shots from one fresh socket after which it is sampled again, if no answer came.
const SCAN_SAMPLE: u32 = 64;
/// Shots from one socket to another: more than a lossy path loses in a row.
const SINGLE: u32 = 12;
/// Time that a sample may take before another one is made, from another socket.
const SAMPLE_AGAIN: Duration = Duration::from_millis(250);
const MAX_SAMPLES: usize = 4;
/// The ports that a NAT gives to others than system services (RFC 6335 §6).
const FIRST_PORT: u32 = 1024;
const PORTS: u32 = 65_536 - FIRST_PORT;

/// Time that a search waits for its turn, or for that of the peer's, at most.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(30);
/// Interval at which a search that waits asks for its turn.
const TURN_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// An initiator that has given up is known by its silence: as long as it waits, it repeats its
/// request once a second.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(3);
/// Position of the peer's NAT in its sequence of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) port: u16,
    pub(crate) step: u16,
}

impl Window {
    /// The port `n` steps on, around at the end.
    fn after(self, n: u32) -> u16 {
        let ahead = u32::from(self.port).saturating_sub(FIRST_PORT) + n * u32::from(self.step);
        u16::try_from(FIRST_PORT + ahead % PORTS).unwrap_or(u16::MAX)
    }
}

/// Action of a search, for the session to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Plain probing met silence: time for what the strategy says.
    Silence,
    /// Ask the coordinator where this socket is seen.
    Sample(SocketId),
    /// Tell the peer where our NAT is, or where a fresh socket is.
    Tell(Window),
    /// Send a challenge.
    Shoot(Path),
    /// It may be this search's turn.
    Turn,
}

/// A fresh socket from which shots leave before the peer learns where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fresh {
    /// The coordinator has been asked so often where the socket is.
    CoordinatorRequest(u32),
    /// The coordinator sees it at this port.
    Seen(u16),
    /// The peer knows.
    Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Plain probes only.
    Waiting(Instant),
    /// Others come first; it may be our turn at this time.
    Queued(Instant),
    /// The peer's search waits for its turn, and ours with it.
    Held,
    /// Sockets are being opened, or the peer's window is awaited.
    Preparing,
    /// The NAT is sampled; again at this time.
    Sampling(Instant),
    /// Shots leave, the first at this time.
    Shooting(Instant),
    Over,
}

/// Plan of a search.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SearchPlan {
    pub(crate) strategy: Strategy,
    /// The NAT profile of the peer.
    pub(crate) theirs: NatProfile,
    /// The control stream to the coordinator that both sides use.
    pub(crate) stream: ControlStreamId,
    /// The socket by which the peer knows this peer.
    pub(crate) from: SocketId,
    /// The address at which the coordinator saw the peer.
    pub(crate) target: SocketAddr,
    /// Time until which plain probes may be answered.
    pub(crate) begins: Instant,
}

/// The search of one attempt.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) strategy: Strategy,
    /// The NAT profile of the peer.
    pub(crate) theirs: NatProfile,
    /// The control stream to the coordinator that both sides use.
    pub(crate) stream: ControlStreamId,
    /// The socket by which the peer knows this peer.
    from: SocketId,
    /// The address at which the coordinator saw the peer.
    pub(crate) target: SocketAddr,
    stage: Stage,
    /// It counts as running.
    pub(crate) running: bool,
    /// It waits for its turn.
    pub(crate) ticket: Option<Ticket>,
    /// The peer's waits for its turn.
    peer_waits: bool,
    /// The peer's has had its turn.
    has_peer_begun: bool,
    /// Time of the peer's last request for this attempt.
    asked: Instant,
    sockets: Vec<SocketId>,
    samples: usize,
    sampled: bool,
    window: Option<Window>,
    /// Windows of fresh sockets that the peer has told.
    windows: usize,
    /// Sockets of our own of which the peer learns only later.
    fresh: Vec<Fresh>,
    shots: u32,
    /// Shots to addresses before the present target.
    spent: u32,
    /// All shots were sent to another port before.
    retargeted: bool,
    /// The order of the ports to scan: the first one and the distance to the next.
    order: (u32, u32),
}

impl Search {
    pub(crate) fn new(plan: SearchPlan, rng: &mut StdRng) -> Self {
        let SearchPlan { strategy, theirs, stream, from, target, begins } = plan;
        let stride = |rng: &mut StdRng| rng.random_range(1..PORTS);
        let mut distance = stride(rng);
        // Only such a distance leads to every port once.
        while gcd(u16::try_from(PORTS).unwrap_or(1), u16::try_from(distance).unwrap_or(1)) != 1 {
            distance = stride(rng);
        }
        Self {
            strategy,
            theirs,
            stream,
            from,
            target,
            stage: Stage::Waiting(begins),
            running: false,
            ticket: None,
            peer_waits: false,
            has_peer_begun: false,
            asked: begins,
            sockets: Vec::new(),
            samples: 0,
            sampled: false,
            window: None,
            windows: 0,
            fresh: Vec::new(),
            shots: 0,
            spent: 0,
            retargeted: false,
            order: (rng.random_range(0..PORTS), distance),
        }
    }

    /// The fewest sockets of its own with which it makes sense.
    pub(crate) fn least_sockets(&self) -> usize {
        match self.strategy {
            Strategy::BirthdayOpen => LEAST_SPRAY,
            _ => self.sockets(),
        }
    }

    /// Sockets of its own that it wants.
    pub(crate) fn sockets(&self) -> usize {
        match self.strategy {
            Strategy::BirthdayOpen => SPRAY_SOCKETS,
            Strategy::PredictOpen { .. } | Strategy::PredictBoth { .. } => WINDOW_SOCKETS,
            Strategy::BirthdayScanFresh => SCAN_RUNS,
            Strategy::FreshSocket | Strategy::PredictScanFresh => 1,
            Strategy::ProbeOnly | Strategy::BirthdayScan | Strategy::PredictScan | Strategy::Impossible => 0,
        }
    }

    /// The coordinator sees the peer at another port by now, or at another address before anything
    /// was sent there. Sockets of our own send there as well, once.
    pub(crate) fn retarget(&mut self, target: SocketAddr, now: Instant) {
        let is_allowed = !self.running || target.ip() == self.target.ip();
        // A fresh socket of the peer is where the peer says.
        let is_fresh = self.windows > 0;
        if target == self.target || !is_allowed || self.retargeted || is_fresh {
            return;
        }
        self.target = target;
        let sends_there = matches!(
            self.strategy,
            Strategy::BirthdayOpen | Strategy::PredictOpen { .. } | Strategy::FreshSocket
        );
        if self.running && sends_there && matches!(self.stage, Stage::Shooting(_)) {
            self.retargeted = true;
            (self.shots, self.stage) = (0, Stage::Shooting(now));
        }
    }

    /// Returns the kind of a path that it finds.
    pub(crate) fn finds(&self) -> Option<PathKind> {
        match self.strategy {
            Strategy::BirthdayOpen | Strategy::BirthdayScan | Strategy::BirthdayScanFresh => {
                Some(PathKind::Searched)
            }
            Strategy::PredictOpen { .. } | Strategy::PredictBoth { .. } | Strategy::PredictScanFresh => {
                Some(PathKind::Predicted)
            }
            Strategy::PredictScan
                if matches!(self.theirs.allocation, Some(Allocation::Sequential { .. })) =>
            {
                Some(PathKind::Predicted)
            }
            // Towards, or from, a fresh socket that the coordinator has seen.
            Strategy::FreshSocket | Strategy::PredictScan => Some(PathKind::ServerReflexive),
            Strategy::ProbeOnly | Strategy::Impossible => None,
        }
    }

    /// The socket by which the peer knows us.
    pub(crate) fn from(&self) -> SocketId {
        self.from
    }

    /// The step of our NAT, if the peer learns at once where it is; 0 for a single socket.
    fn step(&self) -> Option<u16> {
        match self.strategy {
            Strategy::PredictOpen { step } | Strategy::PredictBoth { step } => Some(step),
            Strategy::FreshSocket => Some(0),
            _ => None,
        }
    }

    /// Returns true if the peer learns of our sockets only once their shots have left.
    fn tells_later(&self) -> bool {
        matches!(self.strategy, Strategy::BirthdayScanFresh | Strategy::PredictScanFresh)
    }

    /// The sockets of which the peer is to learn by now.
    fn complete(&self) -> usize {
        match self.strategy {
            Strategy::BirthdayScanFresh => usize::try_from(self.shots / SCAN_RUN).unwrap_or(usize::MAX),
            Strategy::PredictScanFresh => usize::from(self.shots >= WINDOW),
            _ => 0,
        }
    }

    /// Returns the next fresh socket that the peer must learn of.
    fn to_tell(&self) -> Option<(usize, Window)> {
        let mut complete = self.fresh.iter().take(self.complete()).enumerate();
        complete.find_map(|(place, fresh)| match fresh {
            Fresh::Seen(port) => Some((place, Window { port: *port, step: 0 })),
            Fresh::CoordinatorRequest(_) | Fresh::Told => None,
        })
    }

    /// Returns the action that must precede the next shot.
    fn errand(&mut self) -> Option<Action> {
        if let Some((place, window)) = self.to_tell() {
            if let Some(fresh) = self.fresh.get_mut(place) {
                *fresh = Fresh::Told;
            }
            return Some(Action::Tell(window));
        }
        let place = usize::try_from(self.shots / SCAN_RUN).ok()?;
        let is_scan = self.strategy == Strategy::BirthdayScanFresh && self.shots < self.limit();
        match self.fresh.get_mut(place).filter(|_| is_scan) {
            Some(Fresh::CoordinatorRequest(times)) if self.shots % SCAN_RUN >= *times * SCAN_SAMPLE => {
                *times += 1;
                self.sockets.get(place).copied().map(Action::Sample)
            }
            _ => None,
        }
    }

    /// Others come first. True if it waits only from now on.
    pub(crate) fn queue(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.ticket = Some(ticket);
        let before = std::mem::replace(&mut self.stage, Stage::Queued(now + TURN_POLL_INTERVAL));
        !matches!(before, Stage::Queued(_))
    }

    /// The peer still waits for this attempt.
    pub(crate) fn asked_again(&mut self, now: Instant) {
        self.asked = now;
    }

    /// Returns true if it waits for its turn while nobody waits for it any more.
    pub(crate) fn is_abandoned(&self, now: Instant) -> bool {
        self.ticket.is_some() && now.saturating_duration_since(self.asked) >= ABANDONED_TIMEOUT
    }

    /// Returns true if it makes sense only at the same time as the peer's, which waits for its
    /// turn.
    pub(crate) fn is_held(&self) -> bool {
        use Strategy::{BirthdayScan, BirthdayScanFresh, PredictScan, PredictScanFresh};
        self.peer_waits
            && matches!(self.strategy, BirthdayScan | PredictScan | BirthdayScanFresh | PredictScanFresh)
    }

    /// Waits with the peer.
    pub(crate) fn hold(&mut self) {
        self.stage = Stage::Held;
    }

    /// The peer's search waits for its turn, or begins. True if ours is to begin with it. A search
    /// waits once, before it begins: what says otherwise afterwards is late, or somebody plays it
    /// again.
    pub(crate) fn peer_turn(&mut self, begins: bool, now: Instant) -> bool {
        if self.has_peer_begun {
            return false;
        }
        self.has_peer_begun = begins;
        self.peer_waits = !begins;
        match self.stage {
            Stage::Shooting(_) if self.is_held() => self.stage = Stage::Held,
            Stage::Held if begins && self.running => {
                // The shots that are left.
                self.stage = match self.strategy {
                    Strategy::PredictScan if self.window.is_none() => Stage::Preparing,
                    _ => Stage::Shooting(now.checked_sub(PROBE_INTERVAL * self.shots).unwrap_or(now)),
                };
            }
            Stage::Held => return begins,
            _ => {}
        }
        false
    }

    /// Returns true if it waits for the peer's turn.
    pub(crate) fn waits_for_peer(&self) -> bool {
        self.stage == Stage::Held
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waiting(at) | Stage::Sampling(at) | Stage::Queued(at) => Some(at),
            Stage::Shooting(first) => {
                let goes_on = self.shots < self.limit() || self.to_tell().is_some();
                goes_on.then(|| first + PROBE_INTERVAL * self.shots)
            }
            Stage::Preparing | Stage::Held | Stage::Over => None,
        }
    }

    /// Returns the actions that are due, one at a time.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Action> {
        if self.next_due()? > now {
            return None;
        }
        match self.stage {
            Stage::Waiting(_) => {
                self.stage = Stage::Preparing;
                Some(Action::Silence)
            }
            Stage::Queued(_) => {
                self.stage = Stage::Queued(now + TURN_POLL_INTERVAL);
                Some(Action::Turn)
            }
            Stage::Sampling(_) => match self.to_sample() {
                Some(socket) => {
                    self.samples += 1;
                    self.stage = Stage::Sampling(now + SAMPLE_AGAIN);
                    Some(Action::Sample(socket))
                }
                None => {
                    self.stage = Stage::Over;
                    None
                }
            },
            Stage::Shooting(_) => {
                if let Some(action) = self.errand() {
                    return Some(action);
                }
                let path = self.shot(self.shots);
                self.shots += 1;
                path.map(Action::Shoot)
            }
            Stage::Preparing | Stage::Held | Stage::Over => None,
        }
    }

    /// The socket from which the observer is asked next: in a sequence each has made one mapping.
    fn to_sample(&self) -> Option<SocketId> {
        let place = if self.sockets() == 1 { 0 } else { self.samples };
        self.sockets.get(place).copied().filter(|_| self.samples < MAX_SAMPLES)
    }

    /// The search was admitted.
    pub(crate) fn begun(&mut self, now: Instant) {
        self.running = true;
        self.ticket = None;
        self.stage = Stage::Preparing;
        if self.strategy == Strategy::BirthdayScan {
            self.stage = Stage::Shooting(now);
        }
        self.ready(now);
    }

    /// Sockets of its own are open; perhaps fewer than were asked for.
    pub(crate) fn opened(&mut self, sockets: &[SocketId], now: Instant) {
        if !self.running || self.stage != Stage::Preparing {
            return;
        }
        self.sockets = sockets.to_vec();
        if self.tells_later() {
            self.fresh = vec![Fresh::CoordinatorRequest(0); sockets.len()];
        }
        self.stage = match self.strategy {
            _ if sockets.is_empty() => Stage::Over,
            Strategy::BirthdayOpen if self.waits_for_window() => Stage::Preparing,
            Strategy::BirthdayOpen | Strategy::BirthdayScanFresh => Stage::Shooting(now),
            Strategy::PredictOpen { .. }
            | Strategy::PredictBoth { .. }
            | Strategy::FreshSocket
            | Strategy::PredictScanFresh => Stage::Sampling(now),
            _ => self.stage,
        };
    }

    /// The coordinator saw `socket` at `port`. Returns what the peer is to learn at once.
    pub(crate) fn sampled(&mut self, socket: SocketId, port: u16, now: Instant) -> Option<Window> {
        let place = self.sockets.iter().position(|own| *own == socket);
        if let Some(fresh @ Fresh::CoordinatorRequest(_)) = place.and_then(|place| self.fresh.get_mut(place))
        {
            *fresh = Fresh::Seen(port);
        }
        if !matches!(self.stage, Stage::Sampling(_)) {
            return None;
        }
        self.sampled = true;
        self.stage = Stage::Preparing;
        self.ready(now);
        self.step().map(|step| Window { port, step })
    }

    /// Returns true if shots would come too early, as the peer has not told yet where it expects
    /// them.
    fn waits_for_window(&self) -> bool {
        self.theirs.is_fragile() && self.windows == 0
    }

    /// The peer has a fresh socket, from which it has sent what it had to: it is there from now on.
    fn follow_fresh(&mut self, port: u16, now: Instant) {
        if self.windows == SCAN_RUNS {
            return;
        }
        self.windows += 1;
        self.spent += self.shots;
        self.shots = 0;
        self.target.set_port(port);
        let is_open = self.running && !self.sockets.is_empty();
        match self.stage {
            Stage::Shooting(_) => self.stage = Stage::Shooting(now),
            Stage::Preparing if is_open && self.strategy == Strategy::BirthdayOpen => {
                self.stage = Stage::Shooting(now)
            }
            _ => self.ready(now),
        }
    }

    /// The peer's NAT was sampled. Only the first window counts, except those of fresh sockets at
    /// which we aim. Returns true if a search must begin now: plain probes have met silence, and
    /// the peer has a socket of which we did not expect to hear.
    pub(crate) fn follow(&mut self, window: Window, now: Instant) -> bool {
        if window.step == 0 && matches!(self.strategy, Strategy::BirthdayOpen | Strategy::PredictOpen { .. })
        {
            self.follow_fresh(window.port, now);
            return false;
        }
        if self.window.is_some() {
            return false;
        }
        self.window = Some(window);
        if self.strategy == Strategy::ProbeOnly && window.step == 0 {
            self.strategy = Strategy::PredictScan;
            return self.stage == Stage::Preparing;
        }
        self.ready(now);
        false
    }

    /// Begins to shoot as soon as everything for it is there.
    fn ready(&mut self, now: Instant) {
        let ready = match self.strategy {
            Strategy::PredictScan => self.window.is_some(),
            Strategy::PredictBoth { .. } | Strategy::PredictScanFresh => {
                self.sampled && self.window.is_some()
            }
            Strategy::PredictOpen { .. } => self.sampled && !self.waits_for_window(),
            Strategy::FreshSocket => self.sampled,
            _ => false,
        };
        if ready && self.running && self.stage == Stage::Preparing {
            self.stage = Stage::Shooting(now);
        }
    }

    fn limit(&self) -> u32 {
        let once = |count: usize| u32::try_from(count).unwrap_or(0);
        let left = MAX_SHOTS.saturating_sub(self.spent);
        match self.strategy {
            Strategy::BirthdayScan => MAX_SHOTS,
            Strategy::PredictScan if self.window.is_some_and(|window| window.step == 0) => SINGLE,
            Strategy::PredictScan => 2 * WINDOW,
            Strategy::BirthdayScanFresh => once(self.fresh.len()) * SCAN_RUN,
            Strategy::PredictScanFresh => WINDOW,
            Strategy::FreshSocket => SINGLE,
            Strategy::BirthdayOpen if self.windows > 0 => once(self.sockets.len()).min(left),
            Strategy::BirthdayOpen | Strategy::PredictOpen { .. } | Strategy::PredictBoth { .. } => {
                (2 * once(self.sockets.len())).min(left)
            }
            Strategy::ProbeOnly | Strategy::Impossible => 0,
        }
    }

    fn shot(&self, n: u32) -> Option<Path> {
        let at = |port| SocketAddr::new(self.target.ip(), port);
        let own = || self.sockets.get(usize::try_from(n).ok()? % self.sockets.len()).copied();
        let (socket, remote) = match self.strategy {
            Strategy::BirthdayScan => (self.from, at(self.scanned(n)?)),
            Strategy::BirthdayScanFresh => {
                let run = usize::try_from(n / SCAN_RUN).ok()?;
                (self.sockets.get(run).copied()?, at(self.scanned(n)?))
            }
            Strategy::PredictScanFresh => (own()?, at(self.window?.after(1 + n))),
            Strategy::PredictScan => (self.from, at(self.window?.after(1 + n % WINDOW))),
            Strategy::BirthdayOpen | Strategy::PredictOpen { .. } | Strategy::FreshSocket => {
                (own()?, self.target)
            }
            Strategy::PredictBoth { .. } => {
                let run = usize::try_from(n).ok()? / self.sockets.len().max(1);
                (own()?, at(self.window?.after(*AIMS.get(run)?)))
            }
            Strategy::ProbeOnly | Strategy::Impossible => return None,
        };
        Some(Path { socket, remote })
    }

    /// The port of the `n`th shot of a scan.
    fn scanned(&self, n: u32) -> Option<u16> {
        let (first, distance) = self.order;
        let place = (u64::from(first) + u64::from(n) * u64::from(distance)) % u64::from(PORTS);
        u16::try_from(u64::from(FIRST_PORT) + place).ok()
    }
}

#[cfg(test)]
mod tests;
