//! The results as one JSON document.

use punch_lab::Outcome;
use serde_json::{Value, json};

use super::matrix::{Cell, Conditions, Matrix, Mode, Study, quantile};
use crate::output::milliseconds;

/// Returns the document; times are milliseconds.
pub(super) fn document(study: &Study) -> Value {
    let mode = match &study.mode {
        Mode::Kernel { release, measured } => {
            let kinds = measured.iter().map(|(kind, behaviour)| {
                json!({
                    "kind": kind.word(),
                    "mapping": behaviour.mapping.to_string(),
                    "filtering": behaviour.filtering.to_string(),
                    "ports": behaviour.ports.to_string(),
                })
            });
            json!({ "mode": "kernel", "kernel": release, "measured": kinds.collect::<Vec<_>>() })
        }
        Mode::Simulated(Conditions { rtt, loss }) => {
            json!({ "mode": "simulated", "rtt_ms": milliseconds(*rtt), "loss_percent": loss })
        }
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "lab": mode,
        "runs": study.runs,
        "implementations": study.matrices.iter().map(matrix).collect::<Vec<_>>(),
    })
}

fn matrix(matrix: &Matrix) -> Value {
    let tally = matrix.tally();
    let times = matrix.direct_times();
    let at = |share| quantile(&times, share).map(milliseconds);
    json!({
        "implementation": matrix.implementation.word(),
        "kinds": matrix.kinds.iter().map(|kind| kind.word()).collect::<Vec<_>>(),
        "direct": tally.direct,
        "relayed": tally.relayed,
        "failed": tally.failed,
        "direct_ms": { "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0) },
        "pairs": matrix.cells().iter().map(pair).collect::<Vec<_>>(),
    })
}

fn pair(cell: &Cell) -> Value {
    let tally = cell.tally();
    json!({
        "dialer": cell.dialer.word(),
        "listener": cell.listener.word(),
        "direct": tally.direct,
        "relayed": tally.relayed,
        "failed": tally.failed,
        "median_ms": quantile(&cell.times(), 0.5).map(milliseconds),
        "runs": cell.outcomes.iter().map(run).collect::<Vec<_>>(),
    })
}

fn run(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Connected { relayed, elapsed, remote } => json!({
            "path": if *relayed { "relayed" } else { "direct" },
            "elapsed_ms": milliseconds(*elapsed),
            "remote": remote,
        }),
        Outcome::Failed { reason, message } => {
            json!({ "path": "failed", "reason": reason, "message": message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::matrix::tests::example;

    #[test]
    fn the_document_holds_every_run_and_can_be_read_again() {
        let text = format!("{:#}", document(&example()));
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["lab"]["mode"], "kernel");
        assert_eq!(read["lab"]["measured"][1]["filtering"], "address-and-port-dependent");
        assert_eq!(read["runs"], 3);
        let all = &read["implementations"][0];
        assert_eq!((&all["direct"], &all["relayed"], &all["failed"]), (&json!(4), &json!(4), &json!(4)));
        assert_eq!(all["kinds"], json!(["public", "eim+apdf"]));
        assert_eq!(all["direct_ms"], json!({ "p50": 3.0, "p90": 1200.0, "p99": 1200.0, "max": 1200.0 }));
        let pairs = all["pairs"].as_array().unwrap();
        assert_eq!(pairs.len(), 4);
        assert!(pairs.iter().all(|pair| pair["runs"].as_array().is_some_and(|runs| runs.len() == 3)));
        assert_eq!(pairs[2]["runs"][0]["message"], "after <30> s & no \"path\"");
        assert_eq!(pairs[2]["median_ms"], Value::Null);
        assert_eq!(pairs[3]["runs"][1]["path"], "relayed");
    }
}
