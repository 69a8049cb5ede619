//! A picture of the results: how the dials of each pair of NAT kinds ended, and how many requests
//! each coordinator passed on.

use super::report::{Report, Round, Tally};
use crate::canvas::{Anchor, Area, Canvas, Ink, at, bold, plain};

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 28.0;
/// Width of the names of the pairs.
const LABELS: f64 = 300.0;
/// Width of the numbers to the right of the bars.
const NUMBERS: f64 = 56.0;
/// Distance from one bar to the next.
const PITCH: f64 = 22.0;
const BAR: f64 = 15.0;
/// Height of the bars of the coordinators.
const LOADS: f64 = 90.0;

/// Outcomes of a dial, with a colour for each. White hatching marks failures.
const OUTCOMES: [(&str, &str); 4] = [
    ("direct", "#005a6a"),
    ("relayed, then direct", "#5b8a3c"),
    ("relayed", "#b26a00"),
    ("failed", "#a3304b"),
];

/// Draws the whole picture.
pub(super) fn draw(report: &Report) -> String {
    let mut canvas = Canvas::default();
    let joined = &report.joined;
    let title = format!(
        "{} nodes, {} of them public, {} coordinators, none configured",
        joined.nodes, joined.public, joined.coordinators
    );
    let mut y = MARGIN + 14.0;
    canvas.text(at(MARGIN, y), bold(17.0, Anchor::Start), Ink::Strong, &title);
    y += 30.0;
    legend(&mut canvas, y);
    y += 30.0;
    for round in &report.rounds {
        y = pairs(&mut canvas, y, round) + 18.0;
    }
    y = loads(&mut canvas, y, report);
    canvas.document(WIDTH, y + MARGIN, &title)
}

fn counts(tally: &Tally) -> [usize; 4] {
    [tally.direct, tally.upgraded, tally.relayed, tally.failed]
}

fn words(tally: &Tally) -> String {
    let counts = counts(tally).into_iter().zip(OUTCOMES).filter(|(count, _)| *count > 0);
    let words = counts.map(|(count, (name, _))| format!("{count} {name}"));
    words.collect::<Vec<_>>().join(", ")
}

fn legend(canvas: &mut Canvas, y: f64) {
    let mut x = MARGIN;
    for (name, fill) in OUTCOMES {
        patch(canvas, Area { x, y: y - 11.0, width: 14.0, height: 14.0 }, name, fill);
        canvas.text(at(x + 20.0, y), plain(12.5, Anchor::Start), Ink::Soft, name);
        x += 48.0 + 7.0 * name.len() as f64;
    }
}

fn patch(canvas: &mut Canvas, area: Area, name: &str, fill: &str) {
    canvas.rect(area, 0.0, fill, 1.0);
    if name == "failed" {
        canvas.rect(area, 0.0, "url(#hatch)", 0.35);
    }
}

/// Draws one bar for each unordered pair of kinds that was dialed. Returns the place below them.
fn pairs(canvas: &mut Canvas, top: f64, round: &Round) -> f64 {
    let all = round.tally();
    let heading = format!("{}: {} dials, {:.1}% direct", round.name, all.dialed(), all.direct_share());
    canvas.text(at(MARGIN, top), bold(14.0, Anchor::Start), Ink::Strong, &heading);
    let mut y = top + 12.0;
    let pairs: Vec<_> = round.tally_by_pair().into_iter().filter(|(.., tally)| tally.dialed() > 0).collect();
    let most = pairs.iter().map(|(.., tally)| tally.dialed()).max().unwrap_or(1) as f64;
    let room = WIDTH - 2.0 * MARGIN - LABELS - NUMBERS;
    for (one, other, tally) in &pairs {
        let name = format!("{one} and {other}");
        canvas.group(&format!("{name}: {}", words(tally)), |canvas| {
            let face = plain(12.0, Anchor::End);
            canvas.text(at(MARGIN + LABELS - 10.0, y + BAR - 3.0), face, Ink::Soft, &name);
            let mut x = MARGIN + LABELS;
            for (count, (outcome, fill)) in counts(tally).into_iter().zip(OUTCOMES) {
                let width = room * count as f64 / most;
                if count > 0 {
                    patch(canvas, Area { x, y, width, height: BAR }, outcome, fill);
                }
                x += width;
            }
            let face = plain(12.0, Anchor::Start);
            canvas.text(at(x + 6.0, y + BAR - 3.0), face, Ink::Soft, &tally.dialed().to_string());
        });
        y += PITCH;
    }
    y
}

/// Draws one bar for each coordinator, in order. Returns the place below them.
fn loads(canvas: &mut Canvas, top: f64, report: &Report) -> f64 {
    let requests = &report.load.requests;
    let heading = format!(
        "requests passed on by each coordinator: mean {:.1}, busiest {:.1} times the mean",
        report.load.mean(),
        report.load.max_by_mean()
    );
    canvas.text(at(MARGIN, top), bold(14.0, Anchor::Start), Ink::Strong, &heading);
    let base = top + 16.0 + LOADS;
    let room = WIDTH - 2.0 * MARGIN;
    canvas.ink(Area { x: MARGIN, y: base, width: room, height: 1.0 }, Ink::Faint);
    let most = requests.last().copied().unwrap_or_default().max(1) as f64;
    let step = (room / requests.len().max(1) as f64).min(40.0);
    for (place, count) in requests.iter().rev().enumerate() {
        canvas.group(&format!("{count} requests"), |canvas| {
            let height = LOADS * *count as f64 / most;
            let x = MARGIN + place as f64 * step;
            canvas.rect(Area { x, y: base - height, width: step * 0.8, height }, 0.0, OUTCOMES[0].1, 1.0);
        });
    }
    base
}
