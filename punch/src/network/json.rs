//! The results as one JSON document.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Arguments,
    report::{IdleNode, Report, Round, Tally, Traffic, quantile},
};
use crate::output::milliseconds;

/// Returns the document; times are milliseconds, traffic is UDP payload a second.
pub(super) fn document(arguments: &Arguments, report: &Report) -> Value {
    let joined = &report.joined;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "nodes": joined.nodes,
        "public": joined.public,
        "loss_percent": arguments.loss,
        "churn_percent_an_hour": arguments.churn,
        "seed": arguments.seed,
        "coordinators": joined.coordinators,
        "hidden": joined.hidden,
        "hidden_with_one_coordinator": joined.with_one,
        "hidden_with_all_coordinators": joined.with_all,
        "registered_after_ms": milliseconds(joined.waited),
        "rounds": report.rounds.iter().map(round).collect::<Vec<_>>(),
        "requests_by_coordinator": report.load.requests,
        "idle": { "hidden": idle(&report.idle.hidden), "coordinators": idle(&report.idle.coordinators) },
        "simulated_ms": milliseconds(report.elapsed),
    })
}

fn round(round: &Round) -> Value {
    let times = round.times();
    let pairs = round
        .tally_by_pair()
        .into_iter()
        .map(|(one, other, counts)| json!({ "kinds": [one.word(), other.word()], "dials": tally(&counts) }));
    json!({
        "name": round.name,
        "dials": tally(&round.tally()),
        "dials_that_can_be_direct": tally(&round.tally_possible()),
        "connect_ms": quantiles(&times.all),
        "lookup_ms": quantiles(&times.lookup),
        "punch_ms": quantiles(&times.punch),
        "over_bound_ms": quantiles(&times.over_bound),
        "pairs": pairs.collect::<Vec<_>>(),
        "failures": round.failures(),
    })
}

fn tally(tally: &Tally) -> Value {
    let Tally { already, direct, upgraded, relayed, failed } = tally;
    json!({
        "connected_before": already,
        "direct": direct,
        "relayed_then_direct": upgraded,
        "relayed": relayed,
        "failed": failed,
    })
}

fn quantiles(sorted: &[Duration]) -> Value {
    let at = |share| quantile(sorted, share).map(milliseconds);
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0) })
}

fn idle(node: &IdleNode) -> Value {
    json!({ "peers": node.peers, "mean": traffic(&node.traffic), "quietest_minute": traffic(&node.quietest) })
}

fn traffic(traffic: &Traffic) -> Value {
    json!({
        "datagrams_sent": traffic.datagrams_sent,
        "bytes_sent": traffic.bytes_sent,
        "datagrams_received": traffic.datagrams_received,
        "bytes_received": traffic.bytes_received,
    })
}
