//! `punch lab`: dials every ordered pair of NAT kinds several times; a table, JSON and a heat map.
//!
//! Kernel mode builds real NATs of Linux network namespaces and runs coordinator, listener and
//! dialer as processes. With `--simulated` the same matrix runs in this process over a simulated
//! network and clock.

mod args;
mod json;
#[cfg_attr(not(target_os = "linux"), path = "no_kernel.rs")]
mod kernel;
mod matrix;
mod simulated;
mod svg;
mod table;
mod workers;

use std::{fs, path::Path};

pub(crate) use self::args::Arguments;
use self::{
    matrix::{Implementation, Study},
    workers::Workers,
};
use crate::{
    exit::{Exit, Failure},
    output::print,
};

/// Runs the matrix and prints it.
pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.simulated && arguments.implementation != [Implementation::Punch] {
        return Err(Failure::usage("--simulated can only try the implementation punch"));
    }
    // A file that cannot be written ends the program before minutes of work.
    for file in [&arguments.json, &arguments.svg].into_iter().flatten() {
        write(file, "")?;
    }
    let mut workers = Workers::new(arguments.jobs())?;
    let study = if arguments.simulated {
        simulated::run(arguments, &mut workers)?
    } else {
        kernel::run(arguments, &mut workers)?
    };
    publish(arguments, &study)?;
    let failed = study.matrices.iter().any(|matrix| matrix.tally().failed > 0);
    Ok(if failed { Exit::Failed } else { Exit::Success })
}

/// Writes the files that were asked for, and prints the tables.
fn publish(arguments: &Arguments, study: &Study) -> Result<(), Failure> {
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
