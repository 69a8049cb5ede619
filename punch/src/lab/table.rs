//! The matrix as a table of characters.

use std::fmt::Write as _;

use super::matrix::{Cell, Matrix, Tally, quantile, short};

/// Characters between columns.
const GAP: usize = 2;

/// Returns a table of all pairs, dialers from top to bottom and listeners from left to right.
pub(super) fn of(matrix: &Matrix) -> String {
    let labels: Vec<[&str; 2]> = matrix.kinds.iter().map(|kind| <[&str; 2]>::from(kind.label())).collect();
    let rows: Vec<Vec<String>> = matrix.rows().map(|row| row.iter().map(cell).collect()).collect();
    let widest = |words: &mut dyn Iterator<Item = usize>| words.max().unwrap_or_default();
    let title = ["dialer ↓", "listener →"];
    let first = widest(&mut labels.iter().map(|[name, more]| joined(name, more).chars().count())).max(10);
    let widths: Vec<usize> = labels
        .iter()
        .enumerate()
        .map(|(column, label)| {
            let cells =
                rows.iter().filter_map(|row| row.get(column)).chain(&[]).map(|cell| cell.chars().count());
            widest(&mut cells.chain(label.iter().map(|word| word.chars().count()))) + GAP
        })
        .collect();
    let mut text = String::new();
    for (line, title) in title.into_iter().enumerate() {
        let _ = write!(text, "{title:first$}");
        for (label, width) in labels.iter().zip(&widths) {
            let word = label.get(line).copied().unwrap_or_default();
            let _ = write!(text, "{word:>width$}");
        }
        text = text.trim_end().to_owned() + "\n";
    }
    for ([name, more], row) in labels.iter().zip(&rows) {
        let _ = write!(text, "{:first$}", joined(name, more));
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "{cell:>width$}");
        }
        text.push('\n');
    }
    text + "d direct, r relayed, f failed; the median of the times to a connection\n"
}

fn joined(name: &str, more: &str) -> String {
    if more.is_empty() { name.to_owned() } else { format!("{name}, {more}") }
}

/// Returns a cell such as `3d 1.9 ms`, or `2d 1f 40 ms`.
fn cell(cell: &Cell) -> String {
    let Tally { direct, relayed, failed } = cell.tally();
    let counts = [(direct, 'd'), (relayed, 'r'), (failed, 'f')];
    let counts =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, letter)| format!("{count}{letter}"));
    let time = quantile(&cell.times(), 0.5).map(short);
    counts.chain(time).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::matrix::tests::example;

    #[test]
    fn the_table_has_counts_and_medians_in_columns() {
        let expected = "\
dialer ↓                public       EIM+APDF
listener →              no NAT      port kept
public, no NAT        3d 75 ms       3r 75 ms
EIM+APDF, port kept         3f  1d 1r 1f 2.0 ms
d direct, r relayed, f failed; the median of the times to a connection
";
        let text = of(&example().matrices[0]);
        let squeezed = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&text), squeezed(expected));
        let ends: Vec<usize> = text.lines().take(4).map(|line| line.chars().count()).collect();
        assert!(
            ends.windows(2).all(|pair| pair[0] == pair[1]),
            "the last column is not aligned: {ends:?}\n{text}"
        );
    }
}
