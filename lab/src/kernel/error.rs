//! Why the lab cannot go on.

use std::fmt;

/// Result of what the lab does.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the lab cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// It was told to end.
    Interrupted,
    /// Something on this machine does not work; one sentence.
    Machine(String),
}

impl Error {
    /// An operation, and the cause of its failure.
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
