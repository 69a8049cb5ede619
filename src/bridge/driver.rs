//! The task that owns the [`Endpoint`].

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;
use quinn::{AsyncTimer, Runtime};
use tokio_util::sync::PollSender;

use super::{
    dials::Dials,
    events,
    inbox::{Inbox, Input},
    reports::Reports,
};
use crate::{
    behaviour::{
        event::{Event, SessionEvent},
        frames::{FrameSender, Unsent},
        link,
    },
    carrier::ConnectionNumber,
    contacts::Contacts,
    counters::Counters,
    io::Change,
    offers::{Offer, Offers},
    transport::{
        Connection,
        live::{AskedBy, ConnectionTable},
        notice::{InboundSession, Notice},
        path::{PathLayer, PathNotice},
        ready::Ready,
    },
};
use libp2p_punch_proto::{
    ControlStreamId, Path,
    endpoint::Endpoint,
    event::SessionRole,
    wire::frame::{Frame, RejectReason},
};

/// Inputs handled before other tasks get a turn.
const BUDGET: usize = 1024;

/// The driver's ends of the channels to the behaviour and to the transport.
pub(super) struct Outputs {
    pub(super) news: Reports,
    pub(super) inbound: PollSender<InboundSession>,
}

/// A libp2p connection with a control stream.
struct Link {
    peer: PeerId,
    connection: Option<ConnectionNumber>,
    /// `None` once the control stream has ended.
    frames: Option<FrameSender>,
}

/// State that the driver shares with the transport.
pub(super) struct Shared {
    pub(super) path: Arc<PathLayer>,
    pub(super) connections: Arc<ConnectionTable>,
    pub(super) offers: Offers,
    pub(super) contacts: Contacts,
    pub(super) ready: Ready,
}

/// Runs the endpoint until the transport and the behaviour are gone.
pub(super) struct Driver {
    endpoint: Endpoint,
    shared: Shared,
    runtime: Arc<dyn Runtime>,
    inbox: Inbox,
    outputs: Outputs,
    counters: Arc<Mutex<Counters>>,
    links: BTreeMap<ControlStreamId, Link>,
    dials: Dials,
    inbound: VecDeque<InboundSession>,
    timer: Option<Pin<Box<dyn AsyncTimer>>>,
}

impl Driver {
    pub(super) fn new(
        endpoint: Endpoint,
        shared: Shared,
        runtime: Arc<dyn Runtime>,
        inbox: Inbox,
        outputs: Outputs,
        counters: Arc<Mutex<Counters>>,
        may_relay: bool,
    ) -> Self {
        Self {
            endpoint,
            shared,
            runtime,
            inbox,
            outputs,
            counters,
            links: BTreeMap::new(),
            dials: Dials::new(may_relay),
            inbound: VecDeque::new(),
            timer: None,
        }
    }

    /// Takes one input of any kind. Returns false if there is none, or if the swarm lags too far
    /// behind; `Err` if all users of the driver are gone.
    fn step(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Gone> {
        // A sender of inputs waits, or drops inputs that may be lost, as its channel fills up.
        self.outputs.news.poll(cx);
        if self.outputs.news.is_full() {
            return Ok(false);
        }
        match self.inbox.poll_next(cx) {
            Poll::Ready(Some(input)) => {
                self.handle(input, now);
                Ok(true)
            }
            Poll::Ready(None) => Err(Gone),
            Poll::Pending => Ok(false),
        }
    }

    fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Path(notice) => self.handle_path(notice, now),
            Input::Transport(notice) => self.handle_notice(notice, now),
            Input::Swarm(input) => self.handle_swarm(input, now),
            Input::Interfaces(change) => self.handle_interfaces(change, now),
        }
    }

    fn handle_path(&mut self, notice: PathNotice, now: Instant) {
        match notice {
            PathNotice::Probe { path, payload } => self.endpoint.handle_datagram(path, &payload, now),
            PathNotice::FirstFlight { flow, datagrams } => {
                self.endpoint.handle_first_flight(flow, datagrams, now)
            }
            PathNotice::Established { flow, peer, role, connection, guard } => {
                let path = guard.path();
                let kind = path.and_then(|path| self.endpoint.kind_of(flow, path));
                let (Some(path), Some(kind)) = (path, kind) else {
                    // The session was given up meanwhile. Dropping the guard closes the connection.
                    return self.endpoint.handle_closed(flow, now);
                };
                let asked_by = match role {
                    SessionRole::Responder if !self.dials.wants(&peer) => AskedBy::Remote,
                    _ => AskedBy::Us,
                };
                let connections = &self.shared.connections;
                let connection = match Connection::of_session(connections, connection, guard, kind, asked_by)
                {
                    Ok(connection) => connection,
                    Err(error) => {
                        tracing::debug!(%peer, %error, "connection of a session is not taken");
                        return self.endpoint.handle_closed(flow, now);
                    }
                };
                self.endpoint.handle_established(flow, path, now);
                let untaken = self.dials.succeed(peer, connection);
                if let Some(waiting) = self.dials.waiting(&peer) {
                    // A session answers one dial only.
                    self.connect_for(&waiting, now);
                }
                let Some(connection) = untaken else { return };
                let Path { socket, remote } = path;
                if role == SessionRole::Initiator {
                    self.shared.ready.keep(peer, remote, connection);
                    self.outputs.news.collect(peer, remote);
                } else {
                    self.inbound.push_back(InboundSession { connection, peer, socket, remote });
                }
            }
            PathNotice::Failed { flow, error } => {
                tracing::debug!(?flow, %error, "handshake of a session failed");
                self.endpoint.handle_closed(flow, now);
            }
            PathNotice::Silent { flow } => self.endpoint.handle_silent(flow, now),
            PathNotice::Quiet { flow } => self.endpoint.handle_quiet(flow, now),
            PathNotice::Sockets { pool, sockets } => self.endpoint.handle_sockets_opened(pool, &sockets, now),
            PathNotice::Closed { flow, denied: true } => self.endpoint.handle_denied(flow, now),
            PathNotice::Closed { flow, denied: false } => self.endpoint.handle_closed(flow, now),
        }
    }

    fn handle_notice(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::SocketUp { socket, local, accepts } => {
                self.endpoint.handle_socket_up(socket, local, accepts, now)
            }
            Notice::SocketDown { socket } => self.endpoint.handle_socket_down(socket, now),
            Notice::Unanswered { peer } => self.endpoint.coordinator_timed_out(peer, now),
            Notice::Lost { peer, dialed } => self.outputs.news.lost(peer, dialed),
            Notice::Dial(offer) => self.begin(&offer, now),
            Notice::Await { offer, reply } => {
                if self.shared.offers.is_open(&offer) && self.dials.wait(&offer, reply) {
                    self.connect_for(&offer, now);
                }
            }
            Notice::Join { peer, reply } => {
                if self.shared.offers.has_any_of(peer) {
                    self.dials.join(peer, reply);
                }
            }
        }
    }

    /// The swarm dials a peer. The dial may have ended before this is known.
    fn begin(&mut self, offer: &Offer, now: Instant) {
        if self.shared.offers.is_open(offer) && self.dials.begin(offer) {
            self.connect_for(offer, now);
        }
    }

    fn connect_for(&mut self, offer: &Offer, now: Instant) {
        if let Err(reason) = self.endpoint.connect(offer.peer(), now) {
            self.dials.refuse(offer, reason);
        }
    }

    fn handle_swarm(&mut self, input: link::Input, now: Instant) {
        use link::Input;

        match input {
            Input::Speaks { link, peer, connection, frames } => {
                self.links.insert(link, Link { peer, connection, frames: Some(frames) });
                self.link_up(link, now);
            }
            Input::Moved { link } => self.link_up(link, now),
            Input::Received { link, frame } => {
                if let Frame::PunchMeNow(punch) = &frame {
                    let address = punch.observed.map(|observed| observed.ip());
                    let under_way = self.endpoint.responding();
                    let has_room = self.shared.connections.has_room(address, under_way);
                    self.endpoint.handle_room(has_room, now);
                }
                self.endpoint.handle_frame(link, frame, now);
            }
            Input::Silent { link } => {
                if let Some(known) = self.links.get_mut(&link) {
                    known.frames = None;
                    self.endpoint.handle_link_down(link, now);
                }
            }
            Input::Closed { link } => {
                if self.links.remove(&link).is_some_and(|known| known.frames.is_some()) {
                    self.endpoint.handle_link_down(link, now);
                }
            }
            Input::AddCoordinator(peer) => self.endpoint.add_coordinator(peer, now),
            Input::RemoveCoordinator(peer) => self.endpoint.remove_coordinator(&peer, now),
            Input::CoordinatorsOf { peer, coordinators } => {
                self.endpoint.set_coordinators_of(peer, coordinators, now)
            }
            Input::Reachable(reachable) => self.endpoint.set_publicly_reachable(reachable, now),
            Input::ExternalAddresses(addresses) => self.endpoint.set_external_addresses(addresses, now),
            Input::Upgrade(peer) => match self.endpoint.upgrade(peer, now) {
                Ok(()) => self.dials.upgrade(peer),
                Err(reason) => {
                    tracing::debug!(%peer, %reason, "no attempt to upgrade");
                    self.outputs.news.not_upgrading(peer);
                }
            },
            Input::Release(peer) => self.dials.release(&peer),
            Input::Dialing(offer) => self.begin(&offer, now),
            Input::DialEnded(offer) => {
                if self.dials.remove(&offer) {
                    self.endpoint.cancel(&offer.peer(), now);
                }
            }
            Input::Discard { peer, remote } => self.shared.ready.discard(&peer, remote),
        }
    }

    /// Gives the endpoint the path that carries a control stream now.
    fn link_up(&mut self, link: ControlStreamId, now: Instant) {
        let Some(Link { peer, connection, frames: Some(_) }) = self.links.get(&link) else { return };
        let path = connection.and_then(|connection| self.shared.connections.path_of(connection));
        let (remote, socket) = path.map(|path| (path.remote, path.socket)).unzip();
        self.endpoint.handle_link_up(link, *peer, remote, socket, now);
    }

    fn handle_interfaces(&mut self, change: Change, now: Instant) {
        for address in change.down {
            self.endpoint.handle_interface_down(address, now);
        }
        if !change.up.is_empty() {
            self.outputs.news.interface_up();
        }
        for (address, prefix_len) in change.up {
            self.endpoint.handle_interface_up(address, prefix_len, now);
        }
    }

    /// Carries out the decisions of the endpoint: probes before the QUIC flights that follow them.
    fn drain(&mut self, now: Instant) {
        let mut events = Vec::new();
        loop {
            while let Some(transmit) = self.endpoint.poll_transmit() {
                self.shared.contacts.note(transmit.path.remote.ip());
                self.shared.path.send_probe(transmit.path, &transmit.payload);
            }
            // Translated while the sockets are there that they name.
            while let Some(event) = self.endpoint.poll_event() {
                events.push(events::public(event, |socket| self.shared.path.local_addr(socket)));
            }
            while let Some(command) = self.endpoint.poll_command() {
                tracing::trace!(?command, "path layer");
                self.shared.path.execute(command);
            }
            // A frame that cannot be sent is another input.
            let Some((link, frame)) = self.endpoint.poll_frame() else { break };
            self.send_frame(link, frame, now);
        }
        for event in events {
            self.report(event);
        }
    }

    fn send_frame(&mut self, link: ControlStreamId, frame: Frame, now: Instant) {
        let Some(known) = self.links.get_mut(&link) else { return };
        let Some(frames) = &mut known.frames else { return };
        match frames.send(frame) {
            Ok(()) => {}
            // The peer is slow. The request is as good as refused by it, and its initiator may ask
            // again.
            Err(Unsent::RequestFull { session, round }) => {
                let reason = RejectReason::RateLimited;
                let retry_after = Duration::ZERO;
                let refused = Frame::PunchRejected { session, round, reason, retry_after };
                self.endpoint.handle_frame(link, refused, now);
            }
            Err(Unsent::Full | Unsent::Closed) => {
                // A peer that does not read its control stream cannot be worked with.
                tracing::debug!(peer = %known.peer, "control stream is stuck or gone");
                known.frames = None;
                self.endpoint.handle_link_down(link, now);
            }
        }
    }

    fn report(&mut self, event: Event) {
        tracing::trace!(?event, "endpoint");
        let failure = match event {
            Event::Session(SessionEvent::Failed { peer, reason, .. }) => Some((peer, reason)),
            _ => None,
        };
        if let Event::Session(SessionEvent::PathLost { peer, role: SessionRole::Initiator }) = event {
            self.outputs.news.lost(peer, None);
        }
        self.outputs.news.event(event);
        if let Some((peer, reason)) = failure {
            self.dials.end(peer, reason);
        }
    }

    fn publish_counters(&self) {
        let counters = Counters {
            protocol: self.endpoint.counters(),
            paths: self.shared.path.counters(),
            events_dropped: self.outputs.news.dropped(),
            // Counted by the behaviour.
            frame_bytes_queued: 0,
            control_bytes_sent: 0,
            control_bytes_received: 0,
        };
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>) {
        while !self.inbound.is_empty() && matches!(self.outputs.inbound.poll_reserve(cx), Poll::Ready(Ok(())))
        {
            if let Some(session) = self.inbound.pop_front() {
                let _ = self.outputs.inbound.send_item(session);
            }
        }
    }

    /// Arms the timer for the endpoint's next deadline; true if that has passed already.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.endpoint.poll_timeout() else { return false };
        let timer = self.timer.get_or_insert_with(|| self.runtime.new_timer(deadline));
        timer.as_mut().reset(deadline);
        timer.as_mut().poll(cx).is_ready()
    }
}

/// The transport or the behaviour was dropped.
struct Gone;

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        for _ in 0..BUDGET {
            let now = this.runtime.now();
            let progressed = match this.step(cx, now) {
                Ok(progressed) => progressed,
                Err(Gone) => return Poll::Ready(()),
            };
            let waits = this.outputs.news.is_full();
            let due = this.poll_timer(cx);
            if due {
                this.endpoint.handle_timeout(now);
            }
            this.drain(now);
            this.outputs.news.poll(cx);
            this.poll_inbound(cx);
            // If there is room meanwhile, the inputs have not been polled, and no waker is
            // registered.
            let goes_on = waits && !this.outputs.news.is_full();
            if !progressed && !due && !goes_on && !this.poll_timer(cx) {
                this.publish_counters();
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
