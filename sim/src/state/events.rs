//! Datagrams under way and the queue of their next events.

use std::{cmp::Ordering, collections::BinaryHeap, net::SocketAddr, sync::Arc};

use quinn::udp::EcnCodepoint;
use tokio::time::Instant;

use crate::ids::{NodeId, RealmId};

/// A datagram under way.
#[derive(Debug, Clone)]
pub(super) struct InFlight {
    pub(super) id: u64,
    pub(super) sent: Instant,
    /// The addresses as the sender knows them.
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// The addresses as they are here, after translation.
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) payload: Arc<[u8]>,
}

impl InFlight {
    /// Returns the size with IP and UDP headers.
    pub(super) fn size(&self) -> usize {
        self.payload.len() + if self.destination.is_ipv4() { 28 } else { 48 }
    }
}

/// A node, and the realm from which a datagram reaches it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attachment {
    pub(super) node: NodeId,
    pub(super) realm: RealmId,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Hop {
    Leave(Attachment),
    Arrive(Attachment),
    Enter(Attachment),
    /// To the sending host itself.
    Local(NodeId),
}

#[derive(Debug)]
pub(super) struct Event {
    pub(super) at: Instant,
    order: u64,
    pub(super) hop: Hop,
    pub(super) datagram: InFlight,
}

impl Ord for Event {
    /// The earliest event is the greatest, for a max-heap; of one instant, the first one that was
    /// made.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Event {}

/// Queue of the events to come.
#[derive(Debug, Default)]
pub(crate) struct Events {
    heap: BinaryHeap<Event>,
    made: u64,
}

impl Events {
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|event| event.at)
    }

    /// Takes the earliest event if it is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Event> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop()
    }

    pub(super) fn push(&mut self, at: Instant, hop: Hop, datagram: InFlight) {
        self.heap.push(Event { at, order: self.made, hop, datagram });
        self.made += 1;
    }
}
