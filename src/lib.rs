//! Direct connections through NATs for libp2p swarms.
//!
//! Put the [`Transport`] and the [`Behaviour`] that [`new`] returns into a swarm, and
//! `swarm.dial(peer)` gets through the NAT. Peers observe each other's addresses. A coordinator
//! passes `PUNCH_ME_NOW` between two peers that it knows. Both probe at once, and one QUIC
//! connection runs over the best path that answered.
//!
//! # Map
//!
//! | module | content |
//! |---|---|
//! | [`explain`] | code and remedy of each failure |
//! | [`event`], [`nat`], [`counters`] | reports to the application, most of them from the crate `libp2p-punch-proto`, which does no I/O |
//! | [`transport`] | libp2p `Transport` and `StreamMuxer` on quinn, the shared UDP sockets, the path layer |
//! | [`behaviour`] | libp2p `NetworkBehaviour` and `ConnectionHandler`: control streams in, frames out |
//! | [`io`] | the traits for sockets, interfaces and routes |
//! | [`config`] | the configuration struct, its defaults, bounds and errors |
//!
//! Dependencies point one way: `libp2p-punch-proto <- {transport, behaviour}`; the two meet in a
//! private `bridge`, whose task drives the protocol apart from the swarm, so that probing never
//! waits for the application.
//!
//! # Features
//!
//! `kad`, off by default: coordinators of peers are found through libp2p-kad, `kad::Behaviour`.
//!
//! `metrics`, off by default: metrics for Prometheus, `metrics::Metrics`.
//!
//! `port-mapping`, off by default: the gateway forwards a port, `port_mapping::Behaviour`.
//!
//! `qlog`, off by default: traces of connections in files,
//! [`QuicConfig::qlog`](config::QuicConfig::qlog).

#![forbid(unsafe_code)]

pub mod behaviour;
mod bridge;
mod carrier;
pub mod config;
pub mod counters;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod event {
    //! Events of sessions, of the own NAT, of registrations and of relays.

    pub use libp2p_punch_proto::{
        candidate::{Candidate, CandidateKind},
        event::{FailureReason, NatKinds, PathKind, Phase, PhaseTimes, RegistrationStatus, SessionRole},
        nat::strategy::NatKind,
        wire::frame::RejectReason,
    };

    #[doc(inline)]
    pub use crate::behaviour::event::*;
}
pub mod explain;
pub mod gater;
pub mod io;
#[cfg(feature = "kad")]
pub mod kad;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod nat {
    //! Properties of the NAT in front of this peer, each finding with its confidence and evidence.

    pub use libp2p_punch_proto::nat::{
        Confidence, Evidence, FilteringBehaviour, Finding, IdleLifetime, MappingBehaviour, Report, Sharing,
        strategy::Allocation,
    };
}
mod contacts;
mod offers;
#[cfg(feature = "port-mapping")]
pub mod port_mapping;
pub mod sources;
pub mod transport;

use std::sync::Arc;

use libp2p_identity::Keypair;

#[doc(inline)]
pub use crate::behaviour::{
    Behaviour,
    event::{Event, NatEvent, RegistrationEvent, RelayEvent, SessionEvent},
};
#[doc(inline)]
pub use crate::config::Config;
#[doc(inline)]
pub use crate::config::ConfigError;
#[doc(inline)]
pub use crate::config::Role;
use crate::io::{Network, OsNetwork, Runtime};
#[doc(inline)]
pub use crate::transport::Error;
#[doc(inline)]
pub use crate::transport::Transport;

/// A transport and a behaviour that work together on the operating system's network.
///
/// Call it within a tokio runtime and put both into one swarm. The transport goes in with
/// `with_other_transport`, instead of `with_quic`:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use libp2p::{SwarmBuilder, identity::Keypair};
///
/// let keypair = Keypair::generate_ed25519();
/// let mut config = libp2p_punch::Config::default();
/// // Coordinators are found among the connected peers. Others are named, each with its peer id:
/// config.coordinators = vec![/* "/ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3KooW…".parse()? */];
/// let (transport, punch) = libp2p_punch::new(&keypair, config)?;
/// let mut swarm = SwarmBuilder::with_existing_identity(keypair)
///     .with_tokio()
///     .with_other_transport(|_| transport)?
///     .with_behaviour(|_| punch)?
///     .with_swarm_config(|config| config)
///     // The default, 10 s, would cut retries off.
///     .with_connection_timeout(std::time::Duration::from_secs(60))
///     .build();
/// swarm.listen_on("/ip4/0.0.0.0/udp/0/quic-v1".parse()?)?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// A violated rule of the configuration, an unusable keypair, no tokio runtime, or an interface
/// watcher that cannot be started.
pub fn new(keypair: &Keypair, config: Config) -> Result<(Transport, Behaviour), Error> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(Error::NoRuntime);
    }
    let network = OsNetwork { socket_buffer: config.quic.socket_buffer };
    with_io(keypair, config, Arc::new(network), Runtime::tokio())
}

/// As [`new`], on a network and a clock of the caller's choice, such as a simulated one.
///
/// # Errors
///
/// As [`new`].
pub fn with_io(
    keypair: &Keypair,
    config: Config,
    network: Arc<dyn Network>,
    runtime: Runtime,
) -> Result<(Transport, Behaviour), Error> {
    bridge::build(keypair, config, network, runtime.into_inner())
}
