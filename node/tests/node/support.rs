//! Nodes on the simulated network.

use std::{sync::Arc, time::Duration};

use libp2p_punch_node::{Connection, Keypair, Multiaddr, Node, NodeBuilder, Role};
use libp2p_punch_sim::{Host, Nat, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The simulated time by which every test on paused time has ended.
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// UDP port of each node.
const PORT: u16 = 4001;

/// Runs `future` on a runtime of its own, whose clock jumps to the next timer whenever nothing else
/// is to be done.
///
/// Panics if it has not ended after an hour of simulated time.
pub(crate) fn on_paused_time<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.expect("the test ends") })
}

/// Settings of a node at `host`, whose identity follows from `seed`.
pub(crate) fn builder(host: &Arc<Host>, seed: u8) -> NodeBuilder {
    Node::builder()
        .keypair(Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes make a key"))
        .listen([format!("/ip4/0.0.0.0/udp/{PORT}/quic-v1")])
        .network(host.clone())
}

/// A host behind a NAT of its own; `number` identifies the NAT.
pub(crate) fn hidden_host(world: &World, number: u8) -> Arc<Host> {
    world.nat(Nat::default(), [198, 51, 100, number]).host([192, 168, number, 2])
}

/// A node that everybody reaches, and its address.
pub(crate) async fn server(world: &World, number: u8) -> (Node, Multiaddr) {
    let host = world.public_host([203, 0, 113, number]);
    let node = builder(&host, 100 + number).role(Role::Server).build().await.expect("it starts");
    let address = format!("/ip4/203.0.113.{number}/udp/{PORT}/quic-v1/p2p/{}", node.peer_id());
    (node, address.parse().expect("it is an address"))
}

/// A node behind a NAT of its own that others reach through coordinators.
pub(crate) async fn hidden(world: &World, number: u8, bootstrap: &Multiaddr) -> Node {
    let node = builder(&hidden_host(world, number), number).bootstrap([bootstrap]).build().await;
    let node = node.expect("it starts");
    let ticket = node.ticket().await.expect("it has an address");
    assert!(!ticket.coordinators().is_empty(), "it is registered");
    node
}

/// Sends back all bytes of all streams of all peers.
pub(crate) fn echo(node: &Node) {
    let node = node.clone();
    tokio::spawn(async move {
        while let Ok(connection) = node.accept().await {
            tokio::spawn(echo_streams(connection));
        }
    });
}

/// Sends back all bytes of all streams of a connection.
pub(crate) async fn echo_streams(connection: Connection) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        tokio::spawn(async move {
            tokio::io::copy(&mut recv, &mut send).await?;
            send.shutdown().await
        });
    }
}

/// Sends bytes on a stream of their own, and returns those that come back.
pub(crate) async fn exchange(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut send, mut recv) = connection.open_bi().await.expect("it opens");
    let sending = async {
        send.write_all(bytes).await.expect("it is open");
        send.shutdown().await.expect("it is open");
    };
    let mut back = Vec::new();
    // At once: the peer does not read on while nobody reads what it sends back.
    let (read, ()) = tokio::join!(recv.read_to_end(&mut back), sending);
    read.expect("the peer ends the stream");
    back
}
