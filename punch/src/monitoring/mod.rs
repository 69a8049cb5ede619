//! Metrics and health of a node over HTTP.

mod exposition;
mod readiness;
mod server;

use std::sync::Arc;

use libp2p::{metrics, swarm::SwarmEvent};
use libp2p_punch::{
    Event,
    metrics::{Recorder, Registry},
};

pub(crate) use self::{readiness::Readiness, server::MetricsServer};

/// Sources of a [`MetricsServer`]: the metrics of a node, and its readiness.
#[derive(Debug, Clone)]
pub(crate) struct Monitor {
    registry: Arc<Registry>,
    readiness: Readiness,
}

/// Recorders of the events of a node.
pub(crate) struct NodeMetrics {
    punch: libp2p_punch::metrics::Metrics,
    swarm: metrics::Metrics,
    monitor: Monitor,
}

impl NodeMetrics {
    /// Registers the metrics of a node.
    pub(crate) fn new(behaviour: &libp2p_punch::Behaviour, readiness: Readiness) -> Self {
        let mut registry = Registry::default();
        let punch = libp2p_punch::metrics::Metrics::new(behaviour, &mut registry);
        let swarm = metrics::Metrics::new(&mut registry);
        Self { punch, swarm, monitor: Monitor { registry: Arc::new(registry), readiness } }
    }

    /// Returns the sources of a server.
    pub(crate) fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// Returns the readiness of the node.
    pub(crate) fn readiness(&self) -> &Readiness {
        &self.monitor.readiness
    }

    /// Records an event of the library.
    pub(crate) fn record(&self, event: &Event) {
        self.punch.record(event);
    }

    /// Records a port mapping.
    pub(crate) fn record_port_mapping(&self, event: &libp2p_punch::port_mapping::Event) {
        metrics::Recorder::record(&self.punch, event);
    }

    /// Records an event of the swarm.
    pub(crate) fn record_swarm<E>(&self, event: &SwarmEvent<E>) {
        metrics::Recorder::record(&self.swarm, event);
    }

    /// Records an event of the relay.
    pub(crate) fn record_relay(&self, event: &libp2p::relay::Event) {
        metrics::Recorder::record(&self.swarm, event);
    }
}
