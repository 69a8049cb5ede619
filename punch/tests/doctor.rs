//! `punch doctor` against processes on this machine.

#![cfg(unix)]

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use serde_json::Value;

const ADDRESS: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const PEER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

/// A running `punch`. Killed on drop.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn new(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_punch"))
            .args(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("punch can be run");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, stdout }
    }

    /// Starts a coordinator, and returns its address.
    fn coordinator() -> (Self, String) {
        let mut coordinator = Self::new(&["coordinator", "--listen", ADDRESS]);
        let address = coordinator.text_of("listening", "address");
        (coordinator, address)
    }

    /// Reads on until the event of this name, and returns its value of this key.
    fn text_of(&mut self, event: &str, key: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).expect("stdout is text"), 0, "no line is {event}");
            let line: Value = serde_json::from_str(&line).expect("a line is JSON");
            if line["event"] == event {
                return line[key].as_str().expect("the value is a text").to_owned();
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn doctor(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_punch"))
        .arg("doctor")
        .args(arguments)
        .args(["--listen", ADDRESS])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("punch can be run")
}

/// Checks the verdict of the doctor, and returns the findings.
fn finds(arguments: &[&str], code: &str, exit: i32) -> Vec<Value> {
    let output = doctor(&[arguments, &["--json"]].concat());
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let verdict = lines.pop().unwrap_or_else(|| panic!("there is no verdict: {output:?}"));
    assert_eq!(verdict["event"], "verdict", "{output:?}");
    assert_eq!(verdict["code"], code, "{stdout}");
    assert_eq!((output.status.code(), &verdict["exit"]), (Some(exit), &exit.into()), "{stdout}");
    lines
}

fn state<'a>(findings: &'a [Value], step: &str) -> &'a str {
    let finding = findings.iter().find(|finding| finding["step"] == step).expect("the step has a finding");
    finding["state"].as_str().expect("a state is a text")
}

/// Returns an address with another PeerId.
fn with_peer(address: &str, peer: &str) -> String {
    let (address, _) = address.rsplit_once("/p2p/").expect("the address has a PeerId");
    format!("{address}/p2p/{peer}")
}

#[test]
fn a_coordinator_that_does_not_run_is_the_cause() {
    // No program has the port of RFC 863.
    let dead = format!("/ip4/127.0.0.1/udp/9/quic-v1/p2p/{PEER}");
    let findings = finds(&[PEER, "--bootstrap", &dead], "coordinator-down", 22);
    assert_eq!(state(&findings, "coordinator"), "failed");
    assert_eq!(state(&findings, "peer known"), "not tested");
}

#[test]
fn the_wrong_id_of_a_coordinator_is_the_cause() {
    let (_coordinator, address) = Running::coordinator();
    let wrong = with_peer(&address, PEER);
    let findings = finds(&[PEER, "--bootstrap", &wrong], "coordinator-wrong-id", 22);
    assert_eq!(state(&findings, "UDP out"), "ok");
}

#[test]
fn a_peer_that_is_offline_is_the_cause() {
    let (_coordinator, address) = Running::coordinator();
    let arguments = [PEER, "--bootstrap", &address, "--timeout", "3"];
    let findings = finds(&arguments, "peer-not-connected", 23);
    assert_eq!(state(&findings, "coordinator"), "ok");
    assert_eq!(state(&findings, "peer known"), "failed");
    assert_eq!(state(&findings, "probes"), "not tested");
}

#[test]
fn another_peer_at_the_address_of_the_peer_is_the_cause() {
    let (_other, address) = Running::coordinator();
    let findings = finds(&[&with_peer(&address, PEER)], "wrong-peer", 23);
    assert_eq!(state(&findings, "peer's address"), "failed");
}

#[test]
fn a_peer_that_is_reached_is_reported_for_people() {
    let (_coordinator, address) = Running::coordinator();
    let mut listener = Running::new(&["listen", "--coordinator", &address]);
    let listening = listener.text_of("listening", "address");
    listener.text_of("registered", "coordinator");
    let (_, peer) = listening.rsplit_once("/p2p/").expect("the address has a PeerId");
    let output = doctor(&[peer, "--bootstrap", &address]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(stdout.contains(&format!("{peer} is reached directly (direct)")), "{stdout}");
    assert!(stdout.lines().any(|line| line.starts_with("handshake") && line.contains(" ok ")), "{stdout}");
}
