//! A behaviour for incoming and outgoing streams.
//!
//! It queues all incoming streams, as a listener must not lose the second of two streams that
//! arrive at once. The queue is bounded by the streams that a connection may have open.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
    vec,
};

use anyhow::anyhow;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{
        Endpoint,
        transport::PortUse,
        upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo},
    },
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{mpsc, oneshot};

/// Sender for a requested stream.
pub type Reply = oneshot::Sender<anyhow::Result<Stream>>;

/// A stream that a peer has opened.
#[derive(Debug)]
pub struct Incoming {
    /// Peer that opened the stream.
    pub peer: PeerId,
    /// The protocol.
    pub protocol: StreamProtocol,
    /// The stream.
    pub stream: Stream,
}

/// Requests a stream on a connection.
#[derive(Debug)]
pub struct Open {
    /// The names that it may have, the better ones first.
    names: Vec<StreamProtocol>,
    reply: Reply,
}

/// Hands streams in and out.
pub struct Behaviour {
    protocols: Vec<StreamProtocol>,
    incoming: mpsc::UnboundedSender<Incoming>,
    opens: VecDeque<(PeerId, Open)>,
}

impl Behaviour {
    /// Accepts streams of these protocols.
    pub fn new(protocols: Vec<StreamProtocol>) -> (Self, mpsc::UnboundedReceiver<Incoming>) {
        let (incoming, receiver) = mpsc::unbounded_channel();
        (Self { protocols, incoming, opens: VecDeque::new() }, receiver)
    }

    /// Opens a stream with a connected peer, of the first protocol that it knows. The reply is
    /// dropped if there is no connection.
    pub fn open(&mut self, peer: PeerId, names: Vec<StreamProtocol>, reply: Reply) {
        self.opens.push_back((peer, Open { names, reply }));
    }

    fn handler(&self, peer: PeerId) -> Handler {
        Handler {
            peer,
            protocols: self.protocols.clone(),
            incoming: self.incoming.clone(),
            opens: VecDeque::new(),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    /// Needs no waker: the owner of the swarm asks for streams, and polls the swarm afterwards.
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.opens.pop_front() {
            Some((peer_id, event)) => {
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::Any, event })
            }
            None => Poll::Pending,
        }
    }
}

/// One connection's part of [`Behaviour`].
pub struct Handler {
    peer: PeerId,
    protocols: Vec<StreamProtocol>,
    incoming: mpsc::UnboundedSender<Incoming>,
    opens: VecDeque<Open>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Infallible;
    type InboundProtocol = Protocols;
    type OutboundProtocol = Protocols;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Reply;

    fn listen_protocol(&self) -> SubstreamProtocol<Protocols> {
        SubstreamProtocol::new(Protocols(self.protocols.clone()), ())
    }

    /// Needs no waker: after an event of the behaviour's it is polled.
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Protocols, Reply, Infallible>> {
        match self.opens.pop_front() {
            Some(Open { names, reply }) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Protocols(names), reply),
            }),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, open: Open) {
        self.opens.push_back(open);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocols, Protocols, (), Reply>) {
        // The task that asked for a stream, or that serves streams, may have ended; the stream then
        // ends too.
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info,
            }) => drop(info.send(Ok(stream))),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                drop(info.send(Err(anyhow!("{error}"))));
            }
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                ..
            }) => drop(self.incoming.send(Incoming { peer: self.peer, protocol, stream })),
            _ => {}
        }
    }
}

/// Negotiates one of several protocols, and nothing more.
#[derive(Debug, Clone)]
pub struct Protocols(Vec<StreamProtocol>);

impl UpgradeInfo for Protocols {
    type Info = StreamProtocol;
    type InfoIter = vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Protocols {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Protocols {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
