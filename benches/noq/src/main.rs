//! Comparison of noq and quinn, both with their defaults and the TLS configuration of libp2p-tls,
//! over loopback in one process: `cargo run --release -- [ROUNDS]`. The bench `transport` compares
//! quinn with libp2p-quic and with this crate.
//!
//! The stacks take turns. A cell is the median of the rounds, and in brackets the median of each
//! round's ratio to quinn.

#[macro_use]
mod stack;

use std::{env, error::Error, fs, process::Command};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

stack!(quinn_stack, quinn);
stack!(noq_stack, noq);

const ROWS: [&str; 6] = [
    "bulk, 1 stream, MB/s",
    "its CPU, ms per 100 MB",
    "CPU per handshake and echo, both sides, us",
    "stream and 1-byte echo, p50, us",
    "stream and 1-byte echo, p99, us",
    "memory of an idle connection, one end, KiB",
];

const BULK: usize = 256 << 20;
const HANDSHAKES: u32 = 300;
const ECHOES: usize = 5_000;
const IDLE: usize = 2_000;

/// CPU time of this thread, on which everything runs, in seconds: the scheduler's account.
fn cpu() -> Result<f64> {
    let account = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = account.split_whitespace().next().ok_or("an empty schedstat")?;
    Ok(nanoseconds.parse::<f64>()? / 1e9)
}

/// Resident bytes of this process.
fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kibibytes = line.trim().strip_suffix(" kB").ok_or("VmRSS in another unit")?;
    Ok(kibibytes.trim().parse::<f64>()? * 1024.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Memory of an idle connection of a stack, measured by another process of this program.
fn memory_of(which: usize) -> Result<f64> {
    let output = Command::new(env::current_exe()?).args(["--memory", &which.to_string()]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [flag, which] = arguments.as_slice()
        && flag == "--memory"
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let memory = match which.as_str() {
            "0" => runtime.block_on(quinn_stack::memory())?,
            _ => runtime.block_on(noq_stack::memory())?,
        };
        println!("{memory}");
        return Ok(());
    }
    let rounds: usize = arguments.first().map_or(Ok(7), |text| text.parse())?;
    let mut all: [Vec<[f64; ROWS.len()]>; 2] = Default::default();
    for round in 0..rounds.max(1) {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let values = match which {
                0 => runtime.block_on(quinn_stack::measure())?,
                _ => runtime.block_on(noq_stack::measure())?,
            };
            let [bulk, bulk_cpu, handshake, p50, p99] = values;
            all[which].push([bulk, bulk_cpu, handshake, p50, p99, memory_of(which)?]);
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    println!("| | quinn 0.11.12 | noq 1.4.0 |\n|---|---|---|");
    for (row, name) in ROWS.iter().enumerate() {
        let of = |which: usize| all[which].iter().map(|values| values[row]).collect::<Vec<_>>();
        let ratios = of(1).iter().zip(of(0)).map(|(noq, quinn)| noq / quinn).collect();
        println!("| {name} | {:.1} | {:.1} ({:.2}) |", median(of(0)), median(of(1)), median(ratios));
    }
    Ok(())
}
