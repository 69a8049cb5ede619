//! Handler of one connection: moves frames between control streams and the driver.
//!
//! Handlers run in the task of their connection and send to the driver directly. A swarm that is
//! busy in its user's code therefore does not delay a punch.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{Ready, ready};
use libp2p_core::upgrade::{InboundUpgrade, ReadyUpgrade, UpgradeInfo};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionHandler, ConnectionHandlerEvent, StreamProtocol, StreamUpgradeError, SubstreamProtocol,
    handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound, ProtocolsChange},
};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::{
    COORDINATOR_PROTOCOL_NAME, PROTOCOL_NAME,
    control::{Control, ControlTraffic},
    frames::{FrameReceiver, QueuedBytes, frame_queue},
    keep_alive::KeepAlive,
    link::Input,
};
use crate::{carrier::carrier_of, offers::Offer};
use libp2p_punch_proto::{
    ControlStreamId,
    wire::frame::{Frame, Registration},
};

/// The place of the stream that we opened.
const OURS: usize = 0;
/// The place of the stream that the peer opened.
const PEERS: usize = 1;
/// A control stream that broke is opened again so often.
const MAX_REOPENS: u8 = 3;

/// Time that a peer has to ask a coordinator or to register with it, from the opening of its
/// control stream.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for which a request keeps the connection, at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a control stream may take nothing while frames wait for it. After that the peer,
/// which does not read, is given up.
pub(crate) const STUCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Message from the behaviour to a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromBehaviour {
    /// The peer is, or is no longer, a coordinator that we want to stay connected to.
    Coordinator(bool),
    /// The connection is, or is no longer, to stay without users: a relayed connection to the same
    /// peer is to be closed soon.
    KeepAlive(bool),
    /// This peer coordinates for others, or does not.
    Coordinates(bool),
}

/// A message of a handler to the behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToBehaviour {
    /// The remote coordinates for others, or no longer does, according to identify.
    PeerCoordinates(bool),
}

/// The inbound side of the control protocol. A coordinator accepts it by a second name, too.
#[derive(Debug, Clone, Copy)]
pub struct ControlProtocol {
    coordinates: bool,
}

impl UpgradeInfo for ControlProtocol {
    type Info = StreamProtocol;
    type InfoIter = Vec<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        let coordinator = self.coordinates.then_some(COORDINATOR_PROTOCOL_NAME);
        [PROTOCOL_NAME].into_iter().chain(coordinator).collect()
    }
}

impl InboundUpgrade<libp2p_swarm::Stream> for ControlProtocol {
    type Output = libp2p_swarm::Stream;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: libp2p_swarm::Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

/// Handler of the control protocol on one connection.
pub struct Handler {
    link: ControlStreamId,
    peer: PeerId,
    /// A relay carries the connection.
    is_relayed: bool,
    runtime: Arc<dyn quinn::Runtime>,
    driver: PollSender<Input>,
    keep_alive: KeepAlive,
    /// We opened the connection, and so open the control stream.
    opens: bool,
    reopens: u8,
    /// Our stream and the peer's: there are two when both sides believe that they dialed. Our
    /// frames go out on the first.
    streams: [Option<Control>; 2],
    /// A further stream of the peer, until the end of the stream before is known or excluded.
    further: Option<libp2p_swarm::Stream>,
    frames: Option<FrameReceiver>,
    queued: QueuedBytes,
    traffic: ControlTraffic,
    /// The bytes that the outgoing stream had taken when it took some last, and the time at which
    /// it is given up.
    stuck: Option<Stuck>,
    /// For the driver, before anything that is read from the stream.
    pending: VecDeque<Input>,
    /// We coordinate for others.
    coordinates: bool,
    /// For the behaviour.
    news: VecDeque<ToBehaviour>,
    /// The generation and the lifetime of the `REGISTER` that the peer has not answered.
    asked: Option<(u64, Duration)>,
    /// The offer whose address the swarm dialed.
    offer: Option<Arc<Offer>>,
}

/// An outgoing stream that takes nothing.
struct Stuck {
    written: u64,
    timer: Pin<Box<dyn quinn::AsyncTimer>>,
}

/// State that all handlers of a node share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) driver: mpsc::Sender<Input>,
    pub(super) runtime: Arc<dyn quinn::Runtime>,
    pub(super) queued: QueuedBytes,
    pub(super) traffic: ControlTraffic,
}

impl Handler {
    pub(super) fn new(
        link: ControlStreamId,
        peer: PeerId,
        opens: bool,
        is_coordinator: bool,
        shared: Shared,
    ) -> Self {
        let Shared { driver, runtime, queued, traffic } = shared;
        Self {
            link,
            peer,
            is_relayed: false,
            keep_alive: KeepAlive::new(runtime.clone(), is_coordinator),
            runtime,
            driver: PollSender::new(driver),
            queued,
            traffic,
            further: None,
            stuck: None,
            opens,
            reopens: 0,
            streams: [None, None],
            frames: None,
            pending: VecDeque::new(),
            coordinates: false,
            news: VecDeque::new(),
            asked: None,
            offer: None,
        }
    }

    /// Keeps the connection while relayed connections to the same peer drain.
    pub(super) fn set_draining(&mut self, is_draining: bool) {
        self.keep_alive.is_draining = is_draining;
    }

    /// Sets whether we coordinate for others.
    pub(super) fn coordinates(self, coordinates: bool) -> Self {
        Self { coordinates, ..self }
    }

    /// A relay carries the connection: none of our sockets does directly.
    pub(super) fn relayed(self, is_relayed: bool) -> Self {
        Self { is_relayed, ..self }
    }

    /// The swarm knows the connection by the address of this offer, if of any.
    pub(super) fn dialed_at(self, offer: Option<Arc<Offer>>) -> Self {
        Self { offer, ..self }
    }

    fn add(&mut self, slot: usize, mut stream: libp2p_swarm::Stream) {
        if self.frames.is_none() {
            let connection = if self.is_relayed { None } else { carrier_of(&mut stream) };
            let (frames, receiver) = frame_queue(self.queued.clone());
            self.frames = Some(receiver);
            let (link, peer) = (self.link, self.peer);
            self.pending.push_back(Input::Speaks { link, peer, connection, frames });
        }
        self.streams[slot] = Some(Control::new(stream, self.traffic.clone()));
    }

    fn drop_stream(&mut self, slot: usize, why: &dyn std::fmt::Display) {
        tracing::debug!(peer = %self.peer, %why, "control stream ended");
        self.streams[slot] = None;
        self.stuck = None;
        if self.streams.iter().all(Option::is_none) {
            self.frames = None;
            self.pending.push_back(Input::Silent { link: self.link });
            if slot == OURS && self.reopens < MAX_REOPENS {
                self.reopens += 1;
                self.opens = true;
            }
        }
    }

    /// The peer's first, so that ours, which we may open again, goes last.
    fn drop_streams(&mut self) {
        for slot in [PEERS, OURS] {
            if self.streams[slot].is_some() {
                self.drop_stream(slot, &"given up by the driver");
            }
        }
    }

    /// A registration that we granted keeps the connection while it is in force. Our own keeps it
    /// until we end it.
    fn sent(&mut self, frame: &Frame) {
        match frame {
            Frame::Register { registration, .. } if registration.lifetime.is_zero() => {
                self.asked = None;
                self.keep_alive.set_own_registration(Duration::ZERO);
            }
            Frame::Register { registration: Registration { generation, lifetime, .. }, .. } => {
                self.asked = Some((*generation, *lifetime));
            }
            Frame::Registered { lifetime, .. } => self.keep_alive.set_peers_registration(*lifetime),
            _ => {}
        }
    }

    /// Keeps the connection of a peer that asks this coordinator, although the peer has no
    /// registration on it.
    fn keep_for_question(&mut self, time: Duration) {
        if self.coordinates {
            self.keep_alive.asked_for(time);
        }
    }

    /// Keeps the connection for an answer to our own request, and no longer than for the request:
    /// otherwise peers could keep connections that we do not want.
    fn received(&mut self, frame: &Frame) {
        if let Frame::PunchMeNow(punch) = frame {
            self.keep_for_question(punch.request.lifetime.min(ANSWER_TIMEOUT));
        }
        if let Frame::Registered { generation, lifetime, .. } = frame
            && let Some((_, asked)) = self.asked.take_if(|(asked, _)| asked == generation)
        {
            self.keep_alive.set_own_registration(asked.min(*lifetime));
        }
        // The driver checks who signed it. The connection may close a little early because of one
        // that is wrong, as it may whenever its peer closes it.
        if let Frame::Register { registration: Registration { lifetime, .. }, .. } = frame
            && lifetime.is_zero()
        {
            self.keep_alive.set_peers_registration(Duration::ZERO);
        }
    }

    fn poll_driver(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.driver.poll_reserve(cx) {
                Poll::Ready(Ok(())) => {}
                // The driver is gone, and with it the node.
                Poll::Ready(Err(_)) | Poll::Pending => return Poll::Pending,
            }
            let Some(input) = self.pending.pop_front().or_else(|| self.poll_streams(cx)) else {
                // Other connections wait for a place in the channel.
                self.driver.abort_send();
                return Poll::Pending;
            };
            let _ = self.driver.send_item(input);
        }
    }

    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Option<Input> {
        for slot in 0..self.streams.len() {
            let Some(control) = &mut self.streams[slot] else { continue };
            match control.poll_frame(cx) {
                Poll::Ready(Ok(frame)) => {
                    self.received(&frame);
                    return Some(Input::Received { link: self.link, frame });
                }
                Poll::Ready(Err(error)) => {
                    self.drop_stream(slot, &error);
                    if let Some(input) = self.pending.pop_front() {
                        return Some(input);
                    }
                }
                Poll::Pending if slot == PEERS => {
                    // The protocol gives each side one stream. Further streams of the peer are
                    // reset.
                    if self.further.take().is_some() {
                        tracing::debug!(peer = %self.peer, "further control stream refused");
                    }
                }
                Poll::Pending => {}
            }
        }
        if self.streams[PEERS].is_none()
            && let Some(stream) = self.further.take()
        {
            self.add(PEERS, stream);
            return self.poll_streams(cx).or_else(|| self.pending.pop_front());
        }
        None
    }

    fn poll_outgoing(&mut self, cx: &mut Context<'_>) {
        if self.frames.as_ref().is_some_and(|frames| frames.poll_closed(cx)) {
            // The driver gave the control stream up. The peer must learn of that, or it keeps
            // sending without a receiver.
            return self.drop_streams();
        }
        self.poll_writes(cx);
        let slot = self.streams.iter().position(Option::is_some);
        let waits = slot.and_then(|slot| Some((slot, self.streams[slot].as_ref()?.waits_after()?)));
        let Some((slot, written)) = waits else {
            self.stuck = None;
            return;
        };
        let stuck = self.stuck.take().filter(|stuck| stuck.written == written);
        let mut stuck = stuck.unwrap_or_else(|| {
            let timer = self.runtime.new_timer(self.runtime.now() + STUCK_TIMEOUT);
            Stuck { written, timer }
        });
        if stuck.timer.as_mut().poll(cx).is_ready() {
            self.drop_stream(slot, &"the peer does not read");
        } else {
            self.stuck = Some(stuck);
        }
    }

    fn poll_writes(&mut self, cx: &mut Context<'_>) {
        while let Some(slot) = self.streams.iter().position(Option::is_some) {
            let Some(control) = &mut self.streams[slot] else { return };
            let has_room = control.is_writable();
            if has_room {
                match self.frames.as_mut().map(|frames| frames.poll_next(cx)) {
                    Some(Poll::Ready(Some(frame))) => {
                        control.push(&frame);
                        self.sent(&frame);
                        continue;
                    }
                    // The driver has closed the queue: seen above.
                    Some(Poll::Ready(None) | Poll::Pending) | None => {}
                }
            }
            match control.poll_flush(cx) {
                Poll::Ready(Err(error)) => self.drop_stream(slot, &error),
                // The queue was not polled: no waker is registered for the frames in it.
                Poll::Ready(Ok(())) if !has_room => {}
                Poll::Ready(Ok(())) | Poll::Pending => return,
            }
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = FromBehaviour;
    type ToBehaviour = ToBehaviour;
    type InboundProtocol = ControlProtocol;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ControlProtocol { coordinates: self.coordinates }, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive.is_needed()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        if std::mem::take(&mut self.opens) {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL_NAME), ()),
            });
        }
        if let Some(news) = self.news.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(news));
        }
        self.poll_outgoing(cx);
        // Never ready: all that comes in goes to the driver.
        let _ = self.poll_driver(cx);
        self.keep_alive.poll(cx);
        if self.opens {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: FromBehaviour) {
        match event {
            FromBehaviour::Coordinator(is) => self.keep_alive.is_coordinator = is,
            FromBehaviour::KeepAlive(is) => self.set_draining(is),
            FromBehaviour::Coordinates(coordinates) => self.coordinates = coordinates,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => {
                self.add(OURS, protocol)
            }
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.keep_for_question(QUESTION_TIMEOUT);
                match self.streams[PEERS] {
                    None => self.add(PEERS, protocol),
                    // A third stream replaces the second: a peer can only use the last one that it
                    // opened.
                    Some(_) => self.further = Some(protocol),
                }
            }
            ConnectionEvent::DialUpgradeError(error) => match error.error {
                StreamUpgradeError::NegotiationFailed => {
                    tracing::debug!(peer = %self.peer, "peer does not speak {PROTOCOL_NAME}");
                }
                error if self.reopens < MAX_REOPENS => {
                    tracing::debug!(peer = %self.peer, %error, "control stream failed, opening it again");
                    self.reopens += 1;
                    self.opens = true;
                }
                error => tracing::warn!(peer = %self.peer, %error, "no control stream"),
            },
            // libp2p-kad notes the dialed address once it knows the protocols of the peer, and
            // replaces it when it changes.
            ConnectionEvent::RemoteProtocolsChange(change) => {
                let (mut names, coordinates): (Box<dyn Iterator<Item = &StreamProtocol>>, _) = match change {
                    ProtocolsChange::Added(names) => (Box::new(names), true),
                    ProtocolsChange::Removed(names) => (Box::new(names), false),
                };
                if names.any(|name| *name == COORDINATOR_PROTOCOL_NAME) {
                    self.news.push_back(ToBehaviour::PeerCoordinates(coordinates));
                }
                if let Some(offer) = &self.offer {
                    offer.repeat_address();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use libp2p_identity::Keypair;
    use libp2p_punch_proto::rate_limit::Rate;
    use quinn::TokioRuntime;

    use super::*;
    use crate::config::Disclosure;

    const LIFETIME: Duration = Duration::from_secs(300);

    fn handler() -> Handler {
        let (driver, _) = mpsc::channel(1);
        let shared = Shared {
            driver,
            runtime: Arc::new(TokioRuntime),
            queued: QueuedBytes::default(),
            traffic: ControlTraffic::default(),
        };
        Handler::new(ControlStreamId(1), PeerId::random(), false, false, shared)
    }

    fn register(generation: u64) -> Frame {
        register_for(generation, LIFETIME)
    }

    fn register_for(generation: u64, lifetime: Duration) -> Frame {
        let keypair = Keypair::generate_ed25519();
        let signed = Registration::sign(&keypair, generation, lifetime, [7; 32], &[], Bytes::new());
        Frame::Register { registration: signed.unwrap(), disclosure: Disclosure::ToAll }
    }

    fn registered(generation: u64, lifetime: Duration) -> Frame {
        let allowance = Rate { burst: 20, interval: Duration::from_millis(10) };
        Frame::Registered { generation, lifetime, allowance }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_answer_to_a_registration_keeps_the_connection_and_only_as_long_as_was_asked() {
        let mut handler = handler();
        handler.received(&registered(1, LIFETIME));
        assert!(!handler.connection_keep_alive(), "nobody asked");
        handler.sent(&register(2));
        handler.received(&registered(1, LIFETIME));
        assert!(!handler.connection_keep_alive(), "another one was asked for");
        handler.received(&registered(2, 100 * LIFETIME));
        assert!(handler.connection_keep_alive());
        tokio::time::sleep(LIFETIME - Duration::from_secs(1)).await;
        assert!(handler.connection_keep_alive());
        handler.received(&registered(2, LIFETIME));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!handler.connection_keep_alive(), "an answer counts once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_keeps_the_connection_of_a_peer_that_asks_and_nobody_else_does() {
        let [coordinator, other] = [true, false].map(|coordinates| handler().coordinates(coordinates));
        for (mut handler, keeps) in [(coordinator, true), (other, false)] {
            handler.keep_for_question(QUESTION_TIMEOUT);
            assert_eq!(handler.connection_keep_alive(), keeps);
            tokio::time::sleep(QUESTION_TIMEOUT).await;
            assert!(!handler.connection_keep_alive());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_keeps_the_connection_of_a_registration_that_it_granted() {
        let mut handler = handler();
        handler.received(&register(1));
        assert!(!handler.connection_keep_alive());
        handler.sent(&registered(1, LIFETIME));
        assert!(handler.connection_keep_alive());
    }

    #[tokio::test(start_paused = true)]
    async fn neither_side_keeps_the_connection_of_a_registration_that_has_ended() {
        let [mut client, mut coordinator] = [handler(), handler()];
        for (frame, keeps) in [
            (register(1), false),
            (registered(1, LIFETIME), true),
            (register(2), true),
            (register_for(3, Duration::ZERO), false),
            // The answer to the registration before.
            (registered(2, LIFETIME), false),
        ] {
            let is_answer = matches!(frame, Frame::Registered { .. });
            let (sender, receiver) = match is_answer {
                true => (&mut coordinator, &mut client),
                false => (&mut client, &mut coordinator),
            };
            sender.sent(&frame);
            receiver.received(&frame);
            assert_eq!(client.connection_keep_alive(), keeps, "{frame:?}");
        }
        coordinator.received(&register_for(4, Duration::ZERO));
        assert!(!coordinator.connection_keep_alive());
    }
}
