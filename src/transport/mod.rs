//! QUIC as a libp2p transport, with traversal sessions underneath.
//!
//! [`Transport`] speaks `/quic-v1` with every libp2p implementation and is a drop-in for
//! `libp2p-quic`: use it alone with [`Transport::new`], or together with the behaviour by
//! `libp2p_punch::new`, which offers addresses that lead through traversals.
//!
//! # Structure
//!
//! Every listener, and every family that only dials, is a *binding*: one UDP socket with an
//! ordinary quinn endpoint on it. A dial leaves through the listener from which the routing table
//! would send, so that a NAT maps the port that others know. While sessions exist, the path layer
//! sees each received datagram first; see `path`.
//!
//! **Invariant: a binding outlives its listener.** Removing a listener stops accepting; the
//! endpoint and its socket stay until the last connection is gone.
//!
//! **Invariant: no unauthenticated connection leaves the transport.** The swarm gets a connection
//! after TLS has proved its peer, and a peer that the address names is checked within the
//! handshake; see `tls`.

pub(crate) mod addr;
mod binding;
mod closing;
mod connection;
mod connection_stats;
mod context;
mod dial;
mod error;
mod handshake;
mod hole_punching;
mod interfaces;
mod limits;
mod listener;
pub(crate) mod live;
mod migration;
pub(crate) mod notice;
pub(crate) mod path;
mod qlog;
pub(crate) mod quic;
pub(crate) mod ready;
mod shared_endpoint;
mod shares;
mod socket;
pub(crate) mod socket_budget;
mod sockets;
mod stats;
mod stream;
mod time;
pub(crate) mod tls;
mod window;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::{channel::oneshot, future, future::BoxFuture};
use libp2p_core::{
    Multiaddr,
    transport::{DialOpts, ListenerId, TransportError, TransportEvent},
};
use libp2p_identity::{Keypair, PeerId};
use quinn::Runtime;
use tokio::sync::mpsc;

use self::{
    binding::Binding,
    context::TransportContext,
    dial::Dial,
    hole_punching::Arrival,
    listener::{Admission, Listener},
    live::{Carrier, ConnectionTable},
    migration::Whereabouts,
    notice::{InboundSession, Notice, Notices},
    path::PathLayer,
    quic::Quic,
    ready::Ready,
    tls::Expected,
};
pub use self::{
    connection::Connection,
    connection_stats::{ConnectionOrigin, ConnectionStats, StatsEvent},
    error::{ConnectError, ConnectionError, Error},
    handshake::Upgrade,
    path::PathCounters,
    stats::{Stats, StatsEvents},
    stream::Stream,
    tls::{Cipher, HandshakeMode},
};
#[doc(inline)]
pub use crate::carrier::ConnectionNumber;
use crate::{
    config::Config,
    contacts::Contacts,
    io::{self, InterfaceWatch, Network, OsNetwork},
    offers::Offers,
};
use libp2p_punch_proto::SocketId;

/// The TLS layer's readers on arbitrary bytes.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz_certificate(bytes: &[u8]) {
    tls::fuzz(bytes);
}

/// The demultiplexer on an arbitrary received buffer.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz_datagrams(bytes: &[u8]) {
    path::fuzz::run(bytes);
}

type Event = TransportEvent<Upgrade, Error>;

/// A libp2p transport over QUIC v1 (RFC 9000).
///
/// Its addresses are `/ip4|ip6/ADDRESS/udp/PORT/quic-v1`, with a `/p2p/PEER` at the end that is
/// checked during the handshake.
#[derive(Debug)]
pub struct Transport {
    env: Arc<TransportContext>,
    listeners: Vec<Listener>,
    /// Bindings for dials that no listener fits, at most one a family.
    clients: Vec<Binding>,
    notices: Notices,
    /// Dials that a traversal may answer.
    offers: Offers,
    /// Dials of offers, which take a dial of the peer's own addresses if these are found.
    locating: BTreeMap<(PeerId, u16), oneshot::Sender<Dial>>,
    /// Addresses to which this host may have sent.
    contacts: Contacts,
    /// Connections of sessions that no dial waits for.
    ready: Ready,
    /// Connections that peers opened through sessions. `None` without a driver.
    inbound: Option<mpsc::Receiver<InboundSession>>,
    /// Interface addresses, from the first socket on.
    interfaces: Option<InterfaceWatch>,
    /// Events of calls into the transport, for the next poll.
    events: VecDeque<Event>,
    /// Listener that is polled first, so that a busy listener does not starve the others.
    turn: usize,
    waker: Option<Waker>,
}

impl Transport {
    /// Creates a transport over the operating system's sockets. It must be used within a tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a rule of [`Config`] is violated, [`Error::Identity`] if the key cannot
    /// sign.
    pub fn new(keypair: &Keypair, config: Config) -> Result<Self, Error> {
        let network = OsNetwork { socket_buffer: config.quic.socket_buffer };
        Self::with_io(keypair, config, Arc::new(network), io::Runtime::tokio())
    }

    /// A transport over other sockets and another clock.
    ///
    /// # Errors
    ///
    /// As [`Transport::new`].
    pub fn with_io(
        keypair: &Keypair,
        config: Config,
        network: Arc<dyn Network>,
        runtime: io::Runtime,
    ) -> Result<Self, Error> {
        config.validate()?;
        let quic = Quic::new(keypair, &config.quic)?;
        let context = TransportContext::new(network, runtime.into_inner(), quic, None);
        Ok(Self::build(context, Notices::new(None), None, None))
    }

    /// Creates a transport that reports its sockets and connections to a driver. A dial of an
    /// offered address asks the driver for the peer.
    pub(crate) fn bridged(
        quic: Quic,
        network: Arc<dyn Network>,
        runtime: Arc<dyn Runtime>,
        notices: mpsc::Sender<Notice>,
        inbound: mpsc::Receiver<InboundSession>,
        path: Arc<PathLayer>,
        interfaces: InterfaceWatch,
    ) -> Self {
        let env = TransportContext::new(network, runtime, quic, Some(path));
        Self::build(env, Notices::new(Some(notices)), Some(inbound), Some(interfaces))
    }

    fn build(
        env: TransportContext,
        notices: Notices,
        inbound: Option<mpsc::Receiver<InboundSession>>,
        interfaces: Option<InterfaceWatch>,
    ) -> Self {
        Self {
            env: Arc::new(env),
            listeners: Vec::new(),
            clients: Vec::new(),
            notices,
            offers: Offers::default(),
            locating: BTreeMap::new(),
            contacts: Contacts::default(),
            ready: Ready::default(),
            inbound,
            interfaces,
            events: VecDeque::new(),
            turn: 0,
            waker: None,
        }
    }

    /// Returns a handle to the statistics, which outlives a move of the transport into a swarm.
    pub fn stats(&self) -> Stats {
        Stats::new(self.env.connections.clone())
    }

    /// The connections, for the driver to add those of sessions to.
    pub(crate) fn connections(&self) -> Arc<ConnectionTable> {
        self.env.connections.clone()
    }

    pub(crate) fn offers(&self) -> Offers {
        self.offers.clone()
    }

    /// Returns the addresses to which this host may have sent.
    pub(crate) fn contacts(&self) -> Contacts {
        self.contacts.clone()
    }

    pub(crate) fn ready(&self) -> Ready {
        self.ready.clone()
    }

    /// The socket address that a multiaddr of ours names, and the peer; `None` if it is none of
    /// ours.
    fn socket_of(&self, address: &Multiaddr) -> Result<Option<(SocketAddr, Option<PeerId>)>, Error> {
        let Some((zone, mut socket, peer)) = addr::to_zoned(address) else {
            return Ok(addr::to_socket(address));
        };
        socket.set_scope_id(self.env.network.zone(&zone)?);
        Ok(Some((socket.into(), peer)))
    }

    /// Offers the socket to sessions, unless it reaches no address beyond its link.
    fn announce(&mut self, binding: &Binding, accepts: bool) {
        self.watch_interfaces();
        if addr::is_zoned(binding.bound().ip()) {
            return self.wake();
        }
        if let Some(path) = &self.env.path {
            path.add_socket(binding.wire.id(), binding.wire.socket(), binding.wire.endpoint().clone());
        }
        let (socket, local) = (binding.wire.id(), binding.bound());
        self.notices.push(Notice::SocketUp { socket, local, accepts });
        self.wake();
    }

    /// Takes the socket away from new sessions. Present users keep it.
    fn retire(&mut self, socket: SocketId) {
        if let Some(path) = &self.env.path {
            path.remove_socket(socket);
        }
        self.notices.push(Notice::SocketDown { socket });
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn close_listener(&mut self, index: usize) -> ListenerId {
        let listener = self.listeners.remove(index);
        let id = listener.id;
        let binding = listener.close();
        self.retire(binding.wire.id());
        id
    }

    fn poll_listeners(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut quiet = 0;
        while quiet < self.listeners.len() {
            let index = self.turn % self.listeners.len();
            self.turn = self.turn.wrapping_add(1);
            let Some(Poll::Ready(event)) = self.listeners.get_mut(index).map(|listener| listener.poll(cx))
            else {
                quiet += 1;
                continue;
            };
            quiet = 0;
            if let Some(event) = self.on_listener_event(index, event) {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }

    fn on_listener_event(&mut self, index: usize, event: listener::Event) -> Option<Event> {
        let listener_id = self.listeners.get(index)?.id;
        match event {
            listener::Event::NewAddress(listen_addr) => {
                tracing::debug!(%listen_addr, "new listen address");
                Some(Event::NewAddress { listener_id, listen_addr })
            }
            listener::Event::AddressExpired(listen_addr) => {
                tracing::debug!(%listen_addr, "expired listen address");
                Some(Event::AddressExpired { listener_id, listen_addr })
            }
            listener::Event::Error(error) => Some(Event::ListenerError { listener_id, error: error.into() }),
            listener::Event::Replaced(replacement) => {
                self.on_listener_replaced(index, &replacement);
                None
            }
            listener::Event::Closed => {
                self.close_listener(index);
                let reason = std::io::Error::new(
                    std::io::ErrorKind::BrokenPipe,
                    "the QUIC endpoint has ended with its runtime",
                );
                Some(Event::ListenerClosed { listener_id, reason: Err(reason.into()) })
            }
            listener::Event::Incoming(incoming) => self.on_incoming(index, *incoming),
        }
    }

    fn on_incoming(&mut self, index: usize, incoming: quinn::Incoming) -> Option<Event> {
        let listener = self.listeners.get(index)?;
        let listener_id = listener.id;
        let remote = incoming.remote_address();
        let punch = match self.env.punches.take(remote, self.env.runtime.now()) {
            Arrival::Awaited(punch) => Some(punch),
            Arrival::Unexpected => None,
            Arrival::Superfluous => {
                incoming.refuse();
                return None;
            }
        };
        // The driver has asked this peer to connect.
        let admission = match &punch {
            Some(_) => Admission::Accept,
            None => listener.admission(&self.env, &incoming),
        };
        match admission {
            Admission::Accept => {}
            Admission::Retry => {
                // Refused if it cannot be retried, which `admission` has checked.
                let _ = incoming.retry();
                return None;
            }
            Admission::Refuse => {
                incoming.refuse();
                return None;
            }
        }
        let local_ip = incoming.local_ip().unwrap_or_else(|| listener.binding.local.ip());
        let local_addr = listener.address_at(local_ip);
        let expected = Expected::new(punch.as_ref().map(|punch| punch.peer));
        let client = Arc::new(Whereabouts::new(remote, self.env.connections.moves().clone()));
        let config = self.env.quic.own_server_config(punch.is_some().then_some(&expected));
        let connecting = migration::while_opening(Some(client.clone()), || match config {
            Some(config) => incoming.accept_with(config),
            None => incoming.accept(),
        });
        let connecting = match connecting {
            Ok(connecting) => connecting,
            Err(error) => return Some(Event::ListenerError { listener_id, error: error.into() }),
        };
        let place = listener.handshake_place(remote.ip());
        let through = match punch {
            Some(_) => ConnectionOrigin::PunchAsListener,
            None => ConnectionOrigin::Listener,
        };
        let beneath = Carrier::Accepted(listener.binding.wire.clone(), client);
        let finish = handshake::finish(self.env.clone(), connecting, expected, beneath, through);
        let upgrade = Upgrade::new(async move {
            let connected = finish.await;
            drop(place);
            connected
        });
        let upgrade = match punch {
            None => upgrade,
            // The dial may have been dropped in between; the connection is still an incoming
            // connection of that peer.
            Some(punch) => punch.hand_over(upgrade).err()?,
        };
        let send_back_addr = addr::from_socket(remote);
        Some(Event::Incoming { listener_id, upgrade, local_addr, send_back_addr })
    }

    fn poll_sessions(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        while let Some(inbound) = &mut self.inbound {
            match inbound.poll_recv(cx) {
                Poll::Ready(Some(session)) => {
                    if let Some(event) = self.on_session(session) {
                        return Poll::Ready(event);
                    }
                }
                Poll::Ready(None) => self.inbound = None,
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Reports a session's connection as incoming at a real listen address. Without any listener it
    /// is dropped, which closes it: the application does not listen.
    fn on_session(&self, session: InboundSession) -> Option<Event> {
        let InboundSession { mut connection, peer, socket, remote } = session;
        connection.note_source(&*self.env.network);
        connection.accepted_from(remote);
        let same_socket = self.listeners.iter().find(|listener| listener.binding.wire.id() == socket);
        let listener = same_socket.or_else(|| self.listeners.first())?;
        let source = self.env.network.source_for(remote.ip()).ok();
        Some(Event::Incoming {
            listener_id: listener.id,
            upgrade: Upgrade::new(future::ready(Ok((peer, connection)))),
            local_addr: listener.listen_address(source),
            send_back_addr: addr::from_socket(remote),
        })
    }
}

impl libp2p_core::Transport for Transport {
    type Output = (PeerId, Connection);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = BoxFuture<'static, Result<Self::Output, Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Error>> {
        let Some((socket, _)) = self.socket_of(&address)? else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let zone = addr::to_zoned(&address).map(|(zone, ..)| zone);
        let mut listener = Listener::new(&self.env, id, socket, zone)?;
        self.announce(&listener.binding, true);
        if let Some(interfaces) = &self.interfaces {
            listener.start_following(interfaces);
        }
        self.listeners.push(listener);
        // Later dials leave through the listener. A binding for dials only is no longer needed,
        // except for its connections.
        self.retire_client(socket);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let Some(index) = self.listeners.iter().position(|listener| listener.id == id) else { return false };
        let listener_id = self.close_listener(index);
        self.events.push_back(Event::ListenerClosed { listener_id, reason: Ok(()) });
        self.wake();
        true
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Error>> {
        self.start_dial(address, opts)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        let this = &mut *self;
        // Whether or not all of it went out, the channel wakes us when there is room.
        let _ = this.notices.poll_flush(cx);
        this.poll_interfaces(cx);
        this.poll_clients(cx);
        this.dial_located(cx);
        if let Some(event) = this.events.pop_front() {
            return Poll::Ready(event);
        }
        if let Poll::Ready(event) = this.poll_sessions(cx) {
            return Poll::Ready(event);
        }
        if let Poll::Ready(event) = this.poll_listeners(cx) {
            return Poll::Ready(event);
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // The path layer holds endpoints, and their sockets hold the path layer.
        if let Some(path) = &self.env.path {
            let listening = self.listeners.iter().map(|listener| &listener.binding);
            listening.chain(&self.clients).for_each(|binding| path.remove_socket(binding.wire.id()));
        }
    }
}
