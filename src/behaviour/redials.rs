//! Peers whose connection was closed because it could not move with our address: they are dialed
//! again, once.
//!
//! The transport closes connections that could only wait for their idle time-out, and does not know
//! whether the peer is still needed. A connection that the swarm has kept so far is needed.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

/// Largest number of peers to dial again. A node with more connections is one to which others dial,
/// and these dial again.
const MAX_WAITING: usize = 16;
/// Time after the notice within which the swarm may see the end of the connection. A later end has
/// another reason.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer whose connection was closed by the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) peer: PeerId,
    /// Dialed address; `None` for an accepted connection and for a session.
    pub(super) dialed: Option<SocketAddr>,
}

/// Peers to dial as soon as the swarm has no connection to them any more.
#[derive(Debug, Default)]
pub(super) struct Redials {
    waiting: BTreeMap<PeerId, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    lost: Lost,
    /// The peer's connections that are about to end.
    ending: usize,
    told: Instant,
}

impl Waiting {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.told) < CLOSE_TIMEOUT
    }
}

impl Redials {
    /// Records a connection that the transport closed. Returns it if the peer is to be dialed at
    /// once, since the swarm has seen its end already.
    pub(super) fn lost(&mut self, lost: Lost, is_connected: bool, now: Instant) -> Option<Lost> {
        if !is_connected {
            return Some(lost);
        }
        self.waiting.retain(|_, waiting| waiting.is_fresh(now));
        if self.waiting.contains_key(&lost.peer) || self.waiting.len() < MAX_WAITING {
            let waiting = self.waiting.entry(lost.peer).or_insert(Waiting { lost, ending: 0, told: now });
            waiting.ending += 1;
            waiting.lost.dialed = waiting.lost.dialed.or(lost.dialed);
        }
        None
    }

    /// Records that the swarm has seen the end of a connection with `peer`; `standing` connections
    /// are left. Returns the lost connection if its peer is to be dialed.
    pub(super) fn closed(&mut self, peer: &PeerId, standing: usize, now: Instant) -> Option<Lost> {
        let waiting = self.waiting.get_mut(peer)?;
        let (lost, is_fresh) = (waiting.lost, waiting.is_fresh(now));
        waiting.ending -= 1;
        if waiting.ending == 0 || standing == 0 || !is_fresh {
            self.waiting.remove(peer);
        }
        (is_fresh && standing == 0).then_some(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(dialed: Option<SocketAddr>) -> Lost {
        Lost { peer: PeerId::random(), dialed }
    }

    #[test]
    fn a_peer_is_dialed_when_its_last_connection_has_ended() {
        let (mut redials, one, now) = (Redials::default(), lost(None), Instant::now());
        assert_eq!(redials.closed(&one.peer, 0, now), None, "nothing was lost");
        assert_eq!(redials.lost(one, true, now), None);
        assert_eq!(redials.closed(&one.peer, 0, now), Some(one));
        assert_eq!(redials.closed(&one.peer, 0, now), None, "once");

        let dialed = Lost { dialed: Some(([192, 0, 2, 1], 4001).into()), ..one };
        [one, dialed, one].iter().for_each(|lost| assert_eq!(redials.lost(*lost, true, now), None));
        assert_eq!(redials.closed(&one.peer, 2, now), None);
        assert_eq!(redials.closed(&one.peer, 1, now), None);
        assert_eq!(redials.closed(&one.peer, 0, now), Some(dialed));
    }

    #[test]
    fn a_peer_that_has_another_connection_is_not_dialed_when_that_ends() {
        let (mut redials, one, now) = (Redials::default(), lost(None), Instant::now());
        redials.lost(one, true, now);
        assert_eq!(redials.closed(&one.peer, 1, now), None);
        assert_eq!(redials.closed(&one.peer, 0, now), None);
    }

    #[test]
    fn news_that_comes_after_the_end_leads_to_a_dial_at_once() {
        let (mut redials, one, now) = (Redials::default(), lost(None), Instant::now());
        assert_eq!(redials.lost(one, false, now), Some(one));
        assert_eq!(redials.closed(&one.peer, 0, now), None);
    }

    #[test]
    fn what_ends_much_later_ends_for_another_reason() {
        let (mut redials, one, now) = (Redials::default(), lost(None), Instant::now());
        redials.lost(one, true, now);
        assert_eq!(redials.closed(&one.peer, 0, now + CLOSE_TIMEOUT), None);
    }

    #[test]
    fn only_so_many_peers_are_waited_for() {
        let (mut redials, now) = (Redials::default(), Instant::now());
        let all: Vec<_> = (0..2 * MAX_WAITING).map(|_| lost(None)).collect();
        assert!(all.iter().all(|lost| redials.lost(*lost, true, now).is_none()));
        let dialed = all.iter().filter_map(|lost| redials.closed(&lost.peer, 0, now)).count();
        assert_eq!(dialed, MAX_WAITING);
        assert!(redials.waiting.is_empty());
    }
}
