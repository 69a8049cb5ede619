//! Stock rust-libp2p in the NAT lab, for comparison: `coordinator`, `listen` and `dial` as `punch`
//! has them, but with a Circuit Relay v2 relay and DCUtR instead of a coordinator and this
//! project's traversal. With `--quic punch`, a peer has this project's transport in the place of
//! libp2p-quic, and nothing else of it: a drop-in.
//!
//! Prints the JSON lines that the lab reads. Exit code of `dial`: 0 direct, 10 relayed, 11 failed.

#![forbid(unsafe_code)]

mod dial;
mod peer;
mod relay;

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};
use libp2p::{Multiaddr, PeerId};
use serde_json::Value;

/// Error that ends a program early.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Stock rust-libp2p with the command line of punch, for its NAT lab.
#[derive(Debug, Parser)]
#[command(name = "punch-stock", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Accepted for the lab: the output is always JSON lines.
    #[arg(long, global = true)]
    json: bool,
    /// The QUIC of a peer; the relay's is always the stock one.
    #[arg(long, global = true, value_enum, default_value = "stock")]
    quic: Quic,
}

/// A QUIC transport.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Quic {
    /// libp2p-quic.
    Stock,
    /// libp2p-punch.
    Punch,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Relay for others; needs a public address.
    Coordinator {
        /// Addresses to listen on.
        #[arg(long, required = true, num_args = 1..)]
        listen: Vec<Multiaddr>,
    },
    /// Reserve a place at a relay and wait for peers.
    Listen {
        /// Address of the relay, with its peer id.
        #[arg(long)]
        coordinator: Multiaddr,
    },
    /// Connect to a peer through a relay, and directly if DCUtR can.
    Dial {
        /// The peer.
        peer: PeerId,
        /// Address of the relay, with its peer id.
        #[arg(long)]
        coordinator: Multiaddr,
        /// Seconds after which the best connection so far is the result.
        #[arg(long, default_value = "30")]
        timeout: f64,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Coordinator { listen } => relay::run(listen).await,
        Command::Listen { coordinator } => peer::listen(coordinator, arguments.quic).await,
        Command::Dial { peer, coordinator, timeout } => match Duration::try_from_secs_f64(timeout) {
            Ok(timeout) => dial::run(peer, coordinator, timeout, arguments.quic).await,
            Err(error) => Err(error.into()),
        },
    };
    result.unwrap_or_else(|error| {
        // Without a stderr, the exit code alone reports the failure.
        let _ = writeln!(io::stderr(), "punch-stock: {error}");
        ExitCode::FAILURE
    })
}

/// Writes one line to stdout, at once.
pub(crate) fn print(line: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
