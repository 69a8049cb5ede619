//! Arguments of `punch network`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::population::NATS;
use crate::values::{percent, seconds};

/// Arguments of `punch network`.
#[derive(Debug, Args)]
#[command(after_help = help())]
pub(crate) struct Arguments {
    /// Number of nodes.
    #[arg(long, value_name = "NUMBER", default_value = "50", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub(super) nodes: u32,
    /// Share of the nodes that others reach, in percent; at least the first node is one.
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = percent)]
    pub(super) public: f64,
    /// Number of dials between random pairs; without it, as many as nodes.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    dials: Option<u32>,
    /// Share of the nodes that leave, and are replaced by others, within an hour, in percent.
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = percent)]
    pub(super) churn: f64,
    /// Kill this share of the public nodes at once, in percent, and dial again 30 s later.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(super) kill_public: Option<f64>,
    /// Loss between any two nodes, in percent.
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = percent)]
    pub(super) loss: f64,
    /// Time over which the nodes join, in simulated seconds; without it, a tenth of a second for
    /// each.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    join: Option<Duration>,
    /// Seed of all random choices.
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    pub(super) seed: u64,
    /// Write the results to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Draw the results to this file, as SVG.
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

impl Arguments {
    /// Returns the number of dials.
    pub(super) fn dials(&self) -> u32 {
        self.dials.unwrap_or(self.nodes)
    }

    /// Returns the number of public nodes.
    pub(super) fn public_nodes(&self) -> u32 {
        share_of(self.nodes, self.public).clamp(1, self.nodes)
    }

    /// Returns the time over which the nodes join.
    pub(super) fn join_time(&self) -> Duration {
        self.join.unwrap_or(Duration::from_millis(100) * self.nodes)
    }
}

/// Returns this share of a number, in percent, as a whole number.
pub(super) fn share_of(number: u32, percent: f64) -> u32 {
    (f64::from(number) * percent / 100.0).round() as u32
}

fn help() -> String {
    let kinds: Vec<String> = NATS.iter().map(|(kind, share)| format!("  {share:>2}%  {kind}")).collect();
    format!(
        "Each node is a whole swarm: Kademlia, identify, AutoNAT v2, a relay, and this library. It knows the address\n\
         of the first node, and no coordinator. Round trips take 12 to 200 ms. The NATs of the hidden nodes:\n{}",
        kinds.join("\n")
    )
}
