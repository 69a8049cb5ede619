//! Probes that nobody with a session's key made.

use std::time::Duration;

use libp2p_punch_sim::World;

use crate::{
    moving::{exchange, two},
    network::{Site, on_paused_time},
};

const FLOOD: u64 = 5_000;

#[test]
fn a_flood_of_forged_probes_changes_nothing_for_a_session() {
    on_paused_time(async {
        let world = World::new(1);
        let (mut dialer, peer, [host, ..]) = two(&world, [Site::Public, Site::EIM_APDF]).await;
        exchange(&mut dialer, peer, 0).await;
        let before = dialer.behaviour().punch.counters();
        let attacker = world.public_host([203, 0, 113, 66]).socket(([0, 0, 0, 0], 9).into()).expect("free");
        for number in 0..FLOOD {
            // Every first byte that may be a probe's, and every length around one.
            let mut forged = vec![4 + (number % 12) as u8; 30 + (number % 40) as usize];
            forged[1..9].copy_from_slice(&number.to_be_bytes());
            attacker.send_to((host.addresses()[0], 4001).into(), &forged);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let took = exchange(&mut dialer, peer, 1).await;
        assert!(took <= Duration::from_secs(1), "{took:?}");
        let after = dialer.behaviour().punch.counters();
        let seen =
            |of: &libp2p_punch::core::counters::Counters| of.paths.probes_received + of.paths.probes_dropped;
        // The socket's buffer takes what a kernel's would, and the driver's queue a part of that.
        assert!(seen(&after) - seen(&before) >= FLOOD / 2, "{:?}", after.paths);
        assert!(after.paths.probes_dropped > before.paths.probes_dropped, "{:?}", after.paths);
        assert_eq!(after.paths.paths_refused, before.paths.paths_refused);
        assert_eq!(dialer.network_info().connection_counters().num_established(), 2);
    });
}
