//! Lines on stdout.

use std::io::{self, Write};

use serde_json::json;

use crate::exit::Failure;

/// Writes one line to stdout, at once.
pub(super) fn write_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Prints one line; a failure ends the program.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    write_line(line).map_err(|error| Failure::stdout(&error))
}

/// Prints the object of a failure that explains itself.
pub(crate) fn print_failure(failure: &Failure) -> Result<(), Failure> {
    let Some(explanation) = failure.explanation else { return Ok(()) };
    let object = json!({
        "event": "failed",
        "code": explanation.code,
        "message": failure.message,
        "remedy": explanation.remedy,
    });
    print(&object.to_string())
}
