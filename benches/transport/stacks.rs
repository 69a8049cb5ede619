//! The transports that are compared, behind one small interface.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll},
};

use futures::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt, channel::mpsc, future::poll_fn,
};
use libp2p::{noise, quic as stock, tcp, yamux};
use libp2p_core::{
    Endpoint, Multiaddr, Transport as _,
    muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox},
    transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent},
    upgrade,
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_punch::{Config, Transport};

use crate::raw;

/// Request in the first byte of a stream: an echo of that byte.
const ECHO: u8 = 1;
/// Request to read to the end, and to answer with one byte.
const SINK: u8 = 2;
/// Bytes of one write or read of bulk data.
pub(crate) const BLOCK: usize = 64 << 10;

/// A transport with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// This crate between two Ed25519 peers: raw keys.
    Ours,
    /// This crate with the path layer beneath, as `libp2p_punch::new` makes it, and no session.
    OursBridged,
    /// This crate between two ECDSA peers: X.509.
    OursX509,
    /// This crate with the socket buffers of a stock kernel, 208 KiB.
    OursStock,
    /// libp2p-quic with its defaults.
    Libp2pQuic,
    /// The same between two ECDSA peers, whose certificates cost more to check.
    Libp2pQuicEcdsa,
    /// quinn with its defaults, and the TLS configuration of libp2p-tls.
    Quinn,
    /// quinn with our settings and ciphers.
    QuinnTuned,
    /// libp2p's TCP with noise and yamux.
    Tcp,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Libp2pQuic,
        Self::Libp2pQuicEcdsa,
        Self::Ours,
        Self::OursBridged,
        Self::OursX509,
        Self::OursStock,
        Self::Quinn,
        Self::QuinnTuned,
        Self::Tcp,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursBridged => "ours, with behaviour",
            Self::OursX509 => "ours, ECDSA (X.509)",
            Self::OursStock => "ours, 208 KiB buffers",
            Self::Libp2pQuic => "libp2p-quic",
            Self::Libp2pQuicEcdsa => "libp2p-quic, ECDSA",
            Self::Quinn => "quinn",
            Self::QuinnTuned => "quinn, our settings",
            Self::Tcp => "TCP+noise+yamux",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn libp2p(self) -> Muxers {
        let keypair = match self {
            Self::OursX509 | Self::Libp2pQuicEcdsa => Keypair::generate_ecdsa(),
            _ => Keypair::generate_ed25519(),
        };
        match self {
            Self::Libp2pQuic | Self::Libp2pQuicEcdsa => {
                stock::tokio::Transport::new(stock::Config::new(&keypair))
                    .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
                    .boxed()
            }
            Self::Tcp => tcp::tokio::Transport::new(tcp::Config::default())
                .upgrade(upgrade::Version::V1Lazy)
                .authenticate(noise::Config::new(&keypair).expect("noise takes Ed25519 keys"))
                .multiplex(yamux::Config::default())
                .boxed(),
            Self::OursBridged => {
                let (transport, behaviour) =
                    libp2p_punch::new(&keypair, Config::default()).expect("the defaults are valid");
                // The driver ends with the behaviour.
                tokio::spawn(async move {
                    let _alive = behaviour;
                    std::future::pending::<()>().await
                });
                transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed()
            }
            _ => {
                let mut config = Config::default();
                if self == Self::OursStock {
                    config.quic.socket_buffer = Some(208 << 10);
                }
                Transport::new(&keypair, config)
                    .expect("the defaults are valid")
                    .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
                    .boxed()
            }
        }
    }

    fn is_raw(self) -> bool {
        matches!(self, Self::Quinn | Self::QuinnTuned)
    }

    fn listen_address(self) -> Multiaddr {
        let address = if self == Self::Tcp { "/ip4/127.0.0.1/tcp/0" } else { "/ip4/127.0.0.1/udp/0/quic-v1" };
        address.parse().expect("an address")
    }
}

type Muxers = Boxed<(PeerId, StreamMuxerBox)>;

/// Listen address of a server: a multiaddr, or a socket address for raw quinn.
pub(crate) type Address = String;

/// Listens and serves everyone until the runtime ends.
pub(crate) async fn serve(kind: Kind) -> Address {
    if kind.is_raw() {
        let endpoint = raw::server(kind == Kind::QuinnTuned);
        let address = endpoint.local_addr().expect("bound").to_string();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    while let Ok((send, recv)) = connection.accept_bi().await {
                        tokio::spawn(answer(Stream::Quinn(send, recv)));
                    }
                });
            }
        });
        return address;
    }
    let mut transport = kind.libp2p();
    transport.listen_on(ListenerId::next(), kind.listen_address()).expect("loopback");
    let address = match transport.next().await {
        Some(TransportEvent::NewAddress { listen_addr, .. }) => listen_addr.to_string(),
        event => panic!("{event:?}"),
    };
    tokio::spawn(async move {
        while let Some(event) = transport.next().await {
            let TransportEvent::Incoming { upgrade, .. } = event else { continue };
            tokio::spawn(async move {
                let Ok((_, mut muxer)) = upgrade.await else { return };
                while let Ok(stream) = poll_fn(|cx| {
                    if let Poll::Ready(Err(error)) = muxer.poll_unpin(cx) {
                        return Poll::Ready(Err(error));
                    }
                    muxer.poll_inbound_unpin(cx)
                })
                .await
                {
                    tokio::spawn(answer(Stream::Muxer(stream)));
                }
            });
        }
    });
    address
}

/// Does what the first byte asks for. A client that goes away ends it.
async fn answer(mut stream: Stream) {
    let mut first = [0];
    if stream.read_exact(&mut first).await.is_err() {
        return;
    }
    if first[0] == SINK {
        let mut block = vec![0; BLOCK];
        while stream.read(&mut block).await.is_ok_and(|read| read > 0) {}
    }
    if stream.write_all(&first).await.is_ok() {
        let _ = stream.close().await;
    }
}

/// Connects to servers of its kind.
pub(crate) enum Dialer {
    Muxers(Kind, Mutex<Muxers>),
    Quinn(quinn::Endpoint),
}

impl Dialer {
    pub(crate) fn new(kind: Kind) -> Self {
        if kind.is_raw() {
            Self::Quinn(raw::client(kind == Kind::QuinnTuned))
        } else {
            Self::Muxers(kind, Mutex::new(kind.libp2p()))
        }
    }

    pub(crate) async fn dial(&self, address: &str) -> io::Result<Connection> {
        match self {
            Self::Quinn(endpoint) => {
                let address: SocketAddr = address.parse().map_err(io::Error::other)?;
                let connecting = endpoint.connect(address, "libp2p").map_err(io::Error::other)?;
                Ok(Connection::Quinn(connecting.await?))
            }
            Self::Muxers(kind, transport) => {
                let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
                let address = address.parse().map_err(io::Error::other)?;
                let dial = transport.lock().expect("no panic").dial(address, opts);
                let (_, muxer) = dial.map_err(io::Error::other)?.await?;
                Ok(if *kind == Kind::Tcp { Connection::driven(muxer) } else { Connection::Muxer(muxer) })
            }
        }
    }
}

/// The dialer's end.
pub(crate) enum Connection {
    Muxer(StreamMuxerBox),
    Quinn(quinn::Connection),
    /// A muxer that must be polled all the time, in a task of its own, and the streams that it
    /// opens.
    Driven(mpsc::Receiver<SubstreamBox>),
}

impl Connection {
    fn driven(mut muxer: StreamMuxerBox) -> Self {
        let (mut opened, streams) = mpsc::channel(0);
        tokio::spawn(poll_fn(move |cx| {
            if let Poll::Ready(Err(_)) = muxer.poll_unpin(cx) {
                return Poll::Ready(());
            }
            while let Poll::Ready(ready) = opened.poll_ready(cx) {
                let Poll::Ready(stream) = muxer.poll_outbound_unpin(cx) else { break };
                let (Ok(()), Ok(stream)) = (ready, stream) else { return Poll::Ready(()) };
                if opened.try_send(stream).is_err() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        }));
        Self::Driven(streams)
    }

    pub(crate) async fn open(&mut self) -> io::Result<Stream> {
        match self {
            Self::Muxer(muxer) => poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await.map(Stream::Muxer),
            Self::Quinn(connection) => {
                let (send, recv) = connection.open_bi().await?;
                Ok(Stream::Quinn(send, recv))
            }
            Self::Driven(streams) => {
                streams.next().await.map(Stream::Muxer).ok_or_else(|| io::ErrorKind::NotConnected.into())
            }
        }
    }
}

pub(crate) enum Stream {
    Muxer(SubstreamBox),
    Quinn(quinn::SendStream, quinn::RecvStream),
}

impl Stream {
    /// Sends one byte and waits for its echo.
    pub(crate) async fn echo(mut self) -> io::Result<()> {
        self.write_all(&[ECHO]).await?;
        self.close().await?;
        let mut answer = [0];
        self.read_exact(&mut answer).await?;
        // The end, so that nobody is asked to stop.
        self.read(&mut answer).await.map(|_| ())
    }

    /// Sends `bytes` bytes and waits until they were read.
    pub(crate) async fn send(mut self, bytes: usize) -> io::Result<()> {
        let block = vec![SINK; BLOCK];
        let mut left = bytes;
        while left > 0 {
            let now = left.min(BLOCK);
            self.write_all(&block[..now]).await?;
            left -= now;
        }
        self.close().await?;
        self.read_exact(&mut [0]).await
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Muxer(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Quinn(_, recv) => recv.poll_read(cx, buf).map_err(Into::into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Muxer(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Quinn(send, _) => Pin::new(send).poll_write(cx, buf).map_err(Into::into),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Muxer(stream) => Pin::new(stream).poll_flush(cx),
            Self::Quinn(..) => Poll::Ready(Ok(())),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Muxer(stream) => Pin::new(stream).poll_close(cx),
            Self::Quinn(send, _) => Poll::Ready(send.finish().map_err(io::Error::other)),
        }
    }
}
