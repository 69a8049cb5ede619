//! A listening socket: its addresses, and what comes in.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use if_watch::IfEvent;
use libp2p_core::{Multiaddr, transport::ListenerId};

use super::{
    Error, addr,
    binding::{Binding, Env},
};
use crate::io::Interfaces;

/// Handshakes under way on one listener beyond which a client must first prove its address (RFC 9000 §8.1.2).
/// A Retry costs honest clients one round trip, and a flood of forged addresses everything.
const HALF_OPEN_BEFORE_RETRY: usize = 64;
/// Handshakes under way on one listener beyond which more are refused.
const MAX_HALF_OPEN: usize = 1_024;

/// What a listener has to say.
pub(crate) enum Event {
    NewAddress(Multiaddr),
    AddressExpired(Multiaddr),
    Incoming(quinn::Incoming),
    Error(io::Error),
    /// The endpoint has ended.
    Closed,
}

/// What to do with an incoming connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Accept,
    Retry,
    Refuse,
}

pub(crate) struct Listener {
    pub(crate) id: ListenerId,
    pub(crate) binding: Binding,
    incoming: BoxStream<'static, quinn::Incoming>,
    /// `None` unless the socket is bound to a wildcard.
    interfaces: Option<Interfaces>,
    /// What was announced and has not expired.
    addresses: BTreeSet<IpAddr>,
    /// The address of a socket that has just the one, until it is announced.
    announce: Option<IpAddr>,
    /// Counts the handshakes under way: each holds a clone.
    half_open: Arc<()>,
}

impl Listener {
    pub(crate) fn new(env: &Env, id: ListenerId, address: SocketAddr) -> Result<Self, Error> {
        let binding = Binding::new(env, address, true)?;
        let wildcard = binding.local.ip().is_unspecified();
        let incoming = stream::unfold(binding.endpoint.clone(), |endpoint| async {
            let incoming = endpoint.accept().await?;
            Some((incoming, endpoint))
        });
        Ok(Self {
            id,
            interfaces: if wildcard { Some(env.network.interfaces()?) } else { None },
            announce: (!wildcard).then(|| binding.local.ip()),
            addresses: BTreeSet::new(),
            incoming: incoming.boxed(),
            half_open: Arc::new(()),
            binding,
        })
    }

    /// Whether what this socket sends to some destination carries `source` as its address.
    pub(crate) fn sends_from(&self, source: IpAddr) -> bool {
        let local = self.binding.local.ip();
        local == source || self.is_wildcard_for(source)
    }

    /// Whether the socket is bound to the wildcard of the family of `source`.
    pub(crate) fn is_wildcard_for(&self, source: IpAddr) -> bool {
        let local = self.binding.local.ip();
        local.is_unspecified() && local.is_ipv4() == source.is_ipv4()
    }

    /// The listen address at `ip`, which is one of this machine's.
    pub(crate) fn address_at(&self, ip: IpAddr) -> Multiaddr {
        addr::from_socket(SocketAddr::new(ip, self.binding.local.port()))
    }

    /// An announced listen address, `preferred` if it is one.
    pub(crate) fn listen_address(&self, preferred: Option<IpAddr>) -> Multiaddr {
        let preferred = preferred.filter(|ip| self.addresses.contains(ip));
        let ip = preferred.or_else(|| self.addresses.first().copied());
        self.address_at(ip.unwrap_or_else(|| self.binding.local.ip()))
    }

    /// Whether there is room for one more handshake.
    pub(crate) fn admission(&self, incoming: &quinn::Incoming) -> Admission {
        admission(Arc::strong_count(&self.half_open) - 1, incoming.may_retry())
    }

    /// To be held for as long as a handshake is under way.
    pub(crate) fn handshake_slot(&self) -> Arc<()> {
        self.half_open.clone()
    }

    /// Stops accepting. Established connections and handshakes under way go on.
    pub(crate) fn close(self) -> Binding {
        self.binding.endpoint.set_server_config(None);
        self.binding
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(ip) = self.announce.take() {
            self.addresses.insert(ip);
            return Poll::Ready(Event::NewAddress(self.address_at(ip)));
        }
        if let Poll::Ready(event) = self.poll_interfaces(cx) {
            return Poll::Ready(event);
        }
        self.incoming.poll_next_unpin(cx).map(|incoming| incoming.map_or(Event::Closed, Event::Incoming))
    }

    fn poll_interfaces(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        while let Some(interfaces) = &mut self.interfaces {
            match interfaces.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(IfEvent::Up(net)))) => {
                    let ip = net.addr();
                    if self.is_wildcard_for(ip) && self.addresses.insert(ip) {
                        return Poll::Ready(Event::NewAddress(self.address_at(ip)));
                    }
                }
                Poll::Ready(Some(Ok(IfEvent::Down(net)))) => {
                    let ip = net.addr();
                    if self.addresses.remove(&ip) {
                        return Poll::Ready(Event::AddressExpired(self.address_at(ip)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Event::Error(error)),
                Poll::Ready(None) => self.interfaces = None,
                Poll::Pending => break,
            }
        }
        Poll::Pending
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

fn admission(half_open: usize, may_retry: bool) -> Admission {
    match half_open {
        MAX_HALF_OPEN.. => Admission::Refuse,
        HALF_OPEN_BEFORE_RETRY.. if may_retry => Admission::Retry,
        _ => Admission::Accept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_handshakes_at_once_make_clients_prove_their_address() {
        assert_eq!(admission(0, true), Admission::Accept);
        assert_eq!(admission(HALF_OPEN_BEFORE_RETRY - 1, true), Admission::Accept);
        assert_eq!(admission(HALF_OPEN_BEFORE_RETRY, true), Admission::Retry);
        assert_eq!(admission(HALF_OPEN_BEFORE_RETRY, false), Admission::Accept);
        assert_eq!(admission(MAX_HALF_OPEN - 1, false), Admission::Accept);
        assert_eq!(admission(MAX_HALF_OPEN, true), Admission::Refuse);
    }
}
