//! Whole swarms behind simulated NATs, on paused time.

mod crowd;
mod dcutr;
mod hard;
mod matrix;
mod moving;
mod network;
mod others;
mod relay;
mod relaying;
