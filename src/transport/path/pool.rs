//! Sockets in addition to those of the bindings: a few hundred at once, for one virtual connection
//! or for a coordinator's observers.
//!
//! One task reads all sockets of a pool. Each has a waker of its own that sets its bit, and only
//! sockets with a set bit are read. Received datagrams are sorted as those of bindings; the rest
//! has no endpoint, and is dropped.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use quinn::{AsyncUdpSocket, udp::RecvMeta};

use super::{
    PathNotice,
    flow::BoundSocket,
    pool_sockets::{MAX_SOCKETS, Sockets},
    shared::Shared,
    stats::count,
};
use crate::{
    io::Network,
    transport::{
        socket::{Socket, SocketNews},
        socket_budget::SocketPlace,
    },
};
use libp2p_punch_proto::{SocketId, command::Pool};

/// Receive calls in a row before other tasks get their turn.
const BUDGET: usize = 64;
/// The largest UDP payload, and so the largest batch that receive offload may put together.
const BUFFER: usize = 65_535;

/// A pool to open.
pub(super) struct Opening {
    pub(super) pool: Pool,
    pub(super) sockets: Arc<Sockets>,
    pub(super) local: IpAddr,
    /// The sockets that are wanted.
    pub(super) asked: usize,
    /// The places of those that may be opened.
    pub(super) places: Vec<SocketPlace>,
}

/// Opens sockets of a pool, says which, and reads all of them until they are closed, unless another
/// task does.
pub(super) async fn run(shared: Arc<Shared>, network: Arc<dyn Network>, opening: Opening) {
    let Opening { pool: name, sockets, local, asked, places } = opening;
    let mut opened = Vec::new();
    let mut failure = None;
    for place in places {
        let io = match Socket::bind(&network, &shared.runtime, SocketAddr::new(local, 0), place) {
            Ok(io) => io,
            // The system may run out of descriptors or ports. The requester decides if fewer
            // sockets are enough.
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        let id = shared.new_socket_id();
        if !sockets.add(id, io.clone()) {
            break;
        }
        drop(shared.write().add_socket(BoundSocket { id, io: io.clone(), _keep_alive: None }));
        opened.push((id, io.local().port()));
        writable(io).await;
    }
    if sockets.is_closed() {
        // Closed while they were being opened: nothing uses these sockets.
        shared.retire(sockets.close(&[]).into_iter().chain(opened.iter().map(|(id, _)| *id)));
    } else {
        let missing = asked.min(MAX_SOCKETS).saturating_sub(opened.len());
        report_missing(&shared, missing, failure.as_ref());
    }
    // The notice has no receiver once the driver is gone.
    let _ = shared.notices.send(PathNotice::Sockets { pool: name, sockets: opened }).await;
    if !sockets.take_reader() {
        return;
    }
    let shared = {
        let weak = Arc::downgrade(&shared);
        drop(shared);
        weak
    };
    let buffer = vec![0; BUFFER];
    let mut reader = Reader { pool: name, shared, sockets, moved: BTreeMap::new(), buffer };
    poll_fn(|cx| reader.poll(cx)).await;
}

/// Counts the sockets that could not be opened, and reports the first time in a row.
fn report_missing(shared: &Shared, missing: usize, failure: Option<&io::Error>) {
    count(&shared.counters.sockets_refused, missing);
    if shared.is_short.swap(missing > 0, Relaxed) || missing == 0 {
        return;
    }
    let limit = shared.budget.limit();
    match failure {
        Some(error) => tracing::warn!(missing, kind = ?error.kind(), "sockets cannot be opened"),
        None => tracing::warn!(missing, limit, "a quarter of the file descriptors is in use by sockets"),
    }
}

/// Reads the sockets of a pool.
struct Reader {
    pool: Pool,
    shared: Weak<Shared>,
    sockets: Arc<Sockets>,
    /// Sockets that were replaced at other ports, until the driver has the report.
    moved: BTreeMap<SocketId, u16>,
    buffer: Vec<u8>,
}

/// Waits until the runtime knows that a new socket is writable. Before that it reports `WouldBlock`
/// for every datagram, and a probe is sent at once or not at all.
async fn writable(io: Arc<dyn AsyncUdpSocket>) {
    let mut poller = io.create_io_poller();
    // A failed socket reports its failure at the next write.
    let _ = poll_fn(|cx| poller.as_mut().poll_writable(cx)).await;
}

impl Reader {
    /// Reads all received datagrams; ready once no more can come.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sockets = self.sockets.clone();
        sockets.ready.task.register(cx.waker());
        let Some(shared) = self.shared.upgrade().filter(|_| !sockets.is_over()) else {
            return Poll::Ready(());
        };
        let mut budget = BUDGET;
        loop {
            let ready = sockets.ready.take();
            if ready.is_empty() && self.tell(&shared) {
                return Poll::Pending;
            }
            if budget == 0 || ready.is_empty() {
                ready.into_iter().for_each(|index| sockets.ready.set(index));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            for index in ready {
                if budget == 0 {
                    sockets.ready.set(index);
                    continue;
                }
                budget -= 1;
                let Some((id, io, waker)) = sockets.member(index) else { continue };
                let mut cx = Context::from_waker(&waker);
                if let Poll::Ready(SocketNews::Replaced(replacement)) = io.poll_news(&mut cx)
                    && replacement.before.port() != replacement.after.port()
                {
                    self.moved.insert(id, replacement.after.port());
                }
                let mut meta = [RecvMeta::default()];
                let mut bufs = [IoSliceMut::new(&mut self.buffer)];
                if let Poll::Ready(Ok(received)) = io.poll_recv(&mut cx, &mut bufs, &mut meta) {
                    shared.intercept(id, &mut bufs, &mut meta, received);
                    sockets.ready.set(index);
                }
            }
        }
    }

    /// Reports sockets of a coordinator at other ports to the driver: clients must learn these
    /// ports. Returns true if no report is left.
    fn tell(&mut self, shared: &Shared) -> bool {
        let is_known = matches!(self.pool, Pool::Observers(_) | Pool::Filtering(_));
        if is_known && !self.moved.is_empty() {
            let Ok(slot) = shared.notices.try_reserve() else { return shared.notices.is_closed() };
            let moved = std::mem::take(&mut self.moved);
            slot.send(PathNotice::Sockets { pool: self.pool, sockets: moved.into_iter().collect() });
        }
        true
    }
}
