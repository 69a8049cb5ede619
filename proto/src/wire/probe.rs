//! The datagrams that open NATs and prove paths (PATH_CHALLENGE and PATH_RESPONSE, RFC 9000 §8.2).
//!
//! A challenge and its response have the same length, so that no peer is used as an amplifier. Only
//! datagrams that authenticate with the keys of a session are answered, so that no peer serves as
//! an oracle.
//!
//! Fields of the envelope that all probes share:
//!
//! | field | content |
//! |---|---|
//! | flags | 1 in a challenge that nominates its path, otherwise 0 |
//! | tag | session tag of the direction |
//! | data | data of the challenge |
//! | address | response: IPv6 or IPv4-mapped address and port at which the challenge was seen, masked; challenge: 0 |

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

pub use crate::wire::envelope::{PROBE_FIRST_BYTE, PROBE_LEN, is_probe};
use crate::wire::{
    envelope::{Envelope, Kind, SealedProbe},
    frame::wire::{canonical, mapped},
    keys::{ProbeKeys, TAG_LEN},
};

const NOMINATE: u8 = 1;

/// Returns the session tag of a possible probe, to find the keys for its check.
pub fn tag_of(datagram: &[u8]) -> Option<[u8; TAG_LEN]> {
    parse(datagram).map(|sealed| sealed.claimed.tag)
}

/// A probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Answer me (PATH_CHALLENGE).
    Challenge {
        /// Unpredictable; the response echoes it.
        data: [u8; 8],
        /// The initiator selected this path.
        nominate: bool,
    },
    /// The answer to a challenge, sent back on its path (PATH_RESPONSE).
    Response {
        /// Data of the challenge.
        data: [u8; 8],
        /// The address from which the challenge came.
        observed: SocketAddr,
    },
}

/// Reason why a datagram is not an authentic probe of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Another length, first byte, version or kind.
    #[error("not a probe of this version")]
    NotAProbe,
    /// The tag is not that of the session and the direction.
    #[error("the tag is that of another session")]
    Tag,
    /// The authenticator is wrong.
    #[error("the authenticator is wrong")]
    Authenticator,
    /// Authentic, but flags or address are not as they should be.
    #[error("authentic, but flags or address break the format")]
    Malformed,
}

impl Probe {
    /// The datagram to send. An IPv4-mapped IPv6 address arrives as IPv4, flow label and scope do
    /// not arrive.
    pub fn encode(&self, keys: &ProbeKeys) -> [u8; PROBE_LEN] {
        let tag = keys.remote_tag();
        let envelope = match *self {
            Probe::Challenge { data, nominate } => {
                Envelope { flags: u8::from(nominate), ..Envelope::new(Kind::Challenge, tag, data) }
            }
            Probe::Response { data, observed } => {
                let address = masked(address_bytes(mapped(observed)), data);
                Envelope { address, ..Envelope::new(Kind::Response, tag, data) }
            }
        };
        envelope.seal(keys.sending_key())
    }

    /// The probe in `datagram`, if the other peer of the session made it.
    ///
    /// # Errors
    ///
    /// It is no probe, or not of this session and direction, or not authentic.
    pub fn decode(datagram: &[u8], keys: &ProbeKeys) -> Result<Self, ProbeError> {
        let sealed = parse(datagram).ok_or(ProbeError::NotAProbe)?;
        let Envelope { kind, flags, tag, data, address } = sealed.claimed;
        if tag != keys.local_tag() {
            return Err(ProbeError::Tag);
        }
        if !sealed.is_authentic(keys.receiving_key()) {
            return Err(ProbeError::Authenticator);
        }
        match (kind, flags) {
            (Kind::Challenge, 0 | NOMINATE) if address == [0; 18] => {
                Ok(Probe::Challenge { data, nominate: flags == NOMINATE })
            }
            (Kind::Response, 0) => {
                let [ip @ .., high, low] = masked(address, data);
                match u16::from_be_bytes([high, low]) {
                    0 => Err(ProbeError::Malformed),
                    port => {
                        let observed = canonical((Ipv6Addr::from(ip), port).into());
                        Ok(Probe::Response { data, observed })
                    }
                }
            }
            _ => Err(ProbeError::Malformed),
        }
    }
}

/// Cuts a datagram into the fields of a probe of a session.
fn parse(datagram: &[u8]) -> Option<SealedProbe<'_>> {
    let sealed = SealedProbe::parse(datagram)?;
    matches!(sealed.claimed.kind, Kind::Challenge | Kind::Response).then_some(sealed)
}

fn address_bytes(address: SocketAddrV6) -> [u8; 18] {
    let mut out = [0; 18];
    out[..16].copy_from_slice(&address.ip().octets());
    out[16..].copy_from_slice(&address.port().to_be_bytes());
    out
}

/// Returns `address` XOR the repeated data of the probe. The mask hides nothing: it keeps NATs from
/// finding and rewriting addresses in payloads (as in RFC 8489 §14.2).
fn masked(mut address: [u8; 18], data: [u8; 8]) -> [u8; 18] {
    for (byte, mask) in address.iter_mut().zip(data.iter().cycle()) {
        *byte ^= mask;
    }
    address
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;
    use crate::wire::keys::MAC_LEN;
    use crate::{SessionId, event::SessionRole, wire::keys::ProbeSecret};

    /// Version 1, kind 2.
    const RESPONSE: u8 = 0x12;

    fn keys() -> (ProbeKeys, ProbeKeys) {
        let peer = |seed: u8| Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id();
        let (initiator, responder) = (ProbeSecret::new([3; 32]), ProbeSecret::new([4; 32]));
        let derive = |own: &ProbeSecret, theirs: [u8; 32], role| {
            ProbeKeys::derive(own, &theirs, SessionId([7; 16]), &peer(1), &peer(2), role).unwrap()
        };
        (
            derive(&initiator, responder.public(), SessionRole::Initiator),
            derive(&responder, initiator.public(), SessionRole::Responder),
        )
    }

    /// Returns an authentic datagram with any content.
    fn authentic(from: &ProbeKeys, change: impl FnOnce(&mut [u8])) -> [u8; PROBE_LEN] {
        let mut datagram = Probe::Challenge { data: [9; 8], nominate: false }.encode(from);
        let (covered, authenticator) = datagram.split_at_mut(PROBE_LEN - MAC_LEN);
        change(covered);
        authenticator.copy_from_slice(&from.authenticate(covered));
        datagram
    }

    #[test]
    fn both_kinds_have_the_same_length_and_a_first_byte_that_is_not_quic() {
        let (a, b) = keys();
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        for observed in ["192.0.2.7:4001", "[2001:db8::7]:4001"] {
            let observed = observed.parse().unwrap();
            for probe in [Probe::Challenge { data, nominate: true }, Probe::Response { data, observed }] {
                let datagram = probe.encode(&a);
                assert!(datagram.len() <= 56);
                assert!(is_probe(datagram[0]));
                assert_eq!(tag_of(&datagram), Some(b.local_tag()));
                assert_eq!(Probe::decode(&datagram, &b), Ok(probe));
            }
        }
    }

    #[test]
    fn only_the_unused_first_bytes_of_rfc_9443_are_ours() {
        let ours: Vec<u8> = (0..=255).filter(|first| is_probe(*first)).collect();
        assert_eq!(ours, (4..=15).collect::<Vec<u8>>());
    }

    #[test]
    fn a_reflected_probe_of_our_own_is_refused_even_with_its_tag_replaced() {
        let (a, _) = keys();
        let mut datagram = Probe::Challenge { data: [9; 8], nominate: false }.encode(&a);
        assert_eq!(Probe::decode(&datagram, &a), Err(ProbeError::Tag));
        datagram[3..11].copy_from_slice(&a.local_tag());
        assert_eq!(Probe::decode(&datagram, &a), Err(ProbeError::Authenticator));
    }

    #[test]
    fn another_length_version_or_kind_is_no_probe() {
        let (a, b) = keys();
        let datagram = Probe::Challenge { data: [9; 8], nominate: false }.encode(&a);
        let mut longer = datagram.to_vec();
        longer.push(0);
        for wrong in [&datagram[..PROBE_LEN - 1], &longer, &[]] {
            assert_eq!(tag_of(wrong), None);
            assert_eq!(Probe::decode(wrong, &b), Err(ProbeError::NotAProbe));
        }
        for kind in [0x10, 0x13, 0x01, 0x21] {
            let wrong = authentic(&a, |covered| covered[1] = kind);
            assert_eq!(Probe::decode(&wrong, &b), Err(ProbeError::NotAProbe));
        }
    }

    #[test]
    fn authentic_probes_that_break_the_format_are_refused() {
        let (a, b) = keys();
        let changes: [fn(&mut [u8]); 5] = [
            |covered| covered[2] = 2,
            |covered| covered[36] = 1,
            |covered| covered[1..3].copy_from_slice(&[RESPONSE, NOMINATE]),
            // An address of all zeros, port included.
            |covered| {
                covered[1] = RESPONSE;
                covered[19..].copy_from_slice(&[9; 18]);
            },
            |covered| covered[19] = 1,
        ];
        for change in changes {
            assert_eq!(Probe::decode(&authentic(&a, change), &b), Err(ProbeError::Malformed));
        }
    }

    #[test]
    fn the_observed_address_is_not_readable_in_the_datagram() {
        let (a, _) = keys();
        let observed = "192.0.2.7:4001".parse().unwrap();
        let datagram = Probe::Response { data: [9; 8], observed }.encode(&a);
        assert!(!datagram.windows(4).any(|window| window == [192, 0, 2, 7]));
    }

    #[test]
    fn an_ipv4_mapped_observation_arrives_as_ipv4() {
        let (a, b) = keys();
        let observed = "[::ffff:192.0.2.7]:4001".parse().unwrap();
        let datagram = Probe::Response { data: [9; 8], observed }.encode(&a);
        let expected = Probe::Response { data: [9; 8], observed: "192.0.2.7:4001".parse().unwrap() };
        assert_eq!(Probe::decode(&datagram, &b), Ok(expected));
    }
}
