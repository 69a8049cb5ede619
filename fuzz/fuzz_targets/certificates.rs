//! Fuzz target of the readers of public keys and certificates.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| libp2p_punch::fuzzing::certificates(bytes));
