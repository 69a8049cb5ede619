//! Settings and targets that cannot be right: each ends in an error that names the fault.

use std::time::Duration;

use libp2p_punch_node::{BuildError, ConnectError, Keypair, Node, NodeBuilder, PeerId};
use libp2p_punch_sim::World;
use tokio::time::Instant;

use crate::support::{builder, hidden_host, on_paused_time, server};

#[test]
fn a_setting_that_cannot_be_used_is_named() {
    on_paused_time(async {
        let world = World::new(1);
        let host = hidden_host(&world, 1);
        let _first = builder(&host, 1).build().await.expect("it starts");
        let cases: [(NodeBuilder, &[&str]); 9] = [
            (builder(&host, 2), &["/ip4/0.0.0.0/udp/4001/quic-v1"]),
            (builder(&host, 2).listen(["here"]), &["\"here\"", "not an address"]),
            (builder(&host, 2).listen(["/ip4/0.0.0.0/tcp/0"]), &["/ip4/0.0.0.0/tcp/0"]),
            (builder(&host, 2).listen(["/ip4/203.0.113.77/udp/0/quic-v1"]), &["203.0.113.77"]),
            (builder(&host, 2).bootstrap([""]).bootstrap(["\0"]), &["not an address"]),
            (builder(&host, 2).protocol("chat"), &["\"chat\"", "slash"]),
            (builder(&host, 2).connect_timeout(Duration::ZERO), &["connect_timeout", "0ns", "100 ms"]),
            (builder(&host, 2).key_file("/"), &["/", "private key"]),
            (builder(&host, 2).key_file("/no/such/folder/key"), &["/no/such/folder/key", "created"]),
        ];
        for (builder, words) in cases {
            let error = builder.build().await.expect_err("a setting is wrong").to_string();
            for word in words {
                assert!(error.contains(word), "{error:?} does not name {word:?}");
            }
        }
        // Nothing of the failed ones is left.
        assert_eq!(host.open_sockets(), 1);
    });
}

#[test]
fn a_node_outside_of_a_runtime_is_an_error() {
    let result = futures::executor::block_on(Node::builder().build());
    assert!(matches!(result, Err(BuildError::Punch(libp2p_punch::Error::NoRuntime))), "{result:?}");
}

#[test]
fn a_target_that_names_no_peer_is_an_error_at_once() {
    on_paused_time(async {
        let world = World::new(2);
        let node = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let begun = Instant::now();
        for text in ["", "nobody", "punch", "punchaaaa", "/", "/ip4/203.0.113.1/udp/1/quic-v1", "\u{1f980}"] {
            let error = node.connect(text).await.expect_err("it names no peer");
            assert!(matches!(error, ConnectError::Target(_)), "{text:?}: {error}");
        }
        assert_eq!(node.connect(node.peer_id()).await.err(), Some(ConnectError::DialSelf));
        assert_eq!(node.connect(PeerId::random()).await.err(), Some(ConnectError::NoAddresses));
        let foreign = format!("/ip4/203.0.113.1/tcp/80/http/p2p/{}", PeerId::random());
        let error = node.connect(foreign).await.expect_err("no transport takes it");
        assert!(matches!(error, ConnectError::Transport { .. }), "{error}");
        assert_eq!(begun.elapsed(), Duration::ZERO);
    });
}

#[test]
fn another_peer_at_the_address_is_named() {
    on_paused_time(async {
        let world = World::new(3);
        let (server, address) = server(&world, 1).await;
        let node = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let expected = Keypair::generate_ed25519().public().to_peer_id();
        let address = address.to_string().replace(&server.peer_id().to_string(), &expected.to_string());
        let error = node.connect(address).await.expect_err("another peer is there");
        match error {
            ConnectError::WrongPeer { expected: wanted, obtained, .. } => {
                assert_eq!((wanted, obtained), (expected, server.peer_id()));
            }
            error => panic!("{error}"),
        }
    });
}

#[test]
fn an_address_where_nobody_answers_fails_soon_if_nobody_can_help() {
    on_paused_time(async {
        let world = World::new(4);
        let node = builder(&hidden_host(&world, 1), 1).build().await.expect("it starts");
        let begun = Instant::now();
        let nowhere = format!("/ip4/203.0.113.9/udp/1/quic-v1/p2p/{}", PeerId::random());
        let error = node.connect(nowhere).await.expect_err("nobody is there");
        assert!(matches!(error, ConnectError::Transport { .. }), "{error}");
        assert!(begun.elapsed() <= Duration::from_secs(10), "{:?}", begun.elapsed());
    });
}
