//! Reasons for which a transfer ends early.

use std::io;

use libp2p_punch::explain::explanations;

use super::{
    message::MAX_ENTRIES,
    path::{PathError, RelativePath},
};

/// Reason for which a transfer ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// The stream to the peer ended or failed. Another attempt may go on from here.
    #[error(transparent)]
    Lost(#[from] Loss),
    /// The ticket is not one of the sender.
    #[error("the sender has another ticket now: it was started again, or offers something else")]
    WrongTicket,
    /// A peer showed the wrong secret.
    #[error("a peer without the ticket asked for the files")]
    NoTicket,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// A path of the offer is refused.
    #[error("the offer is refused: {0}")]
    Path(#[from] PathError),
    /// The offer has too many entries.
    #[error("the offer is refused: it has {count} files and folders, and at most {MAX_ENTRIES} are allowed")]
    TooManyEntries { count: usize },
    /// The data of a file do not have the hash that the sender states.
    #[error("the data of {path} are not those that their hash promises; nothing of them was kept")]
    Corrupt { path: RelativePath },
    /// A file of the sender ended early, or cannot be read. The others go on.
    #[error("the sender could not send {path}: {cause}")]
    SourceFailed { path: RelativePath, cause: String },
    /// The disk of the receiver refused something.
    #[error("cannot write {path}: {}", describe(.cause))]
    Write { path: RelativePath, cause: io::Error },
    /// The reader of stdout has gone, or stdout cannot be written for another reason.
    #[error("cannot write to stdout: {}", describe(.0))]
    Stdout(io::Error),
    /// The peer ended the transfer, for a reason that it states.
    #[error("the peer ended the transfer: {0}")]
    Stopped(String),
    /// The user, or the folder, of the receiver does not want the files.
    #[error("it does not want the files")]
    Declined,
    /// The sender reads from a pipe, whose first bytes are gone.
    #[error("the sender reads from a pipe, which cannot be sent a second time")]
    Consumed,
}

/// Loss of the stream to the peer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the connection was lost: {0}")]
pub(crate) struct Loss(pub(crate) String);

explanations! {
    TransferError {
        Self::Lost(_) => "transfer-lost",
            "Run the same command again: it goes on where it ended.";
        Self::WrongTicket => "other-ticket",
            "Get the present ticket from the sender.";
        Self::NoTicket => "no-ticket",
            "Nothing is wrong here: a peer without the ticket was refused.";
        Self::Protocol(_) => "transfer-protocol",
            "Use the same version of the program at both sides. If it is the same, report it as a bug.";
        Self::Path(_) => "path-refused",
            "Have the sender rename the file or the folder.";
        Self::TooManyEntries { .. } => "too-many-files",
            "Have the sender offer fewer files at once, or an archive of them.";
        Self::Corrupt { .. } => "corrupt-data",
            "Receive again. If it stays so, check the memory and the disk of the sender.";
        Self::SourceFailed { .. } => "file-not-sent",
            "Read the cause, and have the sender send the file again.";
        Self::Write { .. } => "file-not-written",
            "Read the cause. Check the permissions of the folder and the room on its disk, or name another folder.";
        Self::Stdout(_) => "stdout-failed",
            "Check the program that reads the output.";
        Self::Stopped(_) => "stopped-by-peer",
            "Read the reason, which the peer has stated.";
        Self::Declined => "declined",
            "Nothing is wrong: the receiver did not want the files.";
        Self::Consumed => "pipe-consumed",
            "Start the sender again with the whole input.";
    }
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        Self(match error.kind() {
            io::ErrorKind::UnexpectedEof => "the peer ended the stream".to_owned(),
            io::ErrorKind::TimedOut => "the program of the peer says nothing any more".to_owned(),
            _ => error.to_string(),
        })
    }
}

impl From<io::Error> for TransferError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.into())
    }
}

/// Describes a failure of the disk in words for people.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "the disk is read-only".to_owned(),
        // A path that a link leads out of the folder of the receiver has no code of the system.
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_some() => "permission denied".to_owned(),
        io::ErrorKind::BrokenPipe => "the reader has closed the pipe".to_owned(),
        io::ErrorKind::NotFound => "no such file or folder".to_owned(),
        _ => error.to_string(),
    }
}
