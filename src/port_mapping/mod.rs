//! Port mappings: asks the gateway of this network to forward a port (UPnP IGD, NAT-PMP, PCP).
//!
//! A host behind a NAT that gives every destination another port is reached by others like it over
//! a mapped port alone. [`Behaviour`] goes into the swarm next to the
//! [`Behaviour`](crate::Behaviour) of this crate:
//!
//! ```
//! # use libp2p_swarm::NetworkBehaviour;
//! #[derive(NetworkBehaviour)]
//! # #[behaviour(prelude = "libp2p_swarm::derive_prelude")]
//! struct Peer {
//!     punch: libp2p_punch::Behaviour,
//!     port_mapping: libp2p_punch::port_mapping::Behaviour,
//! }
//! ```
//!
//! The gateway is asked in all three protocols at once, for the ports on which the swarm listens
//! over IPv4 at a private address: at the start, and whenever a listen address comes or goes. The
//! first grant counts. It is renewed after half its lifetime, and deleted when the behaviour is
//! [closed](Behaviour::close) or dropped. No dial waits for that.
//!
//! The external address of a mapping is confirmed to the swarm, and so announced to peers, if it is
//! global and peers see this host at its IP address. So a gateway that lies, or that is itself
//! behind a NAT, makes no address public. Such a mapping is reported all the same.
//!
//! A swarm that listens on loopback or on global addresses only sends nothing to the gateway.

mod mapper;
mod os;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p_core::{Endpoint, Multiaddr, multiaddr::Protocol as Part, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};

use self::mapper::{Action, Mapper};
pub use self::os::OsGateways;
use crate::transport::addr;

/// Time for the deletion of all mappings.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(1);

/// A protocol in which gateways map ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// Port Control Protocol (RFC 6887).
    Pcp,
    /// NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
    /// UPnP Internet Gateway Device, versions 1 and 2.
    Upnp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];

    /// Returns the name, as in labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Use of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Announcement {
    /// The swarm knows the external address, and peers learn it.
    Confirmed,
    /// The external address is not global: another NAT is in front of the gateway.
    NotGlobal,
    /// No peer has seen this host at the external IP address, so far.
    NotObserved,
}

/// A mapping that the gateway granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Protocol of the request.
    pub protocol: Protocol,
    /// Port on which the swarm listens.
    pub port: u16,
    /// Address that the gateway forwards to that port, as the gateway says.
    pub external: SocketAddrV4,
    /// Use of the mapping.
    pub announcement: Announcement,
}

/// Event of a [`Behaviour`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The gateway granted a mapping.
    Mapped(Mapping),
    /// The use of a mapping is another now.
    Changed(Mapping),
    /// A mapping has ended.
    Unmapped(Mapping),
    /// The gateway granted no mapping of this port, in any protocol. It is asked again later.
    Refused {
        /// Port on which the swarm listens.
        port: u16,
    },
}

/// The default gateway, and the address of this host in its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Address of the gateway.
    pub address: Ipv4Addr,
    /// Address of this host.
    pub local: Ipv4Addr,
}

/// A request to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// The gateway.
    pub gateway: Gateway,
    /// Protocol of the request.
    pub protocol: Protocol,
    /// The UDP port of [`Gateway::local`] that is to be reached.
    pub port: u16,
}

/// A gateway's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The external address.
    pub external: SocketAddrV4,
    /// Time after which the mapping ends; zero if it does not.
    pub lifetime: Duration,
}

/// Failure of a request to a gateway.
#[derive(Debug, thiserror::Error)]
#[error("the gateway granted no mapping by {protocol}: {cause}")]
pub struct RequestError {
    /// Protocol of the request.
    pub protocol: Protocol,
    /// Cause, as the client of the protocol tells it.
    pub cause: String,
}

/// Access to gateways: that of the operating system, or a simulated one.
pub trait Gateways: Send + Sync + 'static {
    /// Finds the default gateway.
    fn find(&self) -> BoxFuture<'static, Option<Gateway>>;
    /// Asks for a mapping for `lifetime`, or renews it.
    fn map(&self, request: Request, lifetime: Duration) -> BoxFuture<'static, Result<Grant, RequestError>>;
    /// Deletes a mapping. An answer is not needed.
    fn unmap(&self, request: Request) -> BoxFuture<'static, ()>;
}

enum Outcome {
    Found(Option<Gateway>),
    Mapped(Request, Result<Grant, RequestError>),
    Unmapped,
}

/// Maps the ports on which the swarm listens. See the [module](self).
pub struct Behaviour {
    gateways: Arc<dyn Gateways>,
    mapper: Mapper,
    under_way: FuturesUnordered<BoxFuture<'static, Outcome>>,
    timer: Option<(Instant, Pin<Box<tokio::time::Sleep>>)>,
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour").field("mappings", &self.mappings()).finish_non_exhaustive()
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self::new()
    }
}

impl Behaviour {
    /// Asks the default gateway of the operating system, in the tokio runtime of the swarm.
    pub fn new() -> Self {
        Self::with_gateways(Arc::new(os::OsGateways::default()))
    }

    /// As [`new`](Self::new), with other gateways, such as simulated ones.
    pub fn with_gateways(gateways: Arc<dyn Gateways>) -> Self {
        Self { gateways, mapper: Mapper::default(), under_way: FuturesUnordered::new(), timer: None }
    }

    /// Returns the present mappings, one for each port at most.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.mapper.mappings()
    }

    /// Gives up all mappings. The future deletes them at the gateway, within a second; without it
    /// they last until their lifetime ends. A behaviour that is dropped spawns such a future.
    pub fn close(&mut self) -> impl Future<Output = ()> + Send + 'static {
        self.mapper.close();
        let mut deletions = FuturesUnordered::new();
        while let Some(action) = self.mapper.poll() {
            if let Action::Delete(request) = action {
                deletions.push(self.gateways.unmap(request));
            }
        }
        async move {
            let all = async { while deletions.next().await.is_some() {} };
            if tokio::time::timeout(CLOSING_TIMEOUT, all).await.is_err() {
                tracing::debug!("the gateway has not confirmed the end of all port mappings");
            }
        }
    }

    /// Carries an action out. Returns the news for the swarm.
    fn carry_out(&mut self, action: Action) -> Option<ToSwarm<Event, THandlerInEvent<Self>>> {
        match action {
            Action::FindGateway => self.under_way.push(self.gateways.find().map(Outcome::Found).boxed()),
            Action::Ask(request) => {
                let answer = self.gateways.map(request, mapper::LIFETIME);
                self.under_way.push(answer.map(move |result| Outcome::Mapped(request, result)).boxed());
            }
            Action::Delete(request) => {
                self.under_way.push(self.gateways.unmap(request).map(|()| Outcome::Unmapped).boxed());
            }
            Action::Confirm(external) => {
                return Some(ToSwarm::ExternalAddrConfirmed(addr::from_socket(external.into())));
            }
            Action::Expire(external) => {
                return Some(ToSwarm::ExternalAddrExpired(addr::from_socket(external.into())));
            }
            Action::Report(event) => return Some(ToSwarm::GenerateEvent(event)),
        }
        None
    }

    fn take(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Found(gateway) => self.mapper.gateway_found(gateway, now),
            Outcome::Mapped(request, Ok(grant)) => self.mapper.granted(request, grant, now),
            Outcome::Mapped(request, Err(error)) => {
                tracing::debug!(%error, port = request.port, "no port mapping");
                self.mapper.refused(request, now);
            }
            Outcome::Unmapped => {}
        }
    }

    /// Returns true if time has come to the next time-out of the mapper.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at) = self.mapper.next_time() else {
            self.timer = None;
            return false;
        };
        let (set, timer) = self.timer.get_or_insert_with(|| {
            (at, Box::pin(tokio::time::sleep_until(tokio::time::Instant::from_std(at))))
        });
        if *set != at {
            *set = at;
            timer.as_mut().reset(tokio::time::Instant::from_std(at));
        }
        timer.poll_unpin(cx).is_ready()
    }
}

impl Drop for Behaviour {
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.close());
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Returns the socket of a QUIC listener over IPv4.
fn listener(address: &Multiaddr) -> Option<SocketAddrV4> {
    match addr::to_socket(address)?.0 {
        SocketAddr::V4(socket) => Some(socket),
        SocketAddr::V6(_) => None,
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::NewListenAddr(event) => {
                if let Some(address) = listener(event.addr) {
                    self.mapper.listening(address, now());
                }
            }
            FromSwarm::ExpiredListenAddr(event) => {
                if let Some(address) = listener(event.addr) {
                    self.mapper.not_listening(address, now());
                }
            }
            FromSwarm::NewExternalAddrCandidate(event) => {
                if let Some(Part::Ip4(ip)) = event.addr.iter().next() {
                    self.mapper.observed(ip);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            while let Some(action) = self.mapper.poll() {
                if let Some(news) = self.carry_out(action) {
                    return Poll::Ready(news);
                }
            }
            if let Poll::Ready(Some(outcome)) = self.under_way.poll_next_unpin(cx) {
                self.take(outcome, now());
            } else if self.poll_timer(cx) {
                self.mapper.handle_timeout(now());
            } else {
                return Poll::Pending;
            }
        }
    }
}

/// Returns true if the gateway's answer came from the gateway.
fn is_from(gateway: Gateway, address: IpAddr) -> bool {
    address == IpAddr::V4(gateway.address)
}
