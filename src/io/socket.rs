//! A UDP socket of the operating system, which reports its failure.
//!
//! quinn's own socket hides every error of receiving. A socket that the system took away then looks
//! idle for ever, or keeps its task busy.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::{FutureExt, future::BoxFuture};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use tokio::{io::Interest, net::UdpSocket};

pub(super) struct OsSocket {
    io: Arc<UdpSocket>,
    state: UdpSocketState,
    /// Ready once the socket has an error. The kernel reports an error without making the socket
    /// readable.
    failed: Mutex<BoxFuture<'static, io::Error>>,
}

impl OsSocket {
    /// Within a tokio runtime.
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        socket.set_nonblocking(true)?;
        let io = Arc::new(UdpSocket::from_std(socket)?);
        let failed = Mutex::new(failure(io.clone()).boxed());
        Ok(Self { io, state, failed })
    }

    fn poll_failed(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let failure_now = failed.poll_unpin(cx);
        if failure_now.is_ready() {
            *failed = failure(self.io.clone()).boxed();
        }
        failure_now
    }
}

/// Waits for an error of the socket.
async fn failure(io: Arc<UdpSocket>) -> io::Error {
    loop {
        match io.ready(Interest::ERROR).await {
            Ok(_) => {
                // Takes the readiness back; another error sets it again.
                let _ = io.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                match io.take_error() {
                    Ok(Some(error)) | Err(error) => return error,
                    Ok(None) => {}
                }
            }
            Err(error) => return error,
        }
    }
}

impl fmt::Debug for OsSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OsSocket").field(&self.io).finish()
    }
}

impl AsyncUdpSocket for OsSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { io: self.io.clone(), waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.io.try_io(Interest::WRITABLE, || self.state.try_send((&*self.io).into(), transmit));
        match sent {
            // The datagram is lost, and QUIC sends its content again. The socket works.
            Err(error) if is_about_the_datagram(&error) => {
                tracing::debug!(%error, to = %transmit.destination, "datagram cannot be sent");
                Ok(())
            }
            sent => sent,
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        while let Poll::Ready(ready) = self.io.poll_recv_ready(cx) {
            ready?;
            match self.io.try_io(Interest::READABLE, || self.state.recv((&*self.io).into(), bufs, meta)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received),
            }
        }
        self.poll_failed(cx).map(Err)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Returns true for errors of sending that do not concern the socket: too large, no route,
/// forbidden, offload refused.
fn is_about_the_datagram(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::NotConnected
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

/// Waits for room to send; each connection has its own, which tokio's `poll_send_ready` does not
/// allow.
struct Poller {
    io: Arc<UdpSocket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Poller").field(&self.io).finish()
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.waiting.is_none() {
            // Mostly there is room, and nothing to allocate.
            let now = pin!(this.io.writable()).poll(&mut Context::from_waker(Waker::noop()));
            if now.is_ready() {
                return now;
            }
        }
        let io = this.io.clone();
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(async move { io.writable().await }));
        let writable = waiting.poll_unpin(cx);
        if writable.is_ready() {
            this.waiting = None;
        }
        writable
    }
}
