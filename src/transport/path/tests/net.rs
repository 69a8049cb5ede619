//! A network in memory: sockets, links with a delay that can be cut, and GRO.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    io::{self, ErrorKind, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{sync::mpsc, time::Instant};

use super::super::{PathLayer, lock};
use libp2p_punch_proto::SocketId;

/// One-way delay of every link.
pub(super) const DELAY: Duration = Duration::from_millis(10);

/// A datagram under way, or one that was sent.
#[derive(Debug, Clone)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) data: Vec<u8>,
}

pub(super) struct Net {
    sockets: Mutex<HashMap<SocketAddr, Weak<TestSocket>>>,
    cut: Mutex<HashSet<(SocketAddr, SocketAddr)>>,
    sent: Mutex<Vec<Datagram>>,
    line: mpsc::UnboundedSender<(Instant, Datagram)>,
}

impl Net {
    pub(super) fn new() -> Arc<Self> {
        let (line, mut arrivals) = mpsc::unbounded_channel::<(Instant, Datagram)>();
        let net =
            Arc::new(Self { sockets: Mutex::default(), cut: Mutex::default(), sent: Mutex::default(), line });
        let weak = Arc::downgrade(&net);
        tokio::spawn(async move {
            // One delay for all, so that datagrams arrive in the order in which they were sent.
            while let Some((at, datagram)) = arrivals.recv().await {
                tokio::time::sleep_until(at).await;
                let Some(net) = weak.upgrade() else { return };
                let socket = lock(&net.sockets).get(&datagram.to).and_then(Weak::upgrade);
                if let Some(socket) = socket {
                    lock(&socket.inbox).push_back(datagram);
                    socket.reader.wake();
                }
            }
        });
        net
    }

    /// A socket that sends at most `segments` datagrams at once.
    pub(super) fn bind(self: &Arc<Self>, address: &str, segments: usize) -> Arc<TestSocket> {
        let address = address.parse().unwrap();
        let socket = Arc::new(TestSocket {
            net: self.clone(),
            address,
            segments,
            inbox: Mutex::default(),
            reader: AtomicWaker::new(),
            room: Mutex::default(),
        });
        lock(&self.sockets).insert(address, Arc::downgrade(&socket));
        socket
    }

    /// Loses everything from one socket to another.
    pub(super) fn cut(&self, from: SocketAddr, to: SocketAddr) {
        lock(&self.cut).insert((from, to));
    }

    /// Ends [`cut`](Self::cut).
    pub(super) fn mend(&self, from: SocketAddr, to: SocketAddr) {
        lock(&self.cut).remove(&(from, to));
    }

    /// Returns the sent datagrams, including lost ones.
    pub(super) fn sent(&self) -> Vec<Datagram> {
        lock(&self.sent).clone()
    }
}

pub(super) struct TestSocket {
    net: Arc<Net>,
    pub(super) address: SocketAddr,
    segments: usize,
    inbox: Mutex<VecDeque<Datagram>>,
    reader: AtomicWaker,
    room: Mutex<Room>,
}

/// Room that is left in a socket.
#[derive(Default)]
struct Room {
    /// Sends until it is full, if it ever is.
    left: Option<usize>,
    /// Wakers of the tasks that wait for room.
    waiting: Vec<Waker>,
}

impl TestSocket {
    /// Makes every send after `left` more block, until [`unblock`](Self::unblock).
    pub(super) fn block_after(&self, left: usize) {
        lock(&self.room).left = Some(left);
    }

    pub(super) fn unblock(&self) {
        std::mem::take(&mut *lock(&self.room)).waiting.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for TestSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TestSocket({})", self.address)
    }
}

#[derive(Debug)]
struct Poller(Arc<TestSocket>);

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut room = lock(&self.0.room);
        if room.left == Some(0) {
            room.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for TestSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match &mut lock(&self.room).left {
            Some(0) => return Err(ErrorKind::WouldBlock.into()),
            Some(left) => *left -= 1,
            None => {}
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        assert!(
            transmit.contents.len().div_ceil(size) <= self.segments,
            "more at once than the socket takes"
        );
        for data in transmit.contents.chunks(size) {
            let datagram = Datagram { from: self.address, to: transmit.destination, data: data.to_vec() };
            lock(&self.net.sent).push(datagram.clone());
            if !lock(&self.net.cut).contains(&(datagram.from, datagram.to)) {
                self.net.line.send((Instant::now() + DELAY, datagram)).unwrap();
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.reader.register(cx.waker());
        let mut inbox = lock(&self.inbox);
        let mut filled = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(first) = inbox.pop_front() else { break };
            let stride = first.data.len();
            let mut len = stride;
            buf[..len].copy_from_slice(&first.data);
            // As the kernel does: same source, same length, only the last may be shorter.
            while let Some(next) = inbox.front().filter(|next| {
                next.from == first.from && next.data.len() <= stride && len + next.data.len() <= buf.len()
            }) {
                buf[len..len + next.data.len()].copy_from_slice(&next.data);
                len += next.data.len();
                let short = next.data.len() < stride;
                inbox.pop_front();
                if short {
                    break;
                }
            }
            *meta = RecvMeta { addr: first.from, len, stride, ecn: None, dst_ip: None };
            filled += 1;
        }
        if filled > 0 { Poll::Ready(Ok(filled)) } else { Poll::Pending }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        self.segments
    }

    fn max_receive_segments(&self) -> usize {
        64
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Socket as a binding of the transport passes it to its own endpoint.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) id: SocketId,
    pub(super) socket: Arc<dyn AsyncUdpSocket>,
    pub(super) layer: Weak<PathLayer>,
}

impl AsyncUdpSocket for Binding {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let Poll::Ready(received) = self.socket.poll_recv(cx, bufs, meta)? else { return Poll::Pending };
            let left = match self.layer.upgrade() {
                Some(layer) => layer.intercept(self.id, bufs, meta, received),
                None => received,
            };
            if left > 0 {
                return Poll::Ready(Ok(left));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
