//! Measuring how a NAT filters (RFC 4787 §5): a coordinator sends a few small datagrams to the address of a client's
//! connection, from there and from ports and addresses to which the client has never sent, and the client sees which of
//! them arrive (`docs/protocol.md` §7.8).
//!
//! A client's request names no address. The datagrams go to the address at which the connection stands, which has answered;
//! they are few, shorter than what asked for them, and end as soon as the connection moves. A coordinator with a single
//! address has another one send a few of them, too (`assist`).

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

/// When the datagrams of each round leave, after those of the round before.
pub(crate) const PAUSES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];
/// Rounds of a test: that all datagrams of one source are lost must not look like a filter.
pub(crate) const ROUNDS: usize = PAUSES.len();

/// The datagram of one round of a test: `data` and `key` are those of the `FILTER_TEST`, rounds count from 0.
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

/// The test that a datagram claims to be of.
pub(crate) fn test_of(datagram: &[u8]) -> Option<[u8; 8]> {
    let known = datagram.len() == PROBE_LEN && datagram.starts_with(&[PROBE_FIRST_BYTE, FILTER, 0]);
    datagram.get(3..11).filter(|_| known)?.try_into().ok()
}

/// The round of a datagram of a test, if it is authentic.
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

/// Whether a datagram is one of a test.
pub(crate) fn is_filter_probe(datagram: &[u8]) -> bool {
    test_of(datagram).is_some()
}

/// One end of a connection, and what names a test on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    pub(crate) data: [u8; 8],
    pub(crate) key: [u8; 32],
    /// The connection: our socket, and the peer's address.
    pub(crate) path: Path,
}
