//! `punch listen`: registers with its coordinators and waits for peers until it is told to end.

use libp2p_punch::config::Config;

use crate::{
    args::Listen,
    coordinator,
    exit::{Exit, Failure},
    node::Node,
    signal::Stop,
};

/// Runs until Ctrl-C or SIGTERM; ends with a failure if no coordinator accepts the registration at the start.
pub(crate) async fn run(arguments: Listen) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let config = Config { coordinators: arguments.coordinator, ..Config::default() };
    let mut node = Node::new(&arguments.common, config)?;
    if arguments.listen.is_empty() {
        node.listen_anywhere()?;
    } else {
        node.listen_on(&arguments.listen)?;
    }
    let end = tokio::select! {
        () = stop.told() => Some(Ok(Exit::Success)),
        result = node.register() => result.err().map(Err),
    };
    match end {
        Some(end) => {
            node.leave().await;
            end
        }
        None => coordinator::serve(node, stop).await,
    }
}
