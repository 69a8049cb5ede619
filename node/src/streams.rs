//! The `NetworkBehaviour` that opens and accepts the streams of applications.
//!
//! A stream goes over a direct connection if there is one. While the application holds a connection
//! to a peer, all connections to that peer are kept alive, at both ends: a stream of the hold
//! protocol is open on each of them. The first such stream also shows the other side that an
//! application has connected, and not only a node of the DHT.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::AsyncRead;
use libp2p_core::{
    ConnectedPoint, Endpoint, InboundUpgrade, Multiaddr, OutboundUpgrade, UpgradeInfo, transport::PortUse,
};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    AddressChange, ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent,
    ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, Stream, StreamProtocol, StreamUpgradeError,
    SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    behaviour::ConnectionEstablished,
    handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{error::OpenError, status::CloseReason};

/// Name of the protocol whose streams keep a connection alive. They carry no bytes.
pub(crate) const HOLD_PROTOCOL: StreamProtocol = StreamProtocol::new("/libp2p-punch/node/hold/1.0.0");

/// Sender of the result to the handle that waits for the stream.
pub(crate) type OpenReply = oneshot::Sender<Result<Stream, OpenError>>;

/// Order to open a stream.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) protocol: StreamProtocol,
    pub(crate) reply: OpenReply,
}

/// Message to the handler of one connection.
#[derive(Debug)]
pub(crate) enum ToHandler {
    Open(OpenRequest),
    /// Keep the connection alive until the token is cancelled.
    Hold(CancellationToken),
}

/// Message from the handler of one connection.
#[derive(Debug)]
pub(crate) enum FromHandler {
    Inbound(InboundStream),
    /// The peer's application holds a connection to us.
    Held,
}

/// A stream that a peer opened.
#[derive(Debug)]
pub(crate) struct InboundStream {
    pub(crate) protocol: StreamProtocol,
    pub(crate) stream: Stream,
}

/// Event of the behaviour.
#[derive(Debug)]
pub(crate) enum Event {
    /// A peer opened a stream of an application's protocol.
    Inbound { peer: PeerId, stream: InboundStream },
    /// The application of a peer holds a connection to this node.
    Held { peer: PeerId },
    /// A connection goes to another address of the peer.
    Moved { peer: PeerId, connection: ConnectionId, address: Multiaddr },
}

#[derive(Debug, Default)]
struct Links {
    /// Connections to the peer, oldest first.
    ids: Vec<Link>,
    hold: Option<CancellationToken>,
}

#[derive(Debug)]
struct Link {
    id: ConnectionId,
    is_relayed: bool,
}

/// Opens and accepts streams.
pub(crate) struct Behaviour {
    protocols: Arc<[StreamProtocol]>,
    peers: HashMap<PeerId, Links>,
    actions: VecDeque<ToSwarm<Event, ToHandler>>,
}

impl Behaviour {
    pub(crate) fn new(mut protocols: Vec<StreamProtocol>) -> Self {
        protocols.push(HOLD_PROTOCOL);
        Self { protocols: protocols.into(), peers: HashMap::new(), actions: VecDeque::new() }
    }

    /// Opens a stream on the newest direct connection, or else on the newest one.
    pub(crate) fn open(&mut self, peer: PeerId, request: OpenRequest) {
        let links = self.peers.get(&peer).map(|links| links.ids.as_slice()).unwrap_or_default();
        let direct = links.iter().rev().find(|link| !link.is_relayed);
        let Some(link) = direct.or(links.last()) else {
            // An error means that the application does not wait any more.
            let _ = request.reply.send(Err(OpenError::Closed(CloseReason::Local)));
            return;
        };
        self.notify(peer, link.id, ToHandler::Open(request));
    }

    /// Keeps all connections to the peer alive until `released` is cancelled.
    pub(crate) fn hold(&mut self, peer: PeerId, released: &CancellationToken) {
        let Some(links) = self.peers.get_mut(&peer) else { return };
        links.hold = Some(released.clone());
        let ids: Vec<_> = links.ids.iter().map(|link| link.id).collect();
        for id in ids {
            self.notify(peer, id, ToHandler::Hold(released.clone()));
        }
    }

    fn notify(&mut self, peer: PeerId, id: ConnectionId, event: ToHandler) {
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(id),
            event,
        });
    }

    fn handler(&self, peer: &PeerId) -> Handler {
        let hold = self.peers.get(peer).and_then(|links| links.hold.as_ref());
        Handler {
            protocols: self.protocols.clone(),
            hold: hold.filter(|released| !released.is_cancelled()).cloned().map(OwnHold::new),
            orders: VecDeque::new(),
            events: VecDeque::new(),
            held_by_peer: None,
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(&peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(&peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => {
                let link = Link { id: connection_id, is_relayed: endpoint.is_relayed() };
                self.peers.entry(peer_id).or_default().ids.push(link);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                if let Some(links) = self.peers.get_mut(&peer_id) {
                    links.ids.retain(|link| link.id != connection_id);
                    if links.ids.is_empty() {
                        self.peers.remove(&peer_id);
                    }
                }
            }
            FromSwarm::AddressChange(AddressChange { peer_id, connection_id, new, .. }) => {
                let address = match new {
                    ConnectedPoint::Dialer { address, .. } => address,
                    ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr,
                };
                let moved =
                    Event::Moved { peer: peer_id, connection: connection_id, address: address.clone() };
                self.actions.push_back(ToSwarm::GenerateEvent(moved));
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        self.actions.push_back(ToSwarm::GenerateEvent(match event {
            FromHandler::Inbound(stream) => Event::Inbound { peer, stream },
            FromHandler::Held => Event::Held { peer },
        }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Handler of one connection.
pub(crate) struct Handler {
    protocols: Arc<[StreamProtocol]>,
    hold: Option<OwnHold>,
    orders: VecDeque<OpenRequest>,
    events: VecDeque<FromHandler>,
    /// Open while the peer's application holds the connection.
    held_by_peer: Option<Stream>,
}

/// Interest of this node's application in the connection.
struct OwnHold {
    released: Pin<Box<WaitForCancellationFutureOwned>>,
    stream: HoldStream,
}

/// Stream that shows the peer the interest of this node's application.
enum HoldStream {
    Wanted,
    Requested,
    Open(Stream),
    /// The peer does not speak the protocol, or ended the stream.
    Refused,
}

impl OwnHold {
    fn new(released: CancellationToken) -> Self {
        Self { released: Box::pin(released.cancelled_owned()), stream: HoldStream::Wanted }
    }

    /// Replaces the end of the hold. An open stream stays.
    fn renew(&mut self, released: CancellationToken) {
        self.released = Box::pin(released.cancelled_owned());
    }
}

/// Purpose of an outbound stream.
#[derive(Debug)]
pub(crate) enum Purpose {
    Open(OpenRequest),
    Hold,
}

impl Handler {
    /// Drives the streams of the hold protocol. Returns true if one must be opened.
    fn poll_holds(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(stream) = &mut self.held_by_peer
            && poll_end(stream, cx).is_ready()
        {
            self.held_by_peer = None;
        }
        let Some(hold) = &mut self.hold else { return false };
        if hold.released.as_mut().poll(cx).is_ready() {
            self.hold = None;
            return false;
        }
        match &mut hold.stream {
            HoldStream::Wanted => {
                hold.stream = HoldStream::Requested;
                true
            }
            // The read also carries the negotiation on.
            HoldStream::Open(stream) => {
                if poll_end(stream, cx).is_ready() {
                    hold.stream = HoldStream::Refused;
                }
                false
            }
            HoldStream::Requested | HoldStream::Refused => false,
        }
    }

    fn opened(&mut self, purpose: Purpose, stream: Stream) {
        match purpose {
            // An error means that the application does not wait any more.
            Purpose::Open(request) => drop(request.reply.send(Ok(stream))),
            Purpose::Hold => {
                if let Some(hold) = &mut self.hold {
                    hold.stream = HoldStream::Open(stream);
                }
            }
        }
    }

    fn refused(&mut self, purpose: Purpose, error: StreamUpgradeError<Infallible>) {
        match purpose {
            Purpose::Open(request) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::TimedOut,
                    StreamUpgradeError::NegotiationFailed => {
                        OpenError::Unsupported { protocol: request.protocol.to_string() }
                    }
                    StreamUpgradeError::Io(error) => OpenError::Io { cause: error.to_string() },
                    StreamUpgradeError::Apply(never) => match never {},
                };
                // An error means that the application does not wait any more.
                drop(request.reply.send(Err(error)));
            }
            Purpose::Hold => {
                if let Some(hold) = &mut self.hold {
                    hold.stream = HoldStream::Refused;
                }
            }
        }
    }
}

/// Waits for the end of a stream that carries no bytes.
fn poll_end(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<()> {
    // A byte breaks the protocol, and ends the stream as well.
    Pin::new(stream).poll_read(cx, &mut [0]).map(drop)
}

impl ConnectionHandler for Handler {
    type FromBehaviour = ToHandler;
    type ToBehaviour = FromHandler;
    type InboundProtocol = Protocols;
    type OutboundProtocol = Protocols;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Purpose;

    fn listen_protocol(&self) -> SubstreamProtocol<Protocols> {
        SubstreamProtocol::new(Protocols(self.protocols.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.hold.is_some()
    }

    fn on_behaviour_event(&mut self, event: ToHandler) {
        match event {
            ToHandler::Open(order) => self.orders.push_back(order),
            ToHandler::Hold(released) => match &mut self.hold {
                Some(hold) => hold.renew(released),
                None => self.hold = Some(OwnHold::new(released)),
            },
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocols, Protocols, (), Purpose>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                ..
            }) => {
                if protocol == HOLD_PROTOCOL {
                    self.held_by_peer = Some(stream);
                    self.events.push_back(FromHandler::Held);
                } else {
                    self.events.push_back(FromHandler::Inbound(InboundStream { protocol, stream }));
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info,
            }) => self.opened(info, stream),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, info }) => self.refused(info, error),
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Protocols, Purpose, FromHandler>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        if self.poll_holds(cx) {
            let protocol = SubstreamProtocol::new(Protocols([HOLD_PROTOCOL].into()), Purpose::Hold);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        while let Some(order) = self.orders.pop_front() {
            if !order.reply.is_closed() {
                let protocols = Protocols([order.protocol.clone()].into());
                let protocol = SubstreamProtocol::new(protocols, Purpose::Open(order));
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
        }
        Poll::Pending
    }
}

/// Names of protocols, of which one is negotiated for a stream.
#[derive(Debug, Clone)]
pub(crate) struct Protocols(Arc<[StreamProtocol]>);

impl UpgradeInfo for Protocols {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        Vec::from(&*self.0).into_iter()
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
