//! A quinn endpoint that connections share, and the receive hook between the endpoint and its
//! socket.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{
    hole_punching::Punches,
    migration::{self, ClientPoller},
    path::PathLayer,
    socket::{Socket, is_about_a_sent_datagram},
};
use libp2p_punch_proto::SocketId;

/// Receive calls in a row without a datagram for quinn, before other tasks get their turn.
const MAX_EMPTY_RECEIVES: usize = 32;

/// A quinn endpoint and its UDP socket, which can be exchanged. Connections hold the endpoint, so
/// it lives while it has any.
#[derive(Debug)]
pub(crate) struct SharedEndpoint {
    endpoint: quinn::Endpoint,
    hooked: Mutex<Arc<InterceptingSocket>>,
}

impl SharedEndpoint {
    /// Takes an endpoint that was made on `hooked`.
    pub(super) fn new(endpoint: quinn::Endpoint, hooked: Arc<InterceptingSocket>) -> Self {
        Self { endpoint, hooked: Mutex::new(hooked) }
    }

    pub(crate) fn endpoint(&self) -> &quinn::Endpoint {
        &self.endpoint
    }

    /// The name of the socket in use.
    pub(crate) fn id(&self) -> SocketId {
        self.hooked().id
    }

    /// The socket in use, beneath the receive hook.
    pub(crate) fn socket(&self) -> Arc<dyn AsyncUdpSocket> {
        self.hooked().inner.clone()
    }

    /// Makes all connections of the endpoint act as on a new path: they use fresh connection IDs
    /// and send a PING at once (RFC 9000 §9.5), by which a QUIC server learns the new address of
    /// its client.
    pub(crate) fn refresh(&self) -> io::Result<()> {
        self.endpoint.rebind_abstract(self.hooked())
    }

    /// Goes on with another socket.
    pub(super) fn exchange(&self, hooked: Arc<InterceptingSocket>) -> io::Result<()> {
        self.endpoint.rebind_abstract(hooked.clone())?;
        *self.hooked.lock().unwrap_or_else(PoisonError::into_inner) = hooked;
        Ok(())
    }

    pub(super) fn hooked(&self) -> Arc<InterceptingSocket> {
        self.hooked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Socket of a quinn endpoint. The punches and the path layer see each received datagram before
/// quinn.
#[derive(Debug)]
pub(crate) struct InterceptingSocket {
    /// The name of the socket.
    pub(super) id: SocketId,
    pub(super) inner: Arc<Socket>,
    pub(super) punches: Punches,
    /// `None` if the transport is used without the behaviour.
    pub(super) path: Option<Arc<PathLayer>>,
}

impl AsyncUdpSocket for InterceptingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(ClientPoller::new(self.inner.clone().create_io_poller()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !migration::may_send(transmit.destination) {
            return Ok(());
        }
        match self.inner.try_send(transmit) {
            // quinn ends the connection on an error. A datagram without a route counts as lost: the
            // route may come back, or another route be found.
            Err(error) if is_about_a_route(&error) => Ok(()),
            sent => sent,
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..MAX_EMPTY_RECEIVES {
            let received = ready!(self.inner.poll_recv(cx, bufs, meta))?;
            for (buffer, meta) in bufs.iter().zip(meta.iter()).take(received) {
                self.punches.note(buffer, meta);
            }
            let Some(path) = self.path.as_ref().filter(|path| path.is_active()) else {
                return Poll::Ready(Ok(received));
            };
            let left = path.intercept(self.id, bufs, meta, received);
            // quinn skips empty entries; only if all of them are empty is there nothing to wake it
            // for.
            if meta.iter().take(left).any(|entry| entry.len > 0) {
                return Poll::Ready(Ok(left));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn is_about_a_route(error: &io::Error) -> bool {
    is_about_a_sent_datagram(error)
        || matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput)
}
