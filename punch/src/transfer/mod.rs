//! Transfer of files over any pair of byte streams. `docs/file-transfer.md` has the wire format.
//!
//! The sender offers a list of entries. The receiver compares it with its folder, asks the
//! sender which of its files are equal so far, and accepts the rest. Data come in blocks, each with
//! the BLAKE3 hash of its file up to there. A block is written only after its hash was checked, so
//! that each byte of a partial file is a verified one.
//!
//! [`frame`] is the only module that reads and writes streams. [`Source`] makes the frames of the
//! files, and [`Destination`] consumes them; both work on the disk, in a thread of their own.
//! [`session`] joins these.

mod destination;
mod error;
mod frame;
mod message;
mod path;
mod progress;
mod session;
mod source;
#[cfg(test)]
mod tests;

/// Name of the protocol.
pub(crate) const PROTOCOL: &str = "/libp2p-punch/file/1.0.0";

#[cfg(test)]
pub(crate) use self::path::PathError;
pub(crate) use self::{
    destination::{Answer, Conflict, Destination, Found, Incoming, PARTIAL_SUFFIX},
    error::{Loss, TransferError, describe},
    message::Kind,
    path::RelativePath,
    progress::Progress,
    session::{Receiver, authorize, serve},
    source::{Offered, Source},
};
