//! `punch listen`: registers with its coordinators and waits for peers until a signal ends it.

use libp2p_punch::config::Config;

use super::service;
use crate::{
    args::Listen,
    exit::{Exit, Failure},
    output::Printer,
    signal::Stop,
};

/// Runs until Ctrl-C or SIGTERM; fails if no coordinator accepts the registration at the start.
pub(crate) async fn run(arguments: Listen) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let mut config = Config::default();
    config.coordinators = arguments.coordinator;
    let mut node = service::start(&arguments.common, config, Printer::new(arguments.common.json))?;
    if arguments.listen.is_empty() {
        node.listen_anywhere()?;
    } else {
        node.listen_on(&arguments.listen)?;
    }
    let end = tokio::select! {
        () = stop.requested() => Some(Ok(Exit::Success)),
        result = node.register() => result.err().map(|error| Err(error.into())),
    };
    match end {
        Some(end) => {
            node.close().await;
            end
        }
        None => service::serve(node, stop).await,
    }
}
