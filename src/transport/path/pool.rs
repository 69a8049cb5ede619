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
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering::*},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::task::AtomicWaker;
use quinn::{AsyncUdpSocket, udp::RecvMeta};

use super::{PathNotice, flow::BoundSocket, lock, shared::Shared, stats::count};
use crate::{
    io::Network,
    transport::{
        socket::{Socket, SocketNews},
        socket_budget::SocketPlace,
    },
};
use libp2p_punch_proto::{SocketId, command::Pool};

/// Largest number of sockets of one pool.
pub(super) const MAX_SOCKETS: usize = WORDS * 64;
const WORDS: usize = 4;
/// Receive calls in a row before other tasks get their turn.
const BUDGET: usize = 64;
/// The largest UDP payload, and so the largest batch that receive offload may put together.
const BUFFER: usize = 65_535;

/// Sockets with received datagrams.
#[derive(Debug, Default)]
struct Ready {
    words: [AtomicU64; WORDS],
    task: AtomicWaker,
}

impl Ready {
    fn set(&self, index: usize) {
        if let Some(word) = self.words.get(index / 64) {
            word.fetch_or(1 << (index % 64), AcqRel);
        }
    }

    /// Returns the sockets with set bits, and clears the bits. A socket that is read after that
    /// without a datagram sets its bit again by its waker.
    fn take(&self) -> Vec<usize> {
        let bits = |word: u64| (0..64).filter(move |bit| word & 1 << bit != 0);
        let words = self.words.iter().map(|word| word.swap(0, AcqRel)).enumerate();
        words.flat_map(|(n, word)| bits(word).map(move |bit| n * 64 + bit)).collect()
    }
}

/// Waker that sets the bit of one socket.
struct Slot {
    ready: Arc<Ready>,
    index: usize,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.set(self.index);
        self.ready.task.wake();
    }
}

#[derive(Debug)]
struct Member {
    id: SocketId,
    io: Arc<Socket>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Option<Member>>,
    closed: bool,
    /// A task reads the sockets.
    has_reader: bool,
}

/// The sockets of one pool, shared by the task that reads them and the task that closes them.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    ready: Arc<Ready>,
    state: Mutex<State>,
}

impl Sockets {
    /// Closes all but `keep`, and returns which; without any to keep, also those that are yet to be
    /// opened.
    pub(super) fn close(&self, keep: &[SocketId]) -> Vec<SocketId> {
        let mut state = lock(&self.state);
        state.closed |= keep.is_empty();
        let gone = |slot: &mut Option<Member>| slot.take_if(|member| !keep.contains(&member.id));
        let closed: Vec<Member> = state.members.iter_mut().filter_map(gone).collect();
        drop(state);
        self.ready.task.wake();
        closed.into_iter().map(|member| member.id).collect()
    }

    fn add(&self, id: SocketId, io: Arc<Socket>) -> bool {
        let mut state = lock(&self.state);
        let free = state.members.iter().position(Option::is_none);
        let index = free.unwrap_or(state.members.len());
        if state.closed || index >= MAX_SOCKETS {
            return false;
        }
        let waker = Waker::from(Arc::new(Slot { ready: self.ready.clone(), index }));
        let member = Some(Member { id, io, waker });
        match state.members.get_mut(index) {
            Some(slot) => *slot = member,
            None => state.members.push(member),
        }
        drop(state);
        self.ready.set(index);
        self.ready.task.wake();
        true
    }

    fn member(&self, index: usize) -> Option<(SocketId, Arc<Socket>, Waker)> {
        let state = lock(&self.state);
        let member = state.members.get(index)?.as_ref()?;
        Some((member.id, member.io.clone(), member.waker.clone()))
    }

    /// Returns true if the caller must read the sockets, since no other task does.
    fn take_reader(&self) -> bool {
        !std::mem::replace(&mut lock(&self.state).has_reader, true)
    }

    /// Returns true if no socket is open. The task that opens another socket then reads it.
    fn is_over(&self) -> bool {
        let mut state = lock(&self.state);
        let is_empty = state.members.iter().all(Option::is_none);
        state.has_reader &= !is_empty;
        is_empty
    }
}

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
    if lock(&sockets.state).closed {
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
