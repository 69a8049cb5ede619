//! Output of the program: one JSON object a line, or lines for people.

mod json;
mod nat;
mod printer;
mod progress;
mod report;
mod stdout;
mod text;
mod units;

pub(crate) use self::{
    printer::Printer,
    progress::Progress,
    report::{Meter, Report, seconds_left, transferred},
    stdout::{print, print_failure},
    text::TextLog,
    units::{bytes, milliseconds, short},
};
