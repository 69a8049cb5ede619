//! Attacks on whole nodes, each with its budget as the assertion. `docs/security.md` lists them.
//!
//! Every test prints the factor or the count that it measured: `cargo test --test attackers --
//! --nocapture`.

#[cfg(test)]
mod control_streams;
#[cfg(test)]
mod descriptors;
#[cfg(test)]
mod half_open;
#[cfg(test)]
#[expect(dead_code, reason = "the scenarios use the rest of the harness")]
#[path = "../../proto/tests/scenarios/harness.rs"]
mod harness;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod migration;
#[cfg(test)]
mod observers;
#[cfg(test)]
mod privacy;
#[cfg(test)]
mod registrations;
#[cfg(test)]
mod replays;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod resets;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod stale_answers;
#[cfg(test)]
mod support;
#[cfg(test)]
mod third_parties;
