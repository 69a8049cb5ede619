//! Hairpin test (RFC 4787 §6): a socket sends datagrams to its own public address, and the test
//! succeeds if one arrives.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    Path, SocketId,
    nat::filtering::{PAUSES, Test, authentic_round, datagram, test_of},
    rate_limit::{Rate, TokenBucket},
    wire::probe::PROBE_LEN,
};

/// Limit on tests. Observers report the public address, and a false report makes this peer send the
/// datagrams of a test to another host.
const RATE: Rate = Rate { interval: Duration::from_secs(60), burst: 2 };
/// Time for the datagrams to arrive.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Course {
    test: Test,
    sent: u8,
    due: Option<Instant>,
    came_back: Option<bool>,
}

/// Hairpin test of each socket.
#[derive(Debug, Default)]
pub(crate) struct Hairpins {
    tests: BTreeMap<SocketId, Course>,
    bucket: TokenBucket,
}

impl Hairpins {
    /// Starts a test whose path leads from a socket to its own public address, unless that address
    /// was tested.
    pub(crate) fn begin(&mut self, test: Test, now: Instant) {
        let path = test.path;
        let known = self.tests.get(&path.socket).is_some_and(|known| known.test.path == path);
        if !known && self.bucket.take(RATE, now) {
            self.tests.insert(path.socket, Course { test, sent: 0, due: Some(now), came_back: None });
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
        for course in self.tests.values_mut() {
            if course.due.is_none_or(|at| at > now) {
                continue;
            }
            if usize::from(course.sent) >= PAUSES.len() {
                course.due = None;
                course.came_back = Some(false);
                continue;
            }
            let Test { data, key, path } = course.test;
            transmits.push((path, datagram(data, &key, course.sent)));
            course.sent += 1;
            let pause = PAUSES.get(usize::from(course.sent)).copied();
            course.due = Some(now + pause.unwrap_or(REPLY_TIMEOUT));
        }
        transmits
    }

    /// Takes a datagram. Returns false if the datagram belongs to no test.
    pub(crate) fn arrived(&mut self, socket: SocketId, datagram: &[u8]) -> bool {
        let Some(course) = self.tests.get_mut(&socket) else { return false };
        let Test { data, key, .. } = &course.test;
        if test_of(datagram) != Some(*data) || authentic_round(datagram, key).is_none() {
            return false;
        }
        course.due = None;
        course.came_back = Some(true);
        true
    }

    /// Returns true if a datagram from the socket to its public address `address` arrived; `None`
    /// without a result.
    pub(crate) fn result(&self, socket: SocketId, address: SocketAddr) -> Option<bool> {
        self.tests.get(&socket).filter(|course| course.test.path.remote == address)?.came_back
    }
}
