//! Protocols without any support for NATs: no line about punching except the construction of the
//! swarm.

use libp2p::{
    PeerId, StreamProtocol, Swarm, kad, ping,
    request_response::{self, ProtocolSupport, json},
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_punch_sim::World;

use crate::network::{NEVER, Site, client, coordinator, on_paused_time, swarm, until};

type Echo = json::Behaviour<String, String>;

#[derive(NetworkBehaviour)]
struct Application {
    punch: libp2p_punch::Behaviour,
    ping: ping::Behaviour,
    echo: Echo,
    kad: kad::Behaviour<kad::store::MemoryStore>,
}

fn application(world: &World, number: u8, coordinator: &libp2p::Multiaddr) -> Swarm<Application> {
    let host = Site::EIM_APDF.host(world, number, 0.0);
    let mut swarm = swarm(&host, number, client(coordinator), |punch, keypair| {
        let peer = keypair.public().to_peer_id();
        let protocols = [(StreamProtocol::new("/echo/1"), ProtocolSupport::Full)];
        let mut kademlia = kad::Config::new(kad::PROTOCOL_NAME);
        kademlia.set_query_timeout(NEVER).set_substreams_timeout(NEVER).set_periodic_bootstrap_interval(None);
        Application {
            punch,
            ping: ping::Behaviour::new(ping::Config::new().with_timeout(NEVER)),
            echo: Echo::new(protocols, request_response::Config::default().with_request_timeout(NEVER)),
            kad: kad::Behaviour::with_config(peer, kad::store::MemoryStore::new(peer), kademlia),
        }
    });
    swarm.behaviour_mut().kad.set_mode(Some(kad::Mode::Server));
    swarm
}

async fn registered(swarm: &mut Swarm<Application>) {
    until(swarm, |event| {
        use libp2p_punch::{Event::Registration, RegistrationEvent::Accepted};
        matches!(event, SwarmEvent::Behaviour(ApplicationEvent::Punch(Registration(Accepted { .. }))))
            .then_some(())
    })
    .await;
}

/// Two applications behind NATs, both registered; the second runs on its own and answers every
/// echo.
async fn two(world: &World) -> (Swarm<Application>, PeerId) {
    let (_, address) = coordinator(world);
    let mut listener = application(world, 2, &address);
    registered(&mut listener).await;
    let peer = *listener.local_peer_id();
    tokio::spawn(async move {
        use request_response::{Event, Message};
        loop {
            let answer = until(&mut listener, |event| match event {
                SwarmEvent::Behaviour(ApplicationEvent::Echo(Event::Message {
                    message: Message::Request { request, channel, .. },
                    ..
                })) => Some((request, channel)),
                _ => None,
            });
            let (request, channel) = answer.await;
            listener.behaviour_mut().echo.send_response(channel, request).expect("the channel is open");
        }
    });
    let mut dialer = application(world, 1, &address);
    registered(&mut dialer).await;
    (dialer, peer)
}

#[test]
fn a_request_to_a_peer_behind_a_nat_is_answered() {
    on_paused_time(async {
        let (mut dialer, peer) = two(&World::new(1)).await;
        dialer.behaviour_mut().echo.send_request(&peer, "hello".to_owned());
        let answer = until(&mut dialer, |event| match event {
            SwarmEvent::Behaviour(ApplicationEvent::Echo(request_response::Event::Message {
                message: request_response::Message::Response { response, .. },
                ..
            })) => Some(Ok(response)),
            SwarmEvent::Behaviour(ApplicationEvent::Echo(request_response::Event::OutboundFailure {
                error,
                ..
            })) => Some(Err(error.to_string())),
            _ => None,
        });
        assert_eq!(answer.await, Ok("hello".to_owned()));
    });
}

#[test]
fn a_ping_crosses_the_nats() {
    on_paused_time(async {
        let (mut dialer, peer) = two(&World::new(1)).await;
        dialer.dial(peer).expect("not dialed yet");
        let answered = until(&mut dialer, |event| match event {
            SwarmEvent::Behaviour(ApplicationEvent::Ping(event)) if event.peer == peer => {
                Some(event.result.is_ok())
            }
            _ => None,
        });
        assert!(answered.await);
    });
}

#[test]
fn kademlia_finds_a_peer_behind_a_nat() {
    on_paused_time(async {
        let (mut dialer, peer) = two(&World::new(1)).await;
        dialer
            .behaviour_mut()
            .kad
            .add_address(&peer, "/ip4/192.168.2.2/udp/4001/quic-v1".parse().expect("valid"));
        dialer.behaviour_mut().kad.get_closest_peers(peer);
        let found = until(&mut dialer, |event| match event {
            SwarmEvent::Behaviour(ApplicationEvent::Kad(kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::GetClosestPeers(result),
                step,
                ..
            })) if step.last => Some(result.expect("the query ends in time").peers.len()),
            _ => None,
        });
        assert_eq!(found.await, 1);
        assert!(dialer.is_connected(&peer));
    });
}
