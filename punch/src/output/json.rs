//! What the program prints on stdout: JSON, one object a line, or lines for people.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use libp2p_punch::{
    core::{event::Phase, nat::Report as NatReport},
    transport::ConnectedThrough,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{demo::Story, exit::Failure, nat};

/// Something that both kinds of reader are told.
#[derive(Debug, Clone)]
pub(crate) enum Line<'a> {
    /// The swarm listens on an address.
    Listening { address: &'a Multiaddr },
    /// A coordinator accepted our registration.
    Registered { coordinator: PeerId },
    /// A session went from one phase to another; a new session comes from none.
    Phase { peer: PeerId, from: Option<Phase>, to: Phase },
    /// There is a connection to a peer.
    Connected {
        peer: PeerId,
        relayed: bool,
        through: Option<ConnectedThrough>,
        remote: &'a Multiaddr,
        elapsed: Duration,
    },
    /// Something else is known of our NAT.
    Nat(&'a NatReport),
    /// A peer sent back what we sent to it.
    Echo { bytes: usize, rtt: Duration },
    /// There is no connection to a peer, and this is why.
    Failed { peer: PeerId, reason: &'a str, message: &'a str },
}

impl Line<'_> {
    fn json(&self) -> Value {
        match self {
            Line::Listening { address } => json!({ "event": "listening", "address": address }),
            Line::Registered { coordinator } => {
                json!({ "event": "registered", "coordinator": coordinator.to_string() })
            }
            Line::Phase { peer, from, to } => json!({
                "event": "phase",
                "peer": peer.to_string(),
                "from": from.map_or_else(|| "idle".to_owned(), |phase| phase.to_string()),
                "to": to.to_string(),
            }),
            Line::Connected { peer, relayed, through, remote, elapsed } => json!({
                "event": "connected",
                "peer": peer.to_string(),
                "path": path_word(*relayed),
                "through": through_word(*relayed, *through),
                "remote": remote,
                "elapsed_ms": milliseconds(*elapsed),
            }),
            Line::Nat(report) => nat::json(report, Instant::now().into_std()),
            Line::Echo { bytes, rtt } => {
                json!({ "event": "echo", "bytes": bytes, "rtt_ms": milliseconds(*rtt) })
            }
            Line::Failed { peer, reason, message } => json!({
                "event": "failed",
                "peer": peer.to_string(),
                "reason": reason,
                "message": message,
            }),
        }
    }

    fn words(&self) -> (&'static str, String) {
        match self {
            Line::Listening { address } => ("listening", address.to_string()),
            Line::Registered { coordinator } => ("registered", format!("with {coordinator}")),
            Line::Phase { peer, from, to } => {
                let from = from.map(|phase| format!("after {phase}, "));
                ("phase", format!("{to:<15} {}with {}", from.unwrap_or_default(), short(peer)))
            }
            Line::Connected { peer, relayed, through, remote, elapsed } => {
                let (path, elapsed) = (path_word(*relayed), milliseconds(*elapsed));
                let through = through.map(|through| format!(" ({through})")).unwrap_or_default();
                ("connected", format!("{path}{through}, {remote}, {elapsed} ms, with {peer}"))
            }
            Line::Nat(report) => ("nat", nat::words(report)),
            Line::Echo { bytes, rtt } => {
                ("echo", format!("{bytes} bytes there and back in {} ms", milliseconds(*rtt)))
            }
            Line::Failed { peer, message, .. } => ("failed", format!("{message}, with {}", short(peer))),
        }
    }
}

/// Where lines go.
#[derive(Debug)]
enum Sink {
    /// To stdout, as JSON.
    Json,
    /// To stdout, in words, with the time since this moment.
    Words(Instant),
    /// Into a story that is told later, as the words of one of its peers.
    Story(&'static str, Arc<Story>),
}

/// Tells what happens to a peer.
#[derive(Debug)]
pub(crate) struct Report(Sink);

impl Report {
    /// To stdout; with `json`, nothing but JSON lines.
    pub(crate) fn new(json: bool) -> Self {
        Self(if json { Sink::Json } else { Sink::Words(Instant::now()) })
    }

    /// Into a story, in which the peer is called `name`.
    pub(crate) fn story(name: &'static str, story: Arc<Story>) -> Self {
        Self(Sink::Story(name, story))
    }

    /// Whether the reader is a program.
    pub(crate) fn is_json(&self) -> bool {
        matches!(self.0, Sink::Json)
    }

    /// Tells the reader.
    pub(crate) fn line(&self, line: &Line<'_>) -> Result<(), Failure> {
        if let Sink::Json = self.0 {
            return print(&line.json().to_string());
        }
        let (label, text) = line.words();
        self.note(label, &text)
    }

    /// Tells a person, and nobody else.
    pub(crate) fn note(&self, label: &'static str, text: &str) -> Result<(), Failure> {
        match &self.0 {
            Sink::Json => Ok(()),
            Sink::Words(begun) => {
                let seconds = begun.elapsed().as_secs_f64();
                print(&format!("{seconds:>9.3} s  {label:<11} {text}"))
            }
            Sink::Story(name, story) => {
                story.tell(name, label, text);
                Ok(())
            }
        }
    }
}

/// Writes one line to stdout, at once.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::error(format!("cannot write to stdout: {error}")))
}

/// Milliseconds with three decimals.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The last characters of a peer id, which differ where the first are alike.
pub(crate) fn short(peer: &PeerId) -> String {
    let id = peer.to_string();
    format!("…{}", id.get(id.len().saturating_sub(8)..).unwrap_or_default())
}

/// `/ip4/…/udp/…` of a socket address.
pub(crate) fn udp_address(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Udp(address.port()))
}

/// The address and port at which a multiaddr begins, `/ip4/…/udp/…`, if it begins so.
pub(crate) fn udp_part(address: &Multiaddr) -> Option<Multiaddr> {
    let mut parts = address.iter();
    match (parts.next()?, parts.next()?) {
        (ip @ (Protocol::Ip4(_) | Protocol::Ip6(_)), port @ Protocol::Udp(_)) => {
            Some(Multiaddr::empty().with(ip).with(port))
        }
        _ => None,
    }
}

fn path_word(relayed: bool) -> &'static str {
    if relayed { "relayed" } else { "direct" }
}

/// How a connection came about: a word of [`ConnectedThrough`], or `relay`; `None` if it is gone already.
fn through_word(relayed: bool, through: Option<ConnectedThrough>) -> Option<String> {
    let relay = relayed.then(|| "relay".to_owned());
    relay.or_else(|| through.map(|through| through.to_string()))
}

#[cfg(test)]
mod tests {
    use libp2p_punch::core::event::PathKind;

    use super::*;

    #[test]
    fn every_line_is_the_documented_object() {
        let peer = PeerId::random();
        let id = peer.to_string();
        let remote: Multiaddr = "/ip4/192.0.2.7/udp/4001".parse().unwrap();
        let address = remote.clone().with(Protocol::QuicV1).with(Protocol::P2p(peer));
        let elapsed = Duration::from_micros(12_345);
        let cases = [
            (
                Line::Listening { address: &address },
                format!(r#"{{"event":"listening","address":"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{id}"}}"#),
            ),
            (
                Line::Registered { coordinator: peer },
                format!(r#"{{"event":"registered","coordinator":"{id}"}}"#),
            ),
            (
                Line::Phase { peer, from: Some(Phase::Discovery), to: Phase::Coordination },
                format!(r#"{{"event":"phase","peer":"{id}","from":"discovery","to":"coordination"}}"#),
            ),
            (
                Line::Phase { peer, from: None, to: Phase::Discovery },
                format!(r#"{{"event":"phase","peer":"{id}","from":"idle","to":"discovery"}}"#),
            ),
            (
                Line::Connected {
                    peer,
                    relayed: false,
                    through: Some(ConnectedThrough::Session(PathKind::ServerReflexive)),
                    remote: &remote,
                    elapsed,
                },
                format!(
                    r#"{{"event":"connected","peer":"{id}","path":"direct","through":"server-reflexive","remote":"/ip4/192.0.2.7/udp/4001","elapsed_ms":12.345}}"#
                ),
            ),
            (
                Line::Connected { peer, relayed: true, through: None, remote: &remote, elapsed },
                format!(
                    r#"{{"event":"connected","peer":"{id}","path":"relayed","through":"relay","remote":"/ip4/192.0.2.7/udp/4001","elapsed_ms":12.345}}"#
                ),
            ),
            (Line::Echo { bytes: 64, rtt: elapsed }, r#"{"event":"echo","bytes":64,"rtt_ms":12.345}"#.into()),
            (
                Line::Failed { peer, reason: "timeout", message: "too late" },
                format!(r#"{{"event":"failed","peer":"{id}","reason":"timeout","message":"too late"}}"#),
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(line.json().to_string(), expected);
        }
    }

    #[test]
    fn the_udp_part_of_an_address_ends_at_the_port() {
        let address: Multiaddr = "/ip6/2001:db8::1/udp/9/quic-v1".parse().unwrap();
        assert_eq!(udp_part(&address), Some("/ip6/2001:db8::1/udp/9".parse().unwrap()));
        assert_eq!(udp_part(&"/dns4/example.com/udp/9".parse().unwrap()), None);
        let socket: SocketAddr = "192.0.2.7:4001".parse().unwrap();
        assert_eq!(udp_address(socket), "/ip4/192.0.2.7/udp/4001".parse().unwrap());
    }
}
