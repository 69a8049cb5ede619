//! Floods of requests at one responder, through its one coordinator.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use libp2p_identity::PeerId;
use libp2p_punch_proto::{ControlStreamId, command::Command};

use crate::{
    harness::{SOCKET, at, ms},
    third_parties::{Attacker, Scene},
};

const IDENTITIES: u32 = 1_000;
/// 111 requests in a second.
const INTERVAL: Duration = Duration::from_millis(9);
const NEWCOMERS: u32 = 49;

/// A flood at a responder.
struct Flood {
    scene: Scene,
    sent: u32,
    /// Returns the identity of the request of a number, and the address that the coordinator sees.
    origin: fn(u32) -> (u32, String),
}

impl Flood {
    fn new(origin: fn(u32) -> (u32, String)) -> Self {
        Self { scene: Scene::new(), sent: 0, origin }
    }

    fn run_for(&mut self, time: Duration) {
        for _ in 0..time.as_nanos() / INTERVAL.as_nanos() {
            let (identity, observed) = (self.origin)(self.sent);
            self.ask(identity, self.sent, &observed);
            self.sent += 1;
            self.scene.world.run_for(INTERVAL);
        }
    }

    fn ask(&mut self, identity: u32, session: u32, observed: &str) {
        let target: SocketAddr = at(observed);
        let request = Attacker::new(identity).request(&self.scene, session, &[target], observed);
        self.scene.take(request);
    }

    /// Lets newcomers ask during the flood, each once and from a network of its own; how many were
    /// heard.
    fn newcomers_heard(&mut self) -> usize {
        self.run_for(ms(9_000));
        let newcomers = 1_000_000..1_000_000 + NEWCOMERS;
        for newcomer in newcomers.clone() {
            self.run_for(ms(100));
            self.ask(newcomer, newcomer, &format!("80.1.{}.1:4001", newcomer % 1_000));
        }
        let heard = self.heard();
        newcomers.filter(|number| heard.contains(&peer(*number))).count()
    }

    /// Returns the peers whose request was taken.
    fn heard(&self) -> BTreeSet<PeerId> {
        let commands = &self.scene.world.nodes[self.scene.victim].commands;
        let accepted = commands.iter().filter_map(|(_, command)| match command {
            Command::Accept { peer, .. } => Some(*peer),
            _ => None,
        });
        accepted.collect()
    }
}

fn peer(identity: u32) -> PeerId {
    Attacker::new(identity).keypair.public().to_peer_id()
}

#[test]
fn a_thousand_identities_of_one_network_leave_every_newcomer_heard() {
    let mut flood = Flood::new(|n| (n % IDENTITIES, format!("45.1.1.{}:4001", n % 250)));
    let heard = flood.newcomers_heard();
    println!(
        "{IDENTITIES} identities of one /24 ask 111 times in a second: {heard} of {NEWCOMERS} newcomers were heard"
    );
    assert_eq!(heard, NEWCOMERS as usize);
}

#[test]
fn a_thousand_identities_of_fifty_networks_leave_every_newcomer_heard() {
    let mut flood = Flood::new(|n| (n % IDENTITIES, format!("45.1.{}.1:4001", n % 50)));
    let heard = flood.newcomers_heard();
    println!("{IDENTITIES} identities of 50 networks: {heard} of {NEWCOMERS} newcomers were heard");
    assert_eq!(heard, NEWCOMERS as usize);
}

#[test]
fn identities_that_are_used_once_leave_newcomers_of_other_networks_heard() {
    let mut flood = Flood::new(|n| (n, format!("45.1.{}.1:4001", n % 50)));
    let heard = flood.newcomers_heard();
    println!("a new identity for every request, of 50 networks: {heard} of {NEWCOMERS} newcomers were heard");
    assert_eq!(heard, NEWCOMERS as usize);
}

#[test]
fn a_peer_that_was_connected_before_is_heard_whatever_strangers_ask() {
    // Identities and networks without end: nothing distinguishes these from newcomers.
    let mut flood = Flood::new(|n| (n, format!("{}.{}.{}.1:4001", 45 + n / 65_536, n / 256 % 256, n % 256)));
    let friend = 2_000_000;
    let (link, remote) = (ControlStreamId(999), Some(at("80.1.1.1:4001")));
    flood.scene.world.input(flood.scene.victim, |endpoint, now| {
        endpoint.handle_link_up(link, peer(friend), remote, Some(SOCKET), now);
        endpoint.handle_link_down(link, now);
    });
    flood.run_for(ms(9_000));
    // Twice as fast: not a token is left.
    for _ in 0..200 {
        flood.run_for(INTERVAL);
        flood.ask(3_000_000 + flood.sent, flood.sent, "80.9.9.9:4001");
    }
    let stranger = 2_000_001;
    let ask = |flood: &mut Flood, identity| {
        flood.ask(identity, identity, "80.1.1.1:4001");
        flood.heard().contains(&peer(identity))
    };
    // Uses up the tokens that have accumulated since the last request.
    (0..100).for_each(|n| flood.ask(4_000_000 + n, n, &format!("90.1.{n}.1:4001")));
    let heard = (ask(&mut flood, stranger), ask(&mut flood, friend));
    println!("a stranger was heard: {}, a peer that was connected before: {}", heard.0, heard.1);
    assert_eq!(heard, (false, true));
}
