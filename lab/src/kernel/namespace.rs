//! Network namespaces.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    panic::resume_unwind,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    error::{Error, Result},
    owner,
};

const NAMESPACES: &str = "/run/netns";
/// Attempts to remove a namespace whose last process is just ending.
const REMOVAL_ATTEMPTS: usize = 3;

/// A network namespace that is removed on drop.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace with its loopback interface up and packet forwarding on.
    pub(super) fn new(lab: &str, role: &str) -> Result<Self> {
        // The value exists first, so that its drop removes a half-made namespace, too.
        let namespace = Self { name: format!("{lab}.{role}") };
        run(command("ip").args(["netns", "add", &namespace.name]), "")?;
        namespace.ip("link set lo up")?;
        namespace
            .inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?
            .map_err(|error| Error::new("cannot turn packet forwarding on", error))?;
        Ok(namespace)
    }

    /// Joins two namespaces by a cable: `near` is its end here, `far` the one in `other`.
    pub(super) fn cable(&self, near: &str, other: &Namespace, far: &str) -> Result<()> {
        let (here, there) = (&self.name, &other.name);
        let line = format!("link add name {near} netns {here} type veth peer name {far} netns {there}\n");
        run(command("ip").args(["-batch", "-"]), &line)
    }

    /// Runs lines of `ip`, without the word `ip`, in the namespace.
    pub fn ip(&self, lines: &str) -> Result<()> {
        run(command("ip").args(["-n", &self.name, "-batch", "-"]), &format!("{lines}\n"))
    }

    /// Loads nftables rules.
    pub(super) fn nft(&self, rules: &str) -> Result<()> {
        run(self.command("nft").args(["-f", "-"]), rules)
    }

    /// Returns a command that runs in the namespace; `ip` replaces itself by it, so that the child
    /// is the program.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = command("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `work` on a thread that is in the namespace. Sockets opened there stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let cannot = |error: &dyn fmt::Display| Error::new("cannot enter a namespace", error);
        let handle = File::open(format!("{NAMESPACES}/{}", self.name)).map_err(|error| cannot(&error))?;
        thread::scope(|scope| {
            let inside = move || {
                setns(handle, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            };
            let result: nix::Result<T> =
                scope.spawn(inside).join().unwrap_or_else(|panic| resume_unwind(panic));
            result.map_err(|error| cannot(&error))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes a namespace with all that runs in it. After a failure the next lab tries
/// again.
fn remove(name: &str) {
    for _ in 0..REMOVAL_ATTEMPTS {
        let pids = Command::new("ip").args(["netns", "pids", name]).stderr(Stdio::null()).output();
        let pids =
            pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let pids: Vec<i32> = pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            // The process may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
    let _ = command("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

/// Removes the namespaces of labs whose process is gone; returns their number.
pub fn remove_stale() -> usize {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return 0 };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let stale: Vec<String> = names.filter(|name| owner::is_stale(name)).collect();
    for name in &stale {
        remove(name);
    }
    stale.len()
}

/// Returns the reason why no lab can be built here: the end of a sentence that begins with "the
/// lab".
pub fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some(
            "needs root, or a user namespace in which it is root, such as that of \
             unshare -Urmn sh -c 'mount -t tmpfs tmpfs /run && exec punch lab'"
                .into(),
        );
    }
    for (program, version) in [("ip", "-V"), ("nft", "--version")] {
        if Command::new(program).arg(version).stdout(Stdio::null()).status().is_err() {
            return Some(format!("needs the program {program}"));
        }
    }
    Namespace::new(&owner::unique_lab_name(), "try").err().map(|error| format!("cannot be built: {error}"))
}

/// Returns a command in a process group of its own: the lab gets Ctrl-C, and ends its children in
/// order.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    command
}

fn run(command: &mut Command, input: &str) -> Result<()> {
    let cannot = |error: &dyn fmt::Display| Error::new("cannot run ip and nft", error);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| cannot(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input reports the reason on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| cannot(&error))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!("{command:?} refused {input:.300?}"), message.trim()))
}
