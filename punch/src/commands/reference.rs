//! `punch completions` and `punch man`: the command line, for shells and as manual pages.

use std::{fs, path::Path};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

use crate::{
    args::Arguments,
    exit::{Exit, Failure},
    output::print,
};

/// Prints the completions for a shell.
pub(crate) fn completions(shell: Shell) -> Result<Exit, Failure> {
    // To write to stdout directly would panic at its end.
    let mut script = Vec::new();
    generate(shell, &mut Arguments::command(), "punch", &mut script);
    print(String::from_utf8_lossy(&script).trim_end()).map(|()| Exit::Success)
}

/// Writes a manual page for the program and one for each subcommand into a folder.
pub(crate) fn man(folder: &Path) -> Result<Exit, Failure> {
    let failed =
        |error| Failure::usage(format!("cannot write manual pages to {}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    let mut command: Command = Arguments::command().disable_help_subcommand(true);
    command.build();
    clap_mangen::generate_to(command, folder).map_err(failed)?;
    Ok(Exit::Success)
}
