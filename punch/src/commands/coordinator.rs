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

/// Answers whoever comes, until Ctrl-C or SIGTERM, and takes leave of all peers.
pub(crate) async fn serve(mut node: Node, mut stop: Stop) -> Result<Exit, Failure> {
    let end = tokio::select! {
        () = stop.told() => Ok(Exit::Success),
        failure = answer(&mut node) => Err(failure),
    };
    node.leave().await;
    end
}

/// Answers whoever comes, until that is impossible.
async fn answer(node: &mut Node) -> Failure {
    loop {
        match node.next().await {
            Ok(Happening::NotListening { message }) => return Failure::error(message),
            Ok(_) => {}
            Err(failure) => return failure,
        }
    }
}
