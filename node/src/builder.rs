//! The settings of a node, and its start.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::future::select;
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::Keypair;
use libp2p_punch::{Config, Role, config::TIMEOUT, io::Network};
use libp2p_swarm::StreamProtocol;
use tokio::{sync::broadcast, time::timeout};

use crate::{
    diagnostics::{self, Diagnostic, Diagnostics},
    driver::{self, Driver},
    error::BuildError,
    key_file,
    message::{self, Inbox},
    node::Node,
    swarm::{self, Built},
    tasks::Tasks,
};

/// Protocol of streams unless the application names its own.
const DEFAULT_PROTOCOL: &str = "/libp2p-punch/node/stream/1.0.0";
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_MAX_CONNECTIONS: u32 = 1_024;
/// Time for the addresses of the second family once those of the first are known.
const SECOND_FAMILY_TIMEOUT: Duration = Duration::from_millis(50);

/// Settings of a [`Node`]. [`Node::builder`] makes one, with a default for each setting.
#[derive(Debug, Clone)]
#[must_use = "a node starts with build()"]
pub struct NodeBuilder {
    key: Key,
    listen: Vec<Text>,
    bootstrap: Vec<Text>,
    role: Role,
    protocol: String,
    idle_timeout: Duration,
    connect_timeout: Duration,
    max_connections: u32,
    port_mapping: bool,
    network: Option<Arc<dyn Network>>,
    diagnostics: Option<broadcast::Sender<Diagnostic>>,
}

/// Text of an address.
type Text = String;

/// Source of the identity of a node.
#[derive(Clone)]
enum Key {
    /// A new one for each start.
    Ephemeral,
    File(PathBuf),
    Given(Box<Keypair>),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ephemeral => f.write_str("Ephemeral"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Given(keypair) => f.debug_tuple("Given").field(&keypair.public().to_peer_id()).finish(),
        }
    }
}

impl NodeBuilder {
    pub(crate) fn new() -> Self {
        Self {
            key: Key::Ephemeral,
            listen: Vec::new(),
            bootstrap: Vec::new(),
            role: Role::Auto,
            protocol: DEFAULT_PROTOCOL.to_owned(),
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            port_mapping: true,
            network: None,
            diagnostics: None,
        }
    }

    /// Reads the identity of the node from a file. A file that does not exist is created with a new
    /// key, readable by its owner alone.
    ///
    /// By default the node has a new identity at each start.
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key = Key::File(path.into());
        self
    }

    /// Sets the identity of the node.
    pub fn keypair(mut self, keypair: Keypair) -> Self {
        self.key = Key::Given(Box::new(keypair));
        self
    }

    /// Sets the addresses to listen on, such as `/ip4/0.0.0.0/udp/4001/quic-v1`, each as a text or
    /// as a `Multiaddr`.
    ///
    /// The default is a free UDP port on all interfaces.
    pub fn listen<A: ToString>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.listen = addresses.into_iter().map(|address| address.to_string()).collect();
        self
    }

    /// Sets the addresses of nodes through which this one enters their network, each as a text or
    /// as a `Multiaddr`.
    ///
    /// One that works is enough. It may be any node that others reach without help. An address that
    /// ends with `/p2p/PEER_ID` also authenticates the node there. The default is none: such a node
    /// reaches those whose tickets or addresses it gets, and waits for others.
    pub fn bootstrap<A: ToString>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.bootstrap = addresses.into_iter().map(|address| address.to_string()).collect();
        self
    }

    /// Sets the service of this node for others. By default, [`Role::Auto`], the node coordinates
    /// and relays for others once they have confirmed that they reach it without help.
    ///
    /// [`Role::Server`] is for a node whose listen addresses everybody reaches: it serves from the
    /// start.
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// Sets the name of the protocol of streams, such as `/my-app/1.0.0`. Both ends need the same.
    pub fn protocol(mut self, name: impl Into<String>) -> Self {
        self.protocol = name.into();
        self
    }

    /// Sets the time after which a connection closes that neither end holds and that carries no
    /// stream. Default one minute.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Sets the time after which [`Node::connect`] fails. Default one minute, 100 ms to 5 min.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the largest number of connections at once, those to coordinators and to nodes of the
    /// DHT included. Default 1,024.
    pub fn max_connections(mut self, count: u32) -> Self {
        self.max_connections = count;
        self
    }

    /// Sets if the node asks the gateway of its network to forward its ports, by UPnP, NAT-PMP and
    /// PCP. Default on. A node that listens on loopback or global addresses only asks nobody, and
    /// neither does one on another network than that of the operating system.
    pub fn port_mapping(mut self, is_on: bool) -> Self {
        self.port_mapping = is_on;
        self
    }

    /// Replaces the network of the operating system, for example by a simulated one. Names in
    /// addresses are not resolved there.
    pub fn network(mut self, network: Arc<dyn Network>) -> Self {
        self.network = Some(network);
        self
    }

    /// Returns the facts about all attempts of the node to connect, from its start on. They tell
    /// why there is no connection to a peer, as `punch doctor` does.
    ///
    /// ```no_run
    /// # async fn diagnose() -> Result<(), Box<dyn std::error::Error>> {
    /// use libp2p_punch_node::Node;
    ///
    /// let builder = Node::builder().bootstrap(["/dnsaddr/boot.example.org"]);
    /// let (builder, mut diagnostics) = builder.diagnostics();
    /// let node = builder.build().await?;
    /// while let Some(fact) = diagnostics.next().await {
    ///     println!("{fact:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn diagnostics(mut self) -> (Self, Diagnostics) {
        let (sender, receiver) = broadcast::channel(diagnostics::BACKLOG);
        self.diagnostics = Some(sender);
        (self, Diagnostics::new(receiver))
    }

    /// Starts the node, in the tokio runtime of the caller.
    ///
    /// The node listens when this returns. It enters its network meanwhile:
    /// [`Node::ticket`] waits for that.
    ///
    /// # Errors
    ///
    /// A setting cannot be used, the key file cannot be read or written, or an address cannot be
    /// listened on.
    pub async fn build(self) -> Result<Node, BuildError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(libp2p_punch::Error::NoRuntime.into());
        }
        let protocol = StreamProtocol::try_from_owned(self.protocol.clone())
            .map_err(|_| BuildError::ProtocolName { name: self.protocol.clone() })?;
        if !TIMEOUT.contains(&self.connect_timeout) {
            return Err(BuildError::ConnectTimeout { value: self.connect_timeout });
        }
        let listen = parse(&self.listen)?;
        let bootstrap = parse(&self.bootstrap)?;
        let keypair = match self.key {
            Key::Ephemeral => Keypair::generate_ed25519(),
            Key::File(path) => key_file::load(&path)?,
            Key::Given(keypair) => *keypair,
        };
        let mut config = Config::default();
        config.role = self.role;
        config.relay_fallback = self.role != Role::Bootstrap;
        config.lookup_timeout = self.connect_timeout;
        let tasks = Tasks::default();
        let built = swarm::build(swarm::Parameters {
            keypair,
            config,
            network: self.network,
            port_mapping: self.port_mapping,
            tasks: tasks.clone(),
            protocols: vec![protocol.clone(), message::PROTOCOL],
            max_connections: self.max_connections,
            connect_timeout: self.connect_timeout,
            idle_timeout: self.idle_timeout,
        })?;
        let Built { swarm, stats } = built;
        let (mailbox, inbox) = Inbox::new();
        let (driver, handles) = Driver::new(driver::Parameters {
            swarm,
            stats,
            protocol,
            role: self.role,
            bootstrap,
            connect_timeout: self.connect_timeout,
            mailbox,
            tasks: tasks.clone(),
            diagnostics: self.diagnostics,
        });
        // Tasks of the transport run already: they end with the node.
        let node = Node::start(handles, inbox, tasks, |stop| driver.run(stop));
        match listen_on(&node, listen).await {
            Ok(()) => {
                node.enter().await;
                Ok(node)
            }
            Err(error) => {
                node.shutdown().await;
                Err(error)
            }
        }
    }
}

async fn listen_on(node: &Node, addresses: Vec<Multiaddr>) -> Result<(), BuildError> {
    if !addresses.is_empty() {
        for address in addresses {
            node.listen(address).await?;
        }
        return Ok(());
    }
    // A host may be without either family.
    let [v4, v6] = wildcards();
    let (v4, v6) = (pin!(node.listen(v4)), pin!(node.listen(v6)));
    let (first, other) = select(v4, v6).await.factor_first();
    if first.is_err() {
        return other.await;
    }
    // Usually both are known at once.
    if let Ok(Err(error)) = timeout(SECOND_FAMILY_TIMEOUT, other).await {
        tracing::debug!(%error, "one address family only");
    }
    Ok(())
}

/// Wildcard QUIC addresses of both families, with free ports.
fn wildcards() -> [Multiaddr; 2] {
    [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)]
        .map(|any| Multiaddr::from(any).with(Protocol::Udp(0)).with(Protocol::QuicV1))
}

fn parse(texts: &[Text]) -> Result<Vec<Multiaddr>, BuildError> {
    let parse = |text: &Text| text.parse().map_err(|cause| BuildError::Address { text: text.clone(), cause });
    texts.iter().map(parse).collect()
}
