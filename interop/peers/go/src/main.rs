//! go-libp2p behind this repository's interoperability contract.
//!
//! The daemon is the whole peer: its QUIC, TLS, identify and ping are those of go-libp2p. This
//! program starts it, and moves bytes between its control socket and the contract.

#![forbid(unsafe_code)]

mod daemon;
mod message;

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Parser;
use interop_testplan::{
    cli::{self, Command},
    features::Remote,
    polled,
    protocol::PING,
    report::Line,
    serve,
};
use libp2p::{PeerId, StreamProtocol};
use tokio_util::compat::TokioAsyncReadCompatExt;

use crate::daemon::{Daemon, DaemonStream};

#[derive(Debug, Parser)]
struct Cli {
    /// The daemon.
    #[arg(long)]
    program: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Listen(listen) => {
            let daemon = Daemon::start(&cli.program, listen.key, Some(&listen.address)).await?;
            serve_streams(&daemon).await?;
            let address = daemon.addresses().first().context("it listens nowhere")?.clone();
            Line::Listening { address: address.with_p2p(daemon.peer()).unwrap_or_else(|address| address) }
                .print();
            polled::report(&daemon).await
        }
        Command::Dial(dial) => {
            let daemon = Daemon::start(&cli.program, dial.key, None).await?;
            serve_streams(&daemon).await?;
            let peer = daemon.connect(&dial.address).await?;
            Line::Connected { peer: peer.to_string() }.print();
            cli::attempt_all(&mut Connected { daemon: &daemon, peer }, dial.features).await;
            Ok(())
        }
    }
}

/// Takes the streams that the daemon hands over. Ping it answers itself.
async fn serve_streams(daemon: &Daemon) -> anyhow::Result<()> {
    let protocols: Vec<_> = serve::SERVED.into_iter().filter(|protocol| *protocol != PING).collect();
    let listener = daemon.handle_streams(&protocols).await?;
    let control = daemon.control();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let control = control.clone();
            tokio::spawn(async move {
                if let Err(error) = serve_stream(DaemonStream::incoming(socket).await, control).await {
                    eprintln!("a stream ended early: {error:#}");
                }
            });
        }
    });
    Ok(())
}

async fn serve_stream(stream: anyhow::Result<DaemonStream>, control: daemon::Control) -> anyhow::Result<()> {
    let DaemonStream { peer, protocol, socket } = stream?;
    let disconnect = async {
        if let Err(error) = control.disconnect(peer).await {
            eprintln!("disconnecting: {error:#}");
        }
    };
    serve::handle(&protocol, socket.compat(), disconnect).await
}

struct Connected<'a> {
    daemon: &'a Daemon,
    peer: PeerId,
}

impl Remote for Connected<'_> {
    type Stream = tokio_util::compat::Compat<tokio::net::UnixStream>;

    async fn open(&mut self, protocol: StreamProtocol) -> anyhow::Result<Self::Stream> {
        Ok(self.daemon.open(self.peer, &protocol).await?.compat())
    }

    /// The daemon tells nobody what identify told it; that we could identify it is for the other
    /// side to say.
    async fn identify(&mut self, _timeout: Duration) -> anyhow::Result<String> {
        Ok("seen from the other side".into())
    }

    async fn disconnect(&mut self) -> anyhow::Result<()> {
        self.daemon.control().disconnect(self.peer).await
    }

    async fn gone(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        polled::gone(self.daemon, self.peer, timeout).await
    }
}
