//! Coordinators of peers by their PeerId alone, through the Kademlia DHT of the application.
//!
//! A peer behind a NAT registers with the coordinators nearest to its PeerId (see
//! [`Config::max_found_coordinators`](crate::Config::max_found_coordinators)). A dialer looks for
//! the nodes nearest to that PeerId, and asks those that coordinate. No record is published, and no
//! peer keeps an index.
//!
//! libp2p-kad answers with a provider of a key only if it knows an address of that provider. A peer
//! behind a NAT that announces content needs a reservation at a relay, or puts its PeerId in a
//! record: see `examples/dht_node.rs`.
//!
//! The [`Behaviour`] here is the application's own [`libp2p_kad::Behaviour`] with that added:
//!
//! ```
//! # use libp2p_identity::PeerId;
//! # fn behaviour(local_peer: PeerId, mut punch: libp2p_punch::Behaviour) {
//! let kad = libp2p_kad::Behaviour::new(local_peer, libp2p_kad::store::MemoryStore::new(local_peer));
//! let kad = libp2p_punch::kad::Behaviour::new(kad, punch.coordinator_lookup());
//! # }
//! ```

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
    task::{Context, Poll},
};

use futures::StreamExt;
use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_kad::{
    Event, GetClosestPeersError, GetClosestPeersOk, KBucketKey, PeerInfo, QueryId, QueryResult,
    store::RecordStore,
};
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};

use crate::behaviour::CoordinatorLookup;

/// Nodes of the own routing table that are named at once.
const NEAREST: usize = 8;
/// Queries under way for dials. Peers that are dialed while there are as many wait for their turn.
const MAX_QUERIES: usize = 64;

/// A Kademlia behaviour that finds coordinators of the peers that the swarm dials.
///
/// It dereferences to the behaviour of libp2p-kad, and emits its events, except those of its own
/// queries.
pub struct Behaviour<S> {
    kad: libp2p_kad::Behaviour<S>,
    lookup: CoordinatorLookup,
    queries: HashMap<QueryId, PeerId>,
}

impl<S: RecordStore + Send + 'static> Behaviour<S> {
    /// Looks for coordinators with `kad`. `lookup` comes from
    /// [`Behaviour::coordinator_lookup`](crate::Behaviour::coordinator_lookup).
    pub fn new(kad: libp2p_kad::Behaviour<S>, lookup: CoordinatorLookup) -> Self {
        Self { kad, lookup, queries: HashMap::new() }
    }

    fn look_up(&mut self, peer: PeerId) {
        let key = KBucketKey::from(peer);
        let mut near = Vec::new();
        for bucket in self.kad.kbuckets() {
            for entry in bucket.iter() {
                let addresses: Vec<_> = entry.node.value.iter().cloned().collect();
                near.push((entry.node.key.distance(&key), *entry.node.key.preimage(), addresses));
            }
        }
        near.sort_by_key(|(distance, _, _)| *distance);
        for (_, coordinator, addresses) in near.into_iter().take(NEAREST) {
            self.lookup.found(peer, coordinator, addresses);
        }
        self.queries.insert(self.kad.get_closest_peers(peer), peer);
    }

    /// Takes the result of a query of ours. Returns any other event.
    fn take(&mut self, event: Event) -> Option<Event> {
        let Event::OutboundQueryProgressed { id, result, step, .. } = &event else { return Some(event) };
        let Some(peer) = self.queries.get(id).copied() else { return Some(event) };
        if step.last {
            self.queries.remove(id);
        }
        if let QueryResult::GetClosestPeers(
            Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. }),
        ) = result
        {
            for PeerInfo { peer_id, addrs } in peers {
                self.lookup.found(peer, *peer_id, addrs.clone());
            }
        }
        None
    }
}

impl<S> Deref for Behaviour<S> {
    type Target = libp2p_kad::Behaviour<S>;

    fn deref(&self) -> &Self::Target {
        &self.kad
    }
}

impl<S> DerefMut for Behaviour<S> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.kad
    }
}

impl<S: RecordStore + Send + 'static> NetworkBehaviour for Behaviour<S> {
    type ConnectionHandler = <libp2p_kad::Behaviour<S> as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.kad.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.kad.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.kad.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        while self.queries.len() < MAX_QUERIES
            && let Poll::Ready(Some(peer)) = self.lookup.poll_next_unpin(cx)
        {
            self.look_up(peer);
        }
        loop {
            match self.kad.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    if let Some(event) = self.take(event) {
                        return Poll::Ready(ToSwarm::GenerateEvent(event));
                    }
                }
                Poll::Ready(ToSwarm::Dial { opts }) => {
                    self.lookup.dials(opts.connection_id());
                    return Poll::Ready(ToSwarm::Dial { opts });
                }
                Poll::Ready(action) => return Poll::Ready(action),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
