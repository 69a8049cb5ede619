//! Filtering of NATs, measured by coordinators with one address and with two.

use std::time::Duration;

use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, swarm::SwarmEvent};
use libp2p_punch::{Config, Event, NatEvent, Role};
use libp2p_punch_proto::nat::{
    Confidence, FilteringBehaviour as Filtering, MappingBehaviour as Mapping, Report,
};
use libp2p_punch_sim::{Link, World};

use crate::network::{PORT, Site, client, keypair, on_paused_time, run, swarm};

/// Time in which a client must know its NAT.
const ENOUGH: Duration = Duration::from_secs(6);

/// A coordinator at 203.0.113.`last` that is configured with others, and runs until the runtime
/// ends; its address.
fn coordinator(world: &World, last: u8, addresses: u8, others: Vec<Multiaddr>) -> Multiaddr {
    let host = world.public_host([203, 0, 113, last]);
    for next in 1..addresses {
        world.attach(&host, [203, 0, 113, last - next]);
    }
    world.set_link(&host, Link::with_latency(Duration::from_millis(20)));
    let mut config = Config::default();
    config.role = Role::Server;
    config.coordinators = others;
    let peer = run(swarm(&host, last, config, |punch, _| punch));
    at(last, peer)
}

fn at(last: u8, peer: PeerId) -> Multiaddr {
    format!("/ip4/203.0.113.{last}/udp/{PORT}/quic-v1/p2p/{peer}").parse().expect("valid")
}

/// Returns the final report of a client at `site`, with one coordinator of this number of
/// addresses.
fn measure(site: Site, addresses: u8, loss: f64, seed: u64) -> Report {
    on_paused_time(async move {
        let world = World::new(seed);
        let address = coordinator(&world, 254, addresses, Vec::new());
        report(&world, site, &address, loss).await
    })
}

/// Returns the same report, from one of two coordinators with one address each, once they know each
/// other.
fn measure_by_two(site: Site, are_friends: bool, seed: u64) -> Report {
    on_paused_time(async move {
        let world = World::new(seed);
        let second = keypair(250).public().to_peer_id();
        let first = coordinator(&world, 254, 1, vec![at(250, second)]);
        let others = if are_friends { vec![first.clone()] } else { Vec::new() };
        assert_eq!(coordinator(&world, 250, 1, others), at(250, second));
        tokio::time::sleep(ENOUGH).await;
        report(&world, site, &first, 0.0).await
    })
}

/// Returns the final report of a client at `site`.
async fn report(world: &World, site: Site, coordinator: &Multiaddr, loss: f64) -> Report {
    let mut swarm = swarm(&site.host(world, 1, loss), 1, client(coordinator), |punch, _| punch);
    let end = tokio::time::sleep(ENOUGH);
    tokio::pin!(end);
    let mut told = Report::default();
    loop {
        tokio::select! {
            () = &mut end => return told,
            event = swarm.select_next_some() => {
                if let SwarmEvent::Behaviour(Event::Nat(NatEvent::Report(report))) = event {
                    assert_eq!(swarm.behaviour().nat_report(), &*report, "the event is what can be read");
                    told = *report;
                }
            }
        }
    }
}

fn filtering(report: &Report) -> Option<(Filtering, Confidence)> {
    report.filtering.as_ref().map(|finding| (finding.value, finding.confidence))
}

/// Returns the confidence that one coordinator gives: silence rests on its word.
fn sure(filtering: Filtering) -> Confidence {
    match filtering {
        Filtering::EndpointIndependent | Filtering::PortIndependent => Confidence::Medium,
        _ => Confidence::Low,
    }
}

#[test]
fn a_coordinator_with_two_addresses_tells_all_three_kinds_apart() {
    for (site, expected) in [
        (Site::EIM_EIF, Filtering::EndpointIndependent),
        (Site::EIM_ADF, Filtering::AddressDependent),
        (Site::EIM_APDF, Filtering::AddressAndPortDependent),
        (Site::EIM_APDF_PORT_NOT_KEPT, Filtering::AddressAndPortDependent),
        (Site::APDM_RANDOM, Filtering::AddressAndPortDependent),
        (Site::NatBehindNat, Filtering::AddressAndPortDependent),
        (Site::Public, Filtering::EndpointIndependent),
    ] {
        let report = measure(site, 2, 0.0, 1);
        assert_eq!(filtering(&report), Some((expected, sure(expected))), "{site:?}");
        let evidence = &report.filtering.as_ref().expect("it is there").evidence;
        assert_eq!((evidence.observers.len(), evidence.observations), (1, 3), "{site:?}");
    }
}

#[test]
fn a_coordinator_with_one_address_does_not_pretend_to_know_more() {
    for (site, expected) in [
        (Site::EIM_EIF, Filtering::PortIndependent),
        (Site::EIM_ADF, Filtering::PortIndependent),
        (Site::EIM_APDF, Filtering::AddressAndPortDependent),
    ] {
        let report = measure(site, 1, 0.0, 2);
        assert_eq!(filtering(&report), Some((expected, sure(expected))), "{site:?}");
    }
}

#[test]
fn two_coordinators_with_one_address_each_tell_all_three_kinds_apart_if_they_are_configured_with_each_other()
{
    for (site, expected) in [
        (Site::EIM_EIF, Filtering::EndpointIndependent),
        (Site::EIM_ADF, Filtering::AddressDependent),
        (Site::EIM_APDF, Filtering::AddressAndPortDependent),
    ] {
        let report = measure_by_two(site, true, 6);
        assert_eq!(filtering(&report), Some((expected, sure(expected))), "{site:?}");
        let evidence = &report.filtering.as_ref().expect("it is there").evidence;
        assert_eq!((evidence.observers.len(), evidence.observations), (1, 3), "{site:?}");
    }
    let report = measure_by_two(Site::EIM_EIF, false, 7);
    assert_eq!(filtering(&report), Some((Filtering::PortIndependent, sure(Filtering::PortIndependent))));
}

#[test]
fn loss_makes_a_report_less_sure_or_silent_but_hardly_ever_wrong() {
    let (mut known, mut wrong) = (0, 0);
    for seed in 0..20 {
        let report = measure(Site::EIM_EIF, 2, 0.2, seed);
        let Some((found, confidence)) = filtering(&report) else { continue };
        known += 1;
        if found != Filtering::EndpointIndependent {
            wrong += 1;
            assert_eq!(confidence, Confidence::Low, "seed {seed}: {found:?}");
        }
    }
    // All three datagrams of a source are lost once in 125 times, and five times of twenty once in
    // millions.
    assert!(known >= 10 && wrong <= 4, "{known} known, {wrong} wrong");
}

#[test]
fn the_rest_of_the_report_is_measured_too() {
    let report = measure(Site::EIM_APDF_PORT_NOT_KEPT, 2, 0.0, 3);
    assert_eq!(report.translated.map(|finding| finding.value), Some(true));
    assert_eq!(report.port_preserved.map(|finding| finding.value), Some(false));
    assert_eq!(report.mapping, None, "one address tells nothing of others");
    assert_eq!(report.udp_blocked.map(|finding| finding.value), Some(false));
    assert_eq!(report.carrier_nat, None);
    assert_eq!(report.sharing.map(|finding| finding.value.sockets), Some(1));
    let random = measure(Site::APDM_RANDOM, 2, 0.0, 4);
    assert_eq!(random.mapping.map(|finding| finding.value), Some(Mapping::AddressAndPortDependent));
}

#[test]
fn a_coordinator_that_does_not_answer_is_evidence_of_blocked_udp() {
    let report = on_paused_time(async {
        let world = World::new(5);
        let peer = libp2p::PeerId::random();
        let address = format!("/ip4/203.0.113.254/udp/{PORT}/quic-v1/p2p/{peer}");
        let config = client(&address.parse().expect("valid"));
        let host = Site::EIM_APDF.host(&world, 1, 0.0);
        let mut swarm = swarm(&host, 1, config, |punch, _| punch);
        loop {
            if let SwarmEvent::Behaviour(Event::Nat(NatEvent::Report(report))) =
                swarm.select_next_some().await
            {
                return report;
            }
        }
    });
    let blocked = report.udp_blocked.expect("it was tried");
    assert_eq!((blocked.value, blocked.confidence), (true, Confidence::Low));
    assert_eq!(report.filtering, None);
}
