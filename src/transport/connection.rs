//! A QUIC connection as libp2p's stream muxer.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, future::BoxFuture};
use libp2p_core::{
    Multiaddr,
    multiaddr::Protocol,
    muxing::{StreamMuxer, StreamMuxerEvent},
};

use super::{
    Error, addr, closing,
    connection_stats::{ConnectionOrigin, ConnectionStats},
    limits::Limits,
    live::{AskedBy, Carrier, ConnectionEntry, ConnectionTable, NewConnection},
    path::FlowGuard,
    quic::FIRST_STREAMS,
    stream::Stream,
    tls::HandshakeMode,
    window::SendWindow,
};
use crate::{io::Network, offers::Offer};
use libp2p_punch_proto::event::PathKind;

type Pair = Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>;

/// An authenticated QUIC connection.
pub struct Connection {
    pub(super) live: Arc<ConnectionEntry>,
    /// Guard of a traversal session: knows the real remote address, and releases the path layer's
    /// state on drop.
    session: Option<FlowGuard>,
    /// The swarm dialed it: it knows the remote by an address that names the peer.
    is_dialed: bool,
    /// The offer whose address the swarm dialed.
    offer: Option<Arc<Offer>>,
    /// Remote address to report to the swarm next.
    owed: Option<Multiaddr>,
    inbound: Option<BoxFuture<'static, Pair>>,
    outbound: Option<BoxFuture<'static, Pair>>,
    closing: Option<BoxFuture<'static, Result<(), quinn::ConnectionError>>>,
    growth: Box<Growth>,
}

/// Limits of a connection once it is busy.
struct Growth {
    /// Counts the streams that the remote opened and we still hold: each has a clone.
    remote_streams: Arc<()>,
    /// Number of streams that the remote may have once the connection is busy; `None` if it may
    /// already.
    more_streams: Option<u32>,
    window: Arc<SendWindow>,
}

impl Connection {
    /// Creates the connection; `session` is present if its remote address is virtual.
    pub(crate) fn new(live: Arc<ConnectionEntry>, session: Option<FlowGuard>) -> Self {
        let Limits { streams, send_window, .. } = live.limits();
        let growth = Box::new(Growth {
            remote_streams: Arc::default(),
            more_streams: (streams > FIRST_STREAMS).then_some(streams),
            window: Arc::new(SendWindow::new(quinn::Connection::clone(&live.connection), send_window)),
        });
        Self {
            live,
            session,
            is_dialed: true,
            offer: None,
            owed: None,
            inbound: None,
            outbound: None,
            closing: None,
            growth,
        }
    }

    /// A connection that a traversal session ended in, over a path of this kind.
    pub(crate) fn of_session(
        connections: &Arc<ConnectionTable>,
        connection: quinn::Connection,
        guard: FlowGuard,
        kind: PathKind,
        asked_by: AskedBy,
    ) -> Result<Self, Error> {
        let beneath = Carrier::Flow(guard.view());
        let through = ConnectionOrigin::Session(kind);
        let live = connections.add(NewConnection { connection, through, beneath, source: None, asked_by })?;
        Ok(Self::new(live, Some(guard)))
    }

    /// Records the local address, so that a change can be reported.
    pub(super) fn note_source(&self, network: &dyn Network) {
        let source = self.live.remote().and_then(|remote| network.source_for(remote.ip()).ok());
        if let Some(source) = source {
            self.live.sends_from(source);
        }
    }

    /// Records that the swarm dialed the address of this offer, and needs the real address.
    pub(super) fn dialed_at(self, offer: Arc<Offer>) -> Self {
        // A session reports its address by itself.
        let remote = self.live.remote().filter(|_| self.session.is_none());
        let owed = remote.map(|remote| self.session_address(remote));
        Self { offer: Some(offer), owed, ..self }
    }

    /// Reports the real address once more, if a behaviour asks for that.
    fn poll_repeat(&mut self, cx: &Context<'_>) -> Poll<Result<StreamMuxerEvent, Error>> {
        let Some(offer) = self.offer.clone() else { return Poll::Pending };
        ready!(offer.poll_repeat(cx));
        let Some(remote) = self.live.remote() else { return Poll::Pending };
        // A change replaces an address in place, so that the offered one comes first.
        self.owed = Some(self.session_address(remote));
        Poll::Ready(Ok(StreamMuxerEvent::AddressChange(offer.address())))
    }

    /// The swarm knows that the remote is there.
    pub(super) fn told(&mut self, remote: SocketAddr) {
        if let Some(session) = &mut self.session {
            session.told(remote);
            self.live.moved();
        }
    }

    /// The swarm accepts a session from this address.
    pub(super) fn accepted_from(&mut self, remote: SocketAddr) {
        self.is_dialed = false;
        self.told(remote);
    }

    /// The real remote address of a session, in the form of the address that the swarm knows it by.
    fn session_address(&self, remote: SocketAddr) -> Multiaddr {
        let address = addr::from_socket(remote);
        match self.is_dialed {
            true => address.with(Protocol::P2p(self.live.peer())),
            false => address,
        }
    }

    /// Allows the remote all of its streams once it uses half of its first allowance.
    fn raise_stream_limit(&mut self) {
        // One reference is our own.
        let open = Arc::strong_count(&self.growth.remote_streams) - 1;
        if let Some(max) = self.growth.more_streams.take_if(|_| open > FIRST_STREAMS as usize / 2) {
            self.live.connection.set_max_concurrent_bi_streams(max.into());
        }
    }

    /// Returns the way in which the remote presented its identity.
    pub fn handshake_mode(&self) -> HandshakeMode {
        self.live.handshake()
    }

    /// Returns the present statistics of the connection.
    pub fn stats(&self) -> ConnectionStats {
        self.live.stats()
    }

    /// Everything that QUIC counts, down to the kinds of frames.
    #[cfg(test)]
    pub(crate) fn quic_stats(&self) -> quinn::ConnectionStats {
        self.live.connection.stats()
    }
}

impl StreamMuxer for Connection {
    type Substream = Stream;
    type Error = Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let this = &mut *self;
        // A swarm looks for streams on a connection once all of its behaviours have accepted it.
        this.session.iter().for_each(FlowGuard::take);
        let inbound = this.inbound.get_or_insert_with(|| {
            let connection = this.live.connection.clone();
            async move { connection.accept_bi().await }.boxed()
        });
        let pair = ready!(inbound.poll_unpin(cx));
        this.inbound = None;
        let counted = Some(this.growth.remote_streams.clone());
        let stream = Stream::new(pair?, this.growth.window.clone(), this.live.number(), counted);
        this.raise_stream_limit();
        Poll::Ready(Ok(stream))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let this = &mut *self;
        let outbound = this.outbound.get_or_insert_with(|| {
            let connection = this.live.connection.clone();
            async move { connection.open_bi().await }.boxed()
        });
        let pair = ready!(outbound.poll_unpin(cx));
        this.outbound = None;
        let stream = Stream::new(pair?, this.growth.window.clone(), this.live.number(), None);
        Poll::Ready(Ok(stream))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Error>> {
        let this = &mut *self;
        if let Some(address) = this.owed.take() {
            return Poll::Ready(Ok(StreamMuxerEvent::AddressChange(address)));
        }
        let Some(session) = &mut this.session else {
            if let Some(to) = this.live.poll_moved(cx.waker()) {
                return Poll::Ready(Ok(StreamMuxerEvent::AddressChange(addr::from_socket(to))));
            }
            return this.poll_repeat(cx);
        };
        if let Poll::Ready(remote) = session.poll_remote(cx) {
            // The swarm gets the address in any case; this call is for the statistics events.
            this.live.moved();
            let address = this.session_address(remote);
            return Poll::Ready(Ok(StreamMuxerEvent::AddressChange(address)));
        }
        this.poll_repeat(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = &mut *self;
        let closing = this.closing.get_or_insert_with(|| {
            closing::close(quinn::Connection::clone(&this.live.connection), this.live.runtime()).boxed()
        });
        closing.poll_unpin(cx).map_err(Error::from)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.live.connection.stable_id())
            .field("session", &self.session.is_some())
            .finish_non_exhaustive()
    }
}
