//! Exit codes, and failures that end the program with one clear sentence.

use std::{fmt, process::ExitCode};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done; of `dial`: connected directly.
    Success,
    /// 1: something outside failed, such as a port in use or a coordinator that is not there.
    Error,
    /// 2: the arguments, or a file that they name, cannot be used.
    Usage,
    /// 10: `dial` connected through a relay.
    Relayed,
    /// 11: `dial` did not connect.
    Failed,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Success => 0,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::Relayed => 10,
            Exit::Failed => 11,
        })
    }
}

/// Why the program ends early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// One sentence for stderr.
    pub(crate) message: String,
}

impl Failure {
    /// Something outside failed.
    pub(crate) fn error(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Error, message: message.to_string() }
    }

    /// The user asked for something that cannot be done.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, message: message.to_string() }
    }
}
