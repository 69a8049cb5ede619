//! Tickets of `punch send` and `punch forward`: the ticket of a node, and a secret that permits
//! what the node offers.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD_NOCASE;
use libp2p::identity::{DecodingError, Keypair};
use libp2p_punch_node::{Ticket, TicketError};
use rand::Rng;

const SECRET_LEN: usize = 16;
/// Bytes after the secret, by which a ticket that was mistyped is noticed.
const CHECKSUM_LEN: usize = 4;
/// Purpose of a secret that is derived from a key.
const SECRET_CONTEXT: &str = "libp2p-punch 2026-11-28 secret of a ticket of punch forward";
/// Character between the ticket of the node and the secret.
const SEPARATOR: char = '-';

/// Node, and the permission to use what it offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretTicket {
    pub(crate) node: Ticket,
    pub(crate) secret: Secret,
}

/// Permission to use what one node offers. A PeerId is no secret, so that it permits nothing.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn generate() -> Self {
        Self::of(&rand::rng().random())
    }

    /// Derives the secret that belongs to a key, for a ticket that outlives the program.
    pub(crate) fn of_key(key: &Keypair) -> Result<Self, DecodingError> {
        let mut secret = [0; SECRET_LEN];
        let mut hasher = blake3::Hasher::new_derive_key(SECRET_CONTEXT);
        hasher.update(&key.to_protobuf_encoding()?).finalize_xof().fill(&mut secret);
        Ok(Self::of(&secret))
    }

    fn of(secret: &[u8; SECRET_LEN]) -> Self {
        Self(BASE32_NOPAD_NOCASE.encode(secret).to_ascii_lowercase())
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Compares with the words of a peer, in a time that does not depend on them.
    pub(crate) fn is(&self, text: &str) -> bool {
        // The comparison of hashes takes constant time.
        blake3::hash(self.0.as_bytes()) == blake3::hash(text.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Reason for which a text is not a ticket with a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretTicketError {
    #[error(transparent)]
    Node(#[from] TicketError),
    #[error("the ticket has no secret after a hyphen: it is one of punch chat, or it is cut off")]
    NoSecret,
    #[error("the secret of the ticket, after its hyphen, is mistyped or cut off")]
    Secret,
}

impl SecretTicket {
    /// Returns the checksum of the ticket of the node and the secret.
    fn checksum(&self) -> [u8; CHECKSUM_LEN] {
        let text = format!("{}{SEPARATOR}{}", self.node, self.secret.0);
        let [a, b, c, d, ..] = *blake3::hash(text.as_bytes()).as_bytes();
        [a, b, c, d]
    }
}

impl fmt::Display for SecretTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut secret = BASE32_NOPAD_NOCASE.decode(self.secret.0.as_bytes()).unwrap_or_default();
        secret.extend(self.checksum());
        let secret = BASE32_NOPAD_NOCASE.encode(&secret).to_ascii_lowercase();
        write!(f, "{}{SEPARATOR}{secret}", self.node)
    }
}

impl FromStr for SecretTicket {
    type Err = SecretTicketError;

    fn from_str(text: &str) -> Result<Self, SecretTicketError> {
        let text: String = text.chars().filter(|char| !char.is_whitespace()).collect();
        let (node, secret) = match text.split_once(SEPARATOR) {
            Some(parts) => parts,
            None => {
                text.parse::<Ticket>()?;
                return Err(SecretTicketError::NoSecret);
            }
        };
        let node = node.parse()?;
        let bytes = BASE32_NOPAD_NOCASE.decode(secret.as_bytes()).map_err(|_| SecretTicketError::Secret)?;
        let (secret, checksum) = bytes.split_first_chunk().ok_or(SecretTicketError::Secret)?;
        let ticket = Self { node, secret: Secret::of(secret) };
        if ticket.checksum() == checksum { Ok(ticket) } else { Err(SecretTicketError::Secret) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> SecretTicket {
        ticket_of("12D3KooWGC6bJ9Ex8uHSrKDhwHSVRBLm8nGwGBXAaGLQvFP6aVgy")
    }

    fn ticket_of(peer: &str) -> SecretTicket {
        let peer = peer.parse().unwrap();
        let address = "/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap();
        SecretTicket { node: Ticket::new(peer, [address], []).unwrap(), secret: Secret::generate() }
    }

    #[test]
    fn a_ticket_survives_its_text_in_any_case_and_with_line_breaks() {
        let ticket = ticket();
        let text = ticket.to_string();
        assert_eq!(text.parse(), Ok(ticket.clone()));
        let (begin, end) = text.split_at(40);
        assert_eq!(format!(" {begin}\n {}", end.to_uppercase()).parse(), Ok(ticket));
    }

    #[test]
    fn a_ticket_that_lacks_something_is_refused_with_the_cause() {
        let ticket = ticket();
        let error = |text: String| text.parse::<SecretTicket>().unwrap_err();
        assert_eq!(error(ticket.node.to_string()), SecretTicketError::NoSecret);
        assert_eq!(error("nonsense".into()), SecretTicketError::Node(TicketError::Prefix));
        let text = ticket.to_string();
        assert_eq!(error(text[..text.len() - 1].into()), SecretTicketError::Secret);
        assert_eq!(error(format!("{text}!")), SecretTicketError::Secret);
    }

    #[test]
    fn a_ticket_with_one_wrong_character_is_mistyped() {
        let text = ticket().to_string();
        let secret = text.len() - 32;
        for at in secret..text.len() {
            let other = if &text[at..=at] == "a" { "b" } else { "a" };
            let mistyped = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert_eq!(mistyped.parse::<SecretTicket>(), Err(SecretTicketError::Secret), "{mistyped}");
        }
        // The secret of another sender.
        let (_, others) = text.split_at(secret);
        let node = ticket_of("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN").node;
        assert_eq!(format!("{node}-{others}").parse::<SecretTicket>(), Err(SecretTicketError::Secret));
    }

    #[test]
    fn a_secret_of_a_key_stays_with_the_key() {
        let [one, other] = [Keypair::generate_ed25519(), Keypair::generate_ed25519()];
        assert_eq!(Secret::of_key(&one).unwrap(), Secret::of_key(&one).unwrap());
        assert_ne!(Secret::of_key(&one).unwrap(), Secret::of_key(&other).unwrap());
    }

    #[test]
    fn a_secret_is_equal_to_itself_alone() {
        let secret = Secret::generate();
        assert!(secret.is(secret.text()) && !Secret::generate().is(secret.text()) && !secret.is(""));
    }
}
