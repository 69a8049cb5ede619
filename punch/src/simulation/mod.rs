//! A coordinator and two peers, full swarms, in one process over a simulated network.
//!
//! Sockets, interface watcher and clock are simulated; everything else is the code of the other
//! subcommands. The clock jumps to the next event, so seconds pass in a moment and times are exact.

mod nat_spec;
mod scenario;

pub(crate) use self::{
    nat_spec::{HELP, NatSpec},
    scenario::{
        COORDINATOR, DIALER, HostAddresses, LISTENER, Measurement, PeerKeys, PeerObservers, RoundTrips,
        Scenario, TRANSFER_LENGTH, run_in_simulated_time,
    },
};
