//! The end of a connection that we close: quinn must have sent CONNECTION_CLOSE (RFC 9000 §10.2)
//! before the end is reported.
//!
//! `quinn::Connection::close` only asks the connection's task to send it. A program that exits as
//! soon as its connections are reported closed may end before that task has run, and its peers wait
//! for their idle time-out.

use std::{
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use quinn::{ConnectionError, Runtime};

use super::time::Delay;

/// Time for quinn's task to send. The task sends as soon as it runs and the socket is writable.
const MAX_WAIT: Duration = Duration::from_millis(250);
/// Time for quinn's task if it sent a datagram around the time of the call, which may have been
/// CONNECTION_CLOSE.
const SHORT_WAIT: Duration = Duration::from_millis(50);
/// Turns that other tasks get before the clock is used.
const MAX_YIELDS: usize = 16;
/// Interval of the checks after that.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Closes a connection, and waits until CONNECTION_CLOSE was sent. Returns an error if the
/// connection was over already.
pub(super) async fn close(
    connection: quinn::Connection,
    runtime: Arc<dyn Runtime>,
) -> Result<(), ConnectionError> {
    let sent = || connection.stats().udp_tx.datagrams;
    let before = sent();
    connection.close(0u32.into(), &[]);
    match connection.closed().await {
        ConnectionError::LocallyClosed => {}
        error => return Err(error),
    }
    // quinn counts a datagram in the same step that sends it. A closed connection sends nothing
    // else.
    let after = sent();
    let wait = if after == before { MAX_WAIT } else { SHORT_WAIT };
    let deadline: Instant = runtime.now() + wait;
    for turn in 0.. {
        if sent() != after || runtime.now() >= deadline {
            break;
        }
        if turn < MAX_YIELDS { yield_now().await } else { Delay::new(&*runtime, POLL_INTERVAL).await }
    }
    Ok(())
}

async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
