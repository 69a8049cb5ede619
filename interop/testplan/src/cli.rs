//! The command line of a peer: `listen` and `dial`.

use std::time::Duration;

use clap::{Args, Subcommand};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::io::AsyncReadExt;

use crate::{
    features::{self, Feature, Remote},
    key::KeyType,
    node::{BoxedTransport, Connected, Node},
    report::Line,
};

/// Subcommands of a peer.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Listen and serve until standard input ends.
    Listen(Listen),
    /// Connect and try features.
    Dial(Dial),
}

/// Arguments of `listen`.
#[derive(Debug, Clone, Args)]
pub struct Listen {
    /// The type of the identity key.
    #[arg(long, value_enum, default_value_t)]
    pub key: KeyType,
    /// Address to listen on.
    #[arg(long, default_value = "/ip4/127.0.0.1/udp/0/quic-v1")]
    pub address: Multiaddr,
}

/// Arguments of `dial`.
#[derive(Debug, Clone, Args)]
pub struct Dial {
    /// The type of the identity key.
    #[arg(long, value_enum, default_value_t)]
    pub key: KeyType,
    /// The peer to dial, as `/…/quic-v1/p2p/PEER_ID`.
    pub address: Multiaddr,
    /// Features to try, in this order.
    pub features: Vec<Feature>,
}

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the last packets to leave. A closed connection is gone at once for the dialer, and no
/// transport reports when the close has been sent. A process that ended earlier would not send it.
const CLOSE_TIME: Duration = Duration::from_millis(250);

/// Runs the subcommand, on a transport that `transport` makes.
///
/// # Errors
///
/// If the peer cannot start, or cannot connect. A feature that does not work is a line on standard
/// output, not an error.
pub async fn run(
    command: Command,
    agent: &str,
    transport: impl FnOnce(&Keypair) -> anyhow::Result<BoxedTransport>,
) -> anyhow::Result<()> {
    match command {
        Command::Listen(Listen { key, address }) => {
            let keypair = key.keypair()?;
            let mut node = Node::start(transport(&keypair)?, &keypair, agent)?;
            node.report();
            let address = node.listen(address).await?;
            Line::Listening { address }.print();
            let mut ignored = Vec::new();
            tokio::io::stdin().read_to_end(&mut ignored).await?;
        }
        Command::Dial(Dial { key, address, features }) => {
            let keypair = key.keypair()?;
            let mut node = Node::start(transport(&keypair)?, &keypair, agent)?;
            let peer = tokio::time::timeout(CONNECT_TIMEOUT, node.dial(address)).await??;
            Line::Connected { peer: peer.to_string() }.print();
            attempt_all(&mut Connected { node: &mut node, peer }, features).await;
        }
    }
    Ok(())
}

/// Tries every feature and prints how it went, and then stays for a moment.
pub async fn attempt_all(remote: &mut impl Remote, features: Vec<Feature>) {
    for feature in features {
        let (ok, detail) = match features::attempt(remote, feature).await {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        Line::Feature { feature, ok, detail }.print();
    }
    tokio::time::sleep(CLOSE_TIME).await;
}
