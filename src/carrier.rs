//! Match of a stream with the QUIC connection that carries it.
//!
//! libp2p-swarm gives a handler a stream without a word about the connection beneath.
//! [`carrier_of`] finds it: it flushes the stream, and the flush ends in the transport's own
//! stream, on the same thread, before it returns. The stream of the transport calls [`tell`].

use std::{
    cell::Cell,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Waker},
};

use futures::AsyncWrite;

/// Names one connection. No other connection of the process has the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionNumber(u64);

impl ConnectionNumber {
    /// Returns a number that no connection of any transport in this process has had.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

#[derive(Clone, Copy)]
enum Question {
    NotAsked,
    Asked,
    Answered(ConnectionNumber),
}

thread_local! {
    static QUESTION: Cell<Question> = const { Cell::new(Question::NotAsked) };
}

/// Returns the connection that carries a stream directly; `None` if another transport carries it.
///
/// The stream must be new: its task is not woken for this flush. Do not ask for a stream over a
/// relay, whose bytes another connection carries.
pub(crate) fn carrier_of(mut stream: impl AsyncWrite + Unpin) -> Option<ConnectionNumber> {
    QUESTION.set(Question::Asked);
    // The stream has nothing to flush yet.
    let _ = Pin::new(&mut stream).poll_flush(&mut Context::from_waker(Waker::noop()));
    match QUESTION.replace(Question::NotAsked) {
        Question::Answered(connection) => Some(connection),
        Question::NotAsked | Question::Asked => None,
    }
}

/// A stream of `connection` is flushed.
pub(crate) fn tell(connection: ConnectionNumber) {
    if let Question::Asked = QUESTION.get() {
        QUESTION.set(Question::Answered(connection));
    }
}
