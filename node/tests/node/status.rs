//! The status of connections, as a call, as a watch and as events.

use std::time::Duration;

use libp2p_punch_node::{CloseReason, ConnectionStatus, Event, PeerId, Route};
use libp2p_punch_sim::World;

use crate::support::{builder, hidden, hidden_host, on_paused_time, server};

#[test]
fn a_watch_shows_the_course_of_a_connection() {
    on_paused_time(async {
        let world = World::new(1);
        let (_server, bootstrap) = server(&world, 1).await;
        let (dialer, listener) = (hidden(&world, 1, &bootstrap).await, hidden(&world, 2, &bootstrap).await);
        let peer = listener.peer_id();
        let mut watch = dialer.watch_status(&peer);
        assert_eq!(watch.current(), ConnectionStatus::Unknown);
        let course = tokio::spawn(async move {
            let mut course = Vec::new();
            while let Some(status) = watch.changed().await {
                course.push(status);
            }
            course
        });
        let connection = dialer.connect(peer).await.expect("the NATs let it through");
        assert!(connection.wait_direct().await);
        // Until ping has measured the round-trip time.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let [stats] = &connection.stats()[..] else { panic!("{:?}", connection.stats()) };
        assert!(stats.bytes_sent > 0 && stats.rtt > Duration::ZERO, "{stats:?}");
        connection.close().await;
        dialer.shutdown().await;
        let course = course.await.expect("it ends with the node");
        assert!(matches!(course.first(), Some(ConnectionStatus::Connecting { .. })), "{course:?}");
        let is_measured = |status: &ConnectionStatus| {
            matches!(status, ConnectionStatus::Connected { route: Route::Direct, rtt: Some(_), .. })
        };
        assert!(course.iter().any(is_measured), "{course:?}");
        let Some(ConnectionStatus::Closed { reason: CloseReason::Local, .. }) = course.last() else {
            panic!("{course:?}");
        };
        // The status outlives the node.
        assert_eq!(Some(&dialer.connection_status(&peer)), course.last());
        assert_eq!(dialer.watch_status(&peer).changed().await, None);
    });
}

#[test]
fn a_subscriber_sees_the_present_state_and_then_each_change() {
    on_paused_time(async {
        let world = World::new(2);
        let (server, bootstrap) = server(&world, 1).await;
        let node = hidden(&world, 1, &bootstrap).await;
        let mut events = node.subscribe();
        let is_present = |event: &Event| match event {
            Event::Addresses { addresses, .. } => !addresses.is_empty(),
            Event::Coordinators { registered, .. } => *registered == [server.peer_id()],
            _ => false,
        };
        let present = [events.next().await.expect("it runs"), events.next().await.expect("it runs")];
        assert!(present.iter().all(is_present), "{present:?}");
        while let Some(event) = events.next().await {
            if matches!(&event, Event::Connection { peer, status, .. }
                if *peer == server.peer_id() && status.is_connected())
            {
                break;
            }
        }
        let stranger = PeerId::random();
        let connecting = tokio::spawn({
            let node = node.clone();
            async move { node.connect(stranger).await }
        });
        let mut of_stranger = Vec::new();
        while let Some(event) = events.next().await {
            if let Event::Connection { peer, status, .. } = event
                && peer == stranger
            {
                let is_over = matches!(status, ConnectionStatus::Closed { .. });
                of_stranger.push(status);
                if is_over {
                    break;
                }
            }
        }
        connecting.await.expect("it ends").expect_err("nobody knows the peer");
        assert!(matches!(of_stranger[0], ConnectionStatus::Connecting { .. }), "{of_stranger:?}");
        node.shutdown().await;
        while events.next().await.is_some() {}
        let mut late = node.subscribe();
        while late.next().await.is_some() {}
    });
}

#[test]
fn a_shutdown_closes_the_status_of_an_attempt() {
    on_paused_time(async {
        let world = World::new(3);
        let (_server, address) = server(&world, 1).await;
        let node = builder(&hidden_host(&world, 1), 1).bootstrap([&address]).build().await;
        let node = node.expect("it starts");
        let stranger = PeerId::random();
        let mut watch = node.watch_status(&stranger);
        let connecting = tokio::spawn({
            let node = node.clone();
            async move { node.connect(stranger).await }
        });
        watch.changed().await.expect("it runs");
        node.shutdown().await;
        connecting.await.expect("it ends").expect_err("the node is gone");
        assert!(matches!(node.connection_status(&stranger), ConnectionStatus::Closed { .. }));
    });
}
