//! The daemon as a child process, and its control socket.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use interop_testplan::{key::KeyType, polled::Polled};
use libp2p::{Multiaddr, PeerId, StreamProtocol, multiaddr::Protocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    process::{Child, Command},
    time::Instant,
};

use crate::message::{self, Response};

/// Time for the daemon to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to connect, or to open a stream, in seconds.
const TIMEOUT: u64 = 15;
/// No message of the control socket is longer.
const MAX_MESSAGE: usize = 1 << 20;

/// A running daemon. It ends when this is dropped.
pub(crate) struct Daemon {
    control: Control,
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    directory: PathBuf,
    /// Killed when dropped.
    _child: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // What is left behind is a socket in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Daemon {
    /// Starts the daemon, with an identity of the given type.
    pub(crate) async fn start(
        program: &Path,
        key: KeyType,
        listen: Option<&Multiaddr>,
    ) -> anyhow::Result<Self> {
        let keypair = key.keypair()?;
        let directory = env::temp_dir().join(format!("interop-go-{}", std::process::id()));
        // Left behind by a process of the same number, in another namespace or before.
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let identity = directory.join("key");
        fs::write(&identity, key.protobuf(&keypair)?)?;
        let control = Control { socket: directory.join("control") };
        let mut command = Command::new(program);
        command
            .arg("-listen")
            .arg(format!("/unix{}", control.socket.display()))
            .arg("-id")
            .arg(&identity)
            .args(["-q", "-relay=false", "-persistentConnMaxMsgSize=4194304"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        match listen {
            Some(address) => command.arg("-hostAddrs").arg(address.to_string()),
            None => command.arg("-noListenAddrs"),
        };
        let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let (peer, addresses) = control.wait_for_identity().await?;
        ensure!(peer == keypair.public().to_peer_id(), "the daemon took another identity");
        Ok(Self { control, peer, addresses, directory, _child: child })
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    /// Listen address.
    pub(crate) fn addresses(&self) -> &[Multiaddr] {
        &self.addresses
    }

    pub(crate) fn control(&self) -> Control {
        self.control.clone()
    }

    /// Connects to an address that ends in `/p2p/PEER_ID`.
    pub(crate) async fn connect(&self, address: &Multiaddr) -> anyhow::Result<PeerId> {
        let mut address = address.clone();
        let Some(Protocol::P2p(peer)) = address.pop() else {
            bail!("{address} does not end in /p2p/PEER_ID")
        };
        self.control.call(&message::connect(peer, &address, TIMEOUT)).await?;
        Ok(peer)
    }

    pub(crate) async fn open(&self, peer: PeerId, protocol: &StreamProtocol) -> anyhow::Result<UnixStream> {
        let (_, socket) = self.control.start(&message::open(peer, protocol, TIMEOUT)).await?;
        Ok(socket)
    }

    /// Has the daemon hand over the streams of these protocols.
    pub(crate) async fn handle_streams(&self, protocols: &[StreamProtocol]) -> anyhow::Result<UnixListener> {
        let path = self.directory.join("streams");
        let listener = UnixListener::bind(&path)?;
        self.control.call(&message::handle(&unix(&path)?, protocols)).await?;
        Ok(listener)
    }
}

impl Polled for Daemon {
    async fn peers(&self) -> anyhow::Result<Vec<PeerId>> {
        Ok(self.control.call(&message::list_peers()).await?.peers)
    }
}

/// In text, `/unix` is followed by an absolute path; in bytes, go-libp2p keeps the slash that the
/// path begins with.
fn unix(path: &Path) -> anyhow::Result<Multiaddr> {
    let path = path.to_str().context("a path that is not text")?;
    Ok(Multiaddr::empty().with(Protocol::Unix(path.to_owned().into())))
}

/// The way to the daemon's control socket. Every request has a connection of its own.
#[derive(Clone)]
pub(crate) struct Control {
    socket: PathBuf,
}

impl Control {
    async fn wait_for_identity(&self) -> anyhow::Result<(PeerId, Vec<Multiaddr>)> {
        let end = Instant::now() + START_TIMEOUT;
        loop {
            match self.call(&message::identify()).await {
                Ok(response) => return response.identity.context("an answer without identity"),
                Err(error) if Instant::now() > end => return Err(error.context("the daemon did not start")),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub(crate) async fn disconnect(&self, peer: PeerId) -> anyhow::Result<()> {
        self.call(&message::disconnect(peer)).await.map(drop)
    }

    async fn call(&self, request: &[u8]) -> anyhow::Result<Response> {
        Ok(self.start(request).await?.0)
    }

    /// Sends a request; what follows the response on the same socket is the caller's.
    async fn start(&self, request: &[u8]) -> anyhow::Result<(Response, UnixStream)> {
        let mut socket = UnixStream::connect(&self.socket).await?;
        let mut buffer = unsigned_varint::encode::usize_buffer();
        socket.write_all(unsigned_varint::encode::usize(request.len(), &mut buffer)).await?;
        socket.write_all(request).await?;
        let response = Response::decode(&read_message(&mut socket).await?)?;
        Ok((response, socket))
    }
}

/// Reads a length and as many bytes, and nothing beyond them.
async fn read_message(socket: &mut UnixStream) -> anyhow::Result<Vec<u8>> {
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = socket.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        ensure!(length <= MAX_MESSAGE && shift <= 28, "a message of {length} bytes");
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut message = vec![0; length];
    socket.read_exact(&mut message).await?;
    Ok(message)
}

/// A stream that the daemon has handed over.
pub(crate) struct DaemonStream {
    pub(crate) peer: PeerId,
    pub(crate) protocol: StreamProtocol,
    pub(crate) socket: UnixStream,
}

impl DaemonStream {
    pub(crate) async fn incoming(mut socket: UnixStream) -> anyhow::Result<Self> {
        let (peer, protocol) = message::stream_info(&read_message(&mut socket).await?)?;
        Ok(Self { peer, protocol, socket })
    }
}
