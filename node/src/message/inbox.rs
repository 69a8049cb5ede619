//! Messages of peers on their way to the application.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use libp2p_identity::PeerId;
use libp2p_swarm::Stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Mutex, Notify, mpsc},
};

use super::{ACKNOWLEDGEMENT, MAX_MESSAGE_LEN, MAX_RECEIVED, Message};
use crate::connection::{RecvStream, split_inbound};

/// Messages of all peers that wait for the application.
pub(crate) struct Inbox(Mutex<mpsc::Receiver<Received>>);

/// The end of the inbox to which streams deliver.
#[derive(Clone)]
pub(crate) struct Mailbox(mpsc::Sender<Received>);

/// A message in the inbox.
struct Received {
    message: Message,
    taken: Arc<Taken>,
}

/// Number of the messages of one stream that the application has received.
#[derive(Default)]
struct Taken {
    count: AtomicU64,
    changed: Notify,
}

impl Inbox {
    pub(crate) fn new() -> (Mailbox, Self) {
        let (sender, receiver) = mpsc::channel(MAX_RECEIVED);
        (Mailbox(sender), Self(Mutex::new(receiver)))
    }

    /// Waits for the next message, and has it acknowledged. `None` after the end of the node.
    pub(crate) async fn receive(&self) -> Option<Message> {
        let Received { message, taken } = self.0.lock().await.recv().await?;
        // No await follows: a message is acknowledged if and only if it is returned.
        taken.count.fetch_add(1, Relaxed);
        taken.changed.notify_one();
        Some(message)
    }
}

impl Taken {
    /// Waits until more than `known` messages were received, and returns their number.
    async fn more_than(&self, known: u64) -> u64 {
        loop {
            let count = self.count.load(Relaxed);
            if count > known {
                return count;
            }
            self.changed.notified().await;
        }
    }
}

impl Mailbox {
    /// Delivers the messages of a stream, until the peer ends it.
    pub(crate) async fn deliver(self, peer: PeerId, stream: Stream) {
        if let Err(error) = self.exchange(peer, stream).await {
            // The peer learns that its last messages were not acknowledged.
            tracing::debug!(%peer, %error, "a stream of messages ended");
        }
    }

    async fn exchange(&self, peer: PeerId, stream: Stream) -> io::Result<()> {
        let (mut send, mut recv) = split_inbound(stream);
        let taken = Arc::new(Taken::default());
        let mut reading = pin!(self.read(peer, &mut recv, &taken));
        let (mut acknowledged, mut delivered) = (0, None);
        while delivered != Some(acknowledged) {
            tokio::select! {
                count = &mut reading, if delivered.is_none() => delivered = Some(count?),
                count = taken.more_than(acknowledged) => {
                    for _ in acknowledged..count {
                        send.write_u8(ACKNOWLEDGEMENT).await?;
                    }
                    send.flush().await?;
                    acknowledged = count;
                }
            }
        }
        send.shutdown().await
    }

    /// Reads messages to the end of the stream. Returns their number.
    async fn read(&self, peer: PeerId, recv: &mut RecvStream, taken: &Arc<Taken>) -> io::Result<u64> {
        let mut delivered = 0;
        while let Some(bytes) = read_message(recv).await? {
            let message = Message { peer, bytes };
            let received = Received { message, taken: taken.clone() };
            // Waits for a place: the peer cannot send more than fits.
            self.0.send(received).await.map_err(|_| io::ErrorKind::ConnectionAborted)?;
            delivered += 1;
        }
        Ok(delivered)
    }
}

/// Reads a message. `None` at the end of the stream.
async fn read_message(recv: &mut RecvStream) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    // The stream may end before a message, and not within one.
    if recv.read(&mut len[..1]).await? == 0 {
        return Ok(None);
    }
    recv.read_exact(&mut len[1..]).await?;
    let len = u64::from(u32::from_be_bytes(len));
    if len > MAX_MESSAGE_LEN as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {len} bytes")));
    }
    // Grows with the bytes that arrive: an announced length alone costs nothing.
    let mut bytes = Vec::new();
    recv.take(len).read_to_end(&mut bytes).await?;
    if (bytes.len() as u64) < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(bytes))
}
