//! A UDP socket of the transport, its name, and the ordinary quinn endpoint on it.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, Runtime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{
    Error,
    live::ConnectionTable,
    migration::{self, ClientPoller},
    path::PathLayer,
    quic::Quic,
    socket::{Replacement, Socket, SocketNews, is_about_a_sent_datagram},
    socket_budget::SocketBudget,
    wildcard,
};
use crate::io::Network;
use libp2p_punch_proto::SocketId;

/// Receive calls in a row without a datagram for quinn, before other tasks get their turn.
const MAX_EMPTY_RECEIVES: usize = 32;

/// Context that every part of the transport needs.
#[derive(Debug)]
pub(crate) struct TransportContext {
    pub(crate) network: Arc<dyn Network>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) quic: Quic,
    /// `None` if the transport is used without the behaviour.
    pub(crate) path: Option<Arc<PathLayer>>,
    /// The connections that the swarm holds.
    pub(crate) connections: Arc<ConnectionTable>,
    /// Counts the sockets of the node.
    sockets: Arc<SocketBudget>,
    next_socket: AtomicU32,
}

impl TransportContext {
    pub(crate) fn new(
        network: Arc<dyn Network>,
        runtime: Arc<dyn Runtime>,
        quic: Quic,
        path: Option<Arc<PathLayer>>,
    ) -> Self {
        let connections = Arc::new(ConnectionTable::new(quic.limits(), runtime.clone()));
        let sockets = match &path {
            Some(path) => path.socket_budget(),
            None => Arc::new(SocketBudget::new(network.max_descriptors())),
        };
        Self { network, runtime, quic, path, connections, sockets, next_socket: AtomicU32::new(0) }
    }

    /// Binds a socket that is replaced when it fails.
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<Socket>> {
        Socket::bind(&self.network, &self.runtime, address, self.sockets.take())
    }

    fn next_socket(&self) -> SocketId {
        SocketId(self.next_socket.fetch_add(1, Relaxed))
    }
}

/// A quinn endpoint and its UDP socket, which can be exchanged. Connections hold the endpoint, so
/// it lives while it has any.
#[derive(Debug)]
pub(crate) struct SharedEndpoint {
    endpoint: quinn::Endpoint,
    hooked: Mutex<Arc<InterceptingSocket>>,
}

impl SharedEndpoint {
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
    /// and send a PING at once (RFC 9000 §9.5). From the PING a QUIC server learns the new address
    /// of its client.
    pub(crate) fn refresh(&self) -> io::Result<()> {
        self.endpoint.rebind_abstract(self.hooked())
    }

    /// Goes on with another socket, under a new name.
    fn exchange(&self, env: &TransportContext, socket: Arc<Socket>) -> io::Result<()> {
        let hooked =
            Arc::new(InterceptingSocket { id: env.next_socket(), inner: socket, path: env.path.clone() });
        self.endpoint.rebind_abstract(hooked.clone())?;
        *self.hooked.lock().unwrap_or_else(PoisonError::into_inner) = hooked;
        Ok(())
    }

    fn hooked(&self) -> Arc<InterceptingSocket> {
        self.hooked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A wire, and the socket that it was made with.
#[derive(Debug, Clone)]
pub(crate) struct Binding {
    /// The address that the socket is bound to; perhaps a wildcard, but the port is known.
    pub(crate) local: SocketAddr,
    pub(crate) wire: Arc<SharedEndpoint>,
    /// The socket at `local`. The endpoint may use another socket while that address is gone.
    home: Arc<Socket>,
}

impl Binding {
    /// Binds a socket; `accepts` incoming connections or is for dials only.
    pub(crate) fn new(env: &TransportContext, address: SocketAddr, accepts: bool) -> Result<Self, Error> {
        let home = env.bind(address)?;
        let local = home.local();
        let hooked = Arc::new(InterceptingSocket {
            id: env.next_socket(),
            inner: home.clone(),
            path: env.path.clone(),
        });
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            env.quic.endpoint_config(local),
            accepts.then(|| (*env.quic.server_config()).clone()),
            hooked.clone(),
            env.runtime.clone(),
        )?;
        Ok(Self { local, wire: Arc::new(SharedEndpoint { endpoint, hooked: Mutex::new(hooked) }), home })
    }

    /// The address that the socket in use is bound to.
    pub(crate) fn bound(&self) -> SocketAddr {
        self.wire.hooked().inner.local()
    }

    /// Handles the loss of the binding's address: its connections continue from any address that
    /// the machine still has.
    pub(crate) fn leave_home(&self, env: &TransportContext) -> Result<(), Error> {
        Ok(self.wire.exchange(env, env.bind(wildcard(self.local))?)?)
    }

    /// The binding's address is back.
    pub(crate) fn return_home(&self, env: &TransportContext) -> Result<(), Error> {
        self.home.retry_now();
        Ok(self.wire.exchange(env, self.home.clone())?)
    }

    /// Waits for the next event of the socket in use.
    pub(crate) fn poll_news(&self, cx: &mut Context<'_>) -> Poll<SocketNews> {
        self.wire.hooked().inner.poll_news(cx)
    }

    /// Tries at once to replace sockets that have failed.
    pub(crate) fn retry_now(&self) {
        self.home.retry_now();
        self.wire.hooked().inner.retry_now();
    }

    /// Handles the replacement of the socket in use. Returns true if the socket has another name
    /// now: nothing that was known of the old socket holds for the new one. Connections report
    /// their new address to their servers in either case.
    pub(crate) fn replaced(&mut self, env: &TransportContext, replacement: &Replacement) -> io::Result<bool> {
        let socket = self.wire.hooked().inner.clone();
        if Arc::ptr_eq(&socket, &self.home) {
            self.local = replacement.after;
        }
        if replacement.keeps_mappings() {
            self.wire.refresh()?;
            return Ok(false);
        }
        self.wire.exchange(env, socket)?;
        Ok(true)
    }
}

/// Socket of a quinn endpoint. The path layer sees each received datagram before quinn.
#[derive(Debug)]
struct InterceptingSocket {
    id: SocketId,
    inner: Arc<Socket>,
    path: Option<Arc<PathLayer>>,
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
