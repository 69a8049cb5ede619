//! Frames on their way from the driver to the control stream of one connection, bounded by bytes.
//!
//! A peer that does not read its control stream lets frames pile up here. One stream holds
//! [`MAX_REQUESTS`] bytes of forwarded requests, which a burst of honest dials fills before the
//! responder's task gets its turn, and [`MAX_OTHERS`] bytes of all other frames. All streams
//! together hold [`MAX_IN_ALL`]. A queue that the driver closed reports that at once, even while
//! its stream takes nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::BytesMut;
use futures::{StreamExt, channel::mpsc, task::AtomicWaker};

use libp2p_punch_proto::{
    SessionId,
    wire::frame::{self, Frame},
};

/// Bytes of `PUNCH_ME_NOW` that may wait for one control stream: the 200 that a responder takes at
/// once, and as many again.
pub(crate) const MAX_REQUESTS: usize = 512 * 1024;
/// Bytes of all other frames that may wait for one control stream. Most of them answer what the
/// peer has asked.
pub(crate) const MAX_OTHERS: usize = 64 * 1024;
/// Bytes that may wait for all control streams of a node.
pub(crate) const MAX_IN_ALL: usize = 32 * 1024 * 1024;

/// Counts the bytes that wait for all control streams of a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueuedBytes(Arc<AtomicUsize>);

impl QueuedBytes {
    /// Returns the bytes that wait now.
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct State {
    requests: AtomicUsize,
    others: AtomicUsize,
    is_closed: AtomicBool,
    reader: AtomicWaker,
}

#[derive(Debug)]
struct Queued {
    frame: Frame,
    _place: Place,
}

/// The bytes of a frame on the wire, which count until this is dropped.
#[derive(Debug)]
struct Place {
    len: usize,
    is_request: bool,
    state: Arc<State>,
    all: QueuedBytes,
}

impl State {
    /// Returns the counter of the bytes of one class of frames, and its limit.
    fn class(&self, is_request: bool) -> (&AtomicUsize, usize) {
        if is_request { (&self.requests, MAX_REQUESTS) } else { (&self.others, MAX_OTHERS) }
    }
}

/// The driver's end. The queue is closed when it is dropped.
#[derive(Debug)]
pub(crate) struct FrameSender {
    sender: mpsc::UnboundedSender<Queued>,
    state: Arc<State>,
    all: QueuedBytes,
    scratch: BytesMut,
}

/// The handler's end.
#[derive(Debug)]
pub(crate) struct FrameReceiver {
    receiver: mpsc::UnboundedReceiver<Queued>,
    state: Arc<State>,
}

/// Reason for a frame that was not queued.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// The frame is a request, and does not fit.
    RequestFull {
        /// The name of its session.
        session: SessionId,
        /// Its round.
        round: u32,
    },
    /// The frame is no request, and does not fit.
    Full,
    /// The stream has ended.
    Closed,
}

/// Creates a queue whose bytes count in `all` too.
pub(crate) fn frame_queue(all: QueuedBytes) -> (FrameSender, FrameReceiver) {
    let (sender, receiver) = mpsc::unbounded();
    let state = Arc::<State>::default();
    let sender = FrameSender { sender, state: state.clone(), all, scratch: BytesMut::new() };
    (sender, FrameReceiver { receiver, state })
}

impl FrameSender {
    /// Queues a frame.
    pub(crate) fn send(&mut self, frame: Frame) -> Result<(), Unsent> {
        self.scratch.clear();
        frame::encode(&frame, &mut self.scratch);
        let len = self.scratch.len();
        let fits = |counter: &AtomicUsize, max: usize| counter.load(Ordering::Relaxed) + len <= max;
        if self.sender.is_closed() {
            return Err(Unsent::Closed);
        }
        let is_request = matches!(frame, Frame::PunchMeNow(_));
        let (queued, max) = self.state.class(is_request);
        if !fits(queued, max) || !fits(&self.all.0, MAX_IN_ALL) {
            return Err(match frame {
                Frame::PunchMeNow(punch) => {
                    Unsent::RequestFull { session: punch.request.session, round: punch.request.round }
                }
                _ => Unsent::Full,
            });
        }
        // Only the driver adds, so no other addition comes between the check and this line.
        queued.fetch_add(len, Ordering::Relaxed);
        self.all.0.fetch_add(len, Ordering::Relaxed);
        let place = Place { len, is_request, state: self.state.clone(), all: self.all.clone() };
        let queued = Queued { frame, _place: place };
        self.sender.unbounded_send(queued).map_err(|_| Unsent::Closed)
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        self.state.is_closed.store(true, Ordering::Release);
        self.state.reader.wake();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.class(self.is_request).0.fetch_sub(self.len, Ordering::Relaxed);
        self.all.0.fetch_sub(self.len, Ordering::Relaxed);
    }
}

impl FrameReceiver {
    /// Returns true once the driver has closed the queue. Frames that wait in it are not to be sent
    /// any more.
    pub(crate) fn poll_closed(&self, cx: &Context<'_>) -> bool {
        self.state.reader.register(cx.waker());
        self.state.is_closed.load(Ordering::Acquire)
    }

    /// Takes the next frame out of the queue.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.receiver.poll_next_unpin(cx).map(|queued| queued.map(|queued| queued.frame))
    }
}

#[cfg(test)]
mod tests {
    use std::{task::Waker, time::Duration};

    use bytes::Bytes;
    use futures::task::noop_waker_ref;
    use libp2p_identity::PeerId;

    use super::*;
    use libp2p_punch_proto::{
        rate_limit::Rate,
        wire::frame::{PunchMeNow, PunchRequest},
    };

    /// 1,000 bytes and a few.
    fn request() -> Frame {
        let request = PunchRequest {
            session: SessionId([0; 16]),
            round: 0,
            initiator: vec![1; 36].into(),
            responder: PeerId::random(),
            lifetime: Duration::from_secs(1),
            probe_key: [0; 32],
            candidates: Vec::new(),
            nat: Bytes::new(),
            first_flight: vec![vec![0; 900].into()],
        };
        Frame::PunchMeNow(Box::new(PunchMeNow { request, signature: vec![1; 64].into(), observed: None }))
    }

    fn other() -> Frame {
        let allowance = Rate { burst: 1, interval: Duration::from_millis(1) };
        Frame::Registered { generation: 1, lifetime: Duration::from_secs(1), allowance }
    }

    fn fill(sender: &mut FrameSender, frame: fn() -> Frame) -> usize {
        (0..).take_while(|_| sender.send(frame()).is_ok()).count()
    }

    #[test]
    fn a_queue_takes_what_fits_and_no_more_until_some_is_taken_out() {
        let all = QueuedBytes::default();
        let (mut sender, mut receiver) = frame_queue(all.clone());
        let count = fill(&mut sender, request);
        assert!((400..=512).contains(&count) && all.get() <= MAX_REQUESTS, "{count}: {} bytes", all.get());
        assert!(matches!(sender.send(request()), Err(Unsent::RequestFull { round: 0, .. })));
        let mut cx = Context::from_waker(noop_waker_ref());
        assert!(matches!(receiver.poll_next(&mut cx), Poll::Ready(Some(Frame::PunchMeNow(_)))));
        assert!(sender.send(request()).is_ok());

        let requests = all.get();
        assert!(fill(&mut sender, other) > 1_000, "requests leave room for other frames");
        assert!(all.get() - requests <= MAX_OTHERS);
        drop(receiver);
        assert_eq!(all.get(), 0, "what nobody takes counts no more");
        assert!(matches!(sender.send(other()), Err(Unsent::Closed)));
        assert_eq!(all.get(), 0);
    }

    #[test]
    fn all_queues_together_have_a_limit() {
        let all = QueuedBytes::default();
        let mut queues: Vec<_> = (0..70).map(|_| frame_queue(all.clone())).collect();
        let full: Vec<usize> = queues.iter_mut().map(|(sender, _)| fill(sender, request)).collect();
        assert!(all.get() <= MAX_IN_ALL && all.get() > MAX_IN_ALL - 2_000);
        assert_eq!(full.last(), Some(&0));
    }

    #[test]
    fn a_reader_that_takes_nothing_is_woken_when_the_driver_closes_the_queue() {
        let (sender, receiver) = frame_queue(QueuedBytes::default());
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        let cx = Context::from_waker(&waker);
        assert!(!receiver.poll_closed(&cx));
        drop(sender);
        assert!(woken.0.load(Ordering::Relaxed) && receiver.poll_closed(&cx));
    }

    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
