//! The contract that every interoperability peer of this repository fulfils, and our side of it.
//!
//! A peer is a program with two subcommands. It writes one JSON object a line on standard output,
//! and nothing else there; see [`report::Line`]. Diagnostics go to standard error.
//!
//! - `listen --key TYPE --address MULTIADDR` listens, says where, serves the protocols below and
//!   goes on until its standard input ends.
//! - `dial --key TYPE ADDRESS FEATURE…` connects to `ADDRESS`, tries each feature in turn and says
//!   how it went.
//!
//! Besides ping and identify a peer serves the protocols of [`protocol`]. What a dialer does with
//! them is in [`features`], what a listener does in [`serve`]; both are written against
//! [`node::Node`], which takes any libp2p transport, so that the same program runs on ours and on
//! the stock one.

#![forbid(unsafe_code)]

pub mod cli;
pub mod features;
pub mod key;
pub mod node;
pub mod polled;
pub mod protocol;
pub mod report;
pub mod resp;
pub mod serve;
pub mod streams;
