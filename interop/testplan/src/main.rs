//! libp2p-punch as a test program.
//!
//! `testplan listen` and `testplan dial` fulfil this repository's own contract (see the library).
//! `testplan transport`, `testplan perf` and `testplan hole-punch` fulfil those of the official
//! suites; the environment variables select one of their two dialects, see [`mod@env`].

#![forbid(unsafe_code)]

mod env;
mod hole_punch;
mod perf;
mod transport;

use clap::{Parser, Subcommand};
use interop_testplan::{cli, node::BoxedTransport};
use libp2p::{Transport as _, core::muxing::StreamMuxerBox, identity::Keypair};
use tracing_subscriber::EnvFilter;

/// Agent version that identify sends.
const AGENT: &str = concat!("libp2p-punch/", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Peer(cli::Command),
    /// The transport suites: connect and ping. Configured by environment variables.
    Transport,
    /// The perf suites. Configured by environment variables, or by the flags of the older one.
    Perf(perf::Flags),
    /// The hole punching suites. Configured by environment variables.
    HolePunch,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let default = if env::debug() { "debug" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Cli::parse().command {
        Command::Peer(command) => cli::run(command, AGENT, punch).await,
        Command::Transport => transport::run(&env::Contract::from_env()?).await,
        Command::Perf(flags) => perf::run(flags).await,
        Command::HolePunch => hole_punch::run(&env::HolePunchTest::from_env()?).await,
    }
}

/// Creates our transport alone, as a drop-in for libp2p-quic.
fn punch(keypair: &Keypair) -> anyhow::Result<BoxedTransport> {
    let transport = libp2p_punch::Transport::new(keypair, libp2p_punch::Config::default())?;
    Ok(transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed())
}
