//! Swarms with relays: coordinators that are relays, and peers that are relay clients.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    identity::Keypair,
    noise, relay,
    request_response::{self, Message, ProtocolSupport, json},
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent},
    yamux,
};
use libp2p_punch::{Behaviour, Config, Event, Role};
use libp2p_punch_sim::{Host, Link, World};
use tokio::{task::JoinHandle, time::sleep};

use crate::network::{NEVER, PORT, Site, client, listening, parts, swarm, until};

#[derive(NetworkBehaviour)]
pub(crate) struct Relay {
    punch: Behaviour,
    relay: relay::Behaviour,
}

/// A peer as an application would make it.
#[derive(NetworkBehaviour)]
pub(crate) struct Peer {
    pub(crate) punch: Behaviour,
    pub(crate) relay: relay::client::Behaviour,
    pub(crate) echo: json::Behaviour<String, String>,
}

/// Event that a test waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Connected { id: ConnectionId, relayed: bool },
    Closed { id: ConnectionId },
    NotDialed(String),
    Punch(Event),
    Echoed(Result<String, String>),
    Nothing,
}

/// A coordinator that is a relay, at 203.0.113.`number`.
pub(crate) fn relay(world: &World, number: u8) -> (Arc<Host>, Multiaddr, JoinHandle<()>) {
    let host = world.public_host([203, 0, 113, number]);
    world.set_link(&host, Link::with_latency(Duration::ZERO));
    let mut config = Config::default();
    config.role = Role::Server;
    let mut swarm = swarm(&host, number, config, |punch, keypair| {
        // The tests are about the peers, not about the limits of relays.
        let limits = relay::Config {
            reservation_rate_limiters: Vec::new(),
            circuit_src_rate_limiters: Vec::new(),
            max_circuit_duration: NEVER,
            ..relay::Config::default()
        };
        Relay { punch, relay: relay::Behaviour::new(keypair.public().to_peer_id(), limits) }
    });
    let address: Multiaddr = format!("/ip4/203.0.113.{number}/udp/{PORT}/quic-v1").parse().expect("valid");
    swarm.add_external_address(address.clone());
    // It has IPv6 as soon as a test gives it an address.
    swarm.listen_on(format!("/ip6/::/udp/{PORT}/quic-v1").parse().expect("valid")).expect("port is free");
    let address = address.with_p2p(*swarm.local_peer_id()).expect("no peer yet");
    let task = tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    (host, address, task)
}

/// As [`swarm`](crate::network::swarm), with a relay client.
pub(crate) fn relayed_swarm<B, F>(host: &Arc<Host>, seed: u8, config: Config, behaviour: F) -> Swarm<B>
where
    B: NetworkBehaviour,
    F: FnOnce(Behaviour, relay::client::Behaviour, &Keypair) -> B,
{
    swarm_with_idle_timeout(host, seed, config, NEVER, behaviour)
}

fn swarm_with_idle_timeout<B, F>(
    host: &Arc<Host>,
    seed: u8,
    config: Config,
    idle: Duration,
    behaviour: F,
) -> Swarm<B>
where
    B: NetworkBehaviour,
    F: FnOnce(Behaviour, relay::client::Behaviour, &Keypair) -> B,
{
    let (keypair, transport, punch) = parts(host, seed, config);
    let swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .expect("the key can be used")
        .with_behaviour(|_, relay| behaviour(punch, relay, &keypair))
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(idle))
        .with_connection_timeout(NEVER)
        .build();
    listening(swarm)
}

/// A peer with a relay client.
pub(crate) fn peer(world: &World, site: Site, number: u8, config: Config) -> Swarm<Peer> {
    peer_at(&site.host(world, number, 0.0), number, config)
}

/// As [`peer`], on this host.
pub(crate) fn peer_at(host: &Arc<Host>, number: u8, config: Config) -> Swarm<Peer> {
    peer_with_idle_timeout(host, number, config, NEVER)
}

/// As [`peer_at`], closing connections that nobody has used for `idle`.
pub(crate) fn peer_with_idle_timeout(
    host: &Arc<Host>,
    number: u8,
    config: Config,
    idle: Duration,
) -> Swarm<Peer> {
    swarm_with_idle_timeout(host, number, config, idle, |punch, relay, _| {
        let protocols = [(StreamProtocol::new("/echo/1"), ProtocolSupport::Full)];
        // A request waits as long as its test.
        let config = request_response::Config::default().with_request_timeout(NEVER);
        Peer { punch, relay, echo: json::Behaviour::new(protocols, config) }
    })
}

/// The configuration of a peer that uses these coordinators.
pub(crate) fn clients(coordinators: &[Multiaddr]) -> Config {
    {
        let mut config = Config::default();
        config.coordinators = coordinators.to_vec();
        config
    }
}

/// Waits until a relay has accepted this peer.
pub(crate) async fn reserved(swarm: &mut Swarm<Peer>) -> PeerId {
    punch_event(swarm, |event| match event {
        Event::Relay(libp2p_punch::RelayEvent::Reserved { relay, .. }) => Some(*relay),
        _ => None,
    })
    .await
}

/// Waits for an event of the behaviour.
pub(crate) async fn punch_event<T>(swarm: &mut Swarm<Peer>, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
    until(swarm, |event| match event {
        SwarmEvent::Behaviour(PeerEvent::Punch(event)) => pick(&event),
        _ => None,
    })
    .await
}

/// Runs a peer for ever: every echo is answered after `delay`.
pub(crate) fn serve(mut swarm: Swarm<Peer>, delay: Duration) -> PeerId {
    let peer = *swarm.local_peer_id();
    tokio::spawn(async move {
        let (answers, mut due) = tokio::sync::mpsc::unbounded_channel();
        loop {
            tokio::select! {
                Some((channel, text)) = due.recv() => {
                    // An error says that the peer is gone.
                    let _ = swarm.behaviour_mut().echo.send_response(channel, text);
                }
                event = swarm.select_next_some() => {
                    let SwarmEvent::Behaviour(PeerEvent::Echo(request_response::Event::Message {
                        message: Message::Request { request, channel, .. }, ..
                    })) = event else { continue };
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        sleep(delay).await;
                        let _ = answers.send((channel, request));
                    });
                }
            }
        }
    });
    peer
}

/// Drives the swarm until something about `peer` is to be seen.
pub(crate) async fn see(swarm: &mut Swarm<Peer>, peer: PeerId) -> Seen {
    until(swarm, |event| {
        let seen = match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id: id, endpoint, .. }
                if peer_id == peer =>
            {
                Seen::Connected { id, relayed: endpoint.is_relayed() }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id: id, .. } if peer_id == peer => {
                Seen::Closed { id }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(id), error, .. } if id == peer => {
                Seen::NotDialed(error.to_string())
            }
            SwarmEvent::Behaviour(PeerEvent::Punch(event)) => Seen::Punch(event),
            SwarmEvent::Behaviour(PeerEvent::Echo(event)) => match event {
                request_response::Event::Message { message: Message::Response { response, .. }, .. } => {
                    Seen::Echoed(Ok(response))
                }
                request_response::Event::OutboundFailure { error, .. } => {
                    Seen::Echoed(Err(error.to_string()))
                }
                _ => Seen::Nothing,
            },
            _ => Seen::Nothing,
        };
        (seen != Seen::Nothing).then_some(seen)
    })
    .await
}

/// Drives the swarm for `time` and notes all that was to be seen of `peer`.
pub(crate) async fn watch(swarm: &mut Swarm<Peer>, peer: PeerId, time: Duration) -> Vec<Seen> {
    let mut seen = Vec::new();
    let end = sleep(time);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return seen,
            one = see(swarm, peer) => seen.push(one),
        }
    }
}

/// Two peers of this site with one relay; the second runs on its own.
pub(crate) async fn two(world: &World, site: Site) -> (Swarm<Peer>, PeerId) {
    let (_, address, _) = relay(world, 254);
    let mut listener = peer(world, site, 2, client(&address));
    reserved(&mut listener).await;
    let listener = serve(listener, Duration::from_secs(20));
    let mut dialer = peer(world, site, 1, client(&address));
    reserved(&mut dialer).await;
    (dialer, listener)
}
