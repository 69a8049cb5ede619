//! `punch network`: a simulated network of whole nodes without configured coordinators.
//!
//! The nodes join with one bootstrap address, random pairs dial each other, and the results say
//! which share connected how, how long it took, and what it cost the nodes.

mod args;
mod json;
mod node;
mod population;
mod report;
mod run;
mod svg;
mod text;

use std::{fs, path::Path};

pub(crate) use self::args::Arguments;
use crate::{
    exit::{Exit, Failure},
    output::print,
    simulation::run_in_simulated_time,
};

/// Runs the network and prints the results.
pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    // A file that cannot be written ends the program before minutes of work.
    for file in [&arguments.json, &arguments.svg].into_iter().flatten() {
        write(file, "")?;
    }
    let report = run_in_simulated_time(run::run(arguments))??;
    if let Some(file) = &arguments.json {
        write(file, &format!("{:#}\n", json::document(arguments, &report)))?;
    }
    if let Some(file) = &arguments.svg {
        write(file, &svg::draw(&report))?;
    }
    print(&text::of(&report))?;
    let failed = report.rounds.iter().any(|round| round.avoidable_failures() > 0);
    Ok(if failed { Exit::Failed } else { Exit::Success })
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|error| Failure::error(format!("cannot write {}: {error}", file.display())))
}
