//! `examples/dht_node.rs` on real NATs: nine processes, one bootstrap address, no configured
//! coordinator.

use std::{
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use punch_lab::{
    Kind,
    kernel::{Lab, Site},
};

use super::{lab_is_possible, say};

const SITES: [Kind; 9] = [
    Kind::Public,
    Kind::Public,
    Kind::Public,
    Kind::EimApdf,
    Kind::EimApdf,
    Kind::EimApdfOtherPort,
    Kind::EimAdf,
    Kind::Double,
    Kind::EimApdf,
];

/// A process of the example, under `timeout`. Ends on drop.
struct Node {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Node {
    fn start(program: &Path, site: &Site, arguments: &[&str]) -> Self {
        // The end of a node that hangs ends the test.
        let mut command = site.host.command("timeout");
        command.args(["120"]).arg(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it can be run");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    /// Reads up to the line with this text.
    fn wait_for(&mut self, text: &str) -> String {
        let line = self.lines.by_ref().map_while(Result::ok).find(|line| line.contains(text));
        line.unwrap_or_else(|| panic!("a node ended without {text:?}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // `timeout` passes SIGTERM on.
        if let Ok(process) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(process), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// The program of the example, which `cargo test` builds with the library.
fn program() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_punch")).with_file_name("examples").join("dht_node");
    if program.exists() {
        return Some(program);
    }
    let build = "cargo build --features kad --example dht_node";
    assert!(std::env::var_os("PUNCH_REQUIRE_LAB").is_none(), "the example is not built: {build}");
    say(&format!("skipped: the DHT of nine nodes needs its example: {build}"));
    None
}

#[test]
fn a_value_of_a_node_behind_a_nat_is_fetched_directly_with_one_bootstrap_address() {
    if !lab_is_possible() {
        return;
    }
    let Some(program) = program() else { return };
    let lab = Lab::new(SITES).expect("a lab");
    let [first, others @ ..] = &lab.sites;
    let mut bootstrap = Node::start(&program, first, &["serve"]);
    let address = bootstrap.wait_for(&format!("/ip4/{}/udp/", first.public));
    let address = address.strip_prefix("listening on ").expect("an address").to_owned();
    let (public, hidden) = others.split_at(2);
    let mut servers =
        Vec::from_iter(public.iter().map(|site| Node::start(&program, site, &["serve", &address])));
    for (server, site) in servers.iter_mut().zip(public) {
        server.wait_for(&format!("/ip4/{}/udp/", site.public));
    }
    let (reader, holders) = hidden.split_last().expect("six sites");
    let mut nodes: Vec<(String, Node)> = Vec::new();
    for (number, site) in (1..).zip(holders) {
        let name = format!("value-{number}");
        let text = format!("text {number}");
        let node = Node::start(&program, site, &["put", &address, &name, &text]);
        nodes.push((name, node));
    }
    for (name, node) in &mut nodes {
        node.wait_for(&format!("holds {name:?}"));
    }
    for (number, site) in (1..).zip(holders) {
        let mut node = Node::start(&program, reader, &["get", &address, &format!("value-{number}")]);
        let path = node.wait_for(&format!("at {}:", site.public));
        node.wait_for(&format!("got \"text {number}\""));
        let (_, path) = path.split_once(" at ").expect("a path");
        say(&format!("{} -> {}: {path}", SITES[8], SITES[2 + number]));
    }
}
