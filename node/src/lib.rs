//! Tickets for applications on [`libp2p-punch`](https://docs.rs/libp2p-punch).
//!
//! A [`Ticket`] holds all that one node needs to reach another: a PeerId, addresses and
//! coordinators, as one short word of text.

mod ticket;

pub use ticket::{MAX_ADDRESSES, MAX_COORDINATORS, MAX_TEXT_LEN, Ticket, TicketError, TicketField};
