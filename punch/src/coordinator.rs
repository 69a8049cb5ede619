//! `punch coordinator`: introduces peers to each other until it is told to end.

use libp2p_punch::config::{Config, Role};

use crate::{
    args::Coordinator,
    exit::{Exit, Failure},
    node::{Happening, Node},
    signal,
};

/// Runs until Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Coordinator) -> Result<Exit, Failure> {
    let mut node = Node::new(&arguments.common, Config { role: Role::Server, ..Config::default() })?;
    node.listen_on(&arguments.listen)?;
    serve(node).await
}

/// Answers whoever comes, until Ctrl-C or SIGTERM.
pub(crate) async fn serve(mut node: Node) -> Result<Exit, Failure> {
    let mut stop = std::pin::pin!(signal::stop());
    loop {
        tokio::select! {
            result = &mut stop => {
                result.map_err(Failure::error)?;
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
