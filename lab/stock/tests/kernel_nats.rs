//! Hole punching with stock peers on real NATs: DCUtR through a stock relay, with this project's
//! transport at either end.
//!
//! Needs Linux, root and the programs `ip` and `nft`; elsewhere one line on stderr says that the
//! tests are skipped. With `PUNCH_REQUIRE_LAB` in the environment they fail instead of being
//! skipped.

#![cfg(target_os = "linux")]

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::atomic::AtomicBool,
    time::Duration,
};

use punch_lab::{
    Kind, Outcome,
    kernel::{self, Exchange, Lab},
};

/// Dials through the relay from one EIM+APDF site to another, and expects to end direct.
fn connects_directly(dialer: &str, listener: &str) {
    if let Some(obstacle) = kernel::obstacle() {
        assert!(std::env::var_os("PUNCH_REQUIRE_LAB").is_none(), "the NAT lab {obstacle}");
        return say(&format!("skipped: the NAT lab {obstacle}"));
    }
    let lab = Lab::new([Kind::EimApdf, Kind::EimApdf]).expect("a lab");
    let exchange = Exchange {
        program: PathBuf::from(env!("CARGO_BIN_EXE_punch-stock")),
        timeout: Duration::from_secs(30),
        arguments: [dialer, listener].map(|quic| vec!["--quic".to_owned(), quic.to_owned()]),
    };
    let outcome = kernel::exchange(&lab, &exchange, &AtomicBool::new(false)).expect("a dial");
    let [_, site] = &lab.sites;
    match &outcome {
        Outcome::Connected { relayed: false, elapsed, remote: Some(remote) }
            if remote.starts_with(&format!("/ip4/{}/udp/", site.public)) =>
        {
            say(&format!("{dialer} -> {listener}: direct in {:.1} ms", elapsed.as_secs_f64() * 1e3));
        }
        other => panic!("{dialer} -> {listener}: {other:?}"),
    }
}

/// Past libtest's capture: figures and skipped tests are to be seen also when all is well.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[test]
fn our_dialer_and_a_stock_listener_punch_through_eim_apdf_by_dcutr() {
    connects_directly("punch", "stock");
}

#[test]
fn a_stock_dialer_and_our_listener_punch_through_eim_apdf_by_dcutr() {
    connects_directly("stock", "punch");
}

#[test]
fn two_peers_of_ours_punch_through_eim_apdf_by_dcutr() {
    connects_directly("punch", "punch");
}

#[test]
fn two_stock_peers_punch_through_eim_apdf_by_dcutr() {
    connects_directly("stock", "stock");
}
