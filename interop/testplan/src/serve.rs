//! Protocols that a listener serves.

use std::future::Future;

use anyhow::{Context, bail};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{PeerId, StreamProtocol};
use tokio::sync::mpsc;

use crate::{
    protocol::{CLOSE, ECHO, HALF_CLOSE, PERF, PING, RESET, unmounted},
    streams::Incoming,
};

/// Bytes that are read or written at once.
pub const BLOCK: usize = 64 << 10;

/// Protocols that every peer serves.
pub const SERVED: [StreamProtocol; 6] = [PING, ECHO, HALF_CLOSE, RESET, CLOSE, PERF];

/// Serves every incoming stream in a task of its own. `disconnect` closes all connections with a
/// peer.
pub async fn run<D>(mut incoming: mpsc::UnboundedReceiver<Incoming>, disconnect: impl Fn(PeerId) -> D)
where
    D: Future<Output = ()> + Send + 'static,
{
    while let Some(Incoming { peer, protocol, stream }) = incoming.recv().await {
        let disconnect = disconnect(peer);
        tokio::spawn(async move {
            if let Err(error) = handle(&protocol, stream, disconnect).await {
                tracing::debug!(%peer, %protocol, %error, "a stream ended early");
            }
        });
    }
}

/// Serves one stream. `disconnect` closes the connection that it came over.
///
/// # Errors
///
/// If it ends early.
pub async fn handle(
    protocol: &StreamProtocol,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    disconnect: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    match unmounted(protocol) {
        "/ipfs/ping/1.0.0" | "/interop/echo/1.0.0" => echo(stream).await,
        "/interop/half-close/1.0.0" => half_close(stream).await,
        "/interop/reset/1.0.0" => abandon(stream).await,
        "/perf/1.0.0" => perf(stream).await,
        "/interop/close/1.0.0" => {
            let mut stream = stream;
            stream.read_exact(&mut [0]).await?;
            disconnect.await;
            Ok(())
        }
        other => bail!("{other} is not served"),
    }
}

async fn echo(stream: impl AsyncRead + AsyncWrite) -> anyhow::Result<()> {
    let (mut reader, mut writer) = stream.split();
    futures::io::copy(&mut reader, &mut writer).await?;
    writer.close().await?;
    Ok(())
}

async fn half_close(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
    let read = futures::io::copy(&mut stream, &mut futures::io::sink()).await?;
    stream.write_all(&read.to_be_bytes()).await?;
    stream.close().await?;
    Ok(())
}

/// In rust-libp2p, a stream is abandoned by dropping it.
async fn abandon(mut stream: impl AsyncRead + Unpin) -> anyhow::Result<()> {
    stream.read_exact(&mut [0]).await.context("the byte")?;
    Ok(())
}

async fn perf(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
    let mut wanted = [0; 8];
    stream.read_exact(&mut wanted).await?;
    futures::io::copy(&mut stream, &mut futures::io::sink()).await?;
    send_zeros(&mut stream, u64::from_be_bytes(wanted)).await?;
    stream.close().await?;
    Ok(())
}

/// Writes `count` bytes.
///
/// # Errors
///
/// If the remote stops reading.
pub async fn send_zeros(stream: &mut (impl AsyncWrite + Unpin), mut count: u64) -> anyhow::Result<()> {
    let block = vec![0; BLOCK];
    while count > 0 {
        let length = count.min(BLOCK as u64);
        let part = block.get(..length as usize).unwrap_or(&block);
        stream.write_all(part).await?;
        count -= length;
    }
    Ok(())
}
