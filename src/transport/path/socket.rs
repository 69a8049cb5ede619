//! The socket of the session endpoint, which is none.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::{
    cid::opening,
    flow::{Flow, flow_at},
    shared::Shared,
    stats::count,
};
use libp2p_punch_proto::SocketId;

/// Datagrams that quinn may pass in one call: quinn's own limit. A batch is split if a path's
/// socket cannot take it at once. At least 2, so that a first flight of two datagrams is made as
/// one.
const MAX_SEGMENTS: usize = 10;
/// Datagrams delivered in one buffer. quinn allocates 32 buffers of this many datagrams, once: 16
/// make 750 KiB.
const MAX_RECEIVE_SEGMENTS: usize = 16;

/// Sends to virtual addresses by the virtual connections' paths, and receives the datagrams that
/// the bindings' sockets received for them.
pub(super) struct SessionSocket(pub(super) Arc<Shared>);

impl fmt::Debug for SessionSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSocket")
    }
}

impl AsyncUdpSocket for SessionSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(FlowPoller { flow: opening().and_then(|id| self.0.flow(id)), waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match flow_at(transmit.destination).and_then(|id| self.0.flow(id)) {
            Some(flow) => flow.send(transmit, &self.0.counters),
            None => {
                let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
                count(&self.0.counters.datagrams_unsent, transmit.contents.len().div_ceil(size));
                Ok(())
            }
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.queue.poll(cx, bufs, meta).map(Ok)
    }

    /// An IPv6 address, whatever the bindings have: quinn then takes the virtual addresses.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0))
    }

    fn max_transmit_segments(&self) -> usize {
        MAX_SEGMENTS
    }

    fn max_receive_segments(&self) -> usize {
        MAX_RECEIVE_SEGMENTS
    }

    /// quinn asks once, before there are paths. The session's configuration decides on MTU
    /// discovery.
    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits for the socket that would have blocked one connection.
struct FlowPoller {
    flow: Option<Arc<Flow>>,
    waiting: Option<(SocketId, Pin<Box<dyn UdpPoller>>)>,
}

impl fmt::Debug for FlowPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FlowPoller").field(&self.flow.as_ref().map(|flow| flow.id)).finish()
    }
}

impl UdpPoller for FlowPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(flow) = this.flow.as_ref().filter(|flow| flow.blocked_on().is_some()) else {
            return Poll::Ready(Ok(()));
        };
        // Another path may be selected while this path blocks. The registration precedes the second
        // check, so that no change is missed.
        flow.unblocked.register(cx.waker());
        if let Some(socket) = flow.blocked_on() {
            let mut poller = match this.waiting.take() {
                Some((id, poller)) if id == socket.id => poller,
                _ => socket.io.clone().create_io_poller(),
            };
            if poller.as_mut().poll_writable(cx).is_pending() {
                this.waiting = Some((socket.id, poller));
                return Poll::Pending;
            }
            // An error is the path's, not the connection's: the next send meets it and counts it.
            flow.writable();
        }
        this.waiting = None;
        Poll::Ready(Ok(()))
    }
}
