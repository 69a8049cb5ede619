//! Stock rust-libp2p behind this repository's interoperability contract: the same program, on
//! libp2p-quic.

#![forbid(unsafe_code)]

use clap::Parser;
use interop_testplan::cli;
use libp2p::{Transport as _, core::muxing::StreamMuxerBox, quic};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: cli::Command,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cli::run(Cli::parse().command, "stock-rust-libp2p", |keypair| {
        let transport = quic::tokio::Transport::new(quic::Config::new(keypair));
        Ok(transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed())
    })
    .await
}
