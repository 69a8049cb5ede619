//! A peer as a process in a namespace, read through its JSON lines.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    error::{Error, Result},
    namespace::Namespace,
};

/// Interval at which a wait checks for its end.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes of a program's stderr that are kept.
const MAX_STDERR: u64 = 4096;

/// A running program. Killed on drop.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    deadline: Instant,
}

/// Next output of a program.
#[derive(Debug)]
pub(super) enum Next {
    /// A line.
    Line(Value),
    /// The end of the output.
    End,
    /// No line within the time.
    Late,
}

impl Program {
    /// Starts `program` with these arguments and `--json`, and with this time to end.
    pub fn start(
        namespace: &Namespace,
        program: &Path,
        arguments: &[String],
        patience: Duration,
    ) -> Result<Self> {
        let name = program.display();
        let mut child = namespace
            .command(program)
            .args(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::new(format!("cannot run {name}"), error))?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take();
        thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
                if line.map_or(true, |line| sender.send(line).is_err()) {
                    break;
                }
            }
        });
        let stderr = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = stderr.by_ref().take(MAX_STDERR).read_to_end(&mut text);
                // The rest is read as well: a full pipe would stop the program.
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
                String::from_utf8_lossy(&text).trim().to_owned()
            })
        });
        Ok(Self { child, lines, stderr, deadline: Instant::now() + patience })
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the next line on stdout. Ends early if `stop` is set.
    pub(super) fn next(&mut self, stop: &AtomicBool) -> Result<Next> {
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            match self.lines.recv_timeout(POLL_INTERVAL) {
                Ok(line) => {
                    let value = serde_json::from_str(&line);
                    return value.map(Next::Line).map_err(|error| Error::new(format!("{line:?}"), error));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(Next::End),
                Err(RecvTimeoutError::Timeout) if Instant::now() > self.deadline => return Ok(Next::Late),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Reads up to the line that is looked for; `None` if the program ends before, or takes too
    /// long.
    pub fn wait_for<T>(
        &mut self,
        stop: &AtomicBool,
        mut find: impl FnMut(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        loop {
            match self.next(stop)? {
                Next::Line(line) => {
                    if let Some(found) = find(&line) {
                        return Ok(Some(found));
                    }
                }
                Next::End | Next::Late => return Ok(None),
            }
        }
    }

    /// Kills the program if it still runs. Returns its exit code, if it ended by itself, and the
    /// beginning of its stderr.
    pub(super) fn end(&mut self, ended: bool) -> (Option<i32>, String) {
        if !ended {
            let _ = self.child.kill();
        }
        let code = self.child.wait().ok().and_then(|status| status.code());
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok());
        (code, stderr.unwrap_or_default())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end(false);
    }
}
