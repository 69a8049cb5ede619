//! Sends back all bytes of its peers, or has another such program send back a line.
//!
//! ```sh
//! cargo run -p libp2p-punch-node --example echo             # prints its ticket
//! cargo run -p libp2p-punch-node --example echo -- TICKET   # prints "hello"
//! ```
//!
//! Two machines behind NATs also need the address of a node that both reach, in the environment
//! variable `BOOTSTRAP`.

use libp2p_punch_node::Node;
use tokio::io::{AsyncWriteExt, copy};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let node = Node::builder().bootstrap(std::env::var("BOOTSTRAP").ok()).build().await?;
    if let Some(ticket) = std::env::args().nth(1) {
        let (mut send, mut recv) = node.connect(ticket).await?.open_bi().await?;
        send.write_all(b"hello\n").await?;
        send.shutdown().await?;
        copy(&mut recv, &mut tokio::io::stdout()).await?;
        node.shutdown().await;
        return Ok(());
    }
    println!("{}", node.ticket().await?);
    loop {
        let connection = node.accept().await?;
        tokio::spawn(async move {
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                copy(&mut recv, &mut send).await?;
                send.shutdown().await?;
            }
            Ok::<(), std::io::Error>(())
        });
    }
}
