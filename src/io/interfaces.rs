//! The machine's interface addresses, kept up to date by one task for all readers.
//!
//! The task watches [`Network::interfaces`]. A watcher may end, and may miss events:
//!
//! | fault | reaction of the task |
//! |---|---|
//! | the watcher cannot be started, as without netlink | reports it, polls every [`POLL_INTERVAL`], and tries to start it again |
//! | the watcher ends, or returns an error | reports it, starts another with back-off, and drops what the new one does not know |
//! | the watcher loses events, as when netlink overruns | lists the addresses every [`AUDIT_INTERVAL`], where the network can list them |
//!
//! Where addresses cannot be listed either, the addresses from which the routing table sends take
//! their place.
//!
//! The task publishes the whole set of addresses. Each [`InterfaceWatch`] compares it with what it
//! has reported, so that a slow reader has no backlog. The task ends with the last reader; readers
//! end with the task, that is with the runtime.

use std::{
    collections::BTreeMap,
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use quinn::Runtime;
use tokio::sync::watch;

use super::{InterfaceEvent, Interfaces, Network};

/// Interval of the checks of the addresses while nothing watches them.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Interval of the checks while a watcher works.
const AUDIT_INTERVAL: Duration = Duration::from_secs(5);
/// The time that a new watcher has to report the addresses that are there.
const FIRST_REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// The time for which the addresses that a dead watcher has reported are trusted, unless another
/// watcher knows better.
const DEAD_WATCHER_LIFETIME: Duration = Duration::from_secs(10);
/// The delay before the first restart of a watcher. It doubles up to [`MAX_RETRY`].
const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Events of the watcher that are taken before the result is published.
const BATCH: usize = 1024;
/// Destinations that show which address the routing table would send from. Nothing is sent to them:
/// these are the networks for documentation (RFC 5737, RFC 3849) and loopback.
const ROUTES: [&[IpAddr]; 4] = [
    &[IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1))],
    &[IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))],
    &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
    &[IpAddr::V6(Ipv6Addr::LOCALHOST)],
];

/// Each address with the length of its network's prefix.
type Addresses = BTreeMap<IpAddr, u8>;

/// A fault of the watcher, numbered so that each reader reports it once.
#[derive(Debug, Clone)]
struct Fault {
    number: u64,
    error: Arc<io::Error>,
}

#[derive(Debug, Clone, Default)]
struct State {
    addresses: Addresses,
    /// The last fault, while the watcher has not recovered from it.
    fault: Option<Fault>,
}

/// Difference between the state that a reader has seen and the present state.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Addresses that are gone.
    pub(crate) down: Vec<IpAddr>,
    /// Addresses that are new, each with the length of its prefix.
    pub(crate) up: Vec<(IpAddr, u8)>,
    /// The reason why interfaces cannot be watched.
    pub(crate) fault: Option<Arc<io::Error>>,
}

/// Reader of the interface addresses.
pub(crate) struct InterfaceWatch {
    receiver: watch::Receiver<State>,
    states: BoxStream<'static, State>,
    known: Addresses,
    fault: Option<Fault>,
}

impl InterfaceWatch {
    /// Looks which addresses there are, and spawns the task on `runtime`, within which this is
    /// called.
    pub(crate) fn start(network: Arc<dyn Network>, runtime: Arc<dyn Runtime>) -> Self {
        let (sender, receiver) = watch::channel(State::default());
        let mut keeper = Keeper::new(network, runtime.clone());
        // The addresses at the start are known before the first change.
        keeper.start_if_due();
        keeper.take_ready_events();
        keeper.publish(&sender);
        runtime.spawn(Box::pin(keeper.run(sender)));
        Self::new(receiver)
    }

    fn new(mut receiver: watch::Receiver<State>) -> Self {
        let other = receiver.clone();
        receiver.mark_changed();
        let states = stream::unfold(receiver, |mut receiver| async move {
            receiver.changed().await.ok()?;
            let state = receiver.borrow_and_update().clone();
            Some((state, receiver))
        });
        Self { receiver: other, states: states.boxed(), known: Addresses::new(), fault: None }
    }

    /// Another reader of the same task, which has seen nothing yet.
    pub(crate) fn subscribe(&self) -> Self {
        Self::new(self.receiver.clone())
    }

    /// The addresses that this reader was given.
    pub(crate) fn known(&self) -> impl Iterator<Item = IpAddr> {
        self.known.keys().copied()
    }

    /// The fault that this reader was given, until the watcher has recovered from it.
    pub(crate) fn fault(&self) -> Option<Arc<io::Error>> {
        self.fault.as_ref().map(|fault| fault.error.clone())
    }

    /// Waits for a change. `None` means that the task has ended with its runtime: there will be no
    /// other change.
    pub(crate) fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Option<Change>> {
        loop {
            match self.states.poll_next_unpin(cx) {
                Poll::Ready(Some(state)) => {
                    if let Some(change) = self.compare(state) {
                        return Poll::Ready(Some(change));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn compare(&mut self, state: State) -> Option<Change> {
        let State { addresses, fault } = state;
        let same = |(address, length): (&IpAddr, &u8), other: &Addresses| other.get(address) == Some(length);
        let down = self.known.iter().filter(|entry| !same(*entry, &addresses)).map(|(ip, _)| *ip).collect();
        let up = addresses
            .iter()
            .filter(|entry| !same(*entry, &self.known))
            .map(|(ip, length)| (*ip, *length))
            .collect();
        let number = |fault: &Option<Fault>| fault.as_ref().map(|fault| fault.number);
        let news = fault.clone().filter(|_| number(&fault) != number(&self.fault)).map(|fault| fault.error);
        self.known = addresses;
        self.fault = fault;
        let change = Change { down, up, fault: news };
        let is_empty = change.down.is_empty() && change.up.is_empty() && change.fault.is_none();
        (!is_empty).then_some(change)
    }
}

impl fmt::Debug for InterfaceWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterfaceWatch").field("known", &self.known).finish_non_exhaustive()
    }
}

/// The task.
struct Keeper {
    network: Arc<dyn Network>,
    runtime: Arc<dyn Runtime>,
    watcher: Option<Watcher>,
    /// The delay before the next restart, and when that is due.
    retry: (Duration, Instant),
    fault: Option<Fault>,
    faults: u64,
    announced: Addresses,
    /// The time at which a watcher was last at work.
    watched: Option<Instant>,
    /// The network can list its addresses.
    lists: bool,
}

/// A watcher that works, as far as is known.
struct Watcher {
    events: Interfaces,
    since: Instant,
    /// The addresses that it has reported.
    told: Addresses,
}

enum Woken {
    /// All readers are gone.
    Abandoned,
    Event(Option<io::Result<InterfaceEvent>>),
    Due,
}

impl Keeper {
    fn new(network: Arc<dyn Network>, runtime: Arc<dyn Runtime>) -> Self {
        let now = runtime.now();
        Self {
            network,
            runtime,
            watcher: None,
            retry: (MIN_RETRY, now),
            fault: None,
            faults: 0,
            announced: Addresses::new(),
            watched: None,
            lists: true,
        }
    }

    async fn run(mut self, sender: watch::Sender<State>) {
        loop {
            self.start_if_due();
            // A watcher has the addresses of the start ready, or learns of them soon.
            if !self.take_ready_events() {
                tokio::task::yield_now().await;
            }
            self.publish(&sender);
            match self.wait(&sender).await {
                Woken::Abandoned => return,
                Woken::Event(event) => self.on_event(event),
                Woken::Due => {}
            }
        }
    }

    async fn wait(&mut self, sender: &watch::Sender<State>) -> Woken {
        let mut timer = self.next_look().map(|at| self.runtime.new_timer(at));
        let mut abandoned = pin!(sender.closed());
        poll_fn(|cx| {
            if abandoned.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Woken::Abandoned);
            }
            if let Some(watcher) = &mut self.watcher
                && let Poll::Ready(event) = watcher.events.poll_next_unpin(cx)
            {
                return Poll::Ready(Woken::Event(event));
            }
            match &mut timer {
                Some(timer) => timer.as_mut().poll(cx).map(|()| Woken::Due),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn next_look(&self) -> Option<Instant> {
        let now = self.runtime.now();
        match &self.watcher {
            None => Some(self.retry.1.min(now + POLL_INTERVAL)),
            Some(_) if self.lists => Some(now + AUDIT_INTERVAL),
            Some(watcher) => Some(watcher.since + FIRST_REPORT_TIMEOUT).filter(|at| *at > now),
        }
    }

    fn start_if_due(&mut self) {
        let now = self.runtime.now();
        if self.watcher.is_some() || now < self.retry.1 {
            return;
        }
        match self.network.interfaces() {
            Ok(events) => self.watcher = Some(Watcher { events, since: now, told: Addresses::new() }),
            Err(error) => self.failed(error),
        }
    }

    /// Takes the events that are there; false if there may be more.
    fn take_ready_events(&mut self) -> bool {
        for _ in 0..BATCH {
            let next = self.watcher.as_mut().and_then(|watcher| watcher.events.next().now_or_never());
            match next {
                Some(event) => self.on_event(event),
                None => return true,
            }
        }
        false
    }

    fn on_event(&mut self, event: Option<io::Result<InterfaceEvent>>) {
        match event {
            Some(Ok(event)) => {
                let Some(Watcher { told, .. }) = &mut self.watcher else { return };
                match event {
                    InterfaceEvent::Up(address) => told.insert(address.ip, address.prefix_len),
                    InterfaceEvent::Down(address) => {
                        self.announced.remove(&address.ip);
                        told.remove(&address.ip)
                    }
                };
            }
            Some(Err(error)) => self.failed(error),
            None => self.failed(io::Error::new(io::ErrorKind::UnexpectedEof, "the watcher has ended")),
        }
    }

    /// Notes that there is no watcher, reports it unless that is known, and sets the time of the
    /// next start.
    fn failed(&mut self, error: io::Error) {
        let now = self.runtime.now();
        if let Some(watcher) =
            self.watcher.take().filter(|watcher| now > watcher.since + FIRST_REPORT_TIMEOUT)
        {
            self.watched = Some(now);
            if now > watcher.since + MAX_RETRY {
                self.retry.0 = MIN_RETRY;
            }
        }
        let (delay, due) = &mut self.retry;
        *due = now + *delay;
        *delay = (*delay * 2).min(MAX_RETRY);
        if self.fault.is_none() {
            tracing::warn!(%error, "interfaces cannot be watched, their addresses are polled");
            self.faults += 1;
            let context = format!("interfaces cannot be watched: {error}");
            let error = Arc::new(io::Error::new(error.kind(), context));
            self.fault = Some(Fault { number: self.faults, error });
        }
    }

    fn publish(&mut self, sender: &watch::Sender<State>) {
        let now = self.runtime.now();
        if self.fault.is_some()
            && self.watcher.as_ref().is_some_and(|watcher| now >= watcher.since + FIRST_REPORT_TIMEOUT)
        {
            tracing::info!("interfaces are watched again");
            self.fault = None;
        }
        self.announced = self.current();
        let number = |fault: &Option<Fault>| fault.as_ref().map(|fault| fault.number);
        sender.send_if_modified(|state| {
            let is_news = state.addresses != self.announced || number(&state.fault) != number(&self.fault);
            if is_news {
                *state = State { addresses: self.announced.clone(), fault: self.fault.clone() };
            }
            is_news
        });
    }

    /// Returns the addresses, from the best source.
    fn current(&mut self) -> Addresses {
        let listed = if self.lists { self.network.addresses() } else { Err(unsupported()) };
        match (listed, &self.watcher) {
            (Ok(addresses), _) => {
                return addresses.into_iter().map(|address| (address.ip, address.prefix_len)).collect();
            }
            (Err(error), _) if error.kind() == io::ErrorKind::Unsupported => self.lists = false,
            (Err(_), _) => {}
        }
        match &self.watcher {
            // A new watcher may not have reported all that is there.
            Some(watcher) if self.runtime.now() < watcher.since + FIRST_REPORT_TIMEOUT => {
                let mut addresses = self.announced.clone();
                addresses.extend(&watcher.told);
                addresses
            }
            Some(watcher) => watcher.told.clone(),
            None if self.watched.is_some_and(|at| self.runtime.now() < at + DEAD_WATCHER_LIFETIME) => {
                self.announced.clone()
            }
            None => self.routes(),
        }
    }

    /// The addresses from which the routing table sends.
    fn routes(&self) -> Addresses {
        let source = |destinations: &&[IpAddr]| {
            destinations.iter().find_map(|destination| self.network.source_for(*destination).ok())
        };
        let usable = ROUTES.iter().filter_map(source).filter(|source| !source.is_unspecified());
        usable.map(|source| (source, if source.is_ipv4() { 32 } else { 128 })).collect()
    }
}

fn unsupported() -> io::Error {
    io::ErrorKind::Unsupported.into()
}
