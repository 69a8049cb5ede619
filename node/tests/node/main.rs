//! Nodes as applications use them, behind simulated NATs on paused time and on loopback.

mod connecting;
mod ending;
mod loopback;
mod messages;
mod nonsense;
mod status;
mod support;
