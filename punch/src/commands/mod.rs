//! The subcommands for peers over real UDP, one file each.

pub(crate) mod chat;
pub(crate) mod config;
pub(crate) mod coordinator;
pub(crate) mod dial;
pub(crate) mod doctor;
pub(crate) mod forward;
pub(crate) mod keys;
pub(crate) mod listen;
mod peer;
pub(crate) mod perf;
pub(crate) mod ping;
pub(crate) mod receive;
pub(crate) mod reference;
pub(crate) mod send;
mod service;
