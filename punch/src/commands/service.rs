//! Start of a node for a subcommand, and its service until a signal.

use libp2p_punch::config::Config;

use crate::{
    args::Common,
    exit::{Exit, Failure},
    key,
    node::{Node, RelayLimits},
    output::Printer,
    signal::Stop,
};

/// Starts a node whose events `printer` prints.
pub(super) fn start(common: &Common, config: Config, printer: Printer) -> Result<Node, Failure> {
    start_with_relay(common, config, RelayLimits::default(), printer)
}

/// Does the same with other limits of the relay.
pub(super) fn start_with_relay(
    common: &Common,
    config: Config,
    relay_limits: RelayLimits,
    printer: Printer,
) -> Result<Node, Failure> {
    let key = key::load(common.key.as_deref())?;
    Ok(Node::new(key, config, relay_limits, Box::new(printer))?)
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
