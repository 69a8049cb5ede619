//! The protocol of libp2p-punch with no I/O.
//!
//! [`Agent`](agent::Agent) takes inputs through `handle_*(…, now)` and gives outputs through `poll_*`; time comes
//! in as `now`, randomness as a seed. No sockets, clocks, tasks or random sources live here, so that
//! whatever can be decided without I/O can be simulated: ten thousand sessions in a second.

#![forbid(unsafe_code)]

pub mod address_policy;
pub mod agent;
mod backoff;
pub mod candidate;
mod checklist;
pub mod command;
pub mod config;
mod coordinator;
pub mod counters;
mod early_packets;
pub mod event;
pub mod filtering;
pub mod frame;
mod hairpin;
pub mod idling;
pub mod keys;
pub mod limits;
mod links;
pub mod nat;
mod network;
mod network_prefix;
pub mod observer;
mod outbox;
mod pair;
pub mod probe;
mod probe_budget;
mod registration;
mod registrations;
mod renewal;
mod search;
mod session;
pub mod strategy;
#[cfg(test)]
mod tests;

use std::{fmt, net::SocketAddr};

pub use checklist::MAX_PAIRS;
pub use network_prefix::NetworkPrefix;

/// A local UDP socket of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

/// One connection to a peer that speaks the control protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// One attempt at a QUIC connection, at one virtual peer address.
///
/// Every attempt of a session has its own flow, so that a retry starts afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u64);

/// The name of a session on the wire, chosen at random by the initiator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
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
    let observers = observer::Observers::new([7; 32]);
    let key = observers.key_of(LinkId(3));
    let request = observers.judge(bytes);
    if let Some((_, observer::Request::Hold { delay, .. })) = request {
        assert!((1..=600).contains(&delay));
    }
    let test = filtering::test_of(bytes);
    let round = test.and_then(|data| Some((data, filtering::authentic_round(bytes, &key)?)));
    assert!(round.is_none_or(|(data, round)| filtering::datagram(data, &key, round) == *bytes));
    let held = idling::judge(bytes, &key, [5; 8]);
    assert!(held.is_none_or(|held| idling::answer(&key, [5; 8], held) == *bytes));
    request.is_some() || round.is_some() || held.is_some()
}
