//! Two path layers against each other, over a network in memory and with the clock stopped.

mod flights;
mod loopback;
mod net;
mod node;
mod places;
mod pool;
mod session;
