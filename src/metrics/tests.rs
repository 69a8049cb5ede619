//! The guide, the dashboard and the alert rules, against the metrics that exist.

use std::{collections::BTreeSet, fs, path::Path};

use libp2p_identity::{Keypair, PeerId};

use super::*;
use crate::event::{Path as UdpPath, RejectReason, RelayFailure};

fn path() -> UdpPath {
    UdpPath { local: None, remote: ([192, 0, 2, 1], 4001).into() }
}

/// An event for each family of metrics, which has no name in a scrape while it is empty.
fn events(peer: PeerId) -> Vec<Event> {
    let role = SessionRole::Initiator;
    let (elapsed, nats) = (Duration::from_secs(1), NatKinds::default());
    let (times, kind, path) = (PhaseTimes::default(), PathKind::Host, path());
    let reason = FailureReason::Rejected(RejectReason::RateLimited);
    vec![
        Event::Session(SessionEvent::Connected { peer, role, path, kind, elapsed, times, nats }),
        Event::Session(SessionEvent::Failed { peer, role, reason, elapsed, nats }),
        Event::Session(SessionEvent::Retry { peer, attempt: 0, reason, delay: elapsed }),
        Event::Registration(RegistrationEvent::Accepted { coordinator: peer, rtt: Some(elapsed) }),
        Event::Registration(RegistrationEvent::Status(RegistrationStatus::None { configured: 1 })),
        Event::Relay(RelayEvent::Failed { peer, reason: RelayFailure::NoRelay }),
        Event::Nat(NatEvent::Report(Box::default())),
    ]
}

async fn scrape() -> String {
    let keypair = Keypair::generate_ed25519();
    let (_transport, behaviour) = crate::new(&keypair, crate::Config::default()).expect("it is valid");
    let mut registry = Registry::default();
    let metrics = Metrics::new(&behaviour, &mut registry);
    for event in events(keypair.public().to_peer_id()) {
        metrics.record(&event);
    }
    #[cfg(feature = "port-mapping")]
    {
        use crate::port_mapping::{Announcement, Event, Mapping, Protocol};

        let external = "192.0.2.7:4001".parse().expect("an address");
        let (protocol, announcement) = (Protocol::Pcp, Announcement::Confirmed);
        metrics.record(&Event::Mapped(Mapping { protocol, port: 4001, external, announcement }));
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String takes all");
    text
}

/// Names of the samples of a scrape: those that a person describes, and those of histograms too.
fn names(scrape: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let (mut described, mut all) = (BTreeSet::new(), BTreeSet::new());
    for (name, kind) in types {
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        described.insert(format!("{name}{suffix}"));
        if kind == "histogram" {
            all.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        }
    }
    all.extend(described.iter().cloned());
    (described, all)
}

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of metrics in a text: words that begin with the prefix of this library.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    words.filter(|word| word.starts_with("libp2p_punch_")).collect()
}

#[tokio::test]
async fn the_guide_the_dashboard_and_the_alerts_name_the_metrics_that_exist() {
    let (described, all) = names(&scrape().await);
    for name in ["operations.md", "operations/dashboard.json", "operations/alerts.yml"] {
        let text = document(name);
        let used = metrics_in(&text);
        assert!(used.len() > 5, "{name} names {} metrics", used.len());
        for metric in used {
            assert!(all.contains(metric), "{name} names {metric}, which does not exist");
        }
    }
    let guide = document("operations.md");
    let in_guide = metrics_in(&guide);
    for name in described {
        assert!(in_guide.contains(name.as_str()), "docs/operations.md does not describe {name}");
    }
}

#[tokio::test]
async fn a_reason_has_the_code_of_the_failure() {
    let scrape = scrape().await;
    let failed = r#"libp2p_punch_sessions_total{role="initiator",outcome="failed",reason="rate-limited",local_nat="unknown",remote_nat="unknown"} 1"#;
    assert!(scrape.lines().any(|line| line == failed), "{scrape}");
}
