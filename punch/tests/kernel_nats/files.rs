//! `punch send` and `punch receive` between two NATs, with one ticket.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::atomic::AtomicBool,
    time::Duration,
};

use punch_lab::{
    Kind,
    kernel::{COORDINATOR, Lab, Program},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{lab_is_possible, say};

const PUNCH: &str = env!("CARGO_BIN_EXE_punch");
/// Only what hangs is waited for so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Length of the file: its transfer takes much longer than it takes to end a process.
const LEN: u64 = 512 << 20;

fn start(lab: &Lab, at: Option<usize>, arguments: &[&str]) -> Program {
    let namespace = at.map_or(&lab.wan, |site| &lab.sites[site].host);
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Program::start(namespace, Path::new(PUNCH), &arguments, PATIENCE).expect("punch can be run")
}

/// Waits for a line that `choose` wants something of.
fn wait_for<T>(program: &mut Program, mut choose: impl FnMut(&Value) -> Option<T>) -> T {
    let chosen = program.wait_for(&AtomicBool::new(false), |line| choose(line));
    chosen.expect("lines of JSON").expect("the line comes before the end of the program")
}

fn event<'a>(name: &'a str, key: &'a str) -> impl Fn(&Value) -> Option<Value> + 'a {
    move |line| (line["event"] == name).then(|| line[key].clone())
}

fn text(value: Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// Bytes that cannot be compressed, and that differ from block to block.
fn write_random(path: &Path, len: u64) {
    let mut random = File::open("/dev/urandom").expect("a source of bytes").take(len);
    io::copy(&mut random, &mut File::create(path).expect("a new file")).expect("the disk has room");
}

fn hash(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).expect("the file exists")).expect("it can be read");
    hasher.finalize()
}

#[test]
fn a_file_goes_from_nat_to_nat_with_one_ticket_although_the_receiver_is_killed_half_way() {
    if !lab_is_possible() {
        return;
    }
    let scratch = TempDir::new().expect("the temporary directory can be written to");
    let [file, folder] = ["file", "folder"].map(|name| scratch.path().join(name));
    write_random(&file, LEN);
    let [file_text, folder_text] = [&file, &folder].map(|path| path.to_str().expect("a name in UTF-8"));

    let lab = Lab::new([Kind::EimApdf, Kind::EimApdf]).expect("a lab");
    let listen = format!("/ip4/{}/udp/4001/quic-v1", COORDINATOR[0]);
    let mut coordinator = start(&lab, None, &["coordinator", "--listen", &listen]);
    let coordinator = text(wait_for(&mut coordinator, event("listening", "address")));
    let mut sender = start(&lab, Some(0), &["send", file_text, "--bootstrap", &coordinator]);
    let ticket = text(wait_for(&mut sender, event("ticket", "ticket")));

    // Killed when it is dropped.
    let mut receiver = start(&lab, Some(1), &["receive", &ticket, folder_text]);
    assert_eq!(wait_for(&mut receiver, event("connected", "path")), "direct");
    let is_under_way = |line: &Value| {
        let bytes = line["bytes"].as_u64().filter(|_| line["event"] == "progress")?;
        assert_ne!(bytes, LEN, "the file is too short for this machine");
        (bytes > 0).then_some(bytes)
    };
    wait_for(&mut receiver, is_under_way);
    drop(receiver);
    let partial = fs::metadata(folder.join("file.punch-part")).expect("a partial file").len();
    assert!((1..LEN).contains(&partial), "{partial}");

    let mut receiver = start(&lab, Some(1), &["receive", &ticket, folder_text]);
    assert_eq!(wait_for(&mut receiver, event("connected", "path")), "direct");
    wait_for(&mut receiver, event("received", "files"));
    let moved = wait_for(&mut sender, event("sent", "bytes")).as_u64().expect("a number");
    say(&format!("{LEN} bytes: {partial} before the receiver was killed, {moved} after it"));
    assert_eq!(moved, LEN - partial, "only the rest is sent");
    assert_eq!(hash(&folder.join("file")), hash(&file));
    assert!(!folder.join("file.punch-part").exists());
}

/// Largest memory that a process has had, in MiB.
fn peak_memory(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of the kernel");
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
    kib / 1024.0
}

fn seconds(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Figures of `docs/performance.md`.
#[test]
#[ignore = "a measurement of minutes, for a release build"]
fn a_gigabyte_in_a_file_takes_as_long_as_over_a_bare_stream() {
    const GIGABYTE: u64 = 1 << 30;
    const ROUNDS: usize = 5;
    if !lab_is_possible() {
        return;
    }
    let scratch = TempDir::new().expect("the temporary directory can be written to");
    let file = scratch.path().join("file");
    write_random(&file, GIGABYTE);
    let file_text = file.to_str().expect("a name in UTF-8");
    let lab = Lab::new([Kind::EimApdf, Kind::EimApdf]).expect("a lab");
    let listen = format!("/ip4/{}/udp/4001/quic-v1", COORDINATOR[0]);
    let mut coordinator = start(&lab, None, &["coordinator", "--listen", &listen]);
    let coordinator = text(wait_for(&mut coordinator, event("listening", "address")));
    let (mut bare, mut files) = (Vec::new(), Vec::new());
    let [mut serving_memory, mut sending_memory, mut receiving_memory] = [0.0_f64; 3];
    for round in 0..ROUNDS {
        let mut serving = start(&lab, Some(0), &["perf", "--bootstrap", &coordinator]);
        let ticket = text(wait_for(&mut serving, event("ticket", "ticket")));
        let arguments = ["perf", &ticket, "--upload", "0", "--download", "1GiB"];
        let mut perf = start(&lab, Some(1), &arguments);
        let download = wait_for(&mut perf, event("perf", "download"));
        bare.push(GIGABYTE as f64 / seconds(&download["seconds"]) / f64::from(1 << 20));
        serving_memory = serving_memory.max(peak_memory(serving.id()));
        drop((serving, perf));

        let folder = scratch.path().join(format!("folder{round}"));
        let folder_text = folder.to_str().expect("a name in UTF-8");
        // With `--keep` the sender lives on, and its memory can be read.
        let mut sender = start(&lab, Some(0), &["send", file_text, "--keep", "--bootstrap", &coordinator]);
        let ticket = text(wait_for(&mut sender, event("ticket", "ticket")));
        let mut receiver = start(&lab, Some(1), &["receive", &ticket, folder_text]);
        assert_eq!(wait_for(&mut receiver, event("connected", "path")), "direct");
        let (id, mut receiving) = (receiver.id(), 0.0_f64);
        wait_for(&mut receiver, |line| {
            if line["event"] == "progress" {
                receiving = peak_memory(id).max(receiving);
            }
            event("received", "files")(line)
        });
        // From the request to the last word, as the bare stream is measured.
        let time = wait_for(&mut sender, event("sent", "seconds"));
        files.push(GIGABYTE as f64 / seconds(&time) / f64::from(1 << 20));
        sending_memory = sending_memory.max(peak_memory(sender.id()));
        receiving_memory = receiving_memory.max(receiving);
        drop((sender, receiver));
        fs::remove_dir_all(&folder).expect("it is ours");
    }
    let (bare, files) = (median(bare), median(files));
    say(&format!(
        "bare stream {bare:.0} MiB/s, file {files:.0} MiB/s, ratio {:.3}; peak memory in MiB: \
         sender {sending_memory:.0}, receiver {receiving_memory:.0}, bare {serving_memory:.0}",
        files / bare
    ));
}
