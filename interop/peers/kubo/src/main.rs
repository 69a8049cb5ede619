//! Kubo behind this repository's interoperability contract.
//!
//! Kubo is the whole peer: its QUIC, TLS, identify and ping are those of the go-libp2p in it.
//! Applications speak over it by mounted streams (`ipfs p2p listen` and `forward`): Kubo turns
//! streams of a protocol below `/x/` into TCP connections and back. This program starts it, and
//! serves or uses the contract's protocols at the TCP end.

#![forbid(unsafe_code)]

mod node;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Parser;
use interop_testplan::{
    cli::{self, Command},
    features::{self, Remote},
    polled,
    protocol::{PING, mounted},
    report::Line,
    serve,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol, multiaddr::Protocol};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use crate::node::{Kubo, Node};

#[derive(Debug, Parser)]
struct Cli {
    /// Kubo as a library or, with `--daemon`, as its own program.
    #[arg(long)]
    program: PathBuf,
    /// The program is Kubo's own, and is asked over its RPC interface.
    #[arg(long)]
    daemon: bool,
    #[command(subcommand)]
    command: Command,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let kubo = if cli.daemon { Kubo::Daemon(cli.program) } else { Kubo::Library(cli.program) };
    match cli.command {
        Command::Listen(listen) => {
            let (node, peer) = Node::start(&kubo, listen.key, Some(&listen.address)).await?;
            // Kubo answers pings itself.
            for protocol in serve::SERVED.iter().filter(|protocol| **protocol != PING) {
                serve_mounted(&node, protocol).await?;
            }
            let address = node.addresses().await?.pop().context("it listens nowhere")?;
            Line::Listening { address: address.with_p2p(peer).unwrap_or_else(|address| address) }.print();
            polled::report(&node).await?;
            node.stop().await
        }
        Command::Dial(dial) => {
            let (node, _) = Node::start(&kubo, dial.key, None).await?;
            let peer = remote_of(&dial.address)?;
            node.connect(&dial.address).await?;
            Line::Connected { peer: peer.to_string() }.print();
            cli::attempt_all(&mut Connected { node: &node, peer }, dial.features).await;
            node.stop().await
        }
    }
}

fn remote_of(address: &Multiaddr) -> anyhow::Result<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Ok(peer),
        _ => bail!("{address} does not end in /p2p/PEER_ID"),
    }
}

/// Mounts a protocol and serves what comes in.
async fn serve_mounted(node: &Node, protocol: &StreamProtocol) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    node.listen(&mounted(protocol)?, listener.local_addr()?.port()).await?;
    let (node, protocol) = (node.clone(), protocol.clone());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (node, protocol) = (node.clone(), protocol.clone());
            tokio::spawn(async move {
                let disconnect = async {
                    if let Err(error) = node.stop().await {
                        eprintln!("disconnecting: {error:#}");
                    }
                };
                if let Err(error) = serve::handle(&protocol, socket.compat(), disconnect).await {
                    eprintln!("a stream ended early: {error:#}");
                }
            });
        }
    });
    Ok(())
}

struct Connected<'a> {
    node: &'a Node,
    peer: PeerId,
}

impl Remote for Connected<'_> {
    type Stream = Compat<TcpStream>;

    async fn open(&mut self, protocol: StreamProtocol) -> anyhow::Result<Self::Stream> {
        let port = self.node.forward(&mounted(&protocol)?, self.peer).await?;
        Ok(TcpStream::connect(("127.0.0.1", port)).await?.compat())
    }

    /// Kubo tells nobody what identify told it; that we could identify it is for the other
    /// side to say.
    async fn identify(&mut self, _timeout: Duration) -> anyhow::Result<String> {
        Ok("seen from the other side".into())
    }

    /// The library has no call for its ping: the bytes of a ping go through a mounted stream.
    async fn ping(&mut self) -> anyhow::Result<String> {
        match self.node.ping(self.peer).await? {
            Some(best) => Ok(format!("{:.2} ms", best.as_secs_f64() * 1e3)),
            None => features::ping(self).await,
        }
    }

    async fn disconnect(&mut self) -> anyhow::Result<()> {
        self.node.stop().await
    }

    async fn gone(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        polled::gone(self.node, self.peer, timeout).await
    }
}
