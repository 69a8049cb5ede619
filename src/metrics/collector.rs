//! Metrics that are read from the counters at each scrape.

use std::fmt;

use libp2p_punch_proto::counters::{Counters as ProtocolCounters, Rejections};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::{behaviour::counts::Counts, counters::PathCounters, explain::Explain};

/// Collector of the counters of a behaviour.
#[derive(Debug)]
pub(super) struct CountersCollector(pub(super) Counts);

impl Collector for CountersCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.0.get();
        let mut scrape = Scrape(encoder);
        scrape.protocol(&counters.protocol)?;
        scrape.coordinator(&counters.protocol)?;
        scrape.paths(&counters.paths)?;
        let traffic = [("sent", counters.control_bytes_sent), ("received", counters.control_bytes_received)];
        scrape.bytes_by("control_stream", "Bytes of control streams", "direction", traffic)?;
        scrape.gauge(
            "control_stream_queue",
            "Bytes of frames that wait for control streams",
            Some(Unit::Bytes),
            counters.frame_bytes_queued,
        )?;
        scrape.counter(
            "events_dropped",
            "Events about the progress of sessions that a busy swarm did not take",
            counters.events_dropped,
        )
    }
}

/// One scrape.
struct Scrape<'a>(DescriptorEncoder<'a>);

impl Scrape<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
    }

    fn bytes(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn by(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        self.family(name, help, None, label, values)
    }

    fn bytes_by(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        self.family(name, help, Some(&Unit::Bytes), label, values)
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (value, count) in values {
            ConstCounter::new(count).encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }

    fn protocol(&mut self, counters: &ProtocolCounters) -> fmt::Result {
        let results = [("success", counters.successes), ("failure", counters.failures)];
        self.by("attempts", "Attempts that ended, by result", "result", results)?;
        self.gauge("attempts_in_flight", "Attempts under way", None, counters.in_flight)?;
        self.counter("coordinations", "Answers of coordinators to requests", counters.coordinations)?;
        let seconds = self.0.encode_descriptor(
            "coordination",
            "Sum of the times from requests to their answers",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        ConstCounter::new(counters.coordination_time.as_secs_f64()).encode(seconds)?;
        let probes = [
            ("sent", counters.probes_sent),
            ("received", counters.probes_received),
            ("refused", counters.probes_refused),
        ];
        self.by(
            "probes",
            "Probes sent, received, and refused because they were not authentic",
            "kind",
            probes,
        )?;
        self.bytes("probe_sent", "Bytes of probes sent", counters.probe_bytes_sent)?;
        self.counter("searches", "Searches for ports that began", counters.searches)?;
        self.counter("searches_queued", "Searches that waited for others", counters.searches_queued)?;
        self.counter("search_probes_sent", "Probes sent by searches", counters.search_probes_sent)?;
        self.counter("renewals", "Moves to a fresh socket before a NAT drops a mapping", counters.renewals)?;
        self.counter(
            "frames_refused",
            "Frames of remotes that broke a rule or a cap",
            counters.frames_refused,
        )?;
        self.counter("caps_hit", "Times that a remote met a cap or a rate limit", counters.caps_hit)
    }

    fn coordinator(&mut self, counters: &ProtocolCounters) -> fmt::Result {
        let rejected = |rejections: Rejections| {
            rejections.by_reason().map(|(reason, count)| (reason.code(), count)).collect::<Vec<_>>()
        };
        self.gauge(
            "coordinator_registered_peers",
            "Peers that are registered with this coordinator",
            None,
            counters.registrations,
        )?;
        let mut results = vec![("accepted", counters.registrations_accepted)];
        results.extend(rejected(counters.registrations_rejected));
        self.by(
            "coordinator_registrations",
            "Registrations with this coordinator, by result",
            "result",
            results,
        )?;
        self.counter(
            "coordinator_registrations_evicted",
            "Registrations that made room for peers of smaller networks",
            counters.registrations_evicted,
        )?;
        let mut results = vec![("forwarded", counters.requests_forwarded)];
        results.extend(rejected(counters.requests_rejected));
        self.by(
            "coordinator_requests",
            "Requests for other peers at this coordinator, by result",
            "result",
            results,
        )?;
        self.counter(
            "coordinator_filter_probes_sent",
            "Datagrams that tested how NATs of clients filter",
            counters.filter_probes_sent,
        )
    }

    fn paths(&mut self, paths: &PathCounters) -> fmt::Result {
        self.bytes("session_received", "Bytes of QUIC packets of sessions received", paths.bytes_received)?;
        self.bytes("session_dropped", "Bytes of QUIC packets of sessions dropped", paths.bytes_dropped)?;
        self.counter(
            "datagrams_unsent",
            "Datagrams of sessions without a path or a budget",
            paths.datagrams_unsent,
        )?;
        self.counter("send_errors", "Sends of sessions that failed", paths.send_errors)?;
        let refused = [
            ("flow", paths.flows_refused),
            ("path", paths.paths_refused),
            ("socket", paths.sockets_refused),
            ("stray", paths.strays_dropped),
            ("probe", paths.probes_dropped),
        ];
        self.by("path_layer_refusals", "Flows, paths, sockets and packets refused", "kind", refused)
    }
}
