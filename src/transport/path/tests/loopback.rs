//! A session over sockets of the operating system, with its segmentation offload, on several
//! threads.

use std::{net::SocketAddr, sync::Arc};

use libp2p_identity::Keypair;
use quinn::Connection;
use tokio::sync::mpsc;

use super::{
    super::{FlowGuard, PathLayer, PathNotice},
    node::{Configs, FLOW, binding, echo, flight_binding, layer, pattern, send_and_receive},
};
use crate::io::{Network as _, OsNetwork};
use libp2p_punch_proto::{Path, SocketId, command::Command};

const SOCKET: SocketId = SocketId(0);

struct Side {
    key: Keypair,
    layer: Arc<PathLayer>,
    notices: mpsc::Receiver<PathNotice>,
    address: SocketAddr,
}

impl Side {
    fn new(address: &str) -> Self {
        let key = Keypair::generate_ed25519();
        let (layer, notices) = layer(Configs(key.clone()), 64);
        let network = OsNetwork { socket_buffer: Some(4 << 20) };
        let socket = network.bind(address.parse().unwrap()).unwrap().into_inner();
        let address = socket.local_addr().unwrap();
        binding(&layer, &Configs(key.clone()), SOCKET, socket);
        Self { key, layer, notices, address }
    }

    fn use_path_to(&self, remote: SocketAddr) {
        let path = Path { socket: SOCKET, remote };
        self.layer.execute(Command::Admit { flow: FLOW, path, heard: true });
        self.layer.execute(Command::Select { flow: FLOW, path });
    }

    async fn established(&mut self) -> (Connection, FlowGuard) {
        match self.notices.recv().await {
            Some(PathNotice::Established { connection, guard, .. }) => (connection, guard),
            other => panic!("{other:?}"),
        }
    }
}

async fn carries_a_megabyte(address: &str) {
    let (mut a, mut b) = (Side::new(address), Side::new(address));
    let (a_peer, b_peer) = (a.key.public().to_peer_id(), b.key.public().to_peer_id());
    a.layer.execute(Command::Connect { flow: FLOW, peer: b_peer, rtt: None, binding: flight_binding() });
    let Some(PathNotice::FirstFlight { datagrams, flow: FLOW }) = a.notices.recv().await else { panic!() };
    assert_eq!(datagrams.len(), 2);
    b.layer.execute(Command::Accept {
        flow: FLOW,
        peer: a_peer,
        first_flight: datagrams,
        rtt: None,
        binding: flight_binding(),
    });
    a.use_path_to(b.address);
    b.use_path_to(a.address);
    let ((client, client_guard), (server, _server_guard)) = tokio::join!(a.established(), b.established());
    assert_eq!(client_guard.remote(), Some(b.address));
    let echoing = tokio::spawn(echo(server.clone()));
    let data = pattern(1 << 20);
    assert!(send_and_receive(client, data.clone()).await == data);
    echoing.await.unwrap();
    assert_eq!(b.layer.counters().bytes_dropped, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_carries_a_megabyte_over_ipv4() {
    carries_a_megabyte("127.0.0.1:0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_carries_a_megabyte_over_ipv6() {
    carries_a_megabyte("[::1]:0").await;
}
