//! Fuzz target of the codec of probes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| libp2p_punch::fuzzing::probes(bytes));
