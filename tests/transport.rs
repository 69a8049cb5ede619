//! The transport alone: what libp2p-quic promises, and where ours promises more.

use std::{net::Ipv4Addr, pin::Pin, task::Poll, time::Duration};

use futures::{
    AsyncReadExt, AsyncWriteExt, FutureExt, future,
    future::{Either, poll_fn},
};
use libp2p::quic as stock;
use libp2p_core::{
    Endpoint, Multiaddr, Transport as _,
    multiaddr::Protocol,
    muxing::{StreamMuxerBox, StreamMuxerExt},
    transport::{
        Boxed, DialOpts, ListenerId, MemoryTransport, OrTransport, PortUse, TransportError, TransportEvent,
    },
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_punch::{
    config::Config,
    transport::{Connection, Error, HandshakeMode, Transport, Upgrade},
};

const V4: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const V6: &str = "/ip6/::1/udp/0/quic-v1";

const PLAIN: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
const FRESH: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
const AS_LISTENER: DialOpts = DialOpts { role: Endpoint::Listener, port_use: PortUse::Reuse };

type Muxers = Boxed<(PeerId, StreamMuxerBox)>;

fn ours(keypair: &Keypair) -> Transport {
    let mut config = Config::default();
    config.quic.handshake_timeout = Duration::from_secs(1);
    Transport::new(keypair, config).unwrap()
}

fn new() -> (PeerId, Transport) {
    let keypair = Keypair::generate_ed25519();
    (keypair.public().to_peer_id(), ours(&keypair))
}

fn boxed(keypair: &Keypair) -> Muxers {
    ours(keypair).map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed()
}

fn stock(keypair: &Keypair) -> Muxers {
    stock::tokio::Transport::new(stock::Config::new(keypair))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed()
}

async fn next<T: libp2p_core::Transport + Unpin>(
    transport: &mut T,
) -> TransportEvent<T::ListenerUpgrade, T::Error> {
    poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await
}

async fn listen<T: libp2p_core::Transport + Unpin>(transport: &mut T, address: &str) -> Multiaddr
where
    T::Error: std::fmt::Debug,
{
    transport.listen_on(ListenerId::next(), address.parse().unwrap()).unwrap();
    next(transport).await.into_new_address().unwrap()
}

struct Connected<C> {
    at_dialer: (PeerId, C),
    at_listener: (PeerId, C),
    local: Multiaddr,
    send_back: Multiaddr,
}

/// Dials `address` and drives both transports until both sides are connected.
async fn connect<T, C>(listener: &mut T, dialer: &mut T, address: Multiaddr, opts: DialOpts) -> Connected<C>
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
async fn address_where(transport: &mut Transport, wanted: impl Fn(&Protocol<'_>) -> bool) -> Multiaddr {
    loop {
        let address = next(transport).await.into_new_address().unwrap();
        if address.iter().next().is_some_and(|first| wanted(&first)) {
            return address;
        }
    }
}

fn drive(mut transport: Transport) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            next(&mut transport).await;
        }
    })
}

/// Two ends of one stream; each connection is kept alive by a task.
async fn streams() -> (libp2p_punch::transport::Stream, libp2p_punch::transport::Stream) {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let address = listen(&mut a, V4).await;
    let Connected { at_dialer: (_, mut dialer), at_listener: (_, mut listener), .. } =
        connect(&mut a, &mut b, address, PLAIN).await;
    let mut outbound = poll_fn(|cx| dialer.poll_outbound_unpin(cx)).await.unwrap();
    outbound.write_all(&[0]).await.unwrap();
    let mut inbound = poll_fn(|cx| listener.poll_inbound_unpin(cx)).await.unwrap();
    inbound.read_exact(&mut [1]).await.unwrap();
    drive(a);
    drive(b);
    tokio::spawn(async move {
        let _alive = (dialer, listener);
        future::pending::<()>().await
    });
    (outbound, inbound)
}

async fn echo(a: &mut Connection, b: &mut Connection) {
    let mut outbound = poll_fn(|cx| a.poll_outbound_unpin(cx)).await.unwrap();
    outbound.write_all(b"hello").await.unwrap();
    outbound.close().await.unwrap();
    let mut inbound = poll_fn(|cx| b.poll_inbound_unpin(cx)).await.unwrap();
    let mut received = Vec::new();
    inbound.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"hello");
}

#[tokio::test]
async fn two_peers_connect_with_raw_keys_over_ipv4_and_ipv6() {
    for address in [V4, V6] {
        let ((a_id, mut a), (b_id, mut b)) = (new(), new());
        let address = listen(&mut a, address).await;
        let mut connected = connect(&mut a, &mut b, address.clone(), PLAIN).await;
        assert_eq!((connected.at_dialer.0, connected.at_listener.0), (a_id, b_id));
        assert_eq!(connected.local, address);
        for connection in [&connected.at_dialer.1, &connected.at_listener.1] {
            assert_eq!(connection.handshake_mode().unwrap(), HandshakeMode::RawPublicKey);
        }
        echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
    }
}

#[tokio::test]
async fn stock_peers_connect_in_both_directions_with_every_kind_of_key() {
    for keypair in [Keypair::generate_ed25519(), Keypair::generate_secp256k1(), Keypair::generate_ecdsa()] {
        let other = Keypair::generate_ed25519();
        for (mut listener, mut dialer) in [(boxed(&keypair), stock(&other)), (stock(&keypair), boxed(&other))]
        {
            let address = listen(&mut listener, V4).await.with(Protocol::P2p(keypair.public().to_peer_id()));
            let connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
            assert_eq!(connected.at_dialer.0, keypair.public().to_peer_id());
            assert_eq!(connected.at_listener.0, other.public().to_peer_id());
        }
    }
}

#[tokio::test]
async fn keys_that_are_not_ed25519_connect_with_certificates() {
    for keypair in [Keypair::generate_secp256k1(), Keypair::generate_ecdsa()] {
        let (mut a, (b_id, mut b)) = (ours(&keypair), new());
        let address = listen(&mut a, V4).await;
        let connected = connect(&mut a, &mut b, address, PLAIN).await;
        assert_eq!((connected.at_dialer.0, connected.at_listener.0), (keypair.public().to_peer_id(), b_id));
        assert_eq!(connected.at_dialer.1.handshake_mode().unwrap(), HandshakeMode::X509);
        assert_eq!(connected.at_listener.1.handshake_mode().unwrap(), HandshakeMode::X509);
    }
}

#[tokio::test]
async fn a_wrong_peer_is_refused_within_the_handshake() {
    let ((a_id, mut a), (_, mut b)) = (new(), new());
    let other = PeerId::from(Keypair::generate_ed25519().public());
    let address = listen(&mut a, V4).await.with(Protocol::P2p(other));
    let dial = b.dial(address, PLAIN).unwrap();
    let accepted = async {
        let (upgrade, _) = next(&mut a).await.into_incoming().unwrap();
        upgrade.await
    };
    let (dialed, accepted) = future::join(dial, accepted).await;
    match dialed {
        Err(Error::WrongPeerId { expected, got }) => assert_eq!((expected, got), (other, Some(a_id))),
        dialed => panic!("{dialed:?}"),
    }
    assert!(matches!(accepted, Err(Error::Connection(_))), "{accepted:?}");
}

#[tokio::test]
async fn addresses_of_others_fall_through_to_the_next_transport() {
    let keypair = Keypair::generate_ed25519();
    let mut transport = OrTransport::new(ours(&keypair), MemoryTransport::default());
    transport.listen_on(ListenerId::next(), "/memory/7741".parse().unwrap()).unwrap();
    drop(transport.dial("/memory/7741".parse().unwrap(), PLAIN).unwrap());
    let error = transport.dial("/ip4/127.0.0.1/tcp/1".parse().unwrap(), PLAIN).err().unwrap();
    assert!(matches!(error, TransportError::MultiaddrNotSupported(_)));
}

#[tokio::test]
async fn what_cannot_be_dialed_is_not_supported() {
    let (_, mut transport) = new();
    let peer = PeerId::random();
    for address in [
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "/ip4/0.0.0.0/udp/1/quic-v1",
        "/ip6/::/udp/1/quic-v1",
        "/ip4/127.0.0.1/udp/1/quic",
        &format!("/p2p/{peer}"),
    ] {
        let error = transport.dial(address.parse().unwrap(), PLAIN).err().unwrap();
        assert!(matches!(error, TransportError::MultiaddrNotSupported(_)), "{address}: {error:?}");
    }
    let draft_29 = transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/udp/0/quic".parse().unwrap());
    assert!(matches!(draft_29, Err(TransportError::MultiaddrNotSupported(_))));
}

#[tokio::test]
async fn a_client_only_endpoint_does_not_answer() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let address = listen(&mut a, V4).await;
    let Connected { send_back, .. } = connect(&mut a, &mut b, address.clone(), PLAIN).await;
    let error = a.dial(send_back, PLAIN).unwrap().await.unwrap_err();
    assert_eq!(error.to_string(), "Handshake with the remote timed out.");
    let b_address = listen(&mut b, V4).await;
    let Connected { send_back, .. } = connect(&mut b, &mut a, b_address, PLAIN).await;
    assert_eq!(send_back, address);
}

#[tokio::test]
async fn a_wildcard_listener_is_reused_and_knows_its_real_address() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    a.listen_on(ListenerId::next(), "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap()).unwrap();
    let a_address = address_where(&mut a, |first| *first == Protocol::Ip4(Ipv4Addr::LOCALHOST)).await;

    let b_address = listen(&mut b, V4).await;
    let Connected { send_back, .. } = connect(&mut b, &mut a, b_address.clone(), PLAIN).await;
    assert_eq!(send_back, a_address);

    let Connected { local, send_back, .. } = connect(&mut a, &mut b, a_address.clone(), PLAIN).await;
    assert_eq!((local, send_back), (a_address, b_address));
}

#[tokio::test]
async fn a_new_port_is_new_for_every_dial() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let a_address = listen(&mut a, V4).await;
    let b_address = listen(&mut b, V4).await;
    let first = connect(&mut b, &mut a, b_address.clone(), FRESH).await.send_back;
    let second = connect(&mut b, &mut a, b_address.clone(), FRESH).await.send_back;
    assert!(first != a_address && second != a_address && first != second, "{a_address} {first} {second}");
    // Without a listener that fits, dials share one port.
    let (_, mut c) = new();
    let first = connect(&mut b, &mut c, b_address.clone(), PLAIN).await;
    let second = connect(&mut b, &mut c, b_address.clone(), PLAIN).await;
    assert_eq!(first.send_back, second.send_back);
    assert_ne!(first.send_back, connect(&mut b, &mut c, b_address, FRESH).await.send_back);
}

#[tokio::test]
async fn ipv4_and_ipv6_listen_separately_on_one_port() {
    let (_, mut transport) = new();
    transport.listen_on(ListenerId::next(), "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap()).unwrap();
    let v4 = address_where(&mut transport, |_| true).await;
    assert!(matches!(v4.iter().next(), Some(Protocol::Ip4(_))), "{v4}");
    let port = v4.iter().nth(1).unwrap();
    transport.listen_on(ListenerId::next(), format!("/ip6/::{port}/quic-v1").parse().unwrap()).unwrap();
    let v6 = address_where(&mut transport, |first| matches!(first, Protocol::Ip6(_))).await;
    assert_eq!(v6.iter().nth(1), Some(port));
}

#[tokio::test]
async fn connections_outlive_their_listener() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let id = ListenerId::next();
    a.listen_on(id, V4.parse().unwrap()).unwrap();
    let address = next(&mut a).await.into_new_address().unwrap();
    let mut connected = connect(&mut a, &mut b, address.clone(), PLAIN).await;

    assert!(a.remove_listener(id));
    assert!(!a.remove_listener(id));
    match next(&mut a).await {
        TransportEvent::ListenerClosed { listener_id, reason: Ok(()) } => assert_eq!(listener_id, id),
        event => panic!("{event:?}"),
    }
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
    echo(&mut connected.at_listener.1, &mut connected.at_dialer.1).await;
    // Nobody else gets in.
    b.dial(address, PLAIN).unwrap().await.unwrap_err();
    assert!(next(&mut a).now_or_never().is_none());
}

#[tokio::test]
async fn a_dial_does_nothing_until_it_is_polled() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let address = listen(&mut a, V4).await;
    let dial = b.dial(address, PLAIN).unwrap();
    tokio::time::timeout(Duration::from_millis(200), next(&mut a)).await.err().unwrap();
    let (_, event) = future::join(dial, async {
        let (upgrade, _) = next(&mut a).await.into_incoming().unwrap();
        upgrade.await.unwrap()
    })
    .await;
    drop(event);
}

#[tokio::test]
async fn a_punch_as_the_listener_ends_in_one_connection() {
    let ((a_id, mut a), (b_id, mut b)) = (new(), new());
    let a_address = listen(&mut a, V4).await.with(Protocol::P2p(a_id));
    let b_address = listen(&mut b, V4).await.with(Protocol::P2p(b_id));
    let punch = a.dial(b_address.clone(), AS_LISTENER).unwrap();
    assert!(matches!(
        a.dial(b_address, AS_LISTENER),
        Err(TransportError::Other(Error::HolePunchInProgress(_)))
    ));
    let dial = b.dial(a_address, PLAIN).unwrap();
    let (a_events, b_events) = (next(&mut a), next(&mut b));
    let both = Box::pin(future::try_join(punch, dial));
    let events = Box::pin(future::select(Box::pin(a_events), Box::pin(b_events)));
    let ((at_a, mut a_end), (at_b, mut b_end)) = match future::select(both, events).await {
        Either::Left((connected, _)) => connected.unwrap(),
        Either::Right(_) => panic!("the punch must take the connection"),
    };
    assert_eq!((at_a, at_b), (b_id, a_id));
    echo(&mut a_end, &mut b_end).await;
    echo(&mut b_end, &mut a_end).await;
}

#[tokio::test]
async fn a_punch_refuses_another_peer_from_the_same_address() {
    let ((a_id, mut a), (b_id, mut b)) = (new(), new());
    let a_address = listen(&mut a, V4).await.with(Protocol::P2p(a_id));
    let other = PeerId::random();
    let b_address = listen(&mut b, V4).await.with(Protocol::P2p(other));
    let punch = a.dial(b_address, AS_LISTENER).unwrap();
    let dial = b.dial(a_address, PLAIN).unwrap();
    drive(a);
    drive(b);
    let (punched, _) = future::join(punch, dial).await;
    match punched {
        Err(Error::WrongPeerId { expected, got }) => assert_eq!((expected, got), (other, Some(b_id))),
        punched => panic!("{punched:?}"),
    }
}

#[tokio::test]
async fn a_punch_that_nobody_answers_ends_and_can_be_tried_again() {
    let (_, mut a) = new();
    let nobody: Multiaddr = format!("/ip4/127.0.0.1/udp/9/quic-v1/p2p/{}", PeerId::random()).parse().unwrap();
    let without_listener = a.dial(nobody.clone(), AS_LISTENER);
    assert!(matches!(without_listener, Err(TransportError::Other(Error::NoActiveListenerForDialAsListener))));
    listen(&mut a, V4).await;
    for _ in 0..2 {
        let error = a.dial(nobody.clone(), AS_LISTENER).unwrap().await.unwrap_err();
        assert!(matches!(error, Error::HandshakeTimedOut), "{error:?}");
    }
}

#[tokio::test]
async fn a_flood_of_handshakes_is_answered_with_retry_and_still_gets_through() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let address = listen(&mut a, V4).await;
    let dials = future::join_all((0..80).map(|_| b.dial(address.clone(), PLAIN).unwrap()));
    let listener = async {
        // Upgrades that nobody polls count as handshakes under way.
        let mut upgrades: Vec<Upgrade> = Vec::new();
        while upgrades.len() < 80 {
            upgrades.push(next(&mut a).await.into_incoming().unwrap().0);
        }
        upgrades
    };
    let (dialed, upgrades) = future::join(dials, listener).await;
    assert_eq!(dialed.iter().filter(|dialed| dialed.is_ok()).count(), 80);
    assert_eq!(upgrades.len(), 80);
}

#[tokio::test]
async fn a_writer_blocks_at_exactly_max_stream_data() {
    let limit = Config::default().quic.max_stream_data as usize;
    let (mut a, mut b) = streams().await;
    // `streams` has sent one byte, whose credit comes back only with much more.
    a.write_all(&vec![0; limit - 1]).await.unwrap();
    assert!(a.write(&[0]).now_or_never().is_none());
    b.read_exact(&mut vec![1; limit - 1]).await.unwrap();
    assert!(b.read(&mut [0]).now_or_never().is_none());
    a.write_all(&[0]).await.unwrap();
}

#[tokio::test]
async fn closing_flushes() {
    let (mut a, mut b) = streams().await;
    a.write_all(b"PING").await.unwrap();
    a.close().await.unwrap();
    let mut received = Vec::new();
    b.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"PING");
}

#[tokio::test]
async fn a_closed_stream_can_still_be_read_and_closed_again() {
    let (mut a, mut b) = streams().await;
    a.close().await.unwrap();
    b.write_all(b"PONG").await.unwrap();
    b.close().await.unwrap();
    let mut received = Vec::new();
    a.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"PONG");
    a.close().await.unwrap();
    a.write_all(b"late").await.unwrap_err();
}

#[tokio::test]
async fn what_a_dropped_stream_has_written_arrives() {
    let (mut a, mut b) = streams().await;
    b.close().now_or_never();
    a.write_all(&[0; 10]).await.unwrap();
    a.close().await.unwrap();
    drop(a);
    b.close().await.unwrap();
    let mut received = Vec::new();
    b.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, [0; 10]);
}

#[tokio::test]
async fn writing_to_a_dropped_stream_fails() {
    let (a, mut b) = streams().await;
    drop(a);
    let write = async {
        while b.write_all(&[0; 10]).await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), write).await.unwrap();
}

#[tokio::test]
async fn many_connections_and_streams_run_at_once() {
    let (_, mut dialer) = new();
    let (mut echoes, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (_, mut listener) = new();
        let address = listen(&mut listener, V4).await;
        let connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
        drive(listener);
        let (mut at_dialer, mut at_listener) = (connected.at_dialer.1, connected.at_listener.1);
        tokio::spawn(async move {
            while let Ok(stream) = poll_fn(|cx| at_listener.poll_inbound_unpin(cx)).await {
                let (mut read, mut write) = stream.split();
                tokio::spawn(async move {
                    futures::io::copy(&mut read, &mut write).await.unwrap();
                    write.close().await.unwrap();
                });
            }
        });
        for seed in 0..8u8 {
            let mut stream = poll_fn(|cx| at_dialer.poll_outbound_unpin(cx)).await.unwrap();
            echoes.push(async move {
                let data = vec![seed; 40_960];
                stream.write_all(&data).await.unwrap();
                stream.close().await.unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).await.unwrap();
                assert_eq!(received, data);
            });
        }
        connections.push(at_dialer);
    }
    tokio::time::timeout(Duration::from_secs(30), future::join_all(echoes)).await.unwrap();
}
