//! Fuzz target of the state machine of the protocol.

#![no_main]

#[path = "../../proto/tests/scenarios/rig.rs"]
mod rig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (role, inputs) = rig::inputs_of(bytes);
    rig::run(role, inputs);
});
