//! Outcome of one dial.

use std::time::Duration;

/// Outcome of one dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The peers are connected.
    Connected {
        /// The connection runs through a relay.
        relayed: bool,
        /// Time from the dial to the connection.
        elapsed: Duration,
        /// Remote address of the dialer's path, as a multiaddr, if it is known.
        remote: Option<String>,
    },
    /// The peers are not connected.
    Failed {
        /// Reason in one word.
        reason: String,
        /// Reason in one sentence.
        message: String,
    },
}
