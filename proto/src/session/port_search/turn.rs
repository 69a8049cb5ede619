//! Turns of the searches of both peers.

use std::time::{Duration, Instant};

use super::search_budget::Ticket;

/// An initiator that has given up is known by its silence: as long as it waits, it repeats its
/// request once a second.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(3);

/// Wait of a search for its turn, and for that of the peer.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The search waits for its turn.
    pub(crate) ticket: Option<Ticket>,
    /// Time of the peer's last request for this attempt.
    asked: Instant,
    /// The search of the peer waits for its turn.
    peer_waits: bool,
    /// The search of the peer has had its turn.
    has_peer_begun: bool,
}

impl Turn {
    /// Turn of a search that the peer has asked for, at the latest, at this time.
    pub(super) fn new(asked: Instant) -> Self {
        Self { ticket: None, asked, peer_waits: false, has_peer_begun: false }
    }

    /// The peer still waits for this attempt.
    pub(crate) fn asked_again(&mut self, now: Instant) {
        self.asked = now;
    }

    /// Returns true if the search waits for its turn while nobody waits for it any more.
    pub(crate) fn is_abandoned(&self, now: Instant) -> bool {
        self.ticket.is_some() && now.saturating_duration_since(self.asked) >= ABANDONED_TIMEOUT
    }

    /// Returns true if the search of the peer waits for its turn.
    pub(super) fn does_peer_wait(&self) -> bool {
        self.peer_waits
    }

    /// Notes that the search of the peer waits, or begins. Returns false if it has begun before: a
    /// search waits once, and a report that says otherwise is late, or somebody plays it again.
    pub(super) fn note_peer(&mut self, begins: bool) -> bool {
        if self.has_peer_begun {
            return false;
        }
        self.has_peer_begun = begins;
        self.peer_waits = !begins;
        true
    }
}
