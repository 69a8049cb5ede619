//! Twins of the tests of `libp2p-quic` 0.14: our transport with itself, and with libp2p-quic in
//! both directions.

use std::sync::{Arc, Mutex};

use futures::{StreamExt, channel::oneshot, future::BoxFuture};
use libp2p::{noise, tcp, yamux};
use libp2p_core::{muxing::SubstreamBox, upgrade};

use super::support::*;

type Make = fn(&Keypair) -> Muxers;

/// Transports of the listener and of the dialer.
const PAIRS: [(Make, Make); 3] = [(boxed, boxed), (boxed, stock), (stock, boxed)];

fn make(make: Make) -> (PeerId, Muxers) {
    let keypair = Keypair::generate_ed25519();
    (keypair.public().to_peer_id(), make(&keypair))
}

/// Polls both, as the original does: the dialer's transport has no events.
async fn both(listener: &mut Muxers, dialer: &mut Muxers, address: Multiaddr) -> Connected<StreamMuxerBox> {
    connect(listener, dialer, address, PLAIN).await
}

#[tokio::test]
async fn smoke() {
    for (listen_with, dial_with) in PAIRS {
        let ((a_id, mut a), (b_id, mut b)) = (make(listen_with), make(dial_with));
        let address = listen(&mut a, V4).await;
        let connected = both(&mut a, &mut b, address).await;
        assert_eq!((connected.at_listener.0, connected.at_dialer.0), (b_id, a_id));
    }
}

/// As rust-libp2p's file-sharing example dials: it appends the peer to an address that names it.
#[tokio::test]
async fn of_several_peers_in_an_address_the_last_one_is_dialed() {
    for (listen_with, dial_with) in PAIRS {
        let ((a_id, mut a), (b_id, mut b)) = (make(listen_with), make(dial_with));
        let address = listen(&mut a, V4).await;
        for first in [a_id, PeerId::random()] {
            let address = address.clone().with(Protocol::P2p(first)).with(Protocol::P2p(a_id));
            let connected = both(&mut a, &mut b, address).await;
            assert_eq!((connected.at_listener.0, connected.at_dialer.0), (b_id, a_id));
        }
        let address = address.with(Protocol::P2p(a_id)).with(Protocol::P2p(PeerId::random()));
        let dial = b.dial(address, PLAIN).unwrap();
        let serving = Box::pin(async { while a.next().await.is_some() {} });
        match future::select(dial, serving).await {
            Either::Left((dialed, _)) => assert!(dialed.is_err(), "another peer is there"),
            Either::Right(_) => panic!("the listener has ended"),
        }
    }
}

#[tokio::test]
async fn endpoint_reuse() {
    let hasty: Make = |keypair| muxers(with_default_time_outs(keypair));
    for (listen_with, dial_with) in [(hasty, boxed as Make), (hasty, stock), (stock, boxed)] {
        let ((_, mut a), (_, mut b)) = (make(listen_with), make(dial_with));
        let a_address = listen(&mut a, V4).await;
        let sent_back = both(&mut a, &mut b, a_address.clone()).await.send_back;
        let error = a.dial(sent_back, PLAIN).unwrap().await.unwrap_err();
        let error = error.to_string().to_lowercase();
        assert!(error.contains("handshake with the remote timed out"), "{error}");
        let b_address = listen(&mut b, V4).await;
        assert_eq!(both(&mut b, &mut a, b_address).await.send_back, a_address);
    }
}

#[tokio::test]
async fn ipv4_dial_ipv6() {
    for (listen_with, dial_with) in PAIRS {
        let ((a_id, mut a), (b_id, mut b)) = (make(listen_with), make(dial_with));
        let address = listen(&mut a, V6).await;
        let connected = both(&mut a, &mut b, address).await;
        assert_eq!((connected.at_listener.0, connected.at_dialer.0), (b_id, a_id));
    }
}

/// Dials the inner transport only after a while, as a DNS transport does.
struct DialDelay(Arc<Mutex<Muxers>>);

impl libp2p_core::Transport for DialDelay {
    type Output = (PeerId, StreamMuxerBox);
    type Error = std::io::Error;
    type ListenerUpgrade = <Muxers as libp2p_core::Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.0.lock().unwrap().listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.lock().unwrap().remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let inner = self.0.clone();
        Ok(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let dial = inner.lock().unwrap().dial(address, opts);
            dial.map_err(|error| std::io::Error::other(error.to_string()))?.await
        }
        .boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll(cx)
    }
}

#[tokio::test]
async fn wrapped_with_delay() {
    for (listen_with, dial_with) in PAIRS {
        let ((a_id, mut a), (b_id, b)) = (make(listen_with), make(dial_with));
        let mut b = DialDelay(Arc::new(Mutex::new(b))).boxed();
        let address = listen(&mut a, V6).await;
        let listener = tokio::spawn(async move {
            let (upgrade, _) = a.select_next_some().await.into_incoming().unwrap();
            upgrade.await.unwrap().0
        });
        // On another task than the transport, which has gone to sleep by the time when the inner
        // dial begins.
        let dial = tokio::spawn(b.dial(address, PLAIN).unwrap());
        tokio::spawn(async move { b.next().await });
        let (at_listener, at_dialer) = future::join(listener, dial).await;
        assert_eq!((at_listener.unwrap(), at_dialer.unwrap().unwrap().0), (b_id, a_id));
    }
}

#[tokio::test]
async fn wrong_peerid() {
    // The original is ignored: libp2p-quic does not check.
    let ((_, mut a), (_, mut b)) = (make(stock), make(boxed));
    let wrong = PeerId::from(Keypair::generate_ed25519().public());
    let address = listen(&mut a, V6).await.with(Protocol::P2p(wrong));
    let dial = b.dial(address, PLAIN).unwrap();
    tokio::spawn(async move {
        let (upgrade, _) = a.select_next_some().await.into_incoming().unwrap();
        upgrade.await.map(|_| ()).unwrap_err();
    });
    let error = dial.await.unwrap_err().to_string();
    assert!(error.contains(&format!("expected peer {wrong}")), "{error}");
}

fn with_tcp(quic: Muxers, keypair: &Keypair) -> Muxers {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default())
        .upgrade(upgrade::Version::V1)
        .authenticate(noise::Config::new(keypair).unwrap())
        .multiplex(yamux::Config::default());
    OrTransport::new(quic, tcp)
        .map(|either, _| match either {
            Either::Left(connected) => connected,
            Either::Right((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
        })
        .boxed()
}

#[tokio::test]
async fn tcp_and_quic() {
    for (listen_with, dial_with) in PAIRS {
        let [a_key, b_key] = [(); 2].map(|()| Keypair::generate_ed25519());
        let (a_id, b_id) = (a_key.public().to_peer_id(), b_key.public().to_peer_id());
        let mut a = with_tcp(listen_with(&a_key), &a_key);
        let mut b = with_tcp(dial_with(&b_key), &b_key);
        for address in [V4, "/ip4/127.0.0.1/tcp/0"] {
            let address = listen(&mut a, address).await;
            let connected = both(&mut a, &mut b, address).await;
            assert_eq!((connected.at_listener.0, connected.at_dialer.0), (b_id, a_id));
        }
    }
}

/// Returns the two ends of one stream; a task keeps the transports and the connection alive.
async fn streams((listen_with, dial_with): (Make, Make)) -> (SubstreamBox, SubstreamBox) {
    let ((_, mut a), (_, mut b)) = (make(listen_with), make(dial_with));
    let address = listen(&mut a, V4).await;
    let connected = both(&mut a, &mut b, address).await;
    let (mut dialer, mut listener) = (connected.at_dialer.1, connected.at_listener.1);
    let mut outbound = poll_fn(|cx| dialer.poll_outbound_unpin(cx)).await.unwrap();
    outbound.write_all(&[0]).await.unwrap();
    let mut inbound = poll_fn(|cx| listener.poll_inbound_unpin(cx)).await.unwrap();
    inbound.read_exact(&mut [1]).await.unwrap();
    tokio::spawn(poll_fn::<(), _>(move |cx| {
        let _ = (a.poll_next_unpin(cx), b.poll_next_unpin(cx));
        let _ = (dialer.poll_unpin(cx), listener.poll_unpin(cx));
        Poll::Pending
    }));
    (outbound, inbound)
}

#[tokio::test]
async fn backpressure() {
    for pair in PAIRS {
        let limit = stock::Config::new(&Keypair::generate_ed25519()).max_stream_data as usize;
        let (mut a, mut b) = streams(pair).await;
        a.write_all(&vec![0; limit - 1]).await.unwrap();
        assert!(a.write(&[0]).now_or_never().is_none());
        b.read_exact(&mut vec![1; limit - 1]).await.unwrap();
        assert!(b.read(&mut [0]).now_or_never().is_none());
        a.write_all(&[0]).await.unwrap();
    }
}

#[tokio::test]
async fn read_after_peer_dropped_stream() {
    for pair in PAIRS {
        let (mut a, mut b) = streams(pair).await;
        b.close().now_or_never();
        a.write_all(&[7; 10]).await.unwrap();
        a.close().await.unwrap();
        drop(a);
        b.close().await.unwrap();
        let mut received = Vec::new();
        b.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, [7; 10]);
    }
}

#[tokio::test]
async fn write_after_peer_dropped_stream() {
    for pair in PAIRS {
        let (a, mut b) = streams(pair).await;
        drop(a);
        let failed = async {
            while b.write_all(&[0; 10]).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, failed).await.unwrap();
    }
}

#[tokio::test]
async fn close_implies_flush() {
    for pair in PAIRS {
        let (mut a, mut b) = streams(pair).await;
        a.write_all(b"PING").await.unwrap();
        a.close().await.unwrap();
        let mut received = Vec::new();
        b.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"PING");
    }
}

#[tokio::test]
async fn read_after_close() {
    for pair in PAIRS {
        let (mut a, mut b) = streams(pair).await;
        a.close().await.unwrap();
        b.write_all(b"PONG").await.unwrap();
        b.close().await.unwrap();
        let mut received = Vec::new();
        a.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"PONG");
    }
}

async fn answer(mut connection: StreamMuxerBox) {
    loop {
        let stream = poll_fn(|cx| {
            let _ = connection.poll_unpin(cx)?;
            connection.poll_inbound_unpin(cx)
        });
        let Ok(mut stream) = stream.await else { return };
        tokio::spawn(async move {
            stream.write_all(b"PING").await.unwrap();
            stream.read_exact(&mut [0; 4]).await.unwrap();
            let mut data = vec![0; 40_960];
            stream.read_exact(&mut data).await.unwrap();
            stream.write_all(&data).await.unwrap();
            stream.close().await.unwrap();
        });
    }
}

async fn ask(mut stream: SubstreamBox, seed: u8, done: oneshot::Sender<()>) {
    stream.write_all(b"PONG").await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
    let data = vec![seed; 40_960];
    stream.write_all(&data).await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, data);
    done.send(()).unwrap();
}

#[tokio::test]
async fn concurrent_connections_and_streams() {
    for (listen_with, dial_with) in PAIRS {
        let (_, mut dialer) = make(dial_with);
        let (mut completed, mut alive) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            let (_, mut listener) = make(listen_with);
            let address = listen(&mut listener, V4).await;
            let connected = both(&mut listener, &mut dialer, address).await;
            tokio::spawn(answer(connected.at_listener.1));
            let mut connection = connected.at_dialer.1;
            for seed in 0..10 {
                let stream = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await.unwrap();
                let (sender, receiver) = oneshot::channel();
                tokio::spawn(ask(stream, seed, sender));
                completed.push(receiver);
            }
            alive.push((listener, connection));
        }
        let all = tokio::time::timeout(PATIENCE, future::try_join_all(completed));
        assert_eq!(all.await.unwrap().unwrap().len(), 100);
    }
}

#[expect(deprecated)]
#[tokio::test]
async fn draft_29_support() {
    // Our transport never uses it. With a peer that does, `quic-v1` is left.
    let (_, mut ours) = make(boxed);
    let error = ours.dial("/ip4/127.0.0.1/udp/1/quic".parse().unwrap(), FRESH).err().unwrap();
    assert!(matches!(error, TransportError::MultiaddrNotSupported(_)));
    let keypair = Keypair::generate_ed25519();
    let mut config = stock::Config::new(&keypair);
    config.support_draft_29 = true;
    let mut theirs = stock::tokio::Transport::new(config)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let address = listen(&mut theirs, V4).await;
    both(&mut theirs, &mut ours, address).await;
    let address = listen(&mut ours, V4).await;
    both(&mut ours, &mut theirs, address).await;
}

#[tokio::test]
async fn local_listener_reuse() {
    for (listen_with, dial_with) in PAIRS {
        let ((_, mut a), (_, mut b)) = (make(dial_with), make(listen_with));
        a.listen_on(ListenerId::next(), "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap()).unwrap();
        let loopback = loop {
            let address = next(&mut a).await.into_new_address().unwrap();
            if address.iter().next() == Some(Protocol::Ip4(Ipv4Addr::LOCALHOST)) {
                break address;
            }
        };
        while next(&mut a).now_or_never().is_some() {}
        let address = listen(&mut b, V4).await;
        assert_eq!(both(&mut b, &mut a, address).await.send_back, loopback);
    }
}

#[tokio::test]
async fn close_listener() {
    let (_, mut transport) = make(boxed);
    assert!(next(&mut transport).now_or_never().is_none());
    // Twice, since the list of listeners is empty in between.
    for _ in 0..2 {
        let id = ListenerId::next();
        transport.listen_on(id, "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap()).unwrap();
        match next(&mut transport).await {
            TransportEvent::NewAddress { listener_id, listen_addr } => {
                assert_eq!(listener_id, id);
                let parts: Vec<_> = listen_addr.iter().collect();
                assert!(matches!(parts[0], Protocol::Ip4(ip) if !ip.is_unspecified()), "{listen_addr}");
                assert!(matches!(parts[1], Protocol::Udp(port) if port != 0), "{listen_addr}");
                assert_eq!(parts[2], Protocol::QuicV1);
            }
            event => panic!("{event:?}"),
        }
        assert!(transport.remove_listener(id));
        match next(&mut transport).await {
            TransportEvent::ListenerClosed { listener_id, reason: Ok(()) } => assert_eq!(listener_id, id),
            event => panic!("{event:?}"),
        }
        assert!(next(&mut transport).now_or_never().is_none());
    }
}

#[tokio::test]
async fn dialer_drop() {
    // A port that was only dialed from is let go of when a listener can take its place.
    let (_, mut a) = new();
    let (_, mut b) = new();
    let address = listen(&mut b, V4).await;
    let before = connect(&mut b, &mut a, address.clone(), PLAIN).await.send_back;
    let listening = listen(&mut a, V4).await;
    assert_ne!(before, listening);
    assert_eq!(connect(&mut b, &mut a, address, PLAIN).await.send_back, listening);
    // The first connection is gone, so that the port is free again.
    let (_, mut c) = new();
    let port = before.iter().nth(1).unwrap();
    let free = async {
        while c
            .listen_on(
                ListenerId::next(),
                format!("/ip4/0.0.0.0{}/quic-v1", Multiaddr::from(port.clone())).parse().unwrap(),
            )
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.unwrap();
}

#[test]
fn a_restarted_peer_resets_the_connections_of_its_past_life() {
    let keypair = Keypair::generate_ed25519();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let (address_sender, address) = std::sync::mpsc::channel();
    let before = keypair.clone();
    first.spawn(async move {
        let mut transport = ours(&before);
        address_sender.send(listen(&mut transport, V4).await).unwrap();
        let mut connections = Vec::new();
        loop {
            let (upgrade, _) = next(&mut transport).await.into_incoming().unwrap();
            connections.push(upgrade.await.unwrap());
        }
    });
    let address = address.recv().unwrap();
    second.block_on(async {
        let (_, mut dialer) = new();
        let (_, mut connection) = dialer.dial(address.clone(), PLAIN).unwrap().await.unwrap();
        let mut stream = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await.unwrap();
        stream.write_all(b"before").await.unwrap();
        // The process dies without a CONNECTION_CLOSE.
        tokio::task::spawn_blocking(move || first.shutdown_timeout(PATIENCE)).await.unwrap();
        let mut again = ours(&keypair);
        let restarted = async {
            while again.listen_on(ListenerId::next(), address.clone()).is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, restarted).await.unwrap();
        drive(again);
        let reset = async {
            while stream.write_all(&[0; 1_000]).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reset).await.unwrap();
        let error = poll_fn(|cx| connection.poll_inbound_unpin(cx)).await.unwrap_err();
        assert_eq!(error.to_string(), "reset by peer");
    });
}
