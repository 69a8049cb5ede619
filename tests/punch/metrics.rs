//! Metrics of peers and of their coordinator, against the events that the test caused.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use libp2p::{PeerId, Swarm, swarm::SwarmEvent};
use libp2p_punch::{
    Behaviour, Config, Event, Role, SessionEvent,
    metrics::{Metrics, Recorder, Registry},
};
use libp2p_punch_sim::{Link, World};
use tokio::time::timeout;

use crate::network::{PORT, Site, client, on_paused_time, swarm};

/// Time in which peers measure their NATs.
const MEASURED: Duration = Duration::from_secs(60);

/// A swarm with its metrics.
struct Measured {
    swarm: Swarm<Behaviour>,
    metrics: Metrics,
    registry: Registry,
}

impl Measured {
    fn new(swarm: Swarm<Behaviour>) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::new(swarm.behaviour(), &mut registry);
        Self { swarm, metrics, registry }
    }

    async fn next(&mut self) -> SwarmEvent<Event> {
        let event = self.swarm.select_next_some().await;
        if let SwarmEvent::Behaviour(event) = &event {
            self.metrics.record(event);
        }
        event
    }

    async fn run(&mut self) {
        loop {
            self.next().await;
        }
    }

    /// Drives the swarm to the end of the session with `peer`.
    async fn session_ended(&mut self, peer: PeerId) {
        loop {
            if let SwarmEvent::Behaviour(Event::Session(
                SessionEvent::Connected { peer: with, .. } | SessionEvent::Failed { peer: with, .. },
            )) = self.next().await
                && with == peer
            {
                return;
            }
        }
    }

    /// The samples of a scrape, by name and labels, as their text is written.
    fn scrape(&self) -> BTreeMap<String, f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("a String takes all");
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
            (name.to_owned(), value.parse().expect("a value is a number"))
        };
        text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
    }
}

fn named<'a>(scrape: &'a BTreeMap<String, f64>, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    let is_named = move |sample: &&String| sample.split('{').next() == Some(name);
    scrape.keys().filter(is_named).map(|sample| (sample.as_str(), scrape[sample]))
}

fn sum(scrape: &BTreeMap<String, f64>, name: &str) -> f64 {
    named(scrape, name).map(|(_, value)| value).sum()
}

#[test]
fn a_scrape_tells_the_sessions_that_a_network_had() {
    on_paused_time(async {
        let world = World::new(1);
        let host = world.public_host([203, 0, 113, 254]);
        world.set_link(&host, Link::with_latency(Duration::ZERO));
        let mut config = Config::default();
        config.role = Role::Server;
        let mut coordinator = Measured::new(swarm(&host, 254, config, |punch, _| punch));
        let id = *coordinator.swarm.local_peer_id();
        let address = format!("/ip4/203.0.113.254/udp/{PORT}/quic-v1/p2p/{id}").parse().expect("valid");
        let hosts = [1, 2].map(|number| Site::EIM_APDF.host(&world, number, 0.0));
        for (x, y, round_trip) in [(&hosts[0], &host, 40), (&hosts[1], &host, 20), (&hosts[0], &hosts[1], 50)]
        {
            world.set_path(x, y, Duration::from_millis(round_trip) / 2);
        }
        let mut number = 0;
        let [mut a, mut b] = hosts.map(|host| {
            number += 1;
            let mut config = client(&address);
            config.lookup_timeout = Duration::from_secs(5);
            Measured::new(swarm(&host, number, config, |punch, _| punch))
        });
        let (known, unknown) = (*b.swarm.local_peer_id(), PeerId::random());
        let dials = async {
            timeout(MEASURED, async { tokio::join!(a.run(), b.run()) }).await.expect_err("they run for ever");
            a.swarm.dial(known).expect("it may be dialed");
            let initiator = *a.swarm.local_peer_id();
            tokio::join!(a.session_ended(known), b.session_ended(initiator));
            a.swarm.dial(unknown).expect("it may be dialed");
            tokio::select! {
                () = a.session_ended(unknown) => {}
                () = b.run() => {}
            }
        };
        tokio::select! {
            () = dials => {}
            () = coordinator.run() => {}
        }
        check_peers(&a.scrape(), &b.scrape());
        check_coordinator(&coordinator.scrape(), [&a.scrape(), &b.scrape()]);
    });
}

const NATS: &str = r#"local_nat="port-preserving",remote_nat="port-preserving""#;

fn check_peers(initiator: &BTreeMap<String, f64>, responder: &BTreeMap<String, f64>) {
    let sessions = |role: &str, outcome: &str, nats: &str| {
        format!(r#"libp2p_punch_sessions_total{{role="{role}",{outcome},{nats}}}"#)
    };
    let connected = r#"outcome="connected",reason="none""#;
    assert_eq!(initiator.get(&sessions("initiator", connected, NATS)), Some(&1.0), "{initiator:#?}");
    assert_eq!(responder.get(&sessions("responder", connected, NATS)), Some(&1.0), "{responder:#?}");
    let failed: Vec<_> =
        named(initiator, "libp2p_punch_sessions_total").filter(|(name, _)| name.contains("failed")).collect();
    let [(name, 1.0)] = failed[..] else { panic!("one session failed: {failed:?}") };
    assert!(name.contains(r#"reason="peer-not-connected""#), "{name}");
    assert_eq!(sum(initiator, "libp2p_punch_sessions_total"), 2.0);
    assert_eq!(sum(responder, "libp2p_punch_sessions_total"), 1.0);
    for scrape in [initiator, responder] {
        assert_eq!(sum(scrape, "libp2p_punch_session_paths_total"), 1.0, "{scrape:#?}");
        assert_eq!(sum(scrape, "libp2p_punch_session_connect_seconds_count"), 1.0);
        let (whole, parts) = (
            sum(scrape, "libp2p_punch_session_connect_seconds_sum"),
            sum(scrape, "libp2p_punch_session_phase_seconds_sum"),
        );
        assert!(whole > 0.02, "{whole} s are less than the latency");
        assert!((whole - parts).abs() < 1e-6, "the phases took {parts} s of {whole} s");
        assert_eq!(scrape[r#"libp2p_punch_coordinators{state="registered"}"#], 1.0);
        assert_eq!(sum(scrape, "libp2p_punch_nat"), 1.0);
    }
    let attempts = |result: &str| initiator[&format!(r#"libp2p_punch_attempts_total{{result="{result}"}}"#)];
    assert!(attempts("success") + initiator["libp2p_punch_attempts_in_flight"] == 1.0, "{initiator:#?}");
}

fn check_coordinator(coordinator: &BTreeMap<String, f64>, peers: [&BTreeMap<String, f64>; 2]) {
    let requests = |result: &str| {
        coordinator[&format!(r#"libp2p_punch_coordinator_requests_total{{result="{result}"}}"#)]
    };
    assert_eq!(requests("forwarded"), 1.0);
    assert!(requests("peer-not-connected") >= 2.0, "a dial asks again for a peer that is not known");
    assert_eq!(requests("rate-limited"), 0.0);
    assert_eq!(coordinator["libp2p_punch_coordinator_registered_peers"], 2.0);
    let accepted = r#"libp2p_punch_coordinator_registrations_total{result="accepted"}"#;
    assert!(coordinator[accepted] >= 2.0, "each peer registered, and renewed that");
    assert_eq!(sum(coordinator, "libp2p_punch_coordinator_registrations_total"), coordinator[accepted]);
    for peer in peers {
        assert_eq!(peer[r#"libp2p_punch_registrations_total{result="accepted"}"#], 1.0);
    }
    let bytes = |scrape: &BTreeMap<String, f64>, direction: &str| {
        scrape[&format!(r#"libp2p_punch_control_stream_bytes_total{{direction="{direction}"}}"#)]
    };
    assert!(bytes(coordinator, "received") > 0.0);
    assert_eq!(sum(coordinator, "libp2p_punch_sessions_total"), 0.0);
}

#[test]
fn no_label_names_a_remote() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = crate::network::coordinator(&world);
        let host = Site::EIM_APDF.host(&world, 1, 0.0);
        let mut peer = Measured::new(swarm(&host, 1, client(&address), |punch, _| punch));
        timeout(MEASURED, peer.run()).await.expect_err("it runs for ever");
        for sample in peer.scrape().keys() {
            assert!(!sample.contains("12D3") && !sample.contains("203.0.113"), "{sample}");
        }
    });
}
