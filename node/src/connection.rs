//! Connections and streams, as applications hold them.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use futures::{AsyncRead as _, AsyncWrite as _, task::AtomicWaker};
use libp2p_identity::PeerId;
use libp2p_punch::transport::{ConnectionStats, Stats};
use libp2p_swarm::{Stream, StreamProtocol};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    driver::Command,
    error::OpenError,
    status::{CloseReason, ConnectionStatus, StatusTable},
    streams::OpenRequest,
};

/// Streams of a peer that wait to be accepted. Further ones are reset.
pub const MAX_WAITING_STREAMS: usize = 256;

/// Connection to a peer, over whichever path is the best at the time.
///
/// Clones are the same connection, and keep it open at both ends. Once the last clone is dropped,
/// the connection closes as soon as it was unused for the
/// [idle time-out](crate::NodeBuilder::idle_timeout). A connection does not keep its
/// [`Node`](crate::Node) running.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

/// State of a connection that all of its clones share.
pub(crate) struct Shared {
    peer: PeerId,
    protocol: StreamProtocol,
    commands: mpsc::WeakSender<Command>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Stream>>,
    closed: watch::Receiver<Option<CloseReason>>,
    table: Arc<StatusTable>,
    stats: Stats,
    /// Cancels the token that keeps the connections to the peer alive.
    _hold: DropGuard,
}

/// The ends of a connection that the node's task holds.
pub(crate) struct Ends {
    pub(crate) connection: std::sync::Weak<Shared>,
    pub(crate) incoming: mpsc::Sender<Stream>,
    pub(crate) closed: watch::Sender<Option<CloseReason>>,
    /// Cancelled once the application has dropped the connection.
    pub(crate) released: CancellationToken,
}

impl Ends {
    /// Returns the connection while the application holds it.
    pub(crate) fn connection(&self) -> Option<Connection> {
        self.connection.upgrade().map(Connection)
    }
}

impl Connection {
    pub(crate) fn new(
        peer: PeerId,
        protocol: StreamProtocol,
        commands: mpsc::WeakSender<Command>,
        table: Arc<StatusTable>,
        stats: Stats,
    ) -> (Self, Ends) {
        let (incoming, accepted) = mpsc::channel(MAX_WAITING_STREAMS);
        let (closed, reason) = watch::channel(None);
        let released = CancellationToken::new();
        let shared = Arc::new(Shared {
            peer,
            protocol,
            commands,
            incoming: tokio::sync::Mutex::new(accepted),
            closed: reason,
            table,
            stats,
            _hold: released.clone().drop_guard(),
        });
        let ends = Ends { connection: Arc::downgrade(&shared), incoming, closed, released };
        (Self(shared), ends)
    }

    /// Returns the peer at the other end, which proved its identity.
    pub fn peer(&self) -> PeerId {
        self.0.peer
    }

    /// Returns false once the connection is closed.
    pub(crate) fn is_open(&self) -> bool {
        self.0.closed.borrow().is_none() && self.0.closed.has_changed().is_ok()
    }

    /// Returns the status of the connection to the peer.
    pub fn status(&self) -> ConnectionStatus {
        self.0.table.get(&self.0.peer)
    }

    /// Returns figures of the direct connections to the peer, oldest first: round-trip time, loss,
    /// bytes and more. A relayed connection has none of its own.
    pub fn stats(&self) -> Vec<ConnectionStats> {
        self.0.stats.of_peer(&self.0.peer)
    }

    /// Opens a stream in both directions. The peer sees it with its first bytes.
    ///
    /// The first bytes go with the negotiation of the protocol, so that opening takes no round
    /// trip. A peer that does not speak the protocol shows in an error of the first read.
    ///
    /// # Errors
    ///
    /// The connection is closed, or the peer allows no further stream.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), OpenError> {
        let stream = self.open(self.0.protocol.clone()).await?;
        Ok(split_outbound(stream))
    }

    pub(crate) async fn open(&self, protocol: StreamProtocol) -> Result<Stream, OpenError> {
        let (reply, opened) = oneshot::channel();
        let request = OpenRequest { protocol, reply };
        let mut closed = self.0.closed.clone();
        let open = async {
            let commands = self.0.commands.upgrade()?;
            commands.send(Command::Open { peer: self.0.peer, request }).await.ok()?;
            drop(commands);
            opened.await.ok()
        };
        tokio::select! {
            biased;
            reason = ended(&mut closed) => Err(OpenError::Closed(reason)),
            Some(result) = open => result,
            else => Err(OpenError::Closed(self.reason())),
        }
    }

    /// Waits for the next stream that the peer opens.
    ///
    /// At most [`MAX_WAITING_STREAMS`] wait to be accepted; further ones are reset. Cancel safe: no
    /// stream is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// The reason for which the connection is closed.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), CloseReason> {
        let next = self.0.incoming.lock().await.recv().await;
        next.map(split_inbound).ok_or_else(|| self.reason())
    }

    /// Waits until the connection is direct. Returns false if it closes before.
    pub async fn wait_direct(&self) -> bool {
        let mut status = self.0.table.watch(self.0.peer);
        let mut closed = self.0.closed.clone();
        tokio::select! {
            biased;
            _ = ended(&mut closed) => false,
            direct = status.wait_for(ConnectionStatus::is_direct) => direct.is_some(),
        }
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> CloseReason {
        ended(&mut self.0.closed.clone()).await
    }

    /// Closes all connections to the peer, and waits for their end.
    ///
    /// Bytes that the peer has not received yet are lost. Wait for an answer to the last ones
    /// first.
    pub async fn close(&self) {
        let Some(commands) = self.0.commands.upgrade() else { return };
        // An error means that the node has ended, and its connections with it.
        if commands.send(Command::Disconnect { peer: self.0.peer }).await.is_ok() {
            drop(commands);
            self.closed().await;
        }
    }

    fn reason(&self) -> CloseReason {
        self.0.closed.borrow().clone().unwrap_or(CloseReason::Local)
    }
}

/// Waits for the reason of the end. A node that is gone has closed the connection.
async fn ended(closed: &mut watch::Receiver<Option<CloseReason>>) -> CloseReason {
    match closed.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or(CloseReason::Local),
        Err(_) => CloseReason::Local,
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.0.peer).finish_non_exhaustive()
    }
}

/// A stream that both halves share. No lock is held across an await.
struct Halves {
    stream: Mutex<Negotiating>,
    wakers: Arc<Wakers>,
    /// Wakes the tasks of both halves.
    both: Waker,
}

/// A stream, and the progress of the negotiation of its protocol.
struct Negotiating {
    stream: Stream,
    state: Negotiation,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Negotiation {
    /// The peer may not speak the protocol. A read finds out.
    Pending,
    Done,
    /// The stream must not be used again.
    Failed,
}

/// The tasks that wait for the two halves.
///
/// The stream knows one waker for each direction. But while its protocol is being negotiated a read
/// also writes, and would take the place of a writer that waits.
#[derive(Default)]
struct Wakers {
    read: AtomicWaker,
    write: AtomicWaker,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.read.wake();
        self.write.wake();
    }
}

impl Halves {
    fn poll_write<T>(
        &self,
        cx: &Context<'_>,
        poll: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.wakers.write.register(cx.waker());
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.state == Negotiation::Failed {
            return Poll::Ready(Err(not_negotiated()));
        }
        poll(Pin::new(&mut stream.stream), &mut Context::from_waker(&self.both))
    }

    fn poll_read(&self, cx: &Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.wakers.read.register(cx.waker());
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.state == Negotiation::Failed {
            return Poll::Ready(Err(not_negotiated()));
        }
        let read = Pin::new(&mut stream.stream).poll_read(&mut Context::from_waker(&self.both), buf);
        stream.state = match (&read, stream.state) {
            (Poll::Ready(Ok(_)), _) => Negotiation::Done,
            (Poll::Ready(Err(_)), Negotiation::Pending) => Negotiation::Failed,
            (_, state) => state,
        };
        read
    }
}

fn not_negotiated() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the protocol of the stream could not be negotiated")
}

/// Splits a stream that this node opened.
pub(crate) fn split_outbound(stream: Stream) -> (SendStream, RecvStream) {
    split(stream, Negotiation::Pending)
}

/// Splits a stream that the peer opened.
pub(crate) fn split_inbound(stream: Stream) -> (SendStream, RecvStream) {
    split(stream, Negotiation::Done)
}

fn split(stream: Stream, state: Negotiation) -> (SendStream, RecvStream) {
    let wakers = Arc::new(Wakers::default());
    let both = Waker::from(wakers.clone());
    let stream = Mutex::new(Negotiating { stream, state });
    let halves = Arc::new(Halves { stream, wakers, both });
    (SendStream(halves.clone()), RecvStream(halves))
}

/// Half of a stream that sends.
///
/// [`shutdown`](tokio::io::AsyncWriteExt::shutdown) ends it, and the peer reads the end of the
/// stream. A half that is dropped ends when the other half is dropped, too.
pub struct SendStream(Arc<Halves>);

impl AsyncWrite for SendStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write(cx, |stream, cx| stream.poll_close(cx))
    }
}

impl fmt::Debug for SendStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendStream").finish_non_exhaustive()
    }
}

/// Half of a stream that receives.
pub struct RecvStream(Arc<Halves>);

impl AsyncRead for RecvStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.0.poll_read(cx, buf.initialize_unfilled());
        read.map_ok(|len| buf.advance(len))
    }
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvStream").finish_non_exhaustive()
    }
}
