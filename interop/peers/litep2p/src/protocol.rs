//! Our protocols as litep2p's user protocols: each runs in a task of its own, which opens streams
//! and serves them.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, anyhow};
use futures::StreamExt;
use interop_testplan::serve;
use libp2p::StreamProtocol;
use litep2p::{
    PeerId,
    codec::ProtocolCodec,
    protocol::{Direction, TransportEvent, TransportService, UserProtocol},
    substream::Substream,
    types::{SubstreamId, protocol::ProtocolName},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

/// A stream as the contract wants it.
pub(crate) type Stream = Compat<Substream>;

/// Command to a protocol.
enum Command {
    Open(PeerId, oneshot::Sender<anyhow::Result<Stream>>),
    Disconnect(PeerId),
}

/// One of our protocols, before it runs.
pub(crate) struct Served {
    protocol: StreamProtocol,
    commands: mpsc::UnboundedReceiver<Command>,
    handle: Handle,
}

/// Commands a protocol that runs.
#[derive(Clone)]
pub(crate) struct Handle(mpsc::UnboundedSender<Command>);

impl Handle {
    /// Opens a stream.
    pub(crate) async fn open(&self, peer: PeerId) -> anyhow::Result<Stream> {
        let (reply, opened) = oneshot::channel();
        self.0.send(Command::Open(peer, reply)).map_err(|_| anyhow!("the protocol has ended"))?;
        opened.await.context("the protocol has ended")?
    }

    /// Closes the connection.
    pub(crate) fn disconnect(&self, peer: PeerId) {
        // The protocol ends with the whole peer.
        let _ = self.0.send(Command::Disconnect(peer));
    }
}

impl Served {
    pub(crate) fn new(protocol: StreamProtocol) -> (Self, Handle) {
        let (sender, commands) = mpsc::unbounded_channel();
        let handle = Handle(sender);
        (Self { protocol, commands, handle: handle.clone() }, handle)
    }

    fn serve(&self, peer: PeerId, stream: Stream) {
        let (protocol, handle) = (self.protocol.clone(), self.handle.clone());
        tokio::spawn(async move {
            let disconnect = async { handle.disconnect(peer) };
            if let Err(error) = serve::handle(&protocol, stream, disconnect).await {
                eprintln!("a stream ended early: {error:#}");
            }
        });
    }
}

#[async_trait::async_trait]
impl UserProtocol for Served {
    fn protocol(&self) -> ProtocolName {
        ProtocolName::from(self.protocol.to_string())
    }

    fn codec(&self) -> ProtocolCodec {
        ProtocolCodec::Unspecified
    }

    async fn run(mut self: Box<Self>, mut service: TransportService) -> litep2p::Result<()> {
        // Commands may come before the protocol hears of the connection, each of which it hears of
        // by itself.
        let mut connected = HashSet::new();
        let mut early = Vec::new();
        let mut opening: HashMap<SubstreamId, oneshot::Sender<anyhow::Result<Stream>>> = HashMap::new();
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Open(peer, reply)) if !connected.contains(&peer) => early.push((peer, reply)),
                    Some(Command::Open(peer, reply)) => match service.open_substream(peer) {
                        Ok(id) => {
                            opening.insert(id, reply);
                        }
                        Err(error) => {
                            let _ = reply.send(Err(anyhow!("{error}")));
                        }
                    },
                    Some(Command::Disconnect(peer)) => service.force_close(peer)?,
                    None => return Ok(()),
                },
                event = service.next() => match event {
                    Some(TransportEvent::SubstreamOpened { peer, direction, substream, .. }) => match direction {
                        Direction::Inbound => self.serve(peer, substream.compat()),
                        Direction::Outbound(id) => {
                            if let Some(reply) = opening.remove(&id) {
                                let _ = reply.send(Ok(substream.compat()));
                            }
                        }
                    },
                    Some(TransportEvent::SubstreamOpenFailure { substream, error }) => {
                        if let Some(reply) = opening.remove(&substream) {
                            let _ = reply.send(Err(anyhow!("{error}")));
                        }
                    }
                    Some(TransportEvent::ConnectionEstablished { peer, .. }) => {
                        connected.insert(peer);
                        for (peer, reply) in early.extract_if(.., |(waiting, _)| *waiting == peer) {
                            // Only if the peer has ended.
                            let _ = self.handle.0.send(Command::Open(peer, reply));
                        }
                    }
                    Some(TransportEvent::ConnectionClosed { peer }) => {
                        connected.remove(&peer);
                    }
                    Some(TransportEvent::DialFailure { .. }) => {}
                    None => return Ok(()),
                },
            }
        }
    }
}
