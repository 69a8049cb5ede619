//! `punch lab`: every ordered pair of NAT kinds, dialed several times, as a table, JSON and a heat map.
//!
//! Kernel mode builds real NATs of Linux network namespaces and runs coordinator, listener and dialer as processes of
//! their own. With `--simulated` the same matrix runs in this process over a simulated network and clock.

mod crew;
mod json;
#[cfg_attr(not(target_os = "linux"), path = "no_kernel.rs")]
mod kernel;
mod matrix;
mod progress;
mod simulated;
mod svg;
mod table;

use std::{fs, num::NonZero, path::Path, path::PathBuf, thread::available_parallelism, time::Duration};

use clap::Args;
use punch_lab::Kind;

use self::{
    crew::Crew,
    matrix::{Implementation, Matrix, Study},
};
use crate::{
    args, demo,
    exit::{Exit, Failure},
    report::print,
};

/// What the words of `--kinds` mean.
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
    /// Kinds of NAT on both sides; without it, the eight by which implementations are compared.
    #[arg(long, value_name = "KIND", value_delimiter = ',', num_args = 1..)]
    kinds: Vec<Kind>,
    /// How often each pair dials.
    #[arg(long, value_name = "NUMBER", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write all results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw a heat map with the distribution of times to this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How many dials run at the same time; without it, as many as there are processors.
    #[arg(long, value_name = "NUMBER")]
    jobs: Option<NonZero<u8>>,
    /// How long a dial may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = args::seconds)]
    timeout: Duration,
    /// Implementations to try: punch, or stock (rust-libp2p with quic, relay and dcutr), or both side by side.
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1.., default_value = "punch")]
    implementation: Vec<Implementation>,
    /// Simulate network and clock; runs on any platform and needs no root.
    #[arg(long)]
    simulated: bool,
    /// Simulated round-trip time between any two of the three peers, in milliseconds; without it, 50.
    #[arg(long, value_name = "MS", requires = "simulated", value_parser = demo::milliseconds)]
    rtt: Option<Duration>,
    /// How much is lost between any two of the three, in percent; without it, 0.
    #[arg(long, value_name = "PERCENT", requires = "simulated", value_parser = demo::percent)]
    loss: Option<f64>,
}

impl Arguments {
    /// The kinds, each once.
    fn kinds(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for kind in if self.kinds.is_empty() { &Kind::MATRIX[..] } else { &self.kinds } {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        kinds
    }

    fn jobs(&self) -> usize {
        let processors = || available_parallelism().map_or(1, NonZero::get);
        self.jobs.map_or_else(processors, |jobs| usize::from(jobs.get()))
    }
}

/// Runs the matrix and prints it.
pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.simulated && arguments.implementation != [Implementation::Punch] {
        return Err(Failure::usage("--simulated can only try the implementation punch"));
    }
    // Before minutes of work, not after.
    for file in [&arguments.json, &arguments.svg].into_iter().flatten() {
        write(file, "")?;
    }
    let mut crew = Crew::new(arguments.jobs())?;
    let study = if arguments.simulated {
        let rtt = arguments.rtt.unwrap_or(Duration::from_millis(50));
        simulated::run(arguments, (rtt, arguments.loss.unwrap_or(0.0)), &mut crew)?
    } else {
        kernel::run(arguments, &mut crew)?
    };
    report(arguments, &study)?;
    let failed = study.matrices.iter().any(|matrix| matrix.tally().failed > 0);
    Ok(if failed { Exit::Failed } else { Exit::Success })
}

fn report(arguments: &Arguments, study: &Study) -> Result<(), Failure> {
    if let Some(file) = &arguments.json {
        write(file, &format!("{:#}\n", json::document(study)))?;
    }
    if let Some(file) = &arguments.svg {
        write(file, &svg::draw(study))?;
    }
    for matrix in &study.matrices {
        if study.matrices.len() > 1 {
            print(&format!("\n{}:", matrix.implementation.title()))?;
        }
        print(&table::of(matrix))?;
        print(&matrix.tally().to_string())?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|error| Failure::error(format!("cannot write {}: {error}", file.display())))
}

/// All dials of a matrix, run by run, so that the runs of a pair are spread over the whole time.
fn dials(kinds: &[Kind], runs: u32) -> Vec<(Kind, Kind, u32)> {
    let pairs = kinds.iter().flat_map(|dialer| kinds.iter().map(move |listener| (*dialer, *listener)));
    (0..runs).flat_map(|run| pairs.clone().map(move |(dialer, listener)| (dialer, listener, run))).collect()
}

/// What the results of [`dials`] say.
fn matrix(
    implementation: Implementation,
    kinds: &[Kind],
    dials: &[(Kind, Kind, u32)],
    outcomes: Vec<punch_lab::Outcome>,
) -> Matrix {
    let mut matrix = Matrix::new(implementation, kinds);
    for ((dialer, listener, _), outcome) in dials.iter().zip(outcomes) {
        matrix.add(*dialer, *listener, outcome);
    }
    matrix
}
