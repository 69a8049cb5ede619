//! What the crate needs from the machine: UDP sockets, interface addresses and the routing table.
//!
//! Everything that touches the network goes through [`Network`], and everything that touches a
//! clock or spawns a task goes through [`quinn::Runtime`], so that a whole swarm can run over a
//! simulated network with tokio's paused time. [`OsNetwork`] is the real one.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use if_watch::IfEvent;
use quinn::{AsyncUdpSocket, Runtime};
use socket2::{Domain, Protocol, Socket, Type};

/// Interface addresses coming up and going down; the addresses that are there at the start come first.
pub type Interfaces = BoxStream<'static, io::Result<IfEvent>>;

/// A source of UDP sockets and of knowledge about the interfaces beneath them.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Binds a UDP socket. An IPv6 socket carries IPv6 only.
    ///
    /// The runtime is the one that will poll the socket.
    fn bind(&self, address: SocketAddr, runtime: &dyn Runtime) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// Watches the interface addresses.
    fn interfaces(&self) -> io::Result<Interfaces>;

    /// The local address from which the routing table would send to `destination`.
    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr>;
}

/// The operating system's network.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsNetwork {
    /// Receive and send buffer size to ask for, in bytes; the kernel may grant less.
    /// `None` leaves the system's default.
    pub socket_buffer: Option<usize>,
}

impl Network for OsNetwork {
    fn bind(&self, address: SocketAddr, runtime: &dyn Runtime) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(size) = self.socket_buffer {
            // Best effort: a smaller buffer works, it only loses more in a burst.
            let _ = socket.set_recv_buffer_size(size);
            let _ = socket.set_send_buffer_size(size);
        }
        socket.bind(&address.into())?;
        runtime.wrap_udp_socket(socket.into())
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        Ok(if_watch::tokio::IfWatcher::new()?.boxed())
    }

    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        let any: IpAddr = match destination {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Connecting a UDP socket sends nothing; it only asks the routing table. Port 9 is discard.
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((destination, 9))?;
        Ok(socket.local_addr()?.ip())
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

    #[tokio::test]
    async fn a_port_in_use_is_an_error_at_bind() {
        let network = OsNetwork::default();
        let first = network.bind(SocketAddr::from(([127, 0, 0, 1], 0)), &quinn::TokioRuntime).unwrap();
        let error = network.bind(first.local_addr().unwrap(), &quinn::TokioRuntime).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
