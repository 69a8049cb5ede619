//! Port mappings of a real gateway, `miniupnpd`, and the connections that they make possible.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    sync::atomic::AtomicBool,
    time::Duration,
};

use libp2p_punch::port_mapping::{Gateway, Gateways, Grant, OsGateways, Protocol, Request};
use punch_lab::{
    Kind, Outcome,
    kernel::{self, Exchange, Lab, Namespace, PortMappingDaemon, Site},
};

use super::{lab_is_possible, say};

const PROTOCOLS: [Protocol; 3] = [Protocol::Pcp, Protocol::NatPmp, Protocol::Upnp];
const LIFETIME: Duration = Duration::from_secs(600);

fn gateway_is_possible() -> bool {
    if !lab_is_possible() {
        return false;
    }
    let obstacle = kernel::port_mapping_obstacle();
    if let Some(obstacle) = &obstacle {
        assert!(std::env::var_os("PUNCH_REQUIRE_MINIUPNPD").is_none(), "the gateway {obstacle}");
        say(&format!("skipped: the gateway {obstacle}"));
    }
    obstacle.is_none()
}

/// A lab whose last two sites may have a daemon each. The daemon serves no box in the prefixes of
/// the first two.
fn lab(kinds: [Kind; 2]) -> Lab<4> {
    let [dialer, listener] = kinds;
    Lab::new([Kind::Public, Kind::Public, dialer, listener]).expect("a lab")
}

/// Asks the gateway for a mapping, from the namespace of the host.
fn granted(site: &Site, protocol: Protocol, port: u16) -> (OsGateways, Request, Grant) {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let gateways = OsGateways::default();
            let gateway = gateways.find().await.ok_or_else(|| io::Error::other("no gateway"))?;
            let request = Request { gateway, protocol, port };
            let grant = gateways.map(request, LIFETIME).await.map_err(io::Error::other)?;
            io::Result::Ok((gateways, request, grant))
        })
    };
    site.host.inside(ask).expect("the namespace exists").expect("the gateway grants the mapping")
}

/// The rules of the box that forward ports.
fn rules(site: &Site) -> String {
    let mut list = site.boxes[0].command("nft");
    let output = list.args(["list", "chain", "inet", "upnp", "prerouting_miniupnpd"]).output();
    String::from_utf8(output.expect("nft can be run").stdout).expect("a text")
}

/// Sends a datagram from the WAN to the external address; returns what arrives at the socket.
fn received(wan: &Namespace, grant: Grant, socket: &UdpSocket) -> Vec<u8> {
    let send = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"hello", grant.external);
    wan.inside(send).expect("the namespace exists").expect("the WAN routes to the box");
    let mut buffer = [0; 64];
    let (len, _) = socket.recv_from(&mut buffer).expect("the datagram arrives");
    buffer[..len].to_vec()
}

#[test]
fn a_real_gateway_maps_a_port_and_deletes_the_mapping_in_each_protocol() {
    if !gateway_is_possible() {
        return;
    }
    let lab = lab([Kind::ApdmRandom, Kind::ApdmRandom]);
    let site = &lab.sites[3];
    let _daemon = PortMappingDaemon::start(site).expect("the daemon starts");
    for (port, protocol) in (4001..).zip(PROTOCOLS) {
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
        let socket = site.host.inside(bind).expect("the namespace exists").expect("a free port");
        let (gateways, request, grant) = granted(site, protocol, port);
        let Gateway { address, local } = request.gateway;
        assert_eq!((address, *grant.external.ip()), (site.gateway, site.public), "{protocol}");
        assert_ne!(local, address);
        assert!((Duration::from_secs(1)..=LIFETIME).contains(&grant.lifetime), "{grant:?}");
        assert_eq!(received(&lab.wan, grant, &socket), b"hello", "{protocol}");
        say(&format!("{protocol}: {} for {:?}", grant.external, grant.lifetime));
        assert!(rules(site).contains(&format!(":{port}")), "{}", rules(site));
        let delete = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(gateways.unmap(request));
            io::Result::Ok(())
        };
        site.host.inside(delete).expect("the namespace exists").expect("a runtime");
        assert!(!rules(site).contains(&format!(":{port}")), "{protocol}: {}", rules(site));
    }
}

/// One `punch dial` between two random NATs whose gateways grant mappings, or do not.
fn dial(grants: [bool; 2], arguments: [Vec<String>; 2]) -> Outcome {
    let lab = lab([Kind::ApdmRandom, Kind::ApdmRandom]);
    let daemons = lab.sites[2..].iter().zip(grants).filter(|(_, grants)| *grants);
    let _daemons: Vec<_> =
        daemons.map(|(site, _)| PortMappingDaemon::start(site).expect("the daemon starts")).collect();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_punch"));
    let exchange = Exchange { program, timeout: Duration::from_secs(60), arguments };
    kernel::exchange(&lab, &exchange, &AtomicBool::new(false)).expect("the coordinator starts")
}

#[test]
fn two_random_nats_are_direct_where_either_gateway_grants_mappings() {
    if !gateway_is_possible() {
        return;
    }
    for grants in [[true, false], [false, true], [true, true]] {
        match dial(grants, Default::default()) {
            Outcome::Connected { relayed: false, elapsed, remote } => {
                let ms = elapsed.as_secs_f64() * 1e3;
                say(&format!("gateways grant {grants:?}: direct in {ms:.1} ms, {remote:?}"));
            }
            other => panic!("{grants:?}: {other:?}"),
        }
    }
}

#[test]
fn without_port_mapping_two_random_nats_are_relayed_whatever_their_gateways_grant() {
    if !gateway_is_possible() {
        return;
    }
    let flag = || vec!["--no-port-mapping".to_owned()];
    let outcome = dial([true, true], [flag(), flag()]);
    assert!(matches!(outcome, Outcome::Connected { relayed: true, .. }), "{outcome:?}");
}
