//! Messages: whole byte strings, in order for each peer, and acknowledged.
//!
//! The messages to a peer go over one stream of `/libp2p-punch/node/message/1.0.0`: each is its
//! length, in four bytes, big-endian, and its bytes. The peer answers each with one byte once its
//! application has received it. One task for each peer and direction owns such a stream.

mod inbox;
mod outbox;

use std::time::Duration;

use libp2p_identity::PeerId;
use libp2p_swarm::StreamProtocol;

pub(crate) use self::{
    inbox::{Inbox, Mailbox},
    outbox::{NodeLink, Outboxes, Posting},
};

/// Largest length of a message in bytes. Longer data belongs in a stream.
pub const MAX_MESSAGE_LEN: usize = 65_536;
/// Messages to one peer that are sent and not acknowledged.
const MAX_UNACKNOWLEDGED: usize = 16;
/// Messages to one peer that wait for their turn. Further calls wait for a place.
const MAX_QUEUED: usize = 16;
/// Messages of all peers that wait for the application.
const MAX_RECEIVED: usize = 64;
/// Time for the acknowledgement of a message, connecting included.
pub(crate) const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Name of the protocol.
pub(crate) const PROTOCOL: StreamProtocol = StreamProtocol::new("/libp2p-punch/node/message/1.0.0");
/// Acknowledgement of a message.
const ACKNOWLEDGEMENT: u8 = 1;

/// A message of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The sender, which proved its identity.
    pub peer: PeerId,
    /// The bytes.
    pub bytes: Vec<u8>,
}
