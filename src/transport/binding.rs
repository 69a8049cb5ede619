//! One UDP socket, its name, and the ordinary quinn endpoint on it.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, Runtime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{Error, path::PathLayer, quic::Quic};
use crate::{core::SocketId, io::Network};

/// How many receive calls in a row may bring nothing for quinn before other tasks get their turn.
const MAX_EMPTY_RECEIVES: usize = 32;

/// What every part of the transport needs.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) network: Arc<dyn Network>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) quic: Quic,
    /// `None` if the transport is used without the behaviour.
    pub(crate) path: Option<Arc<PathLayer>>,
    next_socket: AtomicU32,
}

impl Env {
    pub(crate) fn new(
        network: Arc<dyn Network>,
        runtime: Arc<dyn Runtime>,
        quic: Quic,
        path: Option<Arc<PathLayer>>,
    ) -> Self {
        Self { network, runtime, quic, path, next_socket: AtomicU32::new(0) }
    }
}

/// One UDP socket and the quinn endpoint on it. The endpoint, and with it the socket, lives on while it has connections.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) id: SocketId,
    /// The address that the socket is bound to; perhaps a wildcard, but the port is known.
    pub(crate) local: SocketAddr,
    /// The socket itself, beneath the receive hook.
    pub(crate) socket: Arc<dyn AsyncUdpSocket>,
    pub(crate) endpoint: quinn::Endpoint,
}

impl Binding {
    /// Binds a socket; `accepts` incoming connections or is for dials only.
    pub(crate) fn new(env: &Env, address: SocketAddr, accepts: bool) -> Result<Self, Error> {
        let id = SocketId(env.next_socket.fetch_add(1, Relaxed));
        let socket = env.network.bind(address, &*env.runtime)?;
        let local = socket.local_addr()?;
        let hooked = Hooked { id, inner: socket.clone(), path: env.path.clone() };
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            env.quic.endpoint_config(),
            accepts.then(|| (*env.quic.server_config()).clone()),
            Arc::new(hooked),
            env.runtime.clone(),
        )?;
        Ok(Self { id, local, socket, endpoint })
    }
}

/// What quinn receives through: shows the path layer what came in before quinn sees it.
#[derive(Debug)]
struct Hooked {
    id: SocketId,
    inner: Arc<dyn AsyncUdpSocket>,
    path: Option<Arc<PathLayer>>,
}

impl AsyncUdpSocket for Hooked {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..MAX_EMPTY_RECEIVES {
            let received = match ready!(self.inner.poll_recv(cx, bufs, meta)) {
                Ok(received) => received,
                // quinn ends the endpoint on an error. These only say that a datagram sent earlier
                // met nobody, and anybody can make us hear that.
                Err(error) if is_about_a_sent_datagram(&error) => continue,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let Some(path) = self.path.as_ref().filter(|path| path.is_active()) else {
                return Poll::Ready(Ok(received));
            };
            let left = path.intercept(self.id, bufs, meta, received);
            // quinn skips empty entries; only if all of them are empty is there nothing to wake it for.
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

pub(super) fn is_about_a_sent_datagram(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex, task::Waker};

    use super::*;

    #[derive(Debug)]
    struct Script(Mutex<VecDeque<io::Result<usize>>>);

    impl AsyncUdpSocket for Script {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing is sent")
        }

        fn try_send(&self, _transmit: &Transmit<'_>) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn poll_recv(
            &self,
            _cx: &mut Context<'_>,
            _bufs: &mut [IoSliceMut<'_>],
            _meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().pop_front().map_or(Poll::Pending, Poll::Ready)
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn receive(script: Vec<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let hooked =
            Hooked { id: SocketId(0), inner: Arc::new(Script(Mutex::new(script.into()))), path: None };
        hooked.poll_recv(&mut Context::from_waker(Waker::noop()), &mut [], &mut [])
    }

    #[test]
    fn errors_that_others_can_cause_do_not_reach_quinn() {
        let refused = || Err(io::ErrorKind::ConnectionRefused.into());
        assert!(matches!(receive(vec![refused(), refused(), Ok(3)]), Poll::Ready(Ok(3))));
        assert!(matches!(receive((0..100).map(|_| refused()).collect()), Poll::Pending));
    }

    #[test]
    fn errors_of_the_socket_reach_quinn() {
        assert!(matches!(receive(vec![Err(io::ErrorKind::BrokenPipe.into()), Ok(1)]), Poll::Ready(Err(_))));
    }
}
