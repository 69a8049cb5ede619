//! Messages between the transport and the driver of traversals.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures::channel::oneshot;
use libp2p_identity::PeerId;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::{Connection, Error};
use crate::offers::Offer;
use libp2p_punch_proto::SocketId;

/// Message from the transport to the driver.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A socket can be used for sessions.
    SocketUp {
        /// Its name.
        socket: SocketId,
        /// Address to which it is bound; perhaps a wildcard.
        local: SocketAddr,
        /// The socket also accepts plain connections.
        accepts: bool,
    },
    /// A peer was dialed at an address of its own, and did not answer.
    Unanswered {
        /// Peer of the address.
        peer: PeerId,
    },
    /// A socket is no longer to be used for new sessions.
    SocketDown {
        /// Its name.
        socket: SocketId,
    },
    /// A connection, plain or of a session, was closed because it could not move with our address.
    Lost {
        /// The remote.
        peer: PeerId,
        /// Address that was dialed; `None` for an accepted connection and for a session.
        dialed: Option<SocketAddr>,
    },
    /// The swarm dials a peer through a traversal. It may poll other addresses first.
    Dial(Arc<Offer>),
    /// The swarm polls the offered address of a dial.
    Await {
        /// The offer of the dial.
        offer: Arc<Offer>,
        /// Takes the answer.
        reply: Reply,
    },
    /// A plain address of a peer is dialed while a dial of the peer has an offer.
    Join {
        /// Peer of the address.
        peer: PeerId,
        /// Takes the connection of the session, if no other dial of the peer waits for it.
        reply: Reply,
    },
}

/// Receives the result of a dial.
pub(crate) type Reply = oneshot::Sender<Result<(PeerId, Connection), Error>>;

/// A connection that a peer opened through a traversal session.
#[derive(Debug)]
pub(crate) struct InboundSession {
    /// The connection, authenticated.
    pub(crate) connection: Connection,
    /// The remote.
    pub(crate) peer: PeerId,
    /// The socket of the selected path.
    pub(crate) socket: SocketId,
    /// The real remote address of the selected path.
    pub(crate) remote: SocketAddr,
}

/// The transport's end of the channel to the driver. Notices are neither lost nor reordered.
#[derive(Debug)]
pub(crate) struct Notices {
    sender: Option<PollSender<Notice>>,
    /// Notices that did not fit into the channel yet. Its length follows the application's calls:
    /// it opened and closed these sockets.
    waiting: VecDeque<Notice>,
}

impl Notices {
    pub(crate) fn new(sender: Option<mpsc::Sender<Notice>>) -> Self {
        Self { sender: sender.map(PollSender::new), waiting: VecDeque::new() }
    }

    /// A sender for a future that awaits its turn.
    pub(crate) fn sender(&self) -> Option<mpsc::Sender<Notice>> {
        self.sender.as_ref()?.get_ref().cloned()
    }

    /// Sends at once if there is room. Otherwise the caller must see to it that
    /// [`poll_flush`](Self::poll_flush) is called.
    pub(crate) fn push(&mut self, notice: Notice) {
        if self.sender.is_some() {
            self.waiting.push_back(notice);
            // Without a waker: if the channel is full, the next flush registers the right one.
            let _ = self.poll_flush(&mut Context::from_waker(std::task::Waker::noop()));
        }
    }

    /// Sends the waiting notices. Ready once none waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sender) = &mut self.sender else { return Poll::Ready(()) };
        while let Some(notice) = self.waiting.pop_front() {
            match sender.poll_reserve(cx) {
                Poll::Ready(Ok(())) => {
                    if sender.send_item(notice).is_ok() {
                        continue;
                    }
                }
                Poll::Ready(Err(_)) => {}
                Poll::Pending => {
                    self.waiting.push_front(notice);
                    return Poll::Pending;
                }
            }
            // The driver has ended: nothing receives notices.
            self.sender = None;
            self.waiting.clear();
            break;
        }
        Poll::Ready(())
    }
}

/// Sends a notice to the driver, and waits for room. Without a driver the notice is dropped.
pub(crate) async fn tell(sender: Option<mpsc::Sender<Notice>>, notice: Notice) -> Result<(), Error> {
    match sender {
        Some(sender) => sender.send(notice).await.map_err(|_| Error::DriverStopped),
        None => Err(Error::DriverStopped),
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn down(id: u32) -> Notice {
        Notice::SocketDown { socket: SocketId(id) }
    }

    #[test]
    fn a_full_channel_loses_and_reorders_nothing() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut notices = Notices::new(Some(sender));
        (0..5).for_each(|id| notices.push(down(id)));
        let mut cx = Context::from_waker(Waker::noop());
        for id in 0..5 {
            let received = receiver.try_recv().unwrap();
            assert!(
                matches!(received, Notice::SocketDown { socket } if socket == SocketId(id)),
                "{received:?}"
            );
            let _ = notices.poll_flush(&mut cx);
        }
        assert_eq!(notices.poll_flush(&mut cx), Poll::Ready(()));
    }

    #[test]
    fn without_a_driver_nothing_piles_up() {
        let (sender, receiver) = mpsc::channel(1);
        let mut notices = Notices::new(Some(sender));
        drop(receiver);
        (0..5).for_each(|id| notices.push(down(id)));
        assert!(notices.waiting.is_empty());
        assert!(notices.sender().is_none());
    }
}
