//! Configuration of a running coordinator: files, the environment, and SIGHUP.

#![cfg(unix)]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A file that is removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let scratch = Self(env::temp_dir().join(format!("punch-config-{name}-{}.toml", std::process::id())));
        scratch.write(text);
        scratch
    }

    fn write(&self, text: &str) {
        fs::write(&self.0, text).expect("the temporary directory can be written to");
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

fn punch(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_punch"))
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("punch can be run")
}

const LISTEN: &str = "listen = [\"/ip4/127.0.0.1/udp/0/quic-v1\"]\n";

#[test]
fn a_variable_takes_precedence_over_the_file() {
    let file = Scratch::new("variable", &format!("{LISTEN}max_registrations = 5\npair_rate = 3\n"));
    let variables = [
        ("PUNCH_MAX_REGISTRATIONS", "6"),
        ("PUNCH_LISTEN", "/ip4/127.0.0.1/udp/1/quic-v1,/ip4/127.0.0.1/udp/2/quic-v1"),
    ];
    let output = punch(&["config", "show", file.path()], &variables);
    let shown = String::from_utf8_lossy(&output.stdout);
    for line in [
        "max_registrations = 6 # PUNCH_MAX_REGISTRATIONS".to_owned(),
        format!("pair_rate = 3 # {}", file.path()),
        "request_rate = 100 # default".to_owned(),
        "listen = [\"/ip4/127.0.0.1/udp/1/quic-v1\", \"/ip4/127.0.0.1/udp/2/quic-v1\"] # PUNCH_LISTEN"
            .to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}\n{output:?}");
    }
}

#[test]
fn a_check_names_the_fault_and_a_valid_file_passes() {
    let file = Scratch::new("check", LISTEN);
    let output = punch(&["config", "check", file.path()], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for (text, words) in [
        ("max_registration = 5\n".to_owned(), "did you mean max_registrations?"),
        (format!("{LISTEN}request_burst = 19\n"), "20 to 1000 at once"),
        (format!("{LISTEN}relay_circuit_bytes = \"much\"\n"), "relay_circuit_bytes"),
        (format!("{LISTEN}log = \"punch=loud\"\n"), "is not a filter"),
        ("json = true\n".to_owned(), "--listen is missing"),
    ] {
        file.write(&text);
        let output = punch(&["config", "check", file.path()], &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr.contains(words) && stderr.lines().count() == 1, "{text}: {stderr}");
    }
}

#[test]
fn a_file_that_does_not_exist_is_refused() {
    let output = punch(&["coordinator", "--config", "/nowhere/coordinator.toml"], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/coordinator.toml: it cannot be read"));
}

/// A running coordinator. Killed on drop.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    events: BufReader<ChildStdout>,
    address: String,
}

impl Running {
    fn new(file: &Scratch) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_punch"))
            .args(["coordinator", "--json", "--config", file.path()])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("punch can be run");
        let log = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut events = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let first = wait_for(&mut events, "\"event\":\"listening\"");
        let first: serde_json::Value = serde_json::from_str(&first).expect("an event is a JSON object");
        let address = first["address"].as_str().expect("the event has an address").to_owned();
        Self { child, log, events, address }
    }

    fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.child.id()).expect("process ids are small");
        kill(Pid::from_raw(process), signal).expect("the process is ours");
    }
}

/// Reads up to a line with this text.
fn wait_for(lines: &mut impl BufRead, text: &str) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).expect("the output is text"), 0, "no line has {text}");
        if line.contains(text) {
            return line;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sighup_reloads_coordinators_and_the_log_and_tells_what_needs_a_restart() {
    // At this level the log has no line about a reload that succeeds.
    let file = Scratch::new("reload", &format!("{LISTEN}log = \"punch=warn\"\n"));
    let mut coordinator = Running::new(&file);
    let other = Running::new(&Scratch::new("other", LISTEN));
    let with_other = format!("{LISTEN}coordinator = [\"{}\"]\n", other.address);
    file.write(&format!("{with_other}max_registrations = 9\njson = false\n"));
    coordinator.signal(Signal::SIGHUP);
    let warning = wait_for(&mut coordinator.log, "takes effect at the next start");
    assert!(warning.contains("limits of the coordinator"), "{warning}");
    assert!(wait_for(&mut coordinator.log, "the configuration was reloaded").contains("coordinators=1"));
    wait_for(&mut coordinator.events, "\"event\":\"registered\"");

    for (fault, words) in [
        ("max_registration = 9\n", "did you mean max_registrations?"),
        ("log = \"punch=loud\"\n", "is not a filter"),
    ] {
        file.write(&format!("{LISTEN}{fault}"));
        coordinator.signal(Signal::SIGHUP);
        let refusal = wait_for(&mut coordinator.log, "nothing is reloaded");
        assert!(refusal.contains(words), "{refusal}");
    }

    // A coordinator that was removed is registered with again.
    for text in [format!("{LISTEN}log = \"punch=info\"\n"), with_other] {
        file.write(&text);
        coordinator.signal(Signal::SIGHUP);
        wait_for(&mut coordinator.log, "the configuration was reloaded");
    }
    wait_for(&mut coordinator.events, "\"event\":\"registered\"");

    coordinator.signal(Signal::SIGTERM);
    assert_eq!(coordinator.child.wait().expect("the process is our child").code(), Some(0));
}

#[test]
fn the_unit_of_systemd_starts_a_coordinator_with_arguments_that_exist() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/punch-coordinator.service");
    let unit = fs::read_to_string(unit).expect("the unit is there");
    let command = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)).expect("the unit has the line");
        line.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let file = Scratch::new("unit", LISTEN);
    let in_place = |words: Vec<String>| -> Vec<String> {
        words.into_iter().map(|word| word.replace("/etc/punch/coordinator.toml", file.path())).collect()
    };
    let check = in_place(command("ExecReload="));
    let output = punch(&check.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut start = in_place(command("ExecStart="));
    start.push("--help".to_owned());
    let output = punch(&start.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
