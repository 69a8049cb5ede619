//! The printer of events on stdout.

use std::{io, net::SocketAddr};

use libp2p::PeerId;
use tokio::time::Instant;

use super::{
    json,
    stdout::write_line,
    text::{self, Entry, TextLog},
};
use crate::{
    exit::Failure,
    node::{DialFailure, NodeEvent, Observer},
};

/// Observer that prints events on stdout.
#[derive(Debug, Clone)]
pub(crate) struct Printer(Format);

#[derive(Debug, Clone)]
enum Format {
    /// JSON lines and nothing else.
    Json,
    /// Lines for people, with the time since `started`.
    Text { started: Instant, log: TextLog },
}

impl Printer {
    /// Creates a printer of JSON lines, or of lines for people.
    pub(crate) fn new(json: bool) -> Self {
        Self(if json {
            Format::Json
        } else {
            Format::Text { started: Instant::now(), log: TextLog::default() }
        })
    }

    /// Prints the address at which metrics are served.
    pub(crate) fn metrics_served(&self, address: SocketAddr) -> Result<(), Failure> {
        let written = match &self.0 {
            Format::Json => write_line(&json::metrics(address).to_string()),
            Format::Text { started, .. } => write_entry(*started, &text::metrics(address)),
        };
        written.map_err(|error| Failure::stdout(&error))
    }

    /// Prints the `failed` line of a dial, and the remedy.
    pub(crate) fn dial_failed(&self, peer: PeerId, failure: &DialFailure) -> Result<(), Failure> {
        let written = match &self.0 {
            Format::Json => write_line(&json::failed(peer, failure).to_string()),
            Format::Text { started, .. } => write_entry(*started, &text::failed(peer, failure))
                .and_then(|()| write_entry(*started, &text::remedy(failure))),
        };
        written.map_err(|error| Failure::stdout(&error))
    }
}

impl Observer for Printer {
    fn observe(&mut self, event: &NodeEvent) -> io::Result<()> {
        match &mut self.0 {
            Format::Json => json::event(event).map_or(Ok(()), |line| write_line(&line.to_string())),
            Format::Text { started, log } => {
                log.entry(event).map_or(Ok(()), |entry| write_entry(*started, &entry))
            }
        }
    }
}

fn write_entry(started: Instant, entry: &Entry) -> io::Result<()> {
    let Entry { label, text } = entry;
    write_line(&format!("{:>9.3} s  {label:<11} {text}", started.elapsed().as_secs_f64()))
}
