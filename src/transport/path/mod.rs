//! The path layer: one QUIC connection over paths that come and go.
//!
//! All traversal sessions run on one quinn endpoint that has no UDP socket of its own. A *virtual
//! connection* is one connection attempt on it; quinn knows the peer by the virtual connection's
//! *virtual address* and never learns of paths. Beneath it:
//!
//! - datagrams of quinn to the virtual address leave on the virtual connection's selected path,
//!   through that path's socket; without a selected path they are kept, and leave on permitted
//!   paths within their budgets;
//! - every binding passes received datagrams to [`PathLayer::intercept`], which takes out probes
//!   and the QUIC packets of virtual connections, and leaves the rest to the binding's own
//!   endpoint.
//!
//! # Invariants
//!
//! - *A datagram belongs to a virtual connection only by its destination connection ID*, and only
//!   if it came on a path that was admitted for the virtual connection. So a plain connection with
//!   the same peer at the same address is never disturbed. A client without a selected path takes
//!   packets of its server on every path: the coordinator may report the address later.
//! - *Each virtual connection ends in one notice*, [`PathNotice::Failed`] or
//!   [`PathNotice::Closed`]; only probes are ever dropped.
//! - *The failure of a path does not fail the connection.* quinn gets `Ok` or `WouldBlock`, and
//!   nothing else.
//! - *Virtual addresses stay here.* Sockets send to the addresses of [`Path`]s only; [`FlowGuard`]
//!   gives the real address.
//! - *Locks*: quinn's, then the table's, then a virtual connection's. No call into quinn is made
//!   under the latter two.
//!
//! | file | content |
//! |---|---|
//! | `paths` | a virtual connection's paths, budgets and kept datagrams; pure state |
//! | `flow` | a virtual connection as shared between tasks: sending, blocking, virtual addresses |
//! | `table` | virtual connections, the paths they take packets from, sockets |
//! | `demux` | takes datagrams of sessions out of received buffers |
//! | `shared` | state of all parts: commands and received buffers against the table |
//! | `queue`, `socket` | the socket that the session endpoint sees |
//! | `endpoint` | the session endpoint and the task of each virtual connection |
//! | `pool`, `pool_sockets` | additional sockets of a virtual connection, or of a coordinator's observers |
//! | `cid` | connection IDs that identify the session endpoint |

mod cid;
mod demux;
mod endpoint;
mod flow;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod paths;
mod pool;
mod pool_sockets;
mod pulse;
mod queue;
mod shared;
mod socket;
mod stats;
mod table;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use libp2p_identity::PeerId;
use quinn::{AsyncUdpSocket, Endpoint, Runtime, crypto::HmacKey, udp::RecvMeta};
use tokio::sync::mpsc;

pub(crate) use self::endpoint::{FlowGuard, FlowView};
pub use self::stats::PathCounters;
use self::{
    cid::{CID_LEN, CidKey},
    demux::destination_cid,
    endpoint::{Attempt, Supervisor},
    flow::{BoundSocket, Flow, send_one},
    pool::Opening,
    pool_sockets::MAX_SOCKETS,
    shared::Shared,
    stats::count,
    table::{OpenError, RoutePriority},
};
use crate::{io::Network, transport::socket_budget::SocketBudget};
use libp2p_punch_proto::{
    Path, SocketId, VirtualConnectionId,
    command::{Command, Pool},
    event::SessionRole,
};

/// Makes the QUIC and TLS configuration of a session.
///
/// The peer's key is pinned in TLS: there is no check after the handshake. Both come with migration
/// off, as the connection's address never changes. `rtt` is for QUIC's initial RTT.
pub(crate) trait SessionConfigs: Send + Sync + 'static {
    /// The configuration of the QUIC client.
    fn client(&self, peer: PeerId, rtt: Option<Duration>) -> quinn::ClientConfig;

    /// The configuration of the QUIC server.
    fn server(&self, peer: PeerId, rtt: Option<Duration>) -> Arc<quinn::ServerConfig>;
}

/// Keys that keep the connection IDs of the session endpoint valid over a restart.
pub(crate) struct SessionKeys {
    /// Makes stateless-reset tokens (RFC 9000 §10.3.2).
    pub(crate) reset: Arc<dyn HmacKey>,
    /// Marks connection IDs as ours.
    pub(crate) cid: [u8; 32],
}

/// Message from the path layer to the driver.
#[derive(Debug)]
pub(crate) enum PathNotice {
    /// A probe came in. Dropped when the channel is full, as on a full socket.
    Probe {
        /// Path of the probe.
        path: Path,
        /// The whole datagram.
        payload: Bytes,
    },
    /// quinn made the first flight of a `Connect`.
    FirstFlight {
        /// The virtual connection.
        flow: VirtualConnectionId,
        /// Datagrams of the first flight, one or two, in order.
        datagrams: Vec<Bytes>,
    },
    /// The handshake is done, and TLS has proved the peer's key.
    Established {
        /// The virtual connection.
        flow: VirtualConnectionId,
        /// The peer, whose key TLS has proved.
        peer: PeerId,
        /// The part of this peer in the session: that of the QUIC client is the initiator's.
        role: SessionRole,
        /// The connection. Its `remote_address` is virtual.
        connection: quinn::Connection,
        /// Guard to hold as long as the connection.
        guard: FlowGuard,
    },
    /// The attempt is over, also when a `Close` ended it.
    Failed {
        /// The virtual connection.
        flow: VirtualConnectionId,
        /// Reason.
        error: PathError,
    },
    /// The connection sends and receives nothing: its path is likely dead.
    Silent {
        /// The virtual connection.
        flow: VirtualConnectionId,
    },
    /// A peer that was talking pauses: its path may be dead.
    Quiet {
        /// The virtual connection.
        flow: VirtualConnectionId,
    },
    /// Result of `OpenSockets`.
    Sockets {
        /// Owner of the sockets.
        pool: Pool,
        /// Each with its port; as many as could be opened.
        sockets: Vec<(SocketId, u16)>,
    },
    /// The guard of an established connection was dropped.
    Closed {
        /// The virtual connection.
        flow: VirtualConnectionId,
        /// Our swarm did not take the connection, or the remote closed it without a byte on any
        /// stream, as a swarm does that denies it.
        denied: bool,
    },
}

/// Reason for the failure of an attempt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    /// There are as many virtual connections as there may be.
    #[error("too many sessions at once")]
    TooManyFlows,
    /// The first flight bears the connection ID of another request.
    #[error("the first flight belongs to another request")]
    ForeignFlight,
    /// A `Close` ended it, or the path layer is gone.
    #[error("the attempt was abandoned")]
    Closed,
    /// quinn could not start the handshake.
    #[error("start of the handshake")]
    Connect(#[from] quinn::ConnectError),
    /// The handshake failed.
    #[error("handshake")]
    Handshake(#[from] quinn::ConnectionError),
}

/// The path layer's handle.
///
/// Sockets that were added are held until they are removed, and with them the endpoints that read
/// them: the caller that adds a socket removes it when its owner goes. The last handle to go,
/// guards of connections included, closes the session endpoint.
pub(crate) struct PathLayer {
    shared: Arc<Shared>,
    network: Arc<dyn Network>,
    endpoint: Endpoint,
    this: Weak<Self>,
}

impl PathLayer {
    /// Starts the session endpoint. Call it within the runtime, as [`execute`](Self::execute).
    ///
    /// # Errors
    ///
    /// Those of quinn's endpoint.
    pub(crate) fn new(
        network: Arc<dyn Network>,
        runtime: Arc<dyn Runtime>,
        configs: Box<dyn SessionConfigs>,
        keys: SessionKeys,
        notices: mpsc::Sender<PathNotice>,
    ) -> io::Result<Arc<Self>> {
        let key = CidKey::new(&keys.cid).ok_or_else(|| io::Error::other("connection ID key"))?;
        let budget = Arc::new(SocketBudget::new(network.max_descriptors()));
        let shared = Arc::new(Shared::new(runtime, configs, key.clone(), notices, budget));
        let endpoint = endpoint::session_endpoint(&shared, keys.reset, key)?;
        shared.runtime.spawn(Box::pin(endpoint::route_incoming(endpoint.clone(), shared.clone())));
        Ok(Arc::new_cyclic(|this| Self { shared, network, endpoint, this: this.clone() }))
    }

    /// Counts the sockets of the node, those of bindings included.
    pub(crate) fn socket_budget(&self) -> Arc<SocketBudget> {
        self.shared.budget.clone()
    }

    /// Returns true if there is a virtual connection, or if probes are expected without a virtual
    /// connection. Otherwise [`intercept`](Self::intercept) does nothing.
    pub(crate) fn is_active(&self) -> bool {
        self.shared.active.load(Relaxed) > 0 || self.shared.expects.load(Relaxed)
    }

    /// Takes probes and packets of virtual connections out of the datagrams that a binding's socket
    /// received: the first `n` of `bufs` and `meta`, as `AsyncUdpSocket::poll_recv` filled them.
    /// The rest is moved to the front; returns how many are left.
    ///
    /// The order of `bufs` changes when buffers become empty. If none is left, the binding reads
    /// its socket again.
    pub(crate) fn intercept(
        &self,
        socket: SocketId,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        n: usize,
    ) -> usize {
        if self.is_active() { self.shared.intercept(socket, bufs, meta, n) } else { n }
    }

    /// Makes a socket usable for paths; `keep_alive` is the endpoint whose driver reads it.
    pub(crate) fn add_socket(&self, id: SocketId, io: Arc<dyn AsyncUdpSocket>, keep_alive: Endpoint) {
        let replaced = self.shared.write().add_socket(BoundSocket { id, io, _keep_alive: Some(keep_alive) });
        drop(replaced);
    }

    /// Gives a socket up. Paths that use it keep it and its endpoint alive until they are forgotten
    /// or their virtual connection is over.
    pub(crate) fn remove_socket(&self, id: SocketId) {
        let socket = self.shared.write().retire_socket(id);
        drop(socket);
    }

    /// Returns the address to which a socket is bound; `None` if the socket is gone.
    pub(crate) fn local_addr(&self, id: SocketId) -> Option<SocketAddr> {
        self.shared.read().socket(id)?.io.local_addr().ok()
    }

    /// Sends a probe at once or not at all; whether the socket took it.
    pub(crate) fn send_probe(&self, path: Path, payload: &[u8]) -> bool {
        let socket = self.shared.read().socket(path.socket);
        let sent = socket.is_some_and(|socket| send_one(&socket, path.remote, payload).is_ok());
        let counters = &self.shared.counters;
        count(if sent { &counters.probes_sent } else { &counters.probes_unsent }, 1);
        sent
    }

    /// Carries out a command of the endpoint. Call it within the runtime.
    pub(crate) fn execute(&self, command: Command) {
        let shared = &self.shared;
        let done = match command {
            Command::Connect { flow, peer, rtt, binding } => {
                self.start(flow, Attempt::Connect { peer, rtt, binding })
            }
            Command::Accept { flow, peer, first_flight, rtt, binding } => {
                let is_own = first_flight.iter().all(|datagram| {
                    destination_cid(datagram, CID_LEN).is_some_and(|(cid, long)| long && binding.covers(cid))
                });
                match is_own {
                    true => self.start(flow, Attempt::Accept { peer, first_flight, rtt }),
                    false => self.refuse(flow, PathError::ForeignFlight),
                }
            }
            Command::Admit { flow, path, heard } => {
                shared.admit(flow, path, if heard { RoutePriority::Heard } else { RoutePriority::Announced })
            }
            Command::Permit { flow, path, budget, again } => {
                shared.with_target(flow, path, |flow, target| {
                    if flow.permit(target, budget, again, &shared.counters).is_err() {
                        count(&shared.counters.paths_refused, 1);
                    }
                })
            }
            Command::Select { flow, path } => {
                shared.admit(flow, path, RoutePriority::Selected);
                shared.with_target(flow, path, |flow, target| flow.select(target, &shared.counters))
            }
            Command::Forget { flow, path } => shared.forget(flow, path),
            Command::OpenSockets { pool, local, count } => self.open_sockets(pool, local, count),
            Command::CloseSockets { pool, keep } => shared.close_sockets(pool, &keep),
            Command::ExpectProbes { expected } => {
                shared.expects.store(expected, Relaxed);
                Some(())
            }
            Command::Close { flow } => shared.flow(flow).map(|flow| {
                flow.settle();
                flow.close.notify_one();
            }),
        };
        if done.is_none() {
            count(&shared.counters.commands_ignored, 1);
        }
    }

    /// The counters.
    pub(crate) fn counters(&self) -> PathCounters {
        self.shared.counters.snapshot()
    }

    /// Starts the task that opens sockets in a pool; `None` if a pool that is no session's is open
    /// already, or a session's has no virtual connection.
    fn open_sockets(&self, pool: Pool, local: IpAddr, count: usize) -> Option<()> {
        let sockets = self.shared.pool_to_open(pool)?;
        let opening = Opening {
            pool,
            sockets,
            local,
            asked: count,
            places: self.shared.budget.take_up_to(count.min(MAX_SOCKETS)),
        };
        let (shared, network) = (self.shared.clone(), self.network.clone());
        self.shared.runtime.spawn(Box::pin(pool::run(shared, network, opening)));
        Some(())
    }

    /// Opens a virtual connection and starts its task; `None` if its number is taken.
    fn start(&self, id: VirtualConnectionId, attempt: Attempt) -> Option<()> {
        let first_flight = match &attempt {
            Attempt::Connect { .. } => [].as_slice(),
            Attempt::Accept { first_flight, .. } => first_flight.as_slice(),
        };
        let flow = Arc::new(Flow::new(id, first_flight));
        let opened = self.shared.open(flow.clone());
        let shared = self.shared.clone();
        let runtime = &self.shared.runtime;
        match opened {
            Ok(()) => {
                let supervisor = Supervisor { shared, layer: self.this.clone(), flow };
                runtime.spawn(Box::pin(supervisor.run(self.endpoint.clone(), attempt)));
                Some(())
            }
            Err(OpenError::TooMany) => self.refuse(id, PathError::TooManyFlows),
            Err(OpenError::Exists) => None,
        }
    }

    /// Ends a virtual connection that was not opened.
    fn refuse(&self, flow: VirtualConnectionId, error: PathError) -> Option<()> {
        count(&self.shared.counters.flows_refused, 1);
        let shared = self.shared.clone();
        self.shared.runtime.spawn(Box::pin(async move {
            // The notice has no receiver once the driver is gone.
            let _ = shared.notices.send(PathNotice::Failed { flow, error }).await;
        }));
        Some(())
    }
}

impl fmt::Debug for PathLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathLayer").field("flows", &self.shared.active).finish_non_exhaustive()
    }
}

impl Drop for PathLayer {
    fn drop(&mut self) {
        // The tasks of pools wait for sockets that they hold themselves.
        self.shared.close_pools();
        // Ends the task that routes incoming connections, and the attempts that are under way.
        self.endpoint.close(0u32.into(), b"");
    }
}

/// Locks; a panic of another thread does not spread, as no state here is left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
