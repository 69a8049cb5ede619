//! Fuzz target of the demultiplexer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| libp2p_punch::fuzzing::datagrams(bytes));
