//! `punch demo`: a coordinator and two peers, full swarms, in one process over a simulated network.
//!
//! The engine is the one of the other subcommands; only sockets, interface watcher and clock are simulated. Since
//! the clock jumps to whatever happens next, seconds of simulated time pass in a moment, and times are exact.

mod nat;
mod scene;
mod story;

use std::time::Duration;

use clap::Args;
use tokio::runtime;

pub(crate) use self::{
    nat::{Behind, parse as nat},
    scene::meet,
    story::Story,
};
use crate::exit::{Exit, Failure};

/// Arguments of `punch demo`.
#[derive(Debug, Args)]
#[command(after_help = nat::HELP)]
pub(crate) struct Arguments {
    /// What the dialer is behind.
    #[arg(long, value_name = "NAT", default_value = "eim+apdf", value_parser = nat::parse)]
    dialer_nat: Behind,
    /// What the listener is behind.
    #[arg(long, value_name = "NAT", default_value = "eim+apdf", value_parser = nat::parse)]
    listener_nat: Behind,
    /// Round-trip time between any two of the three, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "50", value_parser = milliseconds)]
    rtt: Duration,
    /// Round-trip time between dialer and coordinator, where it is not the others'.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    dialer_rtt: Option<Duration>,
    /// Round-trip time between listener and coordinator, where it is not the others'.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    listener_rtt: Option<Duration>,
    /// Round-trip time between dialer and listener, where it is not the others'.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    peer_rtt: Option<Duration>,
    /// How much is lost on the way from any of the three to any other, in percent.
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = percent)]
    loss: f64,
    /// From which all that is random in the network follows.
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    seed: u64,
}

impl Arguments {
    fn setting(&self) -> Setting {
        Setting {
            dialer: self.dialer_nat.clone(),
            listener: self.listener_nat.clone(),
            round_trips: [self.dialer_rtt, self.listener_rtt, self.peer_rtt]
                .map(|own| own.unwrap_or(self.rtt)),
            loss: self.loss,
        }
    }
}

/// Where the peers are.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// What the dialer is behind.
    pub(crate) dialer: Behind,
    /// What the listener is behind.
    pub(crate) listener: Behind,
    /// Round-trip times dialer to coordinator, listener to coordinator, and dialer to listener.
    pub(crate) round_trips: [Duration; 3],
    /// How much is lost on the way from any of the three to any other, in percent.
    pub(crate) loss: f64,
}

/// Plays the scene and tells the story.
pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    in_simulated_time(scene::play(arguments))?
}

/// Runs where the clock jumps to whatever happens next.
pub(crate) fn in_simulated_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    Ok(runtime.block_on(work))
}

/// Not more than a minute, which is more than any network on Earth needs.
pub(crate) fn milliseconds(text: &str) -> Result<Duration, String> {
    let refused = "it must be a number of milliseconds from 0 to 60000";
    let value: f64 = text.parse().map_err(|_| refused)?;
    if (0.0..=60_000.0).contains(&value) {
        Ok(Duration::from_secs_f64(value / 1e3))
    } else {
        Err(refused.into())
    }
}

/// How much of something, in percent.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    let refused = "it must be a number from 0 to 100";
    let value: f64 = text.parse().map_err(|_| refused)?;
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err(refused.into()) }
}
