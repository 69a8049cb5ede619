//! Tests of the NAT kinds against their names, and of the pairs of peers that connect directly.

use std::{path::PathBuf, sync::atomic::AtomicBool, time::Duration};

use punch_lab::{
    Kind, Outcome,
    kernel::{self, Exchange, Lab},
};

use super::{lab_is_possible, say};

/// One `punch dial` in this lab.
fn dial(lab: &Lab) -> Result<Outcome, String> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_punch"));
    let exchange = Exchange { program, timeout: Duration::from_secs(30), arguments: Default::default() };
    kernel::exchange(lab, &exchange, &AtomicBool::new(false)).map_err(|error| error.to_string())
}

/// One `punch dial` from the first kind to the second; says why if it does not end direct.
fn connects_directly(dialer: Kind, listener: Kind) -> Result<(), String> {
    let lab = Lab::new([dialer, listener]).map_err(|error| error.to_string())?;
    let [_, site] = &lab.sites;
    match dial(&lab)? {
        Outcome::Connected { relayed: false, elapsed, remote: Some(remote) }
            if remote.starts_with(&format!("/ip4/{}/udp/", site.public)) =>
        {
            say(&format!("{dialer} -> {listener}: direct in {:.1} ms", elapsed.as_secs_f64() * 1e3));
            Ok(())
        }
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn every_kind_of_nat_maps_filters_and_allocates_as_its_name_says() {
    if !lab_is_possible() {
        return;
    }
    for kind in Kind::ALL {
        match kernel::verify(kind) {
            Ok(measured) => say(&format!("{kind}: {measured}")),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Tries all pairs of a dialer and a listener, also after one that fails.
fn all_connect_directly(pairs: impl IntoIterator<Item = (Kind, Kind)>) {
    if !lab_is_possible() {
        return;
    }
    let failed = pairs.into_iter().filter_map(|(dialer, listener)| {
        let error = connects_directly(dialer, listener).err()?;
        Some(format!("{dialer} -> {listener}: {error}"))
    });
    let failed: Vec<String> = failed.collect();
    assert!(failed.is_empty(), "no direct connection:\n{}", failed.join("\n"));
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

#[test]
fn a_peer_behind_a_nat_without_a_firewall_connects_directly_whoever_comes_too_early() {
    let bare = Kind::EimApdfBare;
    let others = [Kind::EimApdf, Kind::EimApdfOtherPort, Kind::Double];
    // Who is first is a matter of luck here.
    let pairs = others.map(|other| [(bare, other), (other, bare)]).concat();
    all_connect_directly([pairs.clone(), pairs].concat());
}

/// Kinds that a peer with endpoint-dependent mapping reaches without prediction or search.
const OPEN: [Kind; 3] = [Kind::Public, Kind::EimEif, Kind::EimAdf];

#[test]
fn a_dialer_with_endpoint_dependent_mapping_connects_directly_to_open_listeners() {
    all_connect_directly(Kind::EDM.into_iter().flat_map(|dialer| OPEN.map(|listener| (dialer, listener))));
}

#[test]
fn an_open_dialer_connects_directly_to_listeners_with_endpoint_dependent_mapping() {
    all_connect_directly(Kind::EDM.into_iter().flat_map(|listener| OPEN.map(|dialer| (dialer, listener))));
}

#[test]
fn two_peers_behind_random_nats_are_connected_over_the_coordinator() {
    if !lab_is_possible() {
        return;
    }
    let lab = Lab::new([Kind::ApdmRandom, Kind::ApdmRandom]).expect("a lab");
    match dial(&lab) {
        Ok(Outcome::Connected { relayed: true, elapsed, .. }) => {
            say(&format!("apdm-random -> apdm-random: relayed in {:.1} ms", elapsed.as_secs_f64() * 1e3));
        }
        other => panic!("{other:?}"),
    }
}
