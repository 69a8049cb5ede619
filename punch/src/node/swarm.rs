//! The swarm of a peer: the library's transport and behaviour, relays, identify, ping and the echo
//! protocol.

use std::{sync::Arc, time::Duration};

use libp2p::{
    PeerId, Swarm, SwarmBuilder,
    core::upgrade::Version,
    identify,
    identity::Keypair,
    noise, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    yamux,
};
use libp2p_punch::{Config, Role, io::Network, port_mapping, transport::Stats};

use super::{Setup, echo, error::NodeError, limits::RelayLimits};

/// Time after which an unused connection closes.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Time-out of the swarm for a dial. libp2p's default of 10 s would end a session before its
/// retries. The caller of [`Node::connect`](super::Node::connect) bounds a dial.
const DIAL_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Protocols of a node.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) punch: libp2p_punch::Behaviour,
    pub(super) port_mapping: Toggle<port_mapping::Behaviour>,
    relay_client: relay::client::Behaviour,
    pub(super) relay: Toggle<relay::Behaviour>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(super) echo: echo::Behaviour,
}

/// A swarm, and the statistics that its transport keeps.
pub(super) struct BuiltSwarm {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) stats: Stats,
}

/// Builds a swarm over real UDP.
pub(super) fn new(key: Keypair, setup: Setup) -> Result<BuiltSwarm, NodeError> {
    let Setup { config, relay_limits, port_mapping } = setup;
    let relay = relay_of(&key, &config, relay_limits);
    let port_mapping = port_mapping.then(port_mapping::Behaviour::new);
    let (transport, punch) = libp2p_punch::new(&key, config).map_err(NodeError::Library)?;
    assemble(key, transport, Added { punch, port_mapping, relay })
}

/// Builds a swarm over another network and another clock.
pub(super) fn with_io(
    key: Keypair,
    config: Config,
    network: Arc<dyn Network>,
    runtime: libp2p_punch::io::Runtime,
) -> Result<BuiltSwarm, NodeError> {
    let relay = relay_of(&key, &config, RelayLimits::default());
    let (transport, punch) =
        libp2p_punch::with_io(&key, config, network, runtime).map_err(NodeError::Library)?;
    assemble(key, transport, Added { punch, port_mapping: None, relay })
}

/// Behaviours that depend on the settings.
struct Added {
    punch: libp2p_punch::Behaviour,
    port_mapping: Option<port_mapping::Behaviour>,
    relay: Option<relay::Behaviour>,
}

fn assemble(key: Keypair, transport: libp2p_punch::Transport, added: Added) -> Result<BuiltSwarm, NodeError> {
    let Added { punch, port_mapping, relay } = added;
    let stats = transport.stats();
    let identify = identify::Config::new("/punch/1.0.0".to_owned(), key.public());
    let behaviour = |relay_client| Behaviour {
        punch,
        port_mapping: port_mapping.into(),
        relay_client,
        relay: relay.into(),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::default(),
        echo: echo::behaviour(),
    };
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_other_transport(|_| transport)
        .map_err(|error| NodeError::Build(error.into()))?
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(|error| NodeError::Build(error.into()))?
        .with_behaviour(|_, relay_client| behaviour(relay_client))
        .map_err(|error| NodeError::Build(error.into()))?
        .with_swarm_config(|config| {
            // Lazy: the first bytes of a stream go with its negotiation, so that an echo takes one
            // round trip.
            config
                .with_idle_connection_timeout(IDLE_CONNECTION_TIMEOUT)
                .with_substream_upgrade_protocol_override(Version::V1Lazy)
        })
        .with_connection_timeout(DIAL_TIMEOUT)
        .build();
    Ok(BuiltSwarm { swarm, stats })
}

/// Relay of a coordinator, for peers that cannot connect directly.
fn relay_of(key: &Keypair, config: &Config, limits: RelayLimits) -> Option<relay::Behaviour> {
    let peer = PeerId::from(key.public());
    (config.role == Role::Server).then(|| relay::Behaviour::new(peer, limits.into()))
}
