//! Findings about the NAT, for programs and for people.

use std::time::Instant;

use libp2p_punch::{
    nat::Allocation,
    nat::{FilteringBehaviour, Finding, MappingBehaviour, Report},
};
use serde_json::{Value, json};

use super::units::milliseconds;

/// Returns true if there is a finding to print: a node without coordinators of its own learns
/// little.
pub(super) fn is_known(report: &Report) -> bool {
    report.translated.is_some() || value(&report.udp_blocked) == Some(true)
}

/// Returns the `nat` line. An unknown property is `null`; a known one has value, confidence and
/// evidence.
pub(super) fn json(report: &Report, now: Instant) -> Value {
    json!({
        "event": "nat",
        "public_address": finding(&report.public_address, now, |address| json!(address.to_string())),
        "translated": finding(&report.translated, now, |value| json!(value)),
        "mapping": finding(&report.mapping, now, |mapping| json!(mapping_word(*mapping))),
        "filtering": finding(&report.filtering, now, |filtering| json!(filtering_word(*filtering))),
        "port_preserved": finding(&report.port_preserved, now, |value| json!(value)),
        "allocation": finding(&report.allocation, now, allocation_json),
        "early_packets_harm": finding(&report.early_packets_harm, now, |value| json!(value)),
        "idle_lifetime": finding(&report.idle_lifetime, now, |lifetime| json!({
            "at_least_ms": milliseconds(lifetime.at_least),
            "less_than_ms": lifetime.less_than.map(milliseconds),
        })),
        "mapping_lifetime_ms": finding(&report.mapping_lifetime, now, |value| json!(milliseconds(*value))),
        "hairpin": finding(&report.hairpin, now, |value| json!(value)),
        "sharing": finding(&report.sharing, now, |sharing| json!({
            "address": sharing.address.to_string(),
            "sockets": sharing.sockets,
            "peers": sharing.peers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
        "carrier_nat": finding(&report.carrier_nat, now, |value| json!(value)),
        "udp_blocked": finding(&report.udp_blocked, now, |value| json!(value)),
    })
}

fn finding<T>(finding: &Option<Finding<T>>, now: Instant, value: impl FnOnce(&T) -> Value) -> Value {
    let Some(finding) = finding else { return Value::Null };
    let evidence = &finding.evidence;
    json!({
        "value": value(&finding.value),
        "confidence": finding.confidence.to_string(),
        "observers": evidence.observers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "observations": evidence.observations,
        "age_ms": milliseconds(now.saturating_duration_since(evidence.at)),
    })
}

fn mapping_word(mapping: MappingBehaviour) -> &'static str {
    match mapping {
        MappingBehaviour::EndpointIndependent => "eim",
        MappingBehaviour::AddressDependent => "adm",
        MappingBehaviour::AddressAndPortDependent => "apdm",
        MappingBehaviour::EndpointDependent => "adm_or_apdm",
    }
}

fn filtering_word(filtering: FilteringBehaviour) -> &'static str {
    match filtering {
        FilteringBehaviour::EndpointIndependent => "eif",
        FilteringBehaviour::AddressDependent => "adf",
        FilteringBehaviour::AddressAndPortDependent => "apdf",
        FilteringBehaviour::PortIndependent => "eif_or_adf",
    }
}

fn allocation_json(allocation: &Allocation) -> Value {
    match allocation {
        Allocation::Preserving => json!({ "kind": "preserving" }),
        Allocation::Sequential { step } => json!({ "kind": "sequential", "step": step }),
        Allocation::Random => json!({ "kind": "random" }),
        _ => json!({ "kind": "other" }),
    }
}

/// Returns one sentence.
pub(super) fn words(report: &Report) -> String {
    if value(&report.udp_blocked) == Some(true) {
        return "UDP seems to be blocked: no dialed coordinator has answered".into();
    }
    let mut parts = Vec::new();
    match (value(&report.translated), value(&report.public_address)) {
        (Some(true), Some(address)) => parts.push(format!("behind a NAT, seen at {address}")),
        (Some(false), Some(address)) => parts.push(format!("not behind a NAT, at {address}")),
        _ => parts.push("no observer has reported our address yet".into()),
    }
    if value(&report.translated) == Some(true) {
        parts.extend(value(&report.mapping).map(|mapping| mapping_words(mapping).into()));
        parts.extend(value(&report.allocation).map(allocation_words));
        let keeps = value(&report.port_preserved).filter(|_| report.allocation.is_none());
        parts.extend(
            keeps.map(|keeps| if keeps { "it keeps our port" } else { "it does not keep our port" }.into()),
        );
    }
    if let Some(filtering) = &report.filtering {
        parts.push(format!("{} ({} confidence)", filtering_words(filtering.value), filtering.confidence));
    }
    if value(&report.early_packets_harm) == Some(true) {
        parts.push("it has no firewall: early packets take our port".into());
    }
    if let Some(idle) = value(&report.idle_lifetime) {
        let least = idle.at_least.as_secs();
        parts.push(match idle.less_than {
            Some(most) => format!("idle mappings expire after {least} to {} s", most.as_secs()),
            None => format!("idle mappings last at least {least} s"),
        });
    }
    if let Some(lifetime) = value(&report.mapping_lifetime) {
        parts.push(format!("it drops mappings in use after {} s", lifetime.as_secs()));
    }
    if value(&report.hairpin) == Some(true) {
        parts.push("it hairpins".into());
    }
    if value(&report.carrier_nat) == Some(true) {
        parts.push("the NAT seems to be a carrier's".into());
    }
    parts.join("; ")
}

fn value<T: Copy>(finding: &Option<Finding<T>>) -> Option<T> {
    finding.as_ref().map(|finding| finding.value)
}

fn mapping_words(mapping: MappingBehaviour) -> &'static str {
    match mapping {
        MappingBehaviour::EndpointIndependent => "endpoint-independent mapping",
        MappingBehaviour::EndpointDependent => "endpoint-dependent mapping",
        MappingBehaviour::AddressDependent => "address-dependent mapping",
        MappingBehaviour::AddressAndPortDependent => "address- and port-dependent mapping",
    }
}

fn filtering_words(filtering: FilteringBehaviour) -> &'static str {
    match filtering {
        FilteringBehaviour::EndpointIndependent => "endpoint-independent filtering",
        FilteringBehaviour::AddressDependent => "address-dependent filtering",
        FilteringBehaviour::AddressAndPortDependent => "address- and port-dependent filtering",
        FilteringBehaviour::PortIndependent => "endpoint-independent or address-dependent filtering",
    }
}

fn allocation_words(allocation: Allocation) -> String {
    match allocation {
        Allocation::Preserving => "it keeps our port".into(),
        Allocation::Sequential { step } => format!("sequential ports with a step of {step}"),
        Allocation::Random => "random ports".into(),
        _ => "ports of another order".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p::PeerId;
    use libp2p_punch::nat::{Confidence, Evidence};

    use super::*;

    fn found<T>(value: T, observer: PeerId, at: Instant) -> Option<Finding<T>> {
        let evidence = Evidence { observers: vec![observer], observations: 3, at };
        Some(Finding { value, confidence: Confidence::Medium, evidence })
    }

    #[test]
    fn what_is_not_known_is_null_and_what_is_has_its_evidence() {
        let (observer, at) = (PeerId::random(), Instant::now());
        let mut report = Report::default();
        report.filtering = found(FilteringBehaviour::PortIndependent, observer, at);
        report.allocation = found(Allocation::Sequential { step: 2 }, observer, at);
        let json = json(&report, at + Duration::from_millis(1500));
        assert_eq!(json["event"], "nat");
        assert_eq!(json["mapping"], Value::Null);
        assert_eq!(json["allocation"]["value"], json!({ "kind": "sequential", "step": 2 }));
        let expected = json!({
            "value": "eif_or_adf", "confidence": "medium", "observers": [observer.to_string()],
            "observations": 3, "age_ms": 1500.0,
        });
        assert_eq!(json["filtering"], expected);
    }

    #[test]
    fn a_person_reads_one_sentence() {
        let (observer, at) = (PeerId::random(), Instant::now());
        let mut report = Report::default();
        assert_eq!(words(&report), "no observer has reported our address yet");
        report.public_address = found("198.51.100.2:5000".parse().unwrap(), observer, at);
        report.translated = found(true, observer, at);
        report.port_preserved = found(false, observer, at);
        report.filtering = found(FilteringBehaviour::AddressAndPortDependent, observer, at);
        let expected = "behind a NAT, seen at 198.51.100.2:5000; it does not keep our port; \
                        address- and port-dependent filtering (medium confidence)";
        assert_eq!(words(&report), expected);
        report.udp_blocked = found(true, observer, at);
        assert!(words(&report).starts_with("UDP seems to be blocked"));
    }
}
