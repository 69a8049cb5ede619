//! Times as positions and colours.

use std::time::Duration;

/// Both ends of the axis, in milliseconds.
const ENDS: [f64; 2] = [1.0, 10_000.0];
/// Red, green and blue of the fastest and of the slowest direct connection. White text can be read
/// on all of them.
const FAST: [f64; 3] = [0.0, 90.0, 106.0];
const SLOW: [f64; 3] = [112.0, 140.0, 60.0];

/// Colour of relayed connections.
pub(super) const RELAYED: &str = "#b26a00";
/// Colour of failed dials.
pub(super) const FAILED: &str = "#a3304b";

/// Positions and labels of the axis.
pub(super) const TICKS: [(f64, &str); 5] =
    [(0.0, "1 ms"), (0.25, "10 ms"), (0.5, "100 ms"), (0.75, "1 s"), (1.0, "10 s")];

/// Place of a time on the logarithmic axis, from 0 to 1.
pub(super) fn position(time: Duration) -> f64 {
    let [low, high] = ENDS;
    let milliseconds = (time.as_secs_f64() * 1e3).clamp(low, high);
    (milliseconds / low).ln() / (high / low).ln()
}

/// Colour of a direct connection at this place of the axis.
pub(super) fn direct(position: f64) -> String {
    let mix = |index: usize| {
        let [fast, slow] = [FAST, SLOW].map(|colour| colour.get(index).copied().unwrap_or_default());
        (fast + (slow - fast) * position.clamp(0.0, 1.0)).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}

/// Counts the times in each of `parts` equal parts of the axis.
pub(super) fn histogram(times: &[Duration], parts: usize) -> Vec<usize> {
    let mut counts = vec![0; parts];
    for time in times {
        let part = ((position(*time) * parts as f64) as usize).min(parts.saturating_sub(1));
        if let Some(count) = counts.get_mut(part) {
            *count += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_is_logarithmic_and_ends_where_its_labels_say() {
        let cases = [(0.2, 0.0), (1.0, 0.0), (10.0, 0.25), (100.0, 0.5), (1e3, 0.75), (1e4, 1.0), (1e6, 1.0)];
        for (milliseconds, expected) in cases {
            let position = position(Duration::from_secs_f64(milliseconds / 1e3));
            assert!((position - expected).abs() < 1e-9, "{milliseconds} ms is at {position}");
        }
    }

    #[test]
    fn every_time_is_in_one_part_of_the_histogram() {
        let times = [0, 1, 10, 11, 99_999].map(Duration::from_millis);
        let counts = histogram(&times, 8);
        assert_eq!(counts, [2, 0, 2, 0, 0, 0, 0, 1]);
        assert_eq!(histogram(&times, 0), Vec::<usize>::new());
    }

    #[test]
    fn colours_go_from_fast_to_slow() {
        assert_eq!(direct(0.0), "#005a6a");
        assert_eq!(direct(1.0), "#708c3c");
        assert_eq!(direct(7.0), direct(1.0));
    }
}
