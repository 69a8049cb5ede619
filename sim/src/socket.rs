//! UDP sockets of simulated hosts.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};

use crate::{NodeId, World, trace::Verdict};

/// What the sockets of a host are like; see [`Host::configure`](crate::Host::configure).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketConfig {
    /// Bytes of payload that a socket holds for its reader; what comes beyond is dropped.
    pub receive_buffer: usize,
    /// Datagrams that one send may carry (segmentation offload). 0 counts as 1.
    pub send_segments: usize,
    /// Datagrams of one sender that one receive buffer may carry (receive offload). 0 counts as 1.
    pub receive_segments: usize,
}

impl Default for SocketConfig {
    /// Linux: its default `rmem`, segmentation offload as far as quinn uses it, no receive offload.
    fn default() -> Self {
        Self { receive_buffer: 212_992, send_segments: 10, receive_segments: 1 }
    }
}

/// A received datagram.
#[derive(Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The source address, as it arrived.
    pub from: SocketAddr,
    /// The local address that it was sent to.
    pub to: SocketAddr,
    /// The ECN field.
    pub ecn: Option<EcnCodepoint>,
    /// The bytes.
    pub payload: Arc<[u8]>,
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}, {} bytes", self.from, self.to, self.payload.len())
    }
}

/// The receive queue of a socket, between the network and the reader.
#[derive(Debug)]
pub(crate) struct Inbox {
    config: SocketConfig,
    inner: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    reader: Option<Waker>,
    /// The system took the socket away.
    is_dead: bool,
}

impl Queue {
    fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.datagrams.pop_front()?;
        self.bytes -= datagram.payload.len();
        Some(datagram)
    }

    /// Copies the next datagram into `buffer`, and those after it that receive offload joins to it: of
    /// the same flow and size, of which the last may be smaller.
    fn fill(&mut self, buffer: &mut [u8], segments: usize) -> Option<RecvMeta> {
        let first = self.pop()?;
        let stride = first.payload.len().min(buffer.len());
        let mut len = put(buffer, 0, &first.payload);
        for _ in 1..segments {
            let joins = |next: &Datagram| {
                let same_flow = (next.from, next.to, next.ecn) == (first.from, first.to, first.ecn);
                let size = next.payload.len();
                same_flow
                    && (1..=stride).contains(&size)
                    && size <= buffer.len() - len
                    && len.is_multiple_of(stride.max(1))
            };
            if !self.datagrams.front().is_some_and(joins) {
                break;
            }
            if let Some(next) = self.pop() {
                len += put(buffer, len, &next.payload);
            }
        }
        Some(RecvMeta { addr: first.from, len, stride, ecn: first.ecn, dst_ip: Some(first.to.ip()) })
    }
}

/// Copies as much as fits; the rest of a datagram is lost, as on a real socket.
fn put(buffer: &mut [u8], at: usize, payload: &[u8]) -> usize {
    buffer.iter_mut().skip(at).zip(payload).map(|(to, from)| *to = *from).count()
}

impl Inbox {
    pub(crate) fn new(config: SocketConfig) -> Self {
        Self { config, inner: Mutex::default() }
    }

    /// Puts a datagram into the buffer; the waker is for the reader.
    pub(crate) fn push(&self, datagram: Datagram) -> Result<Option<Waker>, Verdict> {
        let mut queue = self.lock();
        if queue.is_dead {
            return Err(Verdict::NoSocket);
        }
        if queue.bytes + datagram.payload.len() > self.config.receive_buffer {
            return Err(Verdict::BufferFull);
        }
        queue.bytes += datagram.payload.len();
        queue.datagrams.push_back(datagram);
        Ok(queue.reader.take())
    }

    /// Makes the socket fail from now on; the waker is for the reader.
    pub(crate) fn kill(&self) -> Option<Waker> {
        let mut queue = self.lock();
        let reader = queue.reader.take();
        *queue = Queue { is_dead: true, ..Queue::default() };
        reader
    }

    fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    fn poll<T>(&self, cx: &mut Context<'_>, take: impl FnOnce(&mut Queue) -> T) -> Poll<T> {
        let mut queue = self.lock();
        if queue.datagrams.is_empty() {
            queue.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(take(&mut queue))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A UDP socket of a simulated host. Its port is free again when it is dropped.
///
/// As with a kernel's socket through quinn, sending never fails and never blocks: what cannot be sent
/// is lost, and the [trace](crate::Trace) says why. One reader can wait at a time. A socket that
/// [`Host::kill_sockets`](crate::Host::kill_sockets) took away loses what is sent, and returns errors to quinn's reader.
#[derive(Debug)]
pub struct Socket {
    world: World,
    host: NodeId,
    local: SocketAddr,
    inbox: Arc<Inbox>,
}

impl Socket {
    pub(crate) fn new(world: World, host: NodeId, local: SocketAddr, inbox: Arc<Inbox>) -> Self {
        Self { world, host, local, inbox }
    }

    /// The address that the socket is bound to.
    pub fn address(&self) -> SocketAddr {
        self.local
    }

    /// Sends one datagram.
    pub fn send_to(&self, to: SocketAddr, payload: &[u8]) {
        self.send(&Transmit {
            destination: to,
            ecn: None,
            contents: payload,
            segment_size: None,
            src_ip: None,
        });
    }

    /// Waits for the next datagram.
    pub async fn receive(&self) -> Datagram {
        loop {
            if let Some(datagram) = poll_fn(|cx| self.inbox.poll(cx, Queue::pop)).await {
                return datagram;
            }
        }
    }

    /// The next datagram, if one is there.
    pub fn try_receive(&self) -> Option<Datagram> {
        self.inbox.lock().pop()
    }

    fn send(&self, transmit: &Transmit<'_>) {
        if self.inbox.is_dead() {
            return;
        }
        let source = transmit.src_ip.filter(|_| self.local.ip().is_unspecified());
        let source = source.unwrap_or(self.local.ip());
        let from = SocketAddr::new(source, self.local.port());
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.world.with(|state| {
            if transmit.contents.is_empty() {
                state.send(self.host, from, transmit.destination, transmit.ecn, &[]);
            }
            for payload in transmit.contents.chunks(segment.max(1)) {
                state.send(self.host, from, transmit.destination, transmit.ecn, payload);
            }
        });
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.world.with(|state| state.host_mut(self.host).release(self.local, &self.inbox));
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send(transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.inbox.is_dead() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        let segments = self.inbox.config.receive_segments;
        let count = ready!(self.inbox.poll(cx, |queue| {
            let slots = bufs.iter_mut().zip(meta);
            slots
                .map_while(|(buffer, meta)| queue.fill(buffer, segments).map(|filled| *meta = filled))
                .count()
        }));
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        self.inbox.config.send_segments.max(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.inbox.config.receive_segments.max(1)
    }

    /// Simulated links drop what is too large, so that quinn's MTU discovery works.
    fn may_fragment(&self) -> bool {
        false
    }
}

/// The network takes whatever it is given; only links have queues.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Whether two addresses of sockets on one port exclude each other.
pub(crate) fn conflict(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}
