//! Output of the program: one JSON object a line, or lines for people.

mod json;
mod nat;
mod printer;
mod progress;
mod stdout;
mod text;
mod units;

pub(crate) use self::{
    printer::Printer,
    progress::Progress,
    stdout::print,
    text::TextLog,
    units::{milliseconds, short},
};
