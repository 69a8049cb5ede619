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

use std::time::Duration;

use hmac::{Hmac, Mac, digest::KeyInit};
use sha2::Sha256;

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
pub(crate) use server::{FilteringTestServer, needs_another};

use crate::{
    Path,
    wire::{
        keys::MAC_LEN,
        probe::{COVERED_LEN, FILTER, PROBE_FIRST_BYTE, PROBE_LEN},
    },
};

/// Delays of the rounds. Each delay counts from the round before.
pub(crate) const PAUSES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];
/// Number of rounds of a test. The loss of all datagrams of one source must not look like a filter.
pub(crate) const ROUNDS: usize = PAUSES.len();

/// Returns the datagram of a round. `data` and `key` are those of the `FILTER_TEST`, and rounds
/// count from 0.
pub fn datagram(data: [u8; 8], key: &[u8; 32], round: u8) -> [u8; PROBE_LEN] {
    let mut out = [0; PROBE_LEN];
    let (covered, authenticator) = out.split_at_mut(COVERED_LEN);
    covered[..3].copy_from_slice(&[PROBE_FIRST_BYTE, FILTER, 0]);
    covered[3..11].copy_from_slice(&data);
    covered[18] = round;
    let whole: [u8; 32] = mac(key).chain_update(covered).finalize().into_bytes().into();
    authenticator.copy_from_slice(&whole[..MAC_LEN]);
    out
}

/// Returns the identifier of the test to which a datagram claims to belong.
pub(crate) fn test_of(datagram: &[u8]) -> Option<[u8; 8]> {
    let known = datagram.len() == PROBE_LEN && datagram.starts_with(&[PROBE_FIRST_BYTE, FILTER, 0]);
    datagram.get(3..11).filter(|_| known)?.try_into().ok()
}

/// Returns the round of a datagram of a test, if the datagram is authentic.
pub(crate) fn authentic_round(datagram: &[u8], key: &[u8; 32]) -> Option<u8> {
    let (covered, authenticator) = datagram.split_at_checked(COVERED_LEN)?;
    let (nonce, address) = covered.get(11..)?.split_first_chunk::<8>()?;
    let round = u8::try_from(u64::from_be_bytes(*nonce)).ok()?;
    let well_formed = usize::from(round) < ROUNDS && address.iter().all(|byte| *byte == 0);
    let authentic = || mac(key).chain_update(covered).verify_truncated_left(authenticator).is_ok();
    (well_formed && authentic()).then_some(round)
}

fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    <Hmac<Sha256> as KeyInit>::new(&block.into())
}

/// Returns true if a datagram claims to belong to a test.
pub(crate) fn is_filter_probe(datagram: &[u8]) -> bool {
    test_of(datagram).is_some()
}

/// Identifier, key and path of a test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    pub(crate) data: [u8; 8],
    pub(crate) key: [u8; 32],
    /// Path of the connection: local socket and address of the peer.
    pub(crate) path: Path,
}
