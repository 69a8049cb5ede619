//! Configuration of a coordinator: a file, the environment and flags, in rising precedence.
//!
//! Each setting is an argument of `punch coordinator`, and has its doc comment, its bounds and its
//! default there. The setting `max_registrations` is the flag `--max-registrations`, the variable
//! `PUNCH_MAX_REGISTRATIONS` and the key `max_registrations` of the file. A file becomes flags
//! after the real ones, so that one parser checks all three.

mod file;
mod listing;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches, parser::ValueSource};

use self::file::Entry;
pub(crate) use self::listing::{default_file, show};
use crate::{args::Arguments, exit::Failure};

/// Subcommand whose arguments a file may set.
pub(crate) const SUBCOMMAND: &str = "coordinator";
/// Argument that names the file.
const FILE_ARGUMENT: &str = "config";

/// Reason for which arguments cannot be used.
#[derive(Debug)]
pub(crate) enum ParseError {
    /// The command line, or the request for help.
    CommandLine(clap::Error),
    /// The file.
    File(Failure),
}

/// Arguments, and the sources of those of a coordinator.
pub(crate) struct Parsed {
    pub(crate) arguments: Arguments,
    matches: ArgMatches,
    /// The file, if there is one, and the keys that it sets.
    file: Option<(PathBuf, Vec<Entry>)>,
}

/// Returns the command line, on which the variables of the environment are known.
fn command() -> Command {
    Arguments::command().mut_subcommand(SUBCOMMAND, |coordinator| coordinator.mut_args(with_variable))
}

fn with_variable(argument: Arg) -> Arg {
    let variable = variable(argument.get_id().as_str());
    argument.env(variable).hide_env_values(true)
}

/// Returns the variable of the environment for a setting.
fn variable(key: &str) -> String {
    format!("PUNCH_{}", key.to_ascii_uppercase())
}

/// Returns the settings of a coordinator: all of its arguments but the name of the file.
fn settings(command: &Command) -> Vec<&Arg> {
    let coordinator = command.find_subcommand(SUBCOMMAND);
    let all = coordinator.into_iter().flat_map(Command::get_arguments);
    all.filter(|argument| !["help", "version", FILE_ARGUMENT].contains(&argument.get_id().as_str())).collect()
}

/// Parses the arguments of the program, the file and the environment.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Parsed, ParseError> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    let command = command();
    let matches = command.clone().try_get_matches_from(&words).map_err(ParseError::CommandLine)?;
    let coordinator = matches.subcommand_matches(SUBCOMMAND);
    let path = coordinator.and_then(|matches| matches.get_one::<PathBuf>(FILE_ARGUMENT)).cloned();
    let (Some(path), Some(coordinator)) = (path, coordinator) else {
        return finish(matches, None);
    };
    let mut entries = file::read(&path, &settings(&command)).map_err(ParseError::File)?;
    for entry in &entries {
        check(&command, &path, entry)?;
    }
    entries.retain(|entry| !is_given(coordinator, &entry.key));
    words.extend(entries.iter().flat_map(|entry| entry.flags.iter().cloned()));
    let matches = command.try_get_matches_from(&words).map_err(ParseError::CommandLine)?;
    finish(matches, Some((path, entries)))
}

fn finish(matches: ArgMatches, file: Option<(PathBuf, Vec<Entry>)>) -> Result<Parsed, ParseError> {
    let arguments = Arguments::from_arg_matches(&matches).map_err(ParseError::CommandLine)?;
    Ok(Parsed { arguments, matches, file })
}

/// Returns true if a flag or a variable of the environment sets the key.
fn is_given(matches: &ArgMatches, key: &str) -> bool {
    matches!(matches.value_source(key), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// Checks one entry of the file alone, so that the message names its key.
fn check(command: &Command, path: &Path, entry: &Entry) -> Result<(), ParseError> {
    let words = ["punch", SUBCOMMAND].into_iter().map(OsString::from).chain(entry.flags.iter().cloned());
    match command.clone().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(error) => {
            let sentence = crate::args::sentence(&error);
            let message = format!("{}: {}: {sentence}", path.display(), entry.key);
            Err(ParseError::File(Failure::usage(message)))
        }
    }
}

#[cfg(test)]
mod tests;
