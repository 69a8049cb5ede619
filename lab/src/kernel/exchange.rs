//! One dial from a site to the next one, through a coordinator on the WAN: three processes.

use std::{path::PathBuf, sync::atomic::AtomicBool, time::Duration};

use serde_json::Value;

use super::{
    COORDINATOR, Lab,
    error::{Error, Result},
    program::{Next, Program},
};
use crate::Outcome;

/// UDP ports of the coordinator at each of its addresses.
const PORTS: [u16; 2] = [4001, 4002];
/// Time for coordinator and listener to start; only a program that hangs takes longer.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a dial beyond its own time-out.
const EXTRA_DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Program to try, and its limits.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The program: `coordinator`, `listen` and `dial` with the arguments and the JSON lines of
    /// `punch`.
    pub program: PathBuf,
    /// Time-out of the dial.
    pub timeout: Duration,
    /// More arguments for the dialer and for the listener.
    pub arguments: [Vec<String>; 2],
}

/// Starts coordinator and listener, dials once, and ends all three. The listener is at the last
/// site, and the dialer at the one before. Ends early if `stop` is set.
///
/// A coordinator that does not start is an error; every other failure is an outcome.
pub fn exchange<const SITES: usize>(
    lab: &Lab<SITES>,
    exchange: &Exchange,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let [.., dialer, listener] = &lab.sites[..] else {
        return Err(Error::new("no dial is possible", "the lab has less than two sites"));
    };
    let (_coordinator, coordinator) = coordinator(lab, exchange, stop)?;

    let [dialing, listening] = &exchange.arguments;
    let arguments = [&["listen", "--coordinator", &coordinator].map(str::to_owned)[..], listening].concat();
    let patience = exchange.timeout + EXTRA_DIAL_TIMEOUT + START_TIMEOUT * 2;
    let mut listen = Program::start(&listener.host, &exchange.program, &arguments, patience)?;
    let mut peer = None;
    let registered = listen.wait_for(stop, |line| {
        if line["event"] == "listening" {
            let id = line["address"].as_str().and_then(|address| address.rsplit_once("/p2p/"));
            peer = id.map(|(_, peer)| peer.to_owned()).or(peer.take());
        }
        (line["event"] == "registered").then_some(())
    })?;
    let (Some(()), Some(peer)) = (registered, peer) else {
        let (_, message) = listen.end(false);
        return Ok(Outcome::Failed { reason: "not_registered".into(), message });
    };

    let seconds = exchange.timeout.as_secs_f64().to_string();
    let arguments = ["dial", &peer, "--coordinator", &coordinator, "--timeout", &seconds].map(str::to_owned);
    let arguments = [&arguments[..], dialing].concat();
    dial(
        Program::start(&dialer.host, &exchange.program, &arguments, exchange.timeout + EXTRA_DIAL_TIMEOUT)?,
        stop,
    )
}

/// Starts a coordinator at all its addresses and ports; returns it and the first address.
fn coordinator<const SITES: usize>(
    lab: &Lab<SITES>,
    exchange: &Exchange,
    stop: &AtomicBool,
) -> Result<(Program, String)> {
    let address = |ip, port| format!("/ip4/{ip}/udp/{port}/quic-v1");
    let [first, second] = COORDINATOR;
    let addresses = [first, second].into_iter().flat_map(|ip| PORTS.map(|port| address(ip, port)));
    let arguments: Vec<String> =
        ["coordinator", "--listen"].map(str::to_owned).into_iter().chain(addresses).collect();
    let patience = exchange.timeout + EXTRA_DIAL_TIMEOUT + START_TIMEOUT * 3;
    let mut program = Program::start(&lab.wan, &exchange.program, &arguments, patience)?;
    let main = address(first, PORTS[0]);
    let mut remaining = COORDINATOR.len() * PORTS.len();
    let mut found = None;
    let all = program.wait_for(stop, |line| {
        let text = (line["event"] == "listening").then(|| line["address"].as_str()).flatten()?;
        remaining -= 1;
        if text.starts_with(&main) {
            found = Some(text.to_owned());
        }
        (remaining == 0).then_some(())
    })?;
    match (all, found) {
        (Some(()), Some(found)) => Ok((program, found)),
        _ => Err(Error::new("the coordinator does not listen", program.end(false).1)),
    }
}

/// Reads the dialer to its end. Its exit code is the kind of path: 0 direct, 10 relayed.
fn dial(mut program: Program, stop: &AtomicBool) -> Result<Outcome> {
    let mut connected: Option<Value> = None;
    let mut failed: Option<Value> = None;
    let late = loop {
        match program.next(stop)? {
            Next::Line(line) if line["event"] == "connected" => connected = Some(line),
            Next::Line(line) if line["event"] == "failed" => failed = Some(line),
            Next::Line(_) => {}
            Next::End => break false,
            Next::Late => break true,
        }
    };
    let (code, stderr) = program.end(!late);
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    Ok(match (code, connected, failed) {
        (Some(code @ (0 | 10)), Some(line), _) => {
            let milliseconds = line["elapsed_ms"].as_f64().filter(|elapsed| *elapsed >= 0.0);
            let seconds = milliseconds.ok_or_else(|| Error::new("a dial took no time", &line))? / 1e3;
            let elapsed =
                Duration::try_from_secs_f64(seconds).map_err(|error| Error::new("a dial's time", error))?;
            Outcome::Connected { relayed: code == 10, elapsed, remote: Some(text(&line, "remote")) }
        }
        (_, _, Some(line)) => {
            Outcome::Failed { reason: text(&line, "code"), message: text(&line, "message") }
        }
        _ if late => Outcome::Failed { reason: "hangs".into(), message: stderr },
        (code, ..) => {
            let message = format!("it ended with {code:?}: {stderr}");
            Outcome::Failed { reason: "no_result".into(), message }
        }
    })
}
