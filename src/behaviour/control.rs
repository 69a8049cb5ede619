//! A control stream: frames in, frames out, with bounded buffers.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use futures::{AsyncRead, AsyncWrite};
use libp2p_swarm::Stream;

use libp2p_punch_proto::wire::frame::{self, DecodeError, Frame};

/// Bytes that may wait to be written before no more frames are taken from the queue.
const WRITE_HIGH_WATER: usize = 16 * 1024;
/// Bytes read at once.
const READ_CHUNK: usize = 4 * 1024;

/// Reason for the end of a control stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The peer sent something that is no frame.
    #[error("malformed frame: {0}")]
    Decode(#[from] DecodeError),
    /// The stream broke.
    #[error("control stream: {0}")]
    Io(#[from] io::Error),
    /// The peer closed it.
    #[error("control stream closed by the peer")]
    Closed,
}

/// Transfer of frames over one libp2p stream.
pub(crate) struct Control {
    stream: Stream,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// Bytes written so far.
    written: u64,
    traffic: ControlTraffic,
}

/// Bytes of all control streams of a node so far, in both directions.
#[derive(Debug, Clone, Default)]
pub(crate) struct ControlTraffic(Arc<ControlBytes>);

#[derive(Debug, Default)]
struct ControlBytes {
    sent: AtomicU64,
    received: AtomicU64,
}

impl ControlTraffic {
    /// Returns the bytes written to control streams.
    pub(crate) fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Returns the bytes read from control streams.
    pub(crate) fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }
}

impl Control {
    /// The stream alone does not keep a connection alive: a registration does, see the handler.
    pub(crate) fn new(mut stream: Stream, traffic: ControlTraffic) -> Self {
        stream.ignore_for_keep_alive();
        Self { stream, incoming: BytesMut::new(), outgoing: BytesMut::new(), written: 0, traffic }
    }

    /// The next frame of the peer.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, ControlError>> {
        loop {
            if let Some(frame) = frame::decode(&mut self.incoming)? {
                return Poll::Ready(Ok(frame));
            }
            let mut chunk = [0; READ_CHUNK];
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))? {
                0 => return Poll::Ready(Err(ControlError::Closed)),
                read => {
                    self.traffic.0.received.fetch_add(read as u64, Ordering::Relaxed);
                    self.incoming.extend_from_slice(&chunk[..read]);
                }
            }
        }
    }

    /// Returns true if another frame may be queued.
    pub(crate) fn is_writable(&self) -> bool {
        self.outgoing.len() < WRITE_HIGH_WATER
    }

    /// Returns the bytes that the stream has taken so far, if more wait for it.
    pub(crate) fn waits_after(&self) -> Option<u64> {
        (!self.outgoing.is_empty()).then_some(self.written)
    }

    /// Queues a frame; [`poll_flush`](Self::poll_flush) sends it.
    pub(crate) fn push(&mut self, frame: &Frame) {
        frame::encode(frame, &mut self.outgoing);
    }

    /// Ready when all that was queued is with the transport.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ControlError>> {
        while !self.outgoing.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing))?;
            if written == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.outgoing.advance(written);
            self.written += written as u64;
            self.traffic.0.sent.fetch_add(written as u64, Ordering::Relaxed);
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }
}
