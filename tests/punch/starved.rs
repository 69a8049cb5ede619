//! Dials of peers of which many other addresses are known, which the swarm tries first, a few at a
//! time.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, allow_block_list,
    core::transport::{DialOpts as TransportOpts, ListenerId, TransportError, TransportEvent},
    kad,
    multiaddr::Protocol,
    swarm::{NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
};
use libp2p_punch::{Behaviour, Config, Event, RegistrationEvent, SessionEvent, Transport};
use libp2p_punch_sim::{Host, World};
use tokio::time::{Instant, sleep};

use crate::network::{
    NEVER, Site, client, coordinator, listening, on_paused_time, parts, registered, run, swarm, until,
};

type Kad = kad::Behaviour<kad::store::MemoryStore>;

#[derive(NetworkBehaviour)]
struct KadFirst {
    kad: Kad,
    punch: Behaviour,
}

impl AsMut<Kad> for KadFirst {
    fn as_mut(&mut self) -> &mut Kad {
        &mut self.kad
    }
}

#[derive(NetworkBehaviour)]
struct PunchFirst {
    punch: Behaviour,
    kad: Kad,
}

impl AsMut<Kad> for PunchFirst {
    fn as_mut(&mut self) -> &mut Kad {
        &mut self.kad
    }
}

#[derive(NetworkBehaviour)]
struct Blocking {
    punch: Behaviour,
    blocked: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
}

/// Time-out of the TCP transport of [`Wrapped`] for an answer.
const TCP_TIMEOUT: Duration = Duration::from_secs(20);

/// Our transport inside another transport that supports TCP, whose dials get no answer.
struct Wrapped {
    inner: Arc<Mutex<Transport>>,
    /// The transport dials when the dial is polled, as libp2p-dns does.
    is_lazy: bool,
}

/// Returns the result of a dial by our transport.
async fn dialed(
    dial: Result<<Wrapped as libp2p::core::Transport>::Dial, TransportError<libp2p_punch::Error>>,
) -> Result<<Wrapped as libp2p::core::Transport>::Output, libp2p_punch::Error> {
    match dial {
        Ok(dial) => dial.await,
        Err(TransportError::Other(error)) => Err(error),
        Err(TransportError::MultiaddrNotSupported(address)) => panic!("dialed {address}"),
    }
}

impl libp2p::core::Transport for Wrapped {
    type Output = <Transport as libp2p::core::Transport>::Output;
    type Error = libp2p_punch::Error;
    type ListenerUpgrade = <Transport as libp2p::core::Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.lock().expect("not poisoned").listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.lock().expect("not poisoned").remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        opts: TransportOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        if address.iter().any(|part| matches!(part, Protocol::Tcp(_))) {
            return Ok(async {
                sleep(TCP_TIMEOUT).await;
                Err(libp2p_punch::Error::HandshakeTimedOut)
            }
            .boxed());
        }
        if !self.is_lazy {
            return self.inner.lock().expect("not poisoned").dial(address, opts);
        }
        let inner = self.inner.clone();
        Ok(async move {
            let dial = inner.lock().expect("not poisoned").dial(address, opts);
            dialed(dial).await
        }
        .boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut *self.inner.lock().expect("not poisoned")).poll(cx)
    }
}

fn wrapped<B: NetworkBehaviour>(
    host: &Arc<Host>,
    is_lazy: bool,
    config: Config,
    behaviour: impl FnOnce(Behaviour, PeerId) -> B,
) -> Swarm<B> {
    let (keypair, transport, punch) = parts(host, 1, config);
    let own = keypair.public().to_peer_id();
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| Wrapped { inner: Arc::new(Mutex::new(transport)), is_lazy })
        .expect("it is a transport")
        .with_behaviour(|_| behaviour(punch, own))
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
        .with_connection_timeout(NEVER)
        .build();
    listening(swarm)
}

/// Returns addresses without a host.
fn stale(count: u8, protocols: &str) -> Vec<Multiaddr> {
    let address = |n| format!("/ip4/198.51.100.{}/{protocols}", 100 + n).parse().expect("valid");
    (1..=count).map(address).collect()
}

const QUIC: &str = "udp/4001/quic-v1";
const TCP: &str = "tcp/4001";

/// A peer that is registered, and the host of another one.
async fn two(world: &World) -> (PeerId, Arc<Host>, Multiaddr) {
    let (_, address) = coordinator(world);
    let mut listener = swarm(&Site::EIM_APDF.host(world, 2, 0.0), 2, client(&address), |punch, _| punch);
    registered(&mut listener).await;
    (run(listener), Site::EIM_APDF.host(world, 1, 0.0), address)
}

/// Outcome of a dial of a peer within a minute.
#[derive(Debug, Default)]
struct Outcome {
    first_after: Option<Duration>,
    connections: usize,
    errors: Vec<String>,
}

async fn outcome<B: NetworkBehaviour>(swarm: &mut Swarm<B>, peer: PeerId) -> Outcome {
    let (begin, mut outcome) = (Instant::now(), Outcome::default());
    let end = sleep(Duration::from_secs(60));
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return outcome,
            event = swarm.select_next_some() => match event {
                SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => {
                    outcome.first_after.get_or_insert(begin.elapsed());
                    outcome.connections += 1;
                }
                SwarmEvent::OutgoingConnectionError { peer_id: Some(id), error, .. } if id == peer => {
                    outcome.errors.push(error.to_string());
                }
                _ => {}
            },
        }
    }
}

/// Dials a peer of which these addresses are known.
fn dial(addresses: Vec<Multiaddr>) -> Outcome {
    on_paused_time(async move {
        let world = World::new(1);
        let (peer, host, address) = two(&world).await;
        let mut dialer = wrapped(&host, false, client(&address), |punch, _| punch);
        registered(&mut dialer).await;
        let opts = DialOpts::peer_id(peer).addresses(addresses).extend_addresses_through_behaviour();
        dialer.dial(opts.build()).expect("not dialed yet");
        outcome(&mut dialer, peer).await
    })
}

/// Checks that a dial takes as long as without any other address; the clock counts milliseconds.
fn assert_prompt(outcome: &Outcome, baseline: &Outcome) {
    let limit = baseline.first_after.expect("connected") + Duration::from_millis(10);
    assert!(outcome.first_after.is_some_and(|after| after <= limit), "{outcome:?}, {limit:?}");
}

#[test]
fn stale_addresses_do_not_delay_a_traversal() {
    let baseline = dial(Vec::new());
    assert_eq!((baseline.connections, baseline.errors.len()), (1, 0), "{baseline:?}");
    for count in [7, 8, 16, 24, 40] {
        let starved = dial(stale(count, QUIC));
        assert_prompt(&starved, &baseline);
        assert_eq!((starved.connections, starved.errors.len()), (1, 0), "{count}: {starved:?}");
    }
}

#[test]
fn silent_addresses_of_another_transport_do_not_delay_a_traversal() {
    let baseline = dial(Vec::new());
    let one_behind = dial(stale(7, TCP));
    assert_prompt(&one_behind, &baseline);
    assert_eq!((one_behind.connections, one_behind.errors.len()), (1, 0), "{one_behind:?}");
    // The behaviour collects the connection. The dial itself goes on until the TCP addresses have
    // failed, and connects too.
    for (count, connections) in [(8, 2), (40, 1)] {
        let starved = dial(stale(count, TCP));
        assert_prompt(&starved, &baseline);
        assert_eq!((starved.connections, starved.errors.len()), (connections, 0), "{count}: {starved:?}");
    }
}

fn with_kad<B>(addresses: Vec<Multiaddr>, is_lazy: bool, combine: fn(Behaviour, Kad) -> B) -> Outcome
where
    B: NetworkBehaviour + AsMut<Kad>,
{
    on_paused_time(async move {
        let world = World::new(1);
        let (peer, host, address) = two(&world).await;
        let mut dialer = wrapped(&host, is_lazy, client(&address), |punch, own| {
            combine(punch, Kad::new(own, kad::store::MemoryStore::new(own)))
        });
        // Long enough to be registered.
        let settled = sleep(Duration::from_secs(3));
        tokio::pin!(settled);
        while tokio::select! { () = &mut settled => false, _ = dialer.select_next_some() => true } {}
        // Kademlia dials newly learned peers by itself, half a second later.
        for address in addresses {
            dialer.behaviour_mut().as_mut().add_address(&peer, address);
        }
        dialer.dial(peer).expect("not dialed yet");
        outcome(&mut dialer, peer).await
    })
}

#[test]
fn the_order_of_behaviours_does_not_matter() {
    let baseline = with_kad(Vec::new(), false, |punch, kad| KadFirst { kad, punch });
    for (count, is_lazy) in [(8, false), (16, true), (40, false)] {
        for starved in [
            with_kad(stale(count, QUIC), is_lazy, |punch, kad| KadFirst { kad, punch }),
            with_kad(stale(count, QUIC), is_lazy, |punch, kad| PunchFirst { punch, kad }),
        ] {
            assert_prompt(&starved, &baseline);
            assert_eq!((starved.connections, starved.errors.len()), (1, 0), "{count}: {starved:?}");
        }
    }
    let silent = with_kad(stale(40, TCP), true, |punch, kad| KadFirst { kad, punch });
    assert_prompt(&silent, &baseline);
    assert_eq!((silent.connections, silent.errors.len()), (1, 0), "{silent:?}");
}

#[test]
fn a_dial_that_another_behaviour_denies_begins_no_session() {
    on_paused_time(async {
        let world = World::new(1);
        let (peer, host, address) = two(&world).await;
        let mut dialer = swarm(&host, 1, client(&address), |punch, _| Blocking {
            punch,
            blocked: allow_block_list::Behaviour::default(),
        });
        until(&mut dialer, |event| {
            matches!(
                event,
                SwarmEvent::Behaviour(BlockingEvent::Punch(Event::Registration(
                    RegistrationEvent::Accepted { .. }
                )))
            )
            .then_some(())
        })
        .await;
        dialer.behaviour_mut().blocked.block_peer(peer);
        assert!(dialer.dial(peer).is_err());
        let end = sleep(Duration::from_secs(30));
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                event = dialer.select_next_some() => {
                    let is_session = matches!(
                        event,
                        SwarmEvent::Behaviour(BlockingEvent::Punch(Event::Session(SessionEvent::Phase { .. }) | Event::Session(SessionEvent::Failed { .. })))
                    );
                    assert!(!is_session, "{event:?}");
                }
            }
        }
    });
}
