//! Whole swarms behind simulated NATs, on paused time.

mod crowd;
mod dcutr;
mod denied;
mod dropped;
mod fallback;
mod families;
mod filtering;
mod forgetting;
mod hard;
mod hostile;
mod kinds;
mod lookups;
mod matrix;
mod moving;
mod nats;
mod network;
mod offline;
mod others;
mod reachable;
mod redials;
mod relay;
mod relaying;
mod stale;
mod starved;
mod stock;
mod wrapped;
