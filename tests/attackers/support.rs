//! Nodes, and hosts that lie about where they are.

pub(crate) use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

pub(crate) use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
pub(crate) use libp2p_core::{
    Endpoint, Transport as _,
    muxing::StreamMuxerExt,
    transport::{DialOpts, ListenerId, PortUse, TransportEvent},
};
pub(crate) use libp2p_identity::Keypair;
pub(crate) use libp2p_punch::{
    Config, Transport,
    config::QuicConfig,
    io::Network,
    transport::{Error, Stats, Upgrade},
};
pub(crate) use libp2p_punch_sim::{Link, World};

/// A dial from a socket of its own.
pub(crate) const FRESH: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };

/// A transport whose identity follows from `seed`.
pub(crate) fn transport(network: Arc<dyn Network>, seed: u8, quic: QuicConfig) -> Transport {
    let config = Config { quic, ..Config::default() };
    Transport::with_io(&identity(seed), config, network, Arc::new(quinn::TokioRuntime)).unwrap()
}

pub(crate) fn identity(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).unwrap()
}

pub(crate) async fn next(transport: &mut Transport) -> TransportEvent<Upgrade, Error> {
    poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await
}

/// A server at these addresses that accepts every connection and keeps it.
pub(crate) fn serve(mut transport: Transport, addresses: &[&str]) -> Stats {
    for address in addresses {
        transport.listen_on(ListenerId::next(), address.parse().unwrap()).unwrap();
    }
    let stats = transport.stats();
    tokio::spawn(async move {
        let (mut upgrades, mut connections) = (FuturesUnordered::new(), Vec::new());
        loop {
            tokio::select! {
                event = next(&mut transport) => upgrades.extend(event.into_incoming().map(|(upgrade, _)| upgrade)),
                Some(upgraded) = upgrades.next() => connections.extend(upgraded.ok()),
            }
        }
    });
    stats
}
