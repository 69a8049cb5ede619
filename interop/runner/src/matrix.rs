//! Results of all checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use anyhow::Context;
use serde::Serialize;

use crate::{
    check::{Check, Direction},
    expected,
    peer::{PEERS, Peer},
};

/// Result of a check, compared with the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The check passed.
    Passed,
    /// The check failed, which is known and not our fault.
    FailedAsExpected,
    /// The check failed.
    Failed,
    /// The check passed, and is listed as a known failure.
    PassedUnexpectedly,
    /// The check was not run: this machine lacks what it needs.
    Skipped,
}

/// Number of checks with each kind of result.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    /// Failures that nobody knew, and successes of checks that are known to fail.
    pub(crate) failed: usize,
    pub(crate) known_failures: usize,
    pub(crate) skipped: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, known_failures, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {known_failures} known failures, {skipped} skipped")
    }
}

/// One check with one peer in one direction.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cell {
    peer: &'static str,
    direction: Direction,
    #[serde(serialize_with = "as_text")]
    check: Check,
    outcome: Outcome,
    /// A measurement, or the reason of the failure or of the skip.
    detail: String,
    /// Fault behind an expected failure, and the implementation that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

fn as_text<S: serde::Serializer>(check: &Check, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(check)
}

impl Cell {
    /// Returns the text for the documentation. A check that fails at times has one text for both
    /// results.
    fn text(&self, notes: &mut Notes) -> String {
        let known = expected::find(self.peer, self.direction, self.check);
        match (self.outcome, self.fault.as_deref()) {
            (Outcome::Failed | Outcome::PassedUnexpectedly, _) => "**unexpected**".to_owned(),
            (Outcome::Skipped, _) => "not run".to_owned(),
            (_, Some(fault)) if known.is_some_and(|known| known.sometimes) => {
                format!("at times ({})", notes.number(fault))
            }
            (Outcome::FailedAsExpected, Some(fault)) => format!("no ({})", notes.number(fault)),
            _ => "yes".to_owned(),
        }
    }
}

/// The notes below the table, each once.
#[derive(Debug, Default)]
struct Notes(Vec<String>);

impl Notes {
    /// The number of a note, beginning with 1.
    fn number(&mut self, note: &str) -> usize {
        let known = self.0.iter().position(|known| known == note);
        known.unwrap_or_else(|| {
            self.0.push(note.to_owned());
            self.0.len() - 1
        }) + 1
    }
}

/// Everything that was checked.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    cells: Vec<Cell>,
}

impl Matrix {
    pub(crate) fn add(
        &mut self,
        peer: &'static str,
        direction: Direction,
        check: Check,
        result: Result<String, String>,
    ) {
        let expected = expected::find(peer, direction, check);
        let (outcome, detail) = match (expected, result) {
            (None, Ok(detail)) => (Outcome::Passed, detail),
            (None, Err(error)) => (Outcome::Failed, error),
            (Some(known), Ok(detail)) if known.sometimes => (Outcome::Passed, detail),
            (Some(_), Ok(detail)) => (Outcome::PassedUnexpectedly, detail),
            (Some(_), Err(error)) => (Outcome::FailedAsExpected, error),
        };
        eprintln!("{peer} {direction:?} {check}: {outcome:?} {detail}");
        let fault = expected.map(|expected| format!("{}: {}", expected.implementation, expected.description));
        self.cells.push(Cell { peer, direction, check, outcome, detail, fault });
    }

    /// Records that this machine cannot run a check.
    pub(crate) fn skip(&mut self, peer: &'static str, direction: Direction, check: Check, why: &str) {
        let (outcome, detail) = (Outcome::Skipped, why.to_owned());
        self.cells.push(Cell { peer, direction, check, outcome, detail, fault: None });
    }

    /// Counts the results.
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for cell in &self.cells {
            let count = match cell.outcome {
                Outcome::Passed => &mut tally.passed,
                Outcome::Failed | Outcome::PassedUnexpectedly => &mut tally.failed,
                Outcome::FailedAsExpected => &mut tally.known_failures,
                Outcome::Skipped => &mut tally.skipped,
            };
            *count += 1;
        }
        tally
    }

    /// Returns a line for each peer and each reason, with the names of the skipped checks.
    fn skips(&self) -> Vec<String> {
        let mut skipped: BTreeMap<(&str, &str), BTreeSet<Check>> = BTreeMap::new();
        for cell in self.cells.iter().filter(|cell| cell.outcome == Outcome::Skipped) {
            skipped.entry((cell.peer, cell.detail.as_str())).or_default().insert(cell.check);
        }
        let line = |((peer, why), checks): ((&str, &str), BTreeSet<Check>)| {
            let names = checks.iter().map(Check::to_string).collect::<Vec<_>>().join(", ");
            format!("skipped: {peer}: {names}: {why}")
        };
        skipped.into_iter().map(line).collect()
    }

    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.cells)?)
    }

    fn cell(&self, peer: &str, direction: Direction, check: Check) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.peer == peer && cell.direction == direction && cell.check == check)
    }

    fn checks(&self) -> BTreeSet<Check> {
        self.cells.iter().map(|cell| cell.check).collect()
    }

    fn columns(&self) -> Vec<(&'static Peer, Direction)> {
        let all = PEERS.iter().flat_map(|peer| peer.directions().map(move |direction| (peer, direction)));
        let was_run = |cell: &Cell| cell.outcome != Outcome::Skipped;
        all.filter(|(peer, _)| self.cells.iter().any(|cell| cell.peer == peer.name && was_run(cell)))
            .collect()
    }

    /// The table for the documentation, with the faults of others, and what is not tried, below.
    pub(crate) fn markdown(&self) -> String {
        let columns = self.columns();
        let mut notes = Notes::default();
        let mut table = String::from("| |");
        for (peer, direction) in &columns {
            let who = match direction {
                Direction::TheyDial => "they dial",
                Direction::WeDial => "we dial",
            };
            table += &format!(" {}, {who} |", peer.title);
        }
        table += &format!("\n|---|{}\n", "---|".repeat(columns.len()));
        for check in self.checks() {
            table += &format!("| {check} |");
            for (peer, direction) in &columns {
                let text = match self.cell(peer.name, *direction, check) {
                    Some(cell) => cell.text(&mut notes),
                    None => match expected::untried(peer, *direction, check) {
                        Some(why) => format!("– ({})", notes.number(why)),
                        None => "–".to_owned(),
                    },
                };
                table += &format!(" {text} |");
            }
            table += "\n";
        }
        for (index, note) in notes.0.iter().enumerate() {
            table += &format!("\n{}. {note}", index + 1);
        }
        table + "\n"
    }

    /// Puts the table between its two marks in a document.
    pub(crate) fn write_docs(&self, file: &Path) -> anyhow::Result<()> {
        const BEGIN: &str = "<!-- matrix begin -->\n";
        const END: &str = "<!-- matrix end -->";
        let text = fs::read_to_string(file)?;
        let (head, rest) = text.split_once(BEGIN).context("no mark where the matrix begins")?;
        let (_, tail) = rest.split_once(END).context("no mark where the matrix ends")?;
        fs::write(file, format!("{head}{BEGIN}\n{}\n{END}{tail}", self.markdown()))?;
        Ok(())
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns();
        write!(f, "{:32}", "")?;
        for (peer, direction) in &columns {
            let arrow = match direction {
                Direction::TheyDial => "->us",
                Direction::WeDial => "<-us",
            };
            write!(f, " {:12}", format!("{}{arrow}", peer.name))?;
        }
        writeln!(f)?;
        for check in self.checks() {
            write!(f, "{:32}", check.to_string())?;
            for (peer, direction) in &columns {
                let text = match self.cell(peer.name, *direction, check).map(|cell| cell.outcome) {
                    None => "-",
                    Some(Outcome::Passed) => "ok",
                    Some(Outcome::FailedAsExpected) => "known",
                    Some(Outcome::Failed) => "FAILED",
                    Some(Outcome::PassedUnexpectedly) => "UNEXPECTED",
                    Some(Outcome::Skipped) => "skipped",
                };
                write!(f, " {text:12}")?;
            }
            writeln!(f)?;
        }
        let is_listed = |cell: &&Cell| !matches!(cell.outcome, Outcome::Passed | Outcome::Skipped);
        for cell in self.cells.iter().filter(is_listed) {
            let Cell { peer, direction, check, outcome, detail, fault } = cell;
            write!(f, "{outcome:?}: {peer}, {direction:?}, {check}: {detail}")?;
            match fault {
                Some(fault) => writeln!(f, " ({fault})")?,
                None => writeln!(f)?,
            }
        }
        for line in self.skips() {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use interop_testplan::features::Feature;

    use super::*;

    #[test]
    fn known_failures_and_skipped_checks_do_not_count_as_passed() {
        let mut matrix = Matrix::default();
        let they_dial = Direction::TheyDial;
        matrix.add("go", they_dial, Check::Feature(Feature::Ping), Ok("1 ms".into()));
        matrix.add("go", they_dial, Check::Feature(Feature::Echo), Ok("2 ms".into()));
        matrix.add("go", they_dial, Check::Feature(Feature::Reset), Err("a byte came back".into()));
        // A known failure of go-libp2p-daemon.
        matrix.add("go", they_dial, Check::Feature(Feature::HalfClose), Err("no answer".into()));
        // A known failure of py-libp2p that no longer fails.
        matrix.add("py", they_dial, Check::Ipv6, Ok("1 ms".into()));
        matrix.skip("go", Direction::WeDial, Check::Wire, "tshark is not installed");
        matrix.skip("punch", Direction::WeDial, Check::Wire, "tshark is not installed");
        matrix.skip("punch", Direction::WeDial, Check::WireRawKey, "tshark is not installed");
        assert_eq!(matrix.tally().to_string(), "2 passed, 2 failed, 1 known failures, 3 skipped");
    }

    #[test]
    fn skipped_checks_are_listed_by_name_and_reason() {
        let mut matrix = Matrix::default();
        matrix.skip("punch", Direction::WeDial, Check::Wire, "tshark is not installed");
        matrix.skip("punch", Direction::WeDial, Check::WireRawKey, "tshark is not installed");
        matrix.skip("go-current", Direction::WeDial, Check::Ipv6, "it cannot be installed here");
        matrix.skip("go-current", Direction::TheyDial, Check::Ipv6, "it cannot be installed here");
        let text = matrix.to_string();
        assert!(text.contains("skipped: punch: wire, wire-raw-key: tshark is not installed\n"), "{text}");
        assert!(text.contains("skipped: go-current: ipv6: it cannot be installed here\n"), "{text}");
    }

    #[test]
    fn a_peer_that_was_skipped_has_no_column_in_the_documentation() {
        let mut matrix = Matrix::default();
        matrix.add("rust", Direction::WeDial, Check::Ipv6, Ok("1 ms".into()));
        matrix.skip("rust", Direction::WeDial, Check::Wire, "tshark is not installed");
        matrix.skip("go-current", Direction::WeDial, Check::Ipv6, "it cannot be installed here");
        let table = matrix.markdown();
        assert!(table.contains("| wire | – (1) | not run |"), "{table}");
        assert!(!table.contains("go-libp2p"), "{table}");
    }
}
