//! Whole swarms behind simulated NATs, on paused time.

mod crowd;
mod dropped;
mod dcutr;
mod hard;
mod hostile;
mod matrix;
mod moving;
mod nats;
mod network;
mod others;
mod stock;
mod relay;
mod relaying;
