//! Direct connections through NATs for libp2p swarms.
//!
//! Put the [`Transport`] and the [`Behaviour`] that [`new`] returns into a swarm, and
//! `swarm.dial(peer)` gets through the NAT: peers observe each other's addresses, a coordinator
//! passes `PUNCH_ME_NOW` between two peers that it knows, both probe at once, and one QUIC
//! connection runs over the best path that answered.
//!
//! # Map
//!
//! | module | what it is |
//! |---|---|
//! | [`core`] | the whole protocol with no I/O: agent, sessions, candidates, pairs, observation, coordinator, codecs |
//! | [`transport`] | libp2p `Transport` and `StreamMuxer` on quinn, the shared UDP sockets, the path layer |
//! | [`behaviour`] | libp2p `NetworkBehaviour` and `ConnectionHandler`: control streams in, frames out |
//! | [`io`] | the small traits through which sockets, interfaces and routes are reached |
//! | [`config`] | the one configuration struct, its defaults, bounds and errors |
//!
//! Dependencies point one way: `core <- {transport, behaviour}`; the two meet in a private
//! `bridge`, whose task drives `core` apart from the swarm, so that probing never waits for the
//! application.

#![forbid(unsafe_code)]

pub mod behaviour;
mod bridge;
pub mod config;
pub mod core;
pub mod io;
pub mod transport;
