//! Arguments of `punch lab`.

use std::{num::NonZero, path::PathBuf, thread::available_parallelism, time::Duration};

use clap::Args;
use punch_lab::Kind;

use super::matrix::{Conditions, Implementation};
use crate::values::{milliseconds, percent, seconds};

/// Help text for the words of `--kinds`.
const HELP: &str = "\
Kinds of NAT, as MAPPING+FILTERING[+PORTS] in the words of RFC 4787:
  public                no NAT
  eim+eif               endpoint-independent mapping and filtering
  eim+adf               endpoint-independent mapping, address-dependent filtering
  eim+apdf              endpoint-independent mapping, address- and port-dependent filtering, port kept
  eim+apdf+hashed       the same, port not kept
  eim+apdf+bare         eim+apdf without a firewall: what comes too early does harm (not in the default matrix)
  adm+apdf              address-dependent mapping (not in the default matrix)
  apdm+apdf+random      address- and port-dependent mapping to random ports
  apdm+apdf+sequential  address- and port-dependent mapping to one port after the other
  double+eim+apdf       two eim+apdf, one behind the other

Without --simulated it needs Linux, nftables, iproute2 and root. Without root, a user namespace does:
  unshare -Urmn sh -c 'mount -t tmpfs tmpfs /run && exec punch lab'";

/// Arguments of `punch lab`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    /// Kinds of NAT on both sides; without it, the eight kinds of the default matrix.
    #[arg(long, value_name = "KIND", value_delimiter = ',', num_args = 1..)]
    kinds: Vec<Kind>,
    /// Number of dials for each pair.
    #[arg(long, value_name = "NUMBER", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) runs: u32,
    /// Write all results to this file.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Draw a heat map with the distribution of times to this file.
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    /// Number of dials that run at the same time; without it, the number of processors.
    #[arg(long, value_name = "NUMBER")]
    jobs: Option<NonZero<u8>>,
    /// Time for a dial, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(super) timeout: Duration,
    /// Implementations to try: punch, or stock (rust-libp2p with quic, relay and dcutr), or both
    /// side by side.
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1.., default_value = "punch")]
    pub(super) implementation: Vec<Implementation>,
    /// Simulate network and clock; runs on any platform and needs no root.
    #[arg(long)]
    pub(super) simulated: bool,
    /// Simulated round-trip time between any two of the three peers, in milliseconds; without it,
    /// 50.
    #[arg(long, value_name = "MS", requires = "simulated", value_parser = milliseconds)]
    rtt: Option<Duration>,
    /// Simulated loss between any two of the three peers, in percent; without it, 0.
    #[arg(long, value_name = "PERCENT", requires = "simulated", value_parser = percent)]
    loss: Option<f64>,
}

impl Arguments {
    /// Returns the kinds, each once.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for kind in if self.kinds.is_empty() { &Kind::MATRIX[..] } else { &self.kinds } {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        kinds
    }

    /// Returns the number of dials that run at the same time.
    pub(super) fn jobs(&self) -> usize {
        let processors = || available_parallelism().map_or(1, NonZero::get);
        self.jobs.map_or_else(processors, |jobs| usize::from(jobs.get()))
    }

    /// Returns the conditions of the simulated network.
    pub(super) fn conditions(&self) -> Conditions {
        Conditions { rtt: self.rtt.unwrap_or(Duration::from_millis(50)), loss: self.loss.unwrap_or(0.0) }
    }
}
