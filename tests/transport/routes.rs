//! Sockets from which dials leave, on a host with several networks.

use std::{net::IpAddr, sync::Arc};

use libp2p_punch_sim::{Host, World};
use tokio::time::Instant;

use super::support::*;

/// One address in each of two networks, of both families.
const HERE: [&str; 4] = ["198.51.100.1", "203.0.113.1", "2001:db8:1::1", "2001:db8:2::1"];
/// Others in the same networks.
const THERE: [&str; 4] = ["198.51.100.9", "203.0.113.9", "2001:db8:1::9", "2001:db8:2::9"];

fn host(world: &World, addresses: &[&str]) -> Arc<Host> {
    let host = world.host();
    for address in addresses {
        world.attach(&host, address.parse::<IpAddr>().unwrap());
    }
    host
}

fn transport(host: &Arc<Host>) -> Transport {
    let keypair = Keypair::generate_ed25519();
    Transport::with_io(&keypair, Config::default(), host.clone(), libp2p_punch::io::Runtime::tokio()).unwrap()
}

fn at(address: &str, port: u16) -> Multiaddr {
    Multiaddr::from(address.parse::<IpAddr>().unwrap()).with(Protocol::Udp(port)).with(Protocol::QuicV1)
}

/// A peer that listens at all of its addresses.
async fn everywhere(world: &World) -> Transport {
    let mut transport = transport(&host(world, &THERE));
    for address in THERE {
        listen(&mut transport, &at(address, 4001).to_string()).await;
    }
    transport
}

/// Every order of four things.
fn orders() -> Vec<[usize; 4]> {
    let all = (0..256).map(|n: usize| [n & 3, (n >> 2) & 3, (n >> 4) & 3, n >> 6]);
    all.filter(|order| (0..4).all(|wanted| order.contains(&wanted))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_dial_leaves_through_the_listener_whose_interface_leads_there() {
    let world = World::new(1);
    let mut remote = everywhere(&world).await;
    let host = host(&world, &HERE);
    assert_eq!(orders().len(), 24);
    // Ports of their own, since the sockets of the last round are still closing.
    for (port, order) in (5000..).zip(orders()) {
        let mut dialer = transport(&host);
        for index in order {
            listen(&mut dialer, &at(HERE[index], port).to_string()).await;
        }
        for (here, there) in HERE.iter().zip(THERE) {
            let connected = connect(&mut remote, &mut dialer, at(there, 4001), PLAIN).await;
            assert_eq!(connected.send_back, at(here, port), "{order:?}");
            assert_eq!(connected.local, at(there, 4001));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_at_the_very_address_goes_before_a_wildcard_one() {
    let world = World::new(1);
    let mut remote = everywhere(&world).await;
    let host = host(&world, &HERE);
    for (port, wildcard_first) in [(5000, true), (6000, false)] {
        let mut dialer = transport(&host);
        let mut addresses = [at("0.0.0.0", port + 1), at(HERE[1], port)];
        if !wildcard_first {
            addresses.reverse();
        }
        for address in addresses {
            dialer.listen_on(ListenerId::next(), address).unwrap();
        }
        // Only the second network has a listener of its own; the first is left to the wildcard.
        for (there, expected) in [(THERE[0], at(HERE[0], port + 1)), (THERE[1], at(HERE[1], port))] {
            let connected = connect(&mut remote, &mut dialer, at(there, 4001), PLAIN).await;
            assert_eq!(connected.send_back, expected, "{wildcard_first}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_to_where_no_listener_leads_has_a_port_of_its_own() {
    let world = World::new(1);
    let mut remote = everywhere(&world).await;
    let mut dialer = transport(&host(&world, &HERE));
    listen(&mut dialer, &at(HERE[0], 4001).to_string()).await;
    let connected = connect(&mut remote, &mut dialer, at(THERE[1], 4001), PLAIN).await;
    let from = connected.send_back.to_string();
    assert!(from.starts_with("/ip4/203.0.113.1/udp/") && !from.contains("/4001/"), "{from}");
}

#[tokio::test(start_paused = true)]
async fn a_hole_is_opened_through_the_listener_whose_interface_leads_there() {
    let world = World::new(1);
    let here = host(&world, &HERE);
    for (ours, reversed) in [(5000, false), (6000, true)] {
        let mut opener = transport(&here);
        let mut order = [0, 1];
        if reversed {
            order.reverse();
        }
        for index in order {
            listen(&mut opener, &at(HERE[index], ours).to_string()).await;
        }
        for index in [0, 1] {
            let other = host(&world, &[["198.51.100.20", "203.0.113.20"][index]]);
            let port = 1 + u16::try_from(index).unwrap();
            let trap = other.socket((other.addresses()[0], port).into()).unwrap();
            let remote = at(&other.addresses()[0].to_string(), port).with(Protocol::P2p(PeerId::random()));
            let punch = tokio::spawn(opener.dial(remote, AS_LISTENER).unwrap());
            let opening = trap.receive().await;
            assert_eq!(opening.from, (HERE[index].parse::<IpAddr>().unwrap(), ours).into(), "{reversed}");
            punch.abort();
            drop(trap);
            other.interface_down(other.addresses()[0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn later_dials_take_another_listener_when_the_route_has_changed() {
    let world = World::new(1);
    let mut remote = everywhere(&world).await;
    let here = host(&world, &HERE[..2]);
    let mut dialer = transport(&here);
    for address in &HERE[..2] {
        listen(&mut dialer, &at(address, 4001).to_string()).await;
    }
    let before = connect(&mut remote, &mut dialer, at(THERE[1], 4001), PLAIN).await;
    assert_eq!(before.send_back, at(HERE[1], 4001));
    here.interface_down(HERE[1].parse::<IpAddr>().unwrap());
    assert!(matches!(next(&mut dialer).await, TransportEvent::AddressExpired { .. }));
    let begin = Instant::now();
    let after = connect(&mut remote, &mut dialer, at(THERE[1], 4001), PLAIN).await;
    assert_eq!(after.send_back, at(HERE[0], 4001));
    assert!(begin.elapsed() < Duration::from_millis(200), "at once: {:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dial_while_no_interface_is_up_waits_on_the_wildcard_listener_and_opens_no_other_socket() {
    let world = World::new(1);
    let mut remote = everywhere(&world).await;
    let host = host(&world, &HERE[..1]);
    let mut dialer = transport(&host);
    listen(&mut dialer, "/ip4/0.0.0.0/udp/5000/quic-v1").await;
    host.interface_down(HERE[0].parse::<IpAddr>().unwrap());
    let dial = tokio::spawn(dialer.dial(at(THERE[0], 4001), PLAIN).unwrap());
    drive(dialer);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.open_sockets(), 1);
    host.interface_up(HERE[0].parse::<IpAddr>().unwrap());
    let incoming = loop {
        if let Some(incoming) = next(&mut remote).await.into_incoming() {
            break incoming;
        }
    };
    assert_eq!(incoming.1, at(HERE[0], 5000));
    let (dialed, accepted) = future::join(dial, incoming.0).await;
    dialed.unwrap().unwrap();
    accepted.unwrap();
    assert_eq!(host.open_sockets(), 1);
}
