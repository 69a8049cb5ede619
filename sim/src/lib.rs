//! A simulated UDP network with NAT boxes, on which whole libp2p swarms run in one process.
//!
//! A [`World`] is a core, "the internet", with [`Host`]s on it and behind [`Gateway`]s: NATs, NATs
//! behind NATs and firewalls, each with the behaviour that a [`Nat`] describes in the words of RFC
//! 4787. A host is the [`Network`](libp2p_punch::io::Network) of one swarm. [`Link`]s have latency,
//! jitter, loss, reordering, duplication, a rate and an MTU. A [tap](World::tap) or a [`Trace`]
//! sees what became of each datagram, and why.
//!
//! ```
//! use libp2p_punch_sim::{Filtering, Mapping, Nat, Trace, World};
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> std::io::Result<()> {
//! let world = World::new(1);
//! let trace = Trace::start(&world);
//! let server = world.public_host([203, 0, 113, 1]);
//! let nat = Nat::new(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent);
//! let gateway = world.nat(nat, [198, 51, 100, 1]);
//! let client = gateway.host([192, 168, 1, 2]);
//!
//! let socket = server.socket(([0, 0, 0, 0], 4001).into())?;
//! client.socket(([0, 0, 0, 0], 4002).into())?.send_to(([203, 0, 113, 1], 4001).into(), b"hello");
//! assert_eq!(socket.receive().await.from, ([198, 51, 100, 1], 4002).into());
//! println!("{trace}");
//! # Ok(())
//! # }
//! ```
//!
//! # Time
//!
//! Time is tokio's, so that with a paused clock hours pass in moments and a run is exact. Every
//! event inside of the network happens, and is recorded, at its exact time. But tokio's timers tick
//! in milliseconds, so a datagram that is due between two ticks wakes its reader at the second
//! tick. With latencies in whole milliseconds the reader's clock, too, is exact.
//!
//! # Determinism
//!
//! The same seed and the same inputs give the same trace. The inputs are the same only if tasks run
//! in the same order: use a current-thread runtime with a paused clock. On more threads, or with a
//! running clock, the network works, but runs differ. Random *contents*, such as keys and
//! connection ids, change nothing but the bytes.
//!
//! # What it leaves out
//!
//! There are no ICMP errors, no IP fragments, no multicast, and no handling time in hosts and
//! gateways.

#![forbid(unsafe_code)]

mod engine;
mod gateway;
mod host;
mod ids;
mod link;
mod nat;
mod receive_buffer;
mod recorder;
mod socket;
mod state;
mod trace;
mod world;

pub use self::{
    gateway::Gateway,
    host::Host,
    ids::NodeId,
    link::Link,
    nat::{Filtering, Hairpin, Mapping, Nat, Ports, Translation},
    receive_buffer::{Datagram, SocketConfig},
    recorder::Trace,
    socket::Socket,
    trace::{Packet, Record, Stats, Verdict},
    world::World,
};
