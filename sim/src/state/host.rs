//! A host as the network knows it: interfaces, routes and the ports of its sockets.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Weak},
    task::Waker,
};

use futures::{StreamExt, channel::mpsc, stream};
use if_watch::IpNet;
use libp2p_punch::io::{InterfaceAddress, InterfaceEvent, Interfaces};
use rand::{Rng, rngs::StdRng};

use crate::{
    ids::RealmId,
    receive_buffer::{Datagram, ReceiveBuffer, SocketConfig, conflict},
    trace::Verdict,
};

/// Ports that a bind to port 0 may get (RFC 6335 §6).
const EPHEMERAL: RangeInclusive<u16> = 49152..=65535;

/// An address of a host in a network.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) net: IpNet,
    pub(crate) realm: RealmId,
    up: bool,
}

/// Binds that must fail.
#[derive(Debug)]
pub(crate) struct BindRefusal {
    pub(crate) kind: io::ErrorKind,
    pub(crate) count: usize,
    pub(crate) with_port_only: bool,
}

fn address_of(net: IpNet) -> InterfaceAddress {
    InterfaceAddress { ip: net.addr(), prefix_len: net.prefix_len() }
}

/// State of a host.
#[derive(Debug, Default)]
pub(crate) struct HostState {
    pub(crate) config: SocketConfig,
    interfaces: Vec<Interface>,
    sockets: BTreeMap<u16, Vec<(IpAddr, Weak<ReceiveBuffer>)>>,
    watchers: Vec<mpsc::UnboundedSender<InterfaceEvent>>,
    pub(crate) refusal: Option<BindRefusal>,
}

impl HostState {
    pub(crate) fn up(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.interfaces.iter().filter(|interface| interface.up).map(|interface| interface.net)
    }

    pub(crate) fn receive_buffers(&self) -> Vec<Arc<ReceiveBuffer>> {
        self.sockets.values().flatten().filter_map(|(_, buffer)| buffer.upgrade()).collect()
    }

    pub(crate) fn refuse(&mut self, address: SocketAddr) -> io::Result<()> {
        let applies = |refusal: &&mut BindRefusal| {
            refusal.count > 0 && (address.port() != 0 || !refusal.with_port_only)
        };
        match self.refusal.as_mut().filter(applies) {
            Some(refusal) => {
                refusal.count -= 1;
                Err(refusal.kind.into())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn open_sockets(&self) -> usize {
        self.sockets.values().flatten().filter(|(_, buffer)| buffer.strong_count() > 0).count()
    }

    pub(crate) fn interface(&self, address: IpAddr) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.net.addr() == address)
    }

    pub(crate) fn realms(&self) -> impl Iterator<Item = RealmId> + '_ {
        self.interfaces.iter().map(|interface| interface.realm)
    }

    /// Returns the network of the address `source`, while that address is up.
    pub(crate) fn realm_of(&self, source: IpAddr) -> Option<RealmId> {
        self.interface(source).filter(|interface| interface.up).map(|interface| interface.realm)
    }

    /// Returns true if a datagram to `address` stays in the host.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.up().any(|net| net.addr() == address)
    }

    pub(crate) fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        if self.is_local(destination) {
            return Some(destination);
        }
        let on_link = self.up().find(|net| net.contains(&destination));
        let same_family = || self.up().find(|net| net.addr().is_ipv4() == destination.is_ipv4());
        on_link.or_else(same_family).map(|net| net.addr())
    }

    /// Adds or changes an interface; `None` if there is nothing to change.
    pub(crate) fn set(&mut self, address: IpAddr, realm: RealmId, up: bool) -> Option<()> {
        let net = with_usual_prefix(address);
        match self.interfaces.iter_mut().find(|interface| interface.net.addr() == address) {
            Some(known) if known.up == up && known.realm == realm => return None,
            Some(known) => *known = Interface { net, realm, up },
            None => self.interfaces.push(Interface { net, realm, up }),
        }
        let event =
            if up { InterfaceEvent::Up(address_of(net)) } else { InterfaceEvent::Down(address_of(net)) };
        self.watchers.retain(|watcher| watcher.unbounded_send(event).is_ok());
        Some(())
    }

    pub(crate) fn watch(&mut self) -> Interfaces {
        let (sender, receiver) = mpsc::unbounded();
        self.watchers.push(sender);
        let present: Vec<_> = self.up().map(|net| InterfaceEvent::Up(address_of(net))).collect();
        stream::iter(present).chain(receiver).map(Ok).boxed()
    }

    pub(crate) fn bind(
        &mut self,
        address: SocketAddr,
        rng: &mut StdRng,
    ) -> io::Result<(SocketAddr, Arc<ReceiveBuffer>)> {
        let ip = address.ip();
        if !ip.is_unspecified() && !self.is_local(ip) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = match address.port() {
            0 => self.ephemeral(ip, rng),
            port => Some(port).filter(|port| self.is_free(ip, *port)),
        };
        let port = port.ok_or(io::ErrorKind::AddrInUse)?;
        let buffer = Arc::new(ReceiveBuffer::new(self.config));
        self.sockets.entry(port).or_default().push((ip, Arc::downgrade(&buffer)));
        Ok((SocketAddr::new(ip, port), buffer))
    }

    pub(crate) fn release(&mut self, local: SocketAddr, buffer: &Arc<ReceiveBuffer>) {
        if let Some(sockets) = self.sockets.get_mut(&local.port()) {
            sockets.retain(|(_, other)| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(buffer)));
            if sockets.is_empty() {
                self.sockets.remove(&local.port());
            }
        }
    }

    /// Puts a datagram into the buffer of its socket; the waker is for the reader.
    pub(crate) fn deliver(&self, datagram: Datagram) -> Result<Option<Waker>, Verdict> {
        // The address may have gone down while the datagram was under way.
        if !self.is_local(datagram.to.ip()) {
            return Err(Verdict::NoRoute);
        }
        let buffer = self.buffer(datagram.to).ok_or(Verdict::NoSocket)?;
        buffer.push(datagram)
    }

    /// Returns the socket for a datagram to `local`. Binding ensures that there is one at most.
    fn buffer(&self, local: SocketAddr) -> Option<Arc<ReceiveBuffer>> {
        let (_, buffer) =
            self.sockets.get(&local.port())?.iter().find(|(ip, _)| conflict(*ip, local.ip()))?;
        buffer.upgrade()
    }

    fn is_free(&self, ip: IpAddr, port: u16) -> bool {
        !self.sockets.get(&port).is_some_and(|sockets| sockets.iter().any(|(other, _)| conflict(ip, *other)))
    }

    fn ephemeral(&self, ip: IpAddr, rng: &mut StdRng) -> Option<u16> {
        let first = rng.random_range(EPHEMERAL);
        (first..=*EPHEMERAL.end()).chain(*EPHEMERAL.start()..first).find(|port| self.is_free(ip, *port))
    }
}

/// A network of the usual size: /24 for IPv4, /64 for IPv6.
fn with_usual_prefix(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { 24 } else { 64 };
    IpNet::new(address, length).unwrap_or_else(|_| address.into())
}
