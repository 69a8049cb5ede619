//! Nodes, and hosts that lie about where they are.

pub(crate) use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

pub(crate) use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
pub(crate) use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, swarm::SwarmEvent};
pub(crate) use libp2p_core::{
    Endpoint, Transport as _,
    muxing::StreamMuxerExt,
    transport::{DialOpts, ListenerId, PortUse, TransportEvent},
};
pub(crate) use libp2p_identity::Keypair;
pub(crate) use libp2p_punch::{
    Behaviour, Config, Event, NatEvent, RegistrationEvent, Role, SessionEvent, Transport,
    config::QuicConfig,
    io::{Interfaces, Network, UdpSocket},
    transport::{Connection, Error, Stats, Upgrade},
};
pub(crate) use libp2p_punch_proto::event::FailureReason;
pub(crate) use libp2p_punch_sim::{Gateway, Host, Link, Nat, World};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// The first bit of a QUIC packet with a long header (RFC 9000 §17.2).
const LONG_HEADER: u8 = 0x80;
/// For the time-outs of swarms, which no test is about.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// A dial from a socket of its own.
pub(crate) const FRESH: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };

/// A transport whose identity follows from `seed`.
pub(crate) fn transport(network: Arc<dyn Network>, seed: u8, quic: QuicConfig) -> Transport {
    let mut config = Config::default();
    config.quic = quic;
    Transport::with_io(&identity(seed), config, network, libp2p_punch::io::Runtime::tokio()).unwrap()
}

pub(crate) fn identity(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).unwrap()
}

pub(crate) async fn next(transport: &mut Transport) -> TransportEvent<Upgrade, Error> {
    poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await
}

/// A server at these addresses that accepts every connection and keeps it.
pub(crate) fn serve(mut transport: Transport, addresses: &[&str]) -> Stats {
    for address in addresses {
        transport.listen_on(ListenerId::next(), address.parse().unwrap()).unwrap();
    }
    let stats = transport.stats();
    tokio::spawn(async move {
        let (mut upgrades, mut connections) = (FuturesUnordered::new(), Vec::new());
        loop {
            tokio::select! {
                event = next(&mut transport) => upgrades.extend(event.into_incoming().map(|(upgrade, _)| upgrade)),
                Some(upgraded) = upgrades.next() => connections.extend(upgraded.ok()),
            }
        }
    });
    stats
}

/// A swarm that listens on port 4001.
pub(crate) fn swarm(network: Arc<dyn Network>, seed: u8, config: Config) -> Swarm<Behaviour> {
    let keypair = identity(seed);
    let runtime = libp2p_punch::io::Runtime::tokio();
    let (transport, punch) = libp2p_punch::with_io(&keypair, config, network, runtime).unwrap();
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .unwrap()
        .with_behaviour(|_| punch)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
        .with_connection_timeout(NEVER)
        .build();
    swarm.listen_on("/ip4/0.0.0.0/udp/4001/quic-v1".parse().unwrap()).unwrap();
    swarm
}

/// A coordinator at 203.0.113.254.
pub(crate) fn coordinator(world: &World) -> Multiaddr {
    let host = world.public_host([203, 0, 113, 254]);
    let peer = run(swarm(host, 254, {
        let mut config = Config::default();
        config.role = Role::Server;
        config
    }));
    format!("/ip4/203.0.113.254/udp/4001/quic-v1/p2p/{peer}").parse().unwrap()
}

/// Drives a swarm for ever, in the background.
pub(crate) fn run(mut swarm: Swarm<Behaviour>) -> PeerId {
    let peer = *swarm.local_peer_id();
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    peer
}

/// Drives a swarm until `pick` accepts an event.
pub(crate) async fn until<T>(
    swarm: &mut Swarm<Behaviour>,
    mut pick: impl FnMut(SwarmEvent<Event>) -> Option<T>,
) -> T {
    loop {
        if let Some(found) = pick(swarm.select_next_some().await) {
            return found;
        }
    }
}

/// Waits until a coordinator has accepted this swarm's registration.
pub(crate) async fn registered(swarm: &mut Swarm<Behaviour>) {
    until(swarm, |event| {
        matches!(event, SwarmEvent::Behaviour(Event::Registration(RegistrationEvent::Accepted { .. })))
            .then_some(())
    })
    .await
}

/// Behaviour of an attacker's sockets from now on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behaving {
    /// Every datagram but those of handshakes claims to come from there.
    pub(crate) forges: Option<SocketAddr>,
    /// Datagrams that these sockets receive; all others are dropped.
    pub(crate) hears: Hears,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Hears {
    #[default]
    Everything,
    /// So a client proves its address, and its handshake goes no further than the server's flight.
    Retry,
    Nothing,
}

/// The network of a host whose sockets lie.
#[derive(Debug)]
pub(crate) struct Attacker {
    host: Arc<Host>,
    behaving: Arc<Mutex<Behaving>>,
}

impl Attacker {
    pub(crate) fn new(host: Arc<Host>) -> Self {
        Self { host, behaving: Arc::default() }
    }

    /// Returns the behaviour of the sockets, including open ones.
    pub(crate) fn behaving(&self) -> Arc<Mutex<Behaving>> {
        self.behaving.clone()
    }
}

impl Network for Attacker {
    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let inner = self.host.bind(address)?.into_inner();
        let (host, behaving) = (self.host.clone(), self.behaving.clone());
        Ok(UdpSocket::new(Arc::new(AttackerSocket { inner, host, behaving })))
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        self.host.interfaces()
    }

    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        self.host.source_for(destination)
    }
}

#[derive(Debug)]
struct AttackerSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    host: Arc<Host>,
    behaving: Arc<Mutex<Behaving>>,
}

impl AsyncUdpSocket for AttackerSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A handshake is no migration: a forged source gets at most three times the bytes sent (RFC
        // 9000 §8.1).
        let is_handshake = transmit.contents.first().is_some_and(|first| first & LONG_HEADER != 0);
        let Some(source) = self.behaving.lock().unwrap().forges.filter(|_| !is_handshake) else {
            return self.inner.try_send(transmit);
        };
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        transmit
            .contents
            .chunks(size)
            .for_each(|datagram| self.host.send_forged(source, transmit.destination, datagram));
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.inner.poll_recv(cx, bufs, meta))?;
            // RFC 9000 §17.2.5: a Retry has type 3 in its long header.
            let is_retry = |buf: &IoSliceMut<'_>| buf[0] & 0xf0 == 0xf0;
            let heard = match self.behaving.lock().unwrap().hears {
                Hears::Everything => true,
                Hears::Retry => bufs[..received].iter().all(is_retry),
                Hears::Nothing => false,
            };
            if heard {
                return Poll::Ready(Ok(received));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
