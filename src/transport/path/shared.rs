//! State that the parts of the path layer share: commands and received buffers against the table.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::IoSliceMut,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use quinn::{Runtime, udp::RecvMeta};
use tokio::sync::mpsc;

use super::{
    PathNotice, SessionConfigs,
    cid::CidKey,
    demux::{self, Kind, canonical},
    flow::{Flow, FlowTarget, virtual_address},
    lock,
    pool_sockets::Sockets,
    queue::ReceiveQueue,
    stats::{Counters, count},
    table::{OpenError, PacketOwner, RoutePriority, Table},
};
use crate::transport::socket_budget::SocketBudget;
use libp2p_punch_proto::{Path, SocketId, VirtualConnectionId, command::Pool};

/// Longest probe that is forwarded, in bytes. Longer datagrams are not probes, and need no copy.
const MAX_PROBE: usize = 256;

/// Sockets of pools are numbered from here, those of bindings from 0.
const FIRST_SOCKET: u32 = 1 << 31;

/// State shared by the endpoint's socket, the tasks of virtual connections and the layer's handle.
/// It must not hold the session endpoint, which holds this state.
pub(super) struct Shared {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) configs: Box<dyn SessionConfigs>,
    pub(super) notices: mpsc::Sender<PathNotice>,
    pub(super) table: RwLock<Table>,
    /// Number of virtual connections in the table.
    pub(super) active: AtomicUsize,
    /// Probes may come though there is no virtual connection.
    pub(super) expects: AtomicBool,
    pools: Mutex<HashMap<Pool, Arc<Sockets>>>,
    next_socket: AtomicU32,
    pub(super) queue: ReceiveQueue,
    pub(super) key: CidKey,
    /// Set once the endpoint has a server configuration.
    pub(super) serves: OnceLock<()>,
    pub(super) counters: Counters,
    pub(super) budget: Arc<SocketBudget>,
    /// The last pool did not get its sockets, and this was reported.
    pub(super) is_short: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        configs: Box<dyn SessionConfigs>,
        key: CidKey,
        notices: mpsc::Sender<PathNotice>,
        budget: Arc<SocketBudget>,
    ) -> Self {
        Self {
            runtime,
            configs,
            notices,
            table: RwLock::default(),
            active: AtomicUsize::new(0),
            expects: AtomicBool::new(false),
            pools: Mutex::default(),
            next_socket: AtomicU32::new(FIRST_SOCKET),
            queue: ReceiveQueue::default(),
            key,
            serves: OnceLock::new(),
            counters: Counters::default(),
            budget,
            is_short: AtomicBool::new(false),
        }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flow(&self, id: VirtualConnectionId) -> Option<Arc<Flow>> {
        self.read().flow(id)
    }

    pub(super) fn open(&self, flow: Arc<Flow>) -> Result<(), OpenError> {
        let mut table = self.write();
        table.open(flow)?;
        self.active.store(table.flows(), Relaxed);
        Ok(())
    }

    pub(super) fn remove(&self, id: VirtualConnectionId) {
        let removed = {
            let mut table = self.write();
            let removed = table.remove(id);
            self.active.store(table.flows(), Relaxed);
            removed
        };
        if let Some(flow) = removed {
            flow.clear();
        }
        self.close_sockets(Pool::Session(id), &[]);
    }

    pub(super) fn new_socket_id(&self) -> SocketId {
        SocketId(self.next_socket.fetch_add(1, Relaxed).max(FIRST_SOCKET))
    }

    /// A client's virtual connection has its connection ID, and the server may answer from
    /// anywhere.
    pub(super) fn expect_server(&self, client: VirtualConnectionId) {
        self.write().expect_server(client);
    }

    /// Returns the pool to open sockets in: the pool of a session, or a new pool. `None` if the
    /// virtual connection of the session is gone, or the pool of another kind is there already.
    pub(super) fn pool_to_open(&self, pool: Pool) -> Option<Arc<Sockets>> {
        let is_session = matches!(pool, Pool::Session(_));
        if let Pool::Session(flow) = pool {
            self.flow(flow)?;
        }
        match lock(&self.pools).entry(pool) {
            Entry::Occupied(entry) => is_session.then(|| entry.get().clone()),
            Entry::Vacant(entry) => Some(entry.insert(Arc::default()).clone()),
        }
    }

    /// Closes the sockets of a pool but those to keep; `None` if there is no such pool.
    pub(super) fn close_sockets(&self, pool: Pool, keep: &[SocketId]) -> Option<()> {
        let sockets = match keep.is_empty() {
            true => lock(&self.pools).remove(&pool)?,
            false => lock(&self.pools).get(&pool)?.clone(),
        };
        self.retire(sockets.close(keep));
        Some(())
    }

    /// Closes the sockets of all pools.
    pub(super) fn close_pools(&self) {
        let pools = std::mem::take(&mut *lock(&self.pools));
        self.retire(pools.values().flat_map(|sockets| sockets.close(&[])));
    }

    /// Leaves sockets to the paths that use them.
    pub(super) fn retire(&self, sockets: impl IntoIterator<Item = SocketId>) {
        let retired: Vec<_> = {
            let mut table = self.write();
            sockets.into_iter().filter_map(|id| table.retire_socket(id)).collect()
        };
        // Outside of the lock: this closes them.
        drop(retired);
    }

    /// Calls `act` with the virtual connection and the path, if the virtual connection and the
    /// path's socket are there.
    pub(super) fn with_target(
        &self,
        flow: VirtualConnectionId,
        path: Path,
        act: impl FnOnce(&Flow, FlowTarget),
    ) -> Option<()> {
        let (flow, target) = {
            let table = self.read();
            (table.flow(flow)?, target(&table, path)?)
        };
        act(&flow, target);
        Some(())
    }

    /// Takes packets of a virtual connection from a path, in the place of a virtual connection with
    /// a lesser claim if there is no other.
    pub(super) fn admit(&self, id: VirtualConnectionId, path: Path, claim: RoutePriority) -> Option<()> {
        let mut table = self.write();
        let (flow, target) = (table.flow(id)?, target(&table, path)?);
        let path = target.path;
        let out = match flow.admit(target) {
            Ok(()) => table.route(path, flow, claim),
            Err(_) => Some(flow),
        };
        if let Some(out) = out {
            out.dismiss(&path);
            count(&self.counters.paths_refused, 1);
        }
        Some(())
    }

    /// Takes packets of a client from a path on which it met its server. quinn's server continues
    /// with another connection ID as soon as it has one, and that ID does not identify the virtual
    /// connection.
    fn admit_met(&self, id: VirtualConnectionId, path: Path) {
        let mut table = self.write();
        let Some(flow) = table.flow(id) else { return };
        flow.admit_met(&path);
        if let Some(out) = table.route(path, flow, RoutePriority::Met) {
            out.dismiss(&path);
            count(&self.counters.paths_refused, 1);
        }
    }

    pub(super) fn forget(&self, id: VirtualConnectionId, path: Path) -> Option<()> {
        let path = Path { remote: canonical(path.remote), ..path };
        let flow = self.flow(id)?;
        if flow.forget(&path) {
            self.write().unroute(&path, id);
        }
        Some(())
    }

    pub(super) fn intercept(
        &self,
        socket: SocketId,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        n: usize,
    ) -> usize {
        let n = n.min(bufs.len()).min(meta.len());
        let table = self.read();
        let (mut kept, mut wake, mut all_met) = (0, false, Vec::new());
        for i in 0..n {
            let (Some(buf), Some(entry)) = (bufs.get_mut(i), meta.get_mut(i)) else { break };
            let was_empty = entry.len == 0;
            let path = Path { socket, remote: canonical(entry.addr) };
            let (flows, ecn) = (table.flows_on(&path), entry.ecn);
            demux::sort(
                buf,
                entry,
                |datagram| table.classify(datagram, flows, &self.key),
                |kind, data, stride| match kind {
                    Kind::Probe => self.probe(path, data),
                    Kind::Session(whose) => {
                        wake = true;
                        let deliver = |flow: VirtualConnectionId| {
                            let taken = self.queue.push(virtual_address(flow), data, stride, ecn);
                            let counters = &self.counters;
                            count(
                                if taken { &counters.bytes_received } else { &counters.bytes_dropped },
                                data.len(),
                            );
                        };
                        let flows = match whose {
                            PacketOwner::One(at) => flows.get(at..=at).unwrap_or_default(),
                            PacketOwner::Any => flows,
                            PacketOwner::Client(id) => {
                                let met = table.flow(id).zip(target(&table, path));
                                match met.is_some_and(|(flow, at)| flow.met(at, data, &self.counters)) {
                                    true => {
                                        all_met.push((id, path));
                                        deliver(id);
                                    }
                                    false => count(&self.counters.paths_refused, 1),
                                }
                                &[]
                            }
                        };
                        for flow in flows {
                            flow.received(&path, data, &self.counters);
                            deliver(flow.id);
                        }
                    }
                    Kind::UnroutedInitial => count(&self.counters.strays_dropped, 1),
                    Kind::Other => {}
                },
            );
            if was_empty || entry.len > 0 {
                bufs.swap(kept, i);
                meta.swap(kept, i);
                kept += 1;
            }
        }
        drop(table);
        for (id, path) in all_met {
            self.admit_met(id, path);
        }
        if wake {
            self.queue.wake();
        }
        kept
    }

    fn probe(&self, path: Path, payload: &[u8]) {
        let taken = payload.len() <= MAX_PROBE
            && self.notices.try_reserve().is_ok_and(|slot| {
                slot.send(PathNotice::Probe { path, payload: Bytes::copy_from_slice(payload) });
                true
            });
        count(if taken { &self.counters.probes_received } else { &self.counters.probes_dropped }, 1);
    }
}

/// The path with its socket; `None` if the socket is gone.
fn target(table: &Table, path: Path) -> Option<FlowTarget> {
    let path = Path { remote: canonical(path.remote), ..path };
    Some(FlowTarget { path, socket: table.socket(path.socket)? })
}
