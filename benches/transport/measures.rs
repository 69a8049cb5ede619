//! The measures. Each one starts from nothing, in a runtime of its own, and returns one value for
//! each row of the table.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, future, stream::FuturesUnordered};

use crate::stacks::{Address, Dialer, Kind, serve};

/// Amount of work of each measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) bulk_bytes: usize,
    pub(crate) handshakes: usize,
    pub(crate) echoes: usize,
    pub(crate) idle: usize,
}

impl Scale {
    pub(crate) const FULL: Self = Self { bulk_bytes: 256 << 20, handshakes: 300, echoes: 5_000, idle: 5_000 };
    pub(crate) const QUICK: Self = Self { bulk_bytes: 16 << 20, handshakes: 10, echoes: 200, idle: 50 };
}

/// Runs it on a runtime of two threads, which ends with it.
pub(crate) fn run<T: Send + 'static>(
    future: impl Future<Output = io::Result<T>> + Send + 'static,
) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(runtime.spawn(future)).map_err(io::Error::other)?;
    // Its threads must be gone before the next one's are counted.
    runtime.shutdown_timeout(Duration::from_secs(10));
    result
}

/// MB/s, and CPU in ms per 100 MB: of both sides in one process, of the sender alone with the
/// server elsewhere.
pub(crate) async fn bulk(
    kind: Kind,
    server: Option<Address>,
    streams: usize,
    bytes: usize,
) -> io::Result<Vec<f64>> {
    let address = match server {
        Some(address) => address,
        None => serve(kind).await,
    };
    let mut connection = Dialer::new(kind).dial(&address).await?;
    // Off slow start, and past the search for the MTU.
    connection.open().await?.send(bytes / 16).await?;
    let (begin, cpu) = (Instant::now(), cpu_time()?);
    let mut sends = Vec::new();
    for _ in 0..streams {
        let stream = connection.open().await?;
        sends.push(tokio::spawn(stream.send(bytes / streams)));
    }
    for send in future::try_join_all(sends).await? {
        send?;
    }
    let (took, cpu) = (begin.elapsed(), cpu_time()? - cpu);
    Ok(vec![bytes as f64 / 1e6 / took.as_secs_f64(), cpu.as_secs_f64() * 1e3 / (bytes as f64 / 1e8)])
}

/// CPU in us of a connection with one echo, both sides together; one after the other. Between peers
/// that meet for the first time, or the same ones `again`, whom libp2p-quic spares most of TLS by
/// resumption.
pub(crate) async fn handshakes(kind: Kind, count: usize, again: bool) -> io::Result<Vec<f64>> {
    let address = serve(kind).await;
    let dialers: Vec<Dialer> = (0..if again { 1 } else { count }).map(|_| Dialer::new(kind)).collect();
    // Sockets are bound by the first dial, which goes elsewhere.
    let warm_up = if again { address.clone() } else { serve(kind).await };
    for dialer in &dialers {
        dialer.dial(&warm_up).await?.open().await?.echo().await?;
    }
    let cpu = cpu_time()?;
    for dialer in dialers.iter().cycle().take(count) {
        let mut connection = dialer.dial(&address).await?;
        connection.open().await?.echo().await?;
    }
    Ok(vec![(cpu_time()? - cpu).as_secs_f64() * 1e6 / count as f64])
}

/// Milliseconds until a dial has ended, 50th and 99th percentile of 64 at once.
pub(crate) async fn storm(kind: Kind) -> io::Result<Vec<f64>> {
    let address = serve(kind).await;
    let dialer = Dialer::new(kind);
    let begin = Instant::now();
    let dials = (0..64).map(|_| async {
        let connection = dialer.dial(&address).await?;
        Ok::<_, io::Error>((begin.elapsed(), connection))
    });
    let (times, _connections): (Vec<_>, Vec<_>) = future::try_join_all(dials).await?.into_iter().unzip();
    Ok(percentiles(times, 1e3))
}

/// Microseconds for opening a stream and one byte there and back, 50th and 99th percentile; one
/// after the other.
pub(crate) async fn echoes(kind: Kind, count: usize) -> io::Result<Vec<f64>> {
    let address = serve(kind).await;
    let mut connection = Dialer::new(kind).dial(&address).await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        connection.open().await?.echo().await?;
        times.push(begin.elapsed());
    }
    Ok(percentiles(times, 1e6))
}

/// Returns streams per second, each with one echo, `at_once` at a time.
pub(crate) async fn stream_rate(kind: Kind, at_once: usize, count: usize) -> io::Result<Vec<f64>> {
    let address = serve(kind).await;
    let mut connection = Dialer::new(kind).dial(&address).await?;
    let begin = Instant::now();
    let mut running = FuturesUnordered::new();
    for _ in 0..count {
        if running.len() == at_once {
            running.next().await.unwrap_or(Ok(()))?;
        }
        // What runs goes on while the remote allows no more.
        let mut open = std::pin::pin!(connection.open());
        let stream = loop {
            match future::select(open.as_mut(), running.next()).await {
                future::Either::Left((stream, _)) => break stream?,
                future::Either::Right((Some(done), _)) => done?,
                future::Either::Right((None, _)) => break open.await?,
            }
        };
        running.push(stream.echo());
    }
    running.try_collect::<Vec<()>>().await?;
    Ok(vec![count as f64 / begin.elapsed().as_secs_f64()])
}

/// KiB of resident memory that an idle connection takes, the mean of its two ends. For a process
/// that did nothing before.
pub(crate) async fn memory(kind: Kind, count: usize) -> io::Result<f64> {
    let address = serve(kind).await;
    let dialer = Dialer::new(kind);
    dialer.dial(&address).await?.open().await?.echo().await?;
    let before = resident()?;
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = dialer.dial(&address).await?;
        connection.open().await?.echo().await?;
        connections.push(connection);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let kib = (resident()? - before) / 2.0 / count as f64;
    drop(connections);
    Ok(kib)
}

fn percentiles(mut times: Vec<Duration>, unit: f64) -> Vec<f64> {
    times.sort();
    let at = |share: f64| {
        let rank = (times.len() as f64 * share).ceil() as usize;
        times.get(rank.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * unit)
    };
    vec![at(0.5), at(0.99)]
}

/// Returns the CPU time of all living threads of this process, by the account of the scheduler.
fn cpu_time() -> io::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        let Ok(account) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += account.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(sum))
}

/// In KiB.
fn resident() -> io::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
        .ok_or_else(|| io::Error::other("no VmRSS"))
}
