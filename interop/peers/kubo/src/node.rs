//! Kubo as a child process: its library or its program, and `node.py`, which commands it.

use std::{env, fs, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use interop_testplan::{key::KeyType, polled::Polled};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

/// Script that loads the library or starts the program, and executes commands.
const SCRIPT: &str = include_str!("../node.py");
/// Time for Kubo to start, to connect, or to close.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Form of Kubo, and its path.
pub(crate) enum Kubo {
    /// The library of a Python wheel.
    Library(PathBuf),
    /// Kubo's own program, which is asked over its RPC interface.
    Daemon(PathBuf),
}

/// A running node. It ends when the last of these is dropped.
#[derive(Clone)]
pub(crate) struct Node {
    process: Arc<Mutex<Process>>,
    /// The node has a call for its ping.
    has_ping: bool,
}

struct Process {
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    directory: PathBuf,
    /// Killed when dropped.
    _child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        // What is left behind is a small repository in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Node {
    /// Starts a node with an identity of the given type, and waits until it is up.
    pub(crate) async fn start(
        kubo: &Kubo,
        key: KeyType,
        listen: Option<&Multiaddr>,
    ) -> anyhow::Result<(Self, PeerId)> {
        let keypair = key.keypair()?;
        let peer = keypair.public().to_peer_id();
        let directory = env::temp_dir().join(format!("interop-kubo-{}", std::process::id()));
        // Left behind by a process of the same number, in another namespace or before.
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let identity = directory.join("key");
        fs::write(&identity, key.protobuf(&keypair)?)?;
        let (kind, path, has_ping) = match kubo {
            Kubo::Library(path) => ("library", path, false),
            Kubo::Daemon(path) => ("daemon", path, true),
        };
        let path = path.canonicalize().with_context(|| format!("the {kind}"))?;
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT, kind]).arg(path).arg(directory.join("repository")).arg(identity);
        command.arg(peer.to_string()).arg(listen.map(ToString::to_string).unwrap_or_default());
        // Its log goes to a file in the current directory.
        command.current_dir(&directory).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting python3")?;
        let input = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let process = Arc::new(Mutex::new(Process { input, answers, directory, _child: child }));
        let node = Self { process, has_ping };
        let named: String = serde_json::from_value(node.call(json!(["identity"])).await?)?;
        anyhow::ensure!(named == peer.to_string(), "Kubo took another identity");
        Ok((node, peer))
    }

    /// Listen address.
    pub(crate) async fn addresses(&self) -> anyhow::Result<Vec<Multiaddr>> {
        Ok(serde_json::from_value(self.call(json!(["addresses"])).await?)?)
    }

    /// Connects to an address that ends in `/p2p/PEER_ID`.
    pub(crate) async fn connect(&self, address: &Multiaddr) -> anyhow::Result<()> {
        self.call(json!(["connect", address])).await.map(drop)
    }

    /// Every stream of a protocol becomes a connection to a TCP port of the loopback interface.
    pub(crate) async fn listen(&self, protocol: &StreamProtocol, port: u16) -> anyhow::Result<()> {
        self.call(json!(["listen", protocol.as_ref(), tcp(port)])).await.map(drop)
    }

    /// Every connection to a TCP port of the loopback interface, which is returned, becomes a
    /// stream of a protocol.
    pub(crate) async fn forward(&self, protocol: &StreamProtocol, peer: PeerId) -> anyhow::Result<u16> {
        let port = self.call(json!(["forward", protocol.as_ref(), tcp(0), peer.to_string()])).await?;
        Ok(serde_json::from_value(port)?)
    }

    /// Returns the shortest round-trip time of Kubo's own ping; `None` if Kubo has no call for it.
    pub(crate) async fn ping(&self, peer: PeerId) -> anyhow::Result<Option<Duration>> {
        if !self.has_ping {
            return Ok(None);
        }
        let nanoseconds = self.call(json!(["ping", peer.to_string()])).await?;
        Ok(Some(Duration::from_nanos(serde_json::from_value(nanoseconds)?)))
    }

    /// Shuts the node down, which closes its connections: the library has no call that closes one.
    pub(crate) async fn stop(&self) -> anyhow::Result<()> {
        self.call(json!(["stop"])).await.map(drop)
    }

    async fn call(&self, command: Value) -> anyhow::Result<Value> {
        let mut process = self.process.lock().await;
        process.input.write_all(format!("{command}\n").as_bytes()).await?;
        let answer = tokio::time::timeout(TIMEOUT, process.answers.next_line()).await;
        let answer = answer.with_context(|| format!("{command} took too long"))??;
        let mut answer: Value = serde_json::from_str(&answer.context("Kubo has ended")?)?;
        match answer.get("error") {
            Some(error) => Err(anyhow!("Kubo: {error}")),
            None => Ok(answer["ok"].take()),
        }
    }
}

impl Polled for Node {
    async fn peers(&self) -> anyhow::Result<Vec<PeerId>> {
        let names: Vec<String> = serde_json::from_value(self.call(json!(["peers"])).await?)?;
        names.iter().map(|name| Ok(name.parse()?)).collect()
    }
}

fn tcp(port: u16) -> String {
    format!("/ip4/127.0.0.1/tcp/{port}")
}
