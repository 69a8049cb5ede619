//! What is tried in the lab: how each NAT behaves, and which pairs of peers connect.

use std::{
    io::{self, Write},
    panic::catch_unwind,
    sync::OnceLock,
};

use super::{
    COORDINATOR, Lab,
    measure::{self, Behaviour, DependsOn, Ports},
    namespace,
    nat::Kind,
    programs::Program,
};

/// Whether there can be a lab on this machine; says so if not.
fn lab_is_possible() -> bool {
    static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
    let obstacle = OBSTACLE.get_or_init(|| {
        let obstacle = namespace::obstacle();
        match &obstacle {
            Some(obstacle) => say(&format!("skipped: the NAT lab {obstacle}")),
            None => namespace::remove_stale(),
        }
        obstacle
    });
    if let Some(obstacle) = obstacle {
        assert!(std::env::var_os("PUNCH_REQUIRE_LAB").is_none(), "the NAT lab {obstacle}");
    }
    obstacle.is_none()
}

/// Writes to stderr, past libtest's capture: figures and skipped tests are to be seen also when all is well.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn expected(kind: Kind) -> Behaviour {
    use DependsOn::{Address, AddressAndPort, Nothing};
    let (mapping, filtering, ports) = match kind {
        Kind::Public | Kind::EimEif => (Nothing, Nothing, Ports::Kept),
        Kind::EimAdf => (Nothing, Address, Ports::Kept),
        Kind::EimApdf | Kind::Double => (Nothing, AddressAndPort, Ports::Kept),
        Kind::EimApdfOtherPort => (Nothing, AddressAndPort, Ports::Scattered),
        Kind::AdmApdf => (Address, AddressAndPort, Ports::Scattered),
        Kind::ApdmRandom => (AddressAndPort, AddressAndPort, Ports::Scattered),
        Kind::ApdmSequential => (AddressAndPort, AddressAndPort, Ports::Sequential),
    };
    Behaviour { mapping, filtering, ports }
}

/// A coordinator, a peer that is registered with it, and another one that dials this peer.
struct Dialed {
    dial: Program,
    peer: String,
    // Held for their drop.
    _others: [Program; 2],
}

/// Starts `punch dial` from the first site to the second.
fn dial(lab: &Lab) -> Dialed {
    let address = format!("/ip4/{COORDINATOR}/udp/4001/quic-v1");
    let mut coordinator = Program::start(&lab.wan, &["coordinator", "--listen", &address]);
    let coordinator_address = coordinator.wait_for("listening")["address"].as_str().map(str::to_owned);
    let coordinator_address = coordinator_address.expect("an address is a string");

    let [dialer_site, listener_site] = &lab.sites;
    let mut listen = Program::start(&listener_site.host, &["listen", "--coordinator", &coordinator_address]);
    let own_address = listen.wait_for("listening")["address"].as_str().map(str::to_owned);
    let own_address = own_address.expect("an address is a string");
    let (_, peer) = own_address.rsplit_once("/p2p/").expect("the address ends in the peer id");
    listen.wait_for("registered");

    let dial = Program::start(&dialer_site.host, &["dial", peer, "--coordinator", &coordinator_address]);
    Dialed { dial, peer: peer.to_owned(), _others: [coordinator, listen] }
}

/// One `punch dial` from the first site to the second; panics unless it ends direct.
fn connects_directly(dialer: Kind, listener: Kind) {
    let lab = Lab::new([dialer, listener]);
    let Dialed { mut dial, peer, _others } = dial(&lab);
    let connected = dial.wait_for("connected");
    assert_eq!(connected["path"], "direct", "{connected}");
    assert_eq!(connected["peer"], peer, "{connected}");
    let remote = connected["remote"].as_str().unwrap_or_default();
    assert!(remote.starts_with(&format!("/ip4/{}/udp/", lab.sites[1].public)), "{connected}");
    let elapsed = connected["elapsed_ms"].as_f64().expect("elapsed_ms is a number");
    say(&format!("{dialer:?} -> {listener:?}: direct in {elapsed:.1} ms"));

    let (rest, code) = dial.finish();
    assert_eq!(code, Some(0), "{rest:?}");
    assert!(rest.iter().any(|line| line["event"] == "echo"), "no echo: {rest:?}");
}

#[test]
fn two_peers_behind_random_nats_fail_with_a_reason() {
    if !lab_is_possible() {
        return;
    }
    let lab = Lab::new([Kind::ApdmRandom, Kind::ApdmRandom]);
    let Dialed { mut dial, peer, _others } = dial(&lab);
    let failed = dial.wait_for("failed");
    assert_eq!((&failed["peer"], &failed["reason"]), (&peer.into(), &"punching_timeout".into()), "{failed}");
    let (rest, code) = dial.finish();
    assert_eq!(code, Some(11), "{rest:?}");
}

#[test]
fn every_kind_of_nat_maps_filters_and_allocates_as_its_name_says() {
    if !lab_is_possible() {
        return;
    }
    for kind in Kind::ALL {
        let lab = Lab::new([kind, Kind::Public]);
        let measured = measure::behaviour(&lab, 0);
        say(&format!("{kind:?}: {measured:?}"));
        assert_eq!(measured, expected(kind), "{kind:?}");
    }
}

/// Tries all pairs of a dialer and a listener, also after one that fails.
fn all_connect_directly(pairs: impl IntoIterator<Item = (Kind, Kind)>) {
    if !lab_is_possible() {
        return;
    }
    let mut failed = Vec::new();
    for (dialer, listener) in pairs {
        if catch_unwind(|| connects_directly(dialer, listener)).is_err() {
            failed.push(format!("{dialer:?} -> {listener:?}"));
        }
    }
    assert!(failed.is_empty(), "no direct connection: {}", failed.join(", "));
}

fn eim_dialer_connects_directly_to_every_eim_listener(dialer: Kind) {
    all_connect_directly(Kind::EIM.map(|listener| (dialer, listener)));
}

#[test]
fn a_public_dialer_connects_directly_to_every_eim_listener() {
    eim_dialer_connects_directly_to_every_eim_listener(Kind::Public);
}

#[test]
fn a_dialer_behind_eim_eif_connects_directly_to_every_eim_listener() {
    eim_dialer_connects_directly_to_every_eim_listener(Kind::EimEif);
}

#[test]
fn a_dialer_behind_eim_adf_connects_directly_to_every_eim_listener() {
    eim_dialer_connects_directly_to_every_eim_listener(Kind::EimAdf);
}

#[test]
fn a_dialer_behind_eim_apdf_connects_directly_to_every_eim_listener() {
    eim_dialer_connects_directly_to_every_eim_listener(Kind::EimApdf);
}

#[test]
fn a_dialer_behind_eim_apdf_without_its_port_connects_directly_to_every_eim_listener() {
    eim_dialer_connects_directly_to_every_eim_listener(Kind::EimApdfOtherPort);
}

#[test]
fn a_dialer_behind_two_nats_connects_directly_to_every_eim_listener() {
    eim_dialer_connects_directly_to_every_eim_listener(Kind::Double);
}

/// What even a peer with endpoint-dependent mapping can reach without prediction or search.
const OPEN: [Kind; 3] = [Kind::Public, Kind::EimEif, Kind::EimAdf];

#[test]
fn a_dialer_with_endpoint_dependent_mapping_connects_directly_to_open_listeners() {
    all_connect_directly(Kind::EDM.into_iter().flat_map(|dialer| OPEN.map(|listener| (dialer, listener))));
}

#[test]
fn an_open_dialer_connects_directly_to_listeners_with_endpoint_dependent_mapping() {
    all_connect_directly(Kind::EDM.into_iter().flat_map(|listener| OPEN.map(|dialer| (dialer, listener))));
}
