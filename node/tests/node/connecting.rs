//! Connections of nodes behind simulated NATs.

use std::{sync::Arc, time::Duration};

use libp2p_punch_node::{CloseReason, ConnectError, ConnectionStatus, Keypair, Multiaddr, Role, Route};
use libp2p_punch_sim::{Filtering, Host, Mapping, Nat, Ports, World};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::support::{builder, echo, exchange, hidden, hidden_host, on_paused_time, server};

#[test]
fn a_ticket_is_enough_for_a_direct_connection_between_two_nats() {
    on_paused_time(async {
        let world = World::new(1);
        let (_server, bootstrap) = server(&world, 1).await;
        let (dialer, listener) = (hidden(&world, 1, &bootstrap).await, hidden(&world, 2, &bootstrap).await);
        let ticket = listener.ticket().await.expect("it is registered").to_string();

        let begun = Instant::now();
        let connection = dialer.connect(&ticket).await.expect("the NATs let it through");
        println!("connected after {:?}", begun.elapsed());
        let accepted = listener.accept().await.expect("it runs");
        assert_eq!((connection.peer(), accepted.peer()), (listener.peer_id(), dialer.peer_id()));
        assert!(connection.wait_direct().await);
        assert!(accepted.wait_direct().await);
        let ConnectionStatus::Connected { route: Route::Direct, address: Some(address), .. } =
            dialer.connection_status(&listener.peer_id())
        else {
            panic!("{:?}", connection.status());
        };
        let public: Multiaddr = "/ip4/198.51.100.2".parse().expect("valid");
        assert!(address.starts_with(&public), "{address}");

        tokio::spawn(crate::support::echo_streams(accepted));
        assert_eq!(exchange(&connection, b"hello").await, b"hello");
    });
}

#[test]
fn a_peer_id_alone_is_enough_for_a_direct_connection() {
    on_paused_time(async {
        let world = World::new(2);
        let (_server, bootstrap) = server(&world, 1).await;
        let (dialer, listener) = (hidden(&world, 1, &bootstrap).await, hidden(&world, 2, &bootstrap).await);
        echo(&listener);
        let connection = dialer.connect(listener.peer_id()).await.expect("the NATs let it through");
        assert_eq!(exchange(&connection, &[7; 100_000]).await, [7; 100_000]);
        assert!(connection.wait_direct().await);
    });
}

#[test]
fn calls_for_one_peer_give_one_connection() {
    on_paused_time(async {
        let world = World::new(3);
        let (server, address) = server(&world, 1).await;
        let node = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let (one, two) = tokio::join!(node.connect(&address), node.connect(&address));
        let (one, two) = (one.expect("it answers"), two.expect("it answers"));
        let three = node.connect(server.peer_id()).await.expect("they are connected");
        let accepted = server.accept().await.expect("it runs");
        drop((one, three));
        // The peer hears of it once, and not again while it holds the connection.
        let again = tokio::time::timeout(Duration::from_secs(5), server.accept()).await;
        assert!(again.is_err(), "{again:?}");
        tokio::spawn(crate::support::echo_streams(accepted));
        assert_eq!(exchange(&two, b"hello").await, b"hello");
    });
}

#[test]
fn a_held_connection_lasts_and_an_unused_one_closes_at_both_ends() {
    on_paused_time(async {
        let world = World::new(4);
        // A node that coordinates would be kept.
        let host = world.public_host([203, 0, 113, 1]);
        let server = builder(&host, 9).role(Role::Client).build().await.expect("it starts");
        let address = format!("/ip4/203.0.113.1/udp/4001/quic-v1/p2p/{}", server.peer_id());
        let node = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let connection = node.connect(&address).await.expect("it answers");
        drop(server.accept().await.expect("it runs"));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(connection.status().is_connected(), "{:?}", connection.status());
        assert!(server.connection_status(&node.peer_id()).is_connected());

        drop(connection);
        tokio::time::sleep(Duration::from_secs(120)).await;
        for status in [node.connection_status(&server.peer_id()), server.connection_status(&node.peer_id())] {
            assert!(matches!(status, ConnectionStatus::Closed { .. }), "{status:?}");
        }
    });
}

#[test]
fn a_stream_brings_back_a_connection_that_the_peer_let_go() {
    on_paused_time(async {
        let world = World::new(5);
        let (server, address) = server(&world, 1).await;
        let node = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let connection = node.connect(&address).await.expect("it answers");
        drop(server.accept().await.expect("it runs"));
        let (sent, accepted) = tokio::join!(exchange(&connection, b"again"), async {
            let accepted = server.accept().await.expect("it runs");
            tokio::spawn(crate::support::echo_streams(accepted.clone()));
            accepted
        });
        assert_eq!((sent.as_slice(), accepted.peer()), (b"again".as_slice(), node.peer_id()));
    });
}

/// A host behind a NAT that gives every destination another port at random.
fn hard_host(world: &World, number: u8) -> Arc<Host> {
    let nat = Nat {
        ports: Ports::Random,
        ..Nat::new(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
    };
    world.nat(nat, [198, 51, 100, number]).host([192, 168, number, 2])
}

#[test]
fn a_pair_that_cannot_be_direct_is_relayed() {
    on_paused_time(async {
        let world = World::new(11);
        let (_server, bootstrap) = server(&world, 1).await;
        let start = |number| builder(&hard_host(&world, number), number).bootstrap([&bootstrap]).build();
        let (dialer, listener) = (start(1).await.expect("it starts"), start(2).await.expect("it starts"));
        echo(&listener);
        let ticket = listener.ticket().await.expect("it is registered");
        let connection = dialer.connect(ticket).await.expect("the relay helps");
        // More than the relays of libp2p pass by default.
        assert!(exchange(&connection, &[7; 1_000_000]).await == [7; 1_000_000]);
        tokio::time::sleep(Duration::from_secs(300)).await;
        let ConnectionStatus::Connected { route: Route::Relayed, .. } = connection.status() else {
            panic!("{:?}", connection.status());
        };
        assert_eq!(exchange(&connection, b"hello").await, b"hello");
    });
}

#[test]
fn messages_keep_their_order_when_a_relayed_connection_becomes_direct() {
    on_paused_time(async {
        let world = World::new(12);
        let (_server, bootstrap) = server(&world, 1).await;
        let start = |host, number| builder(&host, number).bootstrap([&bootstrap]).build();
        let dialer = start(hard_host(&world, 1), 1).await.expect("it starts");
        let listener = start(hidden_host(&world, 2), 2).await.expect("it starts");
        let peer = listener.peer_id();
        listener.ticket().await.expect("it is registered");
        let connection = dialer.connect(peer).await.expect("the NATs let it through");
        let is_relayed_first = !connection.status().is_direct();
        println!("relayed first: {is_relayed_first}");
        let sending = tokio::spawn(async move {
            for number in 0..300u16 {
                dialer.send_to_peer(peer, number.to_be_bytes()).await.expect("it arrives");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            assert!(connection.status().is_direct(), "{:?}", connection.status());
        });
        for number in 0..300u16 {
            assert_eq!(listener.receive().await.expect("it runs").bytes, number.to_be_bytes());
        }
        sending.await.expect("all arrive");
    });
}

#[test]
fn a_node_with_a_friend_alone_still_looks_for_the_network() {
    on_paused_time(async {
        let world = World::new(13);
        let peer = Keypair::ed25519_from_bytes([101; 32]).expect("32 bytes").public().to_peer_id();
        let bootstrap = format!("/ip4/203.0.113.1/udp/4001/quic-v1/p2p/{peer}");
        let friend = world.public_host([203, 0, 113, 9]);
        let friend = builder(&friend, 9).role(Role::Client).build().await.expect("it starts");
        let node = builder(&hidden_host(&world, 1), 1).bootstrap([bootstrap]).build().await;
        let node = node.expect("it starts");
        let address = format!("/ip4/203.0.113.9/udp/4001/quic-v1/p2p/{}", friend.peer_id());
        let _connection = node.connect(address).await.expect("it answers");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (_server, _) = server(&world, 1).await;
        let begun = Instant::now();
        while node.ticket().await.expect("it has an address").coordinators().is_empty() {
            assert!(begun.elapsed() <= Duration::from_secs(90));
        }
    });
}

#[test]
fn a_peer_without_the_protocol_shows_in_the_first_read() {
    on_paused_time(async {
        let world = World::new(10);
        let (_server, address) = server(&world, 1).await;
        let node = builder(&hidden_host(&world, 1), 1).protocol("/other/1.0.0").build().await;
        let node = node.expect("it starts");
        let connection = node.connect(&address).await.expect("it answers");
        let (mut send, mut recv) = connection.open_bi().await.expect("it opens");
        let error = recv.read_u8().await.expect_err("the peer does not speak it");
        println!("{error}");
        for _ in 0..2 {
            recv.read_u8().await.expect_err("the stream is over");
            send.write_u8(1).await.expect_err("the stream is over");
            send.shutdown().await.expect_err("the stream is over");
        }
    });
}

#[test]
fn both_ends_learn_the_reason_of_the_end() {
    on_paused_time(async {
        let world = World::new(6);
        let (server, address) = server(&world, 1).await;
        let node = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let connection = node.connect(&address).await.expect("it answers");
        let accepted = server.accept().await.expect("it runs");
        let (mut send, mut recv) = connection.open_bi().await.expect("it opens");
        let reader = tokio::spawn(async move { recv.read_u8().await });
        connection.close().await;
        assert_eq!(connection.closed().await, CloseReason::Local);
        assert_eq!(accepted.closed().await, CloseReason::Peer);
        assert_eq!(accepted.accept_bi().await.err(), Some(CloseReason::Peer));
        assert_eq!(connection.open_bi().await.err().map(|error| error.to_string()), {
            Some("the connection is closed: this node closed it".to_owned())
        });
        reader.await.expect("it ends").expect_err("the connection is closed");
        send.write_all(&[1]).await.expect_err("the connection is closed");
    });
}

#[test]
fn a_peer_that_falls_silent_is_reported() {
    on_paused_time(async {
        let world = World::new(7);
        let host = world.public_host([203, 0, 113, 9]);
        let server = builder(&host, 9).build().await.expect("it starts");
        let address = format!("/ip4/203.0.113.9/udp/4001/quic-v1/p2p/{}", server.peer_id());
        let node = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let connection = node.connect(&address).await.expect("it answers");
        host.interface_down([203, 0, 113, 9]);
        assert_eq!(connection.closed().await, CloseReason::TimedOut);
    });
}

#[test]
fn an_attempt_at_a_peer_that_nobody_knows_fails_with_a_reason_in_time() {
    on_paused_time(async {
        let world = World::new(8);
        let (_server, bootstrap) = server(&world, 1).await;
        let node = hidden(&world, 1, &bootstrap).await;
        let stranger = libp2p_punch_node::PeerId::random();
        let begun = Instant::now();
        let error = node.connect(stranger).await.expect_err("there is no such peer");
        println!("{error} after {:?}", begun.elapsed());
        assert!(matches!(error, ConnectError::Traversal(_) | ConnectError::TimedOut { .. }), "{error}");
        assert!(begun.elapsed() <= Duration::from_secs(60), "{:?}", begun.elapsed());
        let ConnectionStatus::Closed { reason: CloseReason::NotConnected(reason), .. } =
            node.connection_status(&stranger)
        else {
            panic!("{:?}", node.connection_status(&stranger));
        };
        assert_eq!(*reason, error);
    });
}

#[test]
fn a_node_whose_bootstrap_node_starts_later_is_registered_then() {
    on_paused_time(async {
        let world = World::new(9);
        let host = world.public_host([203, 0, 113, 1]);
        let late = builder(&host, 101).role(Role::Server);
        let peer = Keypair::ed25519_from_bytes([101; 32]).expect("32 bytes");
        let address = format!("/ip4/203.0.113.1/udp/4001/quic-v1/p2p/{}", peer.public().to_peer_id());
        let node = builder(&hidden_host(&world, 1), 1).bootstrap([address]).build().await;
        let node = node.expect("it starts");
        let before = node.ticket().await.expect("it has an address in its own network");
        assert_eq!(before.coordinators(), []);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let _late = late.build().await.expect("it starts");
        let begun = Instant::now();
        while node.ticket().await.expect("it has an address").coordinators().is_empty() {
            assert!(begun.elapsed() <= Duration::from_secs(90));
        }
    });
}

#[test]
fn a_ticket_whose_coordinator_also_relays_gives_a_direct_connection_at_once() {
    on_paused_time(async {
        let world = World::new(14);
        let (_server, bootstrap) = server(&world, 1).await;
        let listener = hidden(&world, 1, &bootstrap).await;
        // Long enough for a reservation, over which the listener is reached without a search.
        tokio::time::sleep(Duration::from_secs(15)).await;
        let ticket = listener.ticket().await.expect("it is registered");
        // The dialer knows nobody but from the ticket.
        let dialer = builder(&hidden_host(&world, 2), 2).build().await.expect("it starts");
        let connection = dialer.connect(ticket).await.expect("the NATs let it through");
        assert!(connection.status().is_direct(), "{:?}", connection.status());
    });
}
