//! The program as a user meets it when something is wrong: one clear sentence on stderr, an exit
//! code, no hang.

use std::{
    env, fs,
    net::UdpSocket,
    path::PathBuf,
    process::{self, Command, Output, Stdio},
};

use serde_json::Value;

const ADDRESS: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
const OTHER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

/// Flag of those subcommands that would ask the gateway of this machine for a port: tests send to
/// loopback alone.
fn no_port_mapping(arguments: &[&str]) -> Option<&'static str> {
    let asks = ["listen", "dial", "send", "receive", "chat", "ping"];
    arguments.first().is_some_and(|word| asks.contains(word)).then_some("--no-port-mapping")
}

fn punch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_punch"))
        .args(arguments)
        .args(no_port_mapping(arguments))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("punch can be run")
}

/// Runs `punch` and expects this exit code, nothing on stdout and one line on stderr that has all
/// of `words`.
fn refuses(arguments: &[&str], code: i32, words: &[&str]) {
    let output = punch(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    one_sentence(arguments, &output, words);
}

fn one_sentence(arguments: &[&str], output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("punch: "), "{arguments:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{arguments:?}: {stderr:?} does not say {word:?}");
    }
}

/// The JSON lines of an output.
fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("stdout holds JSON lines only")).collect()
}

/// The address of a coordinator that is not there: a socket holds the port and answers nothing.
fn dead_coordinator() -> (UdpSocket, String) {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("there is a free port");
    let port = socket.local_addr().expect("it is bound").port();
    (socket, format!("/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{OTHER}"))
}

/// A file that is removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("punch-cli-{name}-{}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("the temporary directory has a name in UTF-8")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn malformed_multiaddrs_are_refused() {
    refuses(&["coordinator", "--listen", "nonsense"], 2, &["nonsense", "--listen", "multiaddr"]);
    refuses(&["coordinator", "--listen", "/ip4/127.0.0.1/tcp/1"], 2, &["/tcp/1", "quic-v1"]);
    refuses(&["listen", "--coordinator", ADDRESS], 2, &["--coordinator", "/p2p/PEER_ID"]);
    refuses(&["dial", PEER, "--coordinator", "/ip4/1.2.3.4"], 2, &["/ip4/1.2.3.4", "/p2p/PEER_ID"]);
}

#[test]
fn limits_of_a_coordinator_out_of_bounds_are_refused_with_the_bound() {
    let coordinator = |flag, value| ["coordinator", "--listen", ADDRESS, flag, value];
    refuses(&coordinator("--request-burst", "19"), 2, &["request_rate", "19 at once", "20 to 1000"]);
    refuses(&coordinator("--request-rate", "9"), 2, &["request_rate", "1ms to 100ms"]);
    refuses(&coordinator("--max-registrations", "0"), 2, &["max_registrations", "1..=1000000"]);
    refuses(&coordinator("--register-rate", "0"), 2, &["--register-rate", "a second"]);
    refuses(&coordinator("--relay-circuits", "many"), 2, &["--relay-circuits"]);
}

#[test]
fn missing_and_unknown_arguments_are_refused() {
    refuses(&["coordinator"], 2, &["--listen"]);
    refuses(&["listen"], 2, &["--coordinator"]);
    refuses(&["dial", PEER], 2, &["--coordinator"]);
    refuses(
        &["dial", "--coordinator", &format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{OTHER}")],
        2,
        &["PEER_ID"],
    );
    refuses(&["dial", "nobody", "--coordinator", ADDRESS], 2, &["nobody"]);
    refuses(&["knock"], 2, &["knock"]);
    refuses(&["coordinator", "--listen", ADDRESS, "--loud"], 2, &["--loud"]);
}

#[test]
fn tickets_and_files_that_cannot_be_used_are_refused() {
    refuses(&["send"], 2, &["FILE"]);
    refuses(&["send", "/nowhere/at/all"], 2, &["/nowhere/at/all", "no such file"]);
    refuses(&["send", "Cargo.toml", "Cargo.toml"], 2, &["Cargo.toml", "twice"]);
    refuses(&["send", "Cargo.toml", "--bootstrap", "/ip4/192.0.2.1/tcp/1"], 2, &["--bootstrap", "quic-v1"]);
    refuses(&["receive", "nonsense"], 2, &["TICKET", "not a ticket"]);
    refuses(&["receive", "punchaaaa"], 2, &["TICKET", "cut off"]);
    refuses(&["chat", "nobody"], 2, &["PEER", "nobody"]);
    refuses(&["ping", "nobody"], 2, &["PEER", "nobody"]);
    refuses(&["ping", PEER, "--count", "0"], 2, &["--count", "0"]);
    refuses(&["ping", PEER], 11, &[PEER, "no address"]);
    refuses(&["perf", "nobody"], 2, &["PEER", "nobody"]);
    refuses(&["perf", PEER, "--upload", "much"], 2, &["--upload", "much"]);
    refuses(&["forward"], 2, &["TICKET", "PORT"]);
    refuses(&["forward", "nonsense", "80:localhost:80"], 2, &["TICKET", "not a ticket"]);
    refuses(&["forward", "nonsense", "80:localhost"], 2, &["80:localhost", "[BIND:]PORT:HOST:PORT"]);
    refuses(&["forward", "--allow", "localhost"], 2, &["--allow", "HOST:PORT"]);
    refuses(&["forward", "--allow", "localhost:http"], 2, &["--allow", "http", "1 to 65535"]);
    refuses(&["forward", "--allow", "localhost:1", "nonsense", "80:a:80"], 2, &["--allow"]);
}

#[test]
fn a_timeout_that_is_no_time_is_refused() {
    let coordinator = format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{OTHER}");
    let arguments = ["dial", PEER, "--coordinator", coordinator.as_str(), "--timeout"];
    for seconds in ["0", "soon", "1e300"] {
        refuses(&[&arguments[..], &[seconds]].concat(), 2, &["--timeout", seconds]);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["--version"], &["dial", "--help"], &["demo", "--help"]] {
        let output = punch(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(punch(&[]).status.code(), Some(2));
}

#[test]
fn key_files_that_cannot_be_used_are_refused() {
    let key = Scratch::new("garbage");
    fs::write(&key.0, b"no key").expect("the temporary directory can be written to");
    let directory = std::env::temp_dir();
    let directory = directory.to_str().expect("the temporary directory has a name in UTF-8");
    refuses(&["coordinator", "--listen", ADDRESS, "--key", key.path()], 2, &[key.path(), "private key"]);
    refuses(&["coordinator", "--listen", ADDRESS, "--key", directory], 2, &[directory, "is not a file"]);
    let nowhere = format!("{}/missing/key", key.path());
    refuses(&["coordinator", "--listen", ADDRESS, "--key", &nowhere], 2, &[&nowhere]);

    let secp256k1 = b"\x08\x02\x12\x20\x53\xda\xdf\x1d\x5a\x16\x4d\x6b\x4a\xcd\xb1\x5e\x24\xaa\x4c\x5b\
        \x1d\x34\x61\xbd\xbd\x42\xab\xed\xb0\xa4\x40\x4d\x56\xce\xd8\xfb";
    fs::write(&key.0, secp256k1).expect("the temporary directory can be written to");
    refuses(&["coordinator", "--listen", ADDRESS, "--key", key.path()], 2, &[key.path(), "secp256k1"]);
}

#[test]
fn a_key_is_made_once_and_shown_as_often_as_one_likes() {
    let key = Scratch::new("made");
    refuses(&["id", key.path()], 2, &[key.path(), "does not exist"]);
    let text = |output: Output| String::from_utf8(output.stdout).expect("it is text");
    let made = text(punch(&["keys", key.path()]));
    assert!(made.starts_with("12D3KooW"), "{made}");
    assert_eq!(text(punch(&["id", key.path()])), made);
    let json: Value = serde_json::from_str(&text(punch(&["id", key.path(), "--json"]))).expect("it is JSON");
    assert_eq!(json["peer"], made.trim());
    refuses(&["keys", key.path()], 2, &[key.path(), "exists"]);
    assert_eq!(text(punch(&["id", key.path()])), made, "the key stays");
}

#[test]
fn completions_and_manual_pages_name_every_subcommand() {
    let names = ["coordinator", "send", "receive", "chat", "forward", "perf", "ping", "dial", "id", "keys"];
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = punch(&["completions", shell]);
        let script = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(names.iter().all(|name| script.contains(name)), "{shell}: {script}");
    }
    refuses(&["completions", "tcsh"], 2, &["tcsh", "bash"]);
    let folder = tempfile::TempDir::new().expect("the temporary directory can be written to");
    let path = folder.path().join("pages");
    let text = path.to_str().expect("a name in UTF-8");
    assert_eq!(punch(&["man", text]).status.code(), Some(0));
    for name in names {
        let page = fs::read_to_string(path.join(format!("punch-{name}.1"))).expect("it was written");
        assert!(page.contains(".TH"), "{page}");
    }
    refuses(&["man", "Cargo.toml"], 2, &["Cargo.toml"]);
}

#[test]
fn a_port_in_use_is_an_error() {
    let taken = UdpSocket::bind(("127.0.0.1", 0)).expect("there is a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let address = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
    refuses(&["coordinator", "--listen", &address], 1, &["cannot listen on", &address, "in use"]);
    let (_socket, coordinator) = dead_coordinator();
    refuses(&["listen", "--coordinator", &coordinator, "--listen", &address], 1, &[&address, "in use"]);
}

#[test]
fn a_dead_coordinator_ends_dial_with_a_failure_at_its_time_out() {
    let (_socket, coordinator) = dead_coordinator();
    let arguments = ["dial", PEER, "--coordinator", &coordinator, "--timeout", "0.2", "--json"];
    let output = punch(&arguments);
    assert_eq!(output.status.code(), Some(11), "{output:?}");
    one_sentence(&arguments, &output, &["no coordinator", PEER]);
    let lines = lines(&output);
    let failed = lines.last().expect("there is at least one line");
    assert_eq!((&failed["event"], &failed["peer"]), (&"failed".into(), &PEER.into()));
    assert_eq!(failed["code"], "coordinator-unreachable");
    assert!(failed["message"].as_str().is_some_and(|message| !message.is_empty()));
}

#[test]
fn the_demo_connects_directly_through_every_eim_nat() {
    for nat in ["public", "eim+eif", "eim+adf", "eim+apdf", "eim+apdf+hashed", "double+eim+apdf"] {
        let output = punch(&["demo", "--dialer-nat", nat, "--listener-nat", "eim+apdf"]);
        let story = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{nat}: {story}");
        for words in ["coordination", "candidates", "probe", "selected", "Connected directly.", "1 MiB"] {
            assert!(story.contains(words), "{nat}: no {words:?} in\n{story}");
        }
    }
}

#[test]
fn the_demo_compares_its_time_with_the_round_trips() {
    let output = punch(&["demo", "--dialer-rtt", "20", "--listener-rtt", "40", "--peer-rtt", "50"]);
    let story = String::from_utf8_lossy(&output.stdout);
    assert!(story.contains("bound     55.0 ms"), "{story}");
    assert!(story.contains("connect   55.0 ms"), "simulated time is exact: {story}");
}

#[test]
fn the_demo_connects_over_a_relay_when_two_nats_are_too_hard() {
    let output = punch(&["demo", "--dialer-nat", "apdm+apdf", "--listener-nat", "apdm+apdf"]);
    assert_eq!(output.status.code(), Some(10), "{output:?}");
    let story = String::from_utf8_lossy(&output.stdout);
    assert!(story.contains("only a relay can help"), "{story}");
    assert!(story.contains("Connected through a relay."), "{story}");
}

#[test]
fn nats_losses_and_times_that_do_not_exist_are_refused() {
    refuses(&["demo", "--dialer-nat", "cone"], 2, &["--dialer-nat", "cone"]);
    refuses(&["demo", "--loss", "101"], 2, &["--loss", "101"]);
    refuses(&["demo", "--rtt", "never"], 2, &["--rtt", "never"]);
}

#[cfg(unix)]
mod running {
    //! Processes that run until a signal.

    use std::{
        io::{BufRead, BufReader},
        process::{Child, ChildStdout},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    /// A running `punch`. Killed on drop.
    struct Running {
        child: Child,
        stdout: BufReader<ChildStdout>,
    }

    impl Running {
        fn new(arguments: &[&str]) -> Self {
            Self::with_stdin(arguments, Stdio::null())
        }

        fn with_stdin(arguments: &[&str], stdin: Stdio) -> Self {
            let mut child = Command::new(env!("CARGO_BIN_EXE_punch"))
                .args(arguments)
                .args(super::no_port_mapping(arguments))
                .stdin(stdin)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("punch can be run");
            let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
            Self { child, stdout }
        }

        fn line(&mut self) -> Value {
            let mut line = String::new();
            self.stdout.read_line(&mut line).expect("stdout is text");
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
        }

        /// Reads on until the event of this name.
        fn wait_for(&mut self, event: &str) -> Value {
            loop {
                let line = self.line();
                if line["event"] == event {
                    return line;
                }
            }
        }

        fn end(&mut self, signal: Signal) -> Option<i32> {
            let process = i32::try_from(self.child.id()).expect("process ids are small");
            kill(Pid::from_raw(process), signal).expect("the process is ours");
            self.child.wait().expect("the process is our child").code()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn a_coordinator_tells_its_address_and_leaves_on_ctrl_c_and_sigterm() {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut coordinator = Running::new(&["coordinator", "--listen", ADDRESS, "--json"]);
            let line = coordinator.line();
            assert_eq!(line["event"], "listening");
            let address = line["address"].as_str().unwrap_or_default();
            assert!(address.starts_with("/ip4/127.0.0.1/udp/"), "{line}");
            assert!(address.contains("/quic-v1/p2p/12D3KooW"), "{line}");
            assert_eq!(coordinator.end(signal), Some(0), "{signal}");
        }
    }

    #[test]
    fn a_key_file_makes_the_peer_id_stay() {
        use std::os::unix::fs::PermissionsExt;
        let key = Scratch::new("stays");
        let arguments = ["coordinator", "--listen", ADDRESS, "--key", key.path(), "--json"];
        let mut peers = Vec::new();
        for _ in 0..2 {
            let mut coordinator = Running::new(&arguments);
            let line = coordinator.line();
            let address = line["address"].as_str().unwrap_or_default();
            peers.push(address.rsplit('/').next().unwrap_or_default().to_owned());
            assert_eq!(coordinator.end(Signal::SIGTERM), Some(0));
        }
        assert_eq!(peers[0], peers[1]);
        let mode = fs::metadata(&key.0).expect("the key file is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_listener_registers_and_leaves_on_sigterm() {
        let mut coordinator = Running::new(&["coordinator", "--listen", ADDRESS, "--json"]);
        let line = coordinator.line();
        let address = line["address"].as_str().unwrap_or_default();
        let mut listener = Running::new(&["listen", "--coordinator", address, "--json"]);
        let registered = listener.wait_for("registered");
        assert_eq!(registered["coordinator"].as_str(), address.rsplit('/').next());
        assert_eq!(listener.end(Signal::SIGTERM), Some(0));
    }

    /// Sends on this machine without any coordinator, and returns the ticket.
    fn send(files: &[&str]) -> (Running, String) {
        let mut sender = Running::new(&[&["send"], files, &["--listen", ADDRESS, "--json"]].concat());
        let ticket = sender.wait_for("ticket");
        let ticket = ticket["ticket"].as_str().expect("a text").to_owned();
        (sender, ticket)
    }

    #[test]
    fn a_ticket_alone_is_enough_on_one_machine_and_nothing_is_overwritten_unasked() {
        let folder = tempfile::TempDir::new().expect("the temporary directory can be written to");
        let target = folder.path().join("target");
        let target = target.to_str().expect("a name in UTF-8");
        let (mut sender, ticket) = send(&["Cargo.toml", "src"]);
        let output = punch(&["receive", &ticket, target, "--listen", ADDRESS]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(": direct,"), "{output:?}");
        assert_eq!(sender.child.wait().expect("it is our child").code(), Some(0));
        for file in ["Cargo.toml", "src/main.rs"] {
            let received = fs::read(format!("{target}/{file}")).expect("it is received");
            assert_eq!(received, fs::read(file).expect("it exists"), "{file}");
        }

        fs::write(format!("{target}/Cargo.toml"), "mine").expect("the folder can be written to");
        let (_sender, ticket) = send(&["Cargo.toml"]);
        let arguments = ["receive", &ticket, target, "--listen", ADDRESS];
        let output = punch(&arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--yes permits it"), "{output:?}");
        assert_eq!(fs::read(format!("{target}/Cargo.toml")).expect("it is there"), b"mine");
        assert_eq!(punch(&[&arguments[..], &["--yes"]].concat()).status.code(), Some(0));
        let received = fs::read(format!("{target}/Cargo.toml")).expect("it is there");
        assert_eq!(received, fs::read("Cargo.toml").expect("it exists"));
    }

    #[test]
    fn a_listener_registers_with_a_coordinator_that_comes_up_after_it() {
        let key = Scratch::new("late");
        let mut coordinator =
            Running::new(&["coordinator", "--listen", ADDRESS, "--key", key.path(), "--json"]);
        let line = coordinator.line();
        let address = line["address"].as_str().expect("a text").to_owned();
        assert_eq!(coordinator.end(Signal::SIGTERM), Some(0));

        let mut listener = Running::new(&["listen", "--coordinator", &address, "--json"]);
        listener.wait_for("listening");
        let mut word = String::new();
        let stderr = listener.child.stderr.take().expect("stderr is piped");
        BufReader::new(stderr).read_line(&mut word).expect("stderr is text");
        assert!(word.contains("no coordinator") && word.contains("trying again"), "{word}");

        let (listen, _) = address.split_once("/p2p/").expect("a PeerId");
        let _coordinator = Running::new(&["coordinator", "--listen", listen, "--key", key.path(), "--json"]);
        let registered = listener.wait_for("registered");
        assert_eq!(registered["coordinator"].as_str(), address.rsplit('/').next());
    }

    #[test]
    fn a_dial_waits_for_a_coordinator_that_comes_up_after_it() {
        let key = Scratch::new("later");
        let mut coordinator =
            Running::new(&["coordinator", "--listen", ADDRESS, "--key", key.path(), "--json"]);
        let line = coordinator.line();
        let address = line["address"].as_str().expect("a text").to_owned();
        assert_eq!(coordinator.end(Signal::SIGTERM), Some(0));

        let mut listener = Running::new(&["listen", "--coordinator", &address, "--json"]);
        let line = listener.wait_for("listening");
        let peer = line["address"].as_str().and_then(|address| address.rsplit('/').next()).expect("a PeerId");
        let mut dialer =
            Running::new(&["dial", peer, "--coordinator", &address, "--timeout", "600", "--json"]);
        let mut word = String::new();
        let stderr = dialer.child.stderr.take().expect("stderr is piped");
        BufReader::new(stderr).read_line(&mut word).expect("stderr is text");
        assert!(word.contains("no coordinator") && word.contains("trying again"), "{word}");

        let (listen, _) = address.split_once("/p2p/").expect("a PeerId");
        let _coordinator = Running::new(&["coordinator", "--listen", listen, "--key", key.path(), "--json"]);
        dialer.wait_for("echo");
        assert_eq!(dialer.child.wait().expect("it is our child").code(), Some(0));
    }

    #[test]
    fn a_ping_by_a_ticket_is_answered() {
        let (_sender, ticket) = send(&["Cargo.toml"]);
        let output =
            punch(&["ping", &ticket, "--count", "2", "--interval", "0.05", "--listen", ADDRESS, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let lines = lines(&output);
        let summary = lines.last().expect("there are lines");
        assert_eq!((&summary["sent"], &summary["answered"]), (&2.into(), &2.into()), "{output:?}");
        assert!(lines.iter().any(|line| line["event"] == "connected" && line["path"] == "direct"));
    }

    #[test]
    fn a_measurement_moves_what_it_was_asked_to() {
        let mut serving = Running::new(&["perf", "--listen", ADDRESS, "--json"]);
        let ticket = serving.wait_for("ticket");
        let ticket = ticket["ticket"].as_str().expect("a text");
        let amounts = ["--upload", "3000001", "--download", "1MiB"];
        let output = punch(&[&["perf", ticket, "--listen", ADDRESS, "--json"], &amounts[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let lines = lines(&output);
        let perf = lines.last().expect("there are lines");
        assert_eq!(perf["upload"]["bytes"], 3_000_001, "{output:?}");
        assert_eq!(perf["download"]["bytes"], 1 << 20, "{output:?}");
        assert_eq!(serving.end(Signal::SIGINT), Some(0));
    }

    #[test]
    fn lines_of_a_chat_arrive_in_order_before_it_ends() {
        // The end of its stdin would end the chat.
        let mut waiting = Running::with_stdin(&["chat", "--listen", ADDRESS, "--json"], Stdio::piped());
        let ticket = waiting.wait_for("ticket");
        let mut talking = Command::new(env!("CARGO_BIN_EXE_punch"))
            .args(["chat", ticket["ticket"].as_str().expect("a text"), "--listen", ADDRESS])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("punch can be run");
        let mut stdin = talking.stdin.take().expect("stdin is piped");
        std::io::Write::write_all(&mut stdin, b"hello\n\x1b[2Jworld\n").expect("it is read");
        drop(stdin);
        assert_eq!(waiting.wait_for("message")["text"], "hello");
        assert_eq!(waiting.wait_for("message")["text"], "[2Jworld");
        assert_eq!(talking.wait().expect("it is our child").code(), Some(0));
    }

    #[test]
    fn a_third_peer_of_a_chat_is_turned_away_by_name() {
        let mut waiting = Running::with_stdin(&["chat", "--listen", ADDRESS, "--json"], Stdio::piped());
        let ticket = waiting.wait_for("ticket");
        let ticket = ticket["ticket"].as_str().expect("a text");
        let arguments = ["chat", ticket, "--listen", ADDRESS, "--json"];
        let mut second = Running::with_stdin(&arguments, Stdio::piped());
        waiting.wait_for("connected");
        let mut third = Running::with_stdin(&arguments, Stdio::piped());
        let refused = waiting.wait_for("refused");
        let second_peer = second.wait_for("connected")["peer"].clone();
        assert!(refused["peer"].is_string() && refused["peer"] != second_peer, "{refused}");
        third.wait_for("left");
        assert_eq!(third.child.wait().expect("it is our child").code(), Some(0));
        let mut stdin = second.child.stdin.take().expect("stdin is piped");
        std::io::Write::write_all(&mut stdin, b"still here\n").expect("it is read");
        assert_eq!(waiting.wait_for("message")["text"], "still here");
    }

    #[test]
    fn a_receiver_with_the_ticket_of_an_earlier_start_says_so() {
        let key = Scratch::new("restarted");
        // The port is free again for the second sender.
        let port = UdpSocket::bind(("127.0.0.1", 0)).expect("there is a free port").local_addr();
        let listen = format!("/ip4/127.0.0.1/udp/{}/quic-v1", port.expect("it is bound").port());
        let arguments = ["send", "Cargo.toml", "--listen", &listen, "--key", key.path(), "--json"];
        let mut first = Running::new(&arguments);
        let ticket = first.wait_for("ticket");
        let ticket = ticket["ticket"].as_str().expect("a text");
        first.end(Signal::SIGTERM);
        let mut second = Running::new(&arguments);
        second.wait_for("ticket");
        let folder = tempfile::TempDir::new().expect("the temporary directory can be written to");
        let folder = folder.path().to_str().expect("a name in UTF-8");
        let output = punch(&["receive", ticket, folder, "--listen", ADDRESS, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("started again") && !stderr.contains("mistyped"), "{stderr}");
        assert!(stderr.contains("Get the present ticket"), "{stderr}");
        let failed = lines(&output).pop().expect("there are lines");
        assert_eq!((&failed["event"], &failed["code"]), (&"failed".into(), &"other-ticket".into()));
        assert!(failed["remedy"].is_string(), "{failed}");
    }

    #[test]
    fn a_forwarded_port_leads_to_the_service_of_the_peer_and_to_no_other() {
        let service = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let target = service.local_addr().expect("it is bound").to_string();
        let mut serving = Running::new(&["forward", "--allow", &target, "--listen", ADDRESS, "--json"]);
        let ticket = serving.wait_for("ticket");
        let ticket = ticket["ticket"].as_str().expect("a text");
        let mut forwarding =
            Running::new(&["forward", ticket, &format!("0:{target}"), "--listen", ADDRESS, "--json"]);
        let listening = forwarding.wait_for("listening");
        let local = listening["address"].as_str().expect("a text");
        let mut program = std::net::TcpStream::connect(local).expect("the port is open");
        std::io::Write::write_all(&mut program, b"hello").expect("it is taken");
        program.shutdown(std::net::Shutdown::Write).expect("the direction ends");
        let (mut connection, _) = service.accept().expect("a connection");
        assert_eq!(std::io::read_to_string(&mut connection).expect("it ends"), "hello");
        std::io::Write::write_all(&mut connection, b"world").expect("the way back is open");
        drop(connection);
        assert_eq!(std::io::read_to_string(&mut program).expect("it ends"), "world");
        let closed = forwarding.wait_for("closed");
        assert_eq!((&closed["sent"], &closed["received"]), (&5.into(), &5.into()), "{closed}");

        // The service ends, another port is not allowed, and the local port is taken.
        drop(service);
        let mut program = std::net::TcpStream::connect(local).expect("the port is open");
        assert!(std::io::Read::read(&mut program, &mut [0]).is_err(), "it looks like an end");
        let failed = forwarding.wait_for("failed");
        assert!(
            failed["message"].as_str().is_some_and(|words| words.contains("nothing listens")),
            "{failed}"
        );
        let arguments = ["forward", ticket, "0:localhost:1", "--listen", ADDRESS];
        let output = punch(&arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("localhost:1 is not allowed"), "{output:?}");
        let taken = format!("{}:localhost:1", local.rsplit(':').next().expect("a port"));
        refuses(&["forward", ticket, &taken, "--listen", ADDRESS], 1, &["127.0.0.1", "the port is in use"]);
        assert_eq!(forwarding.end(Signal::SIGTERM), Some(0));
        assert_eq!(serving.end(Signal::SIGINT), Some(0));
    }

    #[test]
    fn a_sender_that_is_interrupted_says_so() {
        let (mut sender, _) = send(&["Cargo.toml"]);
        assert_eq!(sender.end(Signal::SIGINT), Some(1));
    }

    #[test]
    fn a_peer_that_the_coordinator_does_not_know_is_a_failure() {
        let mut coordinator = Running::new(&["coordinator", "--listen", ADDRESS, "--json"]);
        let line = coordinator.line();
        let address = line["address"].as_str().unwrap_or_default();
        let arguments = ["dial", PEER, "--coordinator", address, "--json"];
        let output = punch(&arguments);
        assert_eq!(output.status.code(), Some(11), "{output:?}");
        one_sentence(&arguments, &output, &["cannot connect", PEER]);
        assert_eq!(lines(&output).last().map(|line| line["event"].clone()), Some("failed".into()));
    }

    #[test]
    fn a_closed_stdout_ends_the_program_without_a_panic() {
        let (reader, writer) = std::io::pipe().expect("there are pipes");
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_punch"))
            .args(["coordinator", "--listen", ADDRESS, "--json"])
            .stdin(Stdio::null())
            .stdout(writer)
            .output()
            .expect("punch can be run");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        one_sentence(&["coordinator"], &output, &["stdout"]);
    }
}

#[test]
fn in_a_simulated_network_without_configured_coordinators_every_dial_connects() {
    let [file, picture] =
        ["json", "svg"].map(|kind| env::temp_dir().join(format!("punch-network-{}.{kind}", process::id())));
    let [path, picture_path] = [&file, &picture].map(|file| file.to_str().expect("the path is text"));
    let arguments = ["network", "--nodes", "12", "--public", "40", "--dials", "12", "--loss", "0"];
    let output = punch(&[&arguments[..], &["--json", path, "--svg", picture_path]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let svg = fs::read_to_string(&picture).unwrap();
    fs::remove_file(&file).unwrap();
    fs::remove_file(&picture).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("12 nodes"), "{svg}");
    assert_eq!(results["hidden"], results["hidden_with_all_coordinators"]);
    let dials = &results["rounds"][0]["dials"];
    assert_eq!(dials["failed"], 0, "{results:#}");
    let count = |name: &str| dials[name].as_u64().unwrap();
    let all: u64 = ["connected_before", "direct", "relayed_then_direct", "relayed"].map(count).iter().sum();
    assert_eq!(all, 12);
}
