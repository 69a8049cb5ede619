//! The configuration struct, with its defaults, its bounds and an error for every violated bound.

mod quic;

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_punch_proto::pacing::{MAX_ALLOWANCE, MIN_ALLOWANCE};
pub use libp2p_punch_proto::{
    config::{CoordinatorLimits, Disclosure, HostCandidates, PhaseTimeouts, Role},
    gater::SharedGater,
    rate_limit::Rate,
};

pub use self::quic::{CipherPreference, CongestionController, MTU, QuicConfig, SOCKET_BUFFER};

/// Upper bound of [`Config::max_found_coordinators`].
pub const MAX_FOUND_COORDINATORS: usize = 16;
/// Bounds of [`Config::max_candidates`].
pub const MAX_CANDIDATES: RangeInclusive<usize> = 1..=16;
/// Bounds of [`Config::max_concurrent_attempts`].
pub const MAX_CONCURRENT_ATTEMPTS: RangeInclusive<usize> = 1..=16;
/// Bounds of [`Config::coordination_timeout`] and of every time-out in [`PhaseTimeouts`].
pub const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);
/// The bound of [`Config::relay_drain`]: longer than any relay lets a connection be.
pub const MAX_RELAY_DRAIN: Duration = Duration::from_secs(86_400);
/// Bounds of [`Config::max_attempts`].
pub const MAX_ATTEMPTS: RangeInclusive<u32> = 1..=16;

/// Bounds of [`CoordinatorLimits::max_registrations`].
pub const MAX_REGISTRATIONS: RangeInclusive<usize> = 1..=1_000_000;

/// Configuration of the transport and the behaviour.
///
/// ```
/// let mut config = libp2p_punch::Config::default();
/// config.role = libp2p_punch::Role::Client;
/// config.quic.max_connections = Some(1_000);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Service of this peer for others. Default [`Role::Auto`].
    pub role: Role,
    /// Coordinators to stay registered with, each ending in `/p2p/PEER_ID`. Default none.
    /// Coordinators with the role [`Role::Server`] or [`Role::Bootstrap`] that are configured with
    /// one another test the filtering of their clients' NATs together. Each sends a few datagrams
    /// to an address that the other names.
    pub coordinators: Vec<Multiaddr>,
    /// QUIC addresses to listen on as soon as the swarm runs. Default none: the application
    /// listens.
    pub bind_addresses: Vec<Multiaddr>,
    /// Candidates kept and announced, ours and a remote's alike. Default 8, 1..=16. A session
    /// probes at most 56 pairs of a socket of ours and a candidate of the peer, the best candidates
    /// first, and up to eight more that it learns from probes.
    pub max_candidates: usize,
    /// Interface addresses in registrations and requests: those of local networks, VPNs and
    /// containers. Any peer that knows a PeerId learns that peer's candidates from its
    /// coordinators. Default [`HostCandidates::Announced`].
    pub host_candidates: HostCandidates,
    /// Peers that learn the candidates and the NAT report of this one from its coordinators.
    /// Default [`Disclosure::ToAll`]. With [`Disclosure::ToAccepted`], these are the peers that the
    /// [`gater`](Self::gater) of this peer allows to connect.
    pub disclosure: Disclosure,
    /// Limits on the service of this peer for others, while it coordinates.
    pub coordinator_limits: CoordinatorLimits,
    /// Decides who is served, and which addresses are announced, before anything is answered or
    /// probed. By default everybody is served, and all addresses are announced.
    pub gater: SharedGater,
    /// Pairs of one session whose opening burst runs at the same time. Default 3, 1..=16 and not
    /// above [`max_candidates`](Self::max_candidates).
    pub max_concurrent_attempts: usize,
    /// Attempts of one session before it fails. Default 3, 1..=16.
    pub max_attempts: u32,
    /// Time-out for the answer of a coordinator. Default 10 s, 100 ms..=300 s.
    pub coordination_timeout: Duration,
    /// Time that a dial waits for a connected coordinator that knows the peer. Until there is one,
    /// the coordinators are asked again, up to once a second. The swarm's own time-out for dials,
    /// 10 s by default, usually ends the dial sooner. Default 60 s, 100 ms..=300 s.
    pub lookup_timeout: Duration,
    /// Time-outs of the other phases, each 100 ms..=300 s.
    pub phase_timeouts: PhaseTimeouts,
    /// Predict the port of a NAT that allocates sequentially. Default on.
    pub prediction: bool,
    /// Search for ports when one side is behind a NAT that gives every destination a random port:
    /// one side opens 256 sockets for some seconds, the other sends up to 1,500 small datagrams.
    /// Only after plain probing was silent. Default on; if it is off on either side, a relay takes
    /// such a pair.
    pub birthday_search: bool,
    /// Largest number of coordinators that this peer finds by itself: connected peers that announce
    /// themselves as coordinators. It registers with them, besides
    /// [`coordinators`](Self::coordinators), while others cannot reach it without help. Default 3,
    /// at most 16. It takes libp2p-identify in the swarm of both.
    pub max_found_coordinators: usize,
    /// Connect over a relay when no direct path was found within a second. Default on; a bootstrap
    /// must not.
    pub relay_fallback: bool,
    /// Time that the streams on a relayed connection may go on once a direct connection is open;
    /// then the relayed connection is closed. Default 2 min, which is what Circuit Relay v2 gives a
    /// connection anyway. An unused connection is closed by the swarm's own idle time-out before
    /// that. The direct connection is kept alive meanwhile. At most a day.
    pub relay_drain: Duration,
    /// The QUIC transport.
    pub quic: QuicConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: Role::Auto,
            coordinators: Vec::new(),
            bind_addresses: Vec::new(),
            max_candidates: 8,
            host_candidates: HostCandidates::Announced,
            disclosure: Disclosure::ToAll,
            coordinator_limits: CoordinatorLimits::default(),
            gater: SharedGater::default(),
            max_concurrent_attempts: 3,
            max_attempts: 3,
            coordination_timeout: Duration::from_secs(10),
            lookup_timeout: Duration::from_secs(60),
            phase_timeouts: PhaseTimeouts::default(),
            prediction: true,
            birthday_search: true,
            max_found_coordinators: 3,
            relay_fallback: true,
            relay_drain: Duration::from_secs(120),
            quic: QuicConfig::default(),
        }
    }
}

/// A rule of [`Config`] that was violated: the field, its value and the bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// [`Config::relay_drain`] is out of bounds.
    #[error("relay_drain is {value:?}, it must be at most a day")]
    RelayDrain {
        /// The value found.
        value: Duration,
    },
    /// [`Config::max_candidates`] is out of bounds.
    #[error("max_candidates is {value}, it must be within 1..=16")]
    MaxCandidates {
        /// The value found.
        value: usize,
    },
    /// [`Config::max_concurrent_attempts`] is out of bounds.
    #[error("max_concurrent_attempts is {value}, it must be within 1..=16")]
    MaxConcurrentAttempts {
        /// The value found.
        value: usize,
    },
    /// [`Config::max_concurrent_attempts`] is above [`Config::max_candidates`].
    #[error(
        "max_concurrent_attempts is {value}, it must not be above max_candidates, which is {max_candidates}"
    )]
    ConcurrentAttemptsAboveCandidates {
        /// The value found.
        value: usize,
        /// The bound.
        max_candidates: usize,
    },
    /// [`Config::max_attempts`] is out of bounds.
    #[error("max_attempts is {value}, it must be within 1..=16")]
    MaxAttempts {
        /// The value found.
        value: u32,
    },
    /// A time-out is out of bounds.
    #[error("{field} is {value:?}, it must be within 100 ms..=300 s")]
    Timeout {
        /// The name of the field.
        field: &'static str,
        /// The value found.
        value: Duration,
    },
    /// [`Config::relay_fallback`] is on for a bootstrap.
    #[error("relay_fallback is true, it must be false when role is bootstrap")]
    BootstrapWithRelayFallback,
    /// A coordinator's address does not end in `/p2p/PEER_ID`.
    #[error("coordinators contains {value}, which must end in /p2p/PEER_ID")]
    CoordinatorWithoutPeerId {
        /// The address found.
        value: Multiaddr,
    },
    /// An address to listen on is not `/ip4|ip6/…/udp/…/quic-v1`.
    #[error("bind_addresses contains {value}, which must be of the form /ip4/ADDRESS/udp/PORT/quic-v1")]
    BindAddress {
        /// The address found.
        value: Multiaddr,
    },
    /// [`QuicConfig::keep_alive_interval`] is not below [`QuicConfig::max_idle_timeout`].
    #[error(
        "quic.keep_alive_interval is {value:?}, it must be below quic.max_idle_timeout, which is {max_idle_timeout:?}"
    )]
    KeepAliveAboveIdle {
        /// The value found.
        value: Duration,
        /// The bound.
        max_idle_timeout: Duration,
    },
    /// [`QuicConfig::qlog`] is a folder to which no files can be written.
    #[error("quic.qlog is {value:?}, it must be a folder that can be written to: {reason}")]
    QlogFolder {
        /// The value found.
        value: PathBuf,
        /// Message of the operating system.
        reason: String,
    },
    /// [`QuicConfig::qlog`] is set in a build that cannot write traces.
    #[error("quic.qlog is set, it must not be without the cargo feature qlog")]
    QlogNotBuilt,
    /// A number is out of bounds.
    #[error("{field} is {value}, it must be {bound}")]
    OutOfBounds {
        /// The name of the field.
        field: &'static str,
        /// The value found.
        value: String,
        /// The bound, in words.
        bound: String,
    },
}

impl Config {
    /// Checks every rule; returns the first violated rule as an error.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !MAX_CANDIDATES.contains(&self.max_candidates) {
            return Err(ConfigError::MaxCandidates { value: self.max_candidates });
        }
        if !MAX_CONCURRENT_ATTEMPTS.contains(&self.max_concurrent_attempts) {
            return Err(ConfigError::MaxConcurrentAttempts { value: self.max_concurrent_attempts });
        }
        if self.max_concurrent_attempts > self.max_candidates {
            return Err(ConfigError::ConcurrentAttemptsAboveCandidates {
                value: self.max_concurrent_attempts,
                max_candidates: self.max_candidates,
            });
        }
        if !MAX_ATTEMPTS.contains(&self.max_attempts) {
            return Err(ConfigError::MaxAttempts { value: self.max_attempts });
        }
        self.validate_timeouts()?;
        self.validate_coordinator_limits()?;
        if self.max_found_coordinators > MAX_FOUND_COORDINATORS {
            return Err(ConfigError::OutOfBounds {
                field: "max_found_coordinators",
                value: self.max_found_coordinators.to_string(),
                bound: format!("at most {MAX_FOUND_COORDINATORS}"),
            });
        }
        if self.relay_drain > MAX_RELAY_DRAIN {
            return Err(ConfigError::RelayDrain { value: self.relay_drain });
        }
        if self.role == Role::Bootstrap && self.relay_fallback {
            return Err(ConfigError::BootstrapWithRelayFallback);
        }
        if let Some(value) = self.coordinators.iter().find(|a| peer_of(a).is_none()) {
            return Err(ConfigError::CoordinatorWithoutPeerId { value: value.clone() });
        }
        if let Some(value) = self.bind_addresses.iter().find(|a| !is_quic_v1(a)) {
            return Err(ConfigError::BindAddress { value: value.clone() });
        }
        self.quic.validate()
    }

    /// Returns the part that the protocol needs.
    pub(crate) fn protocol(&self) -> libp2p_punch_proto::config::Config {
        libp2p_punch_proto::config::Config {
            role: self.role,
            max_candidates: self.max_candidates,
            max_concurrent_attempts: self.max_concurrent_attempts,
            max_attempts: self.max_attempts,
            coordination_timeout: self.coordination_timeout,
            lookup_timeout: self.lookup_timeout,
            phase_timeouts: self.phase_timeouts.clone(),
            prediction: self.prediction,
            birthday_search: self.birthday_search,
            host_candidates: self.host_candidates,
            disclosure: self.disclosure,
            coordinator_limits: self.coordinator_limits,
            gater: self.gater.clone(),
        }
    }

    fn validate_coordinator_limits(&self) -> Result<(), ConfigError> {
        let CoordinatorLimits { max_registrations, register_rate, request_rate, pair_rate } =
            self.coordinator_limits;
        if !MAX_REGISTRATIONS.contains(&max_registrations) {
            return Err(ConfigError::OutOfBounds {
                field: "coordinator_limits.max_registrations",
                value: max_registrations.to_string(),
                bound: format!("within {}..={}", MAX_REGISTRATIONS.start(), MAX_REGISTRATIONS.end()),
            });
        }
        let seldom = (1..=1_000, Duration::from_millis(1)..=Duration::from_secs(10));
        let allowance =
            (MIN_ALLOWANCE.burst..=MAX_ALLOWANCE.burst, MAX_ALLOWANCE.interval..=MIN_ALLOWANCE.interval);
        for (field, rate, (bursts, intervals)) in [
            ("coordinator_limits.register_rate", register_rate, &seldom),
            ("coordinator_limits.request_rate", request_rate, &allowance),
            ("coordinator_limits.pair_rate", pair_rate, &seldom),
        ] {
            if !bursts.contains(&rate.burst) || !intervals.contains(&rate.interval) {
                return Err(ConfigError::OutOfBounds {
                    field,
                    value: format!("{} at once and one in {:?}", rate.burst, rate.interval),
                    bound: format!(
                        "{} to {} at once and one in {:?} to {:?}",
                        bursts.start(),
                        bursts.end(),
                        intervals.start(),
                        intervals.end()
                    ),
                });
            }
        }
        Ok(())
    }

    fn validate_timeouts(&self) -> Result<(), ConfigError> {
        let phases = &self.phase_timeouts;
        for (field, value) in [
            ("coordination_timeout", self.coordination_timeout),
            ("lookup_timeout", self.lookup_timeout),
            ("phase_timeouts.discovery", phases.discovery),
            ("phase_timeouts.synchronization", phases.synchronization),
            ("phase_timeouts.punching", phases.punching),
            ("phase_timeouts.validation", phases.validation),
        ] {
            if !TIMEOUT.contains(&value) {
                return Err(ConfigError::Timeout { field, value });
            }
        }
        Ok(())
    }
}

/// The peer at the end of an address, if it ends in `/p2p/PEER_ID`.
pub(crate) fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

fn is_quic_v1(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    matches!(parts.next(), Some(Protocol::Ip4(_) | Protocol::Ip6(_)))
        && matches!(parts.next(), Some(Protocol::Udp(_)))
        && matches!(parts.next(), Some(Protocol::QuicV1))
        && matches!((parts.next(), parts.next()), (None | Some(Protocol::P2p(_)), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    /// A change that violates a rule, and the words that its error must have.
    type Case = (Box<dyn Fn(&mut Config)>, &'static [&'static str]);

    fn assert_all_named(cases: Vec<Case>) {
        for (change, words) in cases {
            let mut config = Config::default();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            for word in words {
                assert!(message.contains(word), "{message:?} does not name {word:?}");
            }
        }
    }

    #[test]
    fn every_violated_rule_names_field_value_and_bound() {
        assert_all_named(vec![
            (Box::new(|c| c.max_candidates = 0), &["max_candidates", "0", "1..=16"]),
            (Box::new(|c| c.max_candidates = 17), &["max_candidates", "17", "1..=16"]),
            (Box::new(|c| c.max_concurrent_attempts = 0), &["max_concurrent_attempts", "0", "1..=16"]),
            (Box::new(|c| c.max_concurrent_attempts = 17), &["max_concurrent_attempts", "17", "1..=16"]),
            (Box::new(|c| c.max_candidates = 2), &["max_concurrent_attempts", "3", "max_candidates", "2"]),
            (Box::new(|c| c.max_attempts = 0), &["max_attempts", "0", "1..=16"]),
            (
                Box::new(|c| c.coordination_timeout = Duration::from_millis(99)),
                &["coordination_timeout", "99ms", "100 ms"],
            ),
            (
                Box::new(|c| c.coordination_timeout = Duration::from_secs(301)),
                &["coordination_timeout", "301s", "300 s"],
            ),
            (Box::new(|c| c.relay_drain = Duration::from_secs(86_401)), &["relay_drain", "86401s", "a day"]),
            (
                Box::new(|c| c.phase_timeouts.punching = Duration::ZERO),
                &["phase_timeouts.punching", "0ns", "100 ms"],
            ),
            (Box::new(|c| c.role = Role::Bootstrap), &["relay_fallback", "true", "bootstrap"]),
            (
                Box::new(|c| c.coordinators = vec!["/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap()]),
                &["coordinators", "/ip4/192.0.2.1/udp/4001/quic-v1", "/p2p/PEER_ID"],
            ),
            (
                Box::new(|c| c.bind_addresses = vec!["/ip4/0.0.0.0/tcp/0".parse().unwrap()]),
                &["bind_addresses", "/ip4/0.0.0.0/tcp/0", "quic-v1"],
            ),
        ]);
    }

    #[test]
    fn every_violated_limit_of_a_coordinator_names_field_value_and_bound() {
        let millis = Duration::from_millis;
        assert_all_named(vec![
            (
                Box::new(|c| c.coordinator_limits.max_registrations = 0),
                &["coordinator_limits.max_registrations", "0", "1..=1000000"],
            ),
            (
                Box::new(|c| c.coordinator_limits.request_rate.burst = 19),
                &["coordinator_limits.request_rate", "19 at once", "20 to 1000 at once"],
            ),
            (
                Box::new(move |c| c.coordinator_limits.request_rate.interval = millis(101)),
                &["coordinator_limits.request_rate", "one in 101ms", "1ms to 100ms"],
            ),
            (
                Box::new(|c| c.coordinator_limits.register_rate.interval = Duration::ZERO),
                &["coordinator_limits.register_rate", "one in 0ns", "1ms to 10s"],
            ),
            (
                Box::new(|c| c.coordinator_limits.pair_rate.burst = 0),
                &["coordinator_limits.pair_rate", "0 at once", "1 to 1000 at once"],
            ),
        ]);
    }

    #[test]
    fn every_violated_rule_of_quic_names_field_value_and_bound() {
        assert_all_named(vec![
            (
                Box::new(|c| c.quic.keep_alive_interval = Duration::from_secs(10)),
                &["quic.keep_alive_interval", "10s", "quic.max_idle_timeout"],
            ),
            (
                Box::new(|c| c.quic.max_concurrent_stream_limit = 0),
                &["quic.max_concurrent_stream_limit", "0", "1"],
            ),
            (Box::new(|c| c.quic.max_stream_data = 0), &["quic.max_stream_data", "0", "1"]),
            (Box::new(|c| c.quic.max_connection_data = 0), &["quic.max_connection_data", "0", "1"]),
            (Box::new(|c| c.quic.max_send_data = 0), &["quic.max_send_data", "0", "1"]),
            (Box::new(|c| c.quic.max_half_open = 0), &["quic.max_half_open", "0", "1"]),
            (Box::new(|c| c.quic.max_connections = Some(0)), &["quic.max_connections", "0", "1"]),
            (
                Box::new(|c| c.quic.max_half_open_per_prefix = Some(0)),
                &["quic.max_half_open_per_prefix", "0", "1"],
            ),
            (
                Box::new(|c| c.quic.max_connections_per_prefix = Some(0)),
                &["quic.max_connections_per_prefix", "0", "1"],
            ),
            (Box::new(|c| c.quic.initial_mtu = 1_199), &["quic.initial_mtu", "1199", "1200..=65527"]),
            (
                Box::new(|c| c.quic.initial_mtu = 1_453),
                &["quic.max_mtu", "1452", "quic.initial_mtu", "1453", "65527"],
            ),
            (Box::new(|c| c.quic.max_mtu = 65_528), &["quic.max_mtu", "65528", "65527"]),
            (
                Box::new(|c| c.quic.socket_buffer = Some(4_095)),
                &["quic.socket_buffer", "4095", "4096..=1073741824"],
            ),
            (
                Box::new(|c| c.quic.handshake_timeout = Duration::ZERO),
                &["quic.handshake_timeout", "0ns", "100 ms"],
            ),
        ]);
    }

    #[cfg(not(feature = "qlog"))]
    #[test]
    fn a_folder_for_traces_needs_the_feature() {
        let mut config = Config::default();
        config.quic.qlog = Some("traces".into());
        assert_eq!(config.validate(), Err(ConfigError::QlogNotBuilt));
    }

    #[test]
    fn a_bootstrap_without_relay_fallback_is_valid() {
        let config = Config { role: Role::Bootstrap, relay_fallback: false, ..Config::default() };
        assert_eq!(config.validate(), Ok(()));
    }
}
