//! A listening socket: its addresses and its incoming connections.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use libp2p_core::{Multiaddr, multiaddr::Protocol, transport::ListenerId};

use super::{
    Error, addr,
    binding::Binding,
    context::TransportContext,
    shares::{Place, Shares},
    socket::{Replacement, SocketNews},
};
use crate::{
    config::QuicConfig,
    io::{Change, InterfaceWatch},
};

/// Event of a listener.
pub(crate) enum Event {
    NewAddress(Multiaddr),
    AddressExpired(Multiaddr),
    Incoming(Box<quinn::Incoming>),
    Error(io::Error),
    /// The socket failed, and another socket has taken its place.
    Replaced(Replacement),
    /// The endpoint has ended, which it does with its runtime only.
    Closed,
}

/// Decision on an incoming connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Accept,
    Retry,
    Refuse,
}

pub(crate) struct Listener {
    pub(crate) id: ListenerId,
    pub(crate) binding: Binding,
    /// The name of the zone of its address, if that is link-local.
    zone: Option<String>,
    /// Link-local addresses of interfaces are announced.
    link_local: bool,
    incoming: BoxStream<'static, quinn::Incoming>,
    /// Addresses that were announced and have not expired.
    addresses: BTreeSet<IpAddr>,
    /// Events that are yet to be reported.
    news: VecDeque<Event>,
    /// The one address of the socket is gone.
    away: bool,
    /// The handshakes under way.
    half_open: Arc<Shares>,
}

impl Listener {
    pub(crate) fn new(
        env: &TransportContext,
        id: ListenerId,
        address: SocketAddr,
        zone: Option<String>,
    ) -> Result<Self, Error> {
        let binding = Binding::new(env, address, true)?;
        let incoming = stream::unfold(binding.wire.endpoint().clone(), |endpoint| async {
            let incoming = endpoint.accept().await?;
            Some((incoming, endpoint))
        });
        let mut listener = Self {
            id,
            news: VecDeque::new(),
            addresses: BTreeSet::new(),
            incoming: incoming.boxed(),
            away: false,
            half_open: Arc::default(),
            link_local: env.quic.config().link_local,
            zone,
            binding,
        };
        let local = listener.binding.local.ip();
        if !local.is_unspecified() {
            listener.announce(local);
        }
        Ok(listener)
    }

    /// Announces the addresses that are known already, if the socket is bound to a wildcard.
    pub(crate) fn start_following(&mut self, interfaces: &InterfaceWatch) {
        let up = interfaces.known().map(|address| (address, 0)).collect();
        self.follow(&Change { up, fault: interfaces.fault(), ..Change::default() });
    }

    /// Announces the addresses of a wildcard socket as interfaces come and go.
    pub(crate) fn follow(&mut self, change: &Change) {
        if !self.binding.local.ip().is_unspecified() {
            return;
        }
        for ip in &change.down {
            self.expire(*ip);
        }
        for (ip, _) in &change.up {
            if self.is_announced_at(*ip) {
                self.announce(*ip);
            }
        }
        if let Some(fault) = &change.fault {
            self.news.push_back(Event::Error(io::Error::new(fault.kind(), fault.clone())));
        }
    }

    fn announce(&mut self, ip: IpAddr) {
        if self.addresses.insert(ip) {
            self.news.push_back(Event::NewAddress(self.address_at(ip)));
        }
    }

    fn expire(&mut self, ip: IpAddr) {
        if self.addresses.remove(&ip) {
            self.news.push_back(Event::AddressExpired(self.address_at(ip)));
        }
    }

    /// Returns true if datagrams of this socket to some destination carry `source` as their
    /// address.
    pub(crate) fn sends_from(&self, source: IpAddr) -> bool {
        (self.binding.local.ip() == source && !self.away) || self.is_wildcard_for(source)
    }

    /// Handles the loss of the one address of the socket. Dials leave through other listeners, and
    /// its connections continue from a socket without a fixed address. Returns true if that is a
    /// change.
    pub(crate) fn leave_home(&mut self, env: &TransportContext) -> Result<bool, Error> {
        if std::mem::replace(&mut self.away, true) {
            return Ok(false);
        }
        self.expire(self.binding.local.ip());
        self.binding.leave_home(env)?;
        Ok(true)
    }

    /// Handles the return of the one address of the socket. Returns true if that is a change.
    pub(crate) fn return_home(&mut self, env: &TransportContext) -> Result<bool, Error> {
        if !std::mem::replace(&mut self.away, false) {
            return Ok(false);
        }
        self.announce(self.binding.local.ip());
        self.binding.return_home(env)?;
        Ok(true)
    }

    /// Announces the new port after a replacement of the socket, and restarts everything that
    /// depends on the socket. Returns true if the socket has another name now.
    pub(crate) fn replaced(&mut self, env: &TransportContext, replacement: &Replacement) -> io::Result<bool> {
        let announced = self.addresses.clone();
        let before = self.binding.local;
        if replacement.before == before && replacement.after != before {
            announced.iter().for_each(|ip| self.expire(*ip));
        }
        let renamed = self.binding.replaced(env, replacement);
        announced.iter().for_each(|ip| self.announce(*ip));
        renamed
    }

    /// Returns true while the one address of the socket is up, or if the socket needs none.
    pub(crate) fn is_home(&self) -> bool {
        !self.away
    }

    /// Returns true if the socket is bound to the wildcard of the family of `source`.
    pub(crate) fn is_wildcard_for(&self, source: IpAddr) -> bool {
        let local = self.binding.local.ip();
        local.is_unspecified() && local.is_ipv4() == source.is_ipv4()
    }

    /// Returns true if the socket is bound to an address on the link of the link-local `remote`.
    pub(crate) fn is_in_zone_of(&self, remote: SocketAddr) -> bool {
        match (self.binding.local, remote) {
            (SocketAddr::V6(local), SocketAddr::V6(remote)) => {
                addr::is_zoned((*local.ip()).into()) && local.scope_id() == remote.scope_id() && !self.away
            }
            _ => false,
        }
    }

    /// Returns the listen address at `ip`, an address of this machine.
    pub(crate) fn address_at(&self, ip: IpAddr) -> Multiaddr {
        let address = addr::from_socket(SocketAddr::new(ip, self.binding.local.port()));
        match &self.zone {
            Some(zone) if addr::is_zoned(ip) => {
                std::iter::once(Protocol::Ip6zone(zone.as_str().into())).chain(address.iter()).collect()
            }
            _ => address,
        }
    }

    /// Returns true if the socket, which is bound to a wildcard, announces `ip`.
    fn is_announced_at(&self, ip: IpAddr) -> bool {
        self.is_wildcard_for(ip) && (self.link_local || !addr::is_zoned(ip))
    }

    /// Returns an announced listen address; `preferred` if it is announced.
    pub(crate) fn listen_address(&self, preferred: Option<IpAddr>) -> Multiaddr {
        let preferred = preferred.filter(|ip| self.addresses.contains(ip));
        let ip = preferred.or_else(|| self.addresses.first().copied());
        self.address_at(ip.unwrap_or_else(|| self.binding.local.ip()))
    }

    /// Decides whether there is room for one more handshake.
    pub(crate) fn admission(&self, env: &TransportContext, incoming: &quinn::Incoming) -> Admission {
        let remote = incoming.remote_address().ip();
        let load = Load {
            connections: env.connections.len(),
            half_open: self.half_open.taken(),
            connections_of_prefix: env.connections.accepted_from(remote),
            half_open_of_prefix: self.half_open.taken_by(remote),
        };
        load.admits(env.quic.config(), incoming.may_retry())
    }

    /// Takes a place for a handshake with `remote`, to hold until the handshake ends.
    pub(crate) fn handshake_place(&self, remote: IpAddr) -> Place {
        self.half_open.take(remote)
    }

    /// Stops accepting. Established connections and handshakes under way go on.
    pub(crate) fn close(self) -> Binding {
        self.binding.wire.endpoint().set_server_config(None);
        self.binding
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(event) = self.news.pop_front() {
            return Poll::Ready(event);
        }
        if let Poll::Ready(news) = self.binding.poll_news(cx) {
            return Poll::Ready(match news {
                SocketNews::Failed(error) => Event::Error(error),
                SocketNews::Replaced(replacement) => Event::Replaced(replacement),
            });
        }
        self.incoming
            .poll_next_unpin(cx)
            .map(|incoming| incoming.map_or(Event::Closed, |incoming| Event::Incoming(Box::new(incoming))))
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("id", &self.id)
            .field("binding", &self.binding)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// Load of a listener when a client connects.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    /// Connections of the transport.
    connections: usize,
    /// Handshakes under way on the listener.
    half_open: usize,
    /// Accepted connections of the client's network.
    connections_of_prefix: usize,
    /// Handshakes under way of the client's network.
    half_open_of_prefix: usize,
}

impl Load {
    /// Returns the decision for a client; its address is proven unless it `may_retry`.
    fn admits(&self, config: &QuicConfig, may_retry: bool) -> Admission {
        let reached = |bound: u32, count: usize| u64::from(bound) <= count as u64;
        let limited = |bound: Option<u32>, count: usize| bound.is_some_and(|bound| reached(bound, count));
        let of_prefix = self.connections_of_prefix + self.half_open_of_prefix;
        if limited(config.max_connections, self.connections + self.half_open)
            || limited(config.max_connections_per_prefix, of_prefix)
            || reached(config.max_half_open, self.half_open)
        {
            return Admission::Refuse;
        }
        let has_share = limited(config.max_half_open_per_prefix, self.half_open_of_prefix);
        match may_retry {
            true if has_share || reached(config.retry_threshold, self.half_open) => Admission::Retry,
            false if has_share => Admission::Refuse,
            _ => Admission::Accept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_handshakes_at_once_make_clients_prove_their_address() {
        let config = QuicConfig { retry_threshold: 64, max_half_open: 1_024, ..QuicConfig::default() };
        let of = |half_open, may_retry| {
            Load { connections: 5_000, half_open, ..Load::default() }.admits(&config, may_retry)
        };
        assert_eq!(of(0, true), Admission::Accept);
        assert_eq!(of(63, true), Admission::Accept);
        assert_eq!(of(64, true), Admission::Retry);
        assert_eq!(of(64, false), Admission::Accept);
        assert_eq!(of(1_023, false), Admission::Accept);
        assert_eq!(of(1_024, true), Admission::Refuse);
    }

    #[test]
    fn a_limit_on_connections_counts_handshakes_too() {
        let config = QuicConfig { max_connections: Some(10), ..QuicConfig::default() };
        let of = |connections, half_open, may_retry| {
            Load { connections, half_open, ..Load::default() }.admits(&config, may_retry)
        };
        assert_eq!(of(7, 2, true), Admission::Accept);
        assert_eq!(of(7, 3, true), Admission::Refuse);
        assert_eq!(of(10, 0, false), Admission::Refuse);
    }

    #[test]
    fn a_threshold_of_zero_makes_every_client_prove_its_address() {
        let config = QuicConfig { retry_threshold: 0, ..QuicConfig::default() };
        assert_eq!(Load::default().admits(&config, true), Admission::Retry);
        assert_eq!(Load::default().admits(&config, false), Admission::Accept);
    }

    #[test]
    fn a_network_with_its_share_must_prove_its_address_and_is_refused_then() {
        let config = QuicConfig { max_half_open_per_prefix: Some(3), ..QuicConfig::default() };
        let of = |half_open_of_prefix, may_retry| {
            Load { half_open: 9, half_open_of_prefix, ..Load::default() }.admits(&config, may_retry)
        };
        assert_eq!(of(2, true), Admission::Accept);
        assert_eq!(of(3, true), Admission::Retry);
        assert_eq!(of(2, false), Admission::Accept);
        assert_eq!(of(3, false), Admission::Refuse);
    }

    #[test]
    fn a_network_has_a_share_of_the_connections_which_counts_its_handshakes() {
        let config = QuicConfig { max_connections_per_prefix: Some(3), ..QuicConfig::default() };
        let of = |connections_of_prefix, half_open_of_prefix| {
            let load = Load { connections: 9, half_open: 9, connections_of_prefix, half_open_of_prefix };
            load.admits(&config, false)
        };
        assert_eq!(of(1, 1), Admission::Accept);
        assert_eq!(of(2, 1), Admission::Refuse);
        assert_eq!(of(3, 0), Admission::Refuse);
    }
}
