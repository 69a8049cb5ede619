//! The log on stderr, whose filter can be changed while the program runs.

use std::{
    env,
    io::{self, IsTerminal},
};

use tracing_subscriber::EnvFilter;

use crate::exit::Failure;

/// Filter of a coordinator without directives: what it reloads, and what goes wrong.
const DEFAULT_DIRECTIVES: &str = "error,punch=info";

/// Filter of the log.
pub(crate) struct LogFilter(Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>);

impl LogFilter {
    /// Begins to log what `RUST_LOG` asks for.
    pub(crate) fn start() -> Self {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::from_default_env())
            .with_writer(io::stderr)
            .with_ansi(has_colours())
            .with_filter_reloading();
        let handle = builder.reload_handle();
        builder.init();
        Self(Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())))
    }

    /// Logs what a filter of [`filter`] selects.
    pub(crate) fn set(&self, filter: EnvFilter) -> Result<(), Failure> {
        (self.0)(filter).map_err(|error| Failure::error(format!("the log filter cannot change: {error}")))
    }
}

/// Returns true if stderr shows colours. A journal or a file does not.
fn has_colours() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns the filter with these directives, or else with those of `RUST_LOG`, or else the default.
pub(crate) fn filter(directives: Option<&str>) -> Result<EnvFilter, Failure> {
    match directives {
        Some(text) => EnvFilter::try_new(text)
            .map_err(|error| Failure::usage(format!("log: {text:?} is not a filter: {error}"))),
        None if env::var_os(EnvFilter::DEFAULT_ENV).is_some() => Ok(EnvFilter::from_default_env()),
        None => Ok(EnvFilter::new(DEFAULT_DIRECTIVES)),
    }
}
