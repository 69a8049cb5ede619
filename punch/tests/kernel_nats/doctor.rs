//! `punch doctor` where the cause is the kernel's: firewalls, routes and NATs.

use std::{path::Path, sync::atomic::AtomicBool, time::Duration};

use punch_lab::{
    Kind,
    kernel::{COORDINATOR, Lab, Namespace, Program},
};
use serde_json::Value;

use super::{lab_is_possible, say};

const PUNCH: &str = env!("CARGO_BIN_EXE_punch");
/// Only what hangs is waited for so long.
const PATIENCE: Duration = Duration::from_secs(180);
const PEER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

fn start(namespace: &Namespace, arguments: &[&str]) -> Program {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Program::start(namespace, Path::new(PUNCH), &arguments, PATIENCE).expect("punch can be run")
}

/// Waits for an event, and returns it.
fn wait_for(program: &mut Program, event: &str) -> Value {
    let found =
        program.wait_for(&AtomicBool::new(false), |line| (line["event"] == event).then(|| line.clone()));
    found.expect("lines of JSON").expect("the line comes before the end of the program")
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// Starts a coordinator at all its addresses, so that NATs are measured, and returns one of them.
fn coordinator(lab: &Lab, limits: &[&str]) -> (Program, String) {
    let addresses = COORDINATOR.map(|ip| [4001, 4002].map(|port| format!("/ip4/{ip}/udp/{port}/quic-v1")));
    let addresses: Vec<&str> = addresses.as_flattened().iter().map(String::as_str).collect();
    let mut program = start(&lab.wan, &[&["coordinator", "--listen"], &addresses[..], limits].concat());
    let mut first = None;
    for _ in 0..addresses.len() {
        let address = text(&wait_for(&mut program, "listening")["address"]);
        if address.starts_with(addresses[0]) {
            first = Some(address);
        }
    }
    (program, first.expect("the coordinator listens at its first address"))
}

/// Adds a chain of a firewall with one rule.
fn firewall(namespace: &Namespace, hook: &str, rule: &str) {
    let rules = format!(
        "add table ip doctor; add chain ip doctor c {{ type filter hook {hook} priority -300; }}; \
         add rule ip doctor c {rule}"
    );
    let status = namespace.command("nft").arg(rules).status().expect("nft can be run");
    assert!(status.success(), "{rule}");
}

/// Checks the verdict of the doctor at the first site.
fn finds(lab: &Lab, peer: &str, coordinator: &str, code: &str) {
    let host = &lab.sites[0].host;
    let mut doctor = start(host, &["doctor", peer, "--bootstrap", coordinator]);
    let mut findings = Vec::new();
    let verdict = doctor.wait_for(&AtomicBool::new(false), |line| {
        findings.push(line.to_string());
        (line["event"] == "verdict").then(|| line.clone())
    });
    let verdict = verdict.expect("lines of JSON").expect("there is a verdict");
    assert_eq!(verdict["code"], code, "{}", findings.join("\n"));
    say(&format!("doctor: {}", text(&verdict["message"])));
}

#[test]
fn the_doctor_finds_firewalls_between_a_peer_and_its_coordinator() {
    if !lab_is_possible() {
        return;
    }
    for (at_home, hook, rule, code) in [
        (false, "prerouting", "iifname site1 ip protocol udp drop", "udp-blocked"),
        (false, "prerouting", "iifname site1 drop", "coordinator-silent"),
        (true, "output", "ip protocol udp drop", "udp-forbidden-here"),
    ] {
        // A box of the lab translates no TCP.
        let lab = Lab::new([Kind::Public, Kind::Public]).expect("a lab");
        let (_coordinator, address) = coordinator(&lab, &[]);
        firewall(if at_home { &lab.sites[0].host } else { &lab.wan }, hook, rule);
        finds(&lab, PEER, &address, code);
    }
}

#[test]
fn the_doctor_finds_that_a_host_has_no_route() {
    if !lab_is_possible() {
        return;
    }
    let lab = Lab::new([Kind::EimApdf, Kind::Public]).expect("a lab");
    let (_coordinator, address) = coordinator(&lab, &[]);
    lab.sites[0].host.ip("route del default").expect("there is a route");
    finds(&lab, PEER, &address, "no-route");
    lab.sites[0].host.ip("addr flush dev wan").expect("there is an interface");
    finds(&lab, PEER, &address, "no-network");
}

#[test]
fn the_doctor_finds_that_two_random_nats_need_a_relay() {
    if !lab_is_possible() {
        return;
    }
    let lab = Lab::new([Kind::ApdmRandom, Kind::ApdmRandom]).expect("a lab");
    let (_coordinator, address) = coordinator(&lab, &["--relay-reservations", "0"]);
    let mut listener = start(&lab.sites[1].host, &["listen", "--coordinator", &address]);
    let listening = text(&wait_for(&mut listener, "listening")["address"]);
    wait_for(&mut listener, "registered");
    let (_, peer) = listening.rsplit_once("/p2p/").expect("the address has a PeerId");
    finds(&lab, peer, &address, "hopeless");
}

#[test]
fn the_doctor_sees_a_pair_of_nats_opened() {
    if !lab_is_possible() {
        return;
    }
    let lab = Lab::new([Kind::EimApdf, Kind::EimApdf]).expect("a lab");
    let (_coordinator, address) = coordinator(&lab, &[]);
    let mut listener = start(&lab.sites[1].host, &["listen", "--coordinator", &address]);
    let listening = text(&wait_for(&mut listener, "listening")["address"]);
    wait_for(&mut listener, "registered");
    let (_, peer) = listening.rsplit_once("/p2p/").expect("the address has a PeerId");
    finds(&lab, peer, &address, "direct");
}
