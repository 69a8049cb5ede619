//! `punch dial`: connects to a peer, exchanges an echo, and leaves.

use std::{
    io::{self, Write},
    time::Duration,
};

use libp2p::PeerId;
use libp2p_punch::config::{Config, Role};
use tokio::time::{Instant, timeout};

use super::service;
use crate::{
    args::Dial,
    exit::{Exit, Failure},
    node::{DialFailure, Node, NodeError, RelayLimits, Setup},
    output::Printer,
    signal::Stop,
};

/// Length of an echo, in bytes.
const ECHO_LENGTH: usize = 64;
/// Time from the end of one echo of `--watch` to the start of the next.
const ECHO_INTERVAL: Duration = Duration::from_millis(100);

/// Runs until the echo, a failure, Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Dial) -> Result<Exit, Failure> {
    let (peer, coordinators) = arguments.targets()?;
    let mut stop = Stop::new()?;
    let mut config = Config::default();
    config.role = Role::Client;
    config.coordinators = coordinators;
    let printer = Printer::new(arguments.common.json);
    let setup =
        Setup { config, relay_limits: RelayLimits::default(), port_mapping: !arguments.no_port_mapping };
    let mut node = service::start(&arguments.common, setup, printer.clone())?;
    node.listen_anywhere()?;
    let mut result = tokio::select! {
        result = timeout(arguments.timeout, attempt(&mut node, peer)) => {
            result.unwrap_or_else(|_| Err(timed_out(&node, arguments.timeout)))
        }
        () = stop.requested() => Err(DialFailure::Interrupted),
    };
    if let (Ok(exit), Some(time)) = (&result, arguments.watch) {
        let exit = *exit;
        result = tokio::select! {
            watched = watch(&mut node, peer, time) => watched.map(|()| exit),
            () = stop.requested() => Ok(exit),
        };
    }
    let result = match result {
        Ok(exit) => Ok(exit),
        // The relayed connection has not become a direct one in time.
        Err(DialFailure::Timeout(_)) if node.is_connected(&peer) => Ok(Exit::Relayed),
        Err(DialFailure::Node(error)) => Err(error.into()),
        Err(failure) => {
            let message = format!("cannot connect to {peer}: {failure}");
            printer.dial_failed(peer, &failure).and(Err(Failure {
                exit: Exit::Failed,
                message,
                explanation: None,
            }))
        }
    };
    node.close().await;
    result
}

/// Explains the end of the time: without a registration, that is the cause.
fn timed_out(node: &Node, after: Duration) -> DialFailure {
    node.registration_failure(after).map_or(DialFailure::Timeout(after), DialFailure::NoCoordinator)
}

/// Registers, connects and exchanges an echo.
async fn attempt(node: &mut Node, peer: PeerId) -> Result<Exit, DialFailure> {
    if let Err(error) = node.register().await {
        if !matches!(error, NodeError::Registration(_)) {
            return Err(error.into());
        }
        // Without a stderr, nobody waits for the word.
        let _ = writeln!(io::stderr(), "punch: {error}; trying again until the time-out");
        node.registered().await?;
    }
    let connection = node.connect(peer).await?;
    node.echo(peer, ECHO_LENGTH).await?;
    Ok(if connection.is_relayed { Exit::Relayed } else { Exit::Success })
}

/// Exchanges echoes for this time.
async fn watch(node: &mut Node, peer: PeerId, time: Duration) -> Result<(), DialFailure> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        node.echo(peer, ECHO_LENGTH).await?;
        node.run_until((Instant::now() + ECHO_INTERVAL).min(end)).await?;
    }
    Ok(())
}
