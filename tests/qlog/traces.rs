//! Traces in files: one for every connection, plain or of a session, on either side.

use std::{
    fs,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{
    AsyncReadExt, AsyncWriteExt, StreamExt,
    future::{self, poll_fn},
};
use libp2p::{SwarmBuilder, swarm::SwarmEvent};
use libp2p_core::{
    Endpoint, Multiaddr, Transport as _,
    muxing::StreamMuxerExt,
    transport::{DialOpts, ListenerId, PortUse},
};
use libp2p_identity::Keypair;
use libp2p_punch::{
    Behaviour, Config, ConfigError, Error, Event, RegistrationEvent, Role, Transport, config::QuicConfig,
    transport::Connection,
};
use libp2p_punch_sim::{Nat, World};

/// For the time-outs of the swarm, which no test is about.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const PLAIN: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };

/// A folder for the traces of one test, and what is above it.
struct Scratch {
    root: PathBuf,
    folder: PathBuf,
}

impl Scratch {
    /// There is nothing there yet, not even the folder.
    fn new(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("qlog-{name}-{}", std::process::id()));
        Self { folder: root.join("to").join("be made"), root }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left behind where nothing was made.
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn traced(folder: &Path) -> Config {
    {
        let mut config = Config::default();
        config.quic = {
            let mut quic = QuicConfig::default();
            quic.qlog = Some(folder.to_owned());
            quic
        };
        config
    }
}

/// The files of the traces of one side.
fn files(folder: &Path, side: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().ends_with(&format!("-{side}.sqlog")));
    paths
}

/// RFC 7464: each record begins with a record separator and ends with a line feed.
fn records(text: &str) -> Vec<serde_json::Value> {
    assert!(text.starts_with('\u{1e}') && text.ends_with('\n'), "{text:?}");
    text.split('\u{1e}').skip(1).map(|record| serde_json::from_str(record).unwrap()).collect()
}

fn assert_trace(records: &[serde_json::Value], side: &str) {
    assert_eq!(records[0]["description"], side, "{}", records[0]);
    let named = |name: &str| records.iter().filter(|record| record["name"] == name).count();
    for name in ["transport:packet_sent", "transport:packet_received", "recovery:metrics_updated"] {
        assert!(named(name) > 0, "{name} in {records:?}");
    }
}

async fn connect(listener: &mut Transport, dialer: &mut Transport) -> [Connection; 2] {
    listener.listen_on(ListenerId::next(), "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
    let address = poll_fn(|cx| Pin::new(&mut *listener).poll(cx)).await.into_new_address().unwrap();
    let dial = dialer.dial(address, PLAIN).unwrap();
    let accept = async {
        let (upgrade, _) = poll_fn(|cx| Pin::new(&mut *listener).poll(cx)).await.into_incoming().unwrap();
        upgrade.await
    };
    let (dialed, accepted) = future::join(dial, accept).await;
    [dialed.unwrap().1, accepted.unwrap().1]
}

/// Waits until quinn has let go of every connection, by which the traces are complete.
async fn complete(folder: &Path, files: usize) {
    let is_whole = |path: PathBuf| fs::read_to_string(path).unwrap().ends_with('\n');
    loop {
        let paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        if paths.len() == files && paths.into_iter().all(is_whole) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn every_connection_writes_a_trace_on_both_sides() {
    let scratch = Scratch::new("plain");
    let folder = &scratch.folder;
    let make = |()| Transport::new(&Keypair::generate_ed25519(), traced(folder)).unwrap();
    let [mut a, mut b] = [(); 2].map(make);
    for _ in 0..2 {
        let [mut dialed, mut accepted] = connect(&mut a, &mut b).await;
        let mut outbound = poll_fn(|cx| dialed.poll_outbound_unpin(cx)).await.unwrap();
        outbound.write_all(&[7; 10_000]).await.unwrap();
        outbound.close().await.unwrap();
        let mut inbound = poll_fn(|cx| accepted.poll_inbound_unpin(cx)).await.unwrap();
        let mut received = Vec::new();
        inbound.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, [7; 10_000]);
    }
    complete(folder, 4).await;
    for side in ["client", "server"] {
        let files = files(folder, side);
        assert_eq!(files.len(), 2);
        files.iter().for_each(|file| assert_trace(&records(&fs::read_to_string(file).unwrap()), side));
    }
}

/// A swarm that runs on its own, or that the test goes on with.
fn swarm(host: &Arc<libp2p_punch_sim::Host>, config: Config) -> (libp2p::Swarm<Behaviour>, Multiaddr) {
    let keypair = Keypair::generate_ed25519();
    let runtime = libp2p_punch::io::Runtime::tokio();
    let (transport, punch) = libp2p_punch::with_io(&keypair, config, host.clone(), runtime).unwrap();
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .unwrap()
        .with_behaviour(|_| punch)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
        .with_connection_timeout(NEVER)
        .build();
    swarm.listen_on("/ip4/0.0.0.0/udp/4001/quic-v1".parse().unwrap()).unwrap();
    let address = format!("/ip4/203.0.113.254/udp/4001/quic-v1/p2p/{}", swarm.local_peer_id());
    (swarm, address.parse().unwrap())
}

async fn registered(swarm: &mut libp2p::Swarm<Behaviour>) {
    loop {
        if let SwarmEvent::Behaviour(Event::Registration(RegistrationEvent::Accepted { .. })) =
            swarm.select_next_some().await
        {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_writes_a_trace_of_its_own() {
    let scratch = Scratch::new("session");
    let folder = &scratch.folder;
    let world = World::new(1);
    let mut server = Config::default();
    server.role = Role::Server;
    let (mut coordinator, address) = swarm(&world.public_host([203, 0, 113, 254]), server);
    tokio::spawn(async move {
        loop {
            coordinator.select_next_some().await;
        }
    });
    let peer = |last: u8| {
        let host = world.nat(Nat::default(), [198, 51, 100, last]).host([192, 168, last, 2]);
        let mut config = traced(&folder.join(last.to_string()));
        config.coordinators = vec![address.clone()];
        swarm(&host, config).0
    };
    let [mut dialer, mut listener] = [1, 2].map(peer);
    registered(&mut listener).await;
    let id = *listener.local_peer_id();
    tokio::spawn(async move {
        loop {
            listener.select_next_some().await;
        }
    });
    registered(&mut dialer).await;
    let clients = |last: &str| files(&folder.join(last), "client").len();
    // To the coordinator only, so far.
    assert_eq!((clients("1"), clients("2")), (1, 1));
    dialer.dial(id).unwrap();
    loop {
        match dialer.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == id => break,
            SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!((clients("1"), clients("2")), (2, 1));
    assert_eq!(files(&folder.join("2"), "server").len(), 1);
}

#[tokio::test]
async fn a_folder_that_cannot_be_one_is_an_error_with_its_name() {
    let scratch = Scratch::new("bad");
    fs::create_dir_all(&scratch.root).unwrap();
    let file = scratch.root.join("a file");
    fs::write(&file, "not a folder").unwrap();
    for bad in [file.clone(), file.join("in a file")] {
        match Transport::new(&Keypair::generate_ed25519(), traced(&bad)).unwrap_err() {
            Error::Config(ConfigError::QlogFolder { value, reason }) => {
                assert_eq!(value, bad);
                assert!(!reason.is_empty());
            }
            error => panic!("{error:?}"),
        }
    }
    // And nothing is left of the attempt where it is a folder.
    Transport::new(&Keypair::generate_ed25519(), traced(&scratch.folder)).unwrap();
    assert_eq!(fs::read_dir(&scratch.folder).unwrap().count(), 0);
}
