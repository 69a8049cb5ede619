//! Early packets that a coordinator sends for its clients' tests, and where they go.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use libp2p_punch_proto::{
    ControlStreamId, Path, SocketId,
    command::{Command, Pool},
    nat::observer::provocation,
    wire::frame::{Frame, ObserverOffer},
};

use crate::harness::{World, at, client, ms, server};

/// The sockets of the coordinator's observers: the last one sends early packets.
const OBSERVERS: [(SocketId, u16); 4] =
    [(SocketId(900), 7001), (SocketId(901), 7002), (SocketId(902), 7003), (SocketId(903), 7004)];
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const EARLY: SocketId = SocketId(903);

/// A coordinator with observers, a client at 198.51.100.2:4001, and what the client was offered.
fn pair() -> (World, [usize; 2], ControlStreamId, ObserverOffer) {
    let mut world = World::new();
    let c = world.add(&server(), "203.0.113.1", None);
    let b = world.add(&client(), "192.168.1.2", Some("198.51.100.2"));
    let offered = Rc::new(RefCell::new(None));
    let seen = offered.clone();
    world.tamper = Some(Box::new(move |_, _, frame| {
        if let Frame::Observer(offer) = &frame {
            seen.replace(Some(offer.clone()));
        }
        vec![(Duration::ZERO, frame)]
    }));
    let (_, link) = world.coordinate(b, c);
    world.run_for(ms(500));
    world.input(c, |endpoint, now| endpoint.handle_sockets_opened(Pool::Observers(ANY), &OBSERVERS, now));
    world.run_for(ms(100));
    let offer = offered.take().expect("an offer");
    (world, [c, b], link, offer)
}

/// Returns the addresses to which early packets went.
fn early_packets(world: &World, c: usize) -> Vec<SocketAddr> {
    let sent = world.nodes[c].probes.iter().filter(|(_, path)| path.socket == EARLY);
    sent.map(|(_, path)| path.remote).collect()
}

/// A request for early packets arrives as from `remote`.
fn provoke(world: &mut World, c: usize, offer: &ObserverOffer, remote: &str, n: u8) {
    let path = Path { socket: SocketId(900), remote: at(remote) };
    let datagram = provocation(offer, [n; 8]);
    world.input(c, |endpoint, now| endpoint.handle_datagram(path, &datagram, now));
}

#[test]
fn early_packets_go_to_the_clients_own_address_and_never_to_the_port_of_its_connection() {
    let (mut world, [c, b], link, offer) = pair();
    assert_eq!(offer.ports, [7001, 7002, 7003, 7004]);
    assert!(early_packets(&world, c).is_empty(), "nobody has asked");
    let refused = world.nodes[c].endpoint.counters().probes_refused;
    provoke(&mut world, c, &offer, "198.51.100.2:4001", 1);
    provoke(&mut world, c, &offer, "198.51.100.3:6000", 2);
    assert!(early_packets(&world, c).is_empty());
    assert_eq!(world.nodes[c].endpoint.counters().probes_refused, refused + 2);
    provoke(&mut world, c, &offer, "198.51.100.2:6000", 3);
    assert_eq!(early_packets(&world, c), [at("198.51.100.2:6000"); 2]);
    // QUIC follows a client to another address before it has validated that.
    world.move_behind(b, "198.51.100.9");
    let (peer, moved) = (world.nodes[b].peer, Some(at("198.51.100.9:4001")));
    world.input(c, |endpoint, now| endpoint.handle_link_up(link, peer, moved, Some(SocketId(1)), now));
    provoke(&mut world, c, &offer, "198.51.100.9:6000", 4);
    assert_eq!(early_packets(&world, c).len(), 2);
    world.run_for(ms(4_000));
    provoke(&mut world, c, &offer, "198.51.100.9:6000", 5);
    assert_eq!(early_packets(&world, c)[2..], [at("198.51.100.9:6000"); 2]);
}

#[test]
fn a_client_gets_early_packets_eight_times_at_once_and_then_once_a_minute() {
    let (mut world, [c, _], _, offer) = pair();
    for n in 0..20 {
        provoke(&mut world, c, &offer, "198.51.100.2:6000", n);
    }
    assert_eq!(early_packets(&world, c).len(), 2 * 8);
    let caps = world.nodes[c].endpoint.counters().caps_hit;
    world.run_for(Duration::from_secs(60));
    (20..25).for_each(|n| provoke(&mut world, c, &offer, "198.51.100.2:6000", n));
    assert_eq!(early_packets(&world, c).len(), 2 * 9);
    assert_eq!(world.nodes[c].endpoint.counters().caps_hit, caps + 4);
}

#[test]
fn a_client_tests_with_a_socket_of_its_own_and_closes_it() {
    let (mut world, [_, b], _, _) = pair();
    let pool = |command: &Command| match command {
        Command::OpenSockets { pool: pool @ Pool::EarlyPackets(_), count: 1, .. } => Some(*pool),
        _ => None,
    };
    let opened: Vec<Pool> = world.nodes[b].commands.iter().filter_map(|(_, c)| pool(c)).collect();
    assert_eq!(opened.len(), 1);
    let socket = SocketId(700);
    world.input(b, |endpoint, now| endpoint.handle_sockets_opened(opened[0], &[(socket, 6000)], now));
    // The network here loses what other sockets than the first send.
    world.run_for(ms(10_000));
    let asked = |from: SocketId| {
        let probes = world.nodes[b].probes.iter().filter(move |(_, path)| path.socket == from);
        probes.map(|(_, path)| path.remote.port()).filter(|port| *port >= 7001)
    };
    assert_eq!(asked(socket).collect::<Vec<_>>(), [7001, 7002].repeat(4));
    assert!(asked(SocketId(1)).all(|port| port < 7004), "the port of QUIC is left alone");
    let closes = |command: &Command| matches!(command, Command::CloseSockets { pool, keep } if *pool == opened[0] && keep.is_empty());
    assert!(world.nodes[b].commands.iter().any(|(_, command)| closes(command)));
}
