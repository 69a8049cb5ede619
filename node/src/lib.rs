//! A peer-to-peer node for applications, on [`libp2p-punch`](https://docs.rs/libp2p-punch).
//!
//! A [`Node`] connects to others by their PeerId or [`Ticket`], directly even if both are behind
//! NATs, and exchanges streams of bytes with them. This program sends back all bytes of its peers.
//! With a ticket as its argument, it has another such program send back a line:
//!
//! ```no_run
//! use libp2p_punch_node::Node;
//! use tokio::io::{AsyncWriteExt, copy};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let node = Node::builder().bootstrap(std::env::var("BOOTSTRAP").ok()).build().await?;
//!     if let Some(ticket) = std::env::args().nth(1) {
//!         let (mut send, mut recv) = node.connect(ticket).await?.open_bi().await?;
//!         send.write_all(b"hello\n").await?;
//!         send.shutdown().await?;
//!         copy(&mut recv, &mut tokio::io::stdout()).await?;
//!         node.shutdown().await;
//!         return Ok(());
//!     }
//!     println!("{}", node.ticket().await?);
//!     loop {
//!         let connection = node.accept().await?;
//!         tokio::spawn(async move {
//!             while let Ok((mut send, mut recv)) = connection.accept_bi().await {
//!                 copy(&mut recv, &mut send).await?;
//!                 send.shutdown().await?;
//!             }
//!             Ok::<(), std::io::Error>(())
//!         });
//!     }
//! }
//! ```
//!
//! # Network
//!
//! A node needs the address of one other node that everybody reaches: its *bootstrap* node. All
//! nodes whose address others have confirmed coordinate for those behind NATs, and relay for those
//! that no packet can reach directly. No server is special. Any node with [`Role::Server`] on a
//! host without a NAT will do as the first one. Nodes of one local network, or of one machine, need
//! none: a ticket has their addresses.
//!
//! # Connections
//!
//! There is one [`Connection`] for each peer. A connection over a relay becomes direct as soon as a
//! direct path is found; new streams then use that path. While an application at either end holds
//! the connection, it is kept open. [`Node::connection_status`] says at each moment how a peer is
//! connected, and why one is not. [`Node::watch_status`] follows one peer, and [`Node::subscribe`]
//! all of them.
//!
//! # Messages
//!
//! [`Node::send_to_peer`] sends a message, connects first if need be, and returns once the
//! application of the peer has taken it with [`Node::receive`]. Messages to one peer arrive in
//! order and at most once. An error says that the peer has not acknowledged the message.
//!
//! # Inside
//!
//! A node is a libp2p swarm: the transport and behaviour of `libp2p-punch`, identify, ping,
//! Kademlia (`/ipfs/kad/1.0.0`), AutoNAT v2, Circuit Relay v2 and connection limits. Streams are
//! libp2p streams of the protocol that [`NodeBuilder::protocol`] names, so that any libp2p peer can
//! speak with a node. The tasks of a node run in the tokio runtime in which it was built, which may
//! have one thread or several.
//!
//! # Not yet
//!
//! TCP and WebSocket for networks that block UDP, mDNS, unreliable datagrams, further protocols of
//! the application, reconnection, and a cache of peers in a file are not there yet.

mod builder;
mod connection;
mod diagnostics;
mod driver;
mod error;
mod event;
mod explain;
mod key_file;
mod local;
mod message;
mod node;
mod status;
mod streams;
mod swarm;
mod target;
mod tasks;
mod ticket;

pub use libp2p_core::{Multiaddr, multiaddr};
pub use libp2p_identity::{Keypair, PeerId};
pub use libp2p_punch::{
    Role,
    explain::{Explain, Explanation},
    nat,
    transport::ConnectionStats,
};

pub use self::{
    builder::NodeBuilder,
    connection::{Connection, MAX_WAITING_STREAMS, RecvStream, SendStream},
    diagnostics::{Diagnostic, Diagnostics},
    error::{BuildError, ConnectError, OpenError, SendError, ShutDown, TicketUnavailable},
    event::{BACKLOG, Event, Events},
    key_file::KeyFileError,
    message::{MAX_MESSAGE_LEN, Message},
    node::Node,
    status::{CloseReason, ConnectStep, ConnectionStatus, Route, StatusWatch},
    target::{Target, TargetError},
    ticket::{MAX_ADDRESSES, MAX_COORDINATORS, MAX_TEXT_LEN, Ticket, TicketError, TicketField},
};
