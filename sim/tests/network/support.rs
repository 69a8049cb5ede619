//! The public network of the tests: two servers with two ports each, as a NAT classifier has.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use libp2p_punch_sim::{Datagram, Host, Socket, World};

pub(crate) const PORTS: [u16; 2] = [4001, 4002];

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A socket on every address of the host and family.
pub(crate) fn socket(host: &Host, port: u16) -> Arc<Socket> {
    host.socket(([0, 0, 0, 0], port).into()).unwrap()
}

/// Everything that arrives within a second.
pub(crate) async fn within_a_second(socket: &Socket) -> Vec<Datagram> {
    tokio::time::sleep(ms(1000)).await;
    std::iter::from_fn(|| socket.try_receive()).collect()
}

/// Two servers with two ports each.
pub(crate) struct Observers(pub(crate) [[(SocketAddr, Arc<Socket>); 2]; 2]);

impl Observers {
    pub(crate) fn new(world: &World) -> Self {
        Self([[203, 0, 113, 1], [203, 0, 113, 2]].map(|address| {
            let host = world.public_host(address);
            PORTS.map(|port| ((address, port).into(), socket(&host, port)))
        }))
    }

    /// Returns the source that the observer with these indices sees of `client`.
    pub(crate) async fn sees(&self, client: &Socket, address: usize, port: usize) -> SocketAddr {
        let (at, server) = &self.0[address][port];
        client.send_to(*at, b"who am I?");
        server.receive().await.from
    }
}
