//! Errors of the lab.

use std::fmt;

/// Result of an operation of the lab.
pub type Result<T> = std::result::Result<T, Error>;

/// Error after which the lab cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The lab was interrupted.
    Interrupted,
    /// Something on this machine does not work; one sentence.
    Machine(String),
}

impl Error {
    /// Creates an error from an operation and the cause of its failure.
    pub(super) fn new(tried: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Error::Machine(format!("{tried}: {cause}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Interrupted => f.write_str("interrupted"),
            Error::Machine(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}
