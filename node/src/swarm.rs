//! The swarm of a node: the transport and behaviour of libp2p-punch, and libp2p's protocols.

use std::{sync::Arc, time::Duration};

use libp2p_connection_limits::ConnectionLimits;
use libp2p_core::{
    Transport as _, muxing::StreamMuxerBox, transport::timeout::TransportTimeout, upgrade::Version,
};
use libp2p_identity::Keypair;
use libp2p_kad::{Mode, store::MemoryStore};
use libp2p_punch::{
    Config, Role,
    io::{Network, OsNetwork, Runtime},
    port_mapping,
    transport::Stats,
};
use libp2p_swarm::{NetworkBehaviour, StreamProtocol, Swarm, behaviour::toggle::Toggle};

use crate::{error::BuildError, streams, tasks::Tasks};

/// Connections to one peer at once: a relayed one, a direct one, and both sides' attempts.
const MAX_PER_PEER: u32 = 8;
/// Connections that others begin and that are not authenticated yet.
const MAX_PENDING_INCOMING: u32 = 256;

/// Protocols of a node.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
pub(crate) struct Behaviour {
    limits: libp2p_connection_limits::Behaviour,
    pub(crate) kad: libp2p_punch::kad::Behaviour<MemoryStore>,
    pub(crate) punch: libp2p_punch::Behaviour,
    pub(crate) port_mapping: Toggle<port_mapping::Behaviour>,
    relay_client: libp2p_relay::client::Behaviour,
    relay: Toggle<libp2p_relay::Behaviour>,
    autonat_client: libp2p_autonat::v2::client::Behaviour,
    autonat_server: Toggle<libp2p_autonat::v2::server::Behaviour>,
    identify: libp2p_identify::Behaviour,
    ping: libp2p_ping::Behaviour,
    pub(crate) streams: streams::Behaviour,
}

/// Arguments of [`build`].
pub(crate) struct Parameters {
    pub(crate) keypair: Keypair,
    pub(crate) config: Config,
    /// Network instead of the one of the operating system.
    pub(crate) network: Option<Arc<dyn Network>>,
    /// The gateway of the operating system's network is asked to forward ports.
    pub(crate) port_mapping: bool,
    pub(crate) tasks: Tasks,
    /// Protocols of streams.
    pub(crate) protocols: Vec<StreamProtocol>,
    pub(crate) max_connections: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) idle_timeout: Duration,
}

/// Failure of a dial without a relay.
///
/// The error of a transport that combines two has the source of this one, and hides the error
/// itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct DirectError(#[source] libp2p_punch::Error);

/// A swarm, and the statistics that its transport keeps.
pub(crate) struct Built {
    pub(crate) swarm: Swarm<Behaviour>,
    pub(crate) stats: Stats,
}

pub(crate) fn build(parameters: Parameters) -> Result<Built, BuildError> {
    let Parameters { keypair, config, network, tasks, connect_timeout, .. } = parameters;
    let peer = keypair.public().to_peer_id();
    let role = config.role;
    let resolves_names = network.is_none();
    let port_mapping = (parameters.port_mapping && network.is_none()).then(port_mapping::Behaviour::new);
    let network = network.unwrap_or_else(|| {
        let mut network = OsNetwork::default();
        network.socket_buffer = config.quic.socket_buffer;
        Arc::new(network)
    });
    let runtime = Runtime::new(Arc::new(tasks.clone()));
    let (transport, mut punch) = libp2p_punch::with_io(&keypair, config, network, runtime)?;
    let stats = transport.stats();

    let (relay_transport, relay_client) = libp2p_relay::client::new(peer);
    let relayed = relay_transport
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&keypair)?)
        .multiplex(libp2p_yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let direct = transport.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).map_err(DirectError);
    let transport = relayed.or_transport(direct).map(|either, _| either.into_inner());
    // The node gives a dial up before that.
    let transport = TransportTimeout::new(transport, connect_timeout * 2);
    let transport = if resolves_names && has_resolvers() {
        libp2p_dns::tokio::Transport::system(transport).map_err(BuildError::Resolvers)?.boxed()
    } else {
        transport.boxed()
    };

    let kad = libp2p_kad::Behaviour::new(peer, MemoryStore::new(peer));
    let mut kad = libp2p_punch::kad::Behaviour::new(kad, punch.coordinator_lookup());
    // The node serves the DHT while it coordinates.
    kad.set_mode(Some(if punch.is_coordinator() { Mode::Server } else { Mode::Client }));
    let identify = libp2p_identify::Config::new("/libp2p-punch/node/1.0.0".to_owned(), keypair.public())
        .with_agent_version(concat!("libp2p-punch-node/", env!("CARGO_PKG_VERSION")).to_owned());
    let serves = role != Role::Client;
    let behaviour = Behaviour {
        limits: libp2p_connection_limits::Behaviour::new(limits(parameters.max_connections)),
        kad,
        punch,
        port_mapping: port_mapping.into(),
        relay_client,
        // It serves while the node has an external address.
        relay: serves.then(|| libp2p_relay::Behaviour::new(peer, relay_limits())).into(),
        autonat_client: libp2p_autonat::v2::client::Behaviour::default(),
        autonat_server: serves.then(libp2p_autonat::v2::server::Behaviour::default).into(),
        identify: libp2p_identify::Behaviour::new(identify),
        ping: libp2p_ping::Behaviour::default(),
        streams: streams::Behaviour::new(parameters.protocols),
    };
    // Lazy: the first bytes of a stream go with its negotiation.
    let config = libp2p_swarm::Config::with_executor(tasks)
        .with_idle_connection_timeout(parameters.idle_timeout)
        .with_substream_upgrade_protocol_override(Version::V1Lazy);
    Ok(Built { swarm: Swarm::new(transport, behaviour, peer, config), stats })
}

/// Returns true if the resolvers of this machine are known. Without them names in addresses fail,
/// and no more.
fn has_resolvers() -> bool {
    libp2p_dns::tokio::Transport::system(())
        .inspect_err(|error| tracing::warn!(%error, "the DNS resolvers of this machine are unknown"))
        .is_ok()
}

/// Limits of the relay: enough to talk, and to look for a direct path meanwhile.
fn relay_limits() -> libp2p_relay::Config {
    libp2p_relay::Config {
        max_reservations: 1_024,
        max_reservations_per_peer: 2,
        max_circuits: 256,
        max_circuits_per_peer: 8,
        max_circuit_duration: Duration::from_secs(60 * 60),
        max_circuit_bytes: 32 << 20,
        ..libp2p_relay::Config::default()
    }
}

fn limits(max_connections: u32) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_established(Some(max_connections))
        .with_max_established_per_peer(Some(MAX_PER_PEER))
        .with_max_pending_incoming(Some(MAX_PENDING_INCOMING))
}
