//! Clients that move (RFC 9000 §9): the addresses to which quinn may send before their validation,
//! and the detection of the validation.
//!
//! quinn's server follows a client to any address that its packets claim. It pads each
//! PATH_CHALLENGE and each answer to 1,200 bytes, and reports neither a move nor its validation. So
//! a client that forges the source of small packets could make a server send to any address, and
//! would be believed there.
//!
//! # How it works
//!
//! quinn asks a connection's own [`UdpPoller`] immediately before each datagram that it sends for
//! that connection, on the same thread. So a [`ClientPoller`] knows the client of the next
//! datagram, and the socket asks the [`Whereabouts`] of that client for permission. Every datagram
//! may go to the *proven* address. Datagrams to another address need a budget; quinn takes a
//! refused datagram for lost.
//!
//! An address is proven when quinn has sent a packet there without a PATH_CHALLENGE: quinn puts a
//! PATH_CHALLENGE into every packet on a path that is not validated. [`Whereabouts::look`] compares
//! quinn's counters before and after.
//!
//! Incoming packets are not checked: their connection IDs do not identify the connection, as
//! quinn's generators do not know the connection for which they make an ID.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use quinn::{Runtime, UdpPoller};

use libp2p_punch_proto::rate_limit::{Rate, Recent, TokenBucket};

/// Moves of one client to IP addresses that are not proven, each worth a PATH_CHALLENGE or two.
pub(crate) const CLIENT_RATE: Rate = Rate { interval: Duration::from_secs(15), burst: 4 };
/// Moves of one client to other ports of its proven IP address. A NAT may cause such a move with
/// each packet after a pause.
const PORT_RATE: Rate = Rate { interval: Duration::from_secs(1), burst: 16 };
/// Moves of all clients to one IP address, or IPv6 /64.
pub(crate) const TARGET_RATE: Rate = Rate { interval: Duration::from_secs(1), burst: 16 };
/// Moves of all clients.
pub(crate) const NODE_RATE: Rate = Rate { interval: Duration::from_millis(20), burst: 256 };
/// Addresses whose rate is remembered: as many as [`NODE_RATE`] lets through until a bucket is full
/// again.
const MAX_TARGETS: usize = 2_048;
/// Time in which datagrams may follow the first datagram to an unproven address. quinn goes back
/// after three PTO (RFC 9000 §8.2.4), which is no less than this for another IP address, and would
/// begin again.
const TRIAL_DURATION: Duration = Duration::from_millis(900);
/// Time in which a client may return without a budget to the address that it left.
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);

/// Budget that the clients of one transport share.
#[derive(Debug)]
pub(crate) struct MoveBudget {
    runtime: Arc<dyn Runtime>,
    refused: AtomicU64,
    node: Mutex<Node>,
}

#[derive(Debug)]
struct Node {
    all: TokenBucket,
    targets: Recent<IpAddr, TokenBucket>,
}

impl MoveBudget {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        let targets = Recent::new(MAX_TARGETS, TARGET_RATE.interval * TARGET_RATE.burst);
        Self {
            runtime,
            refused: AtomicU64::new(0),
            node: Mutex::new(Node { all: TokenBucket::default(), targets }),
        }
    }

    /// Datagrams that were not sent.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Takes one move towards `target`; returns false if too many went there, or to all addresses
    /// together.
    fn take(&self, target: IpAddr, now: Instant) -> bool {
        let target = network_of(target);
        let mut node = lock(&self.node);
        let mut bucket = node.targets.get(&target, now).copied().unwrap_or_default();
        let allowed = bucket.has(TARGET_RATE, now) && node.all.take(NODE_RATE, now);
        if allowed {
            bucket.charge(TARGET_RATE, now);
            node.targets.insert(target, bucket, now);
        }
        allowed
    }
}

/// Returns an IPv4 address, or the /64 of an IPv6 address, since one host may use the whole prefix.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

/// Address of one client, and the address that its packets claim.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    budget: Arc<MoveBudget>,
    state: Mutex<State>,
    /// quinn has made a datagram and not sent it yet.
    is_blocked: AtomicBool,
    /// The connection, once its handshake is done.
    connection: OnceLock<Weak<quinn::Connection>>,
    /// The task that looks if a trial has succeeded.
    follower: AtomicWaker,
    /// Task that reports moves.
    watcher: AtomicWaker,
}

#[derive(Debug)]
struct State {
    /// The last address that was validated.
    proven: SocketAddr,
    /// The proven address before, and the time of the move.
    left: Option<(SocketAddr, Instant)>,
    /// Destination of the last datagram.
    last: SocketAddr,
    trial: Option<Trial>,
    trials: u64,
    /// A task looks at the trial.
    is_followed: bool,
    moves: TokenBucket,
    port_moves: TokenBucket,
}

/// An address that is not proven, to which datagrams go.
#[derive(Debug, Clone, Copy)]
struct Trial {
    number: u64,
    to: SocketAddr,
    since: Instant,
    /// quinn's counters when the trial was last looked at.
    counts: Option<Counts>,
}

/// Datagrams that quinn has made for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    all: u64,
    /// Datagrams that prove nothing about the path: with a PATH_CHALLENGE, which only an
    /// unvalidated path has; with a PATH_RESPONSE, which may go elsewhere; and MTU probes, which do
    /// not depend on the path's validation.
    inconclusive: u64,
}

impl Counts {
    fn of(stats: &quinn::ConnectionStats) -> Self {
        let frames = &stats.frame_tx;
        let inconclusive = frames.path_challenge + frames.path_response + stats.path.sent_plpmtud_probes;
        Self { all: stats.udp_tx.datagrams, inconclusive }
    }

    /// Returns true if a datagram since `earlier` shows that the path is validated. A datagram may
    /// count twice among the inconclusive ones, which delays the proof and never forges it.
    fn show_validation_since(&self, earlier: &Self) -> bool {
        self.all - earlier.all > self.inconclusive - earlier.inconclusive
    }
}

impl Whereabouts {
    /// Creates the state of a client whose handshake proves `address`.
    pub(crate) fn new(address: SocketAddr, budget: Arc<MoveBudget>) -> Self {
        let state = State {
            proven: address,
            left: None,
            last: address,
            trial: None,
            trials: 0,
            is_followed: false,
            moves: TokenBucket::default(),
            port_moves: TokenBucket::default(),
        };
        Self {
            budget,
            state: Mutex::new(state),
            is_blocked: AtomicBool::new(false),
            connection: OnceLock::new(),
            follower: AtomicWaker::new(),
            watcher: AtomicWaker::new(),
        }
    }

    /// The last address that was validated.
    pub(crate) fn proven(&self) -> SocketAddr {
        lock(&self.state).proven
    }

    /// Names the connection, whose handshake is done.
    pub(crate) fn connected(&self, connection: &Arc<quinn::Connection>) {
        // Each client has one connection, so this is the only call.
        let _ = self.connection.set(Arc::downgrade(connection));
    }

    /// Calls `waker` when the client has moved.
    pub(crate) fn register(&self, waker: &Waker) {
        self.watcher.register(waker);
    }

    /// Returns true if a datagram may go to `to`.
    pub(crate) fn may_send(self: &Arc<Self>, to: SocketAddr) -> bool {
        let mut state = lock(&self.state);
        if to == state.proven {
            if state.last != to {
                state.last = to;
                // Later datagrams of quinn prove nothing about the trial.
                state.trial.iter_mut().for_each(|trial| trial.counts = None);
            }
            return true;
        }
        let now = self.budget.runtime.now();
        let goes_on = |trial: &Trial| trial.to == to && now < trial.since + TRIAL_DURATION;
        if state.last != to || !state.trial.as_ref().is_some_and(goes_on) {
            if !self.charge(&mut state, to, now) {
                self.budget.refused.fetch_add(1, Relaxed);
                return false;
            }
            state.trials += 1;
            let counts = state.trial.filter(|trial| trial.to == to && state.last == to);
            let counts = counts.and_then(|trial| trial.counts);
            state.trial = Some(Trial { number: state.trials, to, since: now, counts });
            state.last = to;
        }
        let begins = !std::mem::replace(&mut state.is_followed, true);
        drop(state);
        if begins {
            self.budget.runtime.spawn(Box::pin(follow(Arc::downgrade(self))));
        }
        self.follower.wake();
        true
    }

    fn charge(&self, state: &mut State, to: SocketAddr, now: Instant) -> bool {
        if state.left.is_some_and(|(address, at)| address == to && now < at + RETURN_TIMEOUT) {
            return true;
        }
        if to.ip() == state.proven.ip() {
            return state.port_moves.take(PORT_RATE, now);
        }
        let allowed = state.moves.has(CLIENT_RATE, now) && self.budget.take(to.ip(), now);
        if allowed {
            state.moves.charge(CLIENT_RATE, now);
        }
        allowed
    }

    /// Looks if the address where quinn believes the client is proven by now. Takes the
    /// connection's lock if there is such an address.
    pub(crate) fn look(&self, connection: &quinn::Connection) {
        let Some(trial) = lock(&self.state).trial.filter(|_| !self.is_blocked.load(Relaxed)) else { return };
        let before = connection.remote_address();
        let counts = Counts::of(&connection.stats());
        let stays = before == trial.to && connection.remote_address() == trial.to;
        let is_open = connection.close_reason().is_none() && !self.is_blocked.load(Relaxed);
        let mut state = lock(&self.state);
        let Some(current) = state.trial.as_mut().filter(|current| current.number == trial.number) else {
            return;
        };
        // A closed connection sends its end without a PATH_CHALLENGE.
        if !stays || !is_open {
            state.trial = None;
        } else if current.counts.is_some_and(|earlier| counts.show_validation_since(&earlier)) {
            let now = self.budget.runtime.now();
            state.left = Some((state.proven, now));
            state.proven = trial.to;
            state.trial = None;
            drop(state);
            self.watcher.wake();
        } else {
            current.counts = Some(counts);
        }
    }
}

impl Drop for Whereabouts {
    fn drop(&mut self) {
        self.follower.wake();
    }
}

/// Looks at a trial whenever quinn has sent something, until the trial has ended or the client is
/// gone.
async fn follow(client: Weak<Whereabouts>) {
    poll_fn(|cx| {
        let Some(client) = client.upgrade() else { return Poll::Ready(()) };
        client.follower.register(cx.waker());
        if let Some(connection) = client.connection.get().and_then(Weak::upgrade) {
            client.look(&connection);
        }
        let mut state = lock(&client.state);
        state.is_followed = state.trial.is_some();
        if state.is_followed { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

thread_local! {
    /// Owner of the next poller that quinn makes: an accepted or a dialed connection.
    static OPENING: RefCell<Option<Owner>> = const { RefCell::new(None) };
    /// Client of the next datagram that quinn sends.
    static SENDING: Cell<Option<Arc<Whereabouts>>> = const { Cell::new(None) };
    /// The owner of a poller that quinn made without being asked to open a connection.
    static ORPHAN: Cell<Option<Arc<OnceLock<Owner>>>> = const { Cell::new(None) };
}

/// The client of a connection; `None` if we dialed it.
type Owner = Option<Arc<Whereabouts>>;

/// Runs `open`, which creates a quinn connection on this thread.
pub(super) fn while_opening<T>(owner: Owner, open: impl FnOnce() -> T) -> T {
    /// Ends the scope also when `open` unwinds.
    struct Scope;
    impl Drop for Scope {
        fn drop(&mut self) {
            OPENING.set(None);
        }
    }
    let _scope = Scope;
    OPENING.set(Some(owner));
    open()
}

/// Returns true if the datagram that quinn sends on this thread may go to `to`.
pub(super) fn may_send(to: SocketAddr) -> bool {
    SENDING.take().is_none_or(|client| client.may_send(to))
}

/// Poller that identifies the client of a connection's datagrams.
///
/// When an endpoint gets another socket, quinn makes a new poller for each connection and drops the
/// old one at once. The old one then leaves its owner to the new one.
pub(super) struct ClientPoller {
    inner: Pin<Box<dyn UdpPoller>>,
    owner: Arc<OnceLock<Owner>>,
}

impl ClientPoller {
    pub(super) fn new(inner: Pin<Box<dyn UdpPoller>>) -> Self {
        let owner = Arc::new(OnceLock::new());
        match OPENING.with_borrow_mut(Option::take) {
            Some(known) => drop(owner.set(known)),
            None => ORPHAN.set(Some(owner.clone())),
        }
        Self { inner, owner }
    }

    fn client(&self) -> Option<&Arc<Whereabouts>> {
        self.owner.get()?.as_ref()
    }
}

impl UdpPoller for ClientPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.inner.as_mut().poll_writable(cx);
        if let Some(client) = self.client() {
            client.is_blocked.store(polled.is_pending(), Relaxed);
            if polled.is_ready() {
                SENDING.set(Some(client.clone()));
            }
        }
        polled
    }
}

impl Drop for ClientPoller {
    fn drop(&mut self) {
        // The thread may be ending, and its variables with it.
        let heir = ORPHAN.try_with(Cell::take).ok().flatten();
        if let (Some(heir), Some(owner)) = (heir, self.owner.get()) {
            // The heir has no owner yet: it was made a moment ago.
            let _ = heir.set(owner.clone());
        }
    }
}

impl fmt::Debug for ClientPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientPoller").field("is_client", &self.client().is_some()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
