//! The seam to the path layer: what the rest of the transport calls, with nothing behind it.
//!
//! No session exists without the path layer, so nothing is ever active and nothing is ever taken out.

use std::{
    convert::Infallible,
    io::IoSliceMut,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{AsyncUdpSocket, udp::RecvMeta};

use crate::core::SocketId;

/// The sockets beneath traversal sessions.
#[derive(Debug, Default)]
pub(crate) struct PathLayer {}

impl PathLayer {
    /// Whether received datagrams must be shown to [`intercept`](Self::intercept).
    pub(crate) fn is_active(&self) -> bool {
        false
    }

    /// Takes probes and session packets out of what `socket` received, and returns the number of entries.
    pub(crate) fn intercept(
        &self,
        _socket: SocketId,
        _bufs: &mut [IoSliceMut<'_>],
        _meta: &mut [RecvMeta],
        n: usize,
    ) -> usize {
        n
    }

    /// Offers a socket to sessions.
    pub(crate) fn add_socket(
        &self,
        _id: SocketId,
        _socket: Arc<dyn AsyncUdpSocket>,
        _endpoint: quinn::Endpoint,
    ) {
    }

    /// Takes a socket away from new sessions.
    pub(crate) fn remove_socket(&self, _id: SocketId) {}
}

/// Held by the connection of a session; when it is dropped, the connection is gone.
#[derive(Debug)]
pub(crate) struct FlowGuard(Infallible);

impl FlowGuard {
    /// Yields the remote address of the selected path every time that it changes.
    pub(crate) fn poll_remote(&mut self, _cx: &mut Context<'_>) -> Poll<SocketAddr> {
        match self.0 {}
    }
}
