//! Lines of events for people.

use std::net::SocketAddr;

use libp2p::PeerId;
use libp2p_punch::{
    event::{Candidate, CandidateKind},
    event::{Event, NatEvent, RelayEvent, SessionEvent},
    explain::Explain,
    port_mapping::{self, Announcement},
};

use super::{
    nat,
    units::{milliseconds, short},
};
use crate::node::{Connection, NodeEvent};

/// Line for people: a label and a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) label: &'static str,
    pub(crate) text: String,
}

impl Entry {
    fn new(label: &'static str, text: impl Into<String>) -> Self {
        Self { label, text: text.into() }
    }
}

/// Writer of the lines of one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct TextLog {
    /// Last line about the NAT. New evidence for the same findings has no line.
    nat: String,
}

impl TextLog {
    /// Returns the line of an event, if the event has one.
    pub(crate) fn entry(&mut self, event: &NodeEvent) -> Option<Entry> {
        Some(match event {
            NodeEvent::Listening { address } => Entry::new("listening", address.to_string()),
            NodeEvent::Registered { coordinator } => Entry::new("registered", format!("with {coordinator}")),
            NodeEvent::RegistrationFailed { coordinator, reason: Some(reason) } => {
                Entry::new("rejected", format!("by {coordinator}: {reason}"))
            }
            NodeEvent::Nat(report) => {
                let words = nat::words(report);
                let is_news = words != self.nat && nat::is_known(report);
                self.nat = words;
                return is_news.then(|| Entry::new("nat", self.nat.clone()));
            }
            NodeEvent::PortMapping(event) => port_mapping(event)?,
            NodeEvent::Connected(connection) => connected(connection),
            NodeEvent::Disconnected { peer } => {
                Entry::new("closed", format!("the connection to {}", short(peer)))
            }
            NodeEvent::SessionFailed { peer, reason, is_requested: false, is_connected: false } => {
                failed(*peer, reason)
            }
            NodeEvent::Echoed { bytes, rtt, .. } => {
                Entry::new("echo", format!("{bytes} bytes there and back in {} ms", milliseconds(*rtt)))
            }
            NodeEvent::Traversal(event) => return traversal(event),
            NodeEvent::ListenFailed { .. }
            | NodeEvent::RegistrationFailed { .. }
            | NodeEvent::DialFailed { .. }
            | NodeEvent::SessionFailed { .. }
            | NodeEvent::EchoFailed { .. } => return None,
        })
    }
}

fn port_mapping(event: &port_mapping::Event) -> Option<Entry> {
    let (words, mapping) = match event {
        port_mapping::Event::Mapped(mapping) | port_mapping::Event::Changed(mapping) => {
            match mapping.announcement {
                Announcement::Confirmed => ("leads here", mapping),
                Announcement::NotGlobal => ("leads here, behind another NAT", mapping),
                _ => ("leads here, as the gateway says; no peer has seen that address", mapping),
            }
        }
        port_mapping::Event::Unmapped(mapping) => ("leads here no longer", mapping),
        _ => return None,
    };
    let port_mapping::Mapping { external, port, protocol, .. } = mapping;
    Some(Entry::new("mapping", format!("{external} {words}, to port {port} ({protocol})")))
}

fn connected(connection: &Connection) -> Entry {
    let Connection { peer, is_relayed, origin, remote, elapsed } = connection;
    let path = if *is_relayed { "relayed" } else { "direct" };
    let origin = origin.map(|origin| format!(" ({origin})")).unwrap_or_default();
    let elapsed = milliseconds(*elapsed);
    Entry::new("connected", format!("{path}{origin}, {remote}, {elapsed} ms, with {peer}"))
}

/// Line of the address at which metrics are served.
pub(super) fn metrics(address: SocketAddr) -> Entry {
    Entry::new("metrics", format!("at http://{address}/metrics"))
}

/// Line of a peer that cannot be connected.
pub(super) fn failed(peer: PeerId, failure: &impl Explain) -> Entry {
    Entry::new("failed", format!("{failure}, with {} ({})", short(&peer), failure.code()))
}

/// Line after that of a failure.
pub(super) fn remedy(failure: &impl Explain) -> Entry {
    Entry::new("remedy", failure.remedy())
}

fn traversal(event: &Event) -> Option<Entry> {
    Some(match event {
        Event::Session(SessionEvent::Phase { peer, from, to, .. }) => {
            let from = from.map(|phase| format!("after {phase}, ")).unwrap_or_default();
            Entry::new("phase", format!("{to:<15} {from}with {}", short(peer)))
        }
        Event::Session(SessionEvent::Retry { peer, attempt, reason, delay, .. }) => {
            let (attempt, delay) = (attempt + 2, delay.as_secs_f64());
            Entry::new("retry", format!("attempt {attempt} in {delay:.1} s with {}: {reason}", short(peer)))
        }
        Event::Session(SessionEvent::Candidates { local, remote, .. }) => {
            Entry::new("candidates", format!("ours {}; theirs {}", candidates(local), candidates(remote)))
        }
        Event::Session(SessionEvent::PathValidated { path, rtt, .. }) => {
            Entry::new("path", format!("to {} answers after {} ms", path.remote, milliseconds(*rtt)))
        }
        Event::Session(SessionEvent::PathSelected { path, .. }) => {
            Entry::new("selected", format!("the path to {}", path.remote))
        }
        Event::Nat(NatEvent::Observed { observer, address, .. }) => {
            Entry::new("observed", format!("{} sees us at {address}", short(observer)))
        }
        Event::Relay(RelayEvent::Connected { peer, relay, .. }) => {
            let relay = relay.as_ref().map(|relay| format!(" over {}", short(relay)));
            Entry::new("relayed", format!("{} is connected{}", short(peer), relay.unwrap_or_default()))
        }
        Event::Session(SessionEvent::Denied { peer, .. }) => Entry::new(
            "denied",
            format!("the connection with {}: its swarm, or ours, does not want it", short(peer)),
        ),
        Event::Session(SessionEvent::PathLost { peer, .. }) => {
            Entry::new("lost", format!("every path to {}: its NAT, or ours, forgot us", short(peer)))
        }
        Event::Relay(RelayEvent::Failed { peer, reason, .. }) => {
            Entry::new("no relay", format!("to {}: {reason}", short(peer)))
        }
        Event::Relay(RelayEvent::Upgraded { peer, .. }) => {
            Entry::new("upgraded", format!("{} is connected directly now", short(peer)))
        }
        Event::Relay(RelayEvent::Reserved { relay, .. }) => {
            Entry::new("reserved", format!("with the relay {}", short(relay)))
        }
        Event::Relay(RelayEvent::Unreserved { relay, .. }) => {
            Entry::new("unreserved", format!("with the relay {}", short(relay)))
        }
        _ => return None,
    })
}

/// List such as `host 192.168.1.2:4001, reflexive 203.0.113.7:4001`.
fn candidates(all: &[Candidate]) -> String {
    if all.is_empty() {
        return "none".into();
    }
    let words = all.iter().map(|candidate| format!("{} {}", kind(candidate.kind), candidate.address));
    words.collect::<Vec<_>>().join(", ")
}

fn kind(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::ServerReflexive => "reflexive",
        CandidateKind::PeerReflexive => "peer-reflexive",
        CandidateKind::Predicted => "predicted",
        CandidateKind::PortMapped => "mapped",
        CandidateKind::Relayed => "relayed",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use libp2p_punch::nat::Report;

    use super::*;

    #[test]
    fn the_same_findings_about_the_nat_have_one_line() {
        let (peer, at) = (PeerId::random(), std::time::Instant::now());
        let evidence = libp2p_punch::nat::Evidence { observers: vec![peer], observations: 1, at };
        let confidence = libp2p_punch::nat::Confidence::Medium;
        let mut report = Report::default();
        report.udp_blocked = Some(libp2p_punch::nat::Finding { value: true, confidence, evidence });
        let mut log = TextLog::default();
        assert_eq!(log.entry(&NodeEvent::Nat(Box::default())), None, "nothing is known yet");
        let event = NodeEvent::Nat(Box::new(report));
        assert_eq!(log.entry(&event).map(|entry| entry.label), Some("nat"));
        assert_eq!(log.entry(&event), None);
    }
}
