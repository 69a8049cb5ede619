//! The end of a node: nothing of it is left.

use std::time::Duration;

use libp2p_punch_node::{ConnectError, PeerId, ShutDown, TicketUnavailable};
use libp2p_punch_sim::World;
use tokio::{runtime::Handle, time::Instant};

use crate::support::{builder, hidden, hidden_host, on_paused_time, server};

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[test]
fn the_last_clone_that_is_dropped_ends_every_task() {
    on_paused_time(async {
        let world = World::new(1);
        let before = tasks();
        let (server, address) = server(&world, 1).await;
        let (one, two) = (hidden(&world, 1, &address).await, hidden(&world, 2, &address).await);
        let connection = one.connect(two.peer_id()).await.expect("the NATs let it through");
        let accepted = two.accept().await.expect("it runs");
        let clone = one.clone();
        drop((server, two, one));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(tasks() > before, "a clone is left");
        drop(clone);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(tasks(), before);
        // Connections outlive the node, and say that they are closed.
        connection.accept_bi().await.expect_err("the node is gone");
        accepted.open_bi().await.expect_err("the node is gone");
        connection.close().await;
    });
}

#[test]
fn a_shutdown_ends_pending_calls_and_every_task_within_a_second() {
    on_paused_time(async {
        let world = World::new(2);
        let before = tasks();
        let (server, address) = server(&world, 1).await;
        let host = hidden_host(&world, 1);
        let node = builder(&host, 1).bootstrap([&address]).build().await.expect("it starts");
        let connection = node.connect(&address).await.expect("it answers");
        let calls = [
            tokio::spawn({
                let node = node.clone();
                async move { assert_eq!(node.connect(PeerId::random()).await.err(), Some(ConnectError::Shutdown)) }
            }),
            tokio::spawn({
                let node = node.clone();
                async move { assert_eq!(node.accept().await.err(), Some(ShutDown)) }
            }),
            tokio::spawn(async move {
                connection.accept_bi().await.expect_err("the connection is closed");
            }),
        ];
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        tokio::join!(node.shutdown(), node.shutdown());
        let took = begun.elapsed();
        assert!(took <= Duration::from_secs(1), "{took:?}");
        for call in calls {
            call.await.expect("the call ends with the right error");
        }
        assert_eq!(host.open_sockets(), 0);
        assert_eq!(node.connect(&address).await.err(), Some(ConnectError::Shutdown));
        assert_eq!(node.ticket().await.err(), Some(TicketUnavailable::Shutdown));
        node.shutdown().await;
        server.shutdown().await;
        assert_eq!(tasks(), before);
        // The port is free at once, and a node without connections has nothing to wait for.
        let node = builder(&host, 1).build().await.expect("it starts again");
        let begun = Instant::now();
        node.shutdown().await;
        println!("with connections, {took:?}; without, {:?}", begun.elapsed());
        assert!(begun.elapsed() <= Duration::from_millis(10), "{:?}", begun.elapsed());
    });
}
