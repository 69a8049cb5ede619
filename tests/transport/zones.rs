//! Link-local addresses, which mean something in their zone only (RFC 4007).

use std::{io, net::IpAddr, sync::Arc};

use libp2p_punch::config::QuicConfig;
use libp2p_punch_sim::{Host, World};

use super::support::*;

const ANY: &str = "/ip6/::/udp/4001/quic-v1";
const HERE: &str = "/ip6zone/eth0/ip6/fe80::1/udp/4001/quic-v1";
const THERE: &str = "/ip6zone/eth0/ip6/fe80::2/udp/4001/quic-v1";

fn host(world: &World, addresses: &[&str]) -> Arc<Host> {
    let host = world.host();
    for address in addresses {
        world.attach(&host, address.parse::<IpAddr>().unwrap());
    }
    host
}

fn transport(host: &Arc<Host>, link_local: bool) -> Transport {
    let mut config = Config::default();
    config.quic = {
        let mut quic = QuicConfig::default();
        quic.link_local = link_local;
        quic
    };
    let keypair = Keypair::generate_ed25519();
    Transport::with_io(&keypair, config, host.clone(), libp2p_punch::io::Runtime::tokio()).unwrap()
}

/// Returns the addresses that a wildcard listener announces, until it is idle.
fn announced(transport: &mut Transport) -> Vec<String> {
    let events = std::iter::from_fn(|| next(transport).now_or_never());
    events.map(|event| event.into_new_address().unwrap().to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_wildcard_announces_no_link_local_address_unless_asked_to() {
    let world = World::new(1);
    for (number, link_local) in [(1, false), (2, true)] {
        let [global, local] = ["2001:db8::", "fe80::"].map(|prefix| format!("{prefix}{number}"));
        let mut transport = transport(&host(&world, &[&global, &local]), link_local);
        transport.listen_on(ListenerId::next(), ANY.parse().unwrap()).unwrap();
        let mut expected = vec![format!("/ip6/{global}/udp/4001/quic-v1")];
        if link_local {
            expected.push(format!("/ip6/{local}/udp/4001/quic-v1"));
        }
        assert_eq!(announced(&mut transport), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_local_address_that_comes_and_goes_is_no_news_to_a_wildcard() {
    let world = World::new(1);
    let here = host(&world, &["2001:db8::1"]);
    let mut transport = transport(&here, false);
    listen(&mut transport, ANY).await;
    world.attach(&here, "fe80::1".parse::<IpAddr>().unwrap());
    here.interface_down("fe80::1".parse::<IpAddr>().unwrap());
    assert!(next(&mut transport).now_or_never().is_none());
    // Other addresses are.
    here.interface_down("2001:db8::1".parse::<IpAddr>().unwrap());
    assert!(matches!(next(&mut transport).await, TransportEvent::AddressExpired { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_ipv4_address_of_its_link_needs_no_zone_and_is_announced() {
    let world = World::new(1);
    let mut transport = transport(&host(&world, &["169.254.0.1"]), false);
    let address = listen(&mut transport, "/ip4/0.0.0.0/udp/4001/quic-v1").await;
    assert_eq!(address.to_string(), "/ip4/169.254.0.1/udp/4001/quic-v1");
}

#[tokio::test(start_paused = true)]
async fn peers_on_one_link_meet_at_addresses_with_zones() {
    let world = World::new(1);
    // An explicit listener on that address needs no switch.
    let mut listener = transport(&host(&world, &["fe80::2", "2001:db8::2"]), false);
    let address = listen(&mut listener, THERE).await;
    assert_eq!(address.to_string(), THERE);
    let mut dialer = transport(&host(&world, &["fe80::1", "2001:db8::1"]), false);
    let connected = connect(&mut listener, &mut dialer, address.clone(), PLAIN).await;
    assert_eq!(connected.local.to_string(), THERE);
    assert!(connected.send_back.to_string().starts_with("/ip6/fe80::1/udp/"), "{}", connected.send_back);

    // A dial leaves through the listener on that link.
    listen(&mut dialer, ANY).await;
    let from_wildcard = connect(&mut listener, &mut dialer, address.clone(), PLAIN).await.send_back;
    assert_eq!(from_wildcard.to_string(), "/ip6/fe80::1/udp/4001/quic-v1");
    listen(&mut dialer, &HERE.replace("4001", "5001")).await;
    let mut connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
    assert_eq!(connected.send_back.to_string(), "/ip6/fe80::1/udp/5001/quic-v1");
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
}

#[tokio::test(start_paused = true)]
async fn a_listener_at_a_link_local_address_follows_it() {
    let world = World::new(1);
    let here = host(&world, &["fe80::1"]);
    let mut transport = transport(&here, false);
    listen(&mut transport, HERE).await;
    here.interface_down("fe80::1".parse::<IpAddr>().unwrap());
    match next(&mut transport).await {
        TransportEvent::AddressExpired { listen_addr, .. } => assert_eq!(listen_addr.to_string(), HERE),
        event => panic!("{event:?}"),
    }
    here.interface_up("fe80::1".parse::<IpAddr>().unwrap());
    assert_eq!(next(&mut transport).await.into_new_address().unwrap().to_string(), HERE);
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_is_none_is_an_error_and_a_zone_of_other_addresses_is_not_ours() {
    let world = World::new(1);
    let mut transport = transport(&host(&world, &["fe80::1", "2001:db8::1"]), false);
    let unknown = HERE.replace("eth0", "eth7").parse::<Multiaddr>().unwrap();
    for error in [
        transport.listen_on(ListenerId::next(), unknown.clone()).unwrap_err(),
        transport.dial(unknown, PLAIN).err().unwrap(),
    ] {
        match error {
            TransportError::Other(Error::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
            error => panic!("{error:?}"),
        }
    }
    let global = HERE.replace("fe80", "2001:db8").parse::<Multiaddr>().unwrap();
    for error in [
        transport.listen_on(ListenerId::next(), global.clone()).unwrap_err(),
        transport.dial(global, PLAIN).err().unwrap(),
        transport.dial(HERE.replace("4001", "0").parse().unwrap(), PLAIN).err().unwrap(),
    ] {
        assert!(matches!(error, TransportError::MultiaddrNotSupported(_)), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hole_can_be_opened_on_the_link() {
    let world = World::new(1);
    let (mut a, mut b) =
        (transport(&host(&world, &["fe80::1"]), false), transport(&host(&world, &["fe80::2"]), false));
    let [a_address, b_address] = [listen(&mut a, HERE).await, listen(&mut b, THERE).await];
    let a_id = PeerId::random();
    // The punch expects another peer, so the handshake fails. The test checks that the punch takes
    // the connection.
    let punch = a.dial(b_address.with(Protocol::P2p(a_id)), AS_LISTENER).unwrap();
    let dial = b.dial(a_address, PLAIN).unwrap();
    drive(a);
    drive(b);
    let (punched, _) = future::join(punch, dial).await;
    assert!(matches!(punched, Err(Error::WrongPeerId { expected, .. }) if expected == a_id), "{punched:?}");
}
