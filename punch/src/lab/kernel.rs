//! The matrix on real NATs, with one process each for coordinator, listener and dialer.

use std::{env, path::PathBuf};

use nix::sys::utsname::uname;
use punch_lab::{
    Kind,
    kernel::{self, Exchange, Lab},
};

use super::{
    args::Arguments,
    matrix::{Implementation, Matrix, Mode, PairDial, Study},
    workers::Workers,
};
use crate::{
    exit::Failure,
    output::{Progress, print},
};

/// Program of the stock implementation, in the directory of this program.
const STOCK: &str = "punch-stock";

/// Measures every kind, then dials every pair.
pub(super) fn run(arguments: &Arguments, workers: &mut Workers) -> Result<Study, Failure> {
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
    let mode = Mode::Kernel { release: release(), measured: verify(&kinds, workers)? };
    let mut matrices = Vec::new();
    for (implementation, program) in programs {
        let exchange = Exchange { program, timeout: arguments.timeout, arguments: Default::default() };
        let dials = PairDial::all(&kinds, arguments.runs);
        let mut progress = Progress::new(implementation.word(), dials.len());
        let outcomes = workers.run_all(&mut progress, &dials, |dial, stop| {
            let lab = Lab::new([dial.dialer, dial.listener]).map_err(Failure::error)?;
            kernel::exchange(&lab, &exchange, stop).map_err(Failure::error)
        })?;
        matrices.push(Matrix::of_dials(implementation, &kinds, &dials, outcomes));
    }
    Ok(Study { mode, runs: arguments.runs, matrices })
}

/// Measures each kind and prints its behaviour; a kind that behaves otherwise than its name ends
/// the lab.
fn verify(kinds: &[Kind], workers: &mut Workers) -> Result<Vec<(Kind, punch_lab::Behaviour)>, Failure> {
    let mut progress = Progress::new("measuring NATs", kinds.len());
    let measured =
        workers.run_all(&mut progress, kinds, |kind, _| kernel::verify(*kind).map_err(Failure::error))?;
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

/// Returns the kernel release, such as `6.12.3`, without the suffix of a distribution.
fn release() -> String {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    release.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default().to_owned()
}
