//! Arguments of `punch demo`.

use std::time::Duration;

use clap::Args;

use crate::{
    simulation::{HELP, NatSpec, RoundTrips, Scenario},
    values::{milliseconds, percent},
};

/// Arguments of `punch demo`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    /// NAT of the dialer.
    #[arg(long, value_name = "NAT", default_value = "eim+apdf")]
    dialer_nat: NatSpec,
    /// NAT of the listener.
    #[arg(long, value_name = "NAT", default_value = "eim+apdf")]
    listener_nat: NatSpec,
    /// Round-trip time between any two of the three, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "50", value_parser = milliseconds)]
    rtt: Duration,
    /// Round-trip time between dialer and coordinator, if it differs from --rtt.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    dialer_rtt: Option<Duration>,
    /// Round-trip time between listener and coordinator, if it differs from --rtt.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    listener_rtt: Option<Duration>,
    /// Round-trip time between dialer and listener, if it differs from --rtt.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    peer_rtt: Option<Duration>,
    /// Loss on the path between any two of the three, in percent.
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = percent)]
    loss: f64,
    /// Seed of all random choices in the network.
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    pub(super) seed: u64,
}

impl Arguments {
    /// Returns the network that the arguments describe.
    pub(super) fn scenario(&self) -> Scenario {
        let or_default = |own: Option<Duration>| own.unwrap_or(self.rtt);
        Scenario {
            dialer: self.dialer_nat.clone(),
            listener: self.listener_nat.clone(),
            round_trips: RoundTrips {
                dialer_coordinator: or_default(self.dialer_rtt),
                listener_coordinator: or_default(self.listener_rtt),
                dialer_listener: or_default(self.peer_rtt),
            },
            loss: self.loss,
        }
    }
}
