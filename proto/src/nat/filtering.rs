//! Filtering tests (RFC 4787 §5, `docs/protocol.md` §7.8).
//!
//! A coordinator sends a few small datagrams to the address of a client's connection. They leave
//! from the address of the connection, and from ports and addresses to which the client has never
//! sent. The datagrams that arrive show the filtering behaviour.
//!
//! A client's request names no address. The datagrams go to the validated address of the
//! connection. They are few, shorter than the request, and end when the connection moves. A
//! coordinator with a single address asks another coordinator to send a few of them, too
//! (`assist`).

mod assist;
mod client;
mod sending;
mod server;

use std::{net::SocketAddr, time::Duration};

#[cfg(test)]
pub(crate) use assist::ASSIST_RATE;
#[cfg(test)]
pub(crate) use assist::MAX_ASSISTS;
pub(crate) use client::{FilteringTestClient, Outcome};
#[cfg(test)]
pub(crate) use server::FILTER_RATE;
#[cfg(test)]
pub(crate) use server::MAX_SOURCES;
#[cfg(test)]
pub(crate) use server::MAX_TESTS;
pub(crate) use server::{FilteringTestServer, Senders, needs_another};

use crate::{
    Path,
    wire::{
        envelope::{Envelope, Kind, PROBE_LEN, SealedProbe},
        mac::MacKey,
    },
};

/// Filtering behaviour of a NAT (RFC 4787 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilteringBehaviour {
    /// Accepts packets from every sender to a mapping (EIF), or no NAT and no firewall.
    EndpointIndependent,
    /// Accepts packets from every port of an IP address to which the host has sent (ADF).
    AddressDependent,
    /// Accepts packets only from an address and port to which the host has sent (APDF).
    AddressAndPortDependent,
    /// One of the first two. Which one is unknown, because no observer could send from another IP
    /// address.
    PortIndependent,
}

/// Delays of the rounds. Each delay counts from the round before.
pub(crate) const PAUSES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];
/// Number of rounds of a test. The loss of all datagrams of one source must not look like a filter.
pub(crate) const ROUNDS: usize = PAUSES.len();

/// Returns the datagram of a round. `data` and `key` are those of the `FILTER_TEST`, and rounds
/// count from 0.
pub fn datagram(data: [u8; 8], key: &[u8; 32], round: u8) -> [u8; PROBE_LEN] {
    let round = u64::from(round).to_be_bytes();
    Envelope::new(Kind::Filter, data, round).seal(&MacKey::new(key))
}

fn parse(datagram: &[u8]) -> Option<SealedProbe<'_>> {
    SealedProbe::parse(datagram).filter(|sealed| sealed.claimed.kind == Kind::Filter)
}

/// Returns the identifier of the test to which a datagram claims to belong.
pub(crate) fn test_of(datagram: &[u8]) -> Option<[u8; 8]> {
    let claimed = parse(datagram)?.claimed;
    (claimed.flags == 0).then_some(claimed.tag)
}

/// Returns the round of a datagram of a test, if the datagram is authentic.
pub(crate) fn authentic_round(datagram: &[u8], key: &[u8; 32]) -> Option<u8> {
    let sealed = parse(datagram)?;
    let round = u8::try_from(u64::from_be_bytes(sealed.claimed.data)).ok()?;
    let is_well_formed = usize::from(round) < ROUNDS && sealed.claimed.is_plain();
    (is_well_formed && sealed.is_authentic(&MacKey::new(key))).then_some(round)
}

/// Returns true if a datagram claims to belong to a test.
pub(crate) fn is_filter_probe(datagram: &[u8]) -> bool {
    test_of(datagram).is_some()
}

/// Contents of `FILTER_TESTED`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilteringTestAnswer {
    pub(crate) data: [u8; 8],
    /// Number of rounds that were sent; zero if the coordinator has refused the test.
    pub(crate) rounds: u8,
    pub(crate) sources: Vec<SocketAddr>,
}

/// Contents of `FILTERING_ASSIST_REQUEST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AssistRequest {
    pub(crate) data: [u8; 8],
    pub(crate) key: [u8; 32],
    /// Address of the client.
    pub(crate) target: SocketAddr,
}

/// Contents of `FILTERING_ASSIST_RESPONSE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AssistResponse {
    pub(crate) data: [u8; 8],
    pub(crate) rounds: u8,
    pub(crate) source: Option<SocketAddr>,
}

/// Identifier, key and path of a test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    pub(crate) data: [u8; 8],
    pub(crate) key: [u8; 32],
    /// Path of the connection: local socket and address of the peer.
    pub(crate) path: Path,
}
