//! The wire format: frames of control streams, probes, and the keys that authenticate them.

pub mod frame;
pub mod keys;
pub mod probe;
