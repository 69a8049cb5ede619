//! `punch lab` on real NATs, and what it leaves behind.

use std::{
    fs,
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{lab_is_possible, say};

const PUNCH: &str = env!("CARGO_BIN_EXE_punch");
/// Only what hangs is waited for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// One lab command at a time: each removes at its start what killed ones have left, which others
/// look at here.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lab(arguments: &[&str]) -> Output {
    let mut command = Command::new(PUNCH);
    command.arg("lab").args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command.output().expect("punch can be run")
}

/// A lab that is under way for longer than any test.
fn long_lab() -> Child {
    let mut command = Command::new(PUNCH);
    command.args(["lab", "--kinds", "public,eim+apdf", "--runs", "1000"]).env_remove("RUST_LOG");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("punch can be run")
}

/// Namespaces that the process with this number made.
fn namespaces_of(process: u32) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("punchlab.{process}-"))).collect()
}

/// Processes in these namespaces.
fn processes_in(namespaces: &[String]) -> Vec<String> {
    let pids =
        namespaces.iter().filter_map(|name| Command::new("ip").args(["netns", "pids", name]).output().ok());
    let pids: Vec<String> = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).collect();
    pids.iter().flat_map(|pids| pids.split_whitespace()).map(str::to_owned).collect()
}

/// Waits until peers run in namespaces of this process, and returns the namespaces and the peers.
fn under_way(process: u32) -> (Vec<String>, Vec<String>) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let namespaces = namespaces_of(process);
        let peers = processes_in(&namespaces);
        if peers.len() >= 2 {
            return (namespaces, peers);
        }
        sleep(Duration::from_millis(5));
    }
    panic!("no peer was started");
}

fn signal(child: &Child, signal: Signal) {
    let process = i32::try_from(child.id()).expect("process numbers are small");
    kill(Pid::from_raw(process), signal).expect("it is our child");
}

#[test]
fn a_small_matrix_is_all_direct() {
    if !lab_is_possible() {
        return;
    }
    let _alone = alone();
    let file = std::env::temp_dir().join(format!("punch-lab-{}.json", std::process::id()));
    let path = file.to_str().expect("the temporary directory has a name in UTF-8");
    let output = lab(&["--kinds", "eim+eif,eim+apdf", "--runs", "1", "--json", path]);
    let json = fs::read_to_string(&file);
    let _ = fs::remove_file(&file);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "no progress bar without a terminal: {output:?}");
    assert_eq!(stdout.lines().last(), Some("4 direct, 0 relayed, 0 failed"), "{stdout}");
    let json: Value = serde_json::from_str(&json.expect("the file is written")).expect("it holds JSON");
    assert_eq!(json["lab"]["mode"], "kernel");
    assert_eq!(json["lab"]["measured"][1]["filtering"], "address-and-port-dependent");
    let pairs = json["implementations"][0]["pairs"].as_array().expect("pairs are a list");
    for pair in pairs {
        let remote = pair["runs"][0]["remote"].as_str().unwrap_or_default();
        assert!(remote.starts_with("/ip4/192.0.2.2/udp/"), "{pair}");
        say(&format!("{} -> {}: {} ms", pair["dialer"], pair["listener"], pair["median_ms"]));
    }
    assert_eq!(pairs.len(), 4);
}

#[test]
fn what_a_killed_lab_left_is_removed_by_the_next_one() {
    if !lab_is_possible() {
        return;
    }
    let _alone = alone();
    let mut killed = long_lab();
    let process = killed.id();
    under_way(process);
    signal(&killed, Signal::SIGKILL);
    killed.wait().expect("it is our child");
    let left = namespaces_of(process);
    assert!(!left.is_empty(), "a killed lab cannot clean up");
    let orphans = processes_in(&left);

    let output = lab(&["--kinds", "public", "--runs", "1"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.starts_with("removed "), "{stdout}");
    assert_eq!(namespaces_of(process), [""; 0]);
    for orphan in orphans {
        let program = fs::read_link(format!("/proc/{orphan}/exe"));
        assert!(program.is_err() || !program.is_ok_and(|path| path.ends_with("punch")), "{orphan} runs on");
    }
}

#[test]
fn a_lab_that_is_told_to_end_leaves_nothing() {
    if !lab_is_possible() {
        return;
    }
    let _alone = alone();
    for word in [Signal::SIGINT, Signal::SIGTERM] {
        let lab = long_lab();
        let process = lab.id();
        let (_, peers) = under_way(process);
        signal(&lab, word);
        let output = lab.wait_with_output().expect("it is our child");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "punch: interrupted\n");
        assert_eq!(namespaces_of(process), [""; 0], "{word}");
        for peer in peers {
            assert!(!fs::exists(format!("/proc/{peer}")).unwrap_or(true), "{peer} runs on after {word}");
        }
    }
}
