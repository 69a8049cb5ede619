//! Standard output of a peer: one JSON object a line.

use std::io::Write;

use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

use crate::features::Feature;

/// One line of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line {
    /// The listener can be dialed at this address, which ends in `/p2p/PEER_ID`.
    Listening {
        /// The address.
        address: Multiaddr,
    },
    /// A connection was established.
    Connected {
        /// The remote peer.
        peer: String,
    },
    /// Identify has reported the remote.
    Identified {
        /// The peer.
        peer: String,
        /// Its agent version.
        agent: String,
    },
    /// The last connection with a peer is gone.
    Closed {
        /// The peer.
        peer: String,
    },
    /// Result of a feature, from the view of the dialer.
    Feature {
        /// The feature.
        feature: Feature,
        /// The feature works.
        ok: bool,
        /// A measurement, or the reason of the failure.
        detail: String,
    },
}

impl Line {
    /// Writes the line. A reader that is gone is no failure: the program that started this one no
    /// longer reads.
    pub fn print(&self) {
        let Ok(line) = serde_json::to_string(self) else { return };
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_it_is_before_what_it_says() {
        let line = Line::Feature { feature: Feature::HalfClose, ok: true, detail: "12 ms".into() };
        let json = r#"{"event":"feature","feature":"half-close","ok":true,"detail":"12 ms"}"#;
        assert_eq!(serde_json::to_string(&line).unwrap(), json);
        assert_eq!(serde_json::from_str::<Line>(json).unwrap(), line);
    }
}
