//! Receive buffers of sockets, between the network and the reader.

use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use quinn::udp::{EcnCodepoint, RecvMeta};

use crate::trace::Verdict;

/// Properties of the sockets of a host; see [`Host::configure`](crate::Host::configure).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketConfig {
    /// Bytes of payload that a socket holds for its reader; further datagrams are dropped.
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
pub(crate) struct ReceiveBuffer {
    pub(crate) config: SocketConfig,
    inner: Mutex<Queue>,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    reader: Option<Waker>,
    /// The system took the socket away.
    is_dead: bool,
}

impl Queue {
    pub(crate) fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.datagrams.pop_front()?;
        self.bytes -= datagram.payload.len();
        Some(datagram)
    }

    /// Copies the next datagram into `buffer`, and those after it that receive offload joins to it:
    /// of the same flow and size, of which the last may be smaller.
    pub(crate) fn fill(&mut self, buffer: &mut [u8], segments: usize) -> Option<RecvMeta> {
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

impl ReceiveBuffer {
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

    pub(crate) fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    pub(crate) fn poll<T>(&self, cx: &mut Context<'_>, take: impl FnOnce(&mut Queue) -> T) -> Poll<T> {
        let mut queue = self.lock();
        if queue.datagrams.is_empty() {
            queue.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(take(&mut queue))
    }

    /// Takes the next datagram, if there is one.
    pub(crate) fn try_pop(&self) -> Option<Datagram> {
        self.lock().pop()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns true if sockets at these two addresses cannot share a port.
pub(crate) fn conflict(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}
