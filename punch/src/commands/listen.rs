//! `punch listen`: registers with its coordinators and waits for peers until a signal ends it.

use std::io::{self, Write};

use libp2p_punch::config::Config;

use super::service;
use crate::{
    args::Listen,
    exit::{Exit, Failure},
    node::{NodeError, RelayLimits, Setup},
    output::Printer,
    signal::Stop,
};

/// Runs until Ctrl-C or SIGTERM. A coordinator that does not answer is tried again and again.
pub(crate) async fn run(arguments: Listen) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let mut config = Config::default();
    config.coordinators = arguments.coordinator;
    let printer = Printer::new(arguments.common.json);
    let setup =
        Setup { config, relay_limits: RelayLimits::default(), port_mapping: !arguments.no_port_mapping };
    let mut node = service::start(&arguments.common, setup, printer.clone())?;
    service::serve_metrics(&node, arguments.metrics, &printer).await?;
    if arguments.listen.is_empty() {
        node.listen_anywhere()?;
    } else {
        node.listen_on(&arguments.listen)?;
    }
    let end = tokio::select! {
        () = stop.requested() => Some(Ok(Exit::Success)),
        result = node.register() => match result {
            Ok(()) => None,
            Err(error @ NodeError::Registration(_)) => {
                // Without a stderr, nobody waits for the word.
                let _ = writeln!(io::stderr(), "punch: {error}; trying again until one does");
                None
            }
            Err(error) => Some(Err(error.into())),
        },
    };
    match end {
        Some(end) => {
            node.close().await;
            end
        }
        None => service::serve(node, stop).await,
    }
}
