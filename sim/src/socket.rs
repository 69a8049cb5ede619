//! UDP sockets of simulated hosts.

use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use crate::{
    engine::Engine,
    ids::NodeId,
    receive_buffer::{Datagram, Queue, ReceiveBuffer},
};

/// A UDP socket of a simulated host. Its port is free again when it is dropped.
///
/// As with a kernel's socket through quinn, sending never fails and never blocks. A datagram that
/// cannot be sent is lost, and the [trace](crate::Trace) holds the reason. One reader can wait at a
/// time. A socket that [`Host::kill_sockets`](crate::Host::kill_sockets) took away loses sent
/// datagrams, and returns errors to quinn's reader.
#[derive(Debug)]
pub struct Socket {
    engine: Engine,
    host: NodeId,
    local: SocketAddr,
    buffer: Arc<ReceiveBuffer>,
}

impl Socket {
    pub(crate) fn new(engine: Engine, host: NodeId, local: SocketAddr, buffer: Arc<ReceiveBuffer>) -> Self {
        Self { engine, host, local, buffer }
    }

    /// Returns the address that the socket is bound to.
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
            if let Some(datagram) = poll_fn(|cx| self.buffer.poll(cx, Queue::pop)).await {
                return datagram;
            }
        }
    }

    /// Returns the next datagram if one has arrived.
    pub fn try_receive(&self) -> Option<Datagram> {
        self.buffer.try_pop()
    }

    fn send(&self, transmit: &Transmit<'_>) {
        if self.buffer.is_dead() {
            return;
        }
        let source = transmit.src_ip.filter(|_| self.local.ip().is_unspecified());
        let source = source.unwrap_or(self.local.ip());
        let from = SocketAddr::new(source, self.local.port());
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.engine.with(|state| {
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
        self.engine.with(|state| state.host_mut(self.host).release(self.local, &self.buffer));
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
        if self.buffer.is_dead() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        let segments = self.buffer.config.receive_segments;
        let count = ready!(self.buffer.poll(cx, |queue| {
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
        self.buffer.config.send_segments.max(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.buffer.config.receive_segments.max(1)
    }

    /// Simulated links drop datagrams that are too large, so that quinn's MTU discovery works.
    fn may_fragment(&self) -> bool {
        false
    }
}

/// Poller that is always writable: only links have queues.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
