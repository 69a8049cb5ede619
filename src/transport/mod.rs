//! Empty.
pub(crate) mod path;
