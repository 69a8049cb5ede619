//! The official suites' contract, run for real: another implementation's own test programs against
//! ours.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use tokio::process::{Child, Command};

use crate::{
    check::{Check, Direction},
    expected,
    layout::Layout,
    matrix::Matrix,
    namespace,
    peer::Peer,
    redis::Server,
};

/// Time for a whole test.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One of the tests of the official suites.
struct Test {
    check: Check,
    /// The subcommand of ours.
    ours: &'static str,
    /// The module of theirs, and its arguments.
    theirs: &'static [&'static str],
    /// Variables for both, besides the roles.
    variables: &'static [(&'static str, &'static str)],
    /// Names of the variables for the role and for the address of Redis.
    names: [&'static str; 2],
    /// Texts that the dialer's answer must contain.
    answer: &'static [&'static str],
}

const TESTS: [Test; 3] = [
    Test {
        check: Check::TransportUnified,
        ours: "transport",
        theirs: &["interop.transport.ping_test"],
        variables: &[
            ("TRANSPORT", "quic-v1"),
            ("TEST_KEY", "a5b50d5e"),
            ("LISTENER_IP", "0.0.0.0"),
            ("TEST_TIMEOUT_SECS", "60"),
        ],
        names: ["IS_DIALER", "REDIS_ADDR"],
        answer: &["latency:", "handshake_plus_one_rtt: ", "ping_rtt: ", "unit: ms"],
    },
    Test {
        check: Check::TransportLegacy,
        ours: "transport",
        theirs: &["interop.transport.ping_test", "--test-plans"],
        variables: &[("transport", "quic-v1"), ("ip", "0.0.0.0"), ("test_timeout_seconds", "60")],
        names: ["is_dialer", "redis_addr"],
        answer: &[r#""handshakePlusOneRTTMillis":"#, r#""pingRTTMilllis":"#],
    },
    Test {
        check: Check::PerfUnified,
        ours: "perf",
        theirs: &["interop.perf.perf_test"],
        variables: &[
            ("TRANSPORT", "quic-v1"),
            ("TEST_KEY", "a5b50d5e"),
            ("LISTENER_IP", "0.0.0.0"),
            ("UPLOAD_BYTES", "1048576"),
            ("DOWNLOAD_BYTES", "1048576"),
            ("UPLOAD_ITERATIONS", "2"),
            ("DOWNLOAD_ITERATIONS", "2"),
            ("LATENCY_ITERATIONS", "5"),
        ],
        names: ["IS_DIALER", "REDIS_ADDR"],
        answer: &["upload:", "download:", "latency:", "median: ", "unit: Gbps", "unit: ms"],
    },
];

/// Records every test as skipped, in both roles.
pub(crate) fn skip_all(peer: &Peer, why: &str, matrix: &mut Matrix) {
    for test in &TESTS {
        for direction in Direction::BOTH {
            matrix.skip(peer.name, direction, test.check, why);
        }
    }
}

/// Runs every test in both roles.
pub(crate) async fn run_all(layout: &Layout, peer: &Peer, matrix: &mut Matrix) -> anyhow::Result<()> {
    if !namespace::has_address() {
        skip_all(peer, "the official test programs need an address besides the loopback one", matrix);
        return Ok(());
    }
    let ours = vec![layout.binary("testplan").to_str().context("a path that is not text")?.to_owned()];
    let python = peer.command(layout)?.first().context("an empty command")?.clone();
    for test in &TESTS {
        for direction in Direction::BOTH {
            let ours = [ours.as_slice(), &[test.ours.to_owned()]].concat();
            let mut theirs = vec![python.clone(), "-m".to_owned()];
            theirs.extend(test.theirs.iter().map(|word| (*word).to_owned()));
            let (listener, dialer) = match direction {
                Direction::TheyDial => (ours, theirs),
                Direction::WeDial => (theirs, ours),
            };
            let once = || async { run(test, &listener, &dialer).await.map_err(|error| format!("{error:#}")) };
            let mut result = once().await;
            if let Err(first) = &result
                && expected::find(peer.name, direction, test.check).is_none()
            {
                result = expected::second_attempt(first, once().await);
            }
            matrix.add(peer.name, direction, test.check, result);
        }
    }
    Ok(())
}

async fn run(test: &Test, listener: &[String], dialer: &[String]) -> anyhow::Result<String> {
    let redis = Server::start().await?;
    let _listener = start(test, listener, &redis, false).context("the listener")?;
    let dialer = start(test, dialer, &redis, true).context("the dialer")?;
    let output = tokio::time::timeout(TIMEOUT, dialer.wait_with_output()).await.context("the dialer")??;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the dialer: {}", error.lines().last().unwrap_or("it said nothing"));
    let answer = String::from_utf8_lossy(&output.stdout);
    for part in test.answer {
        ensure!(answer.contains(part), "no {part} in the answer: {answer}");
    }
    Ok(format!("with {}: {}", redis.name(), answer.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn start(test: &Test, command: &[String], redis: &Server, is_dialer: bool) -> anyhow::Result<Child> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    let [role, address] = test.names;
    let child = Command::new(program)
        .args(arguments)
        .envs(test.variables.iter().copied())
        .env(role, is_dialer.to_string())
        .env(address, &redis.address)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(if is_dialer { Stdio::piped() } else { Stdio::null() })
        .stderr(if is_dialer { Stdio::piped() } else { Stdio::null() })
        .kill_on_drop(true)
        .spawn();
    child.with_context(|| format!("starting {program}"))
}
