//! litep2p behind this repository's interoperability contract.
//!
//! Its QUIC is an old quinn on an old rustls, its TLS, identify and stream negotiation are its own.
//! A listener answers pings with litep2p's ping protocol; a dialer has its own, as litep2p's says
//! nothing of single streams.

#![forbid(unsafe_code)]

mod protocol;

use std::{collections::HashMap, future::pending, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Parser;
use futures::StreamExt;
use interop_testplan::{
    cli::{self, Command},
    features::Remote,
    key::KeyType,
    protocol::PING,
    report::Line,
    serve,
};
use libp2p::{Multiaddr, StreamProtocol};
use litep2p::{
    Litep2p, Litep2pEvent, PeerId,
    config::ConfigBuilder,
    protocol::libp2p::{
        identify::{self, IdentifyEvent},
        ping,
    },
    transport::quic,
};
use tokio::{io::AsyncReadExt, sync::watch};

use crate::protocol::{Handle, Served, Stream};

/// Agent version that identify sends.
const AGENT: &str = "litep2p";
/// Keep-alive time that is longer than any test.
const KEEP_ALIVE: Duration = Duration::from_secs(3600);
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// A running litep2p and the protocols that it serves.
struct Node {
    litep2p: Litep2p,
    identified: Box<dyn futures::Stream<Item = IdentifyEvent> + Send + Unpin>,
    handles: HashMap<StreamProtocol, Handle>,
}

/// State of all peers.
#[derive(Debug, Clone, Default)]
struct State {
    connected: Vec<PeerId>,
    agent: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Listen(listen) => {
            let node = Node::start(listen.key, vec![listen.address], true)?;
            let address = node.litep2p.listen_addresses().next().context("it listens nowhere")?;
            Line::Listening { address: address.to_string().parse()? }.print();
            let (state, _known) = watch::channel(State::default());
            tokio::select! {
                watched = node.run(state, true) => watched,
                ended = end_of_input() => ended,
            }
        }
        Command::Dial(dial) => {
            let mut node = Node::start(dial.key, Vec::new(), false)?;
            let peer = tokio::time::timeout(CONNECT_TIMEOUT, node.dial(&dial.address)).await??;
            Line::Connected { peer: peer.to_string() }.print();
            let handles = node.handles.clone();
            let (sender, state) = watch::channel(State { connected: vec![peer], agent: None });
            let watching = tokio::spawn(node.run(sender, false));
            cli::attempt_all(&mut Connected { handles, peer, state }, dial.features).await;
            watching.abort();
            Ok(())
        }
    }
}

async fn end_of_input() -> anyhow::Result<()> {
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

impl Node {
    fn start(key: KeyType, listen_addresses: Vec<Multiaddr>, own_ping: bool) -> anyhow::Result<Self> {
        ensure!(key == KeyType::Ed25519, "litep2p has no identities of type {key}");
        let listen_addresses =
            listen_addresses.iter().map(|address| address.to_string().parse()).collect::<Result<_, _>>()?;
        let (identify, identified) = identify::Config::new("/interop/1.0.0".into(), Some(AGENT.into()));
        let mut config = ConfigBuilder::new()
            .with_quic(quic::config::Config { listen_addresses, ..Default::default() })
            .with_libp2p_identify(identify)
            .with_keep_alive_timeout(KEEP_ALIVE);
        if own_ping {
            let (ping, mut pings) = ping::Config::default();
            tokio::spawn(async move { while pings.next().await.is_some() {} });
            config = config.with_libp2p_ping(ping);
        }
        let mut handles = HashMap::new();
        for protocol in serve::SERVED.into_iter().filter(|protocol| !own_ping || *protocol != PING) {
            let (served, handle) = Served::new(protocol.clone());
            config = config.with_user_protocol(Box::new(served));
            handles.insert(protocol, handle);
        }
        Ok(Self { litep2p: Litep2p::new(config.build())?, identified, handles })
    }

    async fn dial(&mut self, address: &Multiaddr) -> anyhow::Result<PeerId> {
        self.litep2p.dial_address(address.to_string().parse()?).await?;
        loop {
            match self.litep2p.next_event().await.context("litep2p has ended")? {
                Litep2pEvent::ConnectionEstablished { peer, .. } => return Ok(peer),
                Litep2pEvent::DialFailure { error, .. } => bail!("{error}"),
                Litep2pEvent::ListDialFailures { errors } => bail!("{errors:?}"),
                Litep2pEvent::ConnectionClosed { .. } => {}
            }
        }
    }

    /// Keeps the state, and prints it if `report` says so.
    async fn run(mut self, state: watch::Sender<State>, report: bool) -> anyhow::Result<()> {
        loop {
            let line = tokio::select! {
                event = self.litep2p.next_event() => match event.context("litep2p has ended")? {
                    Litep2pEvent::ConnectionEstablished { peer, .. } => {
                        state.send_modify(|state| state.connected.push(peer));
                        Line::Connected { peer: peer.to_string() }
                    }
                    Litep2pEvent::ConnectionClosed { peer, .. } => {
                        state.send_modify(|state| state.connected.retain(|connected| *connected != peer));
                        Line::Closed { peer: peer.to_string() }
                    }
                    Litep2pEvent::DialFailure { .. } | Litep2pEvent::ListDialFailures { .. } => continue,
                },
                event = next_or_never(&mut self.identified) => {
                    let IdentifyEvent::PeerIdentified { peer, user_agent, supported_protocols, .. } = event;
                    let agent = user_agent.unwrap_or_default();
                    let pings = supported_protocols.iter().any(|protocol| **protocol == *PING.as_ref());
                    if pings {
                        state.send_modify(|state| state.agent = Some(agent.clone()));
                    }
                    Line::Identified { peer: peer.to_string(), agent }
                }
            };
            if report {
                line.print();
            }
        }
    }
}

async fn next_or_never<T>(stream: &mut (impl futures::Stream<Item = T> + Unpin)) -> T {
    match stream.next().await {
        Some(item) => item,
        None => pending().await,
    }
}

struct Connected {
    handles: HashMap<StreamProtocol, Handle>,
    peer: PeerId,
    state: watch::Receiver<State>,
}

impl Connected {
    fn handle(&self, protocol: &StreamProtocol) -> anyhow::Result<&Handle> {
        self.handles.get(protocol).with_context(|| format!("no protocol {protocol}"))
    }
}

impl Remote for Connected {
    type Stream = Stream;

    async fn open(&mut self, protocol: StreamProtocol) -> anyhow::Result<Stream> {
        self.handle(&protocol)?.open(self.peer).await
    }

    async fn identify(&mut self, timeout: Duration) -> anyhow::Result<String> {
        let told = self.state.wait_for(|state| state.agent.is_some());
        let told =
            tokio::time::timeout(timeout, told).await.map_err(|_| anyhow!("identify told nothing"))??;
        told.agent.clone().context("an agent")
    }

    async fn disconnect(&mut self) -> anyhow::Result<()> {
        self.handle(&PING)?.disconnect(self.peer);
        Ok(())
    }

    async fn gone(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        let gone = self.state.wait_for(|state| state.connected.is_empty());
        Ok(tokio::time::timeout(timeout, gone).await.is_ok())
    }
}
