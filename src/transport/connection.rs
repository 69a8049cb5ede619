//! A QUIC connection as libp2p's stream muxer.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, future::BoxFuture};
use libp2p_core::{
    multiaddr::Protocol,
    muxing::{StreamMuxer, StreamMuxerEvent},
};

use super::{
    Error, addr,
    path::FlowGuard,
    quic::FIRST_STREAMS,
    stream::Stream,
    tls::{self, HandshakeMode},
    window::SendWindow,
};

type Pair = Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>;

/// An authenticated QUIC connection.
pub struct Connection {
    connection: quinn::Connection,
    /// Of a traversal session: knows the real remote address, and tells the path layer when the connection is gone.
    session: Option<FlowGuard>,
    inbound: Option<BoxFuture<'static, Pair>>,
    outbound: Option<BoxFuture<'static, Pair>>,
    closing: Option<BoxFuture<'static, quinn::ConnectionError>>,
    growth: Box<Growth>,
}

/// What it is given once it is busy.
struct Growth {
    /// Counts the streams that the remote opened and we still hold: each has a clone.
    remote_streams: Arc<()>,
    /// How many streams the remote may have once it is busy; `None` if it may already.
    more_streams: Option<u32>,
    window: Arc<SendWindow>,
}

impl Connection {
    /// `session` is given for connections whose remote address is virtual; `max_streams` is how many streams the remote
    /// may have open at once.
    pub(crate) fn new(connection: quinn::Connection, session: Option<FlowGuard>, max_streams: u32) -> Self {
        Self {
            growth: Box::new(Growth {
                remote_streams: Arc::default(),
                more_streams: (max_streams > FIRST_STREAMS).then_some(max_streams),
                window: Arc::new(SendWindow::new(connection.clone())),
            }),
            connection,
            session,
            inbound: None,
            outbound: None,
            closing: None,
        }
    }

    /// Lets the remote have all of its streams once it uses half of what it was given first.
    fn raise_stream_limit(&mut self) {
        // One is ours.
        let open = Arc::strong_count(&self.growth.remote_streams) - 1;
        if let Some(max) = self.growth.more_streams.take_if(|_| open > FIRST_STREAMS as usize / 2) {
            self.connection.set_max_concurrent_bi_streams(max.into());
        }
    }

    /// How the remote presented its identity.
    pub fn handshake_mode(&self) -> Result<HandshakeMode, Error> {
        tls::peer_of(&self.connection).map(|(_, mode)| mode)
    }

    /// What QUIC counts: datagrams, frames, losses, the round-trip time, the congestion window and the MTU.
    pub fn quic_stats(&self) -> quinn::ConnectionStats {
        self.connection.stats()
    }
}

impl StreamMuxer for Connection {
    type Substream = Stream;
    type Error = Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let this = &mut *self;
        let inbound = this.inbound.get_or_insert_with(|| {
            let connection = this.connection.clone();
            async move { connection.accept_bi().await }.boxed()
        });
        let pair = ready!(inbound.poll_unpin(cx));
        this.inbound = None;
        let stream = Stream::new(pair?, this.growth.window.clone(), Some(this.growth.remote_streams.clone()));
        this.raise_stream_limit();
        Poll::Ready(Ok(stream))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let this = &mut *self;
        let outbound = this.outbound.get_or_insert_with(|| {
            let connection = this.connection.clone();
            async move { connection.open_bi().await }.boxed()
        });
        let pair = ready!(outbound.poll_unpin(cx));
        this.outbound = None;
        Poll::Ready(Ok(Stream::new(pair?, this.growth.window.clone(), None)))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Error>> {
        let Some(session) = &mut self.session else { return Poll::Pending };
        let remote = ready!(session.poll_remote(cx));
        let (peer, _) = tls::peer_of(&self.connection)?;
        let address = addr::from_socket(remote).with(Protocol::P2p(peer));
        Poll::Ready(Ok(StreamMuxerEvent::AddressChange(address)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = &mut *self;
        let closing = this.closing.get_or_insert_with(|| {
            this.connection.close(0u32.into(), &[]);
            let connection = this.connection.clone();
            async move { connection.closed().await }.boxed()
        });
        match ready!(closing.poll_unpin(cx)) {
            quinn::ConnectionError::LocallyClosed => Poll::Ready(Ok(())),
            error => Poll::Ready(Err(error.into())),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.connection.stable_id())
            .field("session", &self.session.is_some())
            .finish_non_exhaustive()
    }
}
