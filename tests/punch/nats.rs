//! Sites whose NAT gives every destination another port, and other hosts behind the same NAT.

use std::{sync::Arc, time::Duration};

use libp2p::Swarm;
use libp2p_punch::Behaviour;
use libp2p_punch_sim::{Filtering, Host, Link, Mapping, Nat, Ports, World};

use crate::network::{Site, registered, until};

pub(crate) const APDM_SEQUENTIAL: Site = sequential(1);
/// All kinds of the lab.
pub(crate) const ALL: [Site; 8] = [
    Site::Public,
    Site::EIM_EIF,
    Site::EIM_ADF,
    Site::EIM_APDF,
    Site::EIM_APDF_PORT_NOT_KEPT,
    Site::APDM_RANDOM,
    APDM_SEQUENTIAL,
    Site::NatBehindNat,
];

pub(crate) const fn sequential(step: u16) -> Site {
    Site::Nat(
        Mapping::AddressAndPortDependent,
        Filtering::AddressAndPortDependent,
        Ports::Sequential { step },
    )
}

/// Returns true if a pair can be direct. Two NATs that give every destination another port cannot,
/// if at least one of them is random.
pub(crate) fn is_hopeful(a: Site, b: Site) -> bool {
    let hard = |site| matches!(site, Site::APDM_RANDOM | APDM_SEQUENTIAL);
    !(hard(a) && hard(b) && (a == Site::APDM_RANDOM || b == Site::APDM_RANDOM))
}

/// Creates a host at a site; `number` identifies the site in its world. Other hosts behind its NAT,
/// if it has one, take a port at intervals, until the runtime ends.
pub(crate) fn host(site: Site, world: &World, number: u8, loss: f64, others: Option<Duration>) -> Arc<Host> {
    let (Site::Nat(mapping, filtering, ports), Some(every)) = (site, others) else {
        return site.host(world, number, loss);
    };
    let gateway = world.nat(Nat { ports, ..Nat::new(mapping, filtering) }, [198, 51, 100, number]);
    world.set_link(&gateway, Link { loss, ..Link::with_latency(Duration::ZERO) });
    let neighbour = gateway.host([192, 168, number, 3]);
    tokio::spawn(async move {
        let socket = neighbour.socket(([0, 0, 0, 0], 5000).into()).expect("the port is free");
        for port in 1.. {
            // The destination has no host, but the NAT does not know that.
            socket.send_to(([203, 0, 113, 99], port).into(), b"out");
            tokio::time::sleep(every).await;
        }
    });
    gateway.host([192, 168, number, 2])
}

/// Drives a swarm until its NAT has been observed at its coordinator's further ports, and the
/// coordinator knows.
pub(crate) async fn observed(swarm: &mut Swarm<Behaviour>) {
    registered(swarm).await;
    let settle = tokio::time::sleep(Duration::from_millis(500));
    tokio::select! {
        () = settle => {}
        () = until(swarm, |_| None) => {}
    }
}
