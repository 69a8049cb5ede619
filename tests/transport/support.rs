//! Making transports, and making them meet.

pub(crate) use std::{net::Ipv4Addr, pin::Pin, task::Poll, time::Duration};

pub(crate) use futures::{
    AsyncReadExt, AsyncWriteExt, FutureExt, future,
    future::{Either, poll_fn},
};
pub(crate) use libp2p::quic as stock;
pub(crate) use libp2p_core::{
    Endpoint, Multiaddr, Transport as _,
    multiaddr::Protocol,
    muxing::{StreamMuxerBox, StreamMuxerExt},
    transport::{
        Boxed, DialOpts, ListenerId, MemoryTransport, OrTransport, PortUse, TransportError, TransportEvent,
    },
};
pub(crate) use libp2p_identity::{Keypair, PeerId};
pub(crate) use libp2p_punch::{
    config::Config,
    transport::{Connection, Error, HandshakeMode, Transport, Upgrade},
};

pub(crate) const V4: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
pub(crate) const V6: &str = "/ip6/::1/udp/0/quic-v1";

pub(crate) const PLAIN: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
pub(crate) const FRESH: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
pub(crate) const AS_LISTENER: DialOpts = DialOpts { role: Endpoint::Listener, port_use: PortUse::Reuse };

pub(crate) type Muxers = Boxed<(PeerId, StreamMuxerBox)>;

/// Time-out that only a fault reaches, on any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Creates a transport on the sockets of this machine, with time-outs that are long enough for a
/// slow machine.
pub(crate) fn ours(keypair: &Keypair) -> Transport {
    let mut config = Config::default();
    config.quic.handshake_timeout = Duration::from_secs(60);
    config.quic.max_idle_timeout = Duration::from_secs(60);
    Transport::new(keypair, config).unwrap()
}

/// Creates a transport for dials without an answer, whose time-outs are those of libp2p-quic.
pub(crate) fn with_default_time_outs(keypair: &Keypair) -> Transport {
    Transport::new(keypair, Config::default()).unwrap()
}

pub(crate) fn new() -> (PeerId, Transport) {
    let keypair = Keypair::generate_ed25519();
    (keypair.public().to_peer_id(), ours(&keypair))
}

/// One key of each kind that libp2p knows. The RSA keys were made for these tests: there is no code
/// to make one.
pub(crate) fn kinds(which: usize) -> [Keypair; 4] {
    let rsa: [&[u8]; 2] = [include_bytes!("keys/rsa-1.pk8"), include_bytes!("keys/rsa-2.pk8")];
    [
        Keypair::generate_ed25519(),
        Keypair::generate_secp256k1(),
        Keypair::generate_ecdsa(),
        Keypair::rsa_from_pkcs8(&mut rsa[which].to_vec()).unwrap(),
    ]
}

pub(crate) fn boxed(keypair: &Keypair) -> Muxers {
    muxers(ours(keypair))
}

pub(crate) fn muxers(transport: Transport) -> Muxers {
    transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed()
}

pub(crate) fn stock(keypair: &Keypair) -> Muxers {
    stock::tokio::Transport::new(stock::Config::new(keypair))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed()
}

pub(crate) async fn next<T: libp2p_core::Transport + Unpin>(
    transport: &mut T,
) -> TransportEvent<T::ListenerUpgrade, T::Error> {
    poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await
}

pub(crate) async fn listen<T: libp2p_core::Transport + Unpin>(transport: &mut T, address: &str) -> Multiaddr
where
    T::Error: std::fmt::Debug,
{
    transport.listen_on(ListenerId::next(), address.parse().unwrap()).unwrap();
    next(transport).await.into_new_address().unwrap()
}

pub(crate) struct Connected<C> {
    pub(crate) at_dialer: (PeerId, C),
    pub(crate) at_listener: (PeerId, C),
    pub(crate) local: Multiaddr,
    pub(crate) send_back: Multiaddr,
}

/// Dials `address` and drives both transports until both sides are connected.
pub(crate) async fn connect<T, C>(
    listener: &mut T,
    dialer: &mut T,
    address: Multiaddr,
    opts: DialOpts,
) -> Connected<C>
where
    T: libp2p_core::Transport<Output = (PeerId, C)> + Unpin,
    T::Error: std::fmt::Debug,
    T::Dial: Unpin,
{
    let incoming = async {
        loop {
            match next(listener).await {
                TransportEvent::Incoming { upgrade, local_addr, send_back_addr, .. } => {
                    return (upgrade.await.unwrap(), local_addr, send_back_addr);
                }
                // A wildcard listener may still be learning.
                TransportEvent::NewAddress { .. } => {}
                _ => panic!("expected an incoming connection"),
            }
        }
    };
    let mut dial = dialer.dial(address, opts).unwrap();
    let outgoing = poll_fn(|cx| {
        match Pin::new(&mut *dialer).poll(cx) {
            Poll::Pending | Poll::Ready(TransportEvent::NewAddress { .. }) => {}
            Poll::Ready(_) => panic!("the dialer must stay quiet"),
        }
        dial.poll_unpin(cx).map(Result::unwrap)
    });
    let ((at_listener, local, send_back), at_dialer) = future::join(incoming, outgoing).await;
    Connected { at_dialer, at_listener, local, send_back }
}

/// Waits for a listen address.
pub(crate) async fn address_where(
    transport: &mut Transport,
    wanted: impl Fn(&Protocol<'_>) -> bool,
) -> Multiaddr {
    loop {
        let address = next(transport).await.into_new_address().unwrap();
        if address.iter().next().is_some_and(|first| wanted(&first)) {
            return address;
        }
    }
}

pub(crate) fn drive(mut transport: Transport) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            next(&mut transport).await;
        }
    })
}

pub(crate) async fn echo(a: &mut Connection, b: &mut Connection) {
    let mut outbound = poll_fn(|cx| a.poll_outbound_unpin(cx)).await.unwrap();
    outbound.write_all(b"hello").await.unwrap();
    outbound.close().await.unwrap();
    let mut inbound = poll_fn(|cx| b.poll_inbound_unpin(cx)).await.unwrap();
    let mut received = Vec::new();
    inbound.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"hello");
}
