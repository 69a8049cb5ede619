//! Our address changes under a connection that a session made.

use std::{sync::Arc, time::Duration};

use libp2p::{
    PeerId, StreamProtocol, Swarm,
    request_response::{self, ProtocolSupport, json},
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_punch_sim::{Host, Link, World};
use tokio::time::Instant;

use crate::network::{NEVER, Site, client, coordinator, on_paused_time, swarm, until};

type Echo = json::Behaviour<String, String>;

#[derive(NetworkBehaviour)]
pub(crate) struct Application {
    pub(crate) punch: libp2p_punch::Behaviour,
    pub(crate) echo: Echo,
}

/// Between all three.
const RTT: Duration = Duration::from_millis(20);
/// Messages of a transfer, and characters of one: each is answered before the next is sent.
const MESSAGES: usize = 60;
const MESSAGE: usize = 100_000;

fn application(host: &Arc<Host>, number: u8, coordinator: &libp2p::Multiaddr) -> Swarm<Application> {
    swarm(host, number, client(coordinator), |punch, _| {
        let protocols = [(StreamProtocol::new("/echo/1"), ProtocolSupport::Full)];
        let config = request_response::Config::default().with_request_timeout(NEVER);
        Application { punch, echo: Echo::new(protocols, config) }
    })
}

async fn registered(swarm: &mut Swarm<Application>) {
    until(swarm, |event| {
        use libp2p_punch::{Event::Registration, RegistrationEvent::Accepted};
        matches!(event, SwarmEvent::Behaviour(ApplicationEvent::Punch(Registration(Accepted { .. }))))
            .then_some(())
    })
    .await;
}

/// Answers every message for ever.
async fn answer(mut swarm: Swarm<Application>) {
    use request_response::{Event, Message};
    loop {
        let request = until(&mut swarm, |event| match event {
            SwarmEvent::Behaviour(ApplicationEvent::Echo(Event::Message {
                message: Message::Request { request, channel, .. },
                ..
            })) => Some((request, channel)),
            _ => None,
        });
        let (request, channel) = request.await;
        swarm.behaviour_mut().echo.send_response(channel, request).expect("the channel is open");
    }
}

/// Exchanges one message, and returns the time.
pub(crate) async fn exchange(swarm: &mut Swarm<Application>, peer: PeerId, number: usize) -> Duration {
    exchange_of(MESSAGE, swarm, peer, number).await
}

/// As [`exchange`], with a message of this length.
pub(crate) async fn exchange_of(
    length: usize,
    swarm: &mut Swarm<Application>,
    peer: PeerId,
    number: usize,
) -> Duration {
    let message = format!("{number:08}").repeat(length / 8);
    let begin = Instant::now();
    swarm.behaviour_mut().echo.send_request(&peer, message.clone());
    let answer = until(swarm, |event| match event {
        SwarmEvent::Behaviour(ApplicationEvent::Echo(request_response::Event::Message {
            message: request_response::Message::Response { response, .. },
            ..
        })) => Some(Ok(response)),
        SwarmEvent::Behaviour(ApplicationEvent::Echo(request_response::Event::OutboundFailure {
            error,
            ..
        })) => Some(Err(error.to_string())),
        SwarmEvent::ConnectionClosed { peer_id, cause, .. } if peer_id == peer => {
            Some(Err(format!("{cause:?}")))
        }
        _ => None,
    });
    let answer = answer.await;
    assert!(answer == Ok(message), "message {number} came back changed, or not at all: {:?}", answer.err());
    begin.elapsed()
}

/// Two peers at these sites, both registered; the second answers every message. Their hosts, and
/// the coordinator's.
pub(crate) async fn two(world: &World, sites: [Site; 2]) -> (Swarm<Application>, PeerId, [Arc<Host>; 3]) {
    two_on(world, [1, 2].map(|number| sites[usize::from(number) - 1].host(world, number, 0.0))).await
}

/// As [`two`], on these hosts.
pub(crate) async fn two_on(
    world: &World,
    [a, b]: [Arc<Host>; 2],
) -> (Swarm<Application>, PeerId, [Arc<Host>; 3]) {
    let (c, address) = coordinator(world);
    for (x, y) in [(&a, &c), (&b, &c), (&a, &b)] {
        world.set_path(x, y, RTT / 2);
    }
    let mut listener = application(&b, 2, &address);
    registered(&mut listener).await;
    let peer = *listener.local_peer_id();
    tokio::spawn(answer(listener));
    let mut dialer = application(&a, 1, &address);
    registered(&mut dialer).await;
    (dialer, peer, [a, b, c])
}

/// Changes the addresses in the middle of a transfer, and returns the difference between the
/// slowest message and the usual message.
fn stall(sites: [Site; 2], change: impl FnOnce(&[Arc<Host>; 3])) -> Duration {
    on_paused_time(async {
        let (mut dialer, peer, hosts) = two(&World::new(1), sites).await;
        let (mut change, mut times) = (Some(change), Vec::new());
        for number in 0..MESSAGES {
            if number == MESSAGES / 2
                && let Some(change) = change.take()
            {
                change(&hosts);
            }
            times.push(exchange(&mut dialer, peer, number).await);
        }
        // The coordinator, too, is still the same connection.
        assert_eq!(dialer.network_info().connection_counters().num_established(), 2);
        // The first has the punch in it.
        times.remove(0);
        times.sort();
        times[MESSAGES - 2] - times[MESSAGES / 2]
    })
}

/// Longest stall: one and a half round trips until the other side has validated the new path.
const PATIENCE: Duration = RTT.saturating_mul(2);
/// Longest stall with a message over the coordinator; packets that QUIC loses meanwhile wait for
/// its probe time-out.
const TOLD_PATIENCE: Duration = RTT.saturating_mul(8);
/// Sites without a NAT, or whose NAT admits remotes to which the host has not written yet.
const OPEN: [Site; 2] = [Site::Public, Site::EIM_EIF];

fn move_first(hosts: &[Arc<Host>; 3]) {
    hosts[0].renumber([192, 168, 1, 2], [192, 168, 1, 77]);
}

fn move_second(hosts: &[Arc<Host>; 3]) {
    hosts[1].renumber([192, 168, 2, 2], [192, 168, 2, 77]);
}

#[test]
fn a_session_moves_with_its_initiator_under_a_transfer() {
    for other in OPEN {
        let stall = stall([Site::EIM_APDF, other], move_first);
        assert!(stall <= PATIENCE, "{other:?}: {stall:?}");
    }
}

#[test]
fn a_session_moves_with_its_responder_under_a_transfer() {
    for other in OPEN {
        let stall = stall([other, Site::EIM_APDF], move_second);
        assert!(stall <= PATIENCE, "{other:?}: {stall:?}");
    }
}

#[test]
fn a_session_between_two_filters_moves_with_a_coordinators_help() {
    for change in [move_first, move_second] {
        let stall = stall([Site::EIM_APDF, Site::EIM_APDF], change);
        assert!(stall <= TOLD_PATIENCE, "{stall:?}");
    }
}

#[test]
fn a_session_that_cannot_move_is_closed_soon_and_made_anew() {
    on_paused_time(async {
        let world = World::new(1);
        let (mut dialer, peer, hosts) = two(&world, [Site::EIM_APDF, Site::EIM_APDF]).await;
        exchange(&mut dialer, peer, 0).await;
        // No coordinator can inform the other side.
        let away = |loss| Link { loss, ..Link::with_latency(Duration::ZERO) };
        world.set_link(&hosts[2], away(1.0));
        move_first(&hosts);
        let begin = Instant::now();
        dialer.behaviour_mut().echo.send_request(&peer, "lost".to_owned());
        until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionClosed { peer_id, .. } if peer_id == peer => Some(()),
            _ => None,
        })
        .await;
        assert!(begin.elapsed() <= Duration::from_millis(2_500), "{:?}", begin.elapsed());
        world.set_link(&hosts[2], away(0.0));
        registered(&mut dialer).await;
        exchange(&mut dialer, peer, 1).await;
    });
}
