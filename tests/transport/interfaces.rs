//! Watchers of the interfaces that fail, and listeners that follow the addresses all the same.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use futures::{StreamExt, stream};
use libp2p_core::transport::TransportEvent;
use libp2p_punch::io::{InterfaceAddress, Interfaces, Network, UdpSocket};
use libp2p_punch_sim::{Host, World};
use tokio::time::{Instant, timeout_at};

use super::support::*;

const BEFORE: [u8; 4] = [203, 0, 113, 1];
const AFTER: [u8; 4] = [203, 0, 113, 9];
const WILDCARD: &str = "/ip4/0.0.0.0/udp/4001/quic-v1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watcher {
    /// The watcher cannot be started, as without netlink.
    Unsupported,
    /// The watcher ends after it has reported the present addresses.
    Ends,
    /// The watcher returns only errors after it has reported the present addresses.
    Errs,
    /// The watcher loses all changes, as after an overrun. The network lists its addresses, as an
    /// operating system does.
    Overruns,
}

/// A simulated host whose watcher has a fault.
#[derive(Debug)]
struct Faulty {
    host: Arc<Host>,
    watcher: Watcher,
    /// The number of watchers that may fail. Later ones work.
    faults: usize,
    started: AtomicUsize,
}

impl Network for Faulty {
    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.host.bind(address)
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        let works = self.host.interfaces()?;
        if self.started.fetch_add(1, Relaxed) >= self.faults {
            return Ok(works);
        }
        let present: Vec<_> = works.take(self.host.addresses().len()).collect().now_or_never().unwrap();
        let present = stream::iter(present);
        match self.watcher {
            Watcher::Unsupported => Err(io::Error::new(io::ErrorKind::Unsupported, "address family")),
            Watcher::Ends => Ok(present.boxed()),
            Watcher::Errs => {
                let errors = stream::repeat_with(|| Err(io::Error::new(io::ErrorKind::BrokenPipe, "closed")));
                Ok(present.chain(errors).boxed())
            }
            Watcher::Overruns => Ok(present.chain(stream::pending()).boxed()),
        }
    }

    fn addresses(&self) -> io::Result<Vec<InterfaceAddress>> {
        let address = |ip: IpAddr| InterfaceAddress { ip, prefix_len: if ip.is_ipv4() { 32 } else { 128 } };
        match self.watcher {
            Watcher::Overruns => Ok(self.host.addresses().into_iter().map(address).collect()),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        self.host.source_for(destination)
    }
}

fn faulty(watcher: Watcher, faults: usize) -> (Arc<Faulty>, Transport) {
    let host = World::new(1).public_host(BEFORE);
    let network = Arc::new(Faulty { host, watcher, faults, started: AtomicUsize::new(0) });
    let keypair = Keypair::generate_ed25519();
    let runtime = libp2p_punch::io::Runtime::tokio();
    let transport = Transport::with_io(&keypair, Config::default(), network.clone(), runtime).unwrap();
    (network, transport)
}

/// The addresses that stay announced, and the errors that were reported, by the end of a time.
#[derive(Debug, Default)]
struct Seen {
    addresses: Vec<String>,
    errors: Vec<String>,
}

impl Seen {
    async fn follow(&mut self, transport: &mut Transport, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(event) = timeout_at(end, next(transport)).await {
            match event {
                TransportEvent::NewAddress { listen_addr, .. } => {
                    self.addresses.push(listen_addr.to_string())
                }
                TransportEvent::AddressExpired { listen_addr, .. } => {
                    self.addresses.retain(|known| *known != listen_addr.to_string());
                }
                TransportEvent::ListenerError { error, .. } => self.errors.push(error.to_string()),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The addresses without loopback.
    fn global(&self) -> Vec<&str> {
        self.addresses.iter().map(String::as_str).filter(|address| !address.contains("127.0.0.1")).collect()
    }
}

fn at(address: [u8; 4]) -> String {
    format!("/ip4/{}/udp/4001/quic-v1", Ipv4Addr::from(address))
}

/// Listens while the host moves twice, and returns what the listener reported.
async fn follow_a_moving_host(watcher: Watcher, faults: usize) -> (Seen, usize) {
    let (network, mut transport) = faulty(watcher, faults);
    transport.listen_on(ListenerId::next(), WILDCARD.parse().unwrap()).unwrap();
    let mut seen = Seen::default();
    seen.follow(&mut transport, Duration::from_secs(1)).await;
    assert_eq!(seen.global(), [at(BEFORE)]);
    network.host.renumber(BEFORE, AFTER);
    seen.follow(&mut transport, Duration::from_secs(15)).await;
    assert_eq!(seen.global(), [at(AFTER)]);
    network.host.renumber(AFTER, [203, 0, 113, 17]);
    seen.follow(&mut transport, Duration::from_secs(600)).await;
    assert_eq!(seen.global(), [at([203, 0, 113, 17])]);
    (seen, network.started.load(Relaxed))
}

#[tokio::test(start_paused = true)]
async fn without_a_watcher_listeners_follow_the_address_of_the_route() {
    let (seen, started) = follow_a_moving_host(Watcher::Unsupported, usize::MAX).await;
    assert_eq!(seen.errors, ["interfaces cannot be watched: address family"]);
    assert!((10..30).contains(&started), "{started} starts");
}

#[tokio::test(start_paused = true)]
async fn without_a_watcher_a_listener_at_one_address_works_and_is_reached() {
    let (network, mut transport) = faulty(Watcher::Unsupported, usize::MAX);
    let address = listen(&mut transport, &at(BEFORE)).await;
    let mut dialer = Transport::with_io(
        &Keypair::generate_ed25519(),
        Config::default(),
        network,
        libp2p_punch::io::Runtime::tokio(),
    )
    .unwrap();
    connect(&mut transport, &mut dialer, address, PLAIN).await;
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_ends_is_started_again() {
    let (seen, started) = follow_a_moving_host(Watcher::Ends, 3).await;
    assert_eq!(seen.errors, ["interfaces cannot be watched: the watcher has ended"]);
    assert_eq!(started, 4);
}

#[tokio::test(start_paused = true)]
async fn watchers_that_end_again_and_again_are_started_ever_less_often() {
    let (seen, started) = follow_a_moving_host(Watcher::Ends, usize::MAX).await;
    assert_eq!(seen.errors, ["interfaces cannot be watched: the watcher has ended"]);
    assert!((10..30).contains(&started), "{started} starts");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_returns_nothing_but_errors_does_not_keep_the_transport_busy() {
    let (seen, started) = follow_a_moving_host(Watcher::Errs, usize::MAX).await;
    assert_eq!(seen.errors, ["interfaces cannot be watched: closed"]);
    assert!((10..30).contains(&started), "{started} starts");
}

#[tokio::test(start_paused = true)]
async fn what_a_watcher_lost_in_an_overrun_is_found_in_the_list_of_addresses() {
    let (seen, started) = follow_a_moving_host(Watcher::Overruns, usize::MAX).await;
    assert_eq!((seen.errors.len(), started), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn many_addresses_that_come_and_go_during_an_overrun_leave_only_the_real_one() {
    let (network, mut transport) = faulty(Watcher::Overruns, usize::MAX);
    transport.listen_on(ListenerId::next(), WILDCARD.parse().unwrap()).unwrap();
    let mut seen = Seen::default();
    let mut before = BEFORE;
    for last in 2..=250 {
        network.host.renumber(before, [203, 0, 113, last]);
        before = [203, 0, 113, last];
        if last % 50 == 0 {
            seen.follow(&mut transport, Duration::from_secs(6)).await;
        }
    }
    seen.follow(&mut transport, Duration::from_secs(6)).await;
    assert_eq!(seen.global(), [at([203, 0, 113, 250])]);
}

#[test]
fn a_transport_whose_runtime_has_ended_returns_from_its_poll() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut transport = runtime.block_on(async {
        let mut transport = new().1;
        listen(&mut transport, "/ip4/0.0.0.0/udp/0/quic-v1").await;
        transport
    });
    runtime.shutdown_timeout(PATIENCE);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    // Each address, and the end of the listener, may be reported once.
    let mut events = 0;
    while Pin::new(&mut transport).poll(&mut cx).is_ready() {
        events += 1;
        assert!(events < 1_000, "the transport reports events without an end");
    }
}
