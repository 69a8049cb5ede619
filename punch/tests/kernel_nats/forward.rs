//! `punch forward` between two NATs: a service of one host is a local port of the other.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::atomic::AtomicBool,
    thread,
    time::Duration,
};

use punch_lab::{
    Kind,
    kernel::{COORDINATOR, Lab, Program},
};
use serde_json::Value;

use super::{lab_is_possible, say};

const PUNCH: &str = env!("CARGO_BIN_EXE_punch");
/// Only what hangs is waited for so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Length of what goes in each direction.
const LEN: usize = 16 << 20;

fn start(lab: &Lab, at: Option<usize>, arguments: &[&str]) -> Program {
    let namespace = at.map_or(&lab.wan, |site| &lab.sites[site].host);
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Program::start(namespace, Path::new(PUNCH), &arguments, PATIENCE).expect("punch can be run")
}

/// Waits for an event, and returns one of its fields.
fn wait_for(program: &mut Program, event: &str, key: &str) -> String {
    let choose = |line: &Value| (line["event"] == event).then(|| line[key].as_str().unwrap_or("").to_owned());
    let chosen = program.wait_for(&AtomicBool::new(false), choose);
    chosen.expect("lines of JSON").expect("the line comes before the end of the program")
}

#[test]
fn a_service_behind_one_nat_is_a_local_port_behind_another() {
    if !lab_is_possible() {
        return;
    }
    let lab = Lab::new([Kind::EimApdf, Kind::EimApdf]).expect("a lab");
    let [client, server] = [&lab.sites[1].host, &lab.sites[0].host];
    let service =
        server.inside(|| TcpListener::bind(("127.0.0.1", 0))).expect("a namespace").expect("a port");
    let target = service.local_addr().expect("it is bound").to_string();
    let echo = thread::spawn(move || {
        let (mut connection, _) = service.accept().expect("a connection");
        let mut received = Vec::new();
        // All of it, until the program on the other side has ended its direction.
        connection.read_to_end(&mut received).expect("the whole arrives");
        connection.write_all(&received).expect("the way back is open");
    });

    let listen = format!("/ip4/{}/udp/4001/quic-v1", COORDINATOR[0]);
    let mut coordinator = start(&lab, None, &["coordinator", "--listen", &listen]);
    let coordinator = wait_for(&mut coordinator, "listening", "address");
    let arguments = ["forward", "--allow", &target, "--bootstrap", &coordinator];
    let mut serving = start(&lab, Some(0), &arguments);
    let ticket = wait_for(&mut serving, "ticket", "ticket");
    let mut forwarding = start(&lab, Some(1), &["forward", &ticket, &format!("0:{target}")]);
    assert_eq!(wait_for(&mut forwarding, "connected", "path"), "direct");
    let local: SocketAddr = wait_for(&mut forwarding, "listening", "address").parse().expect("an address");

    let sent: Vec<u8> = (0..LEN).map(|at| (at / 251 + at * 7) as u8).collect();
    let mut program =
        client.inside(|| TcpStream::connect(local)).expect("a namespace").expect("a connection");
    let mut writer = program.try_clone().expect("a second handle");
    let received = thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).expect("it is taken");
            writer.shutdown(Shutdown::Write).expect("the direction ends");
        });
        let mut received = Vec::new();
        program.read_to_end(&mut received).expect("the echo arrives");
        received
    });
    assert!(received == sent, "{} of {LEN} bytes came back", received.len());
    echo.join().expect("the service ends well");
    say(&format!("{LEN} bytes went through a forwarded port and back"));

    // The peer goes away: the next local connection breaks, and nothing waits for ever.
    drop(serving);
    let mut late = client.inside(|| TcpStream::connect(local)).expect("a namespace").expect("a connection");
    assert!(late.read(&mut [0]).map_or(true, |len| len == 0), "nobody answers any more");
}
