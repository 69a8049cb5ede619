//! The program `punch`: direct connections between peers behind NATs.
//!
//! Data flows one way: [`args`], a subcommand ([`commands`], [`demo`], [`lab`]), [`output`],
//! [`node`]. The node drives the swarm and prints nothing; [`output`] observes its events and
//! prints them.
//!
//! stdout is for results only, in words or as JSON lines. Logs go to stderr under the control of
//! `RUST_LOG`. A failure is one sentence on stderr and an exit code of [`exit::Exit`].

#![forbid(unsafe_code)]

mod args;
mod canvas;
mod commands;
mod configuration;
mod demo;
mod exit;
mod forward;
mod key;
mod lab;
mod log;
mod monitoring;
mod network;
mod node;
mod output;
mod signal;
mod simulation;
mod ticket;
mod transfer;
#[cfg(test)]
mod troubleshooting;
mod values;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use args::Command;
use commands::{chat, config, coordinator, dial, doctor, listen, ping, receive, send};
use configuration::ParseError;
use exit::{Exit, Failure};
use log::LogFilter;
use tokio::runtime;

fn main() -> ExitCode {
    let arguments = match configuration::parse(std::env::args_os()) {
        Ok(parsed) => parsed.arguments,
        Err(ParseError::File(failure)) => return end(Err(failure)),
        Err(ParseError::CommandLine(error)) if error.use_stderr() && error.kind() != NO_SUBCOMMAND => {
            return end(Err(Failure::usage(format!("{}; see 'punch --help'", args::sentence(&error)))));
        }
        Err(ParseError::CommandLine(help)) => {
            // A failure to print help does not change the exit code.
            let _ = help.print();
            return if help.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() };
        }
    };
    let log = LogFilter::start();
    end(run(arguments.command, &log))
}

const NO_SUBCOMMAND: clap::error::ErrorKind =
    clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

fn run(command: Command, log: &LogFilter) -> Result<Exit, Failure> {
    let is_json = command.explains_in_json();
    let result = run_command(command, log);
    if is_json && let Err(failure) = &result {
        output::print_failure(failure)?;
    }
    result
}

fn run_command(command: Command, log: &LogFilter) -> Result<Exit, Failure> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Coordinator(arguments) => in_real_time(coordinator::run(arguments, log)),
        Command::Config(command) => config::run(&command),
        Command::Doctor(arguments) => in_real_time(doctor::run(arguments)),
        Command::Listen(arguments) => in_real_time(listen::run(arguments)),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Network(arguments) => network::run(&arguments),
        Command::Dial(arguments) => in_real_time(dial::run(arguments)),
        Command::Send(arguments) => in_real_time(send::run(arguments)),
        Command::Chat(arguments) => in_real_time(chat::run(arguments)),
        Command::Forward(arguments) => in_real_time(commands::forward::run(arguments)),
        Command::Id(arguments) => commands::keys::show(&arguments),
        Command::Keys(arguments) => commands::keys::make(&arguments),
        Command::Completions { shell } => commands::reference::completions(shell),
        Command::Man { folder } => commands::reference::man(&folder),
        Command::Perf(arguments) => in_real_time(commands::perf::run(arguments)),
        Command::Ping(arguments) => in_real_time(ping::run(arguments)),
        Command::Receive(arguments) => in_real_time(receive::run(arguments)),
    }
}

fn in_real_time(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    let result = runtime.block_on(work);
    // The subcommand has closed its connections, so nothing that still runs needs a wait.
    runtime.shutdown_background();
    result
}

fn end(result: Result<Exit, Failure>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // Without a stderr, the exit code alone reports the failure.
            let remedy = failure.explanation.map(|it| format!(". {}", it.remedy)).unwrap_or_default();
            let _ = writeln!(io::stderr(), "punch: {}{remedy}", failure.message);
            failure.exit.into()
        }
    }
}
