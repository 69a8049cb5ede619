//! Attackers that aim datagrams of a peer at a third party: at a victim on the Internet, or into
//! the peer's own network.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use libp2p_identity::Keypair;
use libp2p_punch_proto::{
    ControlStreamId, SessionId, SocketId,
    candidate::{Candidate, CandidateKind, priority},
    command::Command,
    wire::{
        frame::{Frame, ObserverOffer, PunchMeNow, PunchRequest, encode},
        keys::ProbeSecret,
        probe::PROBE_LEN,
    },
};

use crate::harness::{World, at, client, ms, server};

/// IPv4 and UDP headers.
const HEADERS: usize = 28;

/// A peer that signs any request.
pub(crate) struct Attacker {
    pub(crate) keypair: Keypair,
    secret: ProbeSecret,
}

impl Attacker {
    pub(crate) fn new(number: u32) -> Self {
        let mut seed = [200; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        Self { keypair: Keypair::ed25519_from_bytes(seed).unwrap(), secret: ProbeSecret::new([7; 32]) }
    }

    /// A request that names these addresses, as the coordinator passes it on. Its first flight is
    /// as small as can be.
    pub(crate) fn request(
        &self,
        scene: &Scene,
        session: u32,
        addresses: &[SocketAddr],
        observed: &str,
    ) -> Frame {
        let candidate = |(sequence, address): (u64, &SocketAddr)| {
            let kind = CandidateKind::Host;
            Candidate { sequence, kind, priority: priority(kind, address.ip()), address: *address }
        };
        let mut name = [0; 16];
        name[..4].copy_from_slice(&session.to_be_bytes());
        let request = PunchRequest {
            session: SessionId(name),
            round: 0,
            initiator: self.keypair.public().encode_protobuf().into(),
            responder: scene.world.nodes[scene.victim].peer,
            lifetime: ms(5000),
            probe_key: self.secret.public(),
            candidates: (0..).zip(addresses).map(candidate).collect(),
            nat: Bytes::new(),
            first_flight: vec![Bytes::from_static(&[0xc0; 8])],
        };
        let signature = request.sign(&self.keypair).unwrap();
        let observed = Some(at(observed));
        Frame::PunchMeNow(Box::new(PunchMeNow { request, signature, observed }))
    }
}

/// A responder behind a NAT, at 203.0.113.2, and its coordinator.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) victim: usize,
    /// The responder's link to its coordinator.
    link: ControlStreamId,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let mut world = World::new();
        let coordinator = world.add(&server(), "198.51.100.1", None);
        let victim = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
        let (link, _) = world.coordinate(victim, coordinator);
        world.run_for(ms(1000));
        world.nodes[victim].probes.clear();
        world.nodes[victim].commands.clear();
        Self { world, victim, link }
    }

    pub(crate) fn take(&mut self, request: Frame) -> usize {
        let mut bytes = BytesMut::new();
        encode(&request, &mut bytes);
        let link = self.link;
        self.world.input(self.victim, |endpoint, now| endpoint.handle_frame(link, request, now));
        bytes.len()
    }

    /// Probes that the responder sent, by IP address.
    fn probes(&self) -> BTreeMap<IpAddr, usize> {
        let mut all = BTreeMap::new();
        for (_, path) in &self.world.nodes[self.victim].probes {
            *all.entry(path.remote.ip()).or_default() += 1;
        }
        all
    }
}

#[test]
fn a_request_leads_to_at_most_three_times_its_bytes_at_one_host() {
    let mut scene = Scene::new();
    let host: Vec<_> = (1..=8).map(|port| at(&format!("192.0.2.66:{}", 4000 + port))).collect();
    let request = Attacker::new(1).request(&scene, 1, &host, "192.0.2.66:5000");
    let asked = scene.take(request);
    scene.world.run_for(ms(60_000));
    let probes = scene.probes()[&host[0].ip()];
    let (payload, wire) = (probes * PROBE_LEN, probes * (PROBE_LEN + HEADERS));
    println!(
        "{asked} bytes asked for {probes} probes at one host: x{:.1}, on the wire x{:.1}",
        payload as f64 / asked as f64,
        wire as f64 / asked as f64
    );
    assert!(payload <= 3 * asked);
    assert!(probes > 0);
}

/// One request of every identity, a hundred of them in a second, as fast as one coordinator may
/// forward them.
fn flood(scene: &mut Scene, identities: u32, addresses: impl Fn(u32) -> Vec<SocketAddr>) -> Duration {
    let begin = scene.world.elapsed();
    for number in 0..identities {
        let addresses = addresses(number);
        let observed = addresses[0].to_string();
        let request = Attacker::new(number).request(scene, number, &addresses, &observed);
        scene.take(request);
        scene.world.run_for(ms(10));
    }
    scene.world.run_for(ms(30_000));
    scene.world.elapsed() - begin - ms(30_000)
}

#[test]
fn a_thousand_identities_reach_one_host_with_128_probes_and_20_in_a_second() {
    let mut scene = Scene::new();
    let port = |number: u32| u16::try_from(2_000 + number).unwrap();
    let host: IpAddr = "192.0.2.66".parse().unwrap();
    flood(&mut scene, 1_000, |number| vec![SocketAddr::new(host, port(number))]);
    let all = &scene.world.nodes[scene.victim].probes;
    let sent: Vec<_> = all.iter().filter(|(_, path)| path.remote.ip() == host).map(|(at, _)| *at).collect();
    let lasted = (sent[sent.len() - 1] - sent[0]).as_secs_f64();
    println!(
        "{} probes at one host in {lasted:.1} s, {:.0} in a second",
        sent.len(),
        sent.len() as f64 / lasted
    );
    assert!(sent.len() as f64 <= 128.0 + 20.0 * lasted + 1.0);
}

#[test]
fn a_thousand_identities_get_a_thousand_probes_in_a_second_out_of_one_responder() {
    let mut scene = Scene::new();
    let address = |number: u32, n: u32| {
        SocketAddr::from(([192, 1, (number >> 5) as u8, ((number & 31) << 3 | n) as u8], 4001))
    };
    let lasted = flood(&mut scene, 1_000, |number| (0..8).map(|n| address(number, n)).collect());
    let all = &scene.world.nodes[scene.victim].probes;
    let in_second = |first: usize| {
        let end = all[first].0 + ms(1000);
        all[first..].iter().take_while(|(at, _)| *at < end).count()
    };
    let busiest = (0..all.len()).step_by(50).map(in_second).max().unwrap();
    println!("{} probes while requests came for {lasted:?}, at most {busiest} in a second", all.len());
    assert!(busiest <= 2_000 + 1_000);
    let span = (all[all.len() - 1].0 - all[0].0).as_secs_f64();
    assert!(all.len() as f64 <= 2_000.0 + 1_000.0 * span + 1.0);
}

#[test]
fn a_coordinator_that_lies_aims_128_server_flights_and_60_in_a_minute() {
    let mut scene = Scene::new();
    let address = |number: u32| SocketAddr::from(([192, 1, (number >> 8) as u8, number as u8], 4001));
    let lasted = flood(&mut scene, 1_000, |number| vec![address(number)]);
    let permits = scene.world.nodes[scene.victim].commands.iter().filter_map(|(_, command)| match command {
        Command::Permit { budget, .. } => Some(*budget),
        _ => None,
    });
    let flights: Vec<_> = permits.collect();
    println!("{} server flights on the word of one coordinator in {lasted:?}", flights.len());
    assert!(flights.len() as f64 <= 128.0 + lasted.as_secs_f64() + 1.0);
    assert!(flights.iter().all(|budget| *budget == 3 * 8), "three times the first flight");
}

#[test]
fn an_honest_initiator_gives_its_place_among_the_unproven_flights_back() {
    let mut world = World::new();
    let coordinator = world.add(&server(), "198.51.100.1", None);
    let initiator = world.add(&client(), "192.168.1.2", Some("203.0.113.1"));
    let responder = world.add(&client(), "192.168.2.2", Some("203.0.113.2"));
    for node in [initiator, responder] {
        world.coordinate(node, coordinator);
    }
    world.run_for(ms(1000));
    // Longer than the burst and the refill: 128 and one a second.
    for round in 0..450 {
        world.nodes.iter_mut().for_each(|node| node.commands.clear());
        world.connect(initiator, responder).unwrap();
        world.run_for(ms(600));
        let is_permit = |(_, command): &(Duration, Command)| matches!(command, Command::Permit { .. });
        assert!(world.nodes[responder].commands.iter().any(is_permit), "round {round}");
        for node in [initiator, responder] {
            let flow = world.nodes[node].commands.iter().rev().find_map(|(_, command)| match command {
                Command::Connect { flow, .. } | Command::Accept { flow, .. } => Some(*flow),
                _ => None,
            });
            world.input(node, |endpoint, now| endpoint.handle_closed(flow.unwrap(), now));
        }
    }
}

/// Addresses of services in private networks and on the machines of clouds, and ways around that.
const INSIDE: [&str; 9] = [
    "10.0.0.1:53",
    "169.254.169.254:80",
    "172.17.0.2:6379",
    "192.168.3.1:80",
    "100.64.0.1:4001",
    "198.18.0.1:4001",
    "[64:ff9b::10.0.0.1]:4001",
    "[2002:a00:1::1]:4001",
    "203.0.113.2:5353",
];

#[test]
fn a_stranger_who_gives_its_own_address_for_ours_gets_nothing_in_our_network_probed() {
    let mut scene = Scene::new();
    let stranger = scene.world.add(&client(), "192.0.2.66", None);
    let (_, to_victim) = scene.world.link(scene.victim, stranger);
    let address = at("192.0.2.66:4001");
    let lie = Frame::ObservedAddress { sequence: 1_000, address };
    let link = scene.world.nodes[stranger].links[&to_victim].1;
    scene.world.input(scene.victim, |endpoint, now| endpoint.handle_frame(link, lie, now));
    let inside = INSIDE.map(at);
    let request = Attacker::new(1).request(&scene, 1, &inside, "192.0.2.66:4001");
    scene.take(request);
    scene.world.run_for(ms(20_000));
    println!("probed: {:?}", scene.probes());
    assert!(inside.iter().all(|target| !scene.probes().contains_key(&target.ip())));
    assert!(scene.probes().contains_key(&address.ip()), "the stranger itself");
}

#[test]
fn one_coordinator_alone_gets_nothing_probed_beyond_our_own_link() {
    let mut scene = Scene::new();
    let mut targets = INSIDE.map(at).to_vec();
    targets.truncate(8);
    targets.push(at("192.168.2.1:80"));
    let request = Attacker::new(1).request(&scene, 1, &targets, "203.0.113.2:4001");
    scene.take(request);
    scene.world.run_for(ms(20_000));
    println!("probed: {:?}", scene.probes());
    assert!(targets.iter().all(|target| !scene.probes().contains_key(&target.ip())));
}

#[test]
fn a_request_that_names_a_host_of_the_other_family_gets_it_three_times_its_bytes_with_the_server_flight() {
    let mut scene = dual_stack();
    let third = at("[2001:db8:66::66]:4001");
    let mut request = Attacker::new(1).request(&scene, 1, &[third], "192.0.2.66:5000");
    if let Frame::PunchMeNow(punch) = &mut request {
        punch.request.first_flight = vec![Bytes::from(vec![0xc0; 1200])];
        punch.signature = punch.request.sign(&Attacker::new(1).keypair).unwrap();
    }
    let asked = scene.take(request);
    scene.world.run_for(ms(60_000));
    let flights: usize = scene.world.nodes[scene.victim]
        .commands
        .iter()
        .filter_map(|(_, command)| match command {
            Command::Permit { path, budget, .. } if path.remote == third => Some(*budget),
            _ => None,
        })
        .sum();
    let probes = scene.probes()[&third.ip()] * PROBE_LEN;
    println!("a request of {asked} bytes: a flight of at most {flights}, and {probes} bytes of probes");
    assert!(flights > 0 && flights + probes <= 3 * asked, "{flights} and {probes} for {asked}");
}

#[test]
fn a_thousand_requests_that_name_one_host_of_the_other_family_get_two_flights_and_one_in_four_seconds() {
    let mut scene = dual_stack();
    let third = at("[2001:db8:66::66]:4001");
    for n in 0..1_000 {
        let attacker = Attacker::new(n);
        let mut request = attacker.request(&scene, n, &[third], "192.0.2.66:5000");
        if let Frame::PunchMeNow(punch) = &mut request {
            punch.request.first_flight = vec![Bytes::from(vec![0xc0; 1200])];
            punch.signature = punch.request.sign(&attacker.keypair).unwrap();
        }
        scene.take(request);
        scene.world.run_for(ms(20));
    }
    let is_flight =
        |command: &Command| matches!(command, Command::Permit { path, .. } if path.remote == third);
    let flights = scene.world.nodes[scene.victim].commands.iter().filter(|(_, c)| is_flight(c)).count();
    println!("1,000 requests in 20 s: {flights} flights, {:?} probes", scene.probes()[&third.ip()]);
    assert!((1..=7).contains(&flights), "{flights}");
}

/// A coordinator names an observer at this address.
fn observer_at(ip: &str, ports: &[u16]) -> Frame {
    let offer = ObserverOffer { ports: ports.to_vec(), token: [1; 8], key: [2; 32] };
    Frame::ObserverAt { ip: ip.parse().unwrap(), offer }
}

/// A responder that also listens on IPv6.
fn dual_stack() -> Scene {
    let mut scene = Scene::new();
    let socket = SocketId(77);
    scene.world.input(scene.victim, |endpoint, now| {
        endpoint.handle_interface_up("2001:db8::2".parse().unwrap(), 64, now);
        endpoint.handle_interface_up("fd00::2".parse().unwrap(), 64, now);
        endpoint.handle_socket_up(socket, at("[::]:4001"), true, now);
    });
    scene
}

#[test]
fn a_coordinator_that_names_observers_elsewhere_aims_135_small_datagrams_in_a_minute() {
    let mut scene = dual_stack();
    let third: IpAddr = "2001:db8:66::66".parse().unwrap();
    for _ in 0..20 {
        scene.take(observer_at("2001:db8:66::66", &[4001, 4002, 4003, 4004]));
        scene.world.run_for(ms(3_000));
    }
    let sent = scene.probes()[&third];
    println!("20 offers in a minute: {sent} datagrams, {} bytes", sent * PROBE_LEN);
    // Nine offers count. The fourth port of each is not asked in the first round.
    assert!((100..=135).contains(&sent), "{sent}");
    scene.world.nodes[scene.victim].probes.clear();
    scene.world.run_for(ms(60_000));
    assert_eq!(scene.probes().get(&third), None, "it never answered, and is asked no more");
}

#[test]
fn no_observer_is_asked_in_our_own_network_or_at_the_port_of_a_service() {
    for (ip, port) in [
        ("fd00::1", 4001),
        ("fd77::1", 4001),
        ("fe80::1", 4001),
        ("::1", 4001),
        ("2001:db8::2", 4001),
        ("64:ff9b::a00:1", 4001),
        ("2001:db8:66::66", 53),
        // The family of the connection: OBSERVER is for that, and names no address.
        ("192.0.2.66", 4001),
    ] {
        let mut scene = dual_stack();
        let refused = scene.world.nodes[scene.victim].endpoint.counters().frames_refused;
        scene.take(observer_at(ip, &[port]));
        scene.world.run_for(ms(10_000));
        assert_eq!(scene.probes().get(&ip.parse::<IpAddr>().unwrap()), None, "{ip}");
        assert_eq!(scene.world.nodes[scene.victim].endpoint.counters().frames_refused, refused + 1, "{ip}");
    }
}
