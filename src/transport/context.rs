//! Context that every part of the transport needs.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use quinn::Runtime;

use super::{
    hole_punching::Punches, live::ConnectionTable, path::PathLayer, quic::Quic, socket::Socket,
    socket_budget::SocketBudget,
};
use crate::io::Network;
use libp2p_punch_proto::SocketId;

/// Network, clock, configuration and tables of one transport.
#[derive(Debug)]
pub(crate) struct TransportContext {
    pub(crate) network: Arc<dyn Network>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) quic: Quic,
    /// `None` if the transport is used without the behaviour.
    pub(crate) path: Option<Arc<PathLayer>>,
    /// The connections that the swarm holds.
    pub(crate) connections: Arc<ConnectionTable>,
    /// The dials in the role of the listener.
    pub(crate) punches: Punches,
    /// Counts the sockets of the node.
    sockets: Arc<SocketBudget>,
    next_socket: AtomicU32,
}

impl TransportContext {
    pub(crate) fn new(
        network: Arc<dyn Network>,
        runtime: Arc<dyn Runtime>,
        quic: Quic,
        path: Option<Arc<PathLayer>>,
    ) -> Self {
        let connections = Arc::new(ConnectionTable::new(quic.limits(), runtime.clone()));
        let sockets = match &path {
            Some(path) => path.socket_budget(),
            None => Arc::new(SocketBudget::new(network.max_descriptors())),
        };
        let (punches, next_socket) = (Punches::default(), AtomicU32::new(0));
        Self { network, runtime, quic, path, connections, punches, sockets, next_socket }
    }

    /// Binds a socket that is replaced when it fails.
    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<Arc<Socket>> {
        Socket::bind(&self.network, &self.runtime, address, self.sockets.take())
    }

    pub(super) fn next_socket(&self) -> SocketId {
        SocketId(self.next_socket.fetch_add(1, Relaxed))
    }
}
