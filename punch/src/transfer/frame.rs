//! Frames on the stream: a kind, a length and a body.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::TransferError;

/// Largest amount of data in a block.
pub(crate) const BLOCK_LEN: usize = 1 << 20;
/// Length of a BLAKE3 hash.
pub(crate) const HASH_LEN: usize = blake3::OUT_LEN;

/// Kind of a frame, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum FrameKind {
    Request = 1,
    Offer = 2,
    Check = 3,
    Checked = 4,
    Accept = 5,
    /// Hash of the file up to the end of this block, and the block.
    Data = 6,
    /// Hash of the whole file.
    End = 7,
    /// The sender cannot send the rest of the file.
    Failed = 8,
    /// The side ends the transfer.
    Stopped = 9,
    /// The receiver has all files.
    Done = 10,
    /// The sender is at work, and has nothing to send yet.
    Alive = 11,
}

impl FrameKind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Offer,
            3 => Self::Check,
            4 => Self::Checked,
            5 => Self::Accept,
            6 => Self::Data,
            7 => Self::End,
            8 => Self::Failed,
            9 => Self::Stopped,
            10 => Self::Done,
            11 => Self::Alive,
            _ => return None,
        })
    }

    /// Largest length of the body. Those of lists are for the largest offer with long paths.
    const fn max_len(self) -> usize {
        match self {
            Self::Request | Self::Failed | Self::Stopped => 4 << 10,
            Self::Offer => 32 << 20,
            Self::Check => 16 << 20,
            Self::Checked | Self::Accept => 4 << 20,
            Self::Data => HASH_LEN + BLOCK_LEN,
            Self::End => HASH_LEN,
            Self::Done | Self::Alive => 0,
        }
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) body: Vec<u8>,
}

impl Frame {
    /// Makes the frame of a message.
    pub(crate) fn message(kind: FrameKind, message: &impl Serialize) -> Result<Self, TransferError> {
        let body = serde_json::to_vec(message).map_err(|error| TransferError::Protocol(error.to_string()))?;
        if body.len() > kind.max_len() {
            let (len, max) = (body.len(), kind.max_len());
            return Err(TransferError::Protocol(format!(
                "the {kind:?} would have {len} bytes, and at most {max} are allowed"
            )));
        }
        Ok(Self { kind, body })
    }

    /// Reads the message of a frame, which must be of this kind.
    pub(crate) fn parse<T: DeserializeOwned>(&self, kind: FrameKind) -> Result<T, TransferError> {
        if self.kind != kind {
            return Err(TransferError::Protocol(format!("{:?} came instead of {kind:?}", self.kind)));
        }
        serde_json::from_slice(&self.body)
            .map_err(|error| TransferError::Protocol(format!("the {kind:?} cannot be read: {error}")))
    }
}

/// Writes a frame.
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(stream: &mut W, frame: &Frame) -> io::Result<()> {
    let len = u32::try_from(frame.body.len()).map_err(io::Error::other)?;
    let [a, b, c, d] = len.to_be_bytes();
    stream.write_all(&[frame.kind as u8, a, b, c, d]).await?;
    stream.write_all(&frame.body).await?;
    // Nothing waits for more, so that the peer goes on.
    if frame.kind == FrameKind::Data { Ok(()) } else { stream.flush().await }
}

/// Reads a frame. The length is checked before anything is allocated.
pub(crate) async fn read_frame<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Frame, TransferError> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).await?;
    let [kind, len @ ..] = header;
    let kind =
        FrameKind::of(kind).ok_or_else(|| TransferError::Protocol(format!("a frame of kind {kind}")))?;
    let len = u32::from_be_bytes(len) as usize;
    if len > kind.max_len() {
        let max = kind.max_len();
        return Err(TransferError::Protocol(format!(
            "{kind:?} of {len} bytes, and at most {max} are allowed"
        )));
    }
    // Grows with what arrives, and not with what is announced. The buffer is initialized once:
    // `Take` would have the stream do that again with each read.
    let mut body = Vec::new();
    while body.len() < len {
        let begun = body.len();
        body.resize(len.min(begun + HASH_LEN + BLOCK_LEN), 0);
        stream.read_exact(body.get_mut(begun..).unwrap_or_default()).await?;
    }
    Ok(Frame { kind, body })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(mut bytes: &[u8]) -> Result<Frame, TransferError> {
        futures::executor::block_on(read_frame(&mut bytes))
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frame) = read(&bytes) {
                let mut written = Vec::new();
                futures::executor::block_on(write_frame(&mut written, &frame)).unwrap();
                prop_assert_eq!(&bytes[..written.len()], &written[..]);
            }
        }
    }

    #[test]
    fn a_frame_that_is_too_long_or_of_no_kind_is_refused_at_its_header() {
        let error = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(error(&[2, 0xff, 0xff, 0xff, 0xff]).contains("at most 33554432"));
        assert!(error(&[6, 0, 0x10, 0, 0x21]).contains("at most 1048608"));
        assert!(error(&[0, 0, 0, 0, 0]).contains("kind 0"));
        assert!(error(&[12, 0, 0, 0, 0]).contains("kind 12"));
        assert!(error(&[7, 0, 0, 0, 32, 1]).contains("ended the stream"));
    }
}
