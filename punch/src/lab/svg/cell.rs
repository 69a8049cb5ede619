//! One cell of the heat map.

use super::scale;
use crate::{
    canvas::{Anchor, Area, Canvas, Point, at, bold, plain},
    lab::matrix::{Cell, Tally, quantile, short},
};

/// Distance from one cell to the next, to the right and down.
pub(super) const PITCH: (f64, f64) = (100.0, 66.0);
/// Gap between two cells.
const GAP: f64 = 4.0;
/// Distance between the edge of the cell and its histogram.
const INSET: f64 = 8.0;
/// Height of the histogram.
const BARS: f64 = 20.0;
/// Parts of the histogram.
const PARTS: usize = 28;

/// Draws a pair of kinds; the point is its upper left corner.
pub(super) fn draw(canvas: &mut Canvas, corner: Point, cell: &Cell) {
    canvas.group(&title(cell), |canvas| {
        let Point { x, y } = corner;
        let area = Area { x, y, width: PITCH.0 - GAP, height: PITCH.1 - GAP };
        background(canvas, area, cell);
        words(canvas, area, cell);
        bars(canvas, area, cell);
    });
}

/// Returns a title such as `EIM+APDF (port kept) to public (no NAT): 3 direct, 0 relayed, 0
/// failed`.
fn title(cell: &Cell) -> String {
    let [dialer, listener] = [cell.dialer, cell.listener].map(|kind| match kind.label() {
        (name, "") => name.to_owned(),
        (name, more) => format!("{name} ({more})"),
    });
    format!("{dialer} to {listener}: {}", cell.tally())
}

/// Draws a share of each colour in proportion to the dials that ended so.
fn background(canvas: &mut Canvas, area: Area, cell: &Cell) {
    let Tally { direct, relayed, failed } = cell.tally();
    let all = (direct + relayed + failed) as f64;
    let shade = quantile(&cell.times(), 0.5).map_or(0.0, scale::position);
    let parts = [
        (direct, scale::direct(shade), false),
        (relayed, scale::RELAYED.to_owned(), false),
        (failed, scale::FAILED.to_owned(), true),
    ];
    let mut x = area.x;
    for (count, fill, hatched) in parts.iter().filter(|(count, ..)| *count > 0) {
        let width = area.width * *count as f64 / all;
        // Only a cell of one colour has round corners: parts have to meet.
        let radius = if width < area.width { 0.0 } else { 5.0 };
        let part = Area { x, width, ..area };
        canvas.rect(part, radius, fill, 1.0);
        if *hatched {
            canvas.rect(part, radius, "url(#hatch)", 0.12);
        }
        x += width;
    }
}

fn words(canvas: &mut Canvas, area: Area, cell: &Cell) {
    let middle = area.x + area.width / 2.0;
    let Tally { direct, relayed, failed } = cell.tally();
    let median = quantile(&cell.times(), 0.5).map(short);
    let mixed = [direct, relayed, failed].iter().filter(|count| **count > 0).count() > 1;
    let below = if mixed {
        let counts = [(direct, "direct"), (relayed, "relayed"), (failed, "failed")];
        let counts =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
        counts.collect::<Vec<_>>().join(", ")
    } else if relayed > 0 {
        "relayed".to_owned()
    } else {
        String::new()
    };
    match median {
        Some(median) => {
            let line = if below.is_empty() { 25.0 } else { 19.0 };
            canvas.white(at(middle, area.y + line), bold(15.0, Anchor::Middle), &median);
            let size = if below.len() > 18 { 8.5 } else { 10.5 };
            canvas.white(at(middle, area.y + 32.0), plain(size, Anchor::Middle), &below);
        }
        None if failed > 0 => {
            let line = area.y + area.height / 2.0 + 5.0;
            canvas.white(at(middle, line), bold(14.0, Anchor::Middle), "failed");
        }
        None => {}
    }
}

fn bars(canvas: &mut Canvas, area: Area, cell: &Cell) {
    let times = cell.times();
    if times.is_empty() {
        return;
    }
    let counts = scale::histogram(&times, PARTS);
    let most = counts.iter().copied().max().unwrap_or_default().max(1) as f64;
    let step = (area.width - 2.0 * INSET) / PARTS as f64;
    let base = area.y + area.height - INSET;
    let left = area.x + INSET;
    canvas.rect(Area { x: left, y: base, width: step * PARTS as f64, height: 1.0 }, 0.0, "#ffffff", 0.45);
    for (position, _) in scale::TICKS {
        let x = left + position * step * PARTS as f64 - 0.5;
        canvas.rect(Area { x, y: base, width: 1.0, height: 3.0 }, 0.0, "#ffffff", 0.45);
    }
    for (part, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = (BARS * *count as f64 / most).max(2.0);
        let bar = Area { x: left + part as f64 * step, y: base - height, width: step - 0.4, height };
        canvas.rect(bar, 0.0, "#ffffff", 0.92);
    }
}
