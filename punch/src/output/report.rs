//! Output of the subcommands for people who talk or send files: results on stdout, all else on
//! stderr, with a status line that is updated in place on a terminal.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use super::{stdout::print, units::bytes};
use crate::exit::Failure;

/// Time over which a rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(4);

/// Output of a subcommand.
#[derive(Debug)]
pub(crate) struct Report {
    is_json: bool,
    /// Lines for people can be updated in place.
    is_terminal: bool,
    has_status: bool,
}

impl Report {
    /// Creates an output of JSON lines on stdout, or of lines for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { is_json: json, is_terminal: !json && io::stderr().is_terminal(), has_status: false }
    }

    /// Prints a result: a line of stdout for people, or an object.
    pub(crate) fn result(&mut self, line: &str, object: &Value) -> Result<(), Failure> {
        self.clear();
        print(&if self.is_json { object.to_string() } else { line.to_owned() })
    }

    /// Prints what happens: a line of stderr for people, or an object on stdout.
    pub(crate) fn note(&mut self, line: &str, object: &Value) -> Result<(), Failure> {
        self.clear();
        if self.is_json {
            return print(&object.to_string());
        }
        // Nobody reads a stderr that is closed.
        let _ = writeln!(io::stderr(), "{line}");
        Ok(())
    }

    /// Updates the status line, where there is one.
    pub(crate) fn status(&mut self, line: &str) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[2K{line}");
            let _ = io::stderr().flush();
            self.has_status = true;
        }
    }

    /// Prints an object that only programs read.
    pub(crate) fn object(&mut self, object: &Value) -> Result<(), Failure> {
        if self.is_json { print(&object.to_string()) } else { Ok(()) }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.has_status) {
            let _ = write!(io::stderr(), "\r\x1b[2K");
            let _ = io::stderr().flush();
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Meter of a rate.
#[derive(Debug)]
pub(crate) struct Meter {
    begun: Instant,
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), samples: VecDeque::new() }
    }

    /// Takes note of the number of bytes so far, and returns the present rate in bytes a second.
    pub(crate) fn rate(&mut self, moved: u64) -> f64 {
        let now = Instant::now();
        // Another attempt counts from zero.
        if self.samples.back().is_some_and(|(_, last)| *last > moved) {
            self.samples.clear();
        }
        self.samples.push_back((now, moved));
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW)
        {
            self.samples.pop_front();
        }
        let Some((at, before)) = self.samples.front() else { return 0.0 };
        let seconds = now.duration_since(*at).as_secs_f64();
        if seconds > 0.0 { (moved - before) as f64 / seconds } else { 0.0 }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// Words such as `512.0 MiB of 1.0 GiB, 50 %, 100.0 MiB/s, about 6 s left`.
pub(crate) fn transferred(done: u64, total: Option<u64>, rate: f64) -> String {
    let mut words = match total {
        Some(total) => {
            let percent = (done as f64 / total.max(1) as f64 * 100.0).floor();
            format!("{} of {}, {percent:.0} %", bytes(done), bytes(total))
        }
        None => bytes(done),
    };
    words += &format!(", {}/s", bytes(rate as u64));
    if let Some(left) = seconds_left(done, total, rate) {
        words += &format!(", about {} left", duration(left));
    }
    words
}

/// Seconds that the rest takes at this rate.
pub(crate) fn seconds_left(done: u64, total: Option<u64>, rate: f64) -> Option<f64> {
    let left = total?.checked_sub(done).filter(|left| *left > 0)?;
    (rate >= 1.0).then(|| left as f64 / rate)
}

/// Words such as `42 s`, `3 min 20 s` or `5 h 3 min`.
fn duration(seconds: f64) -> String {
    match seconds.ceil() as u64 {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_has_its_rate_and_its_remaining_time() {
        let words = transferred(512 << 20, Some(1 << 30), (100 << 20) as f64);
        assert_eq!(words, "512.0 MiB of 1.0 GiB, 50 %, 100.0 MiB/s, about 6 s left");
        assert_eq!(transferred(5, None, 0.0), "5 B, 0 B/s");
        assert_eq!(transferred(7, Some(7), 9.0), "7 B of 7 B, 100 %, 9 B/s");
        assert_eq!([119.1, 200.0, 18_180.0].map(duration), ["2 min 0 s", "3 min 20 s", "5 h 3 min"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_that_of_the_last_seconds() {
        let mut meter = Meter::new();
        assert_eq!(meter.rate(0), 0.0);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(meter.rate(200), 100.0);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(meter.rate(200), 0.0, "the first samples are too old");
    }
}
