//! demo
use crate::exit::{Exit, Failure};
/// a
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}
pub(crate) fn run(_: &Arguments) -> Result<Exit, Failure> {
    Ok(Exit::Success)
}
