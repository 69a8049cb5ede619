//! One pair of a checklist: a path that is probed (RFC 8445 §6.1.2).

use std::{
    cmp::{Ordering, Reverse},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{Path, address_policy::is_lan};

/// Time of each probe of a pair, in milliseconds after the first: about doubling, dense at
/// first because both sides must hit the same moment, and over before a NAT forgets (RFC 4787
/// REQ-5).
pub(crate) const SCHEDULE: [u64; 9] = [0, 33, 67, 133, 267, 533, 1067, 2133, 4267];
/// Probes of the opening burst of a pair.
pub(crate) const OPENING: usize = 5;
/// Time after its last probe in which a pair may still be answered.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// Challenges of a pair that may still be answered; older ones are forgotten.
pub(crate) const MAX_OUTSTANDING: usize = 4;
/// Challenges of a pair that were triggered by the peer's, between two starts.
pub(crate) const MAX_TRIGGERED: u8 = 9;
/// Unanswered probes after which a path that once worked counts as dead.
const DEAD_AFTER: u8 = 4;

/// RFC 8445 §6.1.2.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Waiting,
    InProgress,
    Succeeded,
    Failed,
}

/// The order in which working paths are preferred, whatever their RTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Lan,
    V6,
    V4,
}

impl Class {
    fn of(ip: IpAddr) -> Self {
        match ip {
            _ if is_lan(ip) => Class::Lan,
            IpAddr::V6(_) => Class::V6,
            IpAddr::V4(_) => Class::V4,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) path: Path,
    /// RFC 8445 §6.1.2.3.
    pub(crate) priority: u64,
    /// Coordinator-observed, or signed by the peer; peer-reflexive if neither.
    pub(crate) origin: Origin,
    pub(crate) state: State,
    pub(crate) sent: u8,
    pub(crate) triggered: u8,
    /// An authentic challenge came over it.
    pub(crate) heard: bool,
    /// QUIC may use it before it is validated.
    pub(crate) permitted: bool,
    /// Of the first probe; before that, since when the pair waits.
    pub(crate) started: Instant,
    pub(crate) rtt: Option<Duration>,
    pub(crate) outstanding: Vec<Challenge>,
}

/// Source of the remote address of a pair, the most trusted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The coordinator saw the peer there.
    Observed,
    /// The peer signed it.
    Announced,
    /// An authentic probe came from there.
    PeerReflexive,
}

/// A challenge that was sent and may be answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Challenge {
    pub(crate) data: [u8; 8],
    pub(crate) sent: Instant,
    pub(crate) nominate: bool,
}

impl Pair {
    pub(crate) fn restart(&mut self, now: Instant) {
        self.state = State::Waiting;
        self.sent = 0;
        self.triggered = 0;
        self.started = now;
    }

    pub(crate) fn is_opening(&self) -> bool {
        self.state == State::InProgress && usize::from(self.sent) < OPENING
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        let after = SCHEDULE.get(usize::from(self.sent))?;
        Some(self.started + Duration::from_millis(*after))
    }

    pub(crate) fn fails_at(&self) -> Option<Instant> {
        let over = self.state == State::InProgress && self.next_due().is_none();
        let last = SCHEDULE.last().copied().unwrap_or_default();
        over.then(|| self.started + Duration::from_millis(last) + REPLY_TIMEOUT)
    }

    pub(crate) fn is_dead(&self) -> bool {
        match self.state {
            State::Succeeded | State::Waiting => false,
            State::InProgress => self.sent > DEAD_AFTER,
            State::Failed => true,
        }
    }

    pub(crate) fn rank(&self) -> (Class, Duration, Reverse<u64>) {
        (Class::of(self.path.remote.ip()), self.rtt.unwrap_or(Duration::MAX), Reverse(self.priority))
    }

    /// Another class decides; within one the RTT must be a quarter and 5 ms shorter, so that noise
    /// moves nothing.
    pub(crate) fn is_clearly_better(&self, than: &Pair) -> bool {
        let (class, rtt, _) = self.rank();
        let (other_class, other_rtt, _) = than.rank();
        match class.cmp(&other_class) {
            Ordering::Less => true,
            Ordering::Equal => {
                let shorter = other_rtt.saturating_sub(rtt);
                shorter >= other_rtt / 4 && shorter >= Duration::from_millis(5)
            }
            Ordering::Greater => false,
        }
    }
}
