//! Hairpin test (RFC 4787 §6): a socket sends datagrams to its own public address, and the test
//! succeeds if one arrives.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    Path, SocketId,
    nat::filtering::{PAUSES, authentic_round, datagram, test_of},
    rate_limit::{Rate, TokenBucket},
    wire::probe::PROBE_LEN,
};

/// Limit on tests. Observers report the public address, and a false report makes this peer send the
/// datagrams of a test to another host.
const RATE: Rate = Rate { interval: Duration::from_secs(60), burst: 2 };
/// Time for the datagrams to arrive.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Test {
    target: SocketAddr,
    name: [u8; 8],
    key: [u8; 32],
    sent: u8,
    due: Option<Instant>,
    came_back: Option<bool>,
}

/// Hairpin test of each socket.
#[derive(Debug, Default)]
pub(crate) struct Hairpins {
    tests: BTreeMap<SocketId, Test>,
    bucket: TokenBucket,
}

impl Hairpins {
    /// Starts a test of a socket and its public address, unless that address was tested.
    pub(crate) fn begin(&mut self, path: Path, (name, key): ([u8; 8], [u8; 32]), now: Instant) {
        let known = self.tests.get(&path.socket).is_some_and(|test| test.target == path.remote);
        if !known && self.bucket.take(RATE, now) {
            let (target, due) = (path.remote, Some(now));
            self.tests.insert(path.socket, Test { target, name, key, sent: 0, due, came_back: None });
        }
    }

    pub(crate) fn socket_down(&mut self, socket: SocketId) {
        self.tests.remove(&socket);
    }

    pub(crate) fn is_testing(&self) -> bool {
        self.next_deadline().is_some()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tests.values().filter_map(|test| test.due).min()
    }

    /// Returns the datagrams that are due.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<(Path, [u8; PROBE_LEN])> {
        let mut transmits = Vec::new();
        for (socket, test) in &mut self.tests {
            if test.due.is_none_or(|at| at > now) {
                continue;
            }
            if usize::from(test.sent) >= PAUSES.len() {
                test.due = None;
                test.came_back = Some(false);
                continue;
            }
            let path = Path { socket: *socket, remote: test.target };
            transmits.push((path, datagram(test.name, &test.key, test.sent)));
            test.sent += 1;
            let pause = PAUSES.get(usize::from(test.sent)).copied();
            test.due = Some(now + pause.unwrap_or(REPLY_TIMEOUT));
        }
        transmits
    }

    /// Takes a datagram. Returns false if the datagram belongs to no test.
    pub(crate) fn arrived(&mut self, socket: SocketId, datagram: &[u8]) -> bool {
        let Some(test) = self.tests.get_mut(&socket) else { return false };
        if test_of(datagram) != Some(test.name) || authentic_round(datagram, &test.key).is_none() {
            return false;
        }
        test.due = None;
        test.came_back = Some(true);
        true
    }

    /// Returns true if a datagram from the socket to its public address `address` arrived; `None`
    /// without a result.
    pub(crate) fn result(&self, socket: SocketId, address: SocketAddr) -> Option<bool> {
        self.tests.get(&socket).filter(|test| test.target == address)?.came_back
    }
}
