//! Exit codes, and failures that end the program with one clear sentence.

use std::{fmt, io, process::ExitCode};

use libp2p_punch::explain::{Explain, Explanation};

use crate::node::NodeError;

/// Exit code of the program.
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
    /// Code of a verdict of `doctor`.
    Verdict(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Success => 0,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::Relayed => 10,
            Exit::Failed => 11,
            Exit::Verdict(code) => code,
        })
    }
}

/// Reason why the program ends early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// One sentence for stderr.
    pub(crate) message: String,
    /// Code and remedy, if the cause has them.
    pub(crate) explanation: Option<Explanation>,
}

impl Failure {
    /// Something outside of the program failed.
    pub(crate) fn error(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Error, message: message.to_string(), explanation: None }
    }

    /// Something failed that explains itself.
    pub(crate) fn explained(error: &impl Explain) -> Self {
        Self { explanation: Some(error.explanation()), ..Self::error(error) }
    }

    /// Says it in other words.
    pub(crate) fn in_words(self, message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), ..self }
    }

    /// The request of the user cannot be carried out.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, message: message.to_string(), explanation: None }
    }

    /// stdout cannot be written to.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        Self::error(format!("cannot write to stdout: {error}"))
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Library(libp2p_punch::Error::Config(error)) => Self::usage(error),
            // The observers of this program write to stdout, or cannot fail.
            NodeError::Observer(error) => Self::stdout(&error),
            error => Self::error(error),
        }
    }
}
