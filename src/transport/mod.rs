//! Empty.
pub mod path;
