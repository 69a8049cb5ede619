//! The transport with a driver at the other end of its channels, and internal properties.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, future::poll_fn};
use libp2p_core::{
    Endpoint, Transport as _, multiaddr::Protocol, muxing::StreamMuxerExt, transport::PortUse,
};

use super::{path::SessionConfigs, *};
use crate::{carrier::carrier_of, config::CongestionController};

const V4: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const PLAIN: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
const FRESH: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };

/// The driver's end of the channels.
struct Driver {
    notices: mpsc::Receiver<Notice>,
    sessions: mpsc::Sender<InboundSession>,
}

impl Driver {
    fn notice(&mut self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }
}

fn bridged() -> (Transport, Driver) {
    let quic = Quic::new(&Keypair::generate_ed25519(), &Config::default().quic).unwrap();
    let keys = quic.session_keys();
    let runtime = Arc::new(quinn::TokioRuntime);
    let network = Arc::new(OsNetwork::default());
    // No session is opened in these tests, so there are no notices.
    let (path_notices, _) = tokio::sync::mpsc::channel(1);
    let path =
        PathLayer::new(network.clone(), runtime.clone(), Box::new(quic.clone()), keys, path_notices).unwrap();
    let (notices, received) = mpsc::channel(16);
    let (sessions, inbound) = mpsc::channel(1);
    let interfaces = InterfaceWatch::start(network.clone(), runtime.clone());
    let transport = Transport::bridged(quic, network, runtime, notices, inbound, path, interfaces);
    (transport, Driver { notices: received, sessions })
}

fn alone() -> Transport {
    Transport::new(&Keypair::generate_ed25519(), Config::default()).unwrap()
}

async fn next(transport: &mut Transport) -> Event {
    poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await
}

async fn listen(transport: &mut Transport) -> (ListenerId, Multiaddr) {
    let id = ListenerId::next();
    transport.listen_on(id, V4.parse().unwrap()).unwrap();
    (id, next(transport).await.into_new_address().unwrap())
}

/// A connection from `dialer` to `listener`, as each of them sees it.
async fn connect(listener: &mut Transport, dialer: &mut Transport) -> (Connection, Connection) {
    let (_, address) = listen(listener).await;
    let dial = dialer.dial(address, PLAIN).unwrap();
    let incoming = async {
        let (upgrade, _) = next(listener).await.into_incoming().unwrap();
        upgrade.await.unwrap().1
    };
    let (dialed, accepted) = future::join(dial, incoming).await;
    (dialed.unwrap().1, accepted)
}

#[tokio::test]
async fn the_driver_hears_of_every_socket_in_order() {
    let (mut transport, mut driver) = bridged();
    let _dial = transport.dial("/ip4/127.0.0.1/udp/9/quic-v1".parse().unwrap(), PLAIN).unwrap();
    let (id, _) = listen(&mut transport).await;
    transport.remove_listener(id);
    let mut told = Vec::new();
    // The channel has room for two; the rest waits in the transport.
    for _ in 0..4 {
        let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut transport).poll(cx))).await;
        told.push(match driver.notice() {
            Some(Notice::SocketUp { socket, accepts, local }) => {
                assert_ne!(local.port(), 0);
                (socket.0, true, accepts)
            }
            Some(Notice::SocketDown { socket }) => (socket.0, false, false),
            other => panic!("{other:?}"),
        });
    }
    // A client for the dial, the listener, which replaces the client, and the listener's end.
    assert_eq!(told, [(0, true, false), (1, true, true), (0, false, false), (1, false, false)]);
    assert!(driver.notice().is_none());
}

#[tokio::test]
async fn the_driver_hears_of_an_offered_dial_at_once_and_answers_it_when_it_is_polled() {
    let (mut transport, mut driver) = bridged();
    let offer = transport.offers().open(PeerId::random()).unwrap();
    let mut dial = transport.dial(offer.address(), PLAIN).unwrap();
    assert!(matches!(driver.notice(), Some(Notice::SocketUp { accepts: false, .. })));
    assert!(matches!(driver.notice(), Some(Notice::Dial(asked)) if asked.number() == offer.number()));
    assert!(driver.notice().is_none());

    assert!((&mut dial).now_or_never().is_none());
    let Some(Notice::Await { offer: asked, reply }) = driver.notice() else { panic!("no request") };
    assert_eq!((asked.peer(), asked.number()), (offer.peer(), offer.number()));
    assert!(!reply.is_canceled());
    reply.send(Err(Error::HandshakeTimedOut)).unwrap();
    assert!(matches!(dial.await, Err(Error::HandshakeTimedOut)));
}

#[tokio::test]
async fn a_driver_that_stops_fails_the_dials_of_offers() {
    let (mut transport, mut driver) = bridged();
    let mut dial = || {
        let offer = transport.offers().open(PeerId::random()).unwrap();
        transport.dial(offer.address(), PLAIN).unwrap()
    };
    let (mut asked, unasked) = (dial(), dial());
    while driver.notice().is_some() {}
    assert!((&mut asked).now_or_never().is_none());
    drop(driver);
    assert!(matches!(asked.await, Err(Error::DriverStopped)));
    assert!(matches!(unasked.await, Err(Error::DriverStopped)));
}

#[tokio::test]
async fn only_an_offer_that_is_open_is_dialed_and_only_once() {
    let (mut transport, _driver) = bridged();
    let (peer, offers) = (PeerId::random(), transport.offers());
    let (closed, taken) = (offers.open(peer).unwrap(), offers.open(peer).unwrap());
    offers.close(&closed);
    let dialed = transport.dial(taken.address(), PLAIN);
    assert!(dialed.is_ok());
    let bare = Multiaddr::empty().with(Protocol::P2p(peer));
    for address in [closed.address(), taken.address(), bare] {
        let refused = transport.dial(address, PLAIN).err().unwrap();
        assert!(matches!(refused, TransportError::MultiaddrNotSupported(_)), "{refused:?}");
    }
}

#[tokio::test]
async fn a_plain_dial_joins_the_session_of_its_peer_unless_it_asks_for_a_port_of_its_own() {
    let (mut transport, mut driver) = bridged();
    let offer = transport.offers().open(PeerId::random()).unwrap();
    let address: Multiaddr = format!("/ip4/127.0.0.1/udp/9/quic-v1/p2p/{}", offer.peer()).parse().unwrap();
    let new_port = DialOpts { port_use: PortUse::New, ..PLAIN };
    let mut alone = transport.dial(address.clone(), new_port).unwrap();
    assert!((&mut alone).now_or_never().is_none());
    assert!(driver.notice().is_none());

    let mut joins = transport.dial(address, PLAIN).unwrap();
    while driver.notice().is_some() {}
    assert!((&mut joins).now_or_never().is_none());
    let Some(Notice::Join { peer, reply }) = driver.notice() else { panic!("no request") };
    assert_eq!(peer, offer.peer());
    drop(reply);
    assert!((&mut joins).now_or_never().is_none(), "it goes on alone");
}

#[tokio::test]
async fn a_stream_tells_the_connection_that_carries_it() {
    let (mut a, (mut b, _driver)) = (alone(), bridged());
    let (_, address) = listen(&mut a).await;
    let (table, foreign) = (b.connections(), a.connections());
    // Both connect the same peers at the same remote address.
    let mut sockets = Vec::new();
    for opts in [FRESH, PLAIN, FRESH] {
        let mut dial = b.dial(address.clone(), opts).unwrap();
        let (upgrade, _) = {
            let mut event = Box::pin(next(&mut a));
            poll_fn(|cx| {
                assert!(dial.poll_unpin(cx).is_pending());
                event.poll_unpin(cx)
            })
            .await
            .into_incoming()
            .unwrap()
        };
        let (dialed, accepted) = future::join(dial, upgrade).await;
        let ((_, mut dialed), (_, accepted)) = (dialed.unwrap(), accepted.unwrap());
        let entry = dialed.live.clone();
        let stream = poll_fn(|cx| dialed.poll_outbound_unpin(cx)).await.unwrap();
        // As libp2p-swarm boxes it.
        let mut stream = libp2p_core::muxing::SubstreamBox::new(stream);
        let connection = carrier_of(&mut stream).unwrap();
        let path = table.path_of(connection).unwrap();
        assert_eq!(path.socket, entry.wire().unwrap().id());
        assert_eq!(addr::from_socket(path.remote), address);
        assert_eq!(foreign.path_of(connection), None, "it is none of theirs");
        sockets.push(path.socket);
        drop((dialed, accepted, entry, stream));
        assert_eq!(table.path_of(connection), None, "it has ended");
    }
    assert!(sockets[0] != sockets[1] && sockets[1] != sockets[2] && sockets[0] != sockets[2]);
    assert!(carrier_of(futures::io::Cursor::new(Vec::new())).is_none(), "no connection carries it");
}

#[tokio::test]
async fn a_session_from_a_peer_is_incoming_at_a_real_listen_address() {
    let ((mut transport, driver), (mut a, mut b)) = (bridged(), (alone(), alone()));
    let (_, first) = listen(&mut transport).await;
    let (id, second) = listen(&mut transport).await;
    let remote = SocketAddr::from(([192, 0, 2, 7], 4001));
    for (socket, expected) in [(1, &second), (7, &first)] {
        let (connection, _other) = connect(&mut a, &mut b).await;
        let peer = PeerId::random();
        let session =
            InboundSession { connection, peer, socket: libp2p_punch_proto::SocketId(socket), remote };
        driver.sessions.try_send(session).unwrap();
        match next(&mut transport).await {
            Event::Incoming { listener_id, upgrade, local_addr, send_back_addr } => {
                assert_eq!(listener_id == id, socket == 1);
                assert_eq!(&local_addr, expected);
                assert_eq!(send_back_addr, addr::from_socket(remote));
                assert_eq!(upgrade.await.unwrap().0, peer);
            }
            event => panic!("{event:?}"),
        }
    }
}

#[tokio::test]
async fn a_session_without_any_listener_is_closed() {
    let ((mut transport, driver), (mut a, mut b)) = (bridged(), (alone(), alone()));
    let (connection, mut other) = connect(&mut a, &mut b).await;
    let remote = SocketAddr::from(([192, 0, 2, 7], 4001));
    let session = InboundSession {
        connection,
        peer: PeerId::random(),
        socket: libp2p_punch_proto::SocketId(0),
        remote,
    };
    driver.sessions.try_send(session).unwrap();
    assert!(next(&mut transport).now_or_never().is_none());
    poll_fn(|cx| other.poll_inbound_unpin(cx)).await.unwrap_err();
}

#[tokio::test]
async fn a_stream_that_finished_cleanly_is_not_stopped() {
    let (mut a, mut b) = (alone(), alone());
    let (mut dialer, mut listener) = connect(&mut a, &mut b).await;
    let mut outbound = poll_fn(|cx| dialer.poll_outbound_unpin(cx)).await.unwrap();
    outbound.write_all(b"ping").await.unwrap();
    outbound.close().await.unwrap();
    let mut inbound = poll_fn(|cx| listener.poll_inbound_unpin(cx)).await.unwrap();
    // The end is in the same packet, but is not read.
    inbound.read_exact(&mut [0; 4]).await.unwrap();
    inbound.write_all(b"pong").await.unwrap();
    drop(inbound);
    let mut answer = Vec::new();
    outbound.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"pong");
    assert_eq!(listener.quic_stats().frame_tx.stop_sending, 0);

    // A stream whose end has not come is stopped.
    let mut outbound = poll_fn(|cx| dialer.poll_outbound_unpin(cx)).await.unwrap();
    outbound.write_all(b"ping").await.unwrap();
    drop(poll_fn(|cx| listener.poll_inbound_unpin(cx)).await.unwrap());
    while outbound.write_all(b"more").await.is_ok() {
        tokio::task::yield_now().await
    }
    assert_eq!(listener.quic_stats().frame_tx.stop_sending, 1);
}

#[tokio::test]
async fn the_congestion_controller_is_the_one_that_was_chosen() {
    use quinn::congestion::{Bbr, Cubic, NewReno};
    for chosen in [CongestionController::Cubic, CongestionController::NewReno, CongestionController::Bbr] {
        let [mut a, mut b] = [(); 2].map(|()| {
            let mut config = Config::default();
            config.quic.congestion_controller = chosen;
            Transport::new(&Keypair::generate_ed25519(), config).unwrap()
        });
        let (dialer, listener) = connect(&mut a, &mut b).await;
        for connection in [dialer, listener] {
            let controller = connection.live.connection.congestion_state().into_any();
            assert!(match chosen {
                CongestionController::Cubic => controller.is::<Cubic>(),
                CongestionController::NewReno => controller.is::<NewReno>(),
                CongestionController::Bbr => controller.is::<Bbr>(),
            });
        }
    }
}

/// An endpoint that accepts with the session configuration for `peer`, and its address.
fn session_server(keypair: &Keypair, peer: PeerId) -> (quinn::Endpoint, SocketAddr) {
    let quic = Quic::new(keypair, &Config::default().quic).unwrap();
    let config = quic.server(peer, None);
    let endpoint = quinn::Endpoint::server((*config).clone(), SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

#[tokio::test]
async fn sessions_pin_the_peer_on_both_sides() {
    let [a, b, c] = std::array::from_fn(|_| Keypair::generate_ed25519());
    let [a_id, b_id, c_id] = [&a, &b, &c].map(|keypair| keypair.public().to_peer_id());
    for (client_expects, server_expects, connects) in
        [(b_id, a_id, true), (c_id, a_id, false), (b_id, c_id, false)]
    {
        let (server, address) = session_server(&b, server_expects);
        let quic = Quic::new(&a, &Config::default().quic).unwrap();
        let client = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let config = quic.client(client_expects, Some(Duration::from_millis(5)));
        let connecting = client.connect_with(config, address, "libp2p").unwrap();
        let accepting = async { server.accept().await.unwrap().await };
        let (connected, accepted) = future::join(connecting, accepting).await;
        // The client's half may be done before the server refuses it; nothing of the application
        // was let in by then.
        assert_eq!(accepted.is_ok(), connects);
        if client_expects != b_id {
            assert!(matches!(
                Error::handshake(connected.unwrap_err(), Some(client_expects), None),
                Error::WrongPeerId { expected, got: None } if expected == c_id
            ));
        } else if connects {
            assert_eq!(tls::peer_of(&connected.unwrap()).unwrap(), (b_id, HandshakeMode::RawPublicKey));
            assert_eq!(tls::peer_of(&accepted.unwrap()).unwrap(), (a_id, HandshakeMode::RawPublicKey));
        }
    }
}
