//! Bounds on the searches of all sessions.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    nat::strategy::SPRAY_SOCKETS,
    rate_limit::{Rate, Recent, TokenBucket},
};

/// Searches that wait for their turn: a peer has one at most.
pub(crate) const MAX_WAITING: usize = 64;
/// Searches at once, over all sessions.
pub(crate) const MAX_SEARCHES: usize = 16;
/// Sockets that all searches may have open at once: two sprays, or as many windows as there are
/// searches. A search that would need more waits for its turn; each socket is a file descriptor of
/// the process.
pub(crate) const MAX_SEARCH_SOCKETS: usize = 2 * SPRAY_SOCKETS;
/// Sockets of a node that are left for anything but searches: listeners, observers, measurements.
const OTHER_SOCKETS: usize = 16;
/// Searches towards one IP address.
pub(crate) const TARGET_RATE: Rate = Rate { interval: Duration::from_secs(10), burst: 4 };
/// Addresses whose rate is remembered.
const MAX_TARGETS: usize = 1024;
const TARGET_MEMORY: Duration = Duration::from_secs(60);

/// Bounds the searches of all sessions.
#[derive(Debug)]
pub(crate) struct SearchBudget {
    running: usize,
    sockets: usize,
    max_sockets: usize,
    targets: Recent<IpAddr, TokenBucket>,
    /// Tickets of the searches that wait for their turn.
    waiting: BTreeSet<Ticket>,
    next_ticket: u64,
}

/// The place of a search that waits: the lowest has its turn first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// Time at which a search may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Now,
    /// Once others are over.
    Later(Ticket),
    Never,
}

impl SearchBudget {
    pub(crate) fn new() -> Self {
        Self {
            running: 0,
            sockets: 0,
            max_sockets: MAX_SEARCH_SOCKETS,
            targets: Recent::new(MAX_TARGETS, TARGET_MEMORY),
            waiting: BTreeSet::new(),
            next_ticket: 0,
        }
    }

    /// Searches may use what is left of `max` sockets for all purposes.
    pub(crate) fn limit_sockets(&mut self, max: usize) {
        self.max_sockets = max.saturating_sub(OTHER_SOCKETS).min(MAX_SEARCH_SOCKETS);
    }

    /// The sockets that all searches may have open at once.
    pub(crate) fn max_sockets(&self) -> usize {
        self.max_sockets
    }

    /// Decides when a search towards `target` with this number of own sockets may begin. A search
    /// with a ticket waits already. The sockets count until they are [`closed`](Self::closed),
    /// which may be after the search has [`ended`](Self::ended).
    pub(crate) fn admit(
        &mut self,
        ticket: Option<Ticket>,
        target: IpAddr,
        sockets: usize,
        now: Instant,
    ) -> Admission {
        // Who needs no sockets takes nothing away from those that wait for some.
        let is_first = sockets == 0 || self.waiting.first().copied() == ticket;
        let has_room = self.running < MAX_SEARCHES && self.sockets + sockets <= self.max_sockets;
        if !is_first || !has_room {
            return match ticket {
                Some(ticket) => Admission::Later(ticket),
                None if self.waiting.len() < MAX_WAITING => {
                    let ticket = Ticket(self.next_ticket);
                    self.next_ticket += 1;
                    self.waiting.insert(ticket);
                    Admission::Later(ticket)
                }
                None => Admission::Never,
            };
        }
        self.left(ticket);
        let mut bucket = self.targets.get(&target, now).copied().unwrap_or_default();
        if !bucket.take(TARGET_RATE, now) {
            return Admission::Never;
        }
        self.running += 1;
        self.sockets += sockets;
        self.targets.insert(target, bucket, now);
        Admission::Now
    }

    /// A search waits no more.
    pub(crate) fn left(&mut self, ticket: Option<Ticket>) {
        ticket.map(|ticket| self.waiting.remove(&ticket));
    }

    pub(crate) fn ended(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    pub(crate) fn closed(&mut self, sockets: usize) {
        self.sockets = self.sockets.saturating_sub(sockets);
    }
}
