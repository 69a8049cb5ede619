//! Kernel mode on systems without it.

use super::{args::Arguments, matrix::Study, workers::Workers};
use crate::exit::Failure;

/// Fails: kernel mode needs Linux.
pub(super) fn run(_: &Arguments, _: &mut Workers) -> Result<Study, Failure> {
    Err(Failure::error("the lab with real NATs needs Linux; with --simulated it runs anywhere"))
}
