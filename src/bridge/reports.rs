//! Messages of the driver to the behaviour.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    task::{Context, Poll},
};

use libp2p_identity::PeerId;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::PollSender;

use crate::behaviour::{
    event::{Event, RegistrationEvent, SessionEvent},
    link::FromDriver,
};

/// Reports that may wait for a busy swarm before the driver takes no more input. Sessions under way
/// still end, so one more report for each session may follow.
const MAX_OWED: usize = 4096;

/// Reports for the behaviour. A report of a lasting change is never lost: the swarm would wait for
/// it.
#[derive(Debug)]
pub(super) struct Reports {
    sender: PollSender<FromDriver>,
    /// Reports for which the channel had no room.
    owed: VecDeque<FromDriver>,
    dropped: u64,
}

impl Reports {
    pub(super) fn new(sender: mpsc::Sender<FromDriver>) -> Self {
        Self { sender: PollSender::new(sender), owed: VecDeque::new(), dropped: 0 }
    }

    /// Reports an event; an event that only reports the course of a session is dropped if the swarm
    /// is too busy.
    pub(super) fn event(&mut self, event: Event) {
        let may_drop = is_informational(&event);
        self.tell(FromDriver::Event(event), may_drop);
    }

    /// A connection to `peer`, which is at `remote`, is to be collected.
    pub(super) fn collect(&mut self, peer: PeerId, remote: SocketAddr) {
        self.tell(FromDriver::Collect { peer, remote }, false);
    }

    /// A connection with `peer` could not move, and was closed.
    pub(super) fn lost(&mut self, peer: PeerId, dialed: Option<SocketAddr>) {
        self.tell(FromDriver::Lost { peer, dialed }, false);
    }

    /// No attempt was made to find a direct path to `peer`.
    pub(super) fn not_upgrading(&mut self, peer: PeerId) {
        self.tell(FromDriver::NotUpgrading(peer), false);
    }

    /// An interface came up.
    pub(super) fn interface_up(&mut self) {
        self.tell(FromDriver::InterfaceUp, false);
    }

    fn tell(&mut self, news: FromDriver, may_drop: bool) {
        let unsent = match self.sender.get_ref().filter(|_| self.owed.is_empty()) {
            Some(sender) => match sender.try_send(news) {
                Err(TrySendError::Full(news)) => news,
                // The behaviour is gone, and the driver about to learn of it.
                Ok(()) | Err(TrySendError::Closed(_)) => return,
            },
            None => news,
        };
        if may_drop {
            self.dropped += 1;
        } else {
            self.owed.push_back(unsent);
        }
    }

    /// Sends the waiting reports while there is room; wakes the task when there is more room.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        while !self.owed.is_empty() {
            match self.sender.poll_reserve(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return self.owed.clear(),
                Poll::Pending => return,
            }
            if let Some(news) = self.owed.pop_front() {
                let _ = self.sender.send_item(news);
            }
        }
    }

    /// Returns true if too many reports wait for the driver to begin anything new.
    pub(super) fn is_full(&self) -> bool {
        self.owed.len() >= MAX_OWED
    }

    /// Events that were dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// Returns true if an event reports only the course of a session, and needs no action.
fn is_informational(event: &Event) -> bool {
    matches!(
        event,
        Event::Session(
            SessionEvent::Phase { .. }
                | SessionEvent::Candidates { .. }
                | SessionEvent::PathValidated { .. }
                | SessionEvent::PathSelected { .. }
                | SessionEvent::Search { .. }
        ) | Event::Registration(RegistrationEvent::Renewed { .. })
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::task::noop_waker;

    use super::*;
    use libp2p_punch_proto::event::{FailureReason, NatKinds, SessionRole};

    const REMOTE: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 9);

    fn failed(peer: PeerId) -> Event {
        let (role, reason) = (SessionRole::Initiator, FailureReason::NoCoordinator);
        Event::Session(SessionEvent::Failed {
            peer,
            role,
            reason,
            elapsed: Duration::ZERO,
            nats: NatKinds::default(),
        })
    }

    fn search(peer: PeerId) -> Event {
        Event::Session(SessionEvent::Search { peer, sockets: 0 })
    }

    #[test]
    fn what_lasts_is_owed_in_order_and_the_rest_is_dropped_and_counted() {
        let mut cx = Context::from_waker(futures::task::noop_waker_ref());
        let (sender, mut receiver) = mpsc::channel(1);
        let mut reports = Reports::new(sender);
        let peers: Vec<_> = (0..10).map(|_| PeerId::random()).collect();
        for peer in &peers {
            reports.event(failed(*peer));
            reports.event(search(*peer));
            reports.collect(*peer, REMOTE);
        }
        let mut told = Vec::new();
        loop {
            reports.poll(&mut cx);
            let Poll::Ready(Some(news)) = receiver.poll_recv(&mut cx) else { break };
            told.push(news);
        }
        let is_search =
            |n: &&FromDriver| matches!(n, FromDriver::Event(Event::Session(SessionEvent::Search { .. })));
        let searches = told.iter().filter(is_search).count();
        assert_eq!(searches as u64 + reports.dropped(), 10);
        assert!(reports.dropped() >= 9);
        let lasting: Vec<_> = told
            .iter()
            .filter_map(|news| match news {
                FromDriver::Event(Event::Session(SessionEvent::Failed { peer, .. })) => Some((false, *peer)),
                FromDriver::Collect { peer, .. } => Some((true, *peer)),
                FromDriver::Event(_)
                | FromDriver::InterfaceUp
                | FromDriver::NotUpgrading(_)
                | FromDriver::Lost { .. } => None,
            })
            .collect();
        let expected: Vec<_> = peers.iter().flat_map(|peer| [(false, *peer), (true, *peer)]).collect();
        assert_eq!(lasting, expected);
    }

    #[test]
    fn it_is_full_until_the_swarm_takes_news_or_is_gone() {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let (sender, mut receiver) = mpsc::channel(1);
        let mut reports = Reports::new(sender);
        while !reports.is_full() {
            reports.collect(PeerId::random(), REMOTE);
        }
        assert_eq!(reports.owed.len(), MAX_OWED);
        reports.poll(&mut cx);
        assert!(reports.is_full());
        assert!(receiver.poll_recv(&mut cx).is_ready());
        reports.poll(&mut cx);
        assert!(!reports.is_full());
        drop(receiver);
        reports.poll(&mut cx);
        assert!(reports.owed.is_empty());
    }
}
