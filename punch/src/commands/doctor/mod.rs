//! `punch doctor`: tells why a peer cannot be reached.
//!
//! The subcommand connects as any other does, and gathers what the node observes on the way
//! (`facts`). Coordinators that do not answer are probed (`probe`). A pure function makes findings
//! and a verdict of the facts (`judgement`).

mod cause;
mod facts;
mod judgement;
mod probe;

use std::{pin::pin, time::Duration};

use futures::future::join_all;
use libp2p_punch_node::{ConnectionStatus, Diagnostics, Multiaddr, Node, Route, Target, multiaddr::Protocol};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout, timeout_at};

#[cfg(test)]
pub(crate) use self::cause::Cause;
use self::{
    facts::{Facts, Outcome},
    judgement::{Diagnosis, Finding, State, judge},
    probe::Probe,
};
use super::peer::{self, Settings};
use crate::{
    args::Doctor,
    exit::{Exit, Failure},
    output::{Report, milliseconds},
    signal::Stop,
};

/// Protocol of streams, which the doctor does not open: each peer answers it.
const PROTOCOL: &str = "/ipfs/ping/1.0.0";
/// Time for the coordinators to accept or refuse a registration, the connection included.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the other coordinators once one has accepted.
const OTHER_COORDINATORS_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for a direct path to replace a relayed connection.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the facts that come after a result.
const LATE_FACTS_TIMEOUT: Duration = Duration::from_millis(300);

/// Runs until the verdict, Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Doctor) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let target = peer::target(&arguments.peer)?;
    let settings = Settings { protocol: PROTOCOL, connect_timeout: arguments.timeout };
    let (node, diagnostics) = peer::start_with_diagnostics(&arguments.node, settings).await?;
    let mut report = Report::new(arguments.node.common.json);
    report.status("examining");
    let examination = Examination::new(&node, diagnostics, target, &arguments.node.bootstrap);
    let facts = tokio::select! {
        facts = examination.run(async |address| probe::probe(&address).await) => Some(facts),
        () = stop.requested() => None,
    };
    node.shutdown().await;
    match facts {
        Some(facts) => print(&mut report, &judge(&facts)),
        None => Err(Failure::error("interrupted")),
    }
}

/// Gathers facts.
struct Examination<'a> {
    node: &'a Node,
    target: Target,
    diagnostics: Diagnostics,
    facts: Facts,
    /// Coordinators that were configured. The others are those that the target names.
    configured: usize,
    begun: Instant,
}

impl<'a> Examination<'a> {
    /// `bootstrap` are the addresses with which the node was built, and `diagnostics` all facts
    /// since then.
    fn new(node: &'a Node, diagnostics: Diagnostics, target: Target, bootstrap: &[Multiaddr]) -> Self {
        let (circuits, addresses): (Vec<_>, Vec<_>) =
            target.addresses().iter().cloned().partition(|address| relay_of(address).is_some());
        let mut coordinators = bootstrap.to_vec();
        for coordinator in circuits.iter().filter_map(relay_of) {
            if !coordinators.contains(&coordinator) {
                coordinators.push(coordinator);
            }
        }
        let facts = Facts::new(target.peer(), coordinators, addresses);
        Self { node, diagnostics, target, facts, configured: bootstrap.len(), begun: Instant::now() }
    }

    /// Gathers all facts. Addresses of coordinators that do not answer are probed by `probe`.
    async fn run(mut self, probe: impl AsyncFn(Multiaddr) -> Option<Probe>) -> Facts {
        self.facts.interfaces = self.node.addresses().into_iter().filter(|it| !is_loopback(it)).collect();
        self.wait_for_coordinators().await;
        self.probe(&probe).await;
        let is_entered = self.facts.coordinators.iter().any(|coordinator| coordinator.is_connected());
        if self.configured == 0 || is_entered || !self.target.addresses().is_empty() {
            self.connect().await;
            // The coordinators that the target names were dialed with it.
            self.probe(&probe).await;
        }
        self.facts
    }

    /// Waits for the configured coordinators, which the node dials by itself.
    async fn wait_for_coordinators(&mut self) {
        let mut deadline = Instant::now() + COORDINATOR_TIMEOUT;
        loop {
            let coordinators = self.facts.coordinators.get(..self.configured).unwrap_or_default();
            if coordinators.iter().all(|coordinator| coordinator.is_settled()) {
                return;
            }
            if coordinators.iter().any(|coordinator| matches!(coordinator.registration, Some(Ok(_)))) {
                deadline = deadline.min(Instant::now() + OTHER_COORDINATORS_TIMEOUT);
            }
            match timeout_at(deadline, self.diagnostics.next()).await {
                Ok(Some(fact)) => self.facts.record(&fact, self.begun.elapsed()),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Probes the coordinators that do not answer.
    async fn probe(&mut self, probe: &impl AsyncFn(Multiaddr) -> Option<Probe>) {
        let silent = self.facts.coordinators.iter_mut().filter(|it| it.is_silent() && it.probe.is_none());
        let probes = silent.map(async |coordinator| {
            coordinator.probe = probe(coordinator.address.clone()).await;
        });
        join_all(probes).await;
    }

    async fn connect(&mut self) {
        let (begun, node, target) = (Instant::now(), self.node, self.target.clone());
        let connection = match self.recording(node.connect(target)).await {
            Ok(connection) => connection,
            Err(error) => {
                self.facts.outcome = Outcome::Failed(error);
                return self.record_late_facts().await;
            }
        };
        if !connection.status().is_direct() {
            // The verdict tells why there is no direct path, if there is none in time.
            let _ = self.recording(timeout(DIRECT_TIMEOUT, connection.wait_direct())).await;
        }
        self.facts.outcome = match connection.status() {
            ConnectionStatus::Connected { route: Route::Direct, address, .. } => {
                Outcome::Direct { address, after: begun.elapsed() }
            }
            _ => Outcome::Relayed { after: begun.elapsed() },
        };
        self.record_late_facts().await;
    }

    /// Takes note of facts until `work` is done.
    async fn recording<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                Some(fact) = self.diagnostics.next() => self.facts.record(&fact, self.begun.elapsed()),
                result = &mut work => return result,
            }
        }
    }

    /// Takes note of the facts that come soon after a result.
    async fn record_late_facts(&mut self) {
        self.recording(sleep(LATE_FACTS_TIMEOUT)).await;
    }
}

/// Returns the address of the relay in an address over it.
fn relay_of(address: &Multiaddr) -> Option<Multiaddr> {
    let is_circuit = |part: &Protocol<'_>| matches!(part, Protocol::P2pCircuit);
    address.iter().any(|part| is_circuit(&part)).then(|| {
        let relay: Multiaddr = address.iter().take_while(|part| !is_circuit(part)).collect();
        relay
    })
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

fn print(report: &mut Report, diagnosis: &Diagnosis) -> Result<Exit, Failure> {
    for finding in &diagnosis.findings {
        report.result(&line(finding), &object(finding))?;
    }
    let verdict = &diagnosis.verdict;
    let exit = verdict.fault.exit_code();
    let lines = format!("\n{} ({})\n{}", verdict.sentence, verdict.code, verdict.remedy);
    let object = json!({
        "event": "verdict",
        "code": verdict.code,
        "message": verdict.sentence,
        "remedy": verdict.remedy,
        "exit": exit,
    });
    report.result(&lines, &object)?;
    Ok(Exit::Verdict(exit))
}

fn line(finding: &Finding) -> String {
    let state = word(finding.state);
    let time = finding.time.map(|time| format!(" ({:.1} ms)", milliseconds(time))).unwrap_or_default();
    format!("{:<18} {state:<10} {}{time}", finding.step.name(), finding.text)
}

fn word(state: State) -> &'static str {
    match state {
        State::Passed => "ok",
        State::Failed => "failed",
        State::NotTested => "not tested",
    }
}

fn object(finding: &Finding) -> Value {
    json!({
        "event": "finding",
        "step": finding.step.name(),
        "state": word(finding.state),
        "message": finding.text,
        "elapsed_ms": finding.time.map(milliseconds),
        "code": finding.explanation.map(|explanation| explanation.code),
        "remedy": finding.explanation.map(|explanation| explanation.remedy),
    })
}

#[cfg(test)]
mod tests;
