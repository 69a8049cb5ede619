//! The NAT lab: kinds of NAT, the behaviour that a measurement must find, and (on Linux) real boxes
//! of each kind.
//!
//! The boxes are network namespaces with nftables rules. `kernel::measure` checks each box from
//! outside instead of trusting its rules, as RFC 4787 defines mapping, filtering and port
//! assignment. Peers are separate processes that print JSON lines, so that any implementation that
//! speaks the same command line can be tried.

#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
pub mod kernel;
mod kind;
mod outcome;

pub use kind::{Behaviour, DependsOn, Kind, Ports};
pub use outcome::Outcome;
