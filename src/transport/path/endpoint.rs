//! The session endpoint, and the task that supervises each of its connections.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    channel::oneshot,
    future::{Either, poll_fn, select},
};
use libp2p_identity::PeerId;
use quinn::{
    Connecting, Connection, ConnectionError, ConnectionId, Endpoint, EndpointConfig, crypto::HmacKey,
};

use super::{
    PathError, PathLayer, PathNotice,
    cid::{CidKey, SessionCids, while_opening},
    flow::{Flow, flow_at, virtual_address},
    pulse::{Concern, Pulse},
    shared::Shared,
    socket::SessionSocket,
};
use crate::transport::time::Delay;
use libp2p_punch_proto::{Path, event::SessionRole, wire::keys::FlightBinding};

/// Time for which a virtual connection keeps its paths after the end of its connection. In this
/// time the `CONNECTION_CLOSE` and the answers to late packets of the peer go out. RFC 9000 §10.2
/// wants three PTO; this is that for an RTT of some 300 ms.
pub(super) const LINGER: Duration = Duration::from_secs(3);
/// Delays after which a client repeats the end of its handshake, counted from the repetition
/// before. The first delay is longer than most round trips.
const REPEATS: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1_000),
    Duration::from_millis(2_000),
];
/// Reason with which a connection is closed that has lost its peer.
const NO_PATH: &[u8] = b"no path to the peer works any more";
/// quinn wants a name; the sessions' TLS pins the key instead.
const SERVER_NAME: &str = "l";

/// Starts the session endpoint.
pub(super) fn session_endpoint(
    shared: &Arc<Shared>,
    reset_key: Arc<dyn HmacKey>,
    key: CidKey,
) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::new(reset_key);
    // The fixed bit distinguishes QUIC from probes (RFC 9443 §2).
    config.grease_quic_bit(false);
    config.cid_generator(move || Box::new(SessionCids(key.clone())));
    let socket = Arc::new(SessionSocket(shared.clone()));
    Endpoint::new_with_abstract_socket(config, None, socket, shared.runtime.clone())
}

/// Hands the connections that first flights make to the tasks that wait for them, until the
/// endpoint is closed.
pub(super) async fn route_incoming(endpoint: Endpoint, shared: Arc<Shared>) {
    while let Some(incoming) = endpoint.accept().await {
        let flow = flow_at(incoming.remote_address()).and_then(|id| shared.flow(id));
        let unclaimed = match flow.and_then(|flow| flow.expected()) {
            Some(waiting) => waiting.send(incoming).err(),
            None => Some(incoming),
        };
        if let Some(incoming) = unclaimed {
            incoming.ignore();
        }
    }
}

/// Role of a new virtual connection.
pub(super) enum Attempt {
    Connect { peer: PeerId, rtt: Option<Duration>, binding: FlightBinding },
    Accept { peer: PeerId, first_flight: Vec<Bytes>, rtt: Option<Duration> },
}

impl Attempt {
    /// Returns the peer, and the part of this peer in the session.
    fn parties(&self) -> (PeerId, SessionRole) {
        match self {
            Self::Connect { peer, .. } => (*peer, SessionRole::Initiator),
            Self::Accept { peer, .. } => (*peer, SessionRole::Responder),
        }
    }
}

/// Supervises a virtual connection from its opening to the end of its lingering.
pub(super) struct Supervisor {
    pub(super) shared: Arc<Shared>,
    pub(super) layer: Weak<PathLayer>,
    pub(super) flow: Arc<Flow>,
}

impl Supervisor {
    /// Makes the attempt, and reports its single end: `Failed`, or `Closed` after `Established`.
    pub(super) async fn run(self, endpoint: Endpoint, attempt: Attempt) {
        let (peer, role) = attempt.parties();
        let result = match attempt {
            Attempt::Connect { peer, rtt, binding } => self.connect(&endpoint, peer, rtt, binding).await,
            Attempt::Accept { peer, first_flight, rtt } => {
                self.accept(&endpoint, peer, &first_flight, rtt).await
            }
        };
        // The endpoint ends with its last handle; a connection that lives needs none.
        drop(endpoint);
        let flow = self.flow.id;
        let end = match result {
            Ok(connection) => {
                let denied = self.serve(connection, peer, role).await;
                PathNotice::Closed { flow, denied }
            }
            Err(error) => PathNotice::Failed { flow, error },
        };
        self.flow.settle();
        self.shared.write().release(&self.flow);
        self.notify(end).await;
        let runtime = &self.shared.runtime;
        let mut linger = runtime.new_timer(runtime.now() + LINGER);
        poll_fn(|cx| linger.as_mut().poll(cx)).await;
        self.shared.remove(flow);
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        peer: PeerId,
        rtt: Option<Duration>,
        binding: FlightBinding,
    ) -> Result<Connection, PathError> {
        let mut config = self.shared.configs.client(peer, rtt);
        config.initial_dst_cid_provider(Arc::new(move || {
            ConnectionId::new(&binding.connection_id(rand::random()))
        }));
        let address = virtual_address(self.flow.id);
        let (connecting, cid) =
            while_opening(self.flow.id, || endpoint.connect_with(config, address, SERVER_NAME));
        self.flow.named(cid);
        self.shared.expect_server(self.flow.id);
        let mut connecting = connecting?;
        {
            let sent = pin!(self.flow.sent.notified());
            if let Either::Right((ended, _)) = self.unless_closed(select(sent, &mut connecting)).await? {
                return Ok(ended?);
            }
        }
        let datagrams = self.first_flight(&connecting);
        let notice = PathNotice::FirstFlight { flow: self.flow.id, datagrams };
        self.unless_closed(self.notify(notice)).await?;
        Ok(self.unless_closed(connecting).await??)
    }

    /// Returns the whole first flight, once its first datagram was sent.
    ///
    /// quinn's connection driver makes the whole ClientHello in one poll, and sends it datagram by
    /// datagram or in one go; nothing marks the last datagram. But the driver holds the
    /// connection's lock throughout that poll. So a task that gets the lock after the first
    /// datagram comes after the last datagram.
    fn first_flight(&self, connecting: &Connecting) -> Vec<Bytes> {
        let _locked_once = connecting.remote_address();
        self.flow.capture()
    }

    async fn accept(
        &self,
        endpoint: &Endpoint,
        peer: PeerId,
        first_flight: &[Bytes],
        rtt: Option<Duration>,
    ) -> Result<Connection, PathError> {
        let config = self.shared.configs.server(peer, rtt);
        // quinn looks at first flights only if it has a configuration. Any will do: each virtual
        // connection is accepted with its own.
        self.shared.serves.get_or_init(|| endpoint.set_server_config(Some((*config).clone())));
        let (sender, incoming) = oneshot::channel();
        self.flow.expect(sender);
        for datagram in first_flight {
            self.shared.queue.inject(virtual_address(self.flow.id), datagram);
        }
        self.shared.queue.wake();
        // An invalid flight makes no connection. Then only the end of the driver ends the wait.
        let alone = pin!(self.shared.notices.closed());
        let Either::Left((Ok(incoming), _)) = self.unless_closed(select(incoming, alone)).await? else {
            return Err(PathError::Closed);
        };
        let (connecting, cid) = while_opening(self.flow.id, || incoming.accept_with(config));
        self.flow.named(cid);
        Ok(self.unless_closed(connecting?).await??)
    }

    /// Hands the connection over and waits until its guard is dropped. Returns true if the swarm of
    /// either side denied it.
    async fn serve(&self, connection: Connection, peer: PeerId, role: SessionRole) -> bool {
        let Some(layer) = self.layer.upgrade() else { return true };
        let guard = FlowGuard { flow: self.flow.clone(), reported: None, _layer: layer };
        let (flow, held) = (self.flow.id, connection.clone());
        let notice = PathNotice::Established { flow, peer, role, connection: held, guard };
        self.notify(notice).await;
        let released = pin!(self.unless_closed(self.flow.released.notified()));
        let care = pin!(async {
            self.repeat().await;
            self.listen(&connection).await
        });
        let released = match select(released, care).await {
            Either::Left((released, _)) => released,
            Either::Right((never, _)) => match never {},
        };
        if released.is_err() {
            connection.close(0u32.into(), NO_PATH);
            self.flow.released.notified().await;
        }
        !self.flow.is_taken() || is_denied_by_remote(&connection)
    }

    /// Repeats the end of the client's handshake until the server confirms it. quinn takes the time
    /// since the first flight for the round-trip time. The flight waited until a path was found, so
    /// that time is too long, and quinn would notice a lost datagram only after twice that time or
    /// more.
    async fn repeat(&self) {
        for after in REPEATS {
            Delay::new(&*self.shared.runtime, after).await;
            if !self.flow.repeat(&self.shared.counters) {
                return;
            }
        }
        self.flow.settle();
    }

    /// Reports when the connection sends and hears nothing, and when a peer that was talking
    /// pauses. quinn would wait for its idle time-out. Meanwhile another path may be found, or the
    /// same path behind another mapping of a NAT.
    async fn listen(&self, connection: &Connection) -> Infallible {
        let runtime = &self.shared.runtime;
        let mut pulse = Pulse::new(runtime.now());
        loop {
            Delay::new(&**runtime, pulse.next_look(runtime.now())).await;
            let stats = connection.stats();
            let counts = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
            let flow = self.flow.id;
            match pulse.look(counts, stats.path.rtt, runtime.now()) {
                Some(Concern::Silent) => self.notify(PathNotice::Silent { flow }).await,
                Some(Concern::Quiet) => self.notify(PathNotice::Quiet { flow }).await,
                None => {}
            }
        }
    }

    async fn unless_closed<F: Future>(&self, future: F) -> Result<F::Output, PathError> {
        match select(pin!(self.flow.close.notified()), pin!(future)).await {
            Either::Left(_) => Err(PathError::Closed),
            Either::Right((output, _)) => Ok(output),
        }
    }

    async fn notify(&self, notice: PathNotice) {
        // The notice has no receiver once the driver is gone; its content is then dropped, and
        // ends.
        let _ = self.shared.notices.send(notice).await;
    }
}

/// Returns true if the remote closed the connection and never sent a byte on a stream. A swarm that
/// takes a connection opens streams, and answers those that we open.
fn is_denied_by_remote(connection: &Connection) -> bool {
    matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(_)))
        && connection.stats().frame_rx.stream == 0
}

/// Claim of a connection on its virtual connection.
///
/// The holder of the [`quinn::Connection`] of [`PathNotice::Established`] holds this claim too; the
/// virtual connection ends when the claim is dropped.
#[derive(Debug)]
pub(crate) struct FlowGuard {
    flow: Arc<Flow>,
    reported: Option<SocketAddr>,
    /// Packets reach the connection only through the layer.
    _layer: Arc<PathLayer>,
}

impl FlowGuard {
    /// To look where the connection goes, without holding it.
    pub(crate) fn view(&self) -> FlowView {
        FlowView(self.flow.clone())
    }

    /// Returns the path that carries the connection: the selected path, or else the most recently
    /// permitted path.
    pub(crate) fn path(&self) -> Option<Path> {
        self.flow.best()
    }

    /// The peer's real address on that path.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.path().map(|path| path.remote)
    }

    /// The swarm took the connection.
    pub(crate) fn take(&self) {
        self.flow.take();
    }

    /// Records that the swarm knows this address of the peer.
    pub(crate) fn told(&mut self, remote: SocketAddr) {
        self.reported = Some(remote);
    }

    /// The peer's real address, first when it is known and then whenever it has changed.
    pub(crate) fn poll_remote(&mut self, cx: &mut Context<'_>) -> Poll<SocketAddr> {
        self.flow.moved.register(cx.waker());
        match self.remote() {
            Some(remote) if self.reported != Some(remote) => {
                self.reported = Some(remote);
                Poll::Ready(remote)
            }
            _ => Poll::Pending,
        }
    }
}

/// Knows where a virtual connection goes, and does not keep it open.
#[derive(Debug, Clone)]
pub(crate) struct FlowView(Arc<Flow>);

impl FlowView {
    /// Returns the path that carries the connection.
    pub(crate) fn path(&self) -> Option<Path> {
        self.0.best()
    }

    /// The peer's real address on the path that carries the connection.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.path().map(|path| path.remote)
    }
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        self.flow.released.notify_one();
    }
}
