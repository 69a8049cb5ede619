//! A network namespace of its own for the run, so that nothing leaves the machine and no other
//! program disturbs it.

use std::{
    env,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context;

/// An address that is not the loopback one: some test programs refuse to publish that. RFC 5737's,
/// for documentation.
const ADDRESS: &str = "192.0.2.1/24";

/// Brings the loopback interface and one more up, then becomes the program that follows.
const SETUP: &str = "ip link set lo up && ip link add interop0 type veth peer name interop1 \
    && ip address add \"$0\" dev interop0 && ip link set interop0 up && ip link set interop1 up && exec \"$@\"";

/// Runs this program again with more arguments, in a namespace where that is possible.
pub(crate) fn run_inside<'a>(more: impl Iterator<Item = &'a str>) -> anyhow::Result<ExitCode> {
    let program = env::current_exe()?;
    let arguments: Vec<_> = env::args_os().skip(1).chain(more.map(Into::into)).collect();
    let mut command = match unshare() {
        Some(mut unshare) => {
            unshare.args(["sh", "-c", SETUP, ADDRESS]).arg(program);
            unshare
        }
        None => {
            eprintln!("no network namespace can be made here: running on the loopback interface");
            Command::new(program)
        }
    };
    let status = command.args(arguments).arg("--inside").status().context("starting the run")?;
    if let Some(signal) = status.signal() {
        anyhow::bail!("the run was ended by signal {signal}");
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns true if there is an address other than the loopback one, as some test programs want.
pub(crate) fn has_address() -> bool {
    let addresses = Command::new("ip").args(["-o", "address", "show"]).output();
    let address = ADDRESS.split('/').next().unwrap_or(ADDRESS);
    addresses.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(address))
}

fn unshare() -> Option<Command> {
    // As root there is no need of a user namespace, and many systems forbid one. With a process
    // namespace no process of a peer outlives the run.
    const PRIVATE: [&str; 4] = ["--net", "--pid", "--fork", "--kill-child"];
    for options in [&["--"][..], &["--map-root-user", "--"]] {
        let options = [&PRIVATE[..], options].concat();
        let mut probe = Command::new("unshare");
        probe.args(&options).args(["sh", "-c", SETUP, ADDRESS, "true"]);
        let works = probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        if works {
            let mut command = Command::new("unshare");
            command.args(options);
            return Some(command);
        }
    }
    None
}
