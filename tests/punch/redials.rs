//! A connection that cannot move with our address ends, and another replaces it without a request
//! of the application.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, Swarm, core::ConnectedPoint, swarm::SwarmEvent};
use libp2p_punch::{Behaviour, Event};
use libp2p_punch_sim::{Host, World};
use tokio::time::Instant;

use crate::network::{Site, client, coordinator, on_paused_time, registered, run, swarm, until};

const RTT: Duration = Duration::from_millis(20);

/// Two peers that are registered with one coordinator, and their hosts.
async fn two(world: &World, sites: [Site; 2]) -> ([Swarm<Behaviour>; 2], [Arc<Host>; 2]) {
    let (c, address) = coordinator(world);
    let hosts = [1, 2].map(|number| sites[usize::from(number) - 1].host(world, number, 0.0));
    let [a, b] = &hosts;
    for (x, y) in [(a, &c), (b, &c), (a, b)] {
        world.set_path(x, y, RTT / 2);
    }
    let mut peers = [1, 2].map(|n| swarm(&hosts[usize::from(n) - 1], n, client(&address), |punch, _| punch));
    for peer in &mut peers {
        registered(peer).await;
    }
    (peers, hosts)
}

/// Returns the opening or the end of a connection with `peer`, if the event is one.
fn seen(peer: PeerId, event: SwarmEvent<Event>) -> Option<Result<ConnectedPoint, ()>> {
    match event {
        SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => Some(Ok(endpoint)),
        SwarmEvent::ConnectionClosed { peer_id, .. } if peer_id == peer => Some(Err(())),
        _ => None,
    }
}

#[test]
fn a_server_that_moved_reaches_its_client_again() {
    on_paused_time(async {
        let world = World::new(1);
        let ([mut client, mut server], hosts) = two(&world, [Site::EIM_APDF, Site::Public]).await;
        let [at_client, at_server] = [*client.local_peer_id(), *server.local_peer_id()];
        // By address: a plain connection, and nothing that could move at the server's end.
        let address: Multiaddr =
            format!("/ip4/203.0.113.2/udp/4001/quic-v1/p2p/{at_server}").parse().expect("valid");
        client.dial(address).expect("not dialed yet");
        tokio::select! {
            () = until(&mut server, |event| seen(at_client, event).map(|seen| drop(seen.expect("open")))) => {}
            () = until(&mut client, |_| None) => {}
        }
        let begin = Instant::now();
        hosts[1].renumber([203, 0, 113, 2], [203, 0, 113, 77]);
        let mut at_both = [Vec::new(), Vec::new()];
        // The client's end of the old connection is silent, and ends with its idle time-out.
        while at_both != [["new", "closed"], ["closed", "new"]] {
            let (side, seen) = tokio::select! {
                event = client.select_next_some() => (0, seen(at_server, event)),
                event = server.select_next_some() => (1, seen(at_client, event)),
            };
            if let Some(seen) = seen {
                if side == 1 {
                    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}: {seen:?}", begin.elapsed());
                }
                at_both[side].push(if seen.is_ok() { "new" } else { "closed" });
                assert!(at_both[side].len() <= 2, "{at_both:?}");
            }
        }
        assert!(client.is_connected(&at_server) && server.is_connected(&at_client));
    });
}

#[test]
fn a_client_whose_server_did_not_follow_dials_it_again() {
    on_paused_time(async {
        let world = World::new(1);
        let ([mut client, server], hosts) = two(&world, [Site::Public, Site::Public]).await;
        let peer = run(server);
        let address: Multiaddr =
            format!("/ip4/203.0.113.2/udp/4001/quic-v1/p2p/{peer}").parse().expect("valid");
        client.dial(address.clone()).expect("not dialed yet");
        until(&mut client, |event| seen(peer, event)).await.expect("open");
        // Nothing gets through until the connection has been given up.
        world.block(&hosts[0], &hosts[1]);
        hosts[0].renumber([203, 0, 113, 1], [203, 0, 113, 77]);
        let begin = Instant::now();
        until(&mut client, |event| seen(peer, event)).await.expect_err("closed");
        assert!(begin.elapsed() <= Duration::from_secs(1), "{:?}", begin.elapsed());
        world.unblock(&hosts[0], &hosts[1]);
        let endpoint = until(&mut client, |event| seen(peer, event)).await.expect("new");
        assert!(begin.elapsed() <= Duration::from_secs(2), "{:?}", begin.elapsed());
        assert_eq!(endpoint.get_remote_address(), &address);
    });
}

#[test]
fn a_session_that_could_not_move_is_made_anew() {
    on_paused_time(async {
        let world = World::new(1);
        let ([mut dialer, listener], hosts) = two(&world, [Site::EIM_APDF, Site::EIM_APDF]).await;
        let peer = run(listener);
        dialer.dial(peer).expect("not dialed yet");
        until(&mut dialer, |event| seen(peer, event)).await.expect("open");
        world.block(&hosts[0], &hosts[1]);
        hosts[0].renumber([192, 168, 1, 2], [192, 168, 1, 77]);
        until(&mut dialer, |event| seen(peer, event)).await.expect_err("closed");
        world.unblock(&hosts[0], &hosts[1]);
        let begin = Instant::now();
        until(&mut dialer, |event| seen(peer, event)).await.expect("new");
        assert!(begin.elapsed() <= Duration::from_secs(2), "{:?}", begin.elapsed());
    });
}

#[test]
fn a_session_moves_even_before_its_path_is_validated() {
    on_paused_time(async {
        let world = World::new(1);
        let ([mut dialer, listener], hosts) = two(&world, [Site::EIM_APDF, Site::EIM_APDF]).await;
        let peer = run(listener);
        dialer.dial(peer).expect("not dialed yet");
        // The server's flight is here half a round trip before any probe has been answered.
        until(&mut dialer, |event| seen(peer, event)).await.expect("open");
        hosts[0].renumber([192, 168, 1, 2], [192, 168, 1, 77]);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(20)) => {}
            end = until(&mut dialer, |event| seen(peer, event)) => panic!("it moved: {end:?}"),
        }
    });
}

#[test]
fn a_connection_that_the_application_ends_stays_ended() {
    on_paused_time(async {
        let world = World::new(1);
        let ([mut dialer, listener], hosts) = two(&world, [Site::EIM_APDF, Site::EIM_APDF]).await;
        let peer = run(listener);
        dialer.dial(peer).expect("not dialed yet");
        until(&mut dialer, |event| seen(peer, event)).await.expect("open");
        // Both ends must know of the connection.
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = until(&mut dialer, |_| None) => {}
        }
        hosts[0].renumber([192, 168, 1, 2], [192, 168, 1, 77]);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
            end = until(&mut dialer, |event| seen(peer, event)) => panic!("it moved: {end:?}"),
        }
        dialer.disconnect_peer_id(peer).expect("it is connected");
        until(&mut dialer, |event| seen(peer, event)).await.expect_err("closed");
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
            again = until(&mut dialer, |event| seen(peer, event)) => panic!("nobody asked for it: {again:?}"),
        }
    });
}
