//! The interface of the crate `web-time`, on tokio's clock.
//!
//! libp2p's swarm and behaviours read the time from `web-time`, which outside of the web is the
//! clock of the standard library. In a simulated network that clock hardly moves: connections that
//! a behaviour keeps for ten seconds stayed open for minutes of simulated time, and rate limits
//! refused what they should have allowed. This workspace replaces the crate, so that every clock of
//! a simulated node is the network's clock. With a running clock both are the same.

#![forbid(unsafe_code)]

pub use std::time::{Duration, SystemTime, SystemTimeError, TryFromFloatSecsError, UNIX_EPOCH};

pub use tokio::time::Instant;
