//! Metrics for Prometheus, in the conventions of libp2p-metrics.
//!
//! [`Metrics`] counts the events of a [`Behaviour`] as a [`Recorder`], and reads its
//! [`Counters`](crate::counters::Counters) at each scrape. The names begin with `libp2p_punch`.
//! `docs/operations.md` describes each metric. Labels have few values, and never those of a remote:
//! no PeerId, no address.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use libp2p::identity::Keypair;
//! use libp2p_punch::metrics::{Metrics, Recorder};
//! use prometheus_client::{encoding::text::encode, registry::Registry};
//!
//! let (transport, punch) = libp2p_punch::new(&Keypair::generate_ed25519(), Default::default())?;
//! let mut registry = Registry::default();
//! let metrics = Metrics::new(&punch, &mut registry);
//! // For each event of the behaviour: metrics.record(&event);
//! let mut text = String::new();
//! encode(&mut text, &registry)?;
//! assert!(text.contains("libp2p_punch_attempts_in_flight 0"));
//! # Ok(()) }
//! ```

mod collector;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use libp2p_metrics::{Recorder, Registry};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Unit,
};

use self::collector::CountersCollector;
use crate::{
    behaviour::Behaviour,
    event::{
        Event, FailureReason, NatEvent, NatKinds, PathKind, PhaseTimes, RegistrationEvent,
        RegistrationStatus, RelayEvent, SessionEvent, SessionRole,
    },
    explain::Explain,
    nat::{FilteringBehaviour, MappingBehaviour, Report},
};

/// Upper bounds of the buckets of times, in seconds: from a local network to the end of a search.
const TIME_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// Metrics of a [`Behaviour`]: counts of its events, and its counters.
#[derive(Debug)]
pub struct Metrics {
    sessions: Family<SessionLabels, Counter>,
    connect_times: Family<RoleLabels, Histogram>,
    phase_times: Family<PhaseLabels, Histogram>,
    paths: Family<PathLabels, Counter>,
    retries: Family<ReasonLabels, Counter>,
    denied: Counter,
    paths_lost: Counter,
    registrations: Family<ResultLabels, Counter>,
    registration_times: Histogram,
    coordinators: Family<StateLabels, Gauge>,
    relayed: Counter,
    relay_failures: Family<ReasonLabels, Counter>,
    upgrades: Counter,
    reservations: Gauge,
    nat: Family<NatLabels, Gauge>,
    #[cfg(feature = "port-mapping")]
    port_mappings: Family<ProtocolLabels, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SessionLabels {
    role: &'static str,
    outcome: &'static str,
    reason: &'static str,
    local_nat: &'static str,
    remote_nat: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabels {
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NatLabels {
    mapping: &'static str,
    filtering: &'static str,
}

#[cfg(feature = "port-mapping")]
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabels {
    protocol: &'static str,
}

fn times() -> Histogram {
    Histogram::new(TIME_BUCKETS)
}

impl Metrics {
    /// Registers the metrics of `behaviour`.
    pub fn new(behaviour: &Behaviour, registry: &mut Registry) -> Self {
        let metrics = Self {
            sessions: Family::default(),
            connect_times: Family::new_with_constructor(times),
            phase_times: Family::new_with_constructor(times),
            paths: Family::default(),
            retries: Family::default(),
            denied: Counter::default(),
            paths_lost: Counter::default(),
            registrations: Family::default(),
            registration_times: times(),
            coordinators: Family::default(),
            relayed: Counter::default(),
            relay_failures: Family::default(),
            upgrades: Counter::default(),
            reservations: Gauge::default(),
            nat: Family::default(),
            #[cfg(feature = "port-mapping")]
            port_mappings: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("libp2p_punch");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the library", build);
        metrics.register_sessions(registry);
        metrics.register_surroundings(registry);
        registry.register_collector(Box::new(CountersCollector(behaviour.counts().clone())));
        metrics
    }

    fn register_sessions(&self, registry: &mut Registry) {
        registry.register(
            "sessions",
            "Sessions that ended, by role, outcome, reason of the failure and the NATs of both peers",
            self.sessions.clone(),
        );
        registry.register_with_unit(
            "session_connect",
            "Time from the begin of a session to its connection",
            Unit::Seconds,
            self.connect_times.clone(),
        );
        registry.register_with_unit(
            "session_phase",
            "Parts of the time to connect, over all attempts of a session",
            Unit::Seconds,
            self.phase_times.clone(),
        );
        registry.register(
            "session_paths",
            "Connections of sessions by the source of the peer's address",
            self.paths.clone(),
        );
        registry.register(
            "session_retries",
            "Attempts that failed and were followed by another one",
            self.retries.clone(),
        );
        registry.register(
            "sessions_denied",
            "Connections of sessions that the swarm of either side did not take",
            self.denied.clone(),
        );
        registry.register(
            "session_paths_lost",
            "Connections of sessions that lost every path",
            self.paths_lost.clone(),
        );
    }

    fn register_surroundings(&self, registry: &mut Registry) {
        registry.register(
            "registrations",
            "Answers of coordinators to registrations of this peer",
            self.registrations.clone(),
        );
        registry.register_with_unit(
            "registration",
            "Time that coordinators took to answer registrations of this peer",
            Unit::Seconds,
            self.registration_times.clone(),
        );
        registry.register(
            "coordinators",
            "Coordinators of this peer that are configured or found, and those that know it",
            self.coordinators.clone(),
        );
        registry.register("relayed_peers", "Peers that became connected over a relay", self.relayed.clone());
        registry.register(
            "relay_failures",
            "Peers that could not be reached over a relay",
            self.relay_failures.clone(),
        );
        registry.register(
            "relay_upgrades",
            "Peers whose relayed connection became direct",
            self.upgrades.clone(),
        );
        registry.register(
            "relay_reservations",
            "Reservations of this peer at relays",
            self.reservations.clone(),
        );
        #[cfg(feature = "port-mapping")]
        registry.register(
            "port_mappings",
            "Ports that the gateway of the network forwards to this peer",
            self.port_mappings.clone(),
        );
        registry.register("nat", "Behaviour of the NAT in front of this peer; always 1", self.nat.clone());
    }

    fn record_session(&self, event: &SessionEvent) {
        match event {
            SessionEvent::Connected { role, kind, elapsed, times, nats, .. } => {
                self.connected(*role, *kind, *nats);
                self.connect_times
                    .get_or_create(&RoleLabels { role: role_name(*role) })
                    .observe(seconds(*elapsed));
                self.observe_phases(times);
            }
            SessionEvent::Failed { role, reason, nats, .. } => self.failed(*role, *reason, *nats),
            SessionEvent::Retry { reason, .. } => {
                self.retries.get_or_create(&ReasonLabels { reason: reason.code() }).inc();
            }
            SessionEvent::Denied { .. } => {
                self.denied.inc();
            }
            SessionEvent::PathLost { .. } => {
                self.paths_lost.inc();
            }
            _ => {}
        }
    }

    fn connected(&self, role: SessionRole, kind: PathKind, nats: NatKinds) {
        let labels = SessionLabels {
            role: role_name(role),
            outcome: "connected",
            reason: "none",
            local_nat: nats.local.name(),
            remote_nat: nats.remote.name(),
        };
        self.sessions.get_or_create(&labels).inc();
        self.paths.get_or_create(&PathLabels { kind: kind.name() }).inc();
    }

    fn failed(&self, role: SessionRole, reason: FailureReason, nats: NatKinds) {
        let labels = SessionLabels {
            role: role_name(role),
            outcome: "failed",
            reason: reason.code(),
            local_nat: nats.local.name(),
            remote_nat: nats.remote.name(),
        };
        self.sessions.get_or_create(&labels).inc();
    }

    fn observe_phases(&self, times: &PhaseTimes) {
        for (phase, time) in [
            ("discovery", times.discovery),
            ("coordination", times.coordination),
            ("punching", times.punching),
            ("validation", times.validation),
        ] {
            self.phase_times.get_or_create(&PhaseLabels { phase }).observe(seconds(time));
        }
    }

    fn registered(&self, result: &'static str, rtt: Option<Duration>) {
        self.registrations.get_or_create(&ResultLabels { result }).inc();
        if let Some(rtt) = rtt {
            self.registration_times.observe(seconds(rtt));
        }
    }

    fn record_registration(&self, event: &RegistrationEvent) {
        match event {
            RegistrationEvent::Accepted { rtt, .. } => self.registered("accepted", *rtt),
            RegistrationEvent::Renewed { rtt, .. } => self.registered("renewed", Some(*rtt)),
            RegistrationEvent::Rejected { reason, .. } => {
                self.registrations.get_or_create(&ResultLabels { result: reason.code() }).inc();
            }
            RegistrationEvent::Status(status) => {
                let (registered, configured) = match *status {
                    RegistrationStatus::Majority { registered, configured }
                    | RegistrationStatus::Partial { registered, configured } => (registered, configured),
                    RegistrationStatus::None { configured } => (0, configured),
                    // Later versions of the protocol crate.
                    _ => return,
                };
                for (state, count) in [("registered", registered), ("configured", configured)] {
                    let count = i64::try_from(count).unwrap_or(i64::MAX);
                    self.coordinators.get_or_create(&StateLabels { state }).set(count);
                }
            }
            _ => {}
        }
    }

    fn record_relay(&self, event: &RelayEvent) {
        match event {
            RelayEvent::Connected { .. } => {
                self.relayed.inc();
            }
            RelayEvent::Failed { reason, .. } => {
                self.relay_failures.get_or_create(&ReasonLabels { reason: reason.code() }).inc();
            }
            RelayEvent::Upgraded { .. } => {
                self.upgrades.inc();
            }
            RelayEvent::Reserved { .. } => {
                self.reservations.inc();
            }
            RelayEvent::Unreserved { .. } => {
                self.reservations.dec();
            }
        }
    }

    fn record_nat(&self, report: &Report) {
        let labels = NatLabels {
            mapping: report.mapping.as_ref().map_or("unknown", |finding| mapping_name(finding.value)),
            filtering: report.filtering.as_ref().map_or("unknown", |finding| filtering_name(finding.value)),
        };
        self.nat.clear();
        self.nat.get_or_create(&labels).set(1);
    }
}

impl Recorder<Event> for Metrics {
    fn record(&self, event: &Event) {
        match event {
            Event::Session(event) => self.record_session(event),
            Event::Registration(event) => self.record_registration(event),
            Event::Relay(event) => self.record_relay(event),
            Event::Nat(NatEvent::Report(report)) => self.record_nat(report),
            Event::Nat(_) => {}
        }
    }
}

#[cfg(feature = "port-mapping")]
impl Recorder<crate::port_mapping::Event> for Metrics {
    fn record(&self, event: &crate::port_mapping::Event) {
        use crate::port_mapping::{Event, Mapping};

        let gauge = |mapping: &Mapping| {
            let labels = ProtocolLabels { protocol: mapping.protocol.as_str() };
            self.port_mappings.get_or_create_owned(&labels)
        };
        match event {
            Event::Mapped(mapping) => {
                gauge(mapping).inc();
            }
            Event::Unmapped(mapping) => {
                gauge(mapping).dec();
            }
            Event::Changed(_) | Event::Refused { .. } => {}
        }
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn role_name(role: SessionRole) -> &'static str {
    match role {
        SessionRole::Initiator => "initiator",
        SessionRole::Responder => "responder",
    }
}

fn mapping_name(mapping: MappingBehaviour) -> &'static str {
    match mapping {
        MappingBehaviour::EndpointIndependent => "endpoint-independent",
        MappingBehaviour::AddressDependent => "address-dependent",
        MappingBehaviour::AddressAndPortDependent => "address-and-port-dependent",
        MappingBehaviour::EndpointDependent => "endpoint-dependent",
    }
}

fn filtering_name(filtering: FilteringBehaviour) -> &'static str {
    match filtering {
        FilteringBehaviour::EndpointIndependent => "endpoint-independent",
        FilteringBehaviour::AddressDependent => "address-dependent",
        FilteringBehaviour::AddressAndPortDependent => "address-and-port-dependent",
        FilteringBehaviour::PortIndependent => "port-independent",
    }
}
