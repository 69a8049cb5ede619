//! Interface to the machine: UDP sockets, interface addresses and the routing table.
//!
//! All access to the network goes through [`Network`]; clocks and tasks go through [`Runtime`].
//! A whole swarm can therefore run over a simulated network with tokio's paused time. [`OsNetwork`]
//! is the real one.

mod interfaces;
mod socket;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use if_watch::{IfEvent, IpNet};
use quinn::AsyncUdpSocket;
use socket2::{Domain, Protocol, Socket, Type};

pub(crate) use self::interfaces::{Change, InterfaceWatch};

/// Address of an interface, with the length of its network prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Length of the prefix in bits.
    pub prefix_len: u8,
}

/// Change of the interface addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceEvent {
    /// An address is there.
    Up(InterfaceAddress),
    /// An address is gone.
    Down(InterfaceAddress),
}

/// Changes of the interface addresses; the addresses that are there at the start come first.
pub type Interfaces = BoxStream<'static, io::Result<InterfaceEvent>>;

/// UDP socket of a [`Network`].
#[derive(Debug, Clone)]
pub struct UdpSocket(Arc<dyn AsyncUdpSocket>);

impl UdpSocket {
    /// Takes a socket as quinn uses it.
    pub fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        Self(socket)
    }

    /// Returns the socket as quinn uses it.
    pub fn into_inner(self) -> Arc<dyn AsyncUdpSocket> {
        self.0
    }
}

/// Clock, timers and tasks.
#[derive(Debug, Clone)]
pub struct Runtime(Arc<dyn quinn::Runtime>);

impl Runtime {
    /// Takes a runtime as quinn uses it.
    pub fn new(runtime: Arc<dyn quinn::Runtime>) -> Self {
        Self(runtime)
    }

    /// Returns the tokio runtime of the caller.
    pub fn tokio() -> Self {
        Self(Arc::new(quinn::TokioRuntime))
    }

    pub(crate) fn into_inner(self) -> Arc<dyn quinn::Runtime> {
        self.0
    }
}

/// A source of UDP sockets and of knowledge about the interfaces beneath them.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Binds a UDP socket. An IPv6 socket carries IPv6 only.
    ///
    /// A socket that the system took away returns an error from `poll_recv`, or `NotConnected`,
    /// `ConnectionAborted` or `BrokenPipe` from `try_send`. The crate then binds another socket, at
    /// the same port first.
    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket>;

    /// Watches the interface addresses.
    ///
    /// The crate survives an error here, and the end of the stream or an error from it: it polls
    /// [`addresses`](Self::addresses) and starts another watcher from time to time.
    fn interfaces(&self) -> io::Result<Interfaces>;

    /// Lists the interface addresses at this moment.
    ///
    /// The list replaces events that a watcher missed. A network whose watcher misses nothing need
    /// not implement it. Without a watcher and without a list, the addresses of
    /// [`source_for`](Self::source_for) are used.
    fn addresses(&self) -> io::Result<Vec<InterfaceAddress>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this network does not list its addresses"))
    }

    /// The local address from which the routing table would send to `destination`.
    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr>;

    /// The file descriptors that this process may have open, if every socket takes one descriptor;
    /// `None` for no limit.
    ///
    /// The sockets that other peers cause take at most a quarter, those of the application
    /// included.
    fn max_descriptors(&self) -> Option<usize> {
        None
    }

    /// Returns the seed of the protocol's random choices: session ids, nonces, ports to try,
    /// jitter.
    ///
    /// A real network must leave this as it is: others must not be able to guess the seed. A
    /// simulated network derives the seed from its own, so that a run can be repeated.
    fn seed(&self) -> [u8; 32] {
        rand::random()
    }

    /// Returns the number of the zone of link-local addresses (RFC 4007 §6) with this name: an
    /// interface name.
    fn zone(&self, _name: &str) -> io::Result<u32> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this network has no zones"))
    }
}

/// Bytes of an interface's name; Linux has 15, and Windows counts its interfaces.
const MAX_ZONE: usize = 64;

/// The operating system's network.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct OsNetwork {
    /// Receive and send buffer size to ask for, in bytes; the kernel may grant less.
    /// `None` leaves the system's default.
    pub socket_buffer: Option<usize>,
}

/// Buffers of a UDP socket, in bytes as the operating system counts them: Linux reports twice the
/// payload that it holds, for its own bookkeeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketBuffers {
    /// Received bytes that are not read yet.
    pub receive: usize,
    /// Written bytes that are not sent yet.
    pub send: usize,
}

impl OsNetwork {
    /// Returns the buffer sizes that the kernel grants of [`socket_buffer`](Self::socket_buffer),
    /// measured with a separate socket.
    ///
    /// A stock Linux grants 208 KiB (`net.core.rmem_max`, `wmem_max`). Small buffers lose packets
    /// when many peers dial at once.
    ///
    /// # Errors
    ///
    /// Those of opening a socket.
    pub fn granted(&self) -> io::Result<SocketBuffers> {
        // IPv4 and IPv6 share the limits; a host may be without either.
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
            .or_else(|_| Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)))?;
        self.ask(&socket);
        buffers(&socket)
    }

    fn ask(&self, socket: &Socket) {
        if let Some(size) = self.socket_buffer {
            // Best effort: a smaller buffer works, it only loses more in a burst.
            let _ = socket.set_recv_buffer_size(size);
            let _ = socket.set_send_buffer_size(size);
        }
    }
}

fn buffers(socket: &Socket) -> io::Result<SocketBuffers> {
    Ok(SocketBuffers { receive: socket.recv_buffer_size()?, send: socket.send_buffer_size()? })
}

impl Network for OsNetwork {
    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        self.ask(&socket);
        if let Ok(SocketBuffers { receive, send }) = buffers(&socket) {
            tracing::debug!(asked = self.socket_buffer, receive, send, "socket buffers");
        }
        socket.bind(&address.into())?;
        Ok(UdpSocket(Arc::new(socket::OsSocket::new(socket.into())?)))
    }

    #[cfg(unix)]
    fn max_descriptors(&self) -> Option<usize> {
        // The soft limit; the application may raise it before it makes a node.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
        Some(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        let address = |net: IpNet| InterfaceAddress { ip: net.addr(), prefix_len: net.prefix_len() };
        let event = move |event| match event {
            IfEvent::Up(net) => InterfaceEvent::Up(address(net)),
            IfEvent::Down(net) => InterfaceEvent::Down(address(net)),
        };
        Ok(if_watch::tokio::IfWatcher::new()?.map(move |next| next.map(event)).boxed())
    }

    fn addresses(&self) -> io::Result<Vec<InterfaceAddress>> {
        let listed = if_addrs::get_if_addrs()?;
        let address = |interface: if_addrs::Interface| {
            let prefix_len = match &interface.addr {
                if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                if_addrs::IfAddr::V6(v6) => v6.prefixlen,
            };
            InterfaceAddress { ip: interface.ip(), prefix_len }
        };
        Ok(listed.into_iter().map(address).collect())
    }

    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        let any: IpAddr = match destination {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Connecting a UDP socket sends nothing; it only asks the routing table. Port 9 is discard.
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.connect((destination, 9))?;
        Ok(socket.local_addr()?.ip())
    }

    fn zone(&self, name: &str) -> io::Result<u32> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if name.is_empty() || name.len() > MAX_ZONE || !name.bytes().all(is_plain) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of an interface"));
        }
        if let Ok(number @ 1..) = name.parse() {
            return Ok(number);
        }
        // The names of interfaces are read as parts of addresses (RFC 4007 §11), and an address
        // that is spelled out is looked up nowhere.
        let mut addresses = (format!("fe80::1%{name}").as_str(), 0).to_socket_addrs()?;
        match addresses.next() {
            Some(SocketAddr::V6(address)) if address.scope_id() != 0 => Ok(address.scope_id()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such interface")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routing_table_sends_loopback_from_loopback() {
        let source = OsNetwork::default().source_for(Ipv4Addr::LOCALHOST.into());
        assert_eq!(source.ok(), Some(Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn what_the_kernel_grants_is_reported() {
        let granted = |size| OsNetwork { socket_buffer: Some(size) }.granted().unwrap();
        // Every kernel grants the least, some of them twice; none grants less for more.
        let (little, much) = (granted(8_192), granted(4 << 20));
        assert!((8_192..=65_536).contains(&little.receive), "{little:?}");
        assert!(much.receive > little.receive && much.send > little.send, "{much:?}");
    }

    #[test]
    fn zones_are_interfaces_by_number_or_name() {
        let network = OsNetwork::default();
        assert_eq!(network.zone("7").unwrap(), 7);
        #[cfg(target_os = "linux")]
        assert!(network.zone("lo").unwrap() > 0);
        for name in ["", "0", "no-such-one", "lo%lo", "lo\0", "../lo", &"a".repeat(65)] {
            network.zone(name).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_at_bind() {
        let network = OsNetwork::default();
        let first = network.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().into_inner();
        let error = network.bind(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
