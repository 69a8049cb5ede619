//! The perf suites: how fast an upload, a download and an empty exchange are.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use futures::{AsyncReadExt, AsyncWriteExt};
use interop_testplan::{
    key::KeyType,
    node::Node,
    protocol::PERF,
    resp::Client,
    serve::{self, BLOCK},
};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use crate::{
    AGENT,
    env::{self, Contract},
    punch, transport,
};

/// Default length of a transfer.
const GIBIBYTE: u64 = 1 << 30;

/// The flags of the older suite; without them the environment decides.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Serve at the given address.
    #[arg(long)]
    run_server: bool,
    /// Address of the server.
    #[arg(long)]
    server_address: Option<SocketAddr>,
    /// The transport, which must be quic-v1.
    #[arg(long, default_value = "quic-v1")]
    transport: String,
    /// Bytes to send.
    #[arg(long, default_value_t = 0)]
    upload_bytes: u64,
    /// Bytes to receive.
    #[arg(long, default_value_t = 0)]
    download_bytes: u64,
}

pub(crate) async fn run(flags: Flags) -> anyhow::Result<()> {
    let keypair = KeyType::Ed25519.keypair()?;
    let mut node = Node::start(punch(&keypair)?, &keypair, AGENT)?;
    match flags.server_address {
        Some(server) => legacy(&mut node, &flags, server).await,
        None => unified(&mut node, &Contract::from_env()?).await,
    }
}

async fn legacy(node: &mut Node, flags: &Flags, server: SocketAddr) -> anyhow::Result<()> {
    ensure!(flags.transport == "quic-v1", "the transport {} is not ours; it is quic-v1", flags.transport);
    let address = Multiaddr::from(server.ip()).with(Protocol::Udp(server.port())).with(Protocol::QuicV1);
    if flags.run_server {
        node.listen(address).await?;
        // It serves until it is stopped.
        return std::future::pending().await;
    }
    let start = Instant::now();
    let peer = node.dial(address).await?;
    transfer(node, peer, flags.upload_bytes, flags.download_bytes).await?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        r#"{{"type":"final","timeSeconds":{seconds},"uploadBytes":{},"downloadBytes":{}}}"#,
        flags.upload_bytes, flags.download_bytes
    );
    Ok(())
}

async fn unified(node: &mut Node, contract: &Contract) -> anyhow::Result<()> {
    let mut redis = Client::connect(&contract.redis).await?;
    if !contract.is_dialer {
        let address = transport::listen(node, contract).await?;
        redis.set(&contract.listener_key(), &address.to_string()).await?;
        return std::future::pending().await;
    }
    let address = redis.get(&contract.listener_key(), contract.timeout).await?;
    let peer = node.dial(address.parse().with_context(|| format!("{address} is no address"))?).await?;

    let upload = env::number("UPLOAD_BYTES", GIBIBYTE)?;
    let download = env::number("DOWNLOAD_BYTES", GIBIBYTE)?;
    let uploads = measure(node, peer, env::number("UPLOAD_ITERATIONS", 10)?, (upload, 0)).await?;
    let downloads = measure(node, peer, env::number("DOWNLOAD_ITERATIONS", 10)?, (0, download)).await?;
    let latencies = measure(node, peer, env::number("LATENCY_ITERATIONS", 100)?, (1, 1)).await?;

    print!("{}", Summary::of(rates(&uploads, upload)).yaml("upload", "Gbps", 2));
    print!("{}", Summary::of(rates(&downloads, download)).yaml("download", "Gbps", 2));
    let millis = latencies.iter().map(|latency| latency.as_secs_f64() * 1e3).collect();
    print!("{}", Summary::of(millis).yaml("latency", "ms", 3));
    Ok(())
}

fn rates(times: &[Duration], bytes: u64) -> Vec<f64> {
    times.iter().map(|time| bytes as f64 * 8.0 / 1e9 / time.as_secs_f64()).collect()
}

async fn measure(
    node: &mut Node,
    peer: PeerId,
    count: u64,
    bytes: (u64, u64),
) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        transfer(node, peer, bytes.0, bytes.1).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

async fn transfer(node: &mut Node, peer: PeerId, upload: u64, download: u64) -> anyhow::Result<()> {
    let mut stream = node.open(peer, PERF).await?;
    stream.write_all(&download.to_be_bytes()).await?;
    serve::send_zeros(&mut stream, upload).await?;
    stream.close().await?;
    let mut block = vec![0; BLOCK];
    let mut received = 0;
    loop {
        match stream.read(&mut block).await? {
            0 => break,
            count => received += count as u64,
        }
    }
    ensure!(received == download, "{received} bytes came back, {download} were wanted");
    Ok(())
}

/// The figures that the suite wants of a series.
#[derive(Debug, PartialEq)]
struct Summary {
    /// Minimum, quartiles and maximum of what is no outlier.
    five: [f64; 5],
    outliers: Vec<f64>,
    samples: Vec<f64>,
}

impl Summary {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let [q1, median, q3] = [0.25, 0.5, 0.75].map(|share| quantile(&samples, share));
        let reach = 1.5 * (q3 - q1);
        let (inside, outliers): (Vec<f64>, Vec<f64>) =
            samples.iter().partition(|sample| (q1 - reach..=q3 + reach).contains(*sample));
        let min = inside.first().copied().unwrap_or_default();
        let max = inside.last().copied().unwrap_or_default();
        Self { five: [min, q1, median, q3, max], outliers, samples }
    }

    fn yaml(&self, name: &str, unit: &str, digits: usize) -> String {
        let [min, q1, median, q3, max] = self.five.map(|value| format!("{value:.digits$}"));
        let list = |values: &[f64]| {
            values.iter().map(|value| format!("{value:.digits$}")).collect::<Vec<_>>().join(", ")
        };
        format!(
            "{name}:\n  iterations: {}\n  min: {min}\n  q1: {q1}\n  median: {median}\n  q3: {q3}\n  max: {max}\n  \
             outliers: [{}]\n  samples: [{}]\n  unit: {unit}\n",
            self.samples.len(),
            list(&self.outliers),
            list(&self.samples),
        )
    }
}

/// Interpolated linearly between the two nearest samples; 0 of none.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * sorted.len().saturating_sub(1) as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or_default();
    let (low, high) = (at(position.floor()), at(position.ceil()));
    low + (high - low) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated_and_outliers_left_out_of_the_range() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0, 100.0]);
        assert_eq!(summary.five, [1.0, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!(summary.outliers, [100.0]);
        assert_eq!(quantile(&[1.0, 2.0], 0.25), 1.25);
    }

    #[test]
    fn an_empty_series_is_all_zeros() {
        let yaml = Summary::of(Vec::new()).yaml("upload", "Gbps", 2);
        assert!(yaml.starts_with("upload:\n  iterations: 0\n  min: 0.00\n"), "{yaml}");
        assert!(yaml.ends_with("  outliers: []\n  samples: []\n  unit: Gbps\n"), "{yaml}");
    }
}
