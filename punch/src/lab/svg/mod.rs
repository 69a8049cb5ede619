//! The heat map: one panel an implementation, one cell a pair; in each cell the median and the
//! distribution of the times.
//!
//! The picture brings its background, follows the viewer's colour scheme, and uses the viewer's
//! font. Direct, relayed and failed differ in words and hatching, and not only in colour.

mod cell;
mod scale;

use std::time::Duration;

use super::matrix::{Conditions, Matrix, Mode, Study, Tally, quantile, short};
use crate::canvas::{Anchor, Area, Canvas, Ink, at, bold, plain};

const MARGIN: f64 = 28.0;
/// Width of the labels of the rows.
const LABELS: f64 = 132.0;
/// Heights of the parts above and below the cells of a panel.
const TITLE: f64 = 58.0;
const HEADER: f64 = 52.0;
const LEGEND: f64 = 132.0;
/// Parts of the histogram of all times.
const PARTS: usize = 96;

/// Draws the whole picture.
pub(super) fn draw(study: &Study) -> String {
    let mut canvas = Canvas::default();
    let mut width: f64 = 0.0;
    let mut y = MARGIN;
    for matrix in &study.matrices {
        let side = matrix.kinds.len() as f64;
        // The legend needs this width even beneath a small matrix.
        width = width.max(2.0 * MARGIN + LABELS + (side * cell::PITCH.0).max(720.0));
        let place = Area { x: MARGIN, y, width: width - 2.0 * MARGIN, height: side * cell::PITCH.1 };
        y += panel(&mut canvas, study, matrix, place) + MARGIN;
    }
    let heads: Vec<String> = study.matrices.iter().map(headline).collect();
    canvas.document(width, y, &heads.join("; "))
}

fn headline(matrix: &Matrix) -> String {
    let Tally { direct, relayed, failed } = matrix.tally();
    let all = direct + relayed + failed;
    format!(
        "{}: {direct} of {all} dials direct, {relayed} relayed, {failed} failed",
        matrix.implementation.title()
    )
}

fn conditions(study: &Study, matrix: &Matrix) -> String {
    let side = matrix.kinds.len();
    let runs = if study.runs == 1 { "1 run".to_owned() } else { format!("{} runs", study.runs) };
    match &study.mode {
        Mode::Kernel { release, .. } => {
            format!(
                "{side} × {side} kinds of NAT, {runs} each; real NATs of Linux {release}, each kind measured"
            )
        }
        Mode::Simulated(Conditions { rtt, loss }) => {
            let rtt = short(*rtt);
            format!("{side} × {side} kinds of NAT, {runs} each; simulated, {rtt} round trips, {loss}% loss")
        }
    }
}

/// Draws one matrix; returns the height that it took.
fn panel(canvas: &mut Canvas, study: &Study, matrix: &Matrix, place: Area) -> f64 {
    let Area { x, y, height, .. } = place;
    canvas.text(at(x, y + 18.0), bold(20.0, Anchor::Start), Ink::Strong, &headline(matrix));
    canvas.text(at(x, y + 40.0), plain(13.0, Anchor::Start), Ink::Soft, &conditions(study, matrix));
    let (left, top) = (x + LABELS, y + TITLE + HEADER);
    let (wide, high) = cell::PITCH;
    canvas.text(at(left - 14.0, top - 8.0), plain(12.0, Anchor::End), Ink::Soft, "dialer ↓  listener →");
    for (index, kind) in matrix.kinds.iter().enumerate() {
        let (name, more) = kind.label();
        let middle = left + (index as f64 + 0.5) * wide;
        canvas.text(at(middle, top - 26.0), bold(12.5, Anchor::Middle), Ink::Strong, name);
        canvas.text(at(middle, top - 10.0), plain(11.5, Anchor::Middle), Ink::Soft, more);
        let line = top + index as f64 * high + high / 2.0;
        let shift = if more.is_empty() { 4.0 } else { -3.0 };
        canvas.text(at(left - 14.0, line + shift), bold(12.5, Anchor::End), Ink::Strong, name);
        canvas.text(at(left - 14.0, line + 13.0), plain(11.5, Anchor::End), Ink::Soft, more);
    }
    for (row, cells) in matrix.rows().enumerate() {
        for (column, cell) in cells.iter().enumerate() {
            cell::draw(canvas, at(left + column as f64 * wide, top + row as f64 * high), cell);
        }
    }
    legend(canvas, matrix, Area { x, y: top + height + 20.0, ..place });
    TITLE + HEADER + height + LEGEND
}

/// Draws the meaning of the colours, and the distribution of all direct times over the axis of the
/// cells.
fn legend(canvas: &mut Canvas, matrix: &Matrix, place: Area) {
    let Area { x, y, width, .. } = place;
    let left = x + LABELS;
    let swatch = |canvas: &mut Canvas, line: f64, fill: &str, hatched: bool, text: &str| {
        let area = Area { x, y: y + line, width: 20.0, height: 14.0 };
        canvas.rect(area, 3.0, fill, 1.0);
        if hatched {
            canvas.rect(area, 3.0, "url(#hatch)", 0.18);
        }
        canvas.text(at(x + 28.0, y + line + 11.5), plain(12.0, Anchor::Start), Ink::Strong, text);
    };
    swatch(canvas, 14.0, &scale::direct(0.1), false, "direct");
    swatch(canvas, 36.0, scale::RELAYED, false, "relayed");
    swatch(canvas, 58.0, scale::FAILED, true, "failed");

    let times = matrix.direct_times();
    let axis = Area { x: left, y: y + 24.0, width: width - LABELS, height: 52.0 };
    let note = spread(&times);
    canvas.text(at(left, y + 8.0), plain(12.0, Anchor::Start), Ink::Strong, &note);
    let counts = scale::histogram(&times, PARTS);
    let most = counts.iter().copied().max().unwrap_or_default().max(1) as f64;
    let step = axis.width / PARTS as f64;
    for (part, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = (axis.height * *count as f64 / most).max(1.5);
        let bar = Area {
            x: axis.x + part as f64 * step,
            y: axis.y + axis.height - height,
            width: step - 1.0,
            height,
        };
        canvas.rect(bar, 0.0, &scale::direct((part as f64 + 0.5) / PARTS as f64), 1.0);
    }
    let base = axis.y + axis.height;
    canvas.ink(Area { y: base, height: 1.0, ..axis }, Ink::Faint);
    for (position, label) in scale::TICKS {
        let tick = axis.x + position * axis.width;
        canvas.ink(Area { x: tick - 0.5, y: base, width: 1.0, height: 5.0 }, Ink::Faint);
        let anchor = match position {
            0.0 => Anchor::Start,
            1.0 => Anchor::End,
            _ => Anchor::Middle,
        };
        canvas.text(at(tick, base + 18.0), plain(11.5, anchor), Ink::Soft, label);
    }
    let words =
        "In each cell: the median of the times from dial to connection, and their spread over the same axis.";
    canvas.text(at(left, base + 36.0), plain(11.5, Anchor::Start), Ink::Soft, words);
}

/// Describes times in order in one sentence.
fn spread(times: &[Duration]) -> String {
    let time = |share| quantile(times, share).map(short);
    match (time(0.5), time(0.9), time(1.0)) {
        (Some(half), Some(most), Some(longest)) => {
            format!(
                "Times of all direct connections: median {half}, 9 of 10 within {most}, longest {longest}"
            )
        }
        _ => "No direct connection".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::matrix::{Implementation, tests::example};

    /// Walks through the tags and returns their names; panics where the text is not well-formed
    /// XML.
    fn names(text: &str) -> Vec<String> {
        let (mut open, mut names) = (Vec::new(), Vec::new());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('<') {
            assert!(!before.contains('>'), "{before}");
            for (at, _) in before.match_indices('&') {
                let known = ["&amp;", "&lt;", "&gt;", "&quot;"];
                assert!(known.iter().any(|entity| before[at..].starts_with(entity)), "{before}");
            }
            let (tag, behind) = after.split_once('>').expect("a tag ends");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            rest = behind;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let name = tag.split([' ', '/']).next().unwrap_or_default().to_owned();
            if !tag.ends_with('/') {
                open.push(name.clone());
            }
            names.push(name);
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        names
    }

    #[test]
    fn the_picture_is_well_formed_and_has_a_cell_for_every_pair() {
        let study = example();
        let text = draw(&study);
        let names = names(&text);
        assert_eq!(names.first().map(String::as_str), Some("svg"));
        assert_eq!(names.iter().filter(|name| *name == "g").count(), 4);
        for words in ["libp2p-punch: 4 of 12 dials direct", "Linux 6.1.0 &lt;test&gt;", "75 ms", "port kept"]
        {
            assert!(text.contains(words), "{words}");
        }
        assert!(!text.contains("NaN") && !text.contains("inf\""), "{text}");
    }

    #[test]
    fn a_second_implementation_gets_a_panel_of_its_own() {
        let mut study = example();
        let mut second = study.matrices[0].clone();
        second.implementation = Implementation::Stock;
        study.matrices.push(second);
        let text = draw(&study);
        assert_eq!(names(&text).iter().filter(|name| *name == "g").count(), 8);
        assert!(text.contains("rust-libp2p (quic, relay, dcutr): 4 of 12 dials direct"));
    }

    #[test]
    fn a_matrix_without_connections_can_be_drawn() {
        let mut study = example();
        let kinds = study.matrices[0].kinds.clone();
        study.matrices = vec![Matrix::new(Implementation::Punch, &kinds)];
        let text = draw(&study);
        names(&text);
        assert!(text.contains("No direct connection"));
    }
}
