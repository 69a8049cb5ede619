//! `punch ping`: round-trip times to a peer, and each change of the path to it.

use std::time::Duration;

use libp2p_punch_node::{Connection, ConnectionStatus, Node, PeerId, Target};
use rand::Rng;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::peer::{self, Settings};
use crate::{
    args::Ping,
    exit::{Exit, Failure},
    output::{Report, milliseconds, short},
    signal::Stop,
};

/// Protocol that any libp2p peer answers.
const PROTOCOL: &str = "/ipfs/ping/1.0.0";
/// Length of a ping.
const LEN: usize = 32;
/// Time after which a ping counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs until the last ping, a failure, Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Ping) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let target = peer::target(&arguments.peer)?;
    let settings = Settings { protocol: PROTOCOL, connect_timeout: arguments.timeout };
    let node = peer::start(&arguments.node, settings).await?;
    let mut pinging = Pinging {
        node: node.clone(),
        peer: target.peer(),
        target,
        report: Report::new(arguments.node.common.json),
        sent: 0,
        times: Vec::new(),
        shown: ConnectionStatus::Unknown,
    };
    let result = tokio::select! {
        result = pinging.run(arguments.count, arguments.interval) => result,
        () = stop.requested() => Ok(()),
    };
    let result = result.and_then(|()| pinging.summary());
    drop(pinging);
    node.shutdown().await;
    result
}

struct Pinging {
    node: Node,
    target: Target,
    peer: PeerId,
    report: Report,
    sent: u64,
    /// Round-trip times of the pings that were answered.
    times: Vec<Duration>,
    /// Status that was printed last.
    shown: ConnectionStatus,
}

impl Pinging {
    async fn run(&mut self, count: Option<u64>, pause: Duration) -> Result<(), Failure> {
        self.report.status("connecting");
        let connected = peer::connect(&self.node, &self.target).await;
        let mut connection = connected.map_err(|error| peer::not_connected(self.peer, &error))?;
        let mut watch = self.node.watch_status(&self.peer);
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.on_status(&watch.current())?;
        while count.is_none_or(|count| self.sent < count) {
            tokio::select! {
                Some(status) = watch.changed() => self.on_status(&status)?,
                _ = ticks.tick() => {
                    if !connection.status().is_connected() {
                        match self.node.connect(self.target.clone()).await {
                            Ok(again) => connection = again,
                            Err(error) => {
                                self.sent += 1;
                                self.lost(&error.to_string())?;
                            }
                        }
                    }
                    if connection.status().is_connected() {
                        self.on_status(&connection.status())?;
                        self.ping(&connection).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn ping(&mut self, connection: &Connection) -> Result<(), Failure> {
        self.sent += 1;
        let begun = Instant::now();
        match timeout(ANSWER_TIMEOUT, exchange(connection)).await {
            Ok(Ok(())) => self.answered(connection, begun.elapsed()),
            Ok(Err(cause)) => self.lost(&cause),
            Err(_) => self.lost(&format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        }
    }

    fn answered(&mut self, connection: &Connection, rtt: Duration) -> Result<(), Failure> {
        self.times.push(rtt);
        let path = peer::route(&connection.status());
        let (sent, lost) = packets(connection);
        let line = format!(
            "ping {}: {:.3} ms, {}; {lost} of {sent} packets lost",
            self.sent,
            milliseconds(rtt),
            path.as_deref().unwrap_or("not connected")
        );
        let object = json!({
            "event": "ping",
            "number": self.sent,
            "rtt_ms": milliseconds(rtt),
            "path": path,
            "packets_sent": sent,
            "packets_lost": lost,
        });
        self.report.result(&line, &object)
    }

    fn lost(&mut self, cause: &str) -> Result<(), Failure> {
        let object = json!({ "event": "lost", "number": self.sent, "message": cause });
        self.report.result(&format!("ping {}: lost: {cause}", self.sent), &object)
    }

    /// Prints a status that differs in more than its round-trip time.
    fn on_status(&mut self, status: &ConnectionStatus) -> Result<(), Failure> {
        let is_news = words(status) != words(&self.shown);
        self.shown = status.clone();
        match status {
            _ if !is_news => Ok(()),
            ConnectionStatus::Connected { .. } => peer::report_path(&mut self.report, self.peer, status),
            ConnectionStatus::Closed { reason, .. } => {
                let object = json!({ "event": "closed", "message": reason.to_string() });
                self.report
                    .note(&format!("the connection to {} closed: {reason}", short(&self.peer)), &object)
            }
            _ => Ok(()),
        }
    }

    fn summary(&mut self) -> Result<Exit, Failure> {
        let answered = self.times.len() as u64;
        let total: Duration = self.times.iter().sum();
        let (shortest, longest) = (self.times.iter().min(), self.times.iter().max());
        let average = total.checked_div(u32::try_from(answered).unwrap_or(u32::MAX));
        let [shortest, average, longest] =
            [shortest.copied(), average, longest.copied()].map(|time| time.map(milliseconds));
        let times = match (shortest, average, longest) {
            (Some(shortest), Some(average), Some(longest)) => {
                format!("; {shortest:.3} to {longest:.3} ms, {average:.3} ms on average")
            }
            _ => String::new(),
        };
        let object: Value = json!({
            "event": "summary",
            "sent": self.sent,
            "answered": answered,
            "min_ms": shortest,
            "average_ms": average,
            "max_ms": longest,
        });
        self.report.result(&format!("{answered} of {} pings answered{times}", self.sent), &object)?;
        Ok(if answered > 0 { Exit::Success } else { Exit::Error })
    }
}

/// Sends one ping over a stream of its own, which takes the best path of the time.
async fn exchange(connection: &Connection) -> Result<(), String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
    let sent: [u8; LEN] = rand::rng().random();
    let mut received = [0; LEN];
    let exchange = async {
        send.write_all(&sent).await?;
        send.flush().await?;
        recv.read_exact(&mut received).await?;
        send.shutdown().await
    };
    exchange.await.map_err(|error: std::io::Error| error.to_string())?;
    if received == sent { Ok(()) } else { Err("the peer sent other bytes back".to_owned()) }
}

/// Packets of the direct connections to the peer that were sent, and those that were lost.
fn packets(connection: &Connection) -> (u64, u64) {
    let stats = connection.stats();
    let sum = |of: fn(&libp2p_punch_node::ConnectionStats) -> u64| stats.iter().map(of).sum();
    (sum(|stats| stats.packets_sent), sum(|stats| stats.packets_lost))
}

/// Words for the path, or for its absence.
fn words(status: &ConnectionStatus) -> String {
    match status {
        ConnectionStatus::Connected { route, address, .. } => format!("{route} {address:?}"),
        ConnectionStatus::Closed { reason, .. } => reason.to_string(),
        _ => String::new(),
    }
}
