//! A bidirectional QUIC stream as libp2p's substream.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};

use super::window::SendWindow;
use crate::carrier::{self, ConnectionNumber};

/// A stream of a [`Connection`](super::Connection).
///
/// Closing ends our half and does not wait for a flush: QUIC delivers the written data. The other
/// half can still be read.
pub struct Stream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    /// Send window of the connection.
    window: Arc<SendWindow>,
    connection: ConnectionNumber,
    /// Result of the first close; every later close has the same result.
    closed: Option<Result<(), io::ErrorKind>>,
    /// By which the connection counts the streams of the remote.
    _counted: Option<Arc<()>>,
}

impl Stream {
    /// Creates a stream; a stream that the remote opened holds `counted`.
    pub(super) fn new(
        (send, recv): (quinn::SendStream, quinn::RecvStream),
        window: Arc<SendWindow>,
        connection: ConnectionNumber,
        counted: Option<Arc<()>>,
    ) -> Self {
        Self { send, recv, window, connection, closed: None, _counted: counted }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(Err(_)) = self.closed {
            // As libp2p-quic: a stream that could not be closed has ended.
            return Poll::Ready(Ok(0));
        }
        self.recv.poll_read(cx, buf).map_err(Into::into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.send).poll_write(cx, buf).map_err(Into::into);
        if written.is_pending() {
            self.window.grow();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carrier::tell(self.connection);
        // quinn sends all accepted data; this crate has no buffer of its own.
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = match self.closed {
            Some(closed) => closed,
            None => self.send.finish().map_err(|error| io::Error::from(error).kind()),
        };
        self.closed = Some(closed);
        Poll::Ready(closed.map_err(Into::into))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A reader of a message of known length drops the stream without having read its end. quinn
        // would then send STOP_SENDING, although nothing is left to stop, and some implementations
        // drop their other half for it. If the end has arrived, one read suffices for quinn to
        // notice.
        let mut byte = [0];
        let _ = self.recv.poll_read(&mut Context::from_waker(Waker::noop()), &mut byte);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.send.id())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
