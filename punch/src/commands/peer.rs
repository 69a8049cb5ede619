//! Start of a node of `libp2p-punch-node` for a subcommand.

use std::time::Duration;

use libp2p_punch_node::{
    BuildError, ConnectError, Connection, ConnectionStatus, Diagnostics, Node, NodeBuilder, PeerId, Role,
    Target,
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    args::NodeFlags,
    exit::{Exit, Failure},
    key,
    output::{Report, milliseconds, short},
    ticket::SecretTicket,
};

/// Time for a direct path, before a relayed connection is used.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of a node that are not those of a flag.
pub(super) struct Settings {
    pub(super) protocol: &'static str,
    pub(super) connect_timeout: Duration,
}

/// Reads the name of a peer: a ticket, also one of `punch send`, a PeerId or an address.
pub(super) fn target(text: &str) -> Result<Target, Failure> {
    if let Ok(ticket) = text.parse::<SecretTicket>() {
        return Ok(ticket.node.into());
    }
    text.parse().map_err(|error| Failure::usage(format!("PEER: {error}")))
}

/// Starts a node.
pub(super) async fn start(flags: &NodeFlags, settings: Settings) -> Result<Node, Failure> {
    builder(flags, settings)?.build().await.map_err(not_started)
}

/// Starts a node, and returns the facts about its attempts to connect.
pub(super) async fn start_with_diagnostics(
    flags: &NodeFlags,
    settings: Settings,
) -> Result<(Node, Diagnostics), Failure> {
    let (builder, diagnostics) = builder(flags, settings)?.diagnostics();
    Ok((builder.build().await.map_err(not_started)?, diagnostics))
}

fn builder(flags: &NodeFlags, settings: Settings) -> Result<NodeBuilder, Failure> {
    let key = key::load(flags.common.key.as_deref())?;
    Ok(Node::builder()
        .keypair(key)
        // A program that ends soon serves nobody.
        .role(Role::Client)
        .bootstrap(&flags.bootstrap)
        .listen(&flags.listen)
        .port_mapping(!flags.no_port_mapping)
        .protocol(settings.protocol)
        .connect_timeout(settings.connect_timeout))
}

fn not_started(error: BuildError) -> Failure {
    match error {
        BuildError::ConnectTimeout { .. } => Failure::usage(format!("--timeout: {error}")),
        error => Failure::explained(&error),
    }
}

/// Connects, and gives a direct path a little time.
pub(super) async fn connect(node: &Node, target: &Target) -> Result<Connection, ConnectError> {
    let connection = node.connect(target.clone()).await?;
    if !connection.status().is_direct() {
        // Without a direct path in time, the relayed connection is used.
        let _ = timeout(DIRECT_TIMEOUT, connection.wait_direct()).await;
    }
    Ok(connection)
}

/// Failure to connect.
pub(super) fn not_connected(peer: PeerId, error: &ConnectError) -> Failure {
    let failure = Failure { exit: Exit::Failed, ..Failure::explained(error) };
    failure.in_words(format!("cannot connect to {peer}: {error}"))
}

/// Prints how a peer is connected.
pub(super) fn report_path(
    report: &mut Report,
    peer: PeerId,
    status: &ConnectionStatus,
) -> Result<(), Failure> {
    let ConnectionStatus::Connected { route, address, rtt, .. } = status else { return Ok(()) };
    let at = address.as_ref().map(|address| format!(", {address}")).unwrap_or_default();
    report.note(
        &format!("connected to {}: {route}{at}", short(&peer)),
        &json!({
            "event": "connected",
            "peer": peer.to_string(),
            "path": route.to_string(),
            "remote": address,
            "rtt_ms": rtt.map(milliseconds),
        }),
    )
}

/// Returns `direct` or `relayed` while there is a connection.
pub(super) fn route(status: &ConnectionStatus) -> Option<String> {
    match status {
        ConnectionStatus::Connected { route, .. } => Some(route.to_string()),
        _ => None,
    }
}
