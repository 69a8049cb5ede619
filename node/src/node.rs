//! The handle of a node.

use std::{fmt, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use tokio::{
    sync::{Mutex, broadcast, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    builder::NodeBuilder,
    connection::Connection,
    driver::{Command, Handles},
    error::{BuildError, ConnectError, SendError, ShutDown, TicketUnavailable},
    event::{Event, Events, Present},
    local::{Local, with_peer},
    message::{ACKNOWLEDGEMENT_TIMEOUT, Inbox, MAX_MESSAGE_LEN, Message, NodeLink, Outboxes, Posting},
    status::{ConnectionStatus, StatusWatch},
    target::{Target, TargetError},
    tasks::Tasks,
    ticket::Ticket,
};

/// Time that [`Node::ticket`] waits for others to reach the node.
const REACHABLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the tasks of a node to end by themselves, once its connections are closed. QUIC would
/// go on for some seconds, to repeat the end for peers that missed it (RFC 9000 §10.2).
const TASKS_TIMEOUT: Duration = Duration::from_millis(300);

/// Node of a peer-to-peer network.
///
/// Clones are handles to the same node. The node shuts down when the last clone is dropped, or with
/// [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    peer: PeerId,
    commands: mpsc::Sender<Command>,
    accepted: Mutex<mpsc::Receiver<Connection>>,
    inbox: Inbox,
    outboxes: Outboxes,
    events: broadcast::WeakSender<Event>,
    present: Present,
    expects_coordinators: bool,
    stop: CancellationToken,
    ended: Shared<BoxFuture<'static, ()>>,
    /// The last clone shuts the node down.
    _stop_on_drop: DropGuard,
}

impl Node {
    /// Returns the settings of a node, to change them and to start it.
    ///
    /// ```no_run
    /// # async fn start() -> Result<(), libp2p_punch_node::BuildError> {
    /// use libp2p_punch_node::Node;
    ///
    /// let node = Node::builder().key_file("key").bootstrap(["/dnsaddr/boot.example.org"]).build().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> NodeBuilder {
        NodeBuilder::new()
    }

    /// Starts the task of a node, which `run` makes. The task also ends all others of the node.
    pub(crate) fn start<F>(
        handles: Handles,
        inbox: Inbox,
        tasks: Tasks,
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let running = run(stop.clone());
        let owned = tasks.clone();
        let task = tokio::spawn(async move {
            running.await;
            owned.finish(TASKS_TIMEOUT).await;
        });
        let Handles { peer, commands, accepted, events, present, expects_coordinators } = handles;
        let link =
            NodeLink { commands: commands.downgrade(), table: present.table.clone(), stop: stop.clone() };
        Self(Arc::new(Inner {
            outboxes: Outboxes::new(link, tasks),
            inbox,
            peer,
            commands,
            accepted: Mutex::new(accepted),
            events,
            present,
            expects_coordinators,
            ended: task.map(drop).boxed().shared(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }))
    }

    /// Returns the PeerId of this node, by which others dial and authenticate it.
    pub fn peer_id(&self) -> PeerId {
        self.0.peer
    }

    /// Returns the present addresses of this node, each with its PeerId at the end. Addresses that
    /// others have confirmed come first.
    ///
    /// Others behind NATs of their own may reach none of them: [`ticket`](Self::ticket) also names
    /// coordinators.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        let addresses = self.0.present.local.borrow().addresses();
        addresses.into_iter().map(|address| with_peer(address, self.0.peer)).collect()
    }

    /// Returns a ticket: all that another node needs to reach this one.
    ///
    /// A node with bootstrap addresses waits up to 10 s until other networks can reach it. After
    /// that, the ticket has the addresses that are known, which help in the own network.
    ///
    /// # Errors
    ///
    /// No address of the node is known, or it was shut down.
    pub async fn ticket(&self) -> Result<Ticket, TicketUnavailable> {
        let mut local = self.0.present.local.clone();
        if self.0.expects_coordinators {
            // An error means that the node has ended, which the next check finds.
            let _ = timeout(REACHABLE_TIMEOUT, local.wait_for(Local::is_reachable)).await;
        }
        if self.0.commands.is_closed() {
            return Err(TicketUnavailable::Shutdown);
        }
        let ticket = local.borrow().ticket(self.0.peer)?;
        if ticket.addresses().is_empty() && ticket.coordinators().is_empty() {
            return Err(TicketUnavailable::NoAddresses);
        }
        Ok(ticket)
    }

    /// Connects to a peer, which is named by its [`PeerId`], a [`Ticket`], a [`Multiaddr`] that
    /// ends with `/p2p/PEER_ID`, or the text of one of these.
    ///
    /// Returns the connection to the peer that there is, if there is one. A new connection may run
    /// over a relay at first. It then becomes direct as soon as a direct path is found: see
    /// [`Connection::wait_direct`].
    ///
    /// An attempt goes on if the future is dropped.
    ///
    /// # Errors
    ///
    /// The target names no peer, or there was no connection within
    /// [`connect_timeout`](NodeBuilder::connect_timeout). The error has the reason.
    pub async fn connect(
        &self,
        target: impl TryInto<Target, Error: Into<TargetError>>,
    ) -> Result<Connection, ConnectError> {
        let target = target.try_into().map_err(Into::into)?;
        let (reply, connected) = oneshot::channel();
        let command = Command::Connect { target, reply };
        self.0.commands.send(command).await.map_err(|_| ConnectError::Shutdown)?;
        connected.await.unwrap_or(Err(ConnectError::Shutdown))
    }

    /// Waits for the connection of a peer that connects to this node with its own
    /// [`connect`](Self::connect), or that opens a stream.
    ///
    /// There is one [`Connection`] for each peer. While the application holds one, the peer's
    /// further streams come from its [`accept_bi`](Connection::accept_bi). Cancel safe: no
    /// connection is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// The node was shut down.
    pub async fn accept(&self) -> Result<Connection, ShutDown> {
        let mut accepted = self.0.accepted.lock().await;
        loop {
            let connection = accepted.recv().await.ok_or(ShutDown)?;
            // A connection may have closed while it waited.
            if connection.is_open() {
                return Ok(connection);
            }
        }
    }

    /// Sends a message to a peer, and waits until the application of the peer has received it. The
    /// node connects to the peer first, if there is no connection.
    ///
    /// The messages to one peer arrive in the order of the calls. Calls at once are sent together;
    /// beyond a few, they wait for their turn. The peer takes no further ones while its application
    /// receives none.
    ///
    /// A message is sent at most once. If the future is dropped, a message that waits for its turn
    /// is not sent.
    ///
    /// # Errors
    ///
    /// The message is longer than [`MAX_MESSAGE_LEN`], the peer cannot be reached, or it has not
    /// acknowledged the message within a minute.
    pub async fn send_to_peer(&self, peer: PeerId, bytes: impl Into<Vec<u8>>) -> Result<(), SendError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_MESSAGE_LEN {
            return Err(SendError::TooLong { len: bytes.len() });
        }
        let (reply, acknowledged) = oneshot::channel();
        let acknowledgement = async {
            self.0.outboxes.post(peer, Posting { bytes, reply }).await;
            acknowledged.await.unwrap_or(Err(SendError::Shutdown))
        };
        timeout(ACKNOWLEDGEMENT_TIMEOUT, acknowledgement)
            .await
            .unwrap_or(Err(SendError::TimedOut { after: ACKNOWLEDGEMENT_TIMEOUT }))
    }

    /// Waits for the next message of any peer. Messages of one peer come in their order.
    ///
    /// The message is acknowledged when this returns it. Cancel safe: no message is lost if the
    /// future is dropped.
    ///
    /// # Errors
    ///
    /// The node was shut down.
    pub async fn receive(&self) -> Result<Message, ShutDown> {
        tokio::select! {
            biased;
            // A message that is left was not acknowledged, and its sender knows.
            () = self.0.stop.cancelled() => Err(ShutDown),
            message = self.0.inbox.receive() => message.ok_or(ShutDown),
        }
    }

    /// Returns the present status of the connection to a peer.
    pub fn connection_status(&self, peer: &PeerId) -> ConnectionStatus {
        self.0.present.table.get(peer)
    }

    /// Watches the status of the connection to a peer, whether there is one or not.
    pub fn watch_status(&self, peer: &PeerId) -> StatusWatch {
        self.0.present.table.watch(*peer)
    }

    /// Subscribes to the events of this node. The present state comes first.
    pub fn subscribe(&self) -> Events {
        Events::new(self.0.events.upgrade().as_ref(), self.0.present.clone())
    }

    /// Closes all connections, and waits until nothing of the node runs any more, for about a
    /// second at most. All pending calls return.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.ended.clone().await;
    }

    /// Enters the network, once the node listens.
    pub(crate) async fn enter(&self) {
        // An error means that the node has ended.
        let _ = self.0.commands.send(Command::Enter).await;
    }

    /// Listens on an address, and waits until it is known which addresses that gives.
    pub(crate) async fn listen(&self, address: Multiaddr) -> Result<(), BuildError> {
        let (reply, listening) = oneshot::channel();
        let command = Command::Listen { address: address.clone(), reply };
        let failed = |cause: &str| BuildError::Listen { address: address.clone(), cause: cause.to_owned() };
        self.0.commands.send(command).await.map_err(|_| failed("the node has stopped"))?;
        match listening.await {
            Ok(result) => result.map_err(|cause| failed(&cause)),
            Err(_) => Err(failed("the node has stopped")),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("peer_id", &self.0.peer).finish_non_exhaustive()
    }
}
