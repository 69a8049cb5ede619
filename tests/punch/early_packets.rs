//! Tests for harm by early packets, and their side effects.

use std::{net::SocketAddr, time::Duration};

use futures::StreamExt;
use libp2p_punch_sim::{Link, Nat, Trace, World};

use crate::network::{PORT, client, coordinator, on_paused_time, swarm};

/// Time in which a client must know its NAT.
const ENOUGH: Duration = Duration::from_secs(6);

#[test]
fn a_test_of_early_packets_finds_the_box_without_a_firewall_and_leaves_the_port_of_quic_alone() {
    for early_packets_harm in [false, true] {
        on_paused_time(async move {
            let world = World::new(1);
            let (_host, address) = coordinator(&world);
            let outer = [198, 51, 100, 1];
            let gateway = world.nat(Nat { early_packets_harm, ..Nat::default() }, outer);
            world.set_link(&gateway, Link::with_latency(Duration::from_millis(20)));
            let trace = Trace::start(&world);
            let mut swarm = swarm(&gateway.host([192, 168, 1, 2]), 1, client(&address), |punch, _| punch);
            // The swarm runs for ever.
            let _ = tokio::time::timeout(ENOUGH, async {
                loop {
                    swarm.select_next_some().await;
                }
            })
            .await;
            let report = swarm.behaviour().nat_report();
            assert_eq!(
                report.early_packets_harm.as_ref().map(|finding| finding.value),
                Some(early_packets_harm)
            );

            let inside: SocketAddr = ([192, 168, 1, 2], PORT).into();
            let outside: SocketAddr = (outer, PORT).into();
            let records = trace.records();
            // Packets to its own public address are not translated.
            let from_quic =
                || records.iter().filter(|record| record.from == inside && record.to.ip() != outside.ip());
            assert!(from_quic().count() > 10);
            assert!(from_quic().all(|record| record.seen_from == outside), "QUIC keeps its port");
            for contact in from_quic().map(|record| record.to) {
                let first = from_quic().find(|record| record.to == contact).map(|record| record.sent);
                let early = |record: &&libp2p_punch_sim::Record| {
                    record.from == contact && record.to == outside && Some(record.at) < first
                };
                assert_eq!(records.iter().find(early), None, "before QUIC's socket sent there");
            }
            // The sockets of tests are others, and those are harmed.
            let others =
                records.iter().filter(|record| record.from.ip() == inside.ip() && record.from != inside);
            let is_diverted =
                |record: &libp2p_punch_sim::Record| record.seen_from.port() != record.from.port();
            assert_eq!(others.clone().any(is_diverted), early_packets_harm);
            assert!(others.count() >= 3);
        });
    }
}
