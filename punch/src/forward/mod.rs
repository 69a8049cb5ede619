//! TCP ports at a peer. `docs/forward.md` has the wire format.
//!
//! One stream carries one TCP connection: a request with the secret of the ticket and the port, an
//! answer, and then chunks in both directions. [`Endpoint`] and [`Tunnel`] are what the user
//! writes, [`Gate`] is the allow-list of the side that serves, and [`open`] and [`serve`] pass the
//! bytes.

mod endpoint;
mod error;
mod session;
#[cfg(test)]
mod tests;
mod wire;

/// Name of the protocol.
pub(crate) const PROTOCOL: &str = "/libp2p-punch/forward/1.0.0";

#[cfg(test)]
pub(crate) use self::endpoint::EndpointError;
pub(crate) use self::{
    endpoint::{Endpoint, Tunnel},
    error::ForwardError,
    session::{Gate, Traffic, check, open, refuse, serve},
};
