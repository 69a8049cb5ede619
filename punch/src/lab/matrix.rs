//! Dials of the lab, and their outcomes.

use std::{fmt, str::FromStr, time::Duration};

use punch_lab::{Behaviour, Kind, Outcome};

/// Implementation of both peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Implementation {
    /// This program.
    Punch,
    /// rust-libp2p as it comes: quic, relay, identify and dcutr.
    Stock,
}

impl Implementation {
    /// Name on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Implementation::Punch => "punch",
            Implementation::Stock => "stock",
        }
    }

    /// Name in tables and pictures.
    pub(super) fn title(self) -> &'static str {
        match self {
            Implementation::Punch => "libp2p-punch",
            Implementation::Stock => "rust-libp2p (quic, relay, dcutr)",
        }
    }
}

impl FromStr for Implementation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Implementation::Punch, Implementation::Stock];
        let found = all.into_iter().find(|implementation| implementation.word() == text);
        found.ok_or_else(|| "it is punch or stock".to_owned())
    }
}

/// Network of the dials.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Mode {
    /// NATs of this kernel release, and the measured behaviour of each kind.
    Kernel { release: String, measured: Vec<(Kind, Behaviour)> },
    /// A simulated network.
    Simulated(Conditions),
}

/// Conditions between any two of the three peers in a simulated network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Conditions {
    pub(super) rtt: Duration,
    /// In percent.
    pub(super) loss: f64,
}

/// Dial of one pair of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PairDial {
    pub(super) dialer: Kind,
    pub(super) listener: Kind,
    /// Number of the run, from 0.
    pub(super) run: u32,
}

impl PairDial {
    /// Returns all dials of a matrix, run by run: the runs of a pair are spread over the whole
    /// time.
    pub(super) fn all(kinds: &[Kind], runs: u32) -> Vec<Self> {
        let pairs = || kinds.iter().flat_map(|dialer| kinds.iter().map(move |listener| (dialer, listener)));
        let dials = (0..runs).flat_map(|run| {
            pairs().map(move |(dialer, listener)| Self { dialer: *dialer, listener: *listener, run })
        });
        dials.collect()
    }
}

/// Results of one call of `punch lab`.
#[derive(Debug, Clone)]
pub(super) struct Study {
    pub(super) mode: Mode,
    pub(super) runs: u32,
    pub(super) matrices: Vec<Matrix>,
}

/// Every ordered pair of kinds, for one implementation.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    pub(super) implementation: Implementation,
    pub(super) kinds: Vec<Kind>,
    cells: Vec<Cell>,
}

/// All dials of one pair.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) dialer: Kind,
    pub(super) listener: Kind,
    pub(super) outcomes: Vec<Outcome>,
}

/// Number of dials by their end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) direct: usize,
    pub(super) relayed: usize,
    pub(super) failed: usize,
}

impl Matrix {
    /// Creates a matrix without results.
    pub(super) fn new(implementation: Implementation, kinds: &[Kind]) -> Self {
        let pairs = kinds.iter().flat_map(|dialer| kinds.iter().map(move |listener| (*dialer, *listener)));
        let cells = pairs.map(|(dialer, listener)| Cell { dialer, listener, outcomes: Vec::new() });
        Self { implementation, kinds: kinds.to_vec(), cells: cells.collect() }
    }

    /// Creates a matrix with the outcomes of `dials`, which are in the same order.
    pub(super) fn of_dials(
        implementation: Implementation,
        kinds: &[Kind],
        dials: &[PairDial],
        outcomes: Vec<Outcome>,
    ) -> Self {
        let mut matrix = Self::new(implementation, kinds);
        for (dial, outcome) in dials.iter().zip(outcomes) {
            matrix.add(dial.dialer, dial.listener, outcome);
        }
        matrix
    }

    /// Adds the outcome of one dial.
    pub(super) fn add(&mut self, dialer: Kind, listener: Kind, outcome: Outcome) {
        let cell = self.cells.iter_mut().find(|cell| cell.dialer == dialer && cell.listener == listener);
        if let Some(cell) = cell {
            cell.outcomes.push(outcome);
        }
    }

    /// Returns all pairs, dialer by dialer.
    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Returns the pairs of each dialer.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[Cell]> {
        self.cells.chunks(self.kinds.len().max(1))
    }

    pub(super) fn tally(&self) -> Tally {
        self.cells.iter().map(Cell::tally).fold(Tally::default(), |sum, cell| Tally {
            direct: sum.direct + cell.direct,
            relayed: sum.relayed + cell.relayed,
            failed: sum.failed + cell.failed,
        })
    }

    /// Returns the times to all direct connections, in order.
    pub(super) fn direct_times(&self) -> Vec<Duration> {
        sorted(self.cells.iter().flat_map(|cell| &cell.outcomes).filter_map(|outcome| match outcome {
            Outcome::Connected { relayed: false, elapsed, .. } => Some(*elapsed),
            _ => None,
        }))
    }
}

impl Cell {
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for outcome in &self.outcomes {
            match outcome {
                Outcome::Connected { relayed: false, .. } => tally.direct += 1,
                Outcome::Connected { relayed: true, .. } => tally.relayed += 1,
                Outcome::Failed { .. } => tally.failed += 1,
            }
        }
        tally
    }

    /// Returns the times to all connections, direct and relayed, in order.
    pub(super) fn times(&self) -> Vec<Duration> {
        sorted(self.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Connected { elapsed, .. } => Some(*elapsed),
            Outcome::Failed { .. } => None,
        }))
    }
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times
}

/// Returns the quantile of times in order; `quantile` is from 0 to 1 (nearest rank).
pub(super) fn quantile(times: &[Duration], quantile: f64) -> Option<Duration> {
    let rank = (quantile.clamp(0.0, 1.0) * times.len() as f64).ceil() as usize;
    times.get(rank.max(1) - 1).copied()
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} direct, {} relayed, {} failed", self.direct, self.relayed, self.failed)
    }
}

/// Formats a time with two or three digits: `950 µs`, `2.4 ms`, `75 ms`, `1.3 s`.
pub(super) fn short(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    match milliseconds {
        ..0.9995 => format!("{:.0} µs", milliseconds * 1e3),
        ..9.95 => format!("{milliseconds:.1} ms"),
        ..999.5 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1e3),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A study of four pairs: one direct, one relayed, one failed, and one with all three.
    pub(in crate::lab) fn example() -> Study {
        let kinds = [Kind::Public, Kind::EimApdf];
        let connected = |relayed, ms: u64| Outcome::Connected {
            relayed,
            elapsed: Duration::from_millis(ms),
            remote: Some("/ip4/192.0.2.2/udp/5000".into()),
        };
        let failed =
            || Outcome::Failed { reason: "timeout".into(), message: "after <30> s & no \"path\"".into() };
        let mut matrix = Matrix::new(Implementation::Punch, &kinds);
        let [public, apdf] = kinds;
        for ms in [75, 3, 1200] {
            matrix.add(public, public, connected(false, ms));
            matrix.add(public, apdf, connected(true, ms));
            matrix.add(apdf, public, failed());
        }
        matrix.add(apdf, apdf, connected(false, 2));
        matrix.add(apdf, apdf, connected(true, 40));
        matrix.add(apdf, apdf, failed());
        let measured = kinds.map(|kind| (kind, kind.behaviour())).to_vec();
        let mode = Mode::Kernel { release: "6.1.0 <test>".into(), measured };
        Study { mode, runs: 3, matrices: vec![matrix] }
    }

    #[test]
    fn every_outcome_is_counted_once() {
        let study = example();
        let tally = study.matrices[0].tally();
        assert_eq!(tally, Tally { direct: 4, relayed: 4, failed: 4 });
        assert_eq!(tally.to_string(), "4 direct, 4 relayed, 4 failed");
        let last = study.matrices[0].cells().last().unwrap();
        assert_eq!(last.tally(), Tally { direct: 1, relayed: 1, failed: 1 });
    }

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times = [1, 2, 3, 4].map(Duration::from_secs);
        assert_eq!(quantile(&times, 0.5), Some(times[1]));
        assert_eq!(quantile(&times, 0.51), Some(times[2]));
        assert_eq!(quantile(&times, 0.0), Some(times[0]));
        assert_eq!(quantile(&times, 1.0), Some(times[3]));
        assert_eq!(quantile(&times[..1], 0.99), Some(times[0]));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn times_are_short_to_read() {
        let cases =
            [(950, "950 µs"), (1_000, "1.0 ms"), (9_960, "10 ms"), (999_700, "1.0 s"), (2_400_000, "2.4 s")];
        for (microseconds, text) in cases {
            assert_eq!(short(Duration::from_micros(microseconds)), text);
        }
    }
}
