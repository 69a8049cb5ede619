//! A small internet of network namespaces: one WAN with a coordinator and observers on it, and two
//! sites or more.
//!
//! ```text
//!       203.0.113.1, .4 (coordinator), .2, .3 (observers)
//!                             wan
//!        198.51.100.1 ┌────────┴────────┐ 192.0.2.1
//!        198.51.100.2 │                 │ 192.0.2.2
//!                   box 1             box 2        none for a public host, two for a NAT behind a NAT
//!          192.168.1.2│                 │192.168.2.2
//!                  host 1            host 2
//! ```
//!
//! Site N from the third on has the prefix 203.N.113.0/24.

mod error;
mod exchange;
pub mod measure;
mod namespace;
mod owner;
mod port_mapping;
mod program;
mod rules;

use std::net::Ipv4Addr;

pub use self::{
    error::{Error, Result},
    exchange::{Exchange, exchange},
    namespace::{Namespace, obstacle, remove_stale},
    port_mapping::{PortMappingDaemon, port_mapping_obstacle},
    program::Program,
};
use crate::Kind;

/// Addresses of the coordinator. From the second one it probes, so that peers can measure their
/// NATs.
pub const COORDINATOR: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 4)];
/// Addresses of the two observers.
pub const OBSERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(203, 0, 113, 3)];

/// A WAN and its sites. Removed on drop.
pub struct Lab<const SITES: usize = 2> {
    /// The namespace of the WAN, which also holds [`COORDINATOR`] and [`OBSERVERS`].
    pub wan: Namespace,
    /// The sites.
    pub sites: [Site; SITES],
}

/// A host and the NATs between it and the WAN.
pub struct Site {
    /// Namespace of the programs.
    pub host: Namespace,
    /// The address that the WAN routes to.
    pub public: Ipv4Addr,
    /// The default gateway of the host.
    pub gateway: Ipv4Addr,
    /// The NATs, the outer one first.
    pub boxes: Vec<Namespace>,
}

impl<const SITES: usize> Lab<SITES> {
    /// Builds a lab with these kinds of site, at most 200.
    pub fn new(kinds: [Kind; SITES]) -> Result<Self> {
        let name = owner::unique_lab_name();
        let wan = Namespace::new(&name, "wan")?;
        for address in COORDINATOR.iter().chain(&OBSERVERS) {
            wan.ip(&format!("addr add {address}/32 dev lo"))?;
        }
        let sites = (1..=200).zip(kinds).map(|(number, kind)| site(&name, &wan, number, kind));
        let sites = sites.collect::<Result<Vec<_>>>()?.try_into();
        let sites = sites.map_err(|_| Error::new("cannot build the lab", "more than 200 sites"))?;
        Ok(Self { wan, sites })
    }
}

/// Builds a box of this kind and compares its measured behaviour with the promised one.
pub fn verify(kind: Kind) -> Result<crate::Behaviour> {
    let lab = Lab::new([kind, Kind::Public])?;
    let measured = measure::behaviour(&lab, &lab.sites[0])?;
    if measured == kind.behaviour() {
        return Ok(measured);
    }
    let promised = kind.behaviour();
    Err(Error::new(format!("{kind} is not what it should be"), format!("{measured}, and not {promised}")))
}

fn site(lab: &str, wan: &Namespace, number: u8, kind: Kind) -> Result<Site> {
    // Documentation prefixes (RFC 5737) represent the Internet. Those for benchmarks are private
    // address space. Further sites are each in a /16 of their own, as coordinators must be.
    let [a, b, c] = match number {
        1 => [198, 51, 100],
        2 => [192, 0, 2],
        _ => [203, number, 113],
    };
    let public = Ipv4Addr::new(a, b, c, 2);
    let host = Namespace::new(lab, &format!("host{number}"))?;
    let port = format!("site{number}");
    let outside = [Ipv4Addr::new(a, b, c, 1), public];
    let lan = [Ipv4Addr::new(192, 168, number, 1), Ipv4Addr::new(192, 168, number, 2)];
    let between = [Ipv4Addr::new(10, number, 0, 1), Ipv4Addr::new(10, number, 0, 2)];
    let new_box = |role: &str| {
        let namespace = Namespace::new(lab, &format!("{role}{number}"))?;
        namespace.nft(&rules::rules(kind))?;
        Ok(namespace)
    };
    let boxes = match kind {
        Kind::Public => {
            connect(CableEnd::new(wan, &port), CableEnd::new(&host, "wan"), outside)?;
            vec![]
        }
        Kind::Double => {
            let (outer, inner) = (new_box("outer")?, new_box("inner")?);
            connect(CableEnd::new(wan, &port), CableEnd::new(&outer, "wan"), outside)?;
            connect(CableEnd::new(&outer, "lan"), CableEnd::new(&inner, "wan"), between)?;
            connect(CableEnd::new(&inner, "lan"), CableEnd::new(&host, "wan"), lan)?;
            vec![outer, inner]
        }
        _ => {
            let only = new_box("box")?;
            connect(CableEnd::new(wan, &port), CableEnd::new(&only, "wan"), outside)?;
            connect(CableEnd::new(&only, "lan"), CableEnd::new(&host, "wan"), lan)?;
            vec![only]
        }
    };
    let gateway = if boxes.is_empty() { outside[0] } else { lan[0] };
    Ok(Site { host, public, gateway, boxes })
}

/// End of a cable: a new interface of a namespace.
struct CableEnd<'a> {
    namespace: &'a Namespace,
    port: &'a str,
}

impl<'a> CableEnd<'a> {
    fn new(namespace: &'a Namespace, port: &'a str) -> Self {
        Self { namespace, port }
    }
}

/// Joins two interfaces, the first towards the WAN, and makes it the second one's default route.
fn connect(upper: CableEnd<'_>, lower: CableEnd<'_>, [above, below]: [Ipv4Addr; 2]) -> Result<()> {
    let CableEnd { namespace: upper, port: upper_port } = upper;
    let CableEnd { namespace: lower, port: lower_port } = lower;
    upper.cable(upper_port, lower, lower_port)?;
    upper.ip(&format!("addr add {above}/24 dev {upper_port}\nlink set {upper_port} up"))?;
    lower.ip(&format!(
        "addr add {below}/24 dev {lower_port}\nlink set {lower_port} up\nroute add default via {above}"
    ))
}
