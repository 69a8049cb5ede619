//! A chat of two people: each line is a message, which the other side acknowledges.
//!
//! ```sh
//! cargo run -p libp2p-punch-node --example chat             # prints its ticket
//! cargo run -p libp2p-punch-node --example chat -- TICKET   # on the other machine
//! ```
//!
//! Two machines behind NATs also need the address of a node that both reach, in the environment
//! variable `BOOTSTRAP`.

use libp2p_punch_node::{ConnectionStatus, Node};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let node = Node::builder().bootstrap(std::env::var("BOOTSTRAP").ok()).build().await?;
    let connection = match std::env::args().nth(1) {
        Some(ticket) => node.connect(ticket).await?,
        None => {
            println!("{}", node.ticket().await?);
            node.accept().await?
        }
    };
    let peer = connection.peer();
    let mut status = node.watch_status(&peer);
    let mut lines = BufReader::new(stdin()).lines();
    eprintln!("connected to {peer}; Ctrl-D ends the chat");
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => node.send_to_peer(peer, line).await?,
                None => break,
            },
            message = node.receive() => {
                let message = message?;
                let text = String::from_utf8_lossy(&message.bytes);
                // What others write must not control the terminal.
                println!("> {}", text.replace(char::is_control, ""));
            }
            changed = status.changed() => match changed {
                Some(ConnectionStatus::Connected { route, .. }) => eprintln!("now {route}"),
                Some(ConnectionStatus::Closed { reason, .. }) => {
                    eprintln!("the chat is over: {reason}");
                    break;
                }
                _ => {}
            },
        }
    }
    node.shutdown().await;
    Ok(())
}
