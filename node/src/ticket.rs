//! Tickets: a PeerId with addresses and coordinators, as one word of text.

use std::{fmt, str::FromStr};

use data_encoding::{BASE32_NOPAD_NOCASE, DecodeKind};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use sha2::{Digest, Sha256};

/// Largest number of addresses in a ticket.
pub const MAX_ADDRESSES: usize = 16;
/// Largest number of coordinators in a ticket.
pub const MAX_COORDINATORS: usize = 8;
/// Largest length of the text of a ticket, in bytes.
pub const MAX_TEXT_LEN: usize = 8_192;

/// Start of the text of each ticket.
const PREFIX: &str = "punch";
/// Version of the layout, in the first byte.
const VERSION: u8 = 1;
/// Length of the checksum at the end.
const CHECKSUM_LEN: usize = 4;

/// All that one node needs to reach another: a PeerId, addresses and coordinators.
///
/// Its text is one word of lower-case letters and digits that survives chats, mails and QR codes.
/// Upper case and whitespace within the text do no harm. A checksum finds typing errors.
///
/// A ticket is no secret and no permission: its holder can ask for a connection, no more. The
/// PeerId authenticates the node that answers.
///
/// ```
/// use libp2p_punch_node::Ticket;
///
/// let peer = "12D3KooWGC6bJ9Ex8uHSrKDhwHSVRBLm8nGwGBXAaGLQvFP6aVgy".parse()?;
/// let ticket = Ticket::new(peer, ["/ip4/192.0.2.1/udp/4001/quic-v1".parse()?], [])?;
/// let text = ticket.to_string();
/// assert!(text.starts_with("punch"));
/// assert_eq!(text.parse::<Ticket>()?, ticket);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The text is `punch` and, in base32 (RFC 4648, without padding): the version (one byte), the
/// PeerId, the addresses, the coordinators, and the first four bytes of the SHA-256 hash of all
/// before. The PeerId and each address follow their length, and each list follows its number of
/// items, as unsigned varints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    coordinators: Vec<Multiaddr>,
}

/// Part of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TicketField {
    /// The PeerId.
    Peer,
    /// The list of addresses.
    Addresses,
    /// The list of coordinators.
    Coordinators,
}

impl fmt::Display for TicketField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "PeerId",
            Self::Addresses => "addresses",
            Self::Coordinators => "coordinators",
        })
    }
}

/// Reason for which a text is not a ticket, or for which a ticket cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// The text does not begin like a ticket.
    #[error("this is not a ticket: it does not begin with \"{PREFIX}\"")]
    Prefix,
    /// The text would be, or is, longer than [`MAX_TEXT_LEN`].
    #[error("the ticket has {len} characters, and at most {MAX_TEXT_LEN} are allowed")]
    TooLong {
        /// Length of the text.
        len: usize,
    },
    /// A character does not occur in tickets.
    #[error("character {position} of the ticket is not one of its letters and digits")]
    Character {
        /// Position of the character, from 1, not counting whitespace.
        position: usize,
    },
    /// The text ends too early.
    #[error("the ticket is cut off")]
    Truncated,
    /// The checksum does not match: the text was changed on its way.
    #[error("the checksum of the ticket is wrong: a character was mistyped or is missing")]
    Checksum,
    /// A later version of this crate made the ticket.
    #[error("the ticket has version {version}, and this program knows version {VERSION} alone")]
    Version {
        /// Version of the ticket.
        version: u8,
    },
    /// A part of the ticket cannot be read.
    #[error("the {field} of the ticket cannot be read: {cause}")]
    Malformed {
        /// The part.
        field: TicketField,
        /// The cause.
        cause: String,
    },
    /// A list has too many items.
    #[error("the ticket has {count} {field}, and at most {max} are allowed")]
    TooMany {
        /// The list.
        field: TicketField,
        /// Number of its items.
        count: usize,
        /// Largest number of its items.
        max: usize,
    },
    /// An address names another peer than the ticket.
    #[error("the address {address} is not one of peer {peer}")]
    OtherPeer {
        /// The address.
        address: Multiaddr,
        /// Peer of the ticket.
        peer: PeerId,
    },
    /// The address of a coordinator does not end with its PeerId.
    #[error("the address {address} of a coordinator does not end with /p2p/PEER_ID")]
    NoCoordinatorId {
        /// The address.
        address: Multiaddr,
    },
    /// Something follows the last part.
    #[error("the ticket has {len} bytes too many")]
    TrailingBytes {
        /// Number of the bytes.
        len: usize,
    },
}

impl Ticket {
    /// Creates a ticket for the peer.
    ///
    /// An address may end with the PeerId of the peer, which is left out. The address of each
    /// coordinator ends with the PeerId of the coordinator.
    ///
    /// # Errors
    ///
    /// There are too many addresses, an address names another peer, the address of a coordinator
    /// does not name it, or the text would be longer than [`MAX_TEXT_LEN`].
    pub fn new(
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        coordinators: impl IntoIterator<Item = Multiaddr>,
    ) -> Result<Self, TicketError> {
        let addresses: Result<_, _> =
            addresses.into_iter().map(|address| without_peer(address, peer)).collect();
        let ticket = Self { peer, addresses: addresses?, coordinators: coordinators.into_iter().collect() };
        within(TicketField::Addresses, ticket.addresses.len(), MAX_ADDRESSES)?;
        within(TicketField::Coordinators, ticket.coordinators.len(), MAX_COORDINATORS)?;
        for address in &ticket.coordinators {
            if !matches!(address.iter().last(), Some(Protocol::P2p(_))) {
                return Err(TicketError::NoCoordinatorId { address: address.clone() });
            }
        }
        let len = PREFIX.len() + BASE32_NOPAD_NOCASE.encode_len(ticket.to_bytes().len());
        if len > MAX_TEXT_LEN {
            return Err(TicketError::TooLong { len });
        }
        Ok(ticket)
    }

    /// PeerId of the node.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Addresses of the node, without its PeerId.
    pub fn addresses(&self) -> &[Multiaddr] {
        &self.addresses
    }

    /// Addresses of coordinators that know the node. Each ends with the PeerId of the coordinator.
    pub fn coordinators(&self) -> &[Multiaddr] {
        &self.coordinators
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        put_item(&mut bytes, &self.peer.to_bytes());
        for list in [&self.addresses, &self.coordinators] {
            put_len(&mut bytes, list.len());
            list.iter().for_each(|address| put_item(&mut bytes, address.as_ref()));
        }
        let checksum = checksum(&bytes);
        bytes.extend(checksum);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, TicketError> {
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(TicketError::Truncated)?;
        let (version, mut rest) = content.split_first().ok_or(TicketError::Truncated)?;
        if *sum != checksum(content) {
            return Err(TicketError::Checksum);
        }
        if *version != VERSION {
            return Err(TicketError::Version { version: *version });
        }
        let peer = take_item(TicketField::Peer, &mut rest)?;
        let peer = PeerId::from_bytes(peer).map_err(|error| malformed(TicketField::Peer, error))?;
        let addresses = take_list(TicketField::Addresses, MAX_ADDRESSES, &mut rest)?;
        let coordinators = take_list(TicketField::Coordinators, MAX_COORDINATORS, &mut rest)?;
        if !rest.is_empty() {
            return Err(TicketError::TrailingBytes { len: rest.len() });
        }
        Self::new(peer, addresses, coordinators)
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE32_NOPAD_NOCASE.encode(&self.to_bytes()).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let text: String = text.chars().filter(|char| !char.is_whitespace()).collect();
        let head = text.get(..PREFIX.len()).filter(|head| head.eq_ignore_ascii_case(PREFIX));
        let (Some(_), Some(body)) = (head, text.get(PREFIX.len()..)) else {
            return Err(TicketError::Prefix);
        };
        if text.len() > MAX_TEXT_LEN {
            return Err(TicketError::TooLong { len: text.len() });
        }
        let is_symbol = |char: char| char.is_ascii_alphabetic() || matches!(char, '2'..='7');
        if let Some(index) = body.chars().position(|char| !is_symbol(char)) {
            return Err(TicketError::Character { position: PREFIX.len() + index + 1 });
        }
        let bytes = BASE32_NOPAD_NOCASE.decode(body.as_bytes()).map_err(|error| match error.kind {
            DecodeKind::Length => TicketError::Truncated,
            DecodeKind::Symbol | DecodeKind::Trailing | DecodeKind::Padding => TicketError::Checksum,
        })?;
        Self::from_bytes(&bytes)
    }
}

fn without_peer(mut address: Multiaddr, peer: PeerId) -> Result<Multiaddr, TicketError> {
    match address.iter().last() {
        Some(Protocol::P2p(own)) if own == peer => {
            address.pop();
        }
        Some(Protocol::P2p(_)) => return Err(TicketError::OtherPeer { address, peer }),
        _ => {}
    }
    Ok(address)
}

fn within(field: TicketField, count: usize, max: usize) -> Result<(), TicketError> {
    if count > max { Err(TicketError::TooMany { field, count, max }) } else { Ok(()) }
}

fn malformed(field: TicketField, cause: impl fmt::Display) -> TicketError {
    TicketError::Malformed { field, cause: cause.to_string() }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_LEN] {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(content).into();
    [a, b, c, d]
}

fn put_len(bytes: &mut Vec<u8>, len: usize) {
    bytes.extend(unsigned_varint::encode::usize(len, &mut unsigned_varint::encode::usize_buffer()));
}

fn put_item(bytes: &mut Vec<u8>, item: &[u8]) {
    put_len(bytes, item.len());
    bytes.extend(item);
}

fn take_len(field: TicketField, bytes: &mut &[u8]) -> Result<usize, TicketError> {
    let (len, rest) = unsigned_varint::decode::usize(bytes).map_err(|error| malformed(field, error))?;
    *bytes = rest;
    Ok(len)
}

fn take_item<'a>(field: TicketField, bytes: &mut &'a [u8]) -> Result<&'a [u8], TicketError> {
    let len = take_len(field, bytes)?;
    let (item, rest) =
        bytes.split_at_checked(len).ok_or_else(|| malformed(field, "a length goes past the end"))?;
    *bytes = rest;
    Ok(item)
}

fn take_list(field: TicketField, max: usize, bytes: &mut &[u8]) -> Result<Vec<Multiaddr>, TicketError> {
    let count = take_len(field, bytes)?;
    within(field, count, max)?;
    (0..count)
        .map(|_| {
            let item = take_item(field, bytes)?;
            Multiaddr::try_from(item.to_vec()).map_err(|error| malformed(field, error))
        })
        .collect()
}

#[cfg(test)]
mod tests;
