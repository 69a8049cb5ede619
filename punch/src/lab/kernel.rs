//! The matrix on real NATs, with processes of their own for coordinator, listener and dialer.

use std::{env, path::PathBuf};

use nix::sys::utsname::uname;
use punch_lab::{
    Kind,
    kernel::{self, Exchange, Lab},
};

use super::{
    Arguments,
    crew::Crew,
    dials, matrix,
    matrix::{Implementation, Mode, Study},
    progress::Progress,
};
use crate::{exit::Failure, report::print};

/// The program of the stock implementation, beside this one.
const STOCK: &str = "punch-stock";

/// Measures every kind, then dials every pair as often as is asked for.
pub(super) fn run(arguments: &Arguments, crew: &mut Crew) -> Result<Study, Failure> {
    let programs: Vec<(Implementation, PathBuf)> = arguments
        .implementation
        .iter()
        .map(|implementation| program(*implementation).map(|program| (*implementation, program)))
        .collect::<Result<_, _>>()?;
    if let Some(obstacle) = kernel::obstacle() {
        let message = format!("the lab with real NATs {obstacle}; with --simulated it runs anywhere");
        return Err(Failure::error(message));
    }
    let stale = kernel::remove_stale();
    if stale > 0 {
        print(&format!("removed {stale} namespaces of labs that were killed"))?;
    }
    let kinds = arguments.kinds();
    let mode = Mode::Kernel { release: release(), measured: verify(&kinds, crew)? };
    let mut matrices = Vec::new();
    for (implementation, program) in programs {
        let exchange = Exchange { program, timeout: arguments.timeout, arguments: Default::default() };
        let dials = dials(&kinds, arguments.runs);
        let mut progress = Progress::new(implementation.word(), dials.len());
        let outcomes = crew.all(&mut progress, &dials, |(dialer, listener, _), stop| {
            let lab = Lab::new([*dialer, *listener]).map_err(Failure::error)?;
            kernel::exchange(&lab, &exchange, stop).map_err(Failure::error)
        })?;
        matrices.push(matrix(implementation, &kinds, &dials, outcomes));
    }
    Ok(Study { mode, runs: arguments.runs, matrices })
}

/// Measures each kind, and prints what was found; a kind that is not what its name says ends the lab.
fn verify(kinds: &[Kind], crew: &mut Crew) -> Result<Vec<(Kind, punch_lab::Behaviour)>, Failure> {
    let mut progress = Progress::new("measuring NATs", kinds.len());
    let measured = crew.all(&mut progress, kinds, |kind, _| kernel::verify(*kind).map_err(Failure::error))?;
    drop(progress);
    let measured: Vec<_> = kinds.iter().copied().zip(measured).collect();
    for (kind, behaviour) in &measured {
        print(&format!("measured {kind:<21} {behaviour}"))?;
    }
    Ok(measured)
}

fn program(implementation: Implementation) -> Result<PathBuf, Failure> {
    let own = env::current_exe().map_err(|error| Failure::error(format!("cannot find itself: {error}")))?;
    match implementation {
        Implementation::Punch => Ok(own),
        Implementation::Stock => {
            let stock = own.with_file_name(STOCK);
            let message = || {
                format!(
                    "{} is not there; 'cargo build -p {STOCK}', in the same profile, makes it",
                    stock.display()
                )
            };
            if stock.is_file() { Ok(stock) } else { Err(Failure::error(message())) }
        }
    }
}

/// Such as `6.12.3`, without what a distribution adds.
fn release() -> String {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    release.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default().to_owned()
}
