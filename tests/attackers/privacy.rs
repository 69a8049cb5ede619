//! Addresses that others learn.

use std::{cell::Cell, rc::Rc};

use libp2p_punch::config::HostCandidates;
use libp2p_punch_proto::wire::frame::Frame;
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt};

use crate::{
    harness::{self, client, ms, server},
    support::*,
};

/// The address of the peer in its own network.
const PRIVATE: &str = "192.168.2.2";

/// Returns the frames that name the private address of a peer, after another peer has dialed it.
fn frames_with_private_address(host_candidates: HostCandidates) -> (usize, usize) {
    let mut world = harness::World::new();
    let mut config = client();
    config.host_candidates = host_candidates;
    let a = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let b = world.add(&config, PRIVATE, Some("203.0.113.2"));
    let c = world.add(&server(), "198.51.100.1", None);
    let named = Rc::new(Cell::new(0));
    let count = named.clone();
    world.tamper = Some(Box::new(move |_, _, frame| {
        count.set(count.get() + usize::from(format!("{frame:?}").contains(PRIVATE)));
        vec![(ms(0), frame)]
    }));
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(1_000));
    world.connect(a, b).unwrap();
    world.run_for(ms(5_000));
    let connected = world.nodes[a].events.iter();
    let connected = connected
        .filter(|(_, event)| matches!(event, libp2p_punch_proto::event::Event::Connected { .. }))
        .count();
    (named.get(), connected)
}

#[test]
fn hidden_host_candidates_are_in_no_frame_that_leaves_the_peer() {
    let announced = frames_with_private_address(HostCandidates::Announced);
    let hidden = frames_with_private_address(HostCandidates::Hidden);
    println!(
        "frames with the private address: {} by default, {} with hidden host candidates",
        announced.0, hidden.0
    );
    assert!(announced.0 > 0, "the coordinator and the other peer learn it by default");
    assert_eq!(hidden, (0, 1), "and the peers connect without it");
}

/// Returns true if the answer of the coordinator to a peer at `outer` names the private address of
/// the other peer.
fn answer_names_private_address(outer: &str) -> bool {
    let mut world = harness::World::new();
    let a = world.add(&client(), "192.168.2.3", Some(outer));
    let b = world.add(&client(), PRIVATE, Some("203.0.113.2"));
    let c = world.add(&server(), "198.51.100.1", None);
    let named = Rc::new(Cell::new(None));
    let copy = named.clone();
    world.tamper = Some(Box::new(move |_, _, frame| {
        if let Frame::PunchAnswer(answer) = &frame {
            copy.set(Some(format!("{answer:?}").contains(PRIVATE)));
        }
        vec![(ms(0), frame)]
    }));
    world.coordinate(a, c);
    world.coordinate(b, c);
    world.run_for(ms(1_000));
    world.connect(a, b).unwrap();
    world.run_for(ms(1_000));
    let events = &world.nodes[a].events;
    assert!(
        events.iter().any(|(_, event)| matches!(event, libp2p_punch_proto::event::Event::Connected { .. }))
    );
    named.get().expect("an answer")
}

#[test]
fn a_stranger_learns_no_private_address_from_a_coordinator() {
    assert!(!answer_names_private_address("203.0.113.1"));
    assert!(answer_names_private_address("203.0.113.2"), "a neighbour does");
}

/// Collector of this crate's logs.
#[derive(Default, Clone)]
struct Log(Arc<Mutex<Vec<String>>>);

struct Fields<'a>(&'a mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {field}={value:?}"));
    }
}

impl<S: tracing::Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if event.metadata().target().starts_with("libp2p_punch") {
            let mut line = event.metadata().target().to_owned();
            event.record(&mut Fields(&mut line));
            self.0.lock().unwrap().push(line);
        }
    }
}

/// Returns true if a line names an IPv4 or IPv6 address, alone, with a port, or in a multiaddr.
fn names_an_address(line: &str) -> bool {
    let words = line.split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':'));
    words.map(|word| word.trim_matches(['.', ':'])).any(|word| {
        let is_v6 = word.contains("::") && word.parse::<IpAddr>().is_ok();
        let without_port = word.split(':').next().unwrap_or_default();
        is_v6 || without_port.parse::<std::net::Ipv4Addr>().is_ok()
    })
}

#[test]
fn addresses_are_found_in_lines() {
    for line in
        ["at=192.0.2.1:4001", "/ip4/192.0.2.1/udp/4001", "UDP socket at 0.0.0.0:0: no", "[2001:db8::1]:5"]
    {
        assert!(names_an_address(line), "{line}");
    }
    for line in ["libp2p_punch::transport::socket outage=1.5s", "attempt 3.5 of 4", "12D3KooW: 10:20"] {
        assert!(!names_an_address(line), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_address_is_logged_above_debug() {
    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(log.clone().with_filter(LevelFilter::INFO));
    let _default = tracing::subscriber::set_default(subscriber);
    let world = World::new(1);
    let mut config = Config::default();
    config.coordinators = vec![coordinator(&world)];
    let [dialer, responder] = [3, 2].map(|n| {
        let host = world.nat(Nat::default(), [198, 51, 100, n]).host([192, 168, n, 2]);
        (host.clone(), swarm(host, n, config.clone()))
    });
    let ((host, mut dialer), (_, mut responder)) = (dialer, responder);
    registered(&mut responder).await;
    registered(&mut dialer).await;
    let peer = run(responder);
    dialer.dial(peer).unwrap();
    until(&mut dialer, |event| {
        matches!(event, SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer).then_some(())
    })
    .await;
    // Faults are logged too: the system takes the sockets away, and does not give new ones at once.
    host.refuse_binds(io::ErrorKind::OutOfMemory, 3, false);
    host.kill_sockets();
    run(dialer);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let lines = log.0.lock().unwrap();
    println!("{} lines at info and above", lines.len());
    assert!(lines.iter().any(|line| line.contains("UDP socket failed")), "{lines:?}");
    let named: Vec<_> = lines.iter().filter(|line| names_an_address(line)).collect();
    assert!(named.is_empty(), "{named:?}");
}
