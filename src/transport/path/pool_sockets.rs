//! The sockets of one pool, and which of them have something to read.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::*},
    },
    task::{Wake, Waker},
};

use futures::task::AtomicWaker;

use super::lock;
use crate::transport::socket::Socket;
use libp2p_punch_proto::SocketId;

/// Largest number of sockets of one pool.
pub(super) const MAX_SOCKETS: usize = WORDS * 64;
const WORDS: usize = 4;
/// Sockets with received datagrams.
#[derive(Debug, Default)]
pub(super) struct Ready {
    words: [AtomicU64; WORDS],
    pub(super) task: AtomicWaker,
}

impl Ready {
    pub(super) fn set(&self, index: usize) {
        if let Some(word) = self.words.get(index / 64) {
            word.fetch_or(1 << (index % 64), AcqRel);
        }
    }

    /// Returns the sockets with set bits, and clears the bits. A socket that is read after that
    /// without a datagram sets its bit again by its waker.
    pub(super) fn take(&self) -> Vec<usize> {
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
    pub(super) ready: Arc<Ready>,
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

    pub(super) fn add(&self, id: SocketId, io: Arc<Socket>) -> bool {
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

    pub(super) fn member(&self, index: usize) -> Option<(SocketId, Arc<Socket>, Waker)> {
        let state = lock(&self.state);
        let member = state.members.get(index)?.as_ref()?;
        Some((member.id, member.io.clone(), member.waker.clone()))
    }

    /// Returns true if the caller must read the sockets, since no other task does.
    pub(super) fn take_reader(&self) -> bool {
        !std::mem::replace(&mut lock(&self.state).has_reader, true)
    }

    /// Returns true if the pool was closed.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Returns true if no socket is open. The task that opens another socket then reads it.
    pub(super) fn is_over(&self) -> bool {
        let mut state = lock(&self.state);
        let is_empty = state.members.iter().all(Option::is_none);
        state.has_reader &= !is_empty;
        is_empty
    }
}
