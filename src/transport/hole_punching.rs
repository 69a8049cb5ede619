//! Dialing in the role of the listener, which is how `libp2p-dcutr` punches a hole.
//!
//! Both peers dial at once; by agreement one of them has the role of the listener. That peer stays
//! the QUIC server: it sends small packets so that its NAT admits the other's handshake, and
//! accepts the connection from that address. So a punch ends in exactly one connection.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    channel::oneshot,
    future::{self, Either},
};
use libp2p_identity::PeerId;
use quinn::{AsyncUdpSocket, Runtime, udp::Transmit};

use super::{Error, Upgrade, context::TransportContext, handshake::Output, time::Delay};

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

/// The punches under way, by the address that they expect a connection from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Punches(Arc<Mutex<HashMap<SocketAddr, Waiting>>>);

/// A punch that waits for its connection.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Peer that the connection must come from.
    pub(crate) peer: PeerId,
    sender: oneshot::Sender<Upgrade>,
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
    receiver: oneshot::Receiver<Upgrade>,
}

impl Punches {
    /// Registers a punch. Each address can have one punch.
    pub(crate) fn register(&self, remote: SocketAddr, peer: PeerId) -> Result<Punch, Error> {
        let (sender, receiver) = oneshot::channel();
        match self.lock().entry(without_zone(remote)) {
            Entry::Occupied(_) => return Err(Error::HolePunchInProgress(remote)),
            Entry::Vacant(entry) => entry.insert(Waiting { peer, sender }),
        };
        Ok(Punch { punches: self.clone(), remote, receiver })
    }

    /// The punch that waits for a connection from `remote`.
    pub(crate) fn take(&self, remote: SocketAddr) -> Option<Waiting> {
        self.lock().remove(&without_zone(remote))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Punch {
    fn drop(&mut self) {
        // Removes only its own entry: once taken, another punch may have been registered under the
        // address. The sender of its own entry is the one without a receiver.
        self.receiver.close();
        if let Entry::Occupied(entry) = self.punches.lock().entry(without_zone(self.remote))
            && entry.get().sender.is_canceled()
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

/// Sends from `socket` until the connection has come in, and sees it through.
pub(crate) async fn punch(
    env: Arc<TransportContext>,
    socket: Arc<dyn AsyncUdpSocket>,
    mut punch: Punch,
) -> Result<Output, Error> {
    let timeout = Delay::new(&*env.runtime, env.quic.handshake_timeout());
    let open = std::pin::pin!(open(&*env.runtime, &*socket, punch.remote));
    let arrived = future::select(&mut punch.receiver, future::select(timeout, open)).await;
    match arrived {
        Either::Left((Ok(upgrade), _)) => upgrade.await,
        // The transport was dropped, or no connection came.
        Either::Left((Err(_), _)) | Either::Right(_) => Err(Error::HandshakeTimedOut),
    }
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
        drop(punches.take(REMOTE));
        let second = PeerId::random();
        let _second = punches.register(REMOTE, second).unwrap();
        drop(first);
        assert_eq!(punches.take(REMOTE).map(|waiting| waiting.peer), Some(second));
    }

    #[test]
    fn a_connection_for_a_dropped_punch_comes_back() {
        let punches = Punches::default();
        let punch = punches.register(REMOTE, PeerId::random()).unwrap();
        let waiting = punches.take(REMOTE).unwrap();
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
