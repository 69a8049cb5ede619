//! Start of a node for a subcommand, and its service until a signal.

use std::net::SocketAddr;

use crate::{
    args::Common,
    exit::{Exit, Failure},
    key,
    monitoring::MetricsServer,
    node::{Node, Setup},
    output::Printer,
    signal::Stop,
};

/// Starts a node whose events `printer` prints.
pub(super) fn start(common: &Common, setup: Setup, printer: Printer) -> Result<Node, Failure> {
    let key = key::load(common.key.as_deref())?;
    Ok(Node::new(key, setup, Box::new(printer))?)
}

/// Serves the metrics of a node in the background, if there is an address for them.
pub(super) async fn serve_metrics(
    node: &Node,
    address: Option<SocketAddr>,
    printer: &Printer,
) -> Result<(), Failure> {
    let Some(address) = address else { return Ok(()) };
    let failed = |error| Failure::error(format!("cannot serve metrics at {address}: {error}"));
    let server = MetricsServer::bind(address, node.monitor()).await.map_err(failed)?;
    printer.metrics_served(server.address().map_err(failed)?)?;
    tokio::spawn(server.serve());
    Ok(())
}

/// Serves peers until Ctrl-C or SIGTERM, and closes all connections.
pub(super) async fn serve(mut node: Node, mut stop: Stop) -> Result<Exit, Failure> {
    let end = tokio::select! {
        () = stop.requested() => Ok(Exit::Success),
        error = node.run() => Err(error.into()),
    };
    node.close().await;
    end
}
