//! A UDP socket that outlives those of the operating system.
//!
//! A system may take a socket away: iOS after a suspension, `SOCK_DESTROY` on Linux and Android,
//! the reset of an interface. Then receiving or sending fails. [`Socket`] hides that from its
//! users, closes the dead socket, and binds another one in its place:
//!
//! - at the same address and port first, so that addresses, NAT mappings and connections stay
//!   valid;
//! - at any port if the port stays taken;
//! - with back-off while binding fails, as without file descriptors or while the address is gone.
//!
//! Datagrams sent meanwhile are lost. The owner learns of a failure once, and of each replacement,
//! by [`Socket::poll_news`].

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, task::AtomicWaker};
use quinn::{
    AsyncUdpSocket, Runtime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::Notify;

use super::{socket_budget::SocketPlace, time::Delay};
use crate::io::{Network, UdpSocket};

/// Receive calls in a row that may bring nothing before other tasks get their turn.
const MAX_EMPTY_RECEIVES: usize = 32;
/// Errors about sent datagrams in a row after which the socket itself is taken to be broken.
const MAX_ERRORS: u32 = 1024;
/// Attempts to bind the same port again while it is taken.
const SAME_PORT_ATTEMPTS: u32 = 4;
/// The delay before the second attempt to bind. It doubles up to [`MAX_REBIND_DELAY`].
const MIN_REBIND_DELAY: Duration = Duration::from_millis(50);
const MAX_REBIND_DELAY: Duration = Duration::from_secs(30);
/// Lifetime of a socket after which its failure counts as a first failure.
const STABLE_LIFETIME: Duration = Duration::from_secs(10);
/// News that wait for the owner. An owner that does not ask needs none of them.
const MAX_NEWS: usize = 8;
/// The outage after which a NAT may have forgotten the socket, and a measurement of it means
/// nothing.
const LONG_OUTAGE: Duration = Duration::from_secs(1);

/// State of a socket.
#[derive(Debug)]
pub(crate) enum SocketNews {
    /// The socket failed, or cannot be replaced yet.
    Failed(io::Error),
    /// Another socket has taken its place.
    Replaced(Replacement),
}

/// The replacement of a socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replacement {
    /// The address of the socket that failed.
    pub(crate) before: SocketAddr,
    /// Address of the new socket.
    pub(crate) after: SocketAddr,
    /// The time between the two.
    pub(crate) outage: Duration,
}

struct State {
    /// `None` from a failure to the replacement.
    current: Option<Arc<dyn AsyncUdpSocket>>,
    /// Counts failures and replacements.
    generation: u64,
    local: SocketAddr,
    replaced_at: Option<Instant>,
    failed_at: Option<Instant>,
    /// Failures of sockets that were not [`STABLE_LIFETIME`].
    streak: u32,
}

impl Replacement {
    /// Returns true if NAT mappings, and the knowledge of peers about the socket, are likely still
    /// valid.
    pub(crate) fn keeps_mappings(&self) -> bool {
        self.before == self.after && self.outage < LONG_OUTAGE
    }
}

/// See the module.
pub(crate) struct Socket {
    network: Arc<dyn Network>,
    runtime: Arc<dyn Runtime>,
    state: RwLock<State>,
    /// Errors about sent datagrams since the last success.
    errors: AtomicU32,
    /// The task that receives.
    reader: AtomicWaker,
    /// Wakes the tasks that wait for room to send.
    changed: Arc<Notify>,
    /// Ends the back-off.
    retry: Arc<Notify>,
    news: Mutex<VecDeque<SocketNews>>,
    owner: AtomicWaker,
    this: Weak<Self>,
    _place: SocketPlace,
}

impl Socket {
    /// Binds a socket, which keeps `place` as long as it exists. The error names the address.
    pub(crate) fn bind(
        network: &Arc<dyn Network>,
        runtime: &Arc<dyn Runtime>,
        address: SocketAddr,
        place: SocketPlace,
    ) -> io::Result<Arc<Self>> {
        let (io, local) = bind(&**network, address)?;
        let state =
            State { current: Some(io), generation: 0, local, replaced_at: None, failed_at: None, streak: 0 };
        Ok(Arc::new_cyclic(|this| Self {
            network: network.clone(),
            runtime: runtime.clone(),
            state: RwLock::new(state),
            errors: AtomicU32::new(0),
            reader: AtomicWaker::new(),
            changed: Arc::default(),
            retry: Arc::default(),
            news: Mutex::default(),
            owner: AtomicWaker::new(),
            this: this.clone(),
            _place: place,
        }))
    }

    /// The address that the socket is bound to, or was before it failed.
    pub(crate) fn local(&self) -> SocketAddr {
        self.read().local
    }

    /// Waits for news.
    pub(crate) fn poll_news(&self, cx: &mut Context<'_>) -> Poll<SocketNews> {
        self.owner.register(cx.waker());
        self.news().pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    /// Tries to replace a socket that has failed at once: something has changed that may help.
    pub(crate) fn retry_now(&self) {
        if self.read().current.is_none() {
            self.retry.notify_one();
        }
    }

    /// The socket in use, and its generation.
    fn current(&self) -> Option<(u64, Arc<dyn AsyncUdpSocket>)> {
        let state = self.read();
        Some((state.generation, state.current.clone()?))
    }

    /// Closes the socket of this generation, unless that was done already, and begins to replace
    /// it.
    fn fail(&self, generation: u64, error: io::Error) {
        let now = self.runtime.now();
        let mut state = self.write();
        if state.generation != generation {
            return;
        }
        let Some(dead) = state.current.take() else { return };
        state.generation += 1;
        state.failed_at.get_or_insert(now);
        let is_stable = state.replaced_at.is_none_or(|at| now - at >= STABLE_LIFETIME);
        state.streak = if is_stable { 0 } else { state.streak.saturating_add(1) };
        let (streak, local) = (state.streak, state.local);
        drop(state);
        drop(dead);
        if streak == 0 {
            self.report_failure(local, &error);
        }
        self.changed.notify_waiters();
        let replacing = replace(self.this.clone(), self.runtime.clone(), self.retry.clone(), streak);
        self.runtime.spawn(Box::pin(replacing));
    }

    fn report_failure(&self, local: SocketAddr, error: &io::Error) {
        tracing::warn!(kind = %error.kind(), "UDP socket failed, it is replaced");
        tracing::debug!(%local, %error, "UDP socket failed");
        let context = format!("UDP socket at {local} failed and is replaced: {error}");
        self.tell(SocketNews::Failed(io::Error::new(error.kind(), context)));
    }

    /// Binds another socket in the place of the failed socket.
    fn rebind(&self, any_port: bool) -> io::Result<()> {
        let before = self.local();
        let mut address = before;
        if any_port {
            address.set_port(0);
        }
        let (io, after) = bind(&*self.network, address)?;
        let now = self.runtime.now();
        let mut state = self.write();
        state.generation += 1;
        state.current = Some(io);
        state.local = after;
        state.replaced_at = Some(now);
        let outage = state.failed_at.take().map(|at| now - at).unwrap_or_default();
        drop(state);
        self.errors.store(0, Relaxed);
        tracing::info!(?outage, "UDP socket was replaced");
        tracing::debug!(%before, %after, "UDP socket was replaced");
        self.tell(SocketNews::Replaced(Replacement { before, after, outage }));
        self.reader.wake();
        self.changed.notify_waiters();
        Ok(())
    }

    fn tell(&self, news: SocketNews) {
        let mut waiting = self.news();
        if waiting.len() >= MAX_NEWS {
            waiting.pop_front();
        }
        waiting.push_back(news);
        drop(waiting);
        self.owner.wake();
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self) -> MutexGuard<'_, VecDeque<SocketNews>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces a failed socket; retries until success, or until the socket has no holder.
async fn replace(socket: Weak<Socket>, runtime: Arc<dyn Runtime>, retry: Arc<Notify>, streak: u32) {
    let mut delay = MIN_REBIND_DELAY.saturating_mul(1 << streak.min(16)).min(MAX_REBIND_DELAY);
    let (mut is_first, mut taken, mut reported) = (streak == 0, 0, false);
    loop {
        if !std::mem::take(&mut is_first) {
            let wait = Delay::new(&*runtime, delay);
            let hint = pin!(retry.notified());
            futures::future::select(wait, hint).await;
            delay = (delay * 2).min(MAX_REBIND_DELAY);
        }
        let Some(socket) = socket.upgrade() else { return };
        let error = match socket.rebind(taken >= SAME_PORT_ATTEMPTS) {
            Ok(()) => return,
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::AddrInUse {
            // The old socket may take a moment to close.
            taken += 1;
        } else if !std::mem::replace(&mut reported, true) {
            tracing::warn!(kind = %error.kind(), "UDP socket cannot be replaced yet");
            tracing::debug!(%error, "UDP socket cannot be replaced yet");
            let context = format!("cannot be replaced yet: {error}");
            socket.tell(SocketNews::Failed(io::Error::new(error.kind(), context)));
        }
    }
}

fn bind(network: &dyn Network, address: SocketAddr) -> io::Result<(Arc<dyn AsyncUdpSocket>, SocketAddr)> {
    let bound = network.bind(address).map(UdpSocket::into_inner).and_then(|io| {
        let local = io.local_addr()?;
        Ok((io, local))
    });
    bound.map_err(|error| io::Error::new(error.kind(), format!("UDP socket at {address}: {error}")))
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("local", &self.local()).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some((generation, io)) = self.current() else { return Err(io::ErrorKind::NetworkDown.into()) };
        match io.try_send(transmit) {
            Err(error) if is_dead(&error) => {
                drop(io);
                self.fail(generation, error);
                Err(io::ErrorKind::NetworkDown.into())
            }
            sent => sent,
        }
    }

    /// Never returns an error: quinn ends the endpoint on one.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..MAX_EMPTY_RECEIVES {
            // Before the look, so that no replacement is missed.
            self.reader.register(cx.waker());
            let Some((generation, io)) = self.current() else { return Poll::Pending };
            match io.poll_recv(cx, bufs, meta) {
                Poll::Ready(Ok(received)) => {
                    self.errors.store(0, Relaxed);
                    return Poll::Ready(Ok(received));
                }
                Poll::Pending => {
                    self.errors.store(0, Relaxed);
                    return Poll::Pending;
                }
                // These errors only report that an earlier datagram had no receiver, and any remote
                // can cause them.
                Poll::Ready(Err(error))
                    if is_about_a_sent_datagram(&error) && self.errors.fetch_add(1, Relaxed) < MAX_ERRORS => {
                }
                Poll::Ready(Err(error)) => {
                    drop(io);
                    self.fail(generation, error);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local())
    }

    fn max_transmit_segments(&self) -> usize {
        self.current().map_or(1, |(_, io)| io.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.current().map_or(1, |(_, io)| io.max_receive_segments())
    }

    fn may_fragment(&self) -> bool {
        self.current().is_none_or(|(_, io)| io.may_fragment())
    }
}

/// Waits for room to send. It holds the system's socket only while it waits, so that a dead socket
/// is closed soon.
struct Poller {
    socket: Arc<Socket>,
    waiting: Option<Waiting>,
}

struct Waiting {
    generation: u64,
    poller: Pin<Box<dyn UdpPoller>>,
    changed: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Poller").field(&self.socket).finish()
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let Some((generation, io)) = this.socket.current() else {
                // Datagrams sent now are lost.
                this.waiting = None;
                return Poll::Ready(Ok(()));
            };
            let mut waiting = match this.waiting.take() {
                Some(waiting) if waiting.generation == generation => waiting,
                _ => {
                    let mut poller = io.create_io_poller();
                    if poller.as_mut().poll_writable(cx).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                    let changed = this.socket.changed.clone();
                    let changed = Box::pin(async move { changed.notified().await });
                    Waiting { generation, poller, changed }
                }
            };
            // An error is the socket's: the next send meets it.
            if waiting.poller.as_mut().poll_writable(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if waiting.changed.poll_unpin(cx).is_pending() && this.socket.read().generation == generation {
                this.waiting = Some(waiting);
                return Poll::Pending;
            }
        }
    }
}

pub(super) fn is_about_a_sent_datagram(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

/// Returns true if an error of sending means that the socket can never send again.
fn is_dead(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
mod tests;
