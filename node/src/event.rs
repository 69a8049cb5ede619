//! Events of a node, for any number of subscribers.

use std::{collections::VecDeque, sync::Arc};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_punch::nat::Report;
use tokio::sync::{broadcast, watch};

use crate::{
    local::Local,
    status::{ConnectionStatus, StatusTable},
};

/// Events that wait for a slow subscriber.
pub const BACKLOG: usize = 256;

/// Event of a node.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The status of the connection to a peer changed, apart from its round-trip time.
    #[non_exhaustive]
    Connection {
        /// The peer.
        peer: PeerId,
        /// The status at the time of the event.
        status: ConnectionStatus,
    },
    /// The addresses of this node changed.
    #[non_exhaustive]
    Addresses {
        /// The addresses now, without the PeerId of this node.
        addresses: Vec<Multiaddr>,
    },
    /// The coordinators that know this node changed.
    #[non_exhaustive]
    Coordinators {
        /// The coordinators that know this node now.
        registered: Vec<PeerId>,
    },
    /// The findings about the NAT in front of this node changed.
    Nat(Box<Report>),
    /// The node can no longer listen on addresses.
    #[non_exhaustive]
    ListenFailed {
        /// The addresses.
        addresses: Vec<Multiaddr>,
        /// The cause.
        cause: String,
    },
    /// A stream of a peer was reset, because too many waited to be accepted.
    #[non_exhaustive]
    StreamRefused {
        /// The peer.
        peer: PeerId,
    },
    /// The subscriber was too slow and lost events. The present state follows.
    #[non_exhaustive]
    Missed {
        /// Number of the lost events.
        count: u64,
    },
}

/// Present state of a node, as events.
#[derive(Debug, Clone)]
pub(crate) struct Present {
    pub(crate) table: Arc<StatusTable>,
    pub(crate) local: watch::Receiver<Local>,
    pub(crate) nat: watch::Receiver<Option<Box<Report>>>,
}

impl Present {
    fn events(&self) -> VecDeque<Event> {
        let local = self.local.borrow();
        let mut events = VecDeque::from([
            Event::Addresses { addresses: local.addresses() },
            Event::Coordinators { registered: local.registered.clone() },
        ]);
        drop(local);
        events.extend(self.nat.borrow().clone().map(Event::Nat));
        let statuses = self.table.all().into_iter();
        events.extend(statuses.map(|(peer, status)| Event::Connection { peer, status }));
        events
    }
}

/// Events of a node: the state at the subscription first, and then each change.
///
/// A subscriber that falls behind by more than [`BACKLOG`] events gets [`Event::Missed`] and then
/// the present state, so that its view of the node is right again.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    present: Present,
    /// Events that come before those of the receiver.
    replay: VecDeque<Event>,
}

impl Events {
    /// Subscribes to the events of a node. Without a sender the node has ended.
    pub(crate) fn new(sender: Option<&broadcast::Sender<Event>>, present: Present) -> Self {
        let receiver = match sender {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        };
        // After the subscription: a change between the two is reported twice, and not lost.
        let replay = present.events();
        Self { receiver, present, replay }
    }

    /// Waits for the next event. `None` after the end of the node.
    ///
    /// Cancel safe: no event is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.replay.pop_front() {
            return Some(event);
        }
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => {
                // Events that wait are older than the state that follows.
                let count = count + self.receiver.len() as u64;
                self.receiver = self.receiver.resubscribe();
                self.replay = self.present.events();
                Some(Event::Missed { count })
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::status::CloseReason;

    #[tokio::test]
    async fn a_slow_subscriber_gets_the_present_state_and_no_older_one() {
        let table = Arc::new(StatusTable::default());
        let (_, local) = watch::channel(Local::default());
        let (_, nat) = watch::channel(None);
        let (sender, _) = broadcast::channel(2);
        let present = Present { table: table.clone(), local, nat };
        let mut events = Events::new(Some(&sender), present.clone());
        let addresses = || Some(Event::Addresses { addresses: Vec::new() });
        let coordinators = || Some(Event::Coordinators { registered: Vec::new() });
        assert_eq!([events.next().await, events.next().await], [addresses(), coordinators()]);

        let peer = PeerId::random();
        let status = ConnectionStatus::Closed { since: Instant::now(), reason: CloseReason::Idle };
        for _ in 0..3 {
            sender.send(Event::Connection { peer, status: ConnectionStatus::Unknown }).unwrap();
        }
        table.set(peer, status.clone());
        assert_eq!(events.next().await, Some(Event::Missed { count: 3 }));
        assert_eq!([events.next().await, events.next().await], [addresses(), coordinators()]);
        assert_eq!(events.next().await, Some(Event::Connection { peer, status }));
        sender.send(Event::StreamRefused { peer }).unwrap();
        assert_eq!(events.next().await, Some(Event::StreamRefused { peer }));
        drop(sender);
        assert_eq!(events.next().await, None);
        let mut late = Events::new(None, present);
        while late.next().await.is_some() {}
    }
}
