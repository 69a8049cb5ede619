//! Messages of the application on their way to peers.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use libp2p_identity::PeerId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{ACKNOWLEDGEMENT, MAX_QUEUED, MAX_UNACKNOWLEDGED, PROTOCOL};
use crate::{
    connection::{RecvStream, SendStream, split_outbound},
    driver::Command,
    error::{ConnectError, SendError},
    status::StatusTable,
    streams::OpenRequest,
    tasks::Tasks,
};

/// Time after which the stream to a peer ends that carries no messages.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Ended outboxes that may be left in the table.
const MAX_ENDED: usize = 64;

/// A message, and the handle that waits for its acknowledgement.
pub(crate) struct Posting {
    pub(crate) bytes: Vec<u8>,
    pub(crate) reply: oneshot::Sender<Result<(), SendError>>,
}

/// The outboxes of a node, one for each peer.
pub(crate) struct Outboxes {
    node: NodeLink,
    tasks: Tasks,
    queues: Mutex<HashMap<PeerId, mpsc::Sender<Posting>>>,
}

/// Access of an outbox to its node, which does not keep the node running.
#[derive(Clone)]
pub(crate) struct NodeLink {
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) table: Arc<StatusTable>,
    pub(crate) stop: CancellationToken,
}

impl Outboxes {
    pub(crate) fn new(node: NodeLink, tasks: Tasks) -> Self {
        Self { node, tasks, queues: Mutex::default() }
    }

    /// Puts a message into the queue to a peer, as soon as it has a place.
    pub(crate) async fn post(&self, peer: PeerId, mut posting: Posting) {
        while let Err(mpsc::error::SendError(returned)) = self.queue(peer).send(posting).await {
            // The outbox has ended, since it was idle. A new one takes its place.
            if self.node.stop.is_cancelled() {
                return returned.end(Err(SendError::Shutdown));
            }
            posting = returned;
        }
    }

    fn queue(&self, peer: PeerId) -> mpsc::Sender<Posting> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(&peer).filter(|queue| !queue.is_closed()) {
            return queue.clone();
        }
        if queues.len() >= MAX_ENDED {
            queues.retain(|_, queue| !queue.is_closed());
        }
        let (queue, postings) = mpsc::channel(MAX_QUEUED);
        let outbox = Outbox { peer, node: self.node.clone(), postings, stream: None };
        self.tasks.spawn(outbox.run());
        queues.insert(peer, queue.clone());
        queue
    }
}

impl Posting {
    fn end(self, result: Result<(), SendError>) {
        // An error means that the handle does not wait any more.
        let _ = self.reply.send(result);
    }
}

/// The messages to one peer.
struct Outbox {
    peer: PeerId,
    node: NodeLink,
    postings: mpsc::Receiver<Posting>,
    stream: Option<MessageStream>,
}

/// The stream to the peer.
struct MessageStream {
    send: SendStream,
    recv: RecvStream,
    /// Messages that were written, oldest first.
    unacknowledged: VecDeque<oneshot::Sender<Result<(), SendError>>>,
    is_direct: bool,
}

impl Outbox {
    async fn run(mut self) {
        let stop = self.node.stop.clone();
        if stop.run_until_cancelled(self.send_all()).await.is_none() {
            self.postings.close();
            self.end_stream(&SendError::Shutdown);
            while let Ok(posting) = self.postings.try_recv() {
                posting.end(Err(SendError::Shutdown));
            }
        }
    }

    /// Sends messages until none came for a while.
    async fn send_all(&mut self) {
        loop {
            let unacknowledged = self.stream.as_ref().map_or(0, |stream| stream.unacknowledged.len());
            tokio::select! {
                posting = self.postings.recv(), if unacknowledged < MAX_UNACKNOWLEDGED => match posting {
                    Some(posting) => self.send(posting).await,
                    None if unacknowledged == 0 => break,
                    // The queue is closed: only acknowledgements are awaited.
                    None => self.await_acknowledgements().await,
                },
                result = acknowledged(&mut self.stream) => {
                    if let Err(error) = result {
                        self.end_stream(&SendError::not_acknowledged(&error));
                    }
                }
                () = sleep(IDLE_TIMEOUT), if unacknowledged == 0 => self.postings.close(),
            }
        }
        if let Some(mut stream) = self.stream.take() {
            // An error means that the peer ended it first.
            let _ = stream.send.shutdown().await;
        }
    }

    /// Returns true if the stream goes over a relay, and a direct connection exists.
    fn is_outdated(&self) -> bool {
        let is_direct = self.stream.as_ref().is_none_or(|stream| stream.is_direct);
        !is_direct && self.node.table.get(&self.peer).is_direct()
    }

    async fn await_acknowledgements(&mut self) {
        while self.stream.as_ref().is_some_and(|stream| !stream.unacknowledged.is_empty()) {
            if let Err(error) = acknowledged(&mut self.stream).await {
                self.end_stream(&SendError::not_acknowledged(&error));
            }
        }
    }

    async fn send(&mut self, posting: Posting) {
        if posting.reply.is_closed() {
            return;
        }
        if self.is_outdated() {
            // Afterwards, or two streams would carry messages at once, in any order.
            self.await_acknowledgements().await;
            self.stream = None;
        }
        if self.stream.is_none() {
            match self.open().await {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => {
                    // Those that waited meanwhile would wait for the same again.
                    while let Ok(waiting) = self.postings.try_recv() {
                        waiting.end(Err(error.clone()));
                    }
                    return posting.end(Err(error));
                }
            }
        }
        let Some(stream) = &mut self.stream else { return };
        if let Err(error) = stream.write(posting).await {
            self.end_stream(&SendError::not_acknowledged(&error));
        }
    }

    async fn open(&self) -> Result<MessageStream, SendError> {
        let (reply, connected) = oneshot::channel();
        self.command(Command::Dial { peer: self.peer, reply }).await?;
        connected.await.unwrap_or(Err(ConnectError::Shutdown))?;
        let (reply, opened) = oneshot::channel();
        let request = OpenRequest { protocol: PROTOCOL, reply };
        self.command(Command::Open { peer: self.peer, request }).await?;
        let stream = opened.await.map_err(|_| SendError::Shutdown)??;
        let (send, recv) = split_outbound(stream);
        let is_direct = self.node.table.get(&self.peer).is_direct();
        Ok(MessageStream { send, recv, unacknowledged: VecDeque::new(), is_direct })
    }

    async fn command(&self, command: Command) -> Result<(), SendError> {
        let commands = self.node.commands.upgrade().ok_or(SendError::Shutdown)?;
        commands.send(command).await.map_err(|_| SendError::Shutdown)
    }

    fn end_stream(&mut self, error: &SendError) {
        for reply in self.stream.take().into_iter().flat_map(|stream| stream.unacknowledged) {
            // An error means that the handle does not wait any more.
            let _ = reply.send(Err(error.clone()));
        }
    }
}

impl MessageStream {
    /// Writes a message. Acknowledgements of earlier ones are taken meanwhile.
    async fn write(&mut self, posting: Posting) -> io::Result<()> {
        let Posting { bytes, reply } = posting;
        let len = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.unacknowledged.push_back(reply);
        let earlier = self.unacknowledged.len() - 1;
        let send = &mut self.send;
        let mut writing = pin!(async {
            send.write_all(&len.to_be_bytes()).await?;
            send.write_all(&bytes).await?;
            send.flush().await
        });
        for _ in 0..earlier {
            tokio::select! {
                written = &mut writing => return written,
                read = read_acknowledgement(&mut self.recv) => {
                    read?;
                    acknowledge(&mut self.unacknowledged);
                }
            }
        }
        writing.await
    }
}

/// Waits for the next acknowledgement, or for the end of the stream.
async fn acknowledged(stream: &mut Option<MessageStream>) -> io::Result<()> {
    let Some(stream) = stream else { return std::future::pending().await };
    read_acknowledgement(&mut stream.recv).await?;
    if !acknowledge(&mut stream.unacknowledged) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an acknowledgement of no message"));
    }
    Ok(())
}

async fn read_acknowledgement(recv: &mut RecvStream) -> io::Result<()> {
    match recv.read_u8().await? {
        ACKNOWLEDGEMENT => Ok(()),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("an acknowledgement of {other}"))),
    }
}

/// The oldest message was acknowledged. Returns false if there is none.
fn acknowledge(unacknowledged: &mut VecDeque<oneshot::Sender<Result<(), SendError>>>) -> bool {
    let Some(reply) = unacknowledged.pop_front() else { return false };
    // An error means that the handle does not wait any more.
    let _ = reply.send(Ok(()));
    true
}
