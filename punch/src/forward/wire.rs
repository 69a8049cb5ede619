//! Messages at the start of a stream, and the chunks that follow them. `docs/forward.md` has the
//! format.

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{endpoint::Endpoint, error::ForwardError};

/// Longest message. A chunk may be as long as its length can tell.
const MAX_MESSAGE_LEN: usize = 4 << 10;
/// Longest chunk that this program sends.
const CHUNK_LEN: usize = 32 << 10;
/// Length of a length.
const HEADER_LEN: usize = 2;
/// Longest reason of a peer that is shown.
const MAX_DETAIL_LEN: usize = 300;

/// First message of the side that has the local port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// The secret of the ticket.
    pub(super) secret: String,
    pub(super) transport: Transport,
    pub(super) target: Endpoint,
    /// Asks for an answer only, and for no connection.
    #[serde(default)]
    pub(super) check: bool,
}

/// Transport of the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Transport {
    Tcp,
}

/// Answer of the side that serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub(super) enum Answer {
    Open,
    Refused { detail: String },
}

impl Answer {
    /// Returns an error if the peer has refused. Its words harm no terminal.
    pub(super) fn into_result(self) -> Result<(), ForwardError> {
        match self {
            Self::Open => Ok(()),
            Self::Refused { detail } => Err(ForwardError::Refused {
                detail: detail.chars().filter(|char| !char.is_control()).take(MAX_DETAIL_LEN).collect(),
            }),
        }
    }
}

/// Writes a message.
pub(super) async fn write_message<W: AsyncWrite + Unpin>(
    stream: &mut W,
    message: &impl Serialize,
) -> Result<(), ForwardError> {
    let body = serde_json::to_vec(message).map_err(|error| ForwardError::Protocol(error.to_string()))?;
    let len = u16::try_from(body.len()).ok().filter(|len| usize::from(*len) <= MAX_MESSAGE_LEN);
    let len = len.ok_or_else(|| ForwardError::Protocol("a message would be too long".to_owned()))?;
    let frame = [&len.to_be_bytes()[..], &body].concat();
    stream.write_all(&frame).await.map_err(ForwardError::Lost)?;
    stream.flush().await.map_err(ForwardError::Lost)
}

/// Reads a message. Its length is checked before anything is allocated.
pub(super) async fn read_message<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, ForwardError> {
    let len = usize::from(stream.read_u16().await.map_err(lost)?);
    if len > MAX_MESSAGE_LEN {
        return Err(ForwardError::Protocol(format!(
            "a message of {len} bytes, and at most {MAX_MESSAGE_LEN} are allowed"
        )));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.map_err(lost)?;
    serde_json::from_slice(&body)
        .map_err(|error| ForwardError::Protocol(format!("a message cannot be read: {error}")))
}

/// Sends all bytes of the local connection as chunks, and an empty one at their end. Returns the
/// number of bytes.
pub(super) async fn send_chunks<R, W>(from: &mut R, stream: &mut W) -> Result<u64, ForwardError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; HEADER_LEN + CHUNK_LEN];
    let mut sent = 0;
    loop {
        let len = from.read(buffer.get_mut(HEADER_LEN..).unwrap_or_default()).await;
        let len = len.map_err(ForwardError::Local)?;
        let header = u16::try_from(len).map_err(|error| ForwardError::Protocol(error.to_string()))?;
        buffer.splice(..HEADER_LEN, header.to_be_bytes());
        let chunk = buffer.get(..HEADER_LEN + len).unwrap_or_default();
        stream.write_all(chunk).await.map_err(ForwardError::Lost)?;
        stream.flush().await.map_err(ForwardError::Lost)?;
        if len == 0 {
            stream.shutdown().await.map_err(ForwardError::Lost)?;
            return Ok(sent);
        }
        sent += len as u64;
    }
}

/// Writes the bytes of all chunks to the local connection, and ends that direction after the empty
/// one. Returns the number of bytes.
///
/// A stream that ends without an empty chunk was broken off: what came is not all.
pub(super) async fn receive_chunks<R, W>(stream: &mut R, to: &mut W) -> Result<u64, ForwardError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; CHUNK_LEN];
    let mut received = 0;
    loop {
        let mut left = usize::from(stream.read_u16().await.map_err(lost)?);
        if left == 0 {
            to.shutdown().await.map_err(ForwardError::Local)?;
            return Ok(received);
        }
        while left > 0 {
            let part = buffer.get_mut(..left.min(CHUNK_LEN)).unwrap_or_default();
            let len = stream.read(part).await.map_err(lost)?;
            if len == 0 {
                return Err(ForwardError::Aborted);
            }
            to.write_all(part.get(..len).unwrap_or_default()).await.map_err(ForwardError::Local)?;
            left -= len;
            received += len as u64;
        }
    }
}

fn lost(error: io::Error) -> ForwardError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ForwardError::Aborted,
        _ => ForwardError::Lost(error),
    }
}
