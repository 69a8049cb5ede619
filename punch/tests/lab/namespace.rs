//! Network namespaces, and the names under which this process made them.

use std::{
    fs::{self, File},
    io::Write,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};

const PREFIX: &str = "punch-lab";
const NAMESPACES: &str = "/run/netns";

static LABS: AtomicU32 = AtomicU32::new(0);

/// The part of a namespace's name that is the same for all of one lab and belongs to no other.
pub(crate) fn unique_lab_name() -> String {
    format!("{PREFIX}.{}.{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace that is removed on drop.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with its loopback interface up and packet forwarding on.
    pub(crate) fn new(lab: &str, role: &str) -> Self {
        let name = format!("{lab}.{role}");
        run(Command::new("ip").args(["netns", "add", &name]), "");
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace.inside(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding can be turned on");
        });
        namespace
    }

    /// Joins two namespaces by a cable: `near` is its end here, `far` the one in `other`.
    pub(crate) fn cable(&self, near: &str, other: &Namespace, far: &str) {
        let (here, there) = (&self.name, &other.name);
        let line = format!("link add name {near} netns {here} type veth peer name {far} netns {there}\n");
        run(Command::new("ip").args(["-batch", "-"]), &line);
    }

    /// Runs lines of `ip`, without the word `ip`, in the namespace.
    pub(crate) fn ip(&self, lines: &str) {
        run(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), &format!("{lines}\n"));
    }

    /// Loads nftables rules.
    pub(crate) fn nft(&self, rules: &str) {
        run(self.command("nft").args(["-f", "-"]), rules);
    }

    /// A command that runs in the namespace; `ip` replaces itself by it, so that the child is the program.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `work` on a thread that is in the namespace. Sockets opened there stay there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let handle = File::open(format!("{NAMESPACES}/{}", self.name)).expect("the namespace is there");
        thread::scope(|scope| {
            let inside = move || {
                setns(handle, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            };
            scope.spawn(inside).join().expect("work in the namespace does not panic")
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn remove(name: &str) {
    // A failure leaves a namespace to the next lab's clean-up; a panic in drop would hide the test's own.
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

/// Removes what labs of processes that are gone have left behind.
pub(crate) fn remove_stale() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let mut parts = name.split('.');
        let (prefix, process) = (parts.next(), parts.next());
        let Some(process) = process.filter(|_| prefix == Some(PREFIX)) else { continue };
        if !fs::exists(format!("/proc/{process}")).unwrap_or(true) {
            remove(&name);
        }
    }
}

/// Why no lab can be built here, if that is so.
pub(crate) fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    for (program, version) in [("ip", "-V"), ("nft", "--version")] {
        if Command::new(program).arg(version).stdout(Stdio::null()).status().is_err() {
            return Some(format!("needs the program {program}"));
        }
    }
    let name = unique_lab_name();
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    remove(&name);
    match made {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("cannot make namespaces: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Some(format!("cannot make namespaces: {error}")),
    }
}

fn run(command: &mut Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ip and nft can be run");
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).expect("ip and nft read it");
    let output = child.wait_with_output().expect("ip and nft end");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} refused {:.300?}: {message}", input);
}
