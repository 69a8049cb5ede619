//! Fuzz target of the readers of multiaddrs.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| libp2p_punch::fuzzing::addresses(bytes));
