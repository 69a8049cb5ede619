//! A virtual connection: a QUIC connection attempt at one virtual address.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::*},
    },
};

use bytes::Bytes;
use futures::{channel::oneshot, task::AtomicWaker};
use quinn::{AsyncUdpSocket, udp::Transmit};
use tokio::sync::Notify;

use super::{
    cid::{CID_LEN, Cid},
    demux::destination_cid,
    lock,
    paths::{Paths, SocketPath},
    stats::{Counters, count},
};
use libp2p_punch_proto::{Path, SocketId, VirtualConnectionId};

/// The prefix of virtual addresses, a ULA (RFC 4193); the virtual connection's number is the rest.
const PREFIX: [u16; 4] = [0xfd9c, 0x1d5e, 0x7701, 1];
/// RFC 9000 §8.1: how many times as much may be sent to an address that is not validated as was
/// received from it.
const AMPLIFICATION_LIMIT: usize = 3;
/// quinn refuses port 0.
const PORT: u16 = 1;

/// The address at which quinn believes the peer of `flow`.
pub(super) fn virtual_address(flow: VirtualConnectionId) -> SocketAddr {
    let prefix = PREFIX.iter().fold(0u64, |bits, group| bits << 16 | u64::from(*group));
    let ip = Ipv6Addr::from_bits(u128::from(prefix) << 64 | u128::from(flow.0));
    SocketAddr::new(ip.into(), PORT)
}

/// The virtual connection at a virtual address.
pub(super) fn flow_at(address: SocketAddr) -> Option<VirtualConnectionId> {
    let IpAddr::V6(ip) = address.ip() else { return None };
    let flow = VirtualConnectionId(u64::try_from(ip.to_bits() & u128::from(u64::MAX)).ok()?);
    let found = virtual_address(flow);
    (found.ip() == address.ip() && found.port() == address.port()).then_some(flow)
}

/// A socket of the transport, alive while it has a holder.
pub(super) struct BoundSocket {
    pub(super) id: SocketId,
    pub(super) io: Arc<dyn AsyncUdpSocket>,
    /// The endpoint whose driver reads the socket; `None` for a socket of a pool.
    pub(super) _keep_alive: Option<quinn::Endpoint>,
}

impl fmt::Debug for BoundSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundSocket({})", self.id.0)
    }
}

pub(super) type FlowTarget = SocketPath<Arc<BoundSocket>>;

/// Sends one datagram without waiting. Returns true if the socket took it.
pub(super) fn send_one(socket: &BoundSocket, remote: SocketAddr, datagram: &[u8]) -> io::Result<()> {
    let transmit =
        Transmit { destination: remote, ecn: None, contents: datagram, segment_size: None, src_ip: None };
    socket.io.try_send(&transmit)
}

#[derive(Debug, Default)]
struct State {
    paths: Paths<Arc<BoundSocket>>,
    /// The socket that would have blocked.
    blocked: Option<Arc<BoundSocket>>,
    /// Progress of a transmit when the socket blocked: its length and the bytes sent. quinn passes
    /// the same transmit next.
    partial: Option<(usize, usize)>,
    /// Receiver of the connection that the peer's first flight makes.
    incoming: Option<oneshot::Sender<quinn::Incoming>>,
}

/// A virtual connection, shared by the table, the session endpoint's socket, the connection's
/// poller and guard, and its supervisor task.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) id: VirtualConnectionId,
    /// The destination connection ID of the peer's first flight (RFC 9000 §7.2), on the server's
    /// side.
    original_dcid: Option<Bytes>,
    /// The connection ID that our endpoint gave the connection when it was made.
    cid: OnceLock<Cid>,
    /// A packet came with an ID that we issued, so the peer has received our first flight.
    heard: AtomicBool,
    is_blocked: AtomicBool,
    /// A path is selected.
    has_path: AtomicBool,
    /// Nothing is kept that could be sent again.
    is_settled: AtomicBool,
    /// The swarm took the connection.
    is_taken: AtomicBool,
    state: Mutex<State>,
    /// The connection's driver, waiting to send.
    pub(super) unblocked: AtomicWaker,
    /// The guard's task, waiting for another remote address.
    pub(super) moved: AtomicWaker,
    /// quinn sent the first datagram.
    pub(super) sent: Notify,
    /// Requests the close of the virtual connection.
    pub(super) close: Notify,
    /// The guard is gone.
    pub(super) released: Notify,
}

impl Flow {
    /// A virtual connection that answers `first_flight`, or that makes the first flight if that is
    /// empty.
    pub(super) fn new(id: VirtualConnectionId, first_flight: &[Bytes]) -> Self {
        let original = first_flight.first().and_then(|datagram| destination_cid(datagram, CID_LEN));
        Self {
            id,
            original_dcid: original.filter(|(_, long)| *long).map(|(cid, _)| Bytes::copy_from_slice(cid)),
            cid: OnceLock::new(),
            heard: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            has_path: AtomicBool::new(false),
            is_settled: AtomicBool::new(false),
            is_taken: AtomicBool::new(false),
            state: Mutex::default(),
            unblocked: AtomicWaker::new(),
            moved: AtomicWaker::new(),
            sent: Notify::new(),
            close: Notify::new(),
            released: Notify::new(),
        }
    }

    /// Returns true if a path is selected.
    pub(super) fn has_path(&self) -> bool {
        self.has_path.load(Relaxed)
    }

    /// Notes that the swarm took the connection.
    pub(super) fn take(&self) {
        self.is_taken.store(true, Relaxed);
    }

    /// Returns true if the swarm took the connection.
    pub(super) fn is_taken(&self) -> bool {
        self.is_taken.load(Relaxed)
    }

    /// Notes the connection ID that the endpoint gave the connection.
    pub(super) fn named(&self, cid: Option<Cid>) {
        if let Some(cid) = cid {
            // A virtual connection has one QUIC connection, so this is the only call.
            let _ = self.cid.set(cid);
        }
    }

    /// The connection ID that our endpoint gave the connection when it was made.
    pub(super) fn cid(&self) -> Option<&Cid> {
        self.cid.get()
    }

    /// Returns true if a packet with this destination certainly belongs to this virtual connection.
    pub(super) fn owns(&self, destination: &[u8], long: bool) -> bool {
        if self.cid.get().is_some_and(|cid| cid.as_slice() == destination) {
            self.hear();
            return true;
        }
        long && self.original_dcid.as_ref().is_some_and(|original| *original == destination)
    }

    /// Notes that a packet came with an ID that we issued.
    ///
    /// A packet with the ID that the peer chose for its first flight proves nothing: it may be a
    /// repetition of that flight, sent because ours was lost.
    pub(super) fn hear(&self) {
        if self.heard.load(Relaxed) || self.heard.swap(true, Relaxed) {
            return;
        }
        let is_client = self.original_dcid.is_none();
        if is_client {
            lock(&self.state).paths.answered();
        }
    }

    /// Returns the datagrams that quinn sent so far, to travel with the coordinator.
    pub(super) fn capture(&self) -> Vec<Bytes> {
        lock(&self.state).paths.capture()
    }

    /// Sets the receiver of the connection of the peer's first flight.
    pub(super) fn expect(&self, incoming: oneshot::Sender<quinn::Incoming>) {
        lock(&self.state).incoming = Some(incoming);
    }

    /// Takes that receiver.
    pub(super) fn expected(&self) -> Option<oneshot::Sender<quinn::Incoming>> {
        lock(&self.state).incoming.take()
    }

    /// The destination connection ID of the peer's first flight.
    pub(super) fn original_dcid(&self) -> Option<&Bytes> {
        self.original_dcid.as_ref()
    }

    pub(super) fn admit(&self, target: FlowTarget) -> Result<(), super::paths::Full> {
        lock(&self.state).paths.admit(target)
    }

    /// Takes packets from a path on which the client met its server.
    pub(super) fn admit_met(&self, path: &Path) {
        lock(&self.state).paths.admit_met(path);
    }

    /// Stops taking packets from a path. The send budget of the path stays.
    pub(super) fn dismiss(&self, path: &Path) {
        lock(&self.state).paths.dismiss(path);
    }

    pub(super) fn admitted(&self) -> Vec<Path> {
        lock(&self.state).paths.admitted().collect()
    }

    pub(super) fn permit(
        &self,
        target: FlowTarget,
        budget: usize,
        again: bool,
        counters: &Counters,
    ) -> Result<(), super::paths::Full> {
        let result = lock(&self.state).paths.permit(target, budget, again, within_budget(counters));
        self.moved.wake();
        result
    }

    /// QUIC packets came on `path`: until a path is selected, three times as many bytes may go
    /// back.
    pub(super) fn received(&self, path: &Path, packets: &[u8], counters: &Counters) {
        if self.has_path.load(Relaxed) {
            if !self.is_settled.load(Relaxed) {
                self.came(packets);
            }
            return;
        }
        let budget = AMPLIFICATION_LIMIT.saturating_mul(packets.len());
        if lock(&self.state).paths.credit(path, budget, within_budget(counters)) {
            self.moved.wake();
        }
    }

    /// As [`received`](Self::received), on an unnamed path. Returns false if the virtual connection
    /// has no room for it.
    pub(super) fn met(&self, target: FlowTarget, packets: &[u8], counters: &Counters) -> bool {
        let budget = AMPLIFICATION_LIMIT.saturating_mul(packets.len());
        let met = lock(&self.state).paths.meet(target, budget, within_budget(counters)).is_ok();
        if met {
            self.moved.wake();
        }
        met
    }

    fn came(&self, packets: &[u8]) {
        let mut state = lock(&self.state);
        if packets.first().is_some_and(|first| first & 0x80 == 0) {
            state.paths.short_header();
        }
        self.is_settled.store(state.paths.is_settled(), Relaxed);
    }

    /// Sends the end of the client's handshake again; `false` if that is of no use any more.
    pub(super) fn repeat(&self, counters: &Counters) -> bool {
        let state = lock(&self.state);
        let Some(again) = state.paths.unconfirmed() else { return false };
        let target = state.paths.selected().cloned();
        drop(state);
        if let Some(target) = target {
            send_again(&target, &again, counters);
        }
        true
    }

    pub(super) fn select(&self, target: FlowTarget, counters: &Counters) {
        let again = {
            let mut state = lock(&self.state);
            self.has_path.store(true, Relaxed);
            let again = state.paths.select(target.clone(), self.heard.load(Relaxed));
            self.unblock(&mut state);
            again
        };
        self.unblocked.wake();
        self.moved.wake();
        send_again(&target, &again, counters);
    }

    pub(super) fn forget(&self, path: &Path) -> bool {
        let admitted = {
            let mut state = lock(&self.state);
            self.unblock(&mut state);
            let admitted = state.paths.forget(path);
            self.has_path.store(state.paths.selected().is_some(), Relaxed);
            admitted
        };
        self.unblocked.wake();
        self.moved.wake();
        admitted
    }

    /// Keeps nothing more that could be sent again.
    pub(super) fn settle(&self) {
        lock(&self.state).paths.settle();
    }

    /// Lets go of every path and its socket.
    pub(super) fn clear(&self) {
        let state = {
            let mut state = lock(&self.state);
            self.unblock(&mut state);
            std::mem::take(&mut *state)
        };
        // Outside the lock: the last holder of a socket ends its endpoint here.
        drop(state);
        self.unblocked.wake();
    }

    /// The path by which the peer is most likely reached.
    pub(super) fn best(&self) -> Option<Path> {
        lock(&self.state).paths.best().map(|target| target.path)
    }

    /// Sends on the selected path. Without a selected path, keeps the datagrams and sends them
    /// within the budgets of the permitted paths.
    ///
    /// The only error is `WouldBlock`: any other error would make quinn end the connection,
    /// although only a path failed.
    pub(super) fn send(&self, transmit: &Transmit<'_>, counters: &Counters) -> io::Result<()> {
        let contents = transmit.contents;
        let size = transmit.segment_size.unwrap_or(contents.len()).max(1);
        let heard = self.heard.load(Relaxed);
        let (target, from, settled) = {
            let mut state = lock(&self.state);
            state.paths.remember(contents, size);
            let Some(target) = state.paths.selected().cloned() else {
                let lost = state.paths.hold(contents, size, within_budget(counters));
                count(&counters.datagrams_unsent, lost);
                drop(state);
                self.sent.notify_one();
                return Ok(());
            };
            let partial = state.partial.take().filter(|(len, _)| *len == contents.len());
            (target, partial.map_or(0, |(_, sent)| sent), state.paths.is_settled())
        };
        self.send_on(&target, transmit, size, from, counters)?;
        if !settled {
            lock(&self.state).paths.sent_on_selected(contents, size, heard);
            self.sent.notify_one();
        }
        Ok(())
    }

    /// Sends `transmit` from byte `from` on, in pieces that the socket takes.
    fn send_on(
        &self,
        target: &FlowTarget,
        transmit: &Transmit<'_>,
        size: usize,
        from: usize,
        counters: &Counters,
    ) -> io::Result<()> {
        let step = size.saturating_mul(target.socket.io.max_transmit_segments().max(1));
        let rest = transmit.contents.get(from..).unwrap_or_default();
        let mut at = from;
        for contents in rest.chunks(step) {
            let piece = Transmit {
                destination: target.path.remote,
                ecn: transmit.ecn,
                contents,
                segment_size: (contents.len() > size).then_some(size),
                // quinn's idea of our address belongs to the virtual world.
                src_ip: None,
            };
            match target.socket.io.try_send(&piece) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    count(&counters.sends_blocked, 1);
                    self.block(target, transmit.contents.len(), at);
                    return Err(error);
                }
                Err(_) => count(&counters.send_errors, 1),
                Ok(()) => {}
            }
            at += contents.len();
        }
        Ok(())
    }

    fn block(&self, target: &FlowTarget, len: usize, sent: usize) {
        let mut state = lock(&self.state);
        state.partial = Some((len, sent));
        // If another path was selected meanwhile, there is nothing to wait for.
        if state.paths.selected().is_some_and(|selected| selected.path == target.path) {
            state.blocked = Some(target.socket.clone());
            self.is_blocked.store(true, Release);
        }
    }

    fn unblock(&self, state: &mut State) {
        state.blocked = None;
        self.is_blocked.store(false, Release);
    }

    /// The socket that the connection's driver has to wait for.
    pub(super) fn blocked_on(&self) -> Option<Arc<BoundSocket>> {
        if !self.is_blocked.load(Acquire) {
            return None;
        }
        lock(&self.state).blocked.clone()
    }

    /// The socket that blocked is writable, or has failed, which the next write reports.
    pub(super) fn writable(&self) {
        self.unblock(&mut lock(&self.state));
    }
}

fn send_again(target: &FlowTarget, datagrams: &[Bytes], counters: &Counters) {
    for datagram in datagrams {
        if send_one(&target.socket, target.path.remote, datagram).is_err() {
            count(&counters.send_errors, 1);
        }
    }
}

/// Sends what a budget allows; a socket that blocks costs nothing of it, and QUIC will send again.
fn within_budget(counters: &Counters) -> impl FnMut(&FlowTarget, &[u8]) -> bool + '_ {
    |target, datagram| match send_one(&target.socket, target.path.remote, datagram) {
        Ok(()) => true,
        Err(_) => {
            count(&counters.send_errors, 1);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_addresses_name_flows() {
        for n in [0, 1, 77, u64::MAX] {
            assert_eq!(flow_at(virtual_address(VirtualConnectionId(n))), Some(VirtualConnectionId(n)));
        }
        assert_eq!(virtual_address(VirtualConnectionId(0x10002)).to_string(), "[fd9c:1d5e:7701:1::1:2]:1");
    }

    #[test]
    fn other_addresses_name_no_flow() {
        for address in ["[fd9c:1d5e:7701:2::1]:1", "[fd9c:1d5e:7701:1::1]:2", "10.0.0.1:1"] {
            assert_eq!(flow_at(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn only_an_id_that_we_issued_proves_that_the_peer_heard_us() {
        let flight = Bytes::from_static(&[0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
        let flow = Flow::new(VirtualConnectionId(1), &[flight]);
        flow.named(Some([9; 8]));
        assert!(flow.owns(&[1, 2, 3, 4, 5, 6, 7, 8], true));
        assert!(!flow.heard.load(Relaxed));
        assert!(!flow.owns(&[1, 2, 3, 4, 5, 6, 7, 8], false), "a short header bears only our own IDs");
        assert!(flow.owns(&[9; 8], false));
        assert!(flow.heard.load(Relaxed));
    }
}
