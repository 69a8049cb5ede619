//! Metrics and health checks of the running program, as Prometheus sees them.

#![cfg(unix)]

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use serde_json::Value;

const ADDRESS: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const ANY_PORT: &str = "127.0.0.1:0";

/// A running `punch` that serves metrics. Killed on drop.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn new(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_punch"))
            .args(arguments)
            .args(["--metrics", ANY_PORT, "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("punch can be run");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, stdout }
    }

    /// Reads on until the event of this name; returns a field of its line.
    fn wait_for(&mut self, event: &str, field: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).expect("stdout is text"), 0, "no {event} line");
            let line: Value = serde_json::from_str(&line).expect("stdout has JSON lines");
            if line["event"] == event {
                return line[field].as_str().expect("the field is a text").to_owned();
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

/// Answer to a request: the number of the status, the head and the body.
struct Answer {
    status: String,
    head: String,
    body: String,
}

fn request(server: &str, line: &str, accept: &str) -> Answer {
    let mut stream = TcpStream::connect(server).expect("the server listens");
    write!(stream, "{line} HTTP/1.1\r\nHost: punch\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
        .expect("the server reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("the head ends");
    let status = head.split(' ').nth(1).expect("there is a status").to_owned();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn get(server: &str, path: &str) -> Answer {
    request(server, &format!("GET {path}"), "text/plain")
}

fn value(scrape: &str, sample: &str) -> f64 {
    let line = scrape.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample} in\n{scrape}")).parse().expect("a value is a number")
}

#[test]
fn a_coordinator_tells_the_registrations_and_requests_that_it_served() {
    let mut coordinator = Running::new(&["coordinator", "--listen", ADDRESS]);
    let server = coordinator.wait_for("metrics", "address");
    let address = coordinator.wait_for("listening", "address");
    assert_eq!(get(&server, "/healthz").status, "200");
    assert_eq!(get(&server, "/readyz").status, "200");

    let mut listener = Running::new(&["listen", "--coordinator", &address, "--no-port-mapping"]);
    let own_server = listener.wait_for("metrics", "address");
    listener.wait_for("registered", "coordinator");
    assert_eq!(get(&own_server, "/readyz").body, "ready\n");

    let scrape = get(&server, "/metrics").body;
    assert_eq!(value(&scrape, "libp2p_punch_coordinator_registered_peers"), 1.0);
    assert!(value(&scrape, r#"libp2p_punch_coordinator_registrations_total{result="accepted"}"#) >= 1.0);
    assert_eq!(value(&scrape, r#"libp2p_punch_coordinator_requests_total{result="forwarded"}"#), 0.0);
    assert!(value(&scrape, r#"libp2p_punch_control_stream_bytes_total{direction="received"}"#) > 0.0);
    let own = get(&own_server, "/metrics").body;
    assert_eq!(value(&own, r#"libp2p_punch_coordinators{state="registered"}"#), 1.0);
}

#[test]
fn a_client_without_a_coordinator_is_healthy_and_not_ready() {
    let peer = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
    // Nothing listens at the discard port.
    let coordinator = format!("/ip4/127.0.0.1/udp/9/quic-v1/p2p/{peer}");
    let mut listener = Running::new(&["listen", "--coordinator", &coordinator, "--no-port-mapping"]);
    let server = listener.wait_for("metrics", "address");
    listener.wait_for("listening", "address");
    assert_eq!(get(&server, "/healthz").status, "200");
    let answer = get(&server, "/readyz");
    assert_eq!(
        (answer.status.as_str(), answer.body.as_str()),
        ("503", "not registered with any coordinator\n")
    );
}

#[test]
fn other_paths_and_methods_are_refused_and_openmetrics_is_served_on_request() {
    let mut coordinator = Running::new(&["coordinator", "--listen", ADDRESS]);
    let server = coordinator.wait_for("metrics", "address");
    assert_eq!(get(&server, "/").status, "404");
    assert_eq!(request(&server, "POST /metrics", "*/*").status, "405");
    let classic = get(&server, "/metrics");
    assert!(classic.head.contains("content-type: text/plain; version=0.0.4"), "{}", classic.head);
    let open = request(&server, "GET /metrics", "application/openmetrics-text;version=1.0.0");
    assert!(open.head.contains("content-type: application/openmetrics-text"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"));
}

#[test]
fn a_port_that_is_taken_is_a_failure_with_one_sentence() {
    let taken = std::net::TcpListener::bind(ANY_PORT).expect("there is a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_punch"))
        .args(["coordinator", "--listen", ADDRESS, "--metrics", &address])
        .output()
        .expect("punch can be run");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with(&format!("punch: cannot serve metrics at {address}: ")), "{stderr}");
}

fn operations() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations")
}

/// Runs `promtool`; `None` if it is not installed and not required.
fn promtool(arguments: &[&str], input: &str) -> Option<Output> {
    let child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if env::var_os("PUNCH_REQUIRE_PROMTOOL").is_some() => panic!("promtool: {error}"),
        Err(error) => {
            eprintln!("skipped: promtool, of the package prometheus, cannot be run: {error}");
            return None;
        }
    };
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).expect("promtool reads");
    Some(child.wait_with_output().expect("promtool ends"))
}

#[test]
fn promtool_accepts_the_metrics_and_the_alerts() {
    let mut coordinator = Running::new(&["coordinator", "--listen", ADDRESS]);
    let server = coordinator.wait_for("metrics", "address");
    coordinator.wait_for("listening", "address");
    let scrape = get(&server, "/metrics").body;
    if let Some(output) = promtool(&["check", "metrics"], &scrape) {
        let faults = String::from_utf8_lossy(&output.stderr);
        assert!(!faults.contains("error while"), "{faults}");
        // The metrics of libp2p itself are not ours to name.
        let ours: Vec<_> = faults.lines().filter(|line| line.starts_with("libp2p_punch_")).collect();
        assert!(ours.is_empty(), "{ours:#?}");
    }
    let alerts = operations().join("alerts.yml");
    if let Some(output) = promtool(&["check", "rules", alerts.to_str().expect("the path is UTF-8")], "") {
        assert!(output.status.success(), "{output:?}");
    }
}
