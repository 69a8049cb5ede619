//! Paths of one virtual connection, and the datagrams that wait for a path: pure state. `S` is a
//! handle to a socket.

use bytes::Bytes;

use libp2p_punch_proto::{MAX_PAIRS, Path};

/// Paths that one virtual connection may have: as many as its session has pairs.
pub(super) const MAX_PATHS: usize = MAX_PAIRS;
/// Datagrams kept until the peer is heard on a selected path. A ClientHello takes up to two, a
/// server flight up to three, and later packets are better left to QUIC's retransmission.
pub(super) const MAX_STASH: usize = 4;
/// Unnamed paths: no candidate or probe names the path, but a packet of the peer came on it. The
/// source may be forged, so each may cost three times its bytes.
pub(super) const MAX_UNNAMED: usize = 4;
/// Packets with a short header after which a server counts as done with its handshake: it sends one
/// or two such packets before.
const DONE: u8 = 3;

/// A path, and the socket at our end of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SocketPath<S> {
    pub(super) path: Path,
    pub(super) socket: S,
}

/// The virtual connection has [`MAX_PATHS`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug)]
struct Entry<S> {
    target: SocketPath<S>,
    admitted: bool,
    /// A candidate, an observed address or an authentic probe names this path.
    named: bool,
    /// Bytes of UDP payload that may still be sent before a path is selected (RFC 9000 §8.1).
    budget: usize,
    /// Time of the last permit, counted in permits; 0 is never.
    permitted: u64,
    /// Bit i: datagram i of the stash went out here.
    sent: u8,
}

/// Paths of a virtual connection's datagrams.
#[derive(Debug)]
pub(super) struct Paths<S> {
    entries: Vec<Entry<S>>,
    selected: Option<SocketPath<S>>,
    permits: u64,
    /// The first datagrams that quinn sent. Ciphertext may be repeated unchanged; the peer drops
    /// duplicates.
    stash: Vec<Bytes>,
    /// Bit i: datagram i of the stash went out somewhere, or travelled with the coordinator.
    sent: u8,
    /// The last datagram that quinn sent.
    last: Vec<u8>,
    /// A packet of the peer came on some path.
    received: bool,
    /// The server answered the first flight; the stash since then is the rest of the client's
    /// handshake.
    answered: bool,
    short_headers: u8,
    /// The stash is no longer needed.
    settled: bool,
}

impl<S> Default for Paths<S> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            selected: None,
            permits: 0,
            stash: Vec::new(),
            sent: 0,
            last: Vec::new(),
            received: false,
            answered: false,
            short_headers: 0,
            settled: false,
        }
    }
}

impl<S: Clone> Paths<S> {
    /// The selected path.
    pub(super) fn selected(&self) -> Option<&SocketPath<S>> {
        self.selected.as_ref()
    }

    /// Returns the path that most likely reaches the peer: the selected path, or else the most
    /// recently permitted path.
    pub(super) fn best(&self) -> Option<&SocketPath<S>> {
        let permitted = self.entries.iter().filter(|entry| entry.permitted > 0);
        self.selected.as_ref().or(permitted.max_by_key(|entry| entry.permitted).map(|entry| &entry.target))
    }

    /// The paths from which packets are taken.
    pub(super) fn admitted(&self) -> impl Iterator<Item = Path> + '_ {
        self.entries.iter().filter(|entry| entry.admitted).map(|entry| entry.target.path)
    }

    /// Takes packets from a path.
    pub(super) fn admit(&mut self, target: SocketPath<S>) -> Result<(), Full> {
        let entry = self.entry(target)?;
        (entry.admitted, entry.named) = (true, true);
        Ok(())
    }

    /// Takes packets from a path that [`meet`](Self::meet) took in. The path counts against
    /// [`MAX_UNNAMED`] until it is named.
    pub(super) fn admit_met(&mut self, path: &Path) {
        for entry in self.entries.iter_mut().filter(|entry| entry.target.path == *path) {
            entry.admitted = true;
        }
    }

    /// No longer takes packets from a path.
    pub(super) fn dismiss(&mut self, path: &Path) {
        for entry in self.entries.iter_mut().filter(|entry| entry.target.path == *path) {
            (entry.admitted, entry.named) = (false, false);
        }
        self.entries.retain(|entry| entry.admitted || entry.permitted > 0);
    }

    /// The first datagrams that quinn sent, which from now on count as sent.
    pub(super) fn capture(&mut self) -> Vec<Bytes> {
        self.sent = (1 << self.stash.len().min(MAX_STASH)) - 1;
        self.stash.clone()
    }

    /// Drops the client's first flight and its repetitions, since the peer has answered the flight.
    /// They must not use the room and the budget of the handshake that follows.
    pub(super) fn answered(&mut self) {
        self.stash.clear();
        self.sent = 0;
        self.answered = true;
        self.entries.iter_mut().for_each(|entry| entry.sent = 0);
    }

    /// A packet with a short header came.
    pub(super) fn short_header(&mut self) {
        self.short_headers = self.short_headers.saturating_add(1);
        if self.answered && self.short_headers >= DONE {
            self.settle();
        }
    }

    /// Returns the datagrams that a client repeats until the server confirms the end of the
    /// handshake.
    pub(super) fn unconfirmed(&self) -> Option<Vec<Bytes>> {
        (self.answered && !self.settled).then(|| self.stash.clone())
    }

    /// Keeps the last datagram that quinn sent, to repeat it when a path is selected.
    ///
    /// One datagram is enough. From its acknowledgement quinn learns that all earlier datagrams on
    /// a dead path are lost, without waiting for a timer that has backed off.
    pub(super) fn remember(&mut self, contents: &[u8], size: usize) {
        self.last.clear();
        self.last.extend_from_slice(contents.chunks(size.max(1)).next_back().unwrap_or_default());
    }

    /// Keeps the datagrams that left on the selected path while nothing was `heard`.
    pub(super) fn sent_on_selected(&mut self, contents: &[u8], size: usize, heard: bool) {
        if heard && !self.answered {
            self.settle();
        }
        for datagram in contents.chunks(size.max(1)) {
            self.stash(datagram, true);
        }
    }

    /// Returns true if [`sent_on_selected`](Self::sent_on_selected) has nothing to do.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Keeps the datagrams of quinn while no path is selected, and sends them within the budgets of
    /// the permitted paths. Until a packet of the peer came they leave on each path, and then once,
    /// on the most recently permitted path first. Returns the number of datagrams that were neither
    /// sent nor kept.
    pub(super) fn hold(
        &mut self,
        contents: &[u8],
        size: usize,
        mut send: impl FnMut(&SocketPath<S>, &[u8]) -> bool,
    ) -> usize {
        self.entries.sort_by_key(|entry| std::cmp::Reverse(entry.permitted));
        let mut lost = 0;
        for datagram in contents.chunks(size.max(1)) {
            let kept = self.stash(datagram, false);
            let mut sent = false;
            for entry in self.entries.iter_mut().take_while(|entry| entry.permitted > 0) {
                sent |= entry.spend(datagram, kept.unwrap_or(0), &mut send);
                if sent && self.received {
                    break;
                }
            }
            self.sent |= if sent { kept.unwrap_or(0) } else { 0 };
            lost += usize::from(!sent && kept.is_none());
        }
        lost
    }

    /// Adds to the budget of a path. Within the budget, sends the kept datagrams that were not sent
    /// on this path; with `again` also the others.
    pub(super) fn permit(
        &mut self,
        target: SocketPath<S>,
        budget: usize,
        again: bool,
        send: impl FnMut(&SocketPath<S>, &[u8]) -> bool,
    ) -> Result<(), Full> {
        if self.selected.is_none() {
            let path = target.path;
            let entry = self.entry(target)?;
            if again {
                entry.sent = 0;
            }
            self.grant(&path, budget, send);
        }
        Ok(())
    }

    /// As [`permit`](Self::permit), for a path on which a packet of the peer came though it was not
    /// admitted. The virtual connection has room for [`MAX_UNNAMED`] of these.
    pub(super) fn meet(
        &mut self,
        target: SocketPath<S>,
        budget: usize,
        send: impl FnMut(&SocketPath<S>, &[u8]) -> bool,
    ) -> Result<(), Full> {
        let is_known = self.entries.iter().any(|entry| entry.target.path == target.path);
        let unnamed = self.entries.iter().filter(|entry| !entry.named).count();
        if !is_known && unnamed >= MAX_UNNAMED {
            return Err(Full);
        }
        self.received = true;
        self.permit(target, budget, false, send)
    }

    /// As [`permit`](Self::permit), for a path that the virtual connection has already, as a packet
    /// of the peer came on it; whether it has and needs it.
    pub(super) fn credit(
        &mut self,
        path: &Path,
        budget: usize,
        send: impl FnMut(&SocketPath<S>, &[u8]) -> bool,
    ) -> bool {
        self.received = true;
        self.grant(path, budget, send)
    }

    fn grant(
        &mut self,
        path: &Path,
        budget: usize,
        mut send: impl FnMut(&SocketPath<S>, &[u8]) -> bool,
    ) -> bool {
        let entry = self.entries.iter_mut().find(|entry| entry.target.path == *path);
        let Some(entry) = entry.filter(|_| self.selected.is_none()) else { return false };
        self.permits += 1;
        entry.budget = entry.budget.saturating_add(budget);
        entry.permitted = self.permits;
        for (i, datagram) in self.stash.iter().enumerate() {
            let bit = 1 << i;
            if entry.sent & bit == 0 && entry.spend(datagram, bit, &mut send) {
                self.sent |= bit;
            }
        }
        true
    }

    /// Selects a path, and returns the datagrams to send on it now. If nothing was `heard` these
    /// are all kept datagrams; otherwise the kept datagrams that were never sent, and the last
    /// datagram. For a path that was selected already and works again, it is the last datagram.
    pub(super) fn select(&mut self, target: SocketPath<S>, heard: bool) -> Vec<Bytes> {
        if self.selected.as_ref().is_some_and(|selected| selected.path == target.path) {
            return self.last().filter(|_| self.settled).into_iter().collect();
        }
        for entry in &mut self.entries {
            (entry.budget, entry.permitted) = (0, 0);
        }
        self.selected = Some(target);
        let sent = if heard { self.sent } else { 0 };
        let mut again: Vec<_> = self
            .stash
            .iter()
            .enumerate()
            .filter(|(i, _)| sent & (1 << i) == 0)
            .map(|(_, d)| d.clone())
            .collect();
        self.sent = u8::MAX;
        if heard && !self.answered {
            self.settle();
        }
        let last = self.last().filter(|last| (heard || self.settled) && !again.contains(last));
        again.extend(last);
        again
    }

    fn last(&self) -> Option<Bytes> {
        (!self.last.is_empty()).then(|| Bytes::copy_from_slice(&self.last))
    }

    /// Forgets a path; whether it was admitted.
    pub(super) fn forget(&mut self, path: &Path) -> bool {
        let admitted = self.admitted().any(|admitted| admitted == *path);
        self.entries.retain(|entry| entry.target.path != *path);
        self.selected.take_if(|selected| selected.path == *path);
        admitted
    }

    /// Stops keeping datagrams: the connection is closing, and its datagrams have no later use.
    pub(super) fn settle(&mut self) {
        self.settled = true;
        self.stash = Vec::new();
    }

    fn entry(&mut self, target: SocketPath<S>) -> Result<&mut Entry<S>, Full> {
        let at = match self.entries.iter().position(|entry| entry.target.path == target.path) {
            Some(at) => at,
            None if self.entries.len() >= MAX_PATHS => return Err(Full),
            None => {
                self.entries.push(Entry {
                    target,
                    admitted: false,
                    named: false,
                    budget: 0,
                    permitted: 0,
                    sent: 0,
                });
                self.entries.len() - 1
            }
        };
        self.entries.get_mut(at).ok_or(Full)
    }

    /// Keeps a datagram, and returns its bit.
    fn stash(&mut self, datagram: &[u8], sent: bool) -> Option<u8> {
        if self.settled || self.stash.len() >= MAX_STASH {
            return None;
        }
        let bit = 1 << self.stash.len();
        self.stash.push(Bytes::copy_from_slice(datagram));
        self.sent = if sent { self.sent | bit } else { self.sent & !bit };
        Some(bit)
    }
}

impl<S> Entry<S> {
    fn spend(
        &mut self,
        datagram: &[u8],
        bit: u8,
        send: &mut impl FnMut(&SocketPath<S>, &[u8]) -> bool,
    ) -> bool {
        let Some(rest) = self.budget.checked_sub(datagram.len()) else { return false };
        let sent = send(&self.target, datagram);
        if sent {
            self.budget = rest;
            self.sent |= bit;
        }
        sent
    }
}

#[cfg(test)]
mod tests;
