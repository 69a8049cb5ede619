//! JSON lines of events.

use std::net::SocketAddr;

use libp2p::PeerId;
use libp2p_punch::{
    event::{Event, Phase, SessionEvent},
    explain::Explain,
    port_mapping::{self, Announcement},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{nat, units::milliseconds};
use crate::node::{Connection, NodeEvent};

/// Returns the line of an event, if the event has one.
pub(super) fn event(event: &NodeEvent) -> Option<Value> {
    Some(match event {
        NodeEvent::Listening { address } => json!({ "event": "listening", "address": address }),
        NodeEvent::Registered { coordinator } => {
            json!({ "event": "registered", "coordinator": coordinator.to_string() })
        }
        NodeEvent::Traversal(Event::Session(SessionEvent::Phase { peer, from, to, .. })) => {
            phase(*peer, *from, *to)
        }
        NodeEvent::PortMapping(event) => port_mapping(event)?,
        NodeEvent::Connected(connection) => connected(connection),
        NodeEvent::Nat(report) if nat::is_known(report) => nat::json(report, Instant::now().into_std()),
        NodeEvent::Echoed { bytes, rtt, .. } => {
            json!({ "event": "echo", "bytes": bytes, "rtt_ms": milliseconds(*rtt) })
        }
        NodeEvent::SessionFailed { peer, reason, is_requested: false, is_connected: false } => {
            failed(*peer, reason)
        }
        _ => return None,
    })
}

fn port_mapping(event: &port_mapping::Event) -> Option<Value> {
    let (state, mapping) = match event {
        port_mapping::Event::Mapped(mapping) | port_mapping::Event::Changed(mapping) => {
            match mapping.announcement {
                Announcement::Confirmed => ("confirmed", mapping),
                Announcement::NotGlobal => ("not-global", mapping),
                _ => ("not-observed", mapping),
            }
        }
        port_mapping::Event::Unmapped(mapping) => ("ended", mapping),
        _ => return None,
    };
    Some(json!({
        "event": "port-mapping",
        "state": state,
        "protocol": mapping.protocol.as_str(),
        "port": mapping.port,
        "external": mapping.external,
    }))
}

fn connected(connection: &Connection) -> Value {
    let Connection { peer, is_relayed, origin, remote, elapsed } = connection;
    let relay = is_relayed.then(|| "relay".to_owned());
    json!({
        "event": "connected",
        "peer": peer.to_string(),
        "path": if *is_relayed { "relayed" } else { "direct" },
        "through": relay.or_else(|| origin.map(|origin| origin.to_string())),
        "remote": remote,
        "elapsed_ms": milliseconds(*elapsed),
    })
}

/// Line of a session that goes from one phase to another.
fn phase(peer: PeerId, from: Option<Phase>, to: Phase) -> Value {
    json!({
        "event": "phase",
        "peer": peer.to_string(),
        "from": from.map_or_else(|| "idle".to_owned(), |phase| phase.to_string()),
        "to": to.to_string(),
    })
}

/// Line of the address at which metrics are served.
pub(super) fn metrics(address: SocketAddr) -> Value {
    json!({ "event": "metrics", "address": address.to_string() })
}

/// Line of a peer that cannot be connected.
pub(super) fn failed(peer: PeerId, failure: &impl Explain) -> Value {
    json!({
        "event": "failed",
        "peer": peer.to_string(),
        "code": failure.code(),
        "message": failure.to_string(),
        "remedy": failure.remedy(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p::{Multiaddr, multiaddr::Protocol};
    use libp2p_punch::event::{FailureReason, PathKind};
    use libp2p_punch::transport::ConnectionOrigin;

    use super::*;

    fn line(node_event: &NodeEvent) -> String {
        event(node_event).map(|value| value.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_listen_address_and_a_registration_are_the_documented_objects() {
        let peer = PeerId::random();
        let address: Multiaddr = "/ip4/192.0.2.7/udp/4001/quic-v1".parse().unwrap();
        let address = address.with(Protocol::P2p(peer));
        let expected =
            format!(r#"{{"event":"listening","address":"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{peer}"}}"#);
        assert_eq!(line(&NodeEvent::Listening { address }), expected);
        let expected = format!(r#"{{"event":"registered","coordinator":"{peer}"}}"#);
        assert_eq!(line(&NodeEvent::Registered { coordinator: peer }), expected);
    }

    #[test]
    fn a_port_mapping_says_what_its_address_is_worth() {
        let external = "192.0.2.7:50000".parse().unwrap();
        let states = [
            (Announcement::Confirmed, "confirmed"),
            (Announcement::NotGlobal, "not-global"),
            (Announcement::NotObserved, "not-observed"),
        ];
        for (announcement, state) in states {
            let protocol = port_mapping::Protocol::NatPmp;
            let mapping = port_mapping::Mapping { protocol, port: 4001, external, announcement };
            let expected = |state| {
                format!(
                    r#"{{"event":"port-mapping","state":"{state}","protocol":"nat-pmp","port":4001,"external":"192.0.2.7:50000"}}"#
                )
            };
            let mapped = NodeEvent::PortMapping(port_mapping::Event::Mapped(mapping));
            assert_eq!(line(&mapped), expected(state));
            let unmapped = NodeEvent::PortMapping(port_mapping::Event::Unmapped(mapping));
            assert_eq!(line(&unmapped), expected("ended"));
        }
        assert_eq!(line(&NodeEvent::PortMapping(port_mapping::Event::Refused { port: 4001 })), "");
    }

    #[test]
    fn a_connection_is_the_documented_object() {
        let peer = PeerId::random();
        let direct = Connection {
            peer,
            is_relayed: false,
            origin: Some(ConnectionOrigin::Session(PathKind::ServerReflexive)),
            remote: "/ip4/192.0.2.7/udp/4001".parse().unwrap(),
            elapsed: Duration::from_micros(12_345),
        };
        let object = |path: &str, through: &str| {
            format!(
                r#"{{"event":"connected","peer":"{peer}","path":"{path}","through":{through},"remote":"/ip4/192.0.2.7/udp/4001","elapsed_ms":12.345}}"#
            )
        };
        let closed = Connection { origin: None, ..direct.clone() };
        let relayed = Connection { is_relayed: true, ..closed.clone() };
        assert_eq!(line(&NodeEvent::Connected(direct)), object("direct", r#""server-reflexive""#));
        assert_eq!(line(&NodeEvent::Connected(closed)), object("direct", "null"));
        assert_eq!(line(&NodeEvent::Connected(relayed)), object("relayed", r#""relay""#));
    }

    #[test]
    fn a_phase_and_a_failure_are_the_documented_objects() {
        let peer = PeerId::random();
        let phase = |from, to| phase(peer, from, to).to_string();
        let expected = |from: &str, to: &str| {
            format!(r#"{{"event":"phase","peer":"{peer}","from":"{from}","to":"{to}"}}"#)
        };
        assert_eq!(phase(Some(Phase::Discovery), Phase::Coordination), expected("discovery", "coordination"));
        assert_eq!(phase(None, Phase::Discovery), expected("idle", "discovery"));
        let reason = FailureReason::Hopeless;
        let failed = failed(peer, &reason).to_string();
        let remedy = reason.remedy();
        let expected = format!(
            r#"{{"event":"failed","peer":"{peer}","code":"hopeless","message":"{reason}","remedy":"{remedy}"}}"#
        );
        assert_eq!(failed, expected);
    }

    #[test]
    fn a_failed_session_has_a_line_unless_the_dial_or_a_connection_speaks_for_it() {
        let peer = PeerId::random();
        let failed = |is_requested, is_connected| {
            let reason = FailureReason::PunchingTimeout;
            line(&NodeEvent::SessionFailed { peer, reason, is_requested, is_connected })
        };
        assert!(failed(false, false).contains(r#""code":"punching-timeout""#));
        for (is_requested, is_connected) in [(true, false), (false, true), (true, true)] {
            assert_eq!(failed(is_requested, is_connected), "");
        }
    }
}
