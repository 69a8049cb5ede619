//! The protocol of libp2p-punch with no I/O.
//!
//! [`Endpoint`](endpoint::Endpoint) takes inputs through `handle_*(…, now)` and gives outputs
//! through `poll_*`; time comes in as `now`, randomness as a seed. The crate has no sockets,
//! clocks, tasks or random sources, so that every decision can be simulated: ten thousand sessions
//! in a second.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test is a caller"))]

pub mod address_policy;
mod backoff;
pub mod candidate;
pub mod command;
pub mod config;
mod control_streams;
mod coordinator;
mod coordinator_exchange;
pub mod counters;
pub mod endpoint;
mod environment;
pub mod event;
pub mod explain;
pub mod gater;
mod local_addresses;
pub mod nat;
mod network_prefix;
mod outbox;
pub mod pacing;
mod probe_budget;
pub mod rate_limit;
mod registration_client;
mod session;
#[cfg(test)]
mod tests;
pub mod wire;

use std::{fmt, net::SocketAddr};

pub use network_prefix::NetworkPrefix;
pub use session::checklist::MAX_PAIRS;

/// A local UDP socket of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

/// One connection to a peer that speaks the control protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControlStreamId(pub u64);

/// An attempt at a QUIC connection, at one virtual peer address.
///
/// Every attempt of a session has its own virtual connection, so that a retry starts from the
/// beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualConnectionId(pub u64);

/// The name of a session on the wire, chosen at random by the initiator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An attempt of a session, as frames name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttemptId {
    pub(crate) session: SessionId,
    /// The initiator's number of the attempt, from 0.
    pub(crate) round: u32,
}

/// A way to a peer: one of our sockets and an address of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// Our end.
    pub socket: SocketId,
    /// Their end, as our socket sees it.
    pub remote: SocketAddr,
}

/// The readers of datagrams that belong to no session, on arbitrary bytes; whether any takes them.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz_requests(bytes: &[u8]) -> bool {
    let observers = nat::observer::Observers::new([7; 32]);
    let key = observers.key_of(ControlStreamId(3));
    let request = observers.judge(bytes);
    if let Some((_, nat::observer::Request::Hold { delay, .. })) = request {
        assert!((1..=600).contains(&delay));
    }
    let test = nat::filtering::test_of(bytes);
    let round = test.and_then(|data| Some((data, nat::filtering::authentic_round(bytes, &key)?)));
    assert!(round.is_none_or(|(data, round)| nat::filtering::datagram(data, &key, round) == *bytes));
    let held = nat::binding_lifetime::judge(bytes, &key, [5; 8]);
    assert!(held.is_none_or(|held| nat::binding_lifetime::answer(&key, [5; 8], held) == *bytes));
    request.is_some() || round.is_some() || held.is_some()
}
