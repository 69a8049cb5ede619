//! The program `punch` as a process in a namespace, read through its JSON lines.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;

use super::namespace::Namespace;

/// Only a program that hangs is waited for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `punch`. Killed on drop.
pub(crate) struct Program {
    name: String,
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Program {
    /// Starts `punch` with these arguments and `--json`.
    pub(crate) fn start(namespace: &Namespace, arguments: &[&str]) -> Self {
        let mut child = namespace
            .command(env!("CARGO_BIN_EXE_punch"))
            .args(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("punch can be run");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Self { name: arguments.join(" "), child, lines, stderr: Some(stderr) }
    }

    /// The next line on stdout; `None` at its end.
    fn next(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(value) => Some(value),
                Err(error) => panic!("{}: {line:?} is not JSON: {error}", self.name),
            },
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                let stderr = self.end();
                panic!("{} hangs\n{stderr}", self.name)
            }
        }
    }

    /// Reads on until the event of this name.
    pub(crate) fn wait_for(&mut self, event: &str) -> Value {
        let mut before = Vec::new();
        while let Some(line) = self.next() {
            if line["event"] == event {
                return line;
            }
            before.push(line.to_string());
        }
        let stderr = self.end();
        panic!("{} ended without {event}\n{}\n{stderr}", self.name, before.join("\n"));
    }

    /// Reads to the end: the remaining lines and the exit code.
    pub(crate) fn finish(mut self) -> (Vec<Value>, Option<i32>) {
        let mut lines = Vec::new();
        while let Some(line) = self.next() {
            lines.push(line);
        }
        let status = self.child.wait().expect("punch is our child");
        (lines, status.code())
    }

    /// Ends the program; returns what it wrote to stderr.
    fn end(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}
