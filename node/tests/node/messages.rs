//! Messages between nodes.

use std::time::Duration;

use futures::future::join_all;
use libp2p_punch_node::{ConnectError, MAX_MESSAGE_LEN, PeerId, SendError};
use libp2p_punch_sim::World;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{builder, hidden, hidden_host, on_paused_time, server};

#[test]
fn messages_between_two_nats_arrive_once_and_in_order() {
    on_paused_time(async {
        let world = World::new(1);
        let (_server, bootstrap) = server(&world, 1).await;
        let (one, two) = (hidden(&world, 1, &bootstrap).await, hidden(&world, 2, &bootstrap).await);
        for (from, to) in [(&one, &two), (&two, &one)] {
            let messages: Vec<Vec<u8>> = (0..100usize)
                .map(|number| {
                    let len = if number % 7 == 0 { MAX_MESSAGE_LEN } else { number % 3 };
                    vec![number as u8; len]
                })
                .collect();
            let sent =
                join_all(messages.iter().map(|bytes| from.send_to_peer(to.peer_id(), bytes.as_slice())));
            let received = async {
                let mut received = Vec::new();
                while received.len() < messages.len() {
                    let message = to.receive().await.expect("it runs");
                    assert_eq!(message.peer, from.peer_id());
                    received.push(message.bytes);
                }
                received
            };
            let (sent, received) = tokio::join!(sent, received);
            assert!(sent.iter().all(Result::is_ok), "{sent:?}");
            assert!(received == messages);
        }
        // Messages alone make no connection for the application.
        assert!(timeout(Duration::from_secs(5), two.accept()).await.is_err());
    });
}

#[test]
fn a_message_is_acknowledged_when_the_application_has_received_it() {
    on_paused_time(async {
        let world = World::new(2);
        let (receiver, address) = server(&world, 1).await;
        let sender = builder(&hidden_host(&world, 1), 1).bootstrap([&address]).build().await;
        let sender = sender.expect("it starts");
        let begun = Instant::now();
        let send = |number: u8| sender.send_to_peer(receiver.peer_id(), [number]);
        let (first, second, ()) = tokio::join!(send(1), send(2), async {
            sleep(Duration::from_secs(30)).await;
            assert_eq!(receiver.receive().await.expect("it runs").bytes, [1]);
        });
        assert_eq!(first, Ok(()));
        assert!(begun.elapsed() >= Duration::from_secs(30));
        // The second one was sent, but nobody took it.
        assert!(matches!(second, Err(SendError::TimedOut { .. })), "{second:?}");
        assert_eq!(begun.elapsed().as_secs(), 60);
        assert_eq!(receiver.receive().await.expect("it runs").bytes, [2]);
        // The late acknowledgement is not taken for that of the next message.
        let third = timeout(Duration::from_secs(10), send(3)).await;
        assert!(third.is_err(), "{third:?}");
        assert_eq!(receiver.receive().await.expect("it runs").bytes, [3]);
        // The stream has ended meanwhile, and another one takes its place.
        sleep(Duration::from_secs(300)).await;
        let (fourth, received) = tokio::join!(send(4), receiver.receive());
        assert_eq!((fourth, received.expect("it runs").bytes), (Ok(()), vec![4]));
    });
}

#[test]
fn a_peer_that_receives_nothing_holds_its_senders_back() {
    on_paused_time(async {
        let world = World::new(3);
        let (receiver, address) = server(&world, 1).await;
        let sender = builder(&hidden_host(&world, 1), 1).bootstrap([&address]).build().await;
        let sender = sender.expect("it starts");
        let message = vec![7; MAX_MESSAGE_LEN];
        let sends = (0..1_000).map(|_| sender.send_to_peer(receiver.peer_id(), message.as_slice()));
        let sent = join_all(sends).await;
        assert!(sent.iter().all(|sent| matches!(sent, Err(SendError::TimedOut { .. }))));
        let mut waiting = 0;
        while let Ok(message) = timeout(Duration::from_secs(5), receiver.receive()).await {
            assert_eq!(message.expect("it runs").bytes.len(), MAX_MESSAGE_LEN);
            waiting += 1;
        }
        println!("{waiting} messages were under way");
        assert!((1..=32).contains(&waiting), "{waiting}");
    });
}

#[test]
fn a_message_that_cannot_arrive_is_an_error() {
    on_paused_time(async {
        let world = World::new(4);
        let (receiver, address) = server(&world, 1).await;
        let lonely = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let too_long = lonely.send_to_peer(receiver.peer_id(), vec![0; MAX_MESSAGE_LEN + 1]).await;
        assert_eq!(too_long, Err(SendError::TooLong { len: MAX_MESSAGE_LEN + 1 }));
        let unknown = lonely.send_to_peer(PeerId::random(), "hello").await;
        assert_eq!(unknown, Err(SendError::Connect(ConnectError::NoAddresses)));
        let own = lonely.send_to_peer(lonely.peer_id(), "hello").await;
        assert_eq!(own, Err(SendError::Connect(ConnectError::DialSelf)));

        let connection = lonely.connect(&address).await.expect("it answers");
        let (sent, ()) = tokio::join!(lonely.send_to_peer(receiver.peer_id(), "hello"), async {
            sleep(Duration::from_secs(1)).await;
            receiver.shutdown().await;
        });
        println!("{sent:?}");
        assert!(matches!(sent, Err(SendError::NotAcknowledged { .. })), "{sent:?}");
        receiver.receive().await.expect_err("it has ended");
        drop(connection);
        let begun = Instant::now();
        let (sent, ()) = tokio::join!(lonely.send_to_peer(PeerId::random(), "hello"), lonely.shutdown());
        sent.expect_err("the node is gone");
        assert_eq!(lonely.send_to_peer(PeerId::random(), "hello").await, Err(SendError::Shutdown));
        assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_shutdown_ends_messages_that_wait() {
    on_paused_time(async {
        let world = World::new(5);
        let (receiver, address) = server(&world, 1).await;
        let sender = builder(&hidden_host(&world, 1), 1).bootstrap([&address]).build().await;
        let sender = sender.expect("it starts");
        let sends = join_all((0..100).map(|_| sender.send_to_peer(receiver.peer_id(), "hello")));
        let begun = Instant::now();
        let (sent, ()) = tokio::join!(sends, async {
            sleep(Duration::from_secs(5)).await;
            sender.shutdown().await;
        });
        assert!(sent.iter().all(|sent| *sent == Err(SendError::Shutdown)), "{sent:?}");
        assert!(begun.elapsed() <= Duration::from_secs(7), "{:?}", begun.elapsed());
    });
}
