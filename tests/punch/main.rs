//! Whole swarms behind simulated NATs, on paused time.

mod matrix;
mod network;
