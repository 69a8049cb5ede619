//! Dialing in the role of the listener, which is how `libp2p-dcutr` punches a hole.
//!
//! Both peers dial at once; by agreement one of them has the role of the listener. That peer is the
//! QUIC server first: it sends small packets so that its NAT admits the other's handshake, and
//! accepts the connection from that address.
//!
//! Some implementations have the roles inverted and wait as servers, too (go-libp2p 0.20 to 0.40).
//! The peer with the role of the listener therefore becomes the QUIC client as well, once the other
//! has sent a packet that only opens a hole ([`is_opening`]), or has sent nothing for
//! [`CLIENT_DELAY`]. A handshake that the other begins meanwhile takes precedence over ours. One
//! that it begins after we have connected as the client is refused. So a punch ends in exactly one
//! connection.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    channel::oneshot,
    future::{self, Either},
};
use libp2p_identity::PeerId;
use quinn::{
    AsyncUdpSocket, Runtime,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::Notify;

use super::{
    Connection, Error, Upgrade,
    context::TransportContext,
    dial::{self, ClientDial},
    handshake::Output,
    live::ConnectionEntry,
    quic::VERSION,
    shared_endpoint::SharedEndpoint,
    time::Delay,
};

/// First byte of a packet that opens a hole and has no other meaning. RFC 9443 §2 assigns 4..=15 to
/// no protocol, QUIC drops it for its cleared fixed bit, and our probes begin with another byte of
/// the range.
const FIRST_BYTE: u8 = 15;
/// Length of such a packet: too short for an answer by a stateless reset (RFC 9000 §10.3.3).
const PACKET_LENGTH: usize = 16;
/// The gap after the second packet; it doubles from packet to packet up to [`MAX_GAP`], so they
/// leave at 0, 5, 10, 20, 40 … ms.
const FIRST_GAP: Duration = Duration::from_millis(5);
/// The largest gap between two packets: a NAT's mapping is long-lived, but any packet may be lost.
const MAX_GAP: Duration = Duration::from_millis(160);

/// The time after which we become the QUIC client of a peer that has sent nothing. A client whose
/// first Initial our NAT dropped sends the second one before, after 1 s (RFC 9002 §6.2.2).
const CLIENT_DELAY: Duration = Duration::from_millis(1_500);
/// The time that a peer's Initial has after a packet that only opens a hole: the network may have
/// reordered the two.
const INITIAL_GRACE: Duration = Duration::from_millis(50);
/// Smallest datagram that has a client's Initial in it (RFC 9000 §14.1).
const MIN_INITIAL: usize = 1_200;

/// The punches, by the address that they expect a connection from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Punches(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    stages: Mutex<BTreeMap<SocketAddr, Stage>>,
    /// Punches under way, for the receive path to know that there is none.
    under_way: AtomicUsize,
}

/// Stage of a punch.
#[derive(Debug)]
enum Stage {
    /// The punch waits for its connection.
    Waiting(Waiting),
    /// We have connected as the QUIC client. Until the given time the peer may begin a handshake of
    /// its own for the same punch.
    Connected { connection: Weak<ConnectionEntry>, until: Instant },
}

/// A punch that waits for its connection.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Peer that the connection must come from.
    pub(crate) peer: PeerId,
    sender: oneshot::Sender<Upgrade>,
    remote_waits: Arc<Notify>,
}

/// Meaning of a handshake that a remote has begun.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// No punch expects it.
    Unexpected,
    /// The punch to its address waits for it.
    Awaited(Waiting),
    /// The punch to its address has made its connection: a second one is refused.
    Superfluous,
}

impl Waiting {
    /// Hands the connection to the dial, or back if that has ended.
    pub(crate) fn hand_over(self, upgrade: Upgrade) -> Result<(), Upgrade> {
        self.sender.send(upgrade)
    }
}

/// Keeps a punch registered until it is dropped.
#[derive(Debug)]
pub(crate) struct Punch {
    punches: Punches,
    remote: SocketAddr,
    peer: PeerId,
    receiver: oneshot::Receiver<Upgrade>,
    /// Notified when the remote sends packets that only open a hole.
    remote_waits: Arc<Notify>,
}

impl Punches {
    /// Registers a punch. Each address can have one punch.
    pub(crate) fn register(&self, remote: SocketAddr, peer: PeerId) -> Result<Punch, Error> {
        let (sender, receiver) = oneshot::channel();
        let remote_waits = Arc::<Notify>::default();
        let waiting = Waiting { peer, sender, remote_waits: remote_waits.clone() };
        match self.lock().entry(without_zone(remote)) {
            Entry::Occupied(entry) if matches!(entry.get(), Stage::Waiting(_)) => {
                return Err(Error::HolePunchInProgress(remote));
            }
            Entry::Occupied(mut entry) => drop(entry.insert(Stage::Waiting(waiting))),
            Entry::Vacant(entry) => drop(entry.insert(Stage::Waiting(waiting))),
        }
        self.0.under_way.fetch_add(1, Relaxed);
        Ok(Punch { punches: self.clone(), remote, peer, receiver, remote_waits })
    }

    /// Takes the punch that waits for a handshake from `remote`, which has begun.
    pub(crate) fn take(&self, remote: SocketAddr, now: Instant) -> Arrival {
        let mut stages = self.lock();
        let Entry::Occupied(entry) = stages.entry(without_zone(remote)) else { return Arrival::Unexpected };
        match entry.get() {
            Stage::Connected { connection, until } if now < *until && connection.strong_count() > 0 => {
                Arrival::Superfluous
            }
            _ => match entry.remove() {
                Stage::Waiting(waiting) => Arrival::Awaited(waiting),
                Stage::Connected { .. } => Arrival::Unexpected,
            },
        }
    }

    /// Looks at a received buffer for packets that only open a hole.
    pub(super) fn note(&self, buffer: &[u8], meta: &RecvMeta) {
        if self.0.under_way.load(Relaxed) == 0 {
            return;
        }
        if let Some(Stage::Waiting(waiting)) = self.lock().get(&without_zone(meta.addr))
            && let Some(received) = buffer.get(..meta.len)
            && received.chunks(meta.stride.max(1)).any(is_opening)
        {
            waiting.remote_waits.notify_one();
        }
    }

    /// Records that the punch to `remote` has connected as the QUIC client. A handshake that the
    /// remote begins before `until` is superfluous, as long as the connection lives.
    fn connected(&self, remote: SocketAddr, connection: &Connection, until: Instant) {
        let mut stages = self.lock();
        // There are never more entries than connections.
        stages.retain(|_, stage| match stage {
            Stage::Waiting(_) => true,
            Stage::Connected { connection, .. } => connection.strong_count() > 0,
        });
        let connection = Arc::downgrade(&connection.live);
        stages.insert(without_zone(remote), Stage::Connected { connection, until });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Stage>> {
        self.0.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Punch {
    fn drop(&mut self) {
        self.punches.0.under_way.fetch_sub(1, Relaxed);
        // Removes only its own entry: once taken, another punch may have been registered under the
        // address. The sender of its own entry is the one without a receiver.
        self.receiver.close();
        if let Entry::Occupied(entry) = self.punches.lock().entry(without_zone(self.remote))
            && let Stage::Waiting(waiting) = entry.get()
            && waiting.sender.is_canceled()
        {
            entry.remove();
        }
    }
}

/// Returns the key of a punch: the address without the zone of a link-local address, since not
/// every address has a known zone.
fn without_zone(remote: SocketAddr) -> SocketAddr {
    SocketAddr::new(remote.ip(), remote.port())
}

/// Returns true if a datagram opens a hole and does nothing else: the peer waits for our handshake.
///
/// go-libp2p and rust-libp2p send 64 random bytes. Clients begin with an Initial of
/// [`MIN_INITIAL`] bytes. Packets with a short header, and those of version 1, may be the rest of
/// an earlier connection. The range up to [`FIRST_BYTE`] has our probes.
fn is_opening(datagram: &[u8]) -> bool {
    match datagram {
        [first @ ..=0x3f, ..] | [first @ 0x80..=0xbf, ..] => !(4..FIRST_BYTE).contains(first),
        [0xc0..=0xff, a, b, c, d, ..] => {
            datagram.len() < MIN_INITIAL && u32::from_be_bytes([*a, *b, *c, *d]) != VERSION
        }
        _ => false,
    }
}

/// Opens a hole through `wire` until a handshake has begun, and sees that through.
pub(crate) async fn punch(
    env: Arc<TransportContext>,
    wire: Arc<SharedEndpoint>,
    mut punch: Punch,
) -> Result<Output, Error> {
    let limit = env.quic.handshake_timeout();
    let timeout = Delay::new(&*env.runtime, limit);
    let socket = wire.socket();
    let open = pin!(open(&*env.runtime, &*socket, punch.remote));
    let dial = ClientDial { env: env.clone(), remote: punch.remote, peer: Some(punch.peer), wire };
    let client = become_client(dial, punch.remote_waits.clone()).boxed();
    let waiting = future::select(client, future::select(timeout, open));
    match future::select(&mut punch.receiver, waiting).await {
        Either::Left((upgrade, others)) => {
            // The peer is the client: our own handshake ends before its handshake goes on.
            drop(others);
            // Without an upgrade the transport was dropped.
            upgrade.map_err(|_| Error::HandshakeTimedOut)?.await
        }
        Either::Right((Either::Left((Ok((peer, connection)), _)), _)) => {
            punch.punches.connected(punch.remote, &connection, env.runtime.now() + limit);
            Ok((peer, connection))
        }
        // The peer does not let us be its client, and may still become ours.
        Either::Right((Either::Left((Err(error), timeout)), receiver)) => {
            match future::select(receiver, timeout).await {
                Either::Left((Ok(upgrade), _)) => upgrade.await,
                Either::Left((Err(_), _)) | Either::Right(_) => Err(error),
            }
        }
        Either::Right((Either::Right(_), _)) => Err(Error::HandshakeTimedOut),
    }
}

/// Waits until the remote seems to wait for our handshake, and begins it.
async fn become_client(dial: ClientDial, remote_waits: Arc<Notify>) -> Result<Output, Error> {
    let runtime = dial.env.runtime.clone();
    // A third of a shorter time-out, so that there is time for the handshake.
    let delay = CLIENT_DELAY.min(dial.env.quic.handshake_timeout() / 3);
    let told = pin!(remote_waits.notified());
    if let Either::Left(_) = future::select(told, Delay::new(&*runtime, delay)).await {
        Delay::new(&*runtime, INITIAL_GRACE).await;
    }
    if let Some(peer) = dial.peer
        && dial.env.connections.has_peer(peer)
    {
        // The peer has connected, though from another address: one connection is enough.
        return future::pending().await;
    }
    tracing::debug!("no handshake came: becoming the QUIC client");
    dial::connect(dial).await
}

/// Sends opening packets for ever.
async fn open(runtime: &dyn Runtime, socket: &dyn AsyncUdpSocket, remote: SocketAddr) {
    let mut gap = FIRST_GAP;
    let mut first = true;
    loop {
        let mut packet: [u8; PACKET_LENGTH] = rand::random();
        packet[0] = FIRST_BYTE;
        let transmit =
            Transmit { destination: remote, ecn: None, contents: &packet, segment_size: None, src_ip: None };
        tracing::trace!(%remote, "opening a hole");
        // A packet that could not be sent counts as lost, and the next packet follows soon.
        let _ = socket.try_send(&transmit);
        Delay::new(runtime, gap).await;
        if !first {
            gap = (gap * 2).min(MAX_GAP);
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, IoSliceMut},
        pin::Pin,
        task::{Context, Poll},
        time::Instant,
    };

    use quinn::{UdpPoller, udp::RecvMeta};

    use super::*;

    const REMOTE: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 9);

    /// Takes the punch that waits for a handshake.
    fn taken(punches: &Punches) -> Waiting {
        match punches.take(REMOTE, Instant::now()) {
            Arrival::Awaited(waiting) => waiting,
            arrival => panic!("{arrival:?}"),
        }
    }

    /// Returns true if a punch to [`REMOTE`] learns from a packet that the remote waits.
    fn tells_that_the_remote_waits(packet: &[u8], from: SocketAddr) -> bool {
        let punches = Punches::default();
        let punch = punches.register(REMOTE, PeerId::random()).unwrap();
        let meta = RecvMeta { addr: from, len: packet.len(), stride: packet.len(), ..RecvMeta::default() };
        punches.note(packet, &meta);
        punch.remote_waits.notified().now_or_never().is_some()
    }

    #[test]
    fn only_packets_of_the_remote_that_no_quic_connection_sends_tell_that_it_waits() {
        let packet = |first: u8, version: u32, length: usize| {
            let mut packet = vec![0xa5; length];
            packet[0] = first;
            packet[1..5].copy_from_slice(&version.to_be_bytes());
            packet
        };
        for first in [0x00, 0x03, FIRST_BYTE, 0x10, 0x3f, 0x80, 0xbf, 0xc0, 0xff] {
            let packet = packet(first, 0xa5a5_a5a5, 64);
            assert!(tells_that_the_remote_waits(&packet, REMOTE), "{first:#x}");
            let elsewhere = SocketAddr::new(REMOTE.ip(), REMOTE.port() + 1);
            assert!(!tells_that_the_remote_waits(&packet, elsewhere), "{first:#x}");
        }
        // Our probes, short headers, packets of version 1, and a first flight of another version.
        for (first, version, length) in [
            (4, 7, 64),
            (FIRST_BYTE - 1, 7, 64),
            (0x40, 7, 64),
            (0x7f, 7, 64),
            (0xc0, VERSION, 64),
            (0xe0, VERSION, 64),
            (0xc0, VERSION, 1_200),
            (0xd0, 0x6b33_43cf, 1_200),
        ] {
            let packet = packet(first, version, length);
            assert!(!tells_that_the_remote_waits(&packet, REMOTE), "{first:#x} {version:#x}");
        }
        assert!(!tells_that_the_remote_waits(&[], REMOTE));
        assert!(!tells_that_the_remote_waits(&[0xc0, 0, 0], REMOTE), "too short for a version");
    }

    #[test]
    fn a_packet_behind_others_in_one_buffer_tells_that_the_remote_waits() {
        let punches = Punches::default();
        let punch = punches.register(REMOTE, PeerId::random()).unwrap();
        let buffer = [[0x45; 64], [0x33; 64]].concat();
        punches.note(&buffer, &RecvMeta { addr: REMOTE, len: 128, stride: 64, ..RecvMeta::default() });
        assert!(punch.remote_waits.notified().now_or_never().is_some());
    }

    #[test]
    fn there_is_one_punch_to_an_address_at_a_time() {
        let punches = Punches::default();
        let punch = punches.register(REMOTE, PeerId::random()).unwrap();
        assert!(matches!(
            punches.register(REMOTE, PeerId::random()),
            Err(Error::HolePunchInProgress(REMOTE))
        ));
        drop(punch);
        punches.register(REMOTE, PeerId::random()).unwrap();
    }

    #[test]
    fn a_punch_that_was_taken_does_not_remove_its_successor() {
        let punches = Punches::default();
        let first = punches.register(REMOTE, PeerId::random()).unwrap();
        drop(taken(&punches));
        let second = PeerId::random();
        let _second = punches.register(REMOTE, second).unwrap();
        drop(first);
        assert_eq!(taken(&punches).peer, second);
    }

    #[test]
    fn a_connection_for_a_dropped_punch_comes_back() {
        let punches = Punches::default();
        let punch = punches.register(REMOTE, PeerId::random()).unwrap();
        let waiting = taken(&punches);
        drop(punch);
        assert!(waiting.hand_over(Upgrade::new(async { Err(Error::HandshakeTimedOut) })).is_err());
    }

    /// Records the sent packets and their times.
    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(Instant, SocketAddr, Vec<u8>)>>);

    impl AsyncUdpSocket for Recorder {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing waits to send")
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let now = quinn::TokioRuntime.now();
            self.0.lock().unwrap().push((now, transmit.destination, transmit.contents.to_vec()));
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn poll_recv(
            &self,
            _cx: &mut Context<'_>,
            _bufs: &mut [IoSliceMut<'_>],
            _meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn small_packets_leave_densely_even_if_the_socket_is_busy() {
        let recorder = Recorder::default();
        let sending = open(&quinn::TokioRuntime, &recorder, REMOTE);
        tokio::time::timeout(Duration::from_millis(700), sending).await.unwrap_err();
        let sent = recorder.0.into_inner().unwrap();
        let start = sent[0].0;
        let due = [0, 5, 10, 20, 40, 80, 160, 320, 480, 640].map(Duration::from_millis);
        assert_eq!(sent.len(), due.len());
        for ((at, destination, packet), due) in sent.iter().zip(due) {
            // tokio's timer counts whole milliseconds.
            let late = (*at - start).saturating_sub(due);
            assert!(*at - start >= due && late <= Duration::from_millis(12), "{late:?} late for {due:?}");
            assert_eq!(*destination, REMOTE);
            assert_eq!(packet.len(), PACKET_LENGTH);
            assert!((4..=15).contains(&packet[0]));
        }
        assert_ne!(sent[0].2, sent[1].2);
    }
}
