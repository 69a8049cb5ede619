//! NAT of this peer: observations of its sockets, tests, and the conclusions from both.
//!
//! The modules follow the questions about a NAT:
//!
//! - mapping: `mapping` (the classification), `observations` (the reports behind it), `vote`
//!   (observers that contradict each other) and `observer` (requests to further ports of a
//!   coordinator);
//! - allocation of ports: `strategy`, which also chooses the search of a pair of peers;
//! - filtering: `filtering`;
//! - harm by packets that arrive before the first packet of their flow: `early_packets`;
//! - lifetime of mappings: `binding_lifetime` (without traffic) and `replacements` (in use);
//! - hairpinning: `hairpin`.
//!
//! `client` runs the tests. `report` holds the findings for the application.

pub mod binding_lifetime;
pub(crate) mod client;
pub(crate) mod early_packets;
pub mod filtering;
pub(crate) mod hairpin;
pub mod observer;
pub mod strategy;

mod mapping;
mod observation;
pub(crate) mod observations;
mod replacements;
mod report;
mod vote;

pub use filtering::FilteringBehaviour;
pub use mapping::{MappingBehaviour, NatView};
pub(crate) use report::is_in_shared_space;
pub use report::{Confidence, Evidence, Finding, IdleLifetime, Report, Sharing};
