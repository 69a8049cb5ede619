//! Hosts, on which swarms bind their sockets.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Waker,
};

use libp2p_punch::io::{Interfaces, Network, UdpSocket};
use rand::Rng;

use crate::{
    engine::Engine,
    ids::NodeId,
    receive_buffer::SocketConfig,
    socket::Socket,
    state::{BindRefusal, State},
};

/// Name of the only zone of link-local addresses.
const ZONE: &str = "eth0";

/// A simulated machine: the [`Network`] of one swarm.
///
/// It may have addresses in several networks, of both families, and they may come and go. To a
/// destination that shares a prefix (/24 or /64) with one of them it sends from that one, and
/// otherwise from the first of the family. Loopback addresses work without being announced as
/// interfaces.
pub struct Host {
    engine: Engine,
    id: NodeId,
}

impl Host {
    /// Adds a host without addresses.
    pub(crate) fn new(engine: Engine) -> Self {
        let id = engine.with(State::add_host);
        Self { engine, id }
    }

    /// Returns the name of this node in its world.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Returns the addresses that are up, in the order in which they were added.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.engine.with(|state| state.host(self.id).up().map(|net| net.addr()).collect())
    }

    /// Sets the properties of sockets that are bound from now on.
    pub fn configure(&self, sockets: SocketConfig) {
        self.engine.with(|state| state.host_mut(self.id).config = sockets);
    }

    /// Binds a UDP socket, as [`Network::bind`] does, and gives it its own type.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another socket has the port at this address or at the wildcard address,
    /// `AddrNotAvailable` if the address is none of the host's.
    pub fn socket(&self, address: SocketAddr) -> io::Result<Arc<Socket>> {
        let (local, buffer) = self.engine.with(|state| state.bind(self.id, address))?;
        Ok(Arc::new(Socket::new(self.engine.clone(), self.id, local, buffer)))
    }

    /// Sends one datagram that claims to come from `source`, as hosts can whose network lets forged
    /// sources out (RFC 2827). It leaves by the host's first address that is up.
    pub fn send_forged(&self, source: SocketAddr, to: SocketAddr, payload: &[u8]) {
        self.engine.with(|state| state.send_forged(self.id, source, to, payload));
    }

    /// Takes all open sockets away, as iOS does after a suspension. Open sockets fail, new ones
    /// work. Each keeps its port until it is dropped. Returns the number of open sockets.
    pub fn kill_sockets(&self) -> usize {
        let receive_buffers = self.engine.with(|state| state.host(self.id).receive_buffers());
        let readers: Vec<_> = receive_buffers.iter().map(|buffer| buffer.kill()).collect();
        readers.into_iter().flatten().for_each(Waker::wake);
        receive_buffers.len()
    }

    /// Makes the next `count` binds of the [`Network`] fail with this error; with `with_port_only`,
    /// binds to port 0 still succeed.
    pub fn refuse_binds(&self, kind: io::ErrorKind, count: usize, with_port_only: bool) {
        let refusal = BindRefusal { kind, count, with_port_only };
        self.engine.with(|state| state.host_mut(self.id).refusal = Some(refusal));
    }

    /// Returns the number of open sockets.
    pub fn open_sockets(&self) -> usize {
        self.engine.with(|state| state.host(self.id).open_sockets())
    }

    /// Takes an address down. It can come up again; until then sockets bound to it are cut off.
    ///
    /// # Panics
    ///
    /// If the host was never given this address.
    pub fn interface_down(&self, address: impl Into<IpAddr>) {
        self.engine.with(|state| state.set_interface(self.id, address.into(), false));
    }

    /// Brings an address up that was taken down.
    ///
    /// # Panics
    ///
    /// If the host was never given this address, or if somebody else has it now.
    pub fn interface_up(&self, address: impl Into<IpAddr>) {
        self.engine.with(|state| state.set_interface(self.id, address.into(), true));
    }

    /// Takes `old` down and gives the host `new` in the same network.
    ///
    /// # Panics
    ///
    /// If the host was never given `old`, or if somebody has `new`.
    pub fn renumber(&self, old: impl Into<IpAddr>, new: impl Into<IpAddr>) {
        let (old, new) = (old.into(), new.into());
        self.engine.with(|state| {
            state.set_interface(self.id, old, false);
            let realm = state.host(self.id).interface(old).map(|interface| interface.realm);
            if let Some(realm) = realm {
                state.attach(self.id, realm, new);
            }
        });
    }
}

impl Network for Host {
    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.engine.with(|state| state.host_mut(self.id).refuse(address))?;
        Ok(UdpSocket::new(self.socket(address)?))
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        Ok(self.engine.with(|state| state.host_mut(self.id).watch()))
    }

    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        let source = self.engine.with(|state| state.host(self.id).source_for(destination));
        source.ok_or_else(|| io::Error::from(io::ErrorKind::NetworkUnreachable))
    }

    fn seed(&self) -> [u8; 32] {
        self.engine.with(|state| state.rng.random())
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

impl From<&Host> for NodeId {
    fn from(host: &Host) -> Self {
        host.id()
    }
}

impl From<&Arc<Host>> for NodeId {
    fn from(host: &Arc<Host>) -> Self {
        host.id()
    }
}
