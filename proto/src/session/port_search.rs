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
//! one that the coordinator observed. That makes [`MAX_SHOTS`](scan_progress::MAX_SHOTS) the most
//! that an address which never answered gets in one search.

mod sampling;
mod scan_progress;
mod search_budget;
mod turn;
mod window;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::rngs::StdRng;

#[cfg(test)]
use self::sampling::MAX_SAMPLES;
#[cfg(test)]
pub(crate) use self::scan_progress::{MAX_SHOTS, PROBE_INTERVAL};
#[cfg(test)]
pub(crate) use self::search_budget::MAX_SEARCH_SOCKETS;
#[cfg(test)]
pub(crate) use self::search_budget::MAX_SEARCHES;
#[cfg(test)]
pub(crate) use self::search_budget::MAX_WAITING;
#[cfg(test)]
pub(crate) use self::search_budget::TARGET_RATE;
use self::{sampling::Sampling, scan_progress::ScanProgress, turn::Turn, window::PeerWindows};
pub(crate) use self::{
    search_budget::{Admission, SearchBudget, Ticket},
    window::Window,
};

use crate::{
    ControlStreamId, Path, SocketId,
    event::PathKind,
    nat::strategy::{Allocation, LEAST_SPRAY, NatProfile, SPRAY_SOCKETS, Strategy, WINDOW_SOCKETS},
};

/// Time of silence after plain probes before a search begins.
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_millis(400);
/// Time that a search may last: the shots take five seconds, and the last one is given time to be
/// answered.
pub(crate) const SEARCH_TIMEOUT: Duration = Duration::from_millis(5500);
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

/// Time that a search waits for its turn, or for that of the peer's, at most.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(30);
/// Interval at which a search that waits asks for its turn.
const TURN_POLL_INTERVAL: Duration = Duration::from_millis(50);
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
    pub(crate) plan: SearchPlan,
    stage: Stage,
    /// It counts as running.
    pub(crate) running: bool,
    pub(crate) turn: Turn,
    sockets: Vec<SocketId>,
    sampling: Sampling,
    windows: PeerWindows,
    progress: ScanProgress,
}

impl Search {
    pub(crate) fn new(plan: SearchPlan, rng: &mut StdRng) -> Self {
        Self {
            plan,
            stage: Stage::Waiting(plan.begins),
            running: false,
            turn: Turn::new(plan.begins),
            sockets: Vec::new(),
            sampling: Sampling::default(),
            windows: PeerWindows::default(),
            progress: ScanProgress::new(rng),
        }
    }

    /// The fewest sockets of its own with which it makes sense.
    pub(crate) fn least_sockets(&self) -> usize {
        match self.plan.strategy {
            Strategy::BirthdayOpen => LEAST_SPRAY,
            _ => self.sockets(),
        }
    }

    /// Sockets of its own that it wants.
    pub(crate) fn sockets(&self) -> usize {
        match self.plan.strategy {
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
        let is_allowed = !self.running || target.ip() == self.plan.target.ip();
        // A fresh socket of the peer is where the peer says.
        let is_fresh = self.windows.fresh > 0;
        if target == self.plan.target || !is_allowed || self.progress.is_retargeted || is_fresh {
            return;
        }
        self.plan.target = target;
        let sends_there = matches!(
            self.plan.strategy,
            Strategy::BirthdayOpen | Strategy::PredictOpen { .. } | Strategy::FreshSocket
        );
        if self.running && sends_there && matches!(self.stage, Stage::Shooting(_)) {
            self.progress.retarget();
            self.stage = Stage::Shooting(now);
        }
    }

    /// Returns the kind of a path that it finds.
    pub(crate) fn finds(&self) -> Option<PathKind> {
        match self.plan.strategy {
            Strategy::BirthdayOpen | Strategy::BirthdayScan | Strategy::BirthdayScanFresh => {
                Some(PathKind::Searched)
            }
            Strategy::PredictOpen { .. } | Strategy::PredictBoth { .. } | Strategy::PredictScanFresh => {
                Some(PathKind::Predicted)
            }
            Strategy::PredictScan
                if matches!(self.plan.theirs.allocation, Some(Allocation::Sequential { .. })) =>
            {
                Some(PathKind::Predicted)
            }
            // Towards, or from, a fresh socket that the coordinator has seen.
            Strategy::FreshSocket | Strategy::PredictScan => Some(PathKind::ServerReflexive),
            Strategy::ProbeOnly | Strategy::Impossible => None,
        }
    }

    /// The step of our NAT, if the peer learns at once where it is; 0 for a single socket.
    fn step(&self) -> Option<u16> {
        match self.plan.strategy {
            Strategy::PredictOpen { step } | Strategy::PredictBoth { step } => Some(step),
            Strategy::FreshSocket => Some(0),
            _ => None,
        }
    }

    /// Returns true if the peer learns of our sockets only once their shots have left.
    fn tells_later(&self) -> bool {
        matches!(self.plan.strategy, Strategy::BirthdayScanFresh | Strategy::PredictScanFresh)
    }

    /// The sockets of which the peer is to learn by now.
    fn complete(&self) -> usize {
        match self.plan.strategy {
            Strategy::BirthdayScanFresh => {
                usize::try_from(self.progress.shots / SCAN_RUN).unwrap_or(usize::MAX)
            }
            Strategy::PredictScanFresh => usize::from(self.progress.shots >= WINDOW),
            _ => 0,
        }
    }

    /// Returns the action that must precede the next shot.
    fn errand(&mut self) -> Option<Action> {
        if let Some(window) = self.sampling.tell(self.complete()) {
            return Some(Action::Tell(window));
        }
        let shots = self.progress.shots;
        let is_scan = self.plan.strategy == Strategy::BirthdayScanFresh && shots < self.limit();
        let place = usize::try_from(shots / SCAN_RUN).ok().filter(|_| is_scan)?;
        let asks = self.sampling.asks_again(place, shots % SCAN_RUN, SCAN_SAMPLE);
        self.sockets.get(place).copied().filter(|_| asks).map(Action::Sample)
    }

    /// Others come first. True if it waits only from now on.
    pub(crate) fn queue(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.turn.ticket = Some(ticket);
        let before = std::mem::replace(&mut self.stage, Stage::Queued(now + TURN_POLL_INTERVAL));
        !matches!(before, Stage::Queued(_))
    }

    /// Returns true if it makes sense only at the same time as the peer's, which waits for its
    /// turn.
    pub(crate) fn is_held(&self) -> bool {
        use Strategy::{BirthdayScan, BirthdayScanFresh, PredictScan, PredictScanFresh};
        self.turn.does_peer_wait()
            && matches!(self.plan.strategy, BirthdayScan | PredictScan | BirthdayScanFresh | PredictScanFresh)
    }

    /// Waits with the peer.
    pub(crate) fn hold(&mut self) {
        self.stage = Stage::Held;
    }

    /// The peer's search waits for its turn, or begins. Returns true if the search of this peer
    /// begins with it.
    pub(crate) fn peer_turn(&mut self, begins: bool, now: Instant) -> bool {
        if !self.turn.note_peer(begins) {
            return false;
        }
        match self.stage {
            Stage::Shooting(_) if self.is_held() => self.stage = Stage::Held,
            Stage::Held if begins && self.running => {
                // The shots that are left.
                self.stage = match self.plan.strategy {
                    Strategy::PredictScan if self.windows.first.is_none() => Stage::Preparing,
                    _ => Stage::Shooting(self.progress.resumed_at(now)),
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
                let goes_on = self.progress.shots < self.limit() || self.sampling.has_untold(self.complete());
                goes_on.then(|| self.progress.next_at(first))
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
                    self.sampling.asked();
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
                let path = self.shot(self.progress.shots);
                self.progress.shots += 1;
                path.map(Action::Shoot)
            }
            Stage::Preparing | Stage::Held | Stage::Over => None,
        }
    }

    /// The socket from which the observer is asked next: in a sequence each has made one mapping.
    fn to_sample(&self) -> Option<SocketId> {
        let next = self.sampling.next()?;
        let place = if self.sockets() == 1 { 0 } else { next };
        self.sockets.get(place).copied()
    }

    /// The search was admitted.
    pub(crate) fn begun(&mut self, now: Instant) {
        self.running = true;
        self.turn.ticket = None;
        self.stage = Stage::Preparing;
        if self.plan.strategy == Strategy::BirthdayScan {
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
            self.sampling.expect_fresh(sockets.len());
        }
        self.stage = match self.plan.strategy {
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
        if let Some(place) = self.sockets.iter().position(|own| *own == socket) {
            self.sampling.seen(place, port);
        }
        if !matches!(self.stage, Stage::Sampling(_)) {
            return None;
        }
        self.sampling.done();
        self.stage = Stage::Preparing;
        self.ready(now);
        self.step().map(|step| Window { port, step })
    }

    /// Returns true if shots would come too early, as the peer has not told yet where it expects
    /// them.
    fn waits_for_window(&self) -> bool {
        self.plan.theirs.is_fragile() && self.windows.fresh == 0
    }

    /// The peer has a fresh socket, from which it has sent what it had to: it is there from now on.
    fn follow_fresh(&mut self, port: u16, now: Instant) {
        if self.windows.fresh == SCAN_RUNS {
            return;
        }
        self.windows.fresh += 1;
        self.progress.follow();
        self.plan.target.set_port(port);
        let is_open = self.running && !self.sockets.is_empty();
        match self.stage {
            Stage::Shooting(_) => self.stage = Stage::Shooting(now),
            Stage::Preparing if is_open && self.plan.strategy == Strategy::BirthdayOpen => {
                self.stage = Stage::Shooting(now)
            }
            _ => self.ready(now),
        }
    }

    /// The peer's NAT was sampled. Only the first window counts, except those of fresh sockets at
    /// which we aim. Returns true if a search must begin now: plain probes have met silence, and
    /// the peer has a socket of which we did not expect to hear.
    pub(crate) fn follow(&mut self, window: Window, now: Instant) -> bool {
        if window.step == 0
            && matches!(self.plan.strategy, Strategy::BirthdayOpen | Strategy::PredictOpen { .. })
        {
            self.follow_fresh(window.port, now);
            return false;
        }
        if self.windows.first.is_some() {
            return false;
        }
        self.windows.first = Some(window);
        if self.plan.strategy == Strategy::ProbeOnly && window.step == 0 {
            self.plan.strategy = Strategy::PredictScan;
            return self.stage == Stage::Preparing;
        }
        self.ready(now);
        false
    }

    /// Begins to shoot as soon as everything for it is there.
    fn ready(&mut self, now: Instant) {
        let ready = match self.plan.strategy {
            Strategy::PredictScan => self.windows.first.is_some(),
            Strategy::PredictBoth { .. } | Strategy::PredictScanFresh => {
                self.sampling.is_done() && self.windows.first.is_some()
            }
            Strategy::PredictOpen { .. } => self.sampling.is_done() && !self.waits_for_window(),
            Strategy::FreshSocket => self.sampling.is_done(),
            _ => false,
        };
        if ready && self.running && self.stage == Stage::Preparing {
            self.stage = Stage::Shooting(now);
        }
    }

    fn limit(&self) -> u32 {
        let once = |count: usize| u32::try_from(count).unwrap_or(0);
        let left = self.progress.left();
        match self.plan.strategy {
            Strategy::BirthdayScan => scan_progress::MAX_SHOTS,
            Strategy::PredictScan if self.windows.first.is_some_and(|window| window.step == 0) => SINGLE,
            Strategy::PredictScan => 2 * WINDOW,
            Strategy::BirthdayScanFresh => once(self.sampling.fresh_sockets()) * SCAN_RUN,
            Strategy::PredictScanFresh => WINDOW,
            Strategy::FreshSocket => SINGLE,
            Strategy::BirthdayOpen if self.windows.fresh > 0 => once(self.sockets.len()).min(left),
            Strategy::BirthdayOpen | Strategy::PredictOpen { .. } | Strategy::PredictBoth { .. } => {
                (2 * once(self.sockets.len())).min(left)
            }
            Strategy::ProbeOnly | Strategy::Impossible => 0,
        }
    }

    fn shot(&self, n: u32) -> Option<Path> {
        let at = |port| SocketAddr::new(self.plan.target.ip(), port);
        let own = || self.sockets.get(usize::try_from(n).ok()? % self.sockets.len()).copied();
        let (socket, remote) = match self.plan.strategy {
            Strategy::BirthdayScan => (self.plan.from, at(self.progress.port_of(n)?)),
            Strategy::BirthdayScanFresh => {
                let run = usize::try_from(n / SCAN_RUN).ok()?;
                (self.sockets.get(run).copied()?, at(self.progress.port_of(n)?))
            }
            Strategy::PredictScanFresh => (own()?, at(self.windows.first?.after(1 + n))),
            Strategy::PredictScan => (self.plan.from, at(self.windows.first?.after(1 + n % WINDOW))),
            Strategy::BirthdayOpen | Strategy::PredictOpen { .. } | Strategy::FreshSocket => {
                (own()?, self.plan.target)
            }
            Strategy::PredictBoth { .. } => {
                let run = usize::try_from(n).ok()? / self.sockets.len().max(1);
                (own()?, at(self.windows.first?.after(*AIMS.get(run)?)))
            }
            Strategy::ProbeOnly | Strategy::Impossible => return None,
        };
        Some(Path { socket, remote })
    }
}

#[cfg(test)]
mod tests;
