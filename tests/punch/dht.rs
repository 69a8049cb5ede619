//! A network with one bootstrap address, Kademlia, and no configured coordinator.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, identify, kad,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_punch::{Behaviour, Config};
use libp2p_punch_sim::{Host, World};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::network::{NEVER, PORT, Site, listening, on_paused_time, parts};

const PROTOCOL: &str = "/test/1";

#[derive(NetworkBehaviour)]
struct Node {
    kad: libp2p_punch::kad::Behaviour<kad::store::MemoryStore>,
    punch: Behaviour,
    identify: identify::Behaviour,
}

/// An order to a node: a peer to dial, and where to say what came of it.
struct Order {
    peer: PeerId,
    reply: oneshot::Sender<Result<Duration, String>>,
}

/// An order that is being carried out.
struct Dialing {
    order: Order,
    began: Instant,
}

struct Running {
    peer: PeerId,
    /// Coordinators that have registered it.
    registered: watch::Receiver<usize>,
    orders: mpsc::Sender<Order>,
}

impl Running {
    async fn dial(&self, peer: PeerId) -> Result<Duration, String> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order { peer, reply }).await.expect("it runs");
        answer.await.expect("it runs")
    }
}

fn node(host: &Arc<Host>, seed: u8) -> Swarm<Node> {
    let (keypair, transport, mut punch) = parts(host, seed, Config::default());
    let peer = keypair.public().to_peer_id();
    let kad = kad::Behaviour::new(peer, kad::store::MemoryStore::new(peer));
    let kad = libp2p_punch::kad::Behaviour::new(kad, punch.coordinator_lookup());
    let identify = identify::Config::new(PROTOCOL.to_owned(), keypair.public());
    let behaviour = Node { punch, kad, identify: identify::Behaviour::new(identify) };
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_behaviour(|_| behaviour)
        .expect("it is a behaviour")
        .with_swarm_config(|config| config)
        .with_connection_timeout(NEVER)
        .build();
    listening(swarm)
}

/// Runs a node as an application does, and carries out its orders.
fn run(mut swarm: Swarm<Node>, bootstrap: Option<(PeerId, Multiaddr)>) -> Running {
    let peer = *swarm.local_peer_id();
    let (orders, mut incoming) = mpsc::channel::<Order>(16);
    let (registrations, registered) = watch::channel(0);
    if let Some((peer, address)) = bootstrap {
        swarm.behaviour_mut().kad.add_address(&peer, address);
        swarm.behaviour_mut().kad.bootstrap().expect("it knows a peer");
    }
    tokio::spawn(async move {
        let mut waiting: Vec<Dialing> = Vec::new();
        loop {
            let coordinators = swarm.behaviour().punch.coordinators();
            let count = coordinators.iter().filter(|coordinator| coordinator.is_registered).count();
            registrations.send_if_modified(|known| std::mem::replace(known, count) != count);
            tokio::select! {
                event = swarm.select_next_some() => match event {
                    SwarmEvent::Behaviour(NodeEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                        let serves = info.protocols.contains(&kad::PROTOCOL_NAME);
                        for address in info.listen_addrs.into_iter().filter(|_| serves) {
                            swarm.behaviour_mut().kad.add_address(&peer_id, address);
                        }
                    }
                    SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                        for Dialing { order, began } in waiting.extract_if(.., |dialing| dialing.order.peer == peer_id) {
                            let _ = order.reply.send(Ok(began.elapsed()));
                        }
                    }
                    SwarmEvent::OutgoingConnectionError { peer_id: Some(peer_id), error, .. } => {
                        for Dialing { order, .. } in waiting.extract_if(.., |dialing| dialing.order.peer == peer_id) {
                            let _ = order.reply.send(Err(error.to_string()));
                        }
                    }
                    _ => {}
                },
                Some(order) = incoming.recv() => {
                    match swarm.dial(order.peer) {
                        Ok(()) => waiting.push(Dialing { order, began: Instant::now() }),
                        Err(error) => drop(order.reply.send(Err(error.to_string()))),
                    }
                }
            }
        }
    });
    Running { peer, registered, orders }
}

fn address_of(number: u8) -> Multiaddr {
    format!("/ip4/203.{number}.113.1/udp/{PORT}/quic-v1").parse().expect("valid")
}

/// A node at 203.`number`.113.1, which coordinates.
fn public(world: &World, number: u8, bootstrap: Option<(PeerId, Multiaddr)>) -> Running {
    let mut swarm = node(&world.public_host([203, number, 113, 1]), 100 + number);
    // What AutoNAT or the operator finds out. Kademlia serves then.
    swarm.add_external_address(address_of(number));
    run(swarm, bootstrap)
}

/// A network of `count` public nodes and one node behind a NAT for each of `sites`, once these
/// have found
/// coordinators.
async fn network(world: &World, count: u8, sites: &[Site]) -> Vec<Running> {
    let mut bootstrap = None;
    for number in 0..count {
        let running = public(world, number, bootstrap.clone());
        bootstrap.get_or_insert((running.peer, address_of(number)));
    }
    let mut hidden = Vec::new();
    for (number, site) in (1..).zip(sites) {
        hidden.push(run(node(&site.host(world, number, 0.0), number), bootstrap.clone()));
    }
    for node in &mut hidden {
        node.registered.wait_for(|count| *count >= 3).await.expect("it runs");
    }
    hidden
}

#[test]
fn a_peer_that_joined_before_the_coordinators_finds_them_without_a_second_bootstrap() {
    on_paused_time(async {
        let world = World::new(1);
        let first = public(&world, 0, None);
        let bootstrap = Some((first.peer, address_of(0)));
        let mut hidden = run(node(&Site::EIM_APDF.host(&world, 1, 0.0), 1), bootstrap.clone());
        hidden.registered.wait_for(|count| *count >= 1).await.expect("it runs");
        for number in 1..6 {
            public(&world, number, bootstrap.clone());
        }
        let began = Instant::now();
        hidden.registered.wait_for(|count| *count >= 3).await.expect("it runs");
        // Kademlia itself looks again after five minutes.
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    });
}

#[test]
fn peers_behind_nats_find_each_other_by_their_peer_ids_alone() {
    on_paused_time(async {
        let world = World::new(1);
        let sites = [Site::EIM_APDF, Site::EIM_APDF_PORT_NOT_KEPT, Site::EIM_ADF, Site::NatBehindNat];
        let nodes = network(&world, 24, &sites).await;
        let mut times = Vec::new();
        for (number, dialer) in nodes.iter().enumerate() {
            for listener in &nodes[number + 1..] {
                times.push(dialer.dial(listener.peer).await.expect("connected"));
            }
        }
        times.sort();
        println!("{times:?}");
        assert_eq!(times.len(), 6);
    });
}
