//! Behaviours of rust-libp2p on our transport, without ours and together with ours.

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
    dcutr, identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    yamux,
};
use libp2p_punch::{
    Config, Transport,
    transport::{Connection, Error, Upgrade},
};
use libp2p_punch_sim::{Host, Link, Trace, World};

use crate::{
    dcutr::PATIENCE,
    network::{NEVER, PORT, Site, client, coordinator, on_paused_time, until},
};

#[derive(NetworkBehaviour)]
struct RelayServer {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
}

#[derive(NetworkBehaviour)]
struct Stock {
    relay: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes make a key")
}

pub(crate) fn identify(keypair: &Keypair) -> identify::Behaviour {
    identify::Behaviour::new(identify::Config::new("/test/1".to_owned(), keypair.public()))
}

fn listen<B: NetworkBehaviour>(mut swarm: Swarm<B>) -> Swarm<B> {
    swarm
        .listen_on(format!("/ip4/0.0.0.0/udp/{PORT}/quic-v1").parse().expect("valid"))
        .expect("port is free");
    swarm
}

fn transport(host: &Arc<Host>, keypair: &Keypair) -> Transport {
    let runtime = libp2p_punch::io::Runtime::tokio();
    Transport::with_io(keypair, Config::default(), host.clone(), runtime).expect("valid")
}

/// A Circuit Relay v2 at 203.0.113.200, which runs until the runtime ends.
fn relay_server(world: &World) -> Multiaddr {
    let host = world.public_host([203, 0, 113, 200]);
    world.set_link(&host, Link::with_latency(Duration::from_millis(10)));
    let keypair = key(200);
    let address: Multiaddr = format!("/ip4/203.0.113.200/udp/{PORT}/quic-v1").parse().expect("valid");
    let mut swarm = listen(
        SwarmBuilder::with_existing_identity(keypair.clone())
            .with_tokio()
            .with_other_transport(|_| transport(&host, &keypair))
            .expect("it is a transport")
            .with_behaviour(|keypair| RelayServer {
                relay: relay::Behaviour::new(keypair.public().to_peer_id(), relay::Config::default()),
                identify: identify(keypair),
            })
            .expect("it is a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
            .with_connection_timeout(NEVER)
            .build(),
    );
    swarm.add_external_address(address.clone());
    let address = address.with(Protocol::P2p(*swarm.local_peer_id()));
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    address
}

/// A peer with `libp2p-dcutr` and without our behaviour.
fn stock(world: &World, number: u8) -> Swarm<Stock> {
    stock_on(world, number, |_, transport| transport)
}

/// A peer with `libp2p-dcutr`, without our behaviour, and with a changed transport of ours.
fn stock_on<T>(world: &World, number: u8, change: impl FnOnce(Arc<Host>, Transport) -> T) -> Swarm<Stock>
where
    T: libp2p::core::Transport<Output = (PeerId, Connection)> + Send + Unpin + 'static,
    T::Error: Send + Sync,
    T::Dial: Send,
    T::ListenerUpgrade: Send,
{
    let host = Site::EIM_APDF.host(world, number, 0.0);
    let keypair = key(number);
    listen(
        SwarmBuilder::with_existing_identity(keypair.clone())
            .with_tokio()
            .with_other_transport(|_| change(host.clone(), transport(&host, &keypair)))
            .expect("it is a transport")
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .expect("it is a relay client")
            .with_behaviour(|keypair, relay| Stock {
                relay,
                dcutr: dcutr::Behaviour::new(keypair.public().to_peer_id()),
                identify: identify(keypair),
                ping: ping::Behaviour::default(),
            })
            .expect("it is a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
            .with_connection_timeout(NEVER)
            .build(),
    )
}

/// Connects to the relay and waits until it has reported our address, which dcutr announces.
async fn meet(swarm: &mut Swarm<Stock>, relay: &Multiaddr) {
    swarm.dial(relay.clone()).expect("not dialed yet");
    until(swarm, |event| {
        let SwarmEvent::Behaviour(StockEvent::Identify(identify::Event::Received { .. })) = event else {
            return None;
        };
        Some(())
    })
    .await;
}

/// Direct connections with `peer` that the swarm reported.
type Direct = Arc<Mutex<Vec<bool>>>;

/// Runs a swarm, and notes for each direct connection whether it dialed it.
async fn watch(mut swarm: Swarm<Stock>, peer: PeerId, direct: Direct) {
    loop {
        if let SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } = swarm.select_next_some().await
            && peer_id == peer
            && !endpoint.is_relayed()
        {
            direct.lock().expect("nobody panics").push(endpoint.is_dialer());
        }
    }
}

/// Result of two peers that a relay has connected and that `libp2p-dcutr` connects directly.
struct Upgraded {
    at_dialer: Direct,
    at_listener: Direct,
    trace: Trace,
}

impl Upgraded {
    /// Returns the numbers of direct connections that each side ever had.
    fn counts(&self) -> (usize, usize) {
        let count = |direct: &Direct| direct.lock().expect("nobody panics").len();
        (count(&self.at_dialer), count(&self.at_listener))
    }
}

/// Lets `a` dial `b` over the relay, and waits for a direct connection and for a second one.
async fn upgrade(world: &World, relay: Multiaddr, mut a: Swarm<Stock>, mut b: Swarm<Stock>) -> Upgraded {
    let (a_id, b_id) = (*a.local_peer_id(), *b.local_peer_id());
    meet(&mut a, &relay).await;
    meet(&mut b, &relay).await;
    b.listen_on(relay.clone().with(Protocol::P2pCircuit)).expect("it is a relay");
    until(&mut b, |event| {
        use relay::client::Event::ReservationReqAccepted;
        matches!(event, SwarmEvent::Behaviour(StockEvent::Relay(ReservationReqAccepted { .. }))).then_some(())
    })
    .await;
    let (at_dialer, at_listener) = (Direct::default(), Direct::default());
    let upgraded = Upgraded { at_dialer, at_listener, trace: Trace::start(world) };
    tokio::spawn(watch(b, a_id, upgraded.at_listener.clone()));
    a.dial(relay.with(Protocol::P2pCircuit).with(Protocol::P2p(b_id))).expect("not dialed yet");
    tokio::spawn(watch(a, b_id, upgraded.at_dialer.clone()));
    let both = async {
        while upgraded.counts().0 < 1 || upgraded.counts().1 < 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("a direct connection");
    // A second connection would come from the other side's dial, within its handshake time-out of
    // five seconds.
    tokio::time::sleep(Duration::from_secs(6)).await;
    upgraded
}

#[test]
fn an_unmodified_dcutr_ends_in_exactly_one_direct_connection() {
    on_paused_time(async {
        let world = World::new(1);
        let relay = relay_server(&world);
        let (a, b) = (stock(&world, 1), stock(&world, 2));
        let upgraded = upgrade(&world, relay, a, b).await;
        assert_eq!(upgraded.counts(), (1, 1), "one connection, and no second one");

        // Packets of sixteen bytes open a hole. Unit tests of the transport check their frequency.
        let records = upgraded.trace.records();
        let mut opened: Vec<_> =
            records.iter().filter(|record| record.size == 16).map(|record| record.sent).collect();
        opened.dedup();
        assert!(!opened.is_empty(), "the hole is opened from the beginning");
    });
}

/// Transport of a peer that has the roles of DCUtR inverted, as go-libp2p 0.20 to 0.40 has. Where
/// it should dial, it opens its NAT with random packets and waits as a QUIC server.
struct RolesInverted {
    inner: Transport,
    host: Arc<Host>,
    /// Address that is dialed as ever.
    relay: Ipv4Addr,
}

impl libp2p::core::Transport for RolesInverted {
    type Output = (PeerId, Connection);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = BoxFuture<'static, Result<Self::Output, Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Error>> {
        let mut parts = address.iter();
        let (Some(Protocol::Ip4(ip)), Some(Protocol::Udp(port))) = (parts.next(), parts.next()) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        if ip == self.relay {
            return self.inner.dial(address, opts);
        }
        let source = SocketAddr::new(self.host.addresses()[0], PORT);
        let (host, remote) = (self.host.clone(), SocketAddr::from((ip, port)));
        Ok(async move {
            for number in 0..300_u32 {
                // Each first byte in turn, since any of them is as likely.
                let mut packet = [0xa5; 64];
                packet[0] = (number * 73) as u8;
                host.send_forged(source, remote, &packet);
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            Err(Error::HandshakeTimedOut)
        }
        .boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Upgrade, Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[test]
fn dcutr_succeeds_with_a_peer_that_waits_as_a_quic_server_too() {
    on_paused_time(async {
        let world = World::new(1);
        let relay = relay_server(&world);
        let address = Ipv4Addr::new(203, 0, 113, 200);
        let inverted = |host, inner| RolesInverted { inner, host, relay: address };
        let (a, b) = (stock_on(&world, 1, inverted), stock(&world, 2));
        let upgraded = upgrade(&world, relay, a, b).await;
        assert_eq!(upgraded.counts(), (1, 1), "one connection, and no second one");
        let dialed = |direct: &Direct| direct.lock().expect("nobody panics").clone();
        assert_eq!(dialed(&upgraded.at_dialer), [false], "the inverted peer is the QUIC server");
        assert_eq!(dialed(&upgraded.at_listener), [true]);
    });
}

#[derive(NetworkBehaviour)]
struct Everything {
    punch: libp2p_punch::Behaviour,
    relay: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    identify: identify::Behaviour,
    autonat_client: libp2p::autonat::v2::client::Behaviour,
    autonat_server: libp2p::autonat::v2::server::Behaviour,
    ping: ping::Behaviour,
}

fn everything(world: &World, number: u8, coordinator: &Multiaddr) -> Swarm<Everything> {
    let host = Site::EIM_APDF.host(world, number, 0.0);
    let keypair = key(number);
    let runtime = libp2p_punch::io::Runtime::tokio();
    let (transport, punch) =
        libp2p_punch::with_io(&keypair, client(coordinator), host, runtime).expect("valid");
    listen(
        SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_other_transport(|_| transport)
            .expect("it is a transport")
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .expect("it is a relay client")
            .with_behaviour(|keypair, relay| Everything {
                punch,
                relay,
                dcutr: dcutr::Behaviour::new(keypair.public().to_peer_id()),
                identify: identify(keypair),
                autonat_client: libp2p::autonat::v2::client::Behaviour::default(),
                autonat_server: libp2p::autonat::v2::server::Behaviour::default(),
                ping: ping::Behaviour::default(),
            })
            .expect("it is a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
            .with_connection_timeout(NEVER)
            .build(),
    )
}

#[test]
fn autonat_relay_dcutr_and_identify_work_in_one_swarm_with_ours() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let is_registered = |event: &SwarmEvent<EverythingEvent>| {
            use libp2p_punch::{Event::Registration, RegistrationEvent::Accepted};
            matches!(event, SwarmEvent::Behaviour(EverythingEvent::Punch(Registration(Accepted { .. }))))
        };
        let mut listener = everything(&world, 2, &address);
        until(&mut listener, |event| is_registered(&event).then_some(())).await;
        let peer = *listener.local_peer_id();
        tokio::spawn(async move {
            loop {
                listener.select_next_some().await;
            }
        });
        let mut dialer = everything(&world, 1, &address);
        until(&mut dialer, |event| is_registered(&event).then_some(())).await;
        dialer.dial(peer).expect("not dialed yet");
        let (mut pinged, mut identified, mut connections) = (false, false, 0);
        let all = until(&mut dialer, |event| {
            match event {
                SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => {
                    assert!(!endpoint.is_relayed());
                    connections += 1;
                }
                SwarmEvent::Behaviour(EverythingEvent::Ping(event)) if event.peer == peer => {
                    pinged = event.result.is_ok();
                }
                SwarmEvent::Behaviour(EverythingEvent::Identify(identify::Event::Received {
                    peer_id,
                    ..
                })) => {
                    identified |= peer_id == peer;
                }
                _ => {}
            }
            (pinged && identified).then_some(())
        });
        tokio::time::timeout(PATIENCE, all).await.expect("all of them work");
        assert_eq!(connections, 1);
    });
}
