//! Peers that misuse their control streams: that do not read, and that open more than one.

use bytes::{Bytes, BytesMut};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Multiaddr, Swarm, SwarmBuilder};
use libp2p_punch::{
    Behaviour, Role,
    transport::{Connection, Stream},
};
use libp2p_punch_proto::{
    SessionId,
    candidate::{Candidate, CandidateKind, priority},
    config::Disclosure,
    wire::frame::{
        Frame, MAX_FRAME_CANDIDATES, PunchMeNow, PunchRequest, Registration, RejectReason, decode, encode,
    },
};

use crate::support::*;

const COORDINATOR: [u8; 4] = [203, 0, 113, 254];
/// Bytes of answers that may wait for one control stream (`behaviour/frames`).
const PER_STREAM: u64 = 64 * 1024;
const LIFETIME: Duration = Duration::from_secs(300);

/// A coordinator that runs; its address, and its behaviour's counters as of the last event or tick.
async fn coordinator(world: &World) -> (Multiaddr, Arc<Mutex<Vec<u64>>>) {
    let host = world.public_host(COORDINATOR);
    let mut config = Config::default();
    config.role = Role::Server;
    let keypair = identity(254);
    let (transport, punch) =
        libp2p_punch::with_io(&keypair, config, host, libp2p_punch::io::Runtime::tokio()).unwrap();
    let never = Duration::from_secs(365 * 24 * 60 * 60);
    let mut swarm: Swarm<Behaviour> = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .unwrap()
        .with_behaviour(|_| punch)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(never))
        .with_connection_timeout(never)
        .build();
    swarm.listen_on("/ip4/0.0.0.0/udp/4001/quic-v1".parse().unwrap()).unwrap();
    let queued: Arc<Mutex<Vec<u64>>> = Arc::default();
    let copy = queued.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                _ = swarm.select_next_some() => {}
                _ = tick.tick() => {}
            }
            copy.lock().unwrap().push(swarm.behaviour().counters().frame_bytes_queued);
        }
    });
    let peer = identity(254).public().to_peer_id();
    let address = format!("/ip4/203.0.113.254/udp/4001/quic-v1/p2p/{peer}");
    (address.parse().unwrap(), queued)
}

/// A peer that speaks the control protocol by hand.
struct Client {
    keypair: Keypair,
    // Kept, so that its sockets and the connection go on.
    _transport: Transport,
    connection: Connection,
}

impl Client {
    async fn new(world: &World, seed: u8, coordinator: &Multiaddr, quic: QuicConfig) -> Self {
        let mut transport = transport(world.public_host([203, 0, 113, seed]), seed, quic);
        let (_, connection) = transport.dial(coordinator.clone(), FRESH).unwrap().await.unwrap();
        Self { keypair: identity(seed), _transport: transport, connection }
    }

    /// Opens a control stream: multistream-select 1.0, written out.
    async fn open(&mut self) -> Stream {
        let mut stream = poll_fn(|cx| self.connection.poll_outbound_unpin(cx)).await.unwrap();
        let line = |text: &str| [&[text.len() as u8 + 1], text.as_bytes(), b"\n"].concat();
        let hello = [line("/multistream/1.0.0"), line("/libp2p-punch/1.0.0")].concat();
        stream.write_all(&hello).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = vec![0; hello.len()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, hello);
        stream
    }

    fn register(&self, generation: u64, candidates: &[Candidate]) -> Vec<Frame> {
        let all = candidates.iter().copied().map(Frame::AddAddress);
        let signed =
            Registration::sign(&self.keypair, generation, LIFETIME, [7; 32], candidates, Bytes::new())
                .unwrap();
        all.chain([Frame::Register { registration: signed, disclosure: Disclosure::ToAll }]).collect()
    }

    fn request(&self, to: &Client, number: u32) -> Frame {
        let mut session = [0; 16];
        session[..4].copy_from_slice(&number.to_be_bytes());
        let request = PunchRequest {
            session: SessionId(session),
            round: 0,
            initiator: self.keypair.public().encode_protobuf().into(),
            responder: to.keypair.public().to_peer_id(),
            lifetime: Duration::from_secs(5),
            probe_key: [9; 32],
            candidates: Vec::new(),
            nat: Bytes::new(),
            first_flight: vec![Bytes::from_static(&[0xc0; 8])],
        };
        let signature = request.sign(&self.keypair).unwrap();
        Frame::PunchMeNow(Box::new(PunchMeNow { request, signature, observed: None }))
    }
}

fn candidates() -> Vec<Candidate> {
    let address = |n: u16| SocketAddr::new(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]), 4001);
    let candidate = |n: u16| {
        let kind = CandidateKind::Host;
        Candidate { sequence: n.into(), kind, priority: priority(kind, address(n).ip()), address: address(n) }
    };
    (0..MAX_FRAME_CANDIDATES as u16).map(candidate).collect()
}

async fn say(stream: &mut Stream, frames: &[Frame]) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| encode(frame, &mut bytes));
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads until `pick` accepts a frame, or the stream has ended.
async fn hear<T>(stream: &mut Stream, pick: impl Fn(&Frame) -> Option<T>) -> Option<T> {
    let (mut buffer, mut chunk) = (BytesMut::new(), [0; 4096]);
    loop {
        while let Some(frame) = decode(&mut buffer).unwrap() {
            if let Some(found) = pick(&frame) {
                return Some(found);
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
        }
    }
}

fn is_registered(frame: &Frame) -> Option<()> {
    matches!(frame, Frame::Registered { .. }).then_some(())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_64_kib_and_its_stream_is_closed() {
    let world = World::new(1);
    let (address, queued) = coordinator(&world).await;
    let mut responders = Vec::new();
    for seed in 10..18 {
        let mut responder = Client::new(&world, seed, &address, QuicConfig::default()).await;
        let mut stream = responder.open().await;
        say(&mut stream, &responder.register(1, &candidates())).await.unwrap();
        hear(&mut stream, is_registered).await.unwrap();
        tokio::spawn(async move { hear(&mut stream, |_| None::<()>).await });
        responders.push(responder);
    }
    // The peer grants the coordinator almost no window.
    let mut quic = QuicConfig::default();
    quic.max_stream_data = 1_200;
    let mut silent = Client::new(&world, 66, &address, quic).await;
    let mut stream = silent.open().await;
    let mut asked = 0;
    let ended = 'flood: loop {
        for responder in &responders {
            asked += 1;
            if asked > 4_000 {
                break 'flood false;
            }
            if say(&mut stream, &[silent.request(responder, asked)]).await.is_err() {
                break 'flood true;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let most = queued.lock().unwrap().iter().copied().max().unwrap();
    println!("{asked} requests without a read: at most {most} bytes waited, stream closed: {ended}");
    assert!(most > 8 * 1024, "nothing waited: {most}");
    assert!(most <= PER_STREAM);
    assert!(ended, "the stream is still open");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(queued.lock().unwrap().last(), Some(&0), "nothing is left of it");
}

#[tokio::test(start_paused = true)]
async fn a_further_control_stream_is_refused_and_the_first_goes_on() {
    let world = World::new(1);
    let (address, _) = coordinator(&world).await;
    let mut client = Client::new(&world, 10, &address, QuicConfig::default()).await;
    let mut first = client.open().await;
    say(&mut first, &client.register(1, &[])).await.unwrap();
    hear(&mut first, is_registered).await.unwrap();

    let mut second = client.open().await;
    let _ = say(&mut second, &client.register(2, &[])).await;
    assert_eq!(hear(&mut second, |_| Some(())).await, None, "it is reset");
    say(&mut first, &client.register(3, &[])).await.unwrap();
    hear(&mut first, is_registered).await.unwrap();

    // A stream that has ended makes room for another one.
    first.close().await.unwrap();
    drop(first);
    let mut third = client.open().await;
    say(&mut third, &client.register(4, &[])).await.unwrap();
    let rejected = |frame: &Frame| match frame {
        Frame::Registered { .. } => Some(None),
        Frame::RegisterRejected { reason, .. } => Some(Some(*reason)),
        _ => None,
    };
    let answer: Option<Option<RejectReason>> = hear(&mut third, rejected).await;
    assert_eq!(answer, Some(None));
}
