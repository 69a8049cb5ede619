//! The results of a run.

use std::{collections::BTreeMap, time::Duration};

use punch_lab::Kind;

use super::node::Dialed;

/// The results of a run.
pub(super) struct Report {
    pub(super) joined: Joined,
    pub(super) rounds: Vec<Round>,
    pub(super) load: Load,
    pub(super) idle: Idle,
    /// Simulated time of the whole run.
    pub(super) elapsed: Duration,
}

/// The network before the first dial.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) nodes: usize,
    /// Nodes on public hosts.
    pub(super) public: usize,
    /// Nodes that coordinate.
    pub(super) coordinators: usize,
    /// Nodes that do not.
    pub(super) hidden: usize,
    /// Hidden nodes that at least one coordinator has registered.
    pub(super) with_one: usize,
    /// Hidden nodes that have all the coordinators that they look for.
    pub(super) with_all: usize,
    /// Time from the last join until then.
    pub(super) waited: Duration,
}

/// One dial.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) dialer: Kind,
    pub(super) listener: Kind,
    /// A way through both NATs is known.
    pub(super) can_be_direct: bool,
    /// Least time to connect through the nearest coordinator of the listener: half of the three
    /// round trips.
    pub(super) bound: Option<Duration>,
    pub(super) outcome: Dialed,
}

/// Dials of random pairs.
pub(super) struct Round {
    pub(super) name: String,
    pub(super) attempts: Vec<Attempt>,
}

/// Numbers of outcomes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    /// Connected before the dial.
    pub(super) already: usize,
    /// The first connection is direct.
    pub(super) direct: usize,
    /// The first connection is relayed, and a direct one followed.
    pub(super) upgraded: usize,
    /// Only a relayed connection.
    pub(super) relayed: usize,
    pub(super) failed: usize,
}

impl Tally {
    fn of<'a>(attempts: impl IntoIterator<Item = &'a Attempt>) -> Self {
        let mut tally = Self::default();
        for attempt in attempts {
            *match attempt.outcome {
                Dialed::Already => &mut tally.already,
                Dialed::Direct { .. } => &mut tally.direct,
                Dialed::Relayed { direct: Some(_), .. } => &mut tally.upgraded,
                Dialed::Relayed { direct: None, .. } => &mut tally.relayed,
                Dialed::Failed(_) => &mut tally.failed,
            } += 1;
        }
        tally
    }

    /// Returns the number of dials that began without a connection.
    pub(super) fn dialed(&self) -> usize {
        self.direct + self.upgraded + self.relayed + self.failed
    }

    /// Returns the share of those that became direct, in percent.
    pub(super) fn direct_share(&self) -> f64 {
        percent(self.direct + self.upgraded, self.dialed())
    }
}

impl Round {
    /// Counts all dials.
    pub(super) fn tally(&self) -> Tally {
        Tally::of(&self.attempts)
    }

    /// Counts the dials between NATs that a way through is known for.
    pub(super) fn tally_possible(&self) -> Tally {
        Tally::of(self.attempts.iter().filter(|attempt| attempt.can_be_direct))
    }

    /// Counts the dials of each unordered pair of kinds.
    pub(super) fn tally_by_pair(&self) -> Vec<(Kind, Kind, Tally)> {
        let place = |kind: Kind| Kind::ALL.iter().position(|known| *known == kind);
        let mut pairs: BTreeMap<_, Vec<&Attempt>> = BTreeMap::new();
        for attempt in &self.attempts {
            let (one, other) = (place(attempt.dialer), place(attempt.listener));
            pairs.entry((one.min(other), one.max(other))).or_default().push(attempt);
        }
        let tally = |((one, other), attempts): ((Option<usize>, Option<usize>), Vec<&Attempt>)| {
            Some((Kind::ALL[one?], Kind::ALL[other?], Tally::of(attempts)))
        };
        pairs.into_iter().filter_map(tally).collect()
    }

    /// Returns the number of dials that failed.
    pub(super) fn avoidable_failures(&self) -> usize {
        self.tally().failed
    }

    /// Returns how often each reason ended a dial.
    pub(super) fn failures(&self) -> BTreeMap<String, usize> {
        let mut failures = BTreeMap::new();
        for attempt in &self.attempts {
            if let Dialed::Failed(reason) = &attempt.outcome {
                let pair = format!("{} to {}: {reason}", attempt.dialer, attempt.listener);
                *failures.entry(pair).or_default() += 1;
            }
        }
        failures
    }

    /// Returns the times of the dials that became direct at once and needed a coordinator.
    pub(super) fn times(&self) -> Times {
        let mut times = Times::default();
        for attempt in &self.attempts {
            let Dialed::Direct { elapsed, lookup } = attempt.outcome else { continue };
            let Some(bound) = attempt.bound else { continue };
            let punch = elapsed.saturating_sub(lookup);
            times.all.push(elapsed);
            times.lookup.push(lookup);
            times.punch.push(punch);
            times.over_bound.push(punch.saturating_sub(bound));
        }
        for list in [&mut times.all, &mut times.lookup, &mut times.punch, &mut times.over_bound] {
            list.sort();
        }
        times
    }
}

/// Times to connect, each list in order.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) all: Vec<Duration>,
    /// Until the request that a coordinator answered.
    pub(super) lookup: Vec<Duration>,
    /// From there to the connection.
    pub(super) punch: Vec<Duration>,
    /// The part of the latter above half of the three round trips.
    pub(super) over_bound: Vec<Duration>,
}

/// Returns the value below which this share of an ordered list is.
pub(super) fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

/// Requests that each coordinator passed on.
#[derive(Debug)]
pub(super) struct Load {
    /// In order.
    pub(super) requests: Vec<u64>,
}

impl Load {
    pub(super) fn new(mut requests: Vec<u64>) -> Self {
        requests.sort_unstable();
        Self { requests }
    }

    pub(super) fn mean(&self) -> f64 {
        self.requests.iter().sum::<u64>() as f64 / self.requests.len().max(1) as f64
    }

    /// Returns the load of the busiest coordinator by the mean.
    pub(super) fn max_by_mean(&self) -> f64 {
        self.requests.last().map_or(0.0, |max| *max as f64) / self.mean().max(f64::MIN_POSITIVE)
    }
}

/// Traffic of a node: UDP payload.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Traffic {
    pub(super) datagrams_sent: f64,
    pub(super) bytes_sent: f64,
    pub(super) datagrams_received: f64,
    pub(super) bytes_received: f64,
}

impl Traffic {
    /// Returns the mean of nodes, for each second of `time`.
    pub(super) fn mean(nodes: impl Iterator<Item = Self>, time: Duration) -> Self {
        let (sum, count) = Self::sum(nodes);
        sum.divided_by(count * time.as_secs_f64())
    }

    /// Returns the sum of all, and their number.
    fn sum(all: impl Iterator<Item = Self>) -> (Self, f64) {
        all.fold((Self::default(), 0.0), |(sum, count), traffic| {
            let sum = Self {
                datagrams_sent: sum.datagrams_sent + traffic.datagrams_sent,
                bytes_sent: sum.bytes_sent + traffic.bytes_sent,
                datagrams_received: sum.datagrams_received + traffic.datagrams_received,
                bytes_received: sum.bytes_received + traffic.bytes_received,
            };
            (sum, count + 1.0)
        })
    }

    /// Returns a part of this traffic; none if there is nothing to divide by.
    fn divided_by(self, divisor: f64) -> Self {
        let part = |value: f64| if divisor > 0.0 { value / divisor } else { 0.0 };
        Self {
            datagrams_sent: part(self.datagrams_sent),
            bytes_sent: part(self.bytes_sent),
            datagrams_received: part(self.datagrams_received),
            bytes_received: part(self.bytes_received),
        }
    }
}

/// Nodes while nobody dials.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) hidden: IdleNode,
    pub(super) coordinators: IdleNode,
}

/// Means of the nodes of one kind.
#[derive(Debug)]
pub(super) struct IdleNode {
    /// Traffic, for each second.
    pub(super) traffic: Traffic,
    /// The same in the part of the time with the fewest bytes: Kademlia searches in the others.
    pub(super) quietest: Traffic,
    /// Connected peers.
    pub(super) peers: f64,
}

impl IdleNode {
    /// Creates the means from those of equal parts of the time.
    pub(super) fn new(parts: &[Traffic], peers: f64) -> Self {
        let bytes = |traffic: &Traffic| traffic.bytes_sent + traffic.bytes_received;
        let (sum, count) = Traffic::sum(parts.iter().copied());
        let quietest = parts.iter().min_by(|a, b| bytes(a).total_cmp(&bytes(b))).copied();
        Self { traffic: sum.divided_by(count), quietest: quietest.unwrap_or_default(), peers }
    }
}

/// Returns a share in percent.
pub(super) fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}
