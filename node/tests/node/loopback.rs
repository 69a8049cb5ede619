//! Nodes over real UDP sockets on loopback.

use std::future::Future;

use libp2p_punch_node::Node;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Builder,
};

use crate::support::{echo, exchange};

async fn node() -> Node {
    Node::builder().listen(["/ip4/127.0.0.1/udp/0/quic-v1"]).build().await.expect("it starts")
}

fn on_both_runtimes<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        builder.worker_threads(2).enable_all().build().expect("a runtime").block_on(test());
    }
}

#[test]
fn two_nodes_of_one_process_exchange_bytes_on_either_runtime() {
    on_both_runtimes(|| async {
        let (one, two) = (node().await, node().await);
        echo(&two);
        let ticket = two.ticket().await.expect("it listens");
        let connection = one.connect(ticket).await.expect("it answers");
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        assert_eq!(exchange(&connection, b"").await, b"");
        let (back, other) = tokio::join!(exchange(&connection, &bytes), exchange(&connection, b"hello"));
        assert!(back == bytes);
        assert_eq!(other, b"hello");
        one.shutdown().await;
        two.shutdown().await;
    });
}

/// The end of the writing half is written while the other task waits to read, before the protocol
/// of the stream is negotiated.
#[test]
fn a_half_that_ends_leaves_a_waiting_reader_awake() {
    on_both_runtimes(|| async {
        let (one, two) = (node().await, node().await);
        let connection = one.connect(two.addresses().remove(0)).await.expect("it answers");
        let accepted = two.accept().await.expect("it runs");
        for round in 0..50u8 {
            let (mut send, mut recv) = connection.open_bi().await.expect("it opens");
            let reader = tokio::spawn(async move { recv.read_u8().await });
            tokio::task::yield_now().await;
            send.shutdown().await.expect("it is open");
            let (mut answer, mut request) = accepted.accept_bi().await.expect("it is open");
            assert_eq!(request.read(&mut [0]).await.expect("it is open"), 0);
            answer.write_u8(round).await.expect("it is open");
            answer.shutdown().await.expect("it is open");
            assert_eq!(reader.await.expect("it ends").expect("it is open"), round);
        }
        one.shutdown().await;
        two.shutdown().await;
    });
}

#[test]
fn an_identity_from_a_file_is_the_same_at_each_start() {
    on_both_runtimes(|| async {
        let folder = std::env::temp_dir().join(format!("punch-node-identity-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("it is writable");
        let start = || async {
            let builder =
                Node::builder().key_file(folder.join("key")).listen(["/ip4/127.0.0.1/udp/0/quic-v1"]);
            let node = builder.build().await.expect("it starts");
            node.shutdown().await;
            node.peer_id()
        };
        assert_eq!(start().await, start().await);
        std::fs::remove_dir_all(&folder).expect("it is there");
    });
}

#[test]
fn a_node_with_the_defaults_has_a_ticket_that_works_on_its_machine() {
    on_both_runtimes(|| async {
        // Tests do not ask the gateway of their machine for anything.
        let start = || Node::builder().port_mapping(false).build();
        let (one, two) = (start().await.expect("it starts"), start().await.expect("it starts"));
        echo(&two);
        let ticket = two.ticket().await.expect("it listens").to_string();
        let connection = one.connect(ticket).await.expect("it answers");
        assert_eq!(exchange(&connection, b"hello").await, b"hello");
        one.shutdown().await;
        two.shutdown().await;
    });
}
