//! Sends a file to a holder of the ticket. `punch send` also resumes, verifies and asks.
//!
//! ```sh
//! cargo run -p libp2p-punch-node --example file_transfer -- send FILE            # prints its ticket
//! cargo run -p libp2p-punch-node --example file_transfer -- receive TICKET FILE  # on the other machine
//! ```
//!
//! Two machines behind NATs also need the address of a node that both reach, in the environment
//! variable `BOOTSTRAP`.

use std::{error::Error, io};

use libp2p_punch_node::{Connection, Node};
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncReadExt, AsyncWriteExt, copy},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let node = Node::builder()
        .protocol("/example/file/1.0.0")
        .bootstrap(std::env::var("BOOTSTRAP").ok())
        .build()
        .await?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["send", path] => {
            // Found before anybody waits for it.
            File::open(path).await?;
            println!("{}", node.ticket().await?);
            let connection = node.accept().await?;
            let len = send(&connection, path).await?;
            eprintln!("sent {len} bytes");
        }
        ["receive", ticket, path] => {
            let connection = node.connect(ticket).await?;
            let len = receive(&connection, path).await?;
            eprintln!("received {len} bytes, {:?}", connection.status());
        }
        _ => return Err("give `send FILE` or `receive TICKET FILE`".into()),
    }
    node.shutdown().await;
    Ok(())
}

/// Sends the length, and then the bytes.
async fn send(connection: &Connection, path: &str) -> Result<u64, Box<dyn Error>> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    recv.read_u8().await?;
    let file = File::open(path).await?;
    let len = file.metadata().await?.len();
    send.write_u64(len).await?;
    // The file may grow meanwhile.
    copy(&mut file.take(len), &mut send).await?;
    send.shutdown().await?;
    // The receiver says when it has all: the end of this node would cut off what is under way.
    recv.read_u8().await?;
    Ok(len)
}

/// Asks for the file, and writes it to a new one.
async fn receive(connection: &Connection, path: &str) -> Result<u64, Box<dyn Error>> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_u8(1).await?;
    send.flush().await?;
    let len = recv.read_u64().await?;
    let received = copy(&mut (&mut recv).take(len), &mut file).await?;
    if received < len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    file.sync_all().await?;
    send.write_u8(1).await?;
    send.shutdown().await?;
    // The end of the stream shows that the sender has heard of it.
    recv.read_to_end(&mut Vec::new()).await?;
    Ok(len)
}
