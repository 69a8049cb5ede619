//! Probes that were made without the key of a session.

use std::{sync::Arc, time::Duration};

use libp2p::{PeerId, Swarm};
use libp2p_punch_sim::{Host, Link, World};

use crate::{
    moving::{Application, exchange, two},
    network::{Site, on_paused_time},
};

const FLOOD: u64 = 5_000;
/// Bytes a second of the victim's link.
const RATE: u64 = 1_000_000;
/// Messages of one measurement of throughput.
const MESSAGES: usize = 20;

/// Returns datagrams with every first byte of a possible probe, and every length near that of a
/// probe.
fn forged(number: u64) -> Vec<u8> {
    let mut forged = vec![4 + (number % 12) as u8; 30 + (number % 40) as usize];
    forged[1..9].copy_from_slice(&number.to_be_bytes());
    forged
}

/// Returns the time for an exchange of some messages, one after the other.
async fn exchanges(dialer: &mut Swarm<Application>, peer: PeerId, first: usize) -> Duration {
    let mut took = Duration::ZERO;
    for number in first..first + MESSAGES {
        took += exchange(dialer, peer, number).await;
    }
    took
}

#[test]
fn a_session_keeps_half_of_its_throughput_in_a_flood_of_forged_probes_and_then_all_of_it() {
    on_paused_time(async {
        let world = World::new(1);
        let (mut dialer, peer, [host, ..]) = two(&world, [Site::Public, Site::EIM_APDF]).await;
        let link = |rate| Link { rate: Some(rate), queue: 64 * 1024, ..Link::with_latency(Duration::ZERO) };
        world.set_link(&host, link(RATE));
        exchange(&mut dialer, peer, 0).await;
        let before = exchanges(&mut dialer, peer, 1).await;
        // The link bounds the time: a message goes there and comes back.
        assert!(before >= Duration::from_millis(200) * MESSAGES as u32, "{before:?}");

        let attacker = world.public_host([203, 0, 113, 66]);
        world.set_link(&attacker, link(RATE / 4));
        let flood = tokio::spawn(flood(attacker, host));
        let during = exchanges(&mut dialer, peer, 1 + MESSAGES).await;
        flood.abort();
        let after = exchanges(&mut dialer, peer, 1 + 2 * MESSAGES).await;
        println!("{before:?}, {during:?}, {after:?}");
        assert!(during <= 2 * before, "{before:?} without, {during:?} with the flood");
        assert!(after <= before * 11 / 10, "{before:?} before, {after:?} after the flood");
        let counters = dialer.behaviour().punch.counters();
        assert!(counters.protocol.probes_refused + counters.paths.probes_dropped > 1_000, "{counters:?}");
    });
}

/// As many datagrams as its link takes.
async fn flood(attacker: Arc<Host>, victim: Arc<Host>) {
    let socket = attacker.socket(([0, 0, 0, 0], 9).into()).expect("free");
    for number in 0.. {
        let datagram = forged(number);
        socket.send_to((victim.addresses()[0], 4001).into(), &datagram);
        tokio::time::sleep(Duration::from_secs(datagram.len() as u64 + 28) / (RATE as u32 / 4)).await;
    }
}

#[test]
fn a_flood_of_forged_probes_changes_nothing_for_a_session() {
    on_paused_time(async {
        let world = World::new(1);
        let (mut dialer, peer, [host, ..]) = two(&world, [Site::Public, Site::EIM_APDF]).await;
        exchange(&mut dialer, peer, 0).await;
        let before = dialer.behaviour().punch.counters();
        let attacker = world.public_host([203, 0, 113, 66]).socket(([0, 0, 0, 0], 9).into()).expect("free");
        for number in 0..FLOOD {
            attacker.send_to((host.addresses()[0], 4001).into(), &forged(number));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let took = exchange(&mut dialer, peer, 1).await;
        assert!(took <= Duration::from_secs(1), "{took:?}");
        let after = dialer.behaviour().punch.counters();
        let seen = |of: &libp2p_punch::counters::Counters| of.paths.probes_received + of.paths.probes_dropped;
        // The socket's buffer takes what a kernel's would, and the driver's queue a part of that.
        assert!(seen(&after) - seen(&before) >= FLOOD / 2, "{:?}", after.paths);
        assert!(after.paths.probes_dropped > before.paths.probes_dropped, "{:?}", after.paths);
        assert_eq!(after.paths.paths_refused, before.paths.paths_refused);
        assert_eq!(dialer.network_info().connection_counters().num_established(), 2);
    });
}
