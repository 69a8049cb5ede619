//! Peers with path layers, and the commands that their protocol endpoints would send.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hmac::{Hmac, Mac};
use libp2p_identity::{Keypair, PeerId};
use quinn::{
    AsyncUdpSocket, Connection, Endpoint, EndpointConfig, TokioRuntime, TransportConfig,
    crypto::{
        CryptoError, HmacKey,
        rustls::{QuicClientConfig, QuicServerConfig},
    },
};
use sha2::Sha256;
use tokio::sync::mpsc;

use super::{
    super::{FlowGuard, PathError, PathLayer, PathNotice, SessionConfigs, SessionKeys},
    net::{Binding, Net, TestSocket},
};
use libp2p_punch_proto::{Path, SocketId, VirtualConnectionId, command::Command, wire::keys::FlightBinding};

/// The keys and certificates of `libp2p-tls`, whose ClientHello takes two datagrams.
pub(super) struct Configs(pub(super) Keypair);

pub(super) fn transport_config(rtt: Option<Duration>) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.initial_rtt(rtt.unwrap_or(Duration::from_millis(333)));
    Arc::new(config)
}

impl SessionConfigs for Configs {
    fn client(&self, peer: PeerId, rtt: Option<Duration>) -> quinn::ClientConfig {
        let tls = libp2p_tls::make_client_config(&self.0, Some(peer)).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(transport_config(rtt));
        config
    }

    fn server(&self, _: PeerId, rtt: Option<Duration>) -> Arc<quinn::ServerConfig> {
        let tls = libp2p_tls::make_server_config(&self.0).unwrap();
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        config.transport_config(transport_config(rtt)).migration(false);
        Arc::new(config)
    }
}

struct ResetKey;

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        out.copy_from_slice(
            &Hmac::<Sha256>::new_from_slice(&[5; 32]).unwrap().chain_update(data).finalize().into_bytes(),
        );
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mac = Hmac::<Sha256>::new_from_slice(&[5; 32]).unwrap().chain_update(data);
        mac.verify_slice(signature).map_err(|_| CryptoError)
    }
}

/// Returns the binding of the first flights of these tests to their requests.
pub(super) fn flight_binding() -> FlightBinding {
    let initiator = Keypair::ed25519_from_bytes([1; 32]).unwrap().public().to_peer_id();
    FlightBinding::new(&initiator, &[2; 32])
}

/// An ordinary endpoint on a socket of the transport.
pub(super) fn binding(
    layer: &Arc<PathLayer>,
    configs: &Configs,
    id: SocketId,
    socket: Arc<dyn AsyncUdpSocket>,
) -> Endpoint {
    let mut config = EndpointConfig::new(Arc::new(ResetKey));
    config.grease_quic_bit(false);
    let server = (*configs.server(configs.0.public().to_peer_id(), None)).clone();
    let binding = Arc::new(Binding { id, socket: socket.clone(), layer: Arc::downgrade(layer) });
    let endpoint =
        Endpoint::new_with_abstract_socket(config, Some(server), binding, Arc::new(TokioRuntime)).unwrap();
    layer.add_socket(id, socket, endpoint.clone());
    endpoint
}

pub(super) fn layer(
    configs: impl SessionConfigs,
    room: usize,
) -> (Arc<PathLayer>, mpsc::Receiver<PathNotice>) {
    let (sender, notices) = mpsc::channel(room);
    let keys = SessionKeys { reset: Arc::new(ResetKey), cid: [6; 32] };
    (
        PathLayer::new(
            Arc::new(crate::io::OsNetwork::default()),
            Arc::new(TokioRuntime),
            Box::new(configs),
            keys,
            sender,
        )
        .unwrap(),
        notices,
    )
}

/// A peer with some bindings.
pub(super) struct Node {
    pub(super) net: Arc<Net>,
    pub(super) peer: PeerId,
    pub(super) layer: Arc<PathLayer>,
    pub(super) notices: mpsc::Receiver<PathNotice>,
    pub(super) bindings: Vec<(Endpoint, Arc<TestSocket>)>,
    configs: Configs,
}

impl Node {
    pub(super) fn new(net: &Arc<Net>, addresses: &[&str]) -> Self {
        Self::with_room(net, addresses, 64)
    }

    pub(super) fn with_room(net: &Arc<Net>, addresses: &[&str], room: usize) -> Self {
        let key = Keypair::generate_ed25519();
        let (layer, notices) = layer(Configs(key.clone()), room);
        let peer = key.public().to_peer_id();
        let mut node =
            Self { net: net.clone(), peer, layer, notices, bindings: Vec::new(), configs: Configs(key) };
        for address in addresses {
            node.bind(address);
        }
        node
    }

    /// Adds a binding; every other one has no segmentation offload.
    pub(super) fn bind(&mut self, address: &str) {
        let id = SocketId(self.bindings.len() as u32);
        let socket = self.net.bind(address, if id.0.is_multiple_of(2) { 10 } else { 1 });
        let endpoint = binding(&self.layer, &self.configs, id, socket.clone());
        self.bindings.push((endpoint, socket));
    }

    /// The path from our binding `ours` to their binding `theirs`.
    pub(super) fn path(&self, ours: usize, other: &Node, theirs: usize) -> Path {
        Path { socket: SocketId(ours as u32), remote: other.bindings[theirs].1.address }
    }

    /// The next notice that is not a probe.
    pub(super) async fn notice(&mut self) -> PathNotice {
        loop {
            match self.notices.recv().await.unwrap() {
                PathNotice::Probe { .. } => {}
                notice => return notice,
            }
        }
    }

    pub(super) async fn first_flight(&mut self) -> Vec<Bytes> {
        match self.notice().await {
            PathNotice::FirstFlight { datagrams, .. } => datagrams,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn established(&mut self) -> (Connection, FlowGuard) {
        match self.notice().await {
            PathNotice::Established { connection, guard, .. } => (connection, guard),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn failed(&mut self) -> PathError {
        match self.notice().await {
            PathNotice::Failed { error, .. } => error,
            other => panic!("{other:?}"),
        }
    }

    /// Connects to `other`, and carries the first flight there.
    pub(super) async fn offer(&mut self, other: &Node, flow: VirtualConnectionId) {
        let rtt = Some(Duration::from_millis(50));
        self.layer.execute(Command::Connect { flow, peer: other.peer, rtt, binding: flight_binding() });
        let first_flight = self.first_flight().await;
        other.layer.execute(Command::Accept {
            flow,
            peer: self.peer,
            first_flight,
            rtt,
            binding: flight_binding(),
        });
    }

    pub(super) fn admit(&self, flow: VirtualConnectionId, path: Path) {
        self.layer.execute(Command::Admit { flow, path, heard: false });
    }

    pub(super) fn select(&self, flow: VirtualConnectionId, path: Path) {
        self.layer.execute(Command::Select { flow, path });
    }

    pub(super) fn permit(&self, flow: VirtualConnectionId, path: Path, budget: usize) {
        self.layer.execute(Command::Permit { flow, path, budget, again: false });
    }
}

/// Two peers and a session between them, over their first bindings.
pub(super) struct Session {
    pub(super) a: Node,
    pub(super) b: Node,
    pub(super) a_side: (Connection, FlowGuard),
    pub(super) b_side: (Connection, FlowGuard),
}

pub(super) const FLOW: VirtualConnectionId = VirtualConnectionId(1);

impl Session {
    /// As a punch goes: the server's flight leaves for the observed address, and both select when
    /// probes were answered.
    pub(super) async fn start(net: &Arc<Net>) -> Self {
        let mut a = Node::new(net, &["192.0.2.1:10", "192.0.2.1:11"]);
        let mut b = Node::new(net, &["192.0.2.2:20", "192.0.2.2:21"]);
        a.offer(&b, FLOW).await;
        for (ours, theirs) in [(0, 0), (1, 1)] {
            a.admit(FLOW, a.path(ours, &b, theirs));
            b.admit(FLOW, b.path(theirs, &a, ours));
        }
        b.permit(FLOW, b.path(0, &a, 0), 3 * 2400);
        tokio::time::sleep(super::net::DELAY / 2).await;
        a.select(FLOW, a.path(0, &b, 0));
        b.select(FLOW, b.path(0, &a, 0));
        let (a_side, b_side) = tokio::join!(a.established(), b.established());
        Self { a, b, a_side, b_side }
    }

    /// Both sides send over their bindings number `to`.
    pub(super) fn switch(&self, to: usize) {
        self.a.select(FLOW, self.a.path(to, &self.b, to));
        self.b.select(FLOW, self.b.path(to, &self.a, to));
    }
}

/// Sends back the bytes of the next stream.
pub(super) async fn echo(connection: Connection) {
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    while let Some(chunk) = receive.read_chunk(64 << 10, true).await.unwrap() {
        send.write_all(&chunk.bytes).await.unwrap();
    }
    send.finish().unwrap();
}

/// Sends `data` on a stream, and returns the answer.
pub(super) async fn send_and_receive(connection: Connection, data: Vec<u8>) -> Vec<u8> {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let len = data.len();
    let sending = async move {
        send.write_all(&data).await.unwrap();
        send.finish().unwrap();
    };
    tokio::join!(sending, async { receive.read_to_end(len).await.unwrap() }).1
}

/// Bytes in which a lost or repeated piece shows.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
