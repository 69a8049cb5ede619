//! `punch coordinator`: introduces peers to each other until it is told to end.

use libp2p_punch::config::{Config, Role};

use crate::{
    args::Coordinator,
    exit::{Exit, Failure},
    node::{Happening, Node},
    signal::Stop,
};

/// Runs until Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Coordinator) -> Result<Exit, Failure> {
    let stop = Stop::new()?;
    let coordinators = arguments.coordinator;
    let config = Config { role: Role::Server, coordinators, ..Config::default() };
    let mut node = Node::new(&arguments.common, config)?;
    node.listen_on(&arguments.listen)?;
    serve(node, stop).await
}

/// Answers whoever comes, until Ctrl-C or SIGTERM.
pub(crate) async fn serve(mut node: Node, mut stop: Stop) -> Result<Exit, Failure> {
    loop {
        tokio::select! {
            () = stop.told() => {
                node.leave().await;
                return Ok(Exit::Success);
            }
            happening = node.next() => {
                if let Happening::NotListening { message } = happening? {
                    return Err(Failure::error(message));
                }
            }
        }
    }
}
