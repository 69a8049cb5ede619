//! Runs every interoperability peer against libp2p-punch, both ways, and prints the matrix.
//!
//! The peers are installed from their registries into a directory that is not part of the
//! repository. Then everything runs in a network namespace of its own where the system allows that,
//! and on the loopback interface where it does not. [`expected`] lists the failures that are the
//! fault of others. A failure that is not in the list fails the run, and so does a success that is.

#![forbid(unsafe_code)]

mod capture;
mod check;
mod contract;
mod expected;
mod install;
mod layout;
mod matrix;
mod namespace;
mod peer;
mod probe;
mod process;
mod redis;
mod session;

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::{Parser, builder::FalseyValueParser};

use crate::{
    install::Missing,
    layout::Layout,
    matrix::Matrix,
    peer::{Peer, Source},
};

/// Runs the interoperability matrix. The last line is `N passed, N failed, N known failures, N
/// skipped`.
#[derive(Debug, Clone, Parser)]
struct Cli {
    /// Only the peers that every change is checked against: this crate, go, go-current, py and
    /// stock rust.
    #[arg(long)]
    gate: bool,
    /// Only these peers.
    #[arg(long = "peer", value_name = "NAME")]
    peers: Vec<String>,
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the matrix into docs/interop.md.
    #[arg(long)]
    write_docs: bool,
    /// Install, and run nothing.
    #[arg(long)]
    install_only: bool,
    /// Fail if a peer cannot be installed, instead of going on without it. A peer in Go may be
    /// missing where Go or a Go module proxy is. A peer that is named must be there anyhow.
    #[arg(long, env = "INTEROP_REQUIRE", value_parser = FalseyValueParser::new())]
    require: bool,
    /// Peers that could not be installed. Set by this program for itself.
    #[arg(long, value_name = "NAME", hide = true)]
    missing: Vec<String>,
    /// The peers are installed, and we are in a namespace of our own. Set by this program for
    /// itself.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let layout = Layout::find()?;
    let wanted = peer::select(&cli.peers, cli.gate)?;
    if !cli.inside {
        let missing = install::all(&layout, &wanted);
        let is_required = |missing: &Missing| !cli.peers.is_empty() || (cli.require && !missing.has_no_go);
        let goes_on = !missing.iter().any(is_required);
        ensure!(goes_on, "the run needs peers that cannot be installed here");
        if cli.install_only {
            return Ok(ExitCode::SUCCESS);
        }
        let missing = missing.iter().flat_map(|missing| ["--missing", missing.peer.name]);
        return namespace::run_inside(missing);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let matrix = runtime.block_on(run(&layout, &wanted, &cli.missing))?;
    print!("{matrix}");
    if let Some(file) = &cli.json {
        std::fs::write(file, matrix.json()?)?;
    }
    if cli.write_docs {
        matrix.write_docs(&layout.root.join("docs/interop.md"))?;
    }
    let tally = matrix.tally();
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(layout: &Layout, peers: &[&'static Peer], missing: &[String]) -> anyhow::Result<Matrix> {
    let mut matrix = Matrix::default();
    for peer in peers {
        if missing.iter().any(|name| name == peer.name) {
            session::skip_all(peer, "it cannot be installed here", &mut matrix);
            if peer.has_contract_programs {
                contract::skip_all(peer, "it cannot be installed here", &mut matrix);
            }
            continue;
        }
        eprintln!("{} ...", peer.name);
        session::run_all(layout, peer, &mut matrix).await;
        if peer.source == Source::Ourselves {
            session::run_raw_key(layout, peer, &mut matrix).await;
        }
        if peer.has_contract_programs {
            contract::run_all(layout, peer, &mut matrix).await?;
        }
    }
    Ok(matrix)
}
