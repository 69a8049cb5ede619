//! A host gets another address while a connection is in use.

use std::{
    path::Path,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use punch_lab::{
    Kind,
    kernel::{COORDINATOR, Lab, Program},
};

use super::{lab_is_possible, say};

const PUNCH: &str = env!("CARGO_BIN_EXE_punch");
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds for which the connection is used.
const WATCH: &str = "4";
/// The echo in which the address changes.
const MIDDLE: usize = 10;
/// Much more than the processes and the kernel take; without the move the connection would be given
/// up after two seconds.
const STALL: Duration = Duration::from_millis(1_500);

fn start(lab: &Lab, at: Option<usize>, arguments: &[&str]) -> Program {
    let namespace = at.map_or(&lab.wan, |site| &lab.sites[site].host);
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Program::start(namespace, Path::new(PUNCH), &arguments, PATIENCE).expect("punch can be run")
}

/// Waits for an event of this kind and returns its value of `key`.
fn wait_for(program: &mut Program, event: &str, key: &str) -> String {
    let text = program.wait_for(&AtomicBool::new(false), |line| {
        (line["event"] == event).then(|| line[key].as_str().map(str::to_owned)).flatten()
    });
    text.expect("lines of JSON").unwrap_or_else(|| panic!("no {event}"))
}

/// The longest time between two echoes, after the host of this site got another address in the
/// middle of them.
fn move_host(kinds: [Kind; 2], site: usize) -> Duration {
    let lab = Lab::new(kinds).expect("a lab");
    let listen = format!("/ip4/{}/udp/4001/quic-v1", COORDINATOR[0]);
    let mut coordinator = start(&lab, None, &["coordinator", "--listen", &listen]);
    let coordinator = wait_for(&mut coordinator, "listening", "address");
    let mut listener = start(&lab, Some(1), &["listen", "--coordinator", &coordinator]);
    let address = wait_for(&mut listener, "listening", "address");
    let (_, peer) = address.rsplit_once("/p2p/").expect("a peer ID");
    wait_for(&mut listener, "registered", "coordinator");
    let mut dialer = start(&lab, Some(0), &["dial", peer, "--coordinator", &coordinator, "--watch", WATCH]);
    let (mut echoes, mut connections, mut longest, mut last) = (0, 0, Duration::ZERO, Instant::now());
    let ended = dialer.wait_for(&AtomicBool::new(false), |line| {
        connections += usize::from(line["event"] == "connected");
        assert_ne!(line["event"], "failed", "{line}");
        if line["event"] == "echo" {
            longest = longest.max(if echoes > 0 { last.elapsed() } else { Duration::ZERO });
            (echoes, last) = (echoes + 1, Instant::now());
            if echoes == MIDDLE {
                let net = format!("192.168.{}", site + 1);
                let commands = format!(
                    "addr del {net}.2/24 dev wan\naddr add {net}.77/24 dev wan\nroute add default via {net}.1"
                );
                lab.sites[site].host.ip(&commands).expect("the address changes");
            }
        }
        None::<()>
    });
    assert_eq!(ended.expect("lines of JSON"), None);
    assert_eq!(connections, 1, "still the same connection");
    assert!(echoes > 2 * MIDDLE, "{echoes} echoes");
    longest
}

#[test]
fn a_connection_between_two_nats_goes_on_when_either_host_gets_another_address() {
    if !lab_is_possible() {
        return;
    }
    for kinds in
        [[Kind::EimApdf, Kind::EimApdf], [Kind::EimApdf, Kind::EimEif], [Kind::EimEif, Kind::EimApdf]]
    {
        for site in [0, 1] {
            let longest = move_host(kinds, site);
            let who = ["dialer", "listener"][site];
            say(&format!("{} to {}: the {who} moved, the longest stall was {longest:?}", kinds[0], kinds[1]));
            assert!(longest <= STALL, "{longest:?}");
        }
    }
}
