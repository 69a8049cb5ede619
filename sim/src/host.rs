//! Hosts: interfaces, routes and sockets.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    task::Waker,
};

use futures::{StreamExt, channel::mpsc, stream};
use if_watch::{IfEvent, IpNet};
use libp2p_punch::io::{Interfaces, Network};
use quinn::{AsyncUdpSocket, Runtime};
use rand::{Rng, rngs::StdRng};

use crate::{
    NodeId, Socket, SocketConfig, World,
    socket::{Datagram, Inbox, conflict},
    state::RealmId,
    trace::Verdict,
};

/// Ports that a bind to port 0 may get (RFC 6335 §6).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=65535;

/// The name of the one zone of link-local addresses that there is.
const ZONE: &str = "eth0";

/// A simulated machine: the [`Network`] of one swarm.
///
/// It may have addresses in several networks, of both families, and they may come and go. To a destination that
/// shares a prefix (/24 or /64) with one of them it sends from that one, and otherwise from the first of the family.
/// Loopback addresses work without being announced as interfaces.
pub struct Host {
    world: World,
    id: NodeId,
}

impl Host {
    pub(crate) fn new(world: World, id: NodeId) -> Self {
        Self { world, id }
    }

    /// The name of this node in its world.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The addresses that are up, in the order in which they were given.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.world.with(|state| state.host(self.id).up().map(|net| net.addr()).collect())
    }

    /// Sets what sockets bound from now on are like.
    pub fn configure(&self, sockets: SocketConfig) {
        self.world.with(|state| state.host_mut(self.id).config = sockets);
    }

    /// Binds a UDP socket, as [`Network::bind`] does, and gives it its own type.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another socket has the port at this address or at the wildcard address,
    /// `AddrNotAvailable` if the address is none of the host's.
    pub fn socket(&self, address: SocketAddr) -> io::Result<Arc<Socket>> {
        let (local, inbox) = self.world.with(|state| state.bind(self.id, address))?;
        Ok(Arc::new(Socket::new(self.world.clone(), self.id, local, inbox)))
    }

    /// Sends one datagram that claims to come from `source`, as hosts can whose network lets forged sources out
    /// (RFC 2827). It leaves by the host's first address that is up.
    pub fn send_forged(&self, source: SocketAddr, to: SocketAddr, payload: &[u8]) {
        self.world.with(|state| state.send_forged(self.id, source, to, payload));
    }

    /// Takes all sockets away, as iOS does after a suspension: those that are open fail, and new ones work. Each keeps its
    /// port until it is dropped. Returns how many there were.
    pub fn kill_sockets(&self) -> usize {
        let inboxes = self.world.with(|state| state.host(self.id).inboxes());
        let readers: Vec<_> = inboxes.iter().map(|inbox| inbox.kill()).collect();
        readers.into_iter().flatten().for_each(Waker::wake);
        inboxes.len()
    }

    /// Makes the next `count` binds of the [`Network`] fail with this error; of those to a given port only, if so asked.
    pub fn refuse_binds(&self, kind: io::ErrorKind, count: usize, with_port_only: bool) {
        let refusal = Refusal { kind, count, with_port_only };
        self.world.with(|state| state.host_mut(self.id).refusal = Some(refusal));
    }

    /// The number of sockets that are open.
    pub fn open_sockets(&self) -> usize {
        self.world.with(|state| state.host(self.id).open_sockets())
    }

    /// Takes an address down. It can come up again; until then sockets bound to it are cut off.
    ///
    /// # Panics
    ///
    /// If the host was never given this address.
    pub fn interface_down(&self, address: impl Into<IpAddr>) {
        self.world.with(|state| state.set_interface(self.id, address.into(), false));
    }

    /// Brings an address up that was taken down.
    ///
    /// # Panics
    ///
    /// If the host was never given this address, or if somebody else has it now.
    pub fn interface_up(&self, address: impl Into<IpAddr>) {
        self.world.with(|state| state.set_interface(self.id, address.into(), true));
    }

    /// Takes `old` down and gives the host `new` in the same network.
    ///
    /// # Panics
    ///
    /// If the host was never given `old`, or if somebody has `new`.
    pub fn renumber(&self, old: impl Into<IpAddr>, new: impl Into<IpAddr>) {
        let (old, new) = (old.into(), new.into());
        self.world.with(|state| {
            state.set_interface(self.id, old, false);
            let realm = state.host(self.id).interface(old).map(|interface| interface.realm);
            if let Some(realm) = realm {
                state.attach(self.id, realm, new);
            }
        });
    }
}

impl Network for Host {
    fn bind(&self, address: SocketAddr, _: &dyn Runtime) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        self.world.with(|state| state.host_mut(self.id).refuse(address))?;
        Ok(self.socket(address)?)
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        Ok(self.world.with(|state| state.host_mut(self.id).watch()))
    }

    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        let source = self.world.with(|state| state.host(self.id).source_for(destination));
        source.ok_or_else(|| io::Error::from(io::ErrorKind::NetworkUnreachable))
    }

    fn zone(&self, name: &str) -> io::Result<u32> {
        // Link-local addresses are unique here: all of them are in the default zone (RFC 4007 §6).
        if name == ZONE { Ok(0) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.id.0)
    }
}

/// An address of a host in a network.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) net: IpNet,
    pub(crate) realm: RealmId,
    up: bool,
}

/// Binds that are to fail.
#[derive(Debug)]
struct Refusal {
    kind: io::ErrorKind,
    count: usize,
    with_port_only: bool,
}

/// What a world knows of a host.
#[derive(Debug, Default)]
pub(crate) struct HostState {
    config: SocketConfig,
    interfaces: Vec<Interface>,
    sockets: BTreeMap<u16, Vec<(IpAddr, Weak<Inbox>)>>,
    watchers: Vec<mpsc::UnboundedSender<IfEvent>>,
    refusal: Option<Refusal>,
}

impl HostState {
    pub(crate) fn up(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.interfaces.iter().filter(|interface| interface.up).map(|interface| interface.net)
    }

    fn inboxes(&self) -> Vec<Arc<Inbox>> {
        self.sockets.values().flatten().filter_map(|(_, inbox)| inbox.upgrade()).collect()
    }

    fn refuse(&mut self, address: SocketAddr) -> io::Result<()> {
        let applies =
            |refusal: &&mut Refusal| refusal.count > 0 && (address.port() != 0 || !refusal.with_port_only);
        match self.refusal.as_mut().filter(applies) {
            Some(refusal) => {
                refusal.count -= 1;
                Err(refusal.kind.into())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn open_sockets(&self) -> usize {
        self.sockets.values().flatten().filter(|(_, inbox)| inbox.strong_count() > 0).count()
    }

    pub(crate) fn interface(&self, address: IpAddr) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.net.addr() == address)
    }

    pub(crate) fn realms(&self) -> impl Iterator<Item = RealmId> + '_ {
        self.interfaces.iter().map(|interface| interface.realm)
    }

    /// The network that `source` is an address in, while it is up.
    pub(crate) fn realm_of(&self, source: IpAddr) -> Option<RealmId> {
        self.interface(source).filter(|interface| interface.up).map(|interface| interface.realm)
    }

    /// Whether a datagram to `address` never leaves the host.
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
        let event = if up { IfEvent::Up(net) } else { IfEvent::Down(net) };
        self.watchers.retain(|watcher| watcher.unbounded_send(event).is_ok());
        Some(())
    }

    fn watch(&mut self) -> Interfaces {
        let (sender, receiver) = mpsc::unbounded();
        self.watchers.push(sender);
        let present: Vec<_> = self.up().map(IfEvent::Up).collect();
        stream::iter(present).chain(receiver).map(Ok).boxed()
    }

    pub(crate) fn bind(
        &mut self,
        address: SocketAddr,
        rng: &mut StdRng,
    ) -> io::Result<(SocketAddr, Arc<Inbox>)> {
        let ip = address.ip();
        if !ip.is_unspecified() && !self.is_local(ip) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = match address.port() {
            0 => self.ephemeral(ip, rng),
            port => Some(port).filter(|port| self.is_free(ip, *port)),
        };
        let port = port.ok_or(io::ErrorKind::AddrInUse)?;
        let inbox = Arc::new(Inbox::new(self.config));
        self.sockets.entry(port).or_default().push((ip, Arc::downgrade(&inbox)));
        Ok((SocketAddr::new(ip, port), inbox))
    }

    pub(crate) fn release(&mut self, local: SocketAddr, inbox: &Arc<Inbox>) {
        if let Some(sockets) = self.sockets.get_mut(&local.port()) {
            sockets.retain(|(_, other)| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(inbox)));
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
        let inbox = self.inbox(datagram.to).ok_or(Verdict::NoSocket)?;
        inbox.push(datagram)
    }

    /// The socket for a datagram to `local`. There is one at most, as binding sees to it.
    fn inbox(&self, local: SocketAddr) -> Option<Arc<Inbox>> {
        let (_, inbox) = self.sockets.get(&local.port())?.iter().find(|(ip, _)| conflict(*ip, local.ip()))?;
        inbox.upgrade()
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
