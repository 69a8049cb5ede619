//! The connections that the swarm holds.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
};

use futures::channel::mpsc;
use libp2p_identity::PeerId;
use quinn::Runtime;

use super::{
    Error, addr,
    connection_stats::{ConnectionOrigin, ConnectionStats, StatsEvent},
    limits::Limits,
    migration::{MoveBudget, Whereabouts},
    path::FlowView,
    shared_endpoint::SharedEndpoint,
    shares::{self, Shares},
    tls::{self, Cipher, HandshakeMode},
};
use crate::carrier::ConnectionNumber;
use libp2p_punch_proto::Path;

/// Event streams at once.
pub(super) const MAX_SUBSCRIBERS: usize = 16;

/// Carrier of a connection.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// The socket of a connection that we dialed. Its QUIC server stays where it is.
    Dialed(Arc<SharedEndpoint>),
    /// The socket of a connection that a peer made, and where that peer is.
    Accepted(Arc<SharedEndpoint>, Arc<Whereabouts>),
    /// A virtual connection of the path layer.
    Flow(FlowView),
}

impl Carrier {
    /// The real remote address, as far as QUIC has validated it.
    pub(super) fn remote(&self, connection: &quinn::Connection) -> Option<SocketAddr> {
        match self {
            Self::Dialed(_) => Some(connection.remote_address()),
            Self::Accepted(_, client) => Some(client.proven()),
            Self::Flow(flow) => flow.remote(),
        }
    }
}

/// An authenticated connection, from its handshake to the moment when the swarm drops it.
#[derive(Debug)]
pub(crate) struct ConnectionEntry {
    number: ConnectionNumber,
    peer: PeerId,
    handshake: HandshakeMode,
    cipher: Cipher,
    through: ConnectionOrigin,
    beneath: Carrier,
    pub(super) connection: Arc<quinn::Connection>,
    registry: Arc<ConnectionTable>,
    place: Mutex<LastAddresses>,
    /// The place of an accepted connection in the share of its network.
    _accepted: Option<shares::Place>,
}

/// Last known addresses of the two ends.
#[derive(Debug, Default)]
struct LastAddresses {
    /// Remote address that was reported last.
    remote: Option<SocketAddr>,
    /// The address that the routing table sent from when it was last asked.
    source: Option<IpAddr>,
}

impl ConnectionEntry {
    pub(crate) fn number(&self) -> ConnectionNumber {
        self.number
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    pub(crate) fn handshake(&self) -> HandshakeMode {
        self.handshake
    }

    pub(crate) fn through(&self) -> ConnectionOrigin {
        self.through
    }

    pub(crate) fn limits(&self) -> Limits {
        self.registry.limits
    }

    /// The clock and the tasks of the transport.
    pub(super) fn runtime(&self) -> Arc<dyn Runtime> {
        self.registry.runtime.clone()
    }

    /// Returns the endpoint that carries a plain connection.
    pub(crate) fn wire(&self) -> Option<&Arc<SharedEndpoint>> {
        match &self.beneath {
            Carrier::Dialed(wire) | Carrier::Accepted(wire, _) => Some(wire),
            Carrier::Flow(_) => None,
        }
    }

    /// The real remote address, as far as QUIC has validated it.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        if let Carrier::Accepted(_, client) = &self.beneath {
            client.look(&self.connection);
        }
        self.beneath.remote(&self.connection)
    }

    /// Returns the remote address of a connection if it changed since the last call.
    pub(crate) fn moved(&self) -> Option<SocketAddr> {
        let remote = self.remote()?;
        let before = self.place().remote.replace(remote);
        if before == Some(remote) {
            return None;
        }
        if before.is_some() {
            self.registry.tell(|| StatsEvent::Moved(self.stats()));
        }
        Some(remote)
    }

    /// Returns the new address of a client that has moved. Otherwise calls `waker` at the next
    /// change.
    pub(super) fn poll_moved(&self, waker: &Waker) -> Option<SocketAddr> {
        let Carrier::Accepted(_, client) = &self.beneath else { return None };
        client.register(waker);
        self.moved()
    }

    /// The address that we send from, as far as it is known.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.place().source
    }

    /// Records the local address; returns true if it differs from the address before.
    pub(crate) fn sends_from(&self, source: IpAddr) -> bool {
        self.place().source.replace(source).is_some_and(|before| before != source)
    }

    pub(crate) fn stats(&self) -> ConnectionStats {
        let quic = self.connection.stats();
        ConnectionStats {
            connection: self.number,
            peer: self.peer,
            through: self.through,
            handshake: self.handshake,
            cipher: self.cipher,
            remote: self.remote().map(addr::from_socket),
            rtt: quic.path.rtt,
            min_rtt: quic.path.min_rtt,
            congestion_window: quic.path.cwnd,
            congestion_events: quic.path.congestion_events,
            path_mtu: quic.path.current_mtu,
            packets_sent: quic.path.sent_packets,
            packets_lost: quic.path.lost_packets,
            bytes_lost: quic.path.lost_bytes,
            datagrams_sent: quic.udp_tx.datagrams,
            datagrams_received: quic.udp_rx.datagrams,
            bytes_sent: quic.udp_tx.bytes,
            bytes_received: quic.udp_rx.bytes,
        }
    }

    fn place(&self) -> MutexGuard<'_, LastAddresses> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.registry.lock().live.remove(&self.number);
        self.registry.tell(|| StatsEvent::Closed(self.stats()));
    }
}

/// The side that wanted a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AskedBy {
    /// This side, by a dial. The limits on connections do not refuse it.
    Us,
    /// The remote, as a client of a listener or as the initiator of a session.
    Remote,
}

/// A connection after its handshake.
pub(crate) struct NewConnection {
    pub(crate) connection: quinn::Connection,
    pub(crate) through: ConnectionOrigin,
    pub(crate) beneath: Carrier,
    /// The address that we send from, if it is known.
    pub(crate) source: Option<IpAddr>,
    pub(crate) asked_by: AskedBy,
}

/// All connections of one transport, held weakly.
#[derive(Debug)]
pub(crate) struct ConnectionTable {
    runtime: Arc<dyn Runtime>,
    limits: Limits,
    moves: Arc<MoveBudget>,
    accepted: Arc<Shares>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    live: BTreeMap<ConnectionNumber, Weak<ConnectionEntry>>,
    subscribers: Vec<Subscriber>,
}

#[derive(Debug)]
struct Subscriber {
    events: mpsc::Sender<StatsEvent>,
    missed: Arc<AtomicU64>,
}

impl ConnectionTable {
    pub(crate) fn new(limits: Limits, runtime: Arc<dyn Runtime>) -> Self {
        Self {
            moves: Arc::new(MoveBudget::new(runtime.clone())),
            runtime,
            limits,
            accepted: Arc::default(),
            inner: Mutex::default(),
        }
    }

    /// Adds a connection whose handshake has ended.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyConnections`] for an incoming connection beyond a limit of the
    /// configuration.
    pub(crate) fn add(self: &Arc<Self>, new: NewConnection) -> Result<Arc<ConnectionEntry>, Error> {
        let NewConnection { connection, through, beneath, source, asked_by } = new;
        let (peer, handshake) = tls::peer_of(&connection)?;
        let number = ConnectionNumber::next();
        let address = beneath.remote(&connection);
        let remote = match &beneath {
            Carrier::Dialed(_) | Carrier::Accepted(..) => address,
            // A session's address is news to the swarm, which knows it by its peer only.
            Carrier::Flow(_) => None,
        };
        // The lock is held from the check to the insertion, so that two handshakes never take one
        // place.
        let mut inner = self.lock();
        let address = address.map(|address| address.ip());
        if asked_by == AskedBy::Remote && !self.fits(inner.live.len(), address) {
            return Err(Error::TooManyConnections);
        }
        let is_accepted = asked_by == AskedBy::Remote || through.is_accepted();
        let accepted = address.filter(|_| is_accepted).map(|address| self.accepted.take(address));
        let live = Arc::new(ConnectionEntry {
            number,
            peer,
            handshake,
            cipher: tls::cipher_of(&connection)?,
            through,
            beneath,
            connection: Arc::new(connection),
            registry: self.clone(),
            place: Mutex::new(LastAddresses { remote, source }),
            _accepted: accepted,
        });
        if let Carrier::Accepted(_, client) = &live.beneath {
            client.connected(&live.connection);
        }
        inner.live.insert(number, Arc::downgrade(&live));
        drop(inner);
        self.tell(|| StatsEvent::Opened(live.stats()));
        Ok(live)
    }

    /// Returns the number of connections.
    pub(crate) fn len(&self) -> usize {
        self.lock().live.len()
    }

    /// Returns true if a connection that a peer asks for from `address` would be within the limits
    /// of the configuration, with as many other handshakes `under_way`.
    pub(crate) fn has_room(&self, address: Option<IpAddr>, under_way: usize) -> bool {
        self.fits(self.len() + under_way, address)
    }

    fn fits(&self, connections: usize, address: Option<IpAddr>) -> bool {
        let of_prefix = address.map_or(0, |address| self.accepted_from(address));
        let has_room =
            |limit: Option<u32>, taken: usize| limit.is_none_or(|limit| (taken as u64) < limit.into());
        has_room(self.limits.connections, connections)
            && has_room(self.limits.connections_per_prefix, of_prefix)
    }

    /// Returns the budget for datagrams to the addresses that clients claim.
    pub(super) fn moves(&self) -> &Arc<MoveBudget> {
        &self.moves
    }

    /// Returns the number of accepted connections from the network of `address`.
    pub(crate) fn accepted_from(&self, address: IpAddr) -> usize {
        self.accepted.taken_by(address)
    }

    /// The connections, oldest first.
    pub(crate) fn live(&self) -> Vec<Arc<ConnectionEntry>> {
        self.lock().live.values().filter_map(Weak::upgrade).collect()
    }

    /// Returns true if there is a connection with `peer`.
    pub(crate) fn has_peer(&self, peer: PeerId) -> bool {
        self.live().iter().any(|live| live.peer() == peer)
    }

    pub(crate) fn get(&self, number: ConnectionNumber) -> Option<Arc<ConnectionEntry>> {
        self.lock().live.get(&number)?.upgrade()
    }

    /// Returns the path that carries a connection now; `None` if the connection has ended, or
    /// belongs to another transport.
    pub(crate) fn path_of(&self, number: ConnectionNumber) -> Option<Path> {
        let entry = self.get(number)?;
        match &entry.beneath {
            Carrier::Flow(flow) => flow.path(),
            Carrier::Dialed(wire) | Carrier::Accepted(wire, _) => {
                Some(Path { socket: wire.id(), remote: entry.remote()? })
            }
        }
    }

    /// Adds a stream of events, and returns the counter of the events that it misses.
    pub(crate) fn subscribe(&self, events: mpsc::Sender<StatsEvent>) -> Option<Arc<AtomicU64>> {
        let mut inner = self.lock();
        inner.subscribers.retain(|subscriber| !subscriber.events.is_closed());
        if inner.subscribers.len() >= MAX_SUBSCRIBERS {
            return None;
        }
        let missed = Arc::new(AtomicU64::new(0));
        inner.subscribers.push(Subscriber { events, missed: missed.clone() });
        Some(missed)
    }

    /// Sends an event to all subscribers, if there are any.
    fn tell(&self, event: impl FnOnce() -> StatsEvent) {
        if self.lock().subscribers.is_empty() {
            return;
        }
        // Made without our lock, since it takes the connection's.
        let event = event();
        self.lock().subscribers.retain_mut(|subscriber| match subscriber.events.try_send(event.clone()) {
            Err(error) if error.is_disconnected() => false,
            Err(_) => {
                subscriber.missed.fetch_add(1, Relaxed);
                true
            }
            Ok(()) => true,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
