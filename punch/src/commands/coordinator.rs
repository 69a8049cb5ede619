//! `punch coordinator`: introduces peers to each other until a signal ends it.

use libp2p_punch::config::{Config, Role};

use super::service;
use crate::{
    args::Coordinator,
    exit::{Exit, Failure},
    output::Printer,
    signal::Stop,
};

/// Runs until Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Coordinator) -> Result<Exit, Failure> {
    let stop = Stop::new()?;
    let coordinator_limits = arguments.limits.into();
    let coordinators = arguments.coordinator;
    let mut config = Config::default();
    config.role = Role::Server;
    config.coordinators = coordinators;
    config.coordinator_limits = coordinator_limits;
    let printer = Printer::new(arguments.common.json);
    let mut node =
        service::start_with_relay(&arguments.common, config, arguments.relay.into(), printer.clone())?;
    service::serve_metrics(&node, arguments.metrics, &printer).await?;
    node.listen_on(&arguments.listen)?;
    service::serve(node, stop).await
}
