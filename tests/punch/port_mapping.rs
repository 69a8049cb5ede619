//! Gateways that forward a port when they are asked to.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_punch::{
    Behaviour, Config,
    port_mapping::{
        self, Announcement, Event, Gateway, Gateways, Grant, Mapping, Protocol, Request, RequestError,
    },
};
use libp2p_punch_sim::{Host, Link, Nat, World};
use tokio::time::{Instant, sleep};

use crate::network::{PORT, client, coordinator, on_paused_time, run, swarm, until};

/// Time that a gateway takes for an answer.
const DELAY: Duration = Duration::from_millis(20);

#[derive(NetworkBehaviour)]
struct Peer {
    punch: Behaviour,
    port_mapping: port_mapping::Behaviour,
}

/// A gateway of the simulated network that speaks one protocol.
struct Granting {
    gateway: Arc<libp2p_punch_sim::Gateway>,
    found: Gateway,
    speaks: Protocol,
    /// The address that the gateway says is its own.
    claims: Ipv4Addr,
    asked: Arc<Mutex<Vec<Request>>>,
    deleted: Arc<Mutex<Vec<Request>>>,
}

impl Gateways for Granting {
    fn find(&self) -> BoxFuture<'static, Option<Gateway>> {
        let found = self.found;
        async move { Some(found) }.boxed()
    }

    fn map(&self, request: Request, lifetime: Duration) -> BoxFuture<'static, Result<Grant, RequestError>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        let (gateway, speaks, claims) = (self.gateway.clone(), self.speaks, self.claims);
        async move {
            sleep(DELAY).await;
            if request.protocol != speaks {
                let cause = "no answer".to_owned();
                return Err(RequestError { protocol: request.protocol, cause });
            }
            let external = SocketAddrV4::new(claims, 50_000);
            gateway.forward(external.port(), (request.gateway.local, request.port).into());
            Ok(Grant { external, lifetime })
        }
        .boxed()
    }

    fn unmap(&self, request: Request) -> BoxFuture<'static, ()> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        async {}.boxed()
    }
}

/// A site behind a random NAT whose gateway forwards ports.
fn site(world: &World, number: u8, speaks: Protocol) -> (Arc<Host>, Granting) {
    let outer = Ipv4Addr::new(198, 51, 100, number);
    let gateway = world.nat(Nat::random(), outer);
    world.set_link(&gateway, Link::with_latency(Duration::from_millis(10)));
    let local = Ipv4Addr::new(192, 168, number, 2);
    let host = gateway.host(local);
    let found = Gateway { address: Ipv4Addr::new(192, 168, number, 1), local };
    let (asked, deleted) = Default::default();
    (host, Granting { gateway, found, speaks, claims: outer, asked, deleted })
}

fn peer(host: &Arc<Host>, number: u8, config: Config, gateways: Granting) -> Swarm<Peer> {
    swarm(host, number, config, |punch, _| Peer {
        punch,
        port_mapping: port_mapping::Behaviour::with_gateways(Arc::new(gateways)),
    })
}

/// Drives a swarm until its gateway has granted a mapping, and what follows is known.
async fn mapped(swarm: &mut Swarm<Peer>) -> Mapping {
    until(swarm, |event| match event {
        SwarmEvent::Behaviour(PeerEvent::PortMapping(Event::Mapped(mapping) | Event::Changed(mapping)))
            if mapping.announcement != Announcement::NotObserved =>
        {
            Some(mapping)
        }
        _ => None,
    })
    .await
}

async fn settle(swarm: &mut Swarm<Peer>, time: Duration) {
    tokio::select! {
        () = sleep(time) => {}
        () = until(swarm, |_| None) => {}
    }
}

/// A coordinator, and a dial between two random NATs; the gateways of these speak the protocols.
fn dial(dialer: Option<Protocol>, listener: Option<Protocol>) -> Result<Duration, String> {
    on_paused_time(async move {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let start = async |number, speaks: Option<Protocol>| {
            let (host, gateways) = site(&world, number, speaks.unwrap_or(Protocol::Pcp));
            if speaks.is_some() {
                let mut peer = peer(&host, number, client(&address), gateways);
                let mapping = mapped(&mut peer).await;
                assert_eq!(mapping.announcement, Announcement::Confirmed);
                settle(&mut peer, Duration::from_secs(2)).await;
                return peer;
            }
            let silent =
                Granting { found: Gateway { local: Ipv4Addr::LOCALHOST, ..gateways.found }, ..gateways };
            let mut peer = peer(&host, number, client(&address), silent);
            settle(&mut peer, Duration::from_secs(5)).await;
            peer
        };
        let listener = run(start(2, listener).await);
        let mut dialer = start(1, dialer).await;
        let begin = Instant::now();
        dialer.dial(listener).expect("not dialed yet");
        connected(&mut dialer, listener).await.map(|()| begin.elapsed())
    })
}

async fn connected(swarm: &mut Swarm<Peer>, peer: PeerId) -> Result<(), String> {
    until(swarm, |event| match event {
        SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => Some(Ok(())),
        SwarmEvent::OutgoingConnectionError { peer_id: Some(id), error, .. } if id == peer => {
            Some(Err(error.to_string()))
        }
        _ => None,
    })
    .await
}

#[test]
fn random_nats_are_direct_where_either_gateway_maps_a_port_by_any_protocol() {
    for protocol in [Protocol::Pcp, Protocol::NatPmp, Protocol::Upnp] {
        for (dialer, listener) in
            [(None, Some(protocol)), (Some(protocol), None), (Some(protocol), Some(protocol))]
        {
            let elapsed = dial(dialer, listener).expect("direct");
            assert!(elapsed < Duration::from_millis(400), "{dialer:?} to {listener:?}: {elapsed:?}");
        }
    }
}

#[test]
fn random_nats_whose_gateways_map_nothing_are_not_direct() {
    let error = dial(None, None).expect_err("no way through");
    assert!(error.contains("only a relay can help"), "{error}");
}

/// The mapping of a gateway that claims this address, and the external addresses that its peer
/// announces.
fn claimed(claims: Ipv4Addr) -> (Announcement, Vec<Multiaddr>) {
    on_paused_time(async move {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let (host, gateways) = site(&world, 1, Protocol::Pcp);
        let mut peer = peer(&host, 1, client(&address), Granting { claims, ..gateways });
        settle(&mut peer, Duration::from_secs(5)).await;
        let mappings = peer.behaviour().port_mapping.mappings();
        let [Mapping { announcement, .. }] = mappings[..] else { panic!("{mappings:?}") };
        (announcement, peer.external_addresses().cloned().collect())
    })
}

#[test]
fn an_address_that_only_the_gateway_knows_is_announced_to_nobody() {
    let confirmed = "/ip4/198.51.100.1/udp/50000/quic-v1".parse().expect("valid");
    assert_eq!(claimed([198, 51, 100, 1].into()), (Announcement::Confirmed, vec![confirmed]));
    assert_eq!(claimed([203, 0, 113, 77].into()), (Announcement::NotObserved, vec![]));
    assert_eq!(claimed([100, 64, 0, 1].into()), (Announcement::NotGlobal, vec![]));
}

#[test]
fn a_swarm_that_ends_deletes_its_mappings_and_closes_twice_without_harm() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let (host, gateways) = site(&world, 1, Protocol::NatPmp);
        let (asked, deleted) = (gateways.asked.clone(), gateways.deleted.clone());
        let mut peer = peer(&host, 1, client(&address), gateways);
        mapped(&mut peer).await;
        let request = Request {
            gateway: Gateway { address: [192, 168, 1, 1].into(), local: [192, 168, 1, 2].into() },
            protocol: Protocol::NatPmp,
            port: PORT,
        };
        assert!(asked.lock().expect("no test panicked").contains(&request));
        peer.behaviour_mut().port_mapping.close().await;
        drop(peer);
        sleep(DELAY).await;
        assert_eq!(*deleted.lock().expect("no test panicked"), [request]);
    });
}
