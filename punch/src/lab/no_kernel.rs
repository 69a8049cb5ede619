//! The place of kernel mode where there is none.

use super::{Arguments, crew::Crew, matrix::Study};
use crate::exit::Failure;

/// Says so.
pub(super) fn run(_: &Arguments, _: &mut Crew) -> Result<Study, Failure> {
    Err(Failure::error("the lab with real NATs needs Linux; with --simulated it runs anywhere"))
}
