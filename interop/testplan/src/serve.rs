//! What a listener does with the streams that come in.

use std::future::Future;

use anyhow::Context;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{PeerId, Stream};

use crate::{
    node::Node,
    protocol::{CLOSE, ECHO, HALF_CLOSE, PERF, PING, RESET},
};

/// Bytes that are read or written at once.
pub const BLOCK: usize = 64 << 10;

/// Serves every protocol from now on.
///
/// # Errors
///
/// If somebody serves one already.
pub fn start(node: &mut Node) -> anyhow::Result<()> {
    serve(node.accept(PING)?, |_, stream| echo(stream));
    serve(node.accept(ECHO)?, |_, stream| echo(stream));
    serve(node.accept(HALF_CLOSE)?, |_, stream| half_close(stream));
    serve(node.accept(RESET)?, |_, stream| reset(stream));
    serve(node.accept(PERF)?, |_, stream| perf(stream));
    let disconnect = node.disconnector();
    serve(node.accept(CLOSE)?, move |peer, mut stream| {
        let disconnect = disconnect.clone();
        async move {
            stream.read_exact(&mut [0]).await?;
            disconnect.disconnect(peer).await;
            Ok(())
        }
    });
    Ok(())
}

fn serve<F>(
    mut incoming: libp2p_stream::IncomingStreams,
    handle: impl Fn(PeerId, Stream) -> F + Send + 'static,
) where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    tokio::spawn(async move {
        while let Some((peer, stream)) = incoming.next().await {
            let handled = handle(peer, stream);
            tokio::spawn(async move {
                if let Err(error) = handled.await {
                    tracing::debug!(%peer, %error, "a stream ended early");
                }
            });
        }
    });
}

async fn echo(stream: Stream) -> anyhow::Result<()> {
    let (mut reader, mut writer) = stream.split();
    futures::io::copy(&mut reader, &mut writer).await?;
    writer.close().await?;
    Ok(())
}

async fn half_close(mut stream: Stream) -> anyhow::Result<()> {
    let read = futures::io::copy(&mut stream, &mut futures::io::sink()).await?;
    stream.write_all(&read.to_be_bytes()).await?;
    stream.close().await?;
    Ok(())
}

/// In rust-libp2p, a stream is abandoned by dropping it.
async fn reset(mut stream: Stream) -> anyhow::Result<()> {
    stream.read_exact(&mut [0]).await.context("the byte")?;
    Ok(())
}

async fn perf(mut stream: Stream) -> anyhow::Result<()> {
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
pub async fn send_zeros(stream: &mut Stream, mut count: u64) -> anyhow::Result<()> {
    let block = vec![0; BLOCK];
    while count > 0 {
        let length = count.min(BLOCK as u64);
        let part = block.get(..length as usize).unwrap_or(&block);
        stream.write_all(part).await?;
        count -= length;
    }
    Ok(())
}
