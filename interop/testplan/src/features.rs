//! Features that a dialer tries, and the test of each.

use std::{
    fmt,
    future::Future,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, future};
use libp2p::StreamProtocol;
use serde::{Deserialize, Serialize};

use crate::protocol::{CLOSE, ECHO, HALF_CLOSE, PING, RESET};

/// Bytes of the large echo.
const LARGE: usize = 1 << 20;
/// Streams that are open at once.
const STREAMS: usize = 16;
/// Bytes on each of them.
const SMALL: usize = 64 << 10;
/// Longer than the idle time-out of every implementation here (rust and py 10 s) or twice its
/// keep-alive (go 15 s).
const IDLE_TIME: Duration = Duration::from_secs(16);
/// Time for a remote to notice that a stream or a connection is gone.
const DETECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for every other feature.
const FEATURE_TIMEOUT: Duration = Duration::from_secs(30);

/// Feature of two peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// Three pings on one stream.
    Ping,
    /// Identify, with a ping protocol among the remote's.
    Identify,
    /// 1 MiB there and back on one stream.
    Echo,
    /// 16 streams open at once, 64 KiB there and back on each.
    Streams,
    /// A half that is closed leaves the other open.
    HalfClose,
    /// Either side abandons a stream; the other finds out, and the connection goes on.
    Reset,
    /// An idle connection is there after 16 s.
    KeepAlive,
    /// The dialer closes the connection, and the listener notices.
    CloseByDialer,
    /// The listener closes the connection, and the dialer notices.
    CloseByListener,
}

impl Feature {
    /// All of them, in an order in which they can be tried but for the last, as only one can end a
    /// connection.
    pub const ALL: [Self; 9] = [
        Self::Ping,
        Self::Identify,
        Self::Echo,
        Self::Streams,
        Self::HalfClose,
        Self::Reset,
        Self::KeepAlive,
        Self::CloseByDialer,
        Self::CloseByListener,
    ];

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Identify => "identify",
            Self::Echo => "echo",
            Self::Streams => "streams",
            Self::HalfClose => "half-close",
            Self::Reset => "reset",
            Self::KeepAlive => "keep-alive",
            Self::CloseByDialer => "close-by-dialer",
            Self::CloseByListener => "close-by-listener",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Feature {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|feature| feature.name() == name);
        found.with_context(|| format!("{name} is no feature"))
    }
}

/// A peer that is connected, whichever way streams to it are had.
pub trait Remote: Send {
    /// Streams of the remote.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// Opens a stream.
    fn open(&mut self, protocol: StreamProtocol)
    -> impl Future<Output = anyhow::Result<Self::Stream>> + Send;

    /// Waits until identify has reported the remote, and prints that.
    fn identify(&mut self, timeout: Duration) -> impl Future<Output = anyhow::Result<String>> + Send;

    /// Measures three pings. Implementations with a ping of their own use that.
    fn ping(&mut self) -> impl Future<Output = anyhow::Result<String>> + Send
    where
        Self: Sized,
    {
        ping(self)
    }

    /// Closes the connection.
    fn disconnect(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Waits until the connection is gone; false if it is still there after `timeout`.
    fn gone(&mut self, timeout: Duration) -> impl Future<Output = anyhow::Result<bool>> + Send;
}

/// Tries a feature. The result is text for people.
///
/// # Errors
///
/// If it does not work, or takes too long.
pub async fn attempt(remote: &mut impl Remote, feature: Feature) -> anyhow::Result<String> {
    let attempt = async {
        match feature {
            Feature::Ping => remote.ping().await,
            Feature::Identify => remote.identify(DETECTION_TIMEOUT).await,
            Feature::Echo => echo(remote).await,
            Feature::Streams => streams(remote).await,
            Feature::HalfClose => half_close(remote).await,
            Feature::Reset => reset(remote).await,
            Feature::KeepAlive => keep_alive(remote).await,
            Feature::CloseByDialer => close_by_dialer(remote).await,
            Feature::CloseByListener => close_by_listener(remote).await,
        }
    };
    tokio::time::timeout(FEATURE_TIMEOUT, attempt).await.map_err(|_| anyhow!("timed out"))?
}

/// Sends one ping on an open stream and measures it.
///
/// # Errors
///
/// If other bytes come back, or none.
pub async fn ping_once(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> anyhow::Result<Duration> {
    let payload: [u8; 32] = std::array::from_fn(|i| (i * 7) as u8);
    let start = Instant::now();
    stream.write_all(&payload).await?;
    stream.flush().await?;
    let mut answer = [0; 32];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == payload, "other bytes came back");
    Ok(start.elapsed())
}

/// Sends three pings on one stream that the remote opens.
///
/// # Errors
///
/// If the stream cannot be opened, or other bytes come back, or none.
pub async fn ping(remote: &mut impl Remote) -> anyhow::Result<String> {
    let mut stream = remote.open(PING).await?;
    let mut best = Duration::MAX;
    for _ in 0..3 {
        best = best.min(ping_once(&mut stream).await?);
    }
    stream.close().await?;
    Ok(format!("{:.2} ms", best.as_secs_f64() * 1e3))
}

/// Sends a pattern and reads it back, both at once, so that no implementation needs to buffer it.
async fn exchange(stream: impl AsyncRead + AsyncWrite, length: usize) -> anyhow::Result<()> {
    let sent: Vec<u8> = (0..length).map(|i| (i ^ (i >> 8)) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut received = vec![0; length];
    let write = async {
        writer.write_all(&sent).await?;
        writer.flush().await
    };
    let read = reader.read_exact(&mut received);
    let (written, read) = future::join(write, read).await;
    written.context("writing")?;
    read.context("reading")?;
    ensure!(received == sent, "other bytes came back");
    writer.close().await.context("closing")?;
    Ok(())
}

async fn echo(remote: &mut impl Remote) -> anyhow::Result<String> {
    let stream = remote.open(ECHO).await?;
    let start = Instant::now();
    exchange(stream, LARGE).await?;
    Ok(format!("{:.0} ms", start.elapsed().as_secs_f64() * 1e3))
}

async fn streams(remote: &mut impl Remote) -> anyhow::Result<String> {
    let mut open = Vec::new();
    for number in 0..STREAMS {
        open.push(remote.open(ECHO).await.with_context(|| format!("stream {number}"))?);
    }
    let exchanges = open.into_iter().map(|stream| exchange(stream, SMALL));
    future::try_join_all(exchanges).await?;
    Ok(format!("{STREAMS} streams"))
}

async fn half_close(remote: &mut impl Remote) -> anyhow::Result<String> {
    let mut stream = remote.open(HALF_CLOSE).await?;
    stream.write_all(&[7; SMALL]).await?;
    stream.close().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(answer == (SMALL as u64).to_be_bytes(), "the answer is {answer:?}");
    Ok("all was read, then answered".into())
}

async fn reset(remote: &mut impl Remote) -> anyhow::Result<String> {
    let found = by_remote(remote.open(RESET).await?).await?;
    let mut ours = remote.open(ECHO).await?;
    ours.write_all(&[1; SMALL]).await?;
    drop(ours);
    exchange(remote.open(ECHO).await?, SMALL).await.context("the connection afterwards")?;
    Ok(found.to_owned())
}

/// Waits until one half reports that the remote has abandoned the stream.
async fn by_remote(stream: impl AsyncRead + AsyncWrite) -> anyhow::Result<&'static str> {
    let (mut reader, mut writer) = stream.split();
    let read = async {
        let mut byte = [0];
        match reader.read(&mut byte).await {
            Ok(0) => Ok("reading ended"),
            Ok(_) => Err(anyhow!("a byte came back")),
            Err(_) => Ok("reading failed"),
        }
    };
    let write = async {
        // More than any flow-control window would take, so that this ends only with an error.
        let block = [0; SMALL];
        while writer.write_all(&block).await.is_ok() {}
        Ok("writing failed")
    };
    let first = async {
        tokio::select! {
            read = read => read,
            written = write => written,
        }
    };
    tokio::time::timeout(DETECTION_TIMEOUT, first).await.map_err(|_| anyhow!("the reset went unnoticed"))?
}

async fn keep_alive(remote: &mut impl Remote) -> anyhow::Result<String> {
    ensure!(!remote.gone(IDLE_TIME).await?, "the connection was closed");
    remote.ping().await
}

async fn close_by_dialer(remote: &mut impl Remote) -> anyhow::Result<String> {
    remote.disconnect().await?;
    gone(remote).await
}

async fn close_by_listener(remote: &mut impl Remote) -> anyhow::Result<String> {
    let mut stream = remote.open(CLOSE).await?;
    stream.write_all(&[1]).await?;
    stream.flush().await?;
    gone(remote).await
}

async fn gone(remote: &mut impl Remote) -> anyhow::Result<String> {
    let start = Instant::now();
    ensure!(remote.gone(DETECTION_TIMEOUT).await?, "the connection is still there");
    Ok(format!("after {:.0} ms", start.elapsed().as_secs_f64() * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_read_back_from_its_name() {
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse::<Feature>().unwrap(), feature);
            assert_eq!(serde_json::to_value(feature).unwrap(), feature.name());
        }
        assert!("telepathy".parse::<Feature>().is_err());
    }
}
