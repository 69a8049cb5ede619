//! `punch perf`: the rate of a bare stream, by the protocol that other libp2p programs speak, too.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use libp2p_punch_node::{Connection, Node, Target};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval},
};

use super::peer::{self, Settings};
use crate::{
    args::Perf,
    exit::{Exit, Failure},
    output::{Meter, Report, bytes, transferred},
    signal::Stop,
};

/// Protocol of libp2p: the number of bytes that should come back (eight bytes, big-endian), and
/// then bytes up to the end of the stream.
const PROTOCOL: &str = "/perf/1.0.0";
/// Streams that are served at once. Further ones are closed.
const MAX_STREAMS: usize = 16;
const BUFFER_LEN: usize = 64 << 10;
/// Interval of the status line.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Time-out of connections that the serving side makes; it waits for others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs until the end of the measurement, a failure, Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Perf) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let target = arguments.peer.as_deref().map(peer::target).transpose()?;
    let connect_timeout = if target.is_some() { arguments.timeout } else { CONNECT_TIMEOUT };
    let node = peer::start(&arguments.node, Settings { protocol: PROTOCOL, connect_timeout }).await?;
    let mut report = Report::new(arguments.node.common.json);
    let amounts = Amounts { upload: arguments.upload, download: arguments.download };
    let (work, at_signal) = match target {
        Some(target) => {
            let measure = async { measure(&node, &mut report, target, amounts).await };
            (futures::future::Either::Left(measure), Err(Failure::error("interrupted")))
        }
        None => (futures::future::Either::Right(serve(&node, &mut report)), Ok(Exit::Success)),
    };
    let result = tokio::select! {
        result = work => result,
        () = stop.requested() => at_signal,
    };
    node.shutdown().await;
    result
}

/// Bytes to send and to receive.
#[derive(Debug, Clone, Copy)]
struct Amounts {
    upload: u64,
    download: u64,
}

async fn serve(node: &Node, report: &mut Report) -> Result<Exit, Failure> {
    let ticket = node.ticket().await.map_err(|error| Failure::explained(&error))?.to_string();
    report.result(&ticket, &json!({ "event": "ticket", "ticket": ticket }))?;
    let hint = "on the other machine: punch perf TICKET; this one serves until Ctrl-C";
    report.note(hint, &json!({ "event": "waiting" }))?;
    let places = Arc::new(Semaphore::new(MAX_STREAMS));
    loop {
        let connection = node.accept().await.map_err(Failure::error)?;
        let peer = connection.peer();
        peer::report_path(report, peer, &connection.status())?;
        let places = places.clone();
        tokio::spawn(async move {
            while let Ok((send, recv)) = connection.accept_bi().await {
                // Without a place, the stream is closed.
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let connection = connection.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(send, recv).await {
                        tracing::debug!(%peer, %error, "a measurement ended early");
                    }
                    drop((connection, place));
                });
            }
        });
    }
}

/// Serves one stream.
async fn answer<W, R>(mut send: W, mut recv: R) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let wanted = recv.read_u64().await?;
    receive(&mut recv, &AtomicU64::new(0)).await?;
    transmit(&mut send, wanted, &AtomicU64::new(0)).await
}

/// Reads to the end, and returns the number of bytes.
async fn receive<R: AsyncRead + Unpin>(recv: &mut R, moved: &AtomicU64) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_LEN];
    let mut received = 0;
    loop {
        let len = recv.read(&mut buffer).await? as u64;
        if len == 0 {
            return Ok(received);
        }
        received += len;
        moved.fetch_add(len, Ordering::Relaxed);
    }
}

/// Sends this number of bytes, and ends the direction.
async fn transmit<W: AsyncWrite + Unpin>(send: &mut W, len: u64, moved: &AtomicU64) -> io::Result<()> {
    let buffer = vec![0; BUFFER_LEN];
    let mut left = len;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(BUFFER_LEN).min(BUFFER_LEN);
        let written = send.write(buffer.get(..part).unwrap_or_default()).await? as u64;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        left -= written;
        moved.fetch_add(written, Ordering::Relaxed);
    }
    send.flush().await?;
    send.shutdown().await
}

/// Times of one measurement.
#[derive(Debug, Clone, Copy)]
struct Times {
    upload: Duration,
    download: Duration,
}

/// Sends and receives over one stream. The upload ends with the first byte, or the end, of the
/// answer, which the peer begins once it has all.
async fn exchange<W, R>(send: &mut W, recv: &mut R, amounts: Amounts, moved: &AtomicU64) -> io::Result<Times>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let begun = Instant::now();
    send.write_all(&amounts.download.to_be_bytes()).await?;
    transmit(send, amounts.upload, moved).await?;
    let mut first = [0];
    let got = recv.read(&mut first).await? as u64;
    let uploaded = begun.elapsed();
    moved.fetch_add(got, Ordering::Relaxed);
    let received = got + if got > 0 { receive(recv, moved).await? } else { 0 };
    if received != amounts.download {
        let wanted = amounts.download;
        return Err(io::Error::other(format!("the peer sent {received} bytes instead of {wanted}")));
    }
    let elapsed = begun.elapsed();
    Ok(match amounts.upload {
        // The request is a part of the download, as it is with files.
        0 => Times { upload: Duration::ZERO, download: elapsed },
        _ => Times { upload: uploaded, download: elapsed.saturating_sub(uploaded) },
    })
}

async fn measure(
    node: &Node,
    report: &mut Report,
    target: Target,
    amounts: Amounts,
) -> Result<Exit, Failure> {
    let peer = target.peer();
    report.status("connecting");
    let connection: Connection =
        peer::connect(node, &target).await.map_err(|error| peer::not_connected(peer, &error))?;
    peer::report_path(report, peer, &connection.status())?;
    let failed = |error: &dyn std::fmt::Display| Failure::error(format!("the measurement failed: {error}"));
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| failed(&error))?;
    let moved = AtomicU64::new(0);
    let exchange = exchange(&mut send, &mut recv, amounts, &moved);
    tokio::pin!(exchange);
    let mut ticks = interval(STATUS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut meter = Meter::new();
    let total = amounts.upload.saturating_add(amounts.download);
    let times = loop {
        tokio::select! {
            times = &mut exchange => break times.map_err(|error| failed(&error))?,
            _ = ticks.tick() => {
                let rate = meter.rate(moved.load(Ordering::Relaxed));
                report.status(&format!("measuring {}", transferred(moved.load(Ordering::Relaxed), Some(total), rate)));
            }
        }
    };
    let path = peer::route(&connection.status());
    let mut lines = Vec::new();
    for (what, amount, time) in
        [("sent", amounts.upload, times.upload), ("received", amounts.download, times.download)]
    {
        if amount > 0 {
            let (rate, seconds) = (rate(amount, time), time.as_secs_f64());
            lines.push(format!("{what} {} in {seconds:.3} s, {}/s", bytes(amount), bytes(rate as u64)));
        }
    }
    report.result(
        &lines.join("; "),
        &json!({
            "event": "perf",
            "peer": peer.to_string(),
            "path": path,
            "upload": direction(amounts.upload, times.upload),
            "download": direction(amounts.download, times.download),
        }),
    )?;
    Ok(Exit::Success)
}

fn direction(bytes: u64, time: Duration) -> serde_json::Value {
    let seconds = (time.as_secs_f64() * 1e6).round() / 1e6;
    json!({ "bytes": bytes, "seconds": seconds, "bytes_per_second": rate(bytes, time).round() })
}

fn rate(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { bytes as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use tokio::io::{duplex, split};

    use super::*;

    #[tokio::test]
    async fn both_directions_carry_what_was_asked_for() {
        let (one, other) = duplex(BUFFER_LEN);
        let ((mut recv, mut send), (others, to_other)) = (split(one), split(other));
        let (amounts, moved) = (Amounts { upload: 1_000_001, download: 70_000 }, AtomicU64::new(0));
        let exchange = exchange(&mut send, &mut recv, amounts, &moved);
        let (times, answered) = tokio::join!(exchange, answer(to_other, others));
        assert!(times.is_ok() && answered.is_ok());
        assert_eq!(moved.load(Ordering::Relaxed), 1_070_001);
    }

    #[tokio::test]
    async fn a_peer_that_sends_another_number_of_bytes_is_an_error() {
        let (one, mut other) = duplex(BUFFER_LEN);
        let (mut recv, mut send) = split(one);
        other.write_all(b"short").await.unwrap();
        other.shutdown().await.unwrap();
        let amounts = Amounts { upload: 0, download: 6 };
        let error = exchange(&mut send, &mut recv, amounts, &AtomicU64::new(0)).await.unwrap_err();
        assert!(error.to_string().contains("5 bytes instead of 6"), "{error}");
        drop(other);
    }
}
