//! A progress bar on stderr, if that is a terminal.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// Characters of the bar.
const WIDTH: usize = 32;

/// Progress bar. Removed from the terminal on drop.
pub(crate) struct Progress {
    shown: bool,
    what: &'static str,
    done: usize,
    all: usize,
    begun: Instant,
}

impl Progress {
    /// Shows a bar for work of this number of steps.
    pub(crate) fn new(what: &'static str, all: usize) -> Self {
        let progress = Self { shown: io::stderr().is_terminal(), what, done: 0, all, begun: Instant::now() };
        progress.show();
        progress
    }

    /// Creates a bar that is never shown.
    #[cfg(test)]
    pub(crate) fn silent() -> Self {
        Self { shown: false, what: "", done: 0, all: 0, begun: Instant::now() }
    }

    /// Counts one step that is done.
    pub(crate) fn step(&mut self) {
        self.done += 1;
        self.show();
    }

    fn show(&self) {
        if self.shown {
            // A bar that cannot be written is no failure.
            let _ = write!(io::stderr(), "\r\x1b[2K{}", self.line(self.begun.elapsed()));
            let _ = io::stderr().flush();
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        let (done, all) = (self.done, self.all.max(1));
        let full = (done * WIDTH / all).min(WIDTH);
        let bar = "━".repeat(full) + &"┄".repeat(WIDTH - full);
        let left = if done == 0 || done >= all {
            String::new()
        } else {
            let left = elapsed.as_secs_f64() * (all - done) as f64 / done as f64;
            format!(", about {left:.0} s left")
        };
        format!("{} {bar} {done} of {}{left}", self.what, self.all)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[2K");
            let _ = io::stderr().flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_with_the_work() {
        let mut progress = Progress { all: 64, what: "dials", ..Progress::silent() };
        let elapsed = Duration::from_secs(8);
        assert_eq!(progress.line(elapsed), format!("dials {} 0 of 64", "┄".repeat(32)));
        for _ in 0..16 {
            progress.step();
        }
        let bar = "━".repeat(8) + &"┄".repeat(24);
        assert_eq!(progress.line(elapsed), format!("dials {bar} 16 of 64, about 24 s left"));
        progress.done = 64;
        assert_eq!(progress.line(elapsed), format!("dials {} 64 of 64", "━".repeat(32)));
    }
}
