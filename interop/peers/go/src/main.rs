//! go-libp2p behind this repository's interoperability contract.
//!
//! The daemon is the whole peer: its QUIC, TLS, identify and ping are those of go-libp2p. This program starts it, and
//! moves bytes between its control socket and the contract.

#![forbid(unsafe_code)]

mod daemon;
mod message;

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Parser;
use interop_testplan::{
    cli::{self, Command},
    features::Remote,
    protocol::PING,
    report::Line,
    serve,
};
use libp2p::{PeerId, StreamProtocol};
use tokio::{io::AsyncReadExt, time::Instant};
use tokio_util::compat::TokioAsyncReadCompatExt;

use crate::daemon::{Daemon, DaemonStream};

/// How often the daemon is asked for its peers: it tells nobody by itself.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Parser)]
struct Cli {
    /// The daemon's program.
    #[arg(long)]
    daemon: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Listen(listen) => {
            let daemon = Daemon::start(&cli.daemon, listen.key, Some(&listen.address)).await?;
            serve_streams(&daemon).await?;
            let address = daemon.addresses().first().context("it listens nowhere")?.clone();
            Line::Listening { address: address.with_p2p(daemon.peer()).unwrap_or_else(|address| address) }
                .print();
            tokio::select! {
                watched = watch(&daemon) => watched,
                ended = end_of_input() => ended,
            }
        }
        Command::Dial(dial) => {
            let daemon = Daemon::start(&cli.daemon, dial.key, None).await?;
            serve_streams(&daemon).await?;
            let peer = daemon.connect(&dial.address).await?;
            Line::Connected { peer: peer.to_string() }.print();
            cli::attempt_all(&mut Connected { daemon: &daemon, peer }, dial.features).await;
            Ok(())
        }
    }
}

async fn end_of_input() -> anyhow::Result<()> {
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// Says who comes and goes.
async fn watch(daemon: &Daemon) -> anyhow::Result<()> {
    let mut known = Vec::new();
    loop {
        let now = daemon.peers().await?;
        for peer in now.iter().filter(|peer| !known.contains(*peer)) {
            Line::Connected { peer: peer.to_string() }.print();
        }
        for peer in known.iter().filter(|peer| !now.contains(peer)) {
            Line::Closed { peer: peer.to_string() }.print();
        }
        known = now;
        tokio::time::sleep(POLL).await;
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

    /// The daemon tells nobody what identify told it; that we could identify it is for the other side to say.
    async fn identify(&mut self, _timeout: Duration) -> anyhow::Result<String> {
        Ok("seen from the other side".into())
    }

    async fn disconnect(&mut self) -> anyhow::Result<()> {
        self.daemon.control().disconnect(self.peer).await
    }

    async fn gone(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        let end = Instant::now() + timeout;
        while Instant::now() < end {
            if !self.daemon.peers().await?.contains(&self.peer) {
                return Ok(true);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(false)
    }
}
