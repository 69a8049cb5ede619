//! Outcome of one dial.

use std::time::Duration;

/// Outcome of one dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The peers are connected.
    Connected {
        /// Through a relay.
        relayed: bool,
        /// From the wish to the connection.
        elapsed: Duration,
        /// Where the dialer's path ends, as a multiaddr, if it was told.
        remote: Option<String>,
    },
    /// They are not.
    Failed {
        /// One word.
        reason: String,
        /// One sentence.
        message: String,
    },
}
