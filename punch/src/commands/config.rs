//! `punch config`: lists and checks the settings of a coordinator.

use std::ffi::OsString;

use super::coordinator;
use crate::{
    args::{self, Command, ConfigCommand, ConfigFile},
    configuration::{self, ParseError, Parsed, SUBCOMMAND},
    exit::{Exit, Failure},
    output::print,
};

/// Prints the listing, or the result of the check.
pub(crate) fn run(command: &ConfigCommand) -> Result<Exit, Failure> {
    let text = match command {
        ConfigCommand::Default => configuration::default_file(),
        ConfigCommand::Show(file) => configuration::show(&load(file)?),
        ConfigCommand::Check(file) => {
            let Command::Coordinator(arguments) = load(file)?.arguments.command else {
                return Ok(Exit::Usage);
            };
            coordinator::check(&arguments)?;
            "the configuration is valid\n".to_owned()
        }
    };
    print(text.trim_end()).map(|()| Exit::Success)
}

/// Parses a file as `punch coordinator --config` does.
fn load(file: &ConfigFile) -> Result<Parsed, Failure> {
    let file = file.file.iter().flat_map(|file| [OsString::from("--config"), file.clone().into()]);
    configuration::parse(["punch", SUBCOMMAND].into_iter().map(OsString::from).chain(file)).map_err(failure)
}

/// Returns arguments that cannot be used as a failure of the program.
pub(super) fn failure(error: ParseError) -> Failure {
    match error {
        ParseError::File(failure) => failure,
        ParseError::CommandLine(error) => Failure::usage(args::sentence(&error)),
    }
}
