//! Whole swarms behind simulated NATs, on paused time.

mod crowd;
mod matrix;
mod network;
mod others;
mod relay;
mod relaying;
