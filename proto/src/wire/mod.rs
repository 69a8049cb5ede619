//! The wire format: frames of control streams, probes, and the keys that authenticate them.

pub(crate) mod envelope;
pub mod frame;
pub mod keys;
pub(crate) mod mac;
pub mod probe;
