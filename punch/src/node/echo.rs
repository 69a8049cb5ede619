//! The protocol `/punch/echo/1.0.0`: the listener sends back all bytes up to the end of the stream.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{
    StreamProtocol,
    request_response::{self, ProtocolSupport},
};

/// Largest message, in bytes.
pub(super) const MAX_LENGTH: usize = 4 << 20;

/// Behaviour of both sides.
pub(super) type Behaviour = request_response::Behaviour<Codec>;

/// Creates the behaviour.
pub(super) fn behaviour() -> Behaviour {
    let protocols = [(StreamProtocol::new("/punch/echo/1.0.0"), ProtocolSupport::Full)];
    Behaviour::with_codec(Codec, protocols, request_response::Config::default())
}

/// Codec of messages that end with their stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codec;

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, data: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&data).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, data: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&data).await
    }
}

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    io.take(MAX_LENGTH as u64 + 1).read_to_end(&mut data).await?;
    if data.len() > MAX_LENGTH {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is longer than 4 MiB"));
    }
    Ok(data)
}
