//! A peer as a child process, and the lines that it has printed.

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail};
use interop_testplan::report::Line;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{Mutex, watch},
};

/// Bytes of a peer's standard error that are kept for the report.
const MAX_STDERR: usize = 4 << 10;
/// Time for a listener to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A running peer; killed when dropped.
pub(crate) struct Process {
    child: Child,
    /// Standard input; a listener stops when it is closed.
    input: Option<ChildStdin>,
    lines: watch::Receiver<Vec<Line>>,
    errors: Arc<Mutex<String>>,
}

impl Process {
    /// Starts it with arguments and a variable.
    pub(crate) fn start(
        command: &[String],
        arguments: &[String],
        variable: Option<(&str, &Path)>,
    ) -> anyhow::Result<Self> {
        let (program, first) = command.split_first().context("an empty command")?;
        let mut child = Command::new(program)
            .args(first)
            .args(arguments)
            // The last line of an error is what is reported.
            .env("RUST_BACKTRACE", "0")
            .envs(variable)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let (sender, lines) = watch::channel(Vec::new());
        let errors = Arc::new(Mutex::new(String::new()));
        let output = child.stdout.take().context("no standard output")?;
        let error = child.stderr.take().context("no standard error")?;
        tokio::spawn(read_lines(output, sender));
        tokio::spawn(read_errors(error, errors.clone()));
        Ok(Self { input: child.stdin.take(), child, lines, errors })
    }

    /// Waits for a line.
    pub(crate) async fn wait_for<T>(
        &mut self,
        timeout: Duration,
        pick: impl Fn(&Line) -> Option<T>,
    ) -> anyhow::Result<T> {
        let found = self.lines.wait_for(|lines| lines.iter().any(|line| pick(line).is_some()));
        let found = tokio::time::timeout(timeout, found).await;
        let found = found.map(|found| found.ok().and_then(|lines| lines.iter().find_map(&pick)));
        match found {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(anyhow!("it ended: {}", self.last_error().await)),
            Err(_) => Err(anyhow!("it did not say so within {timeout:?}")),
        }
    }

    /// Returns the lines so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lines.borrow().clone()
    }

    /// Waits until it ends by itself.
    pub(crate) async fn finish(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let Ok(status) = tokio::time::timeout(timeout, self.child.wait()).await else {
            bail!("it did not end within {timeout:?}");
        };
        let status = status?;
        // The last lines may still be in the pipe.
        while self.lines.changed().await.is_ok() {}
        if !status.success() {
            bail!("{status}: {}", self.last_error().await);
        }
        Ok(())
    }

    /// Stops a listener, and waits for a moment, so that it can stop its own children.
    pub(crate) async fn stop(mut self) {
        drop(self.input.take());
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await;
    }

    async fn last_error(&self) -> String {
        let errors = self.errors.lock().await;
        errors
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it said nothing")
            .trim()
            .to_owned()
    }
}

async fn read_lines(output: ChildStdout, sender: watch::Sender<Vec<Line>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(line) => sender.send_modify(|lines| lines.push(line)),
            Err(_) => eprintln!("not a line of the contract: {line}"),
        }
    }
}

async fn read_errors(mut error: ChildStderr, kept: Arc<Mutex<String>>) {
    let mut block = [0; 1024];
    while let Ok(count @ 1..) = error.read(&mut block).await {
        let mut kept = kept.lock().await;
        kept.push_str(&String::from_utf8_lossy(block.get(..count).unwrap_or_default()));
        let surplus = kept.len().saturating_sub(MAX_STDERR);
        let cut = (surplus..=kept.len()).find(|index| kept.is_char_boundary(*index)).unwrap_or_default();
        kept.drain(..cut);
    }
}
