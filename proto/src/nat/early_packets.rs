//! Test of harm by early packets (`docs/protocol.md` §7.6): packets from outside that arrive before
//! the first packet of a flow. A NAT without a firewall gives the port of that flow to the early
//! packet.
//!
//! A client opens a socket for each test and sends requests to the first two ports of a
//! coordinator. The request to the first port makes the coordinator send from its fourth port to
//! the mapping of that socket. Then the client sends a request to the fourth port. If early packets
//! harm, the fourth port sees another mapping than the first two.
//!
//! An early packet spoils the port of its socket for every later destination. So no test uses the
//! socket of the connection, and a coordinator never sends an early packet to the address of a
//! connection.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;
use rand::Rng;

use crate::{
    ControlStreamId, SocketId,
    command::{Command, Pool},
    environment::Context,
    nat::{
        Confidence, Evidence, Finding,
        observer::{EARLY, Observing, RETRY_DELAYS},
    },
    rate_limit::Rate,
};

/// Number of datagrams that a coordinator sends for one request. One may be lost.
pub(crate) const EARLY_DATAGRAMS: usize = 2;
/// Limit on the requests of a client for early packets. A test needs at most four.
pub(crate) const EARLY_RATE: Rate = Rate { interval: Duration::from_secs(60), burst: 8 };
/// Maximum number of clients with a limit.
pub(crate) const MAX_EARLY_CLIENTS: usize = 16_384;

/// Number of ports that show the mapping before early packets matter.
const USUAL: usize = 2;
/// Delay between the coordinator's answer and the request to the fourth port. The answer may
/// overtake the early packets.
const ARRIVAL: Duration = Duration::from_millis(150);
/// Time for the sockets to open.
const OPENING: Duration = Duration::from_secs(2);
/// Delay of a test after a change of the public address. A coordinator sends no early packets until
/// QUIC has validated the new address.
const SETTLING: Duration = Duration::from_secs(5);

/// A step of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Open a socket for the test over this control stream, in the pool of this number.
    Open(ControlStreamId, u32),
    /// Send a request to the port at this index of the offer, from the socket of the test.
    Ask(ControlStreamId, SocketId, usize),
    /// Close the pool of this number.
    Close(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Due,
    Opening,
    /// The first two ports were asked.
    Mapping(SocketId),
    /// The early packets have had time to arrive, and the fourth port was asked.
    Contacting(SocketId),
    Over,
}

#[derive(Debug)]
struct Test {
    peer: PeerId,
    pool: u32,
    stage: Stage,
    /// Time of the next step.
    due: Option<Instant>,
    /// Number of requests to the ports of this stage.
    rounds: usize,
    /// Ports at which the first two ports of the coordinator saw the socket.
    usual: [Option<u16>; USUAL],
    /// Result, true if early packets harm, and its time.
    outcome: Option<(bool, Instant)>,
}

impl Test {
    fn socket(&self) -> Option<SocketId> {
        match self.stage {
            Stage::Mapping(socket) | Stage::Contacting(socket) => Some(socket),
            Stage::Due | Stage::Opening | Stage::Over => None,
        }
    }

    /// Returns the indices of the ports that have not answered.
    fn missing(&self) -> Vec<usize> {
        match self.stage {
            Stage::Mapping(_) => {
                let seen = self.usual.iter().enumerate();
                seen.filter(|(_, port)| port.is_none()).map(|(place, _)| place).collect()
            }
            Stage::Contacting(_) => vec![EARLY],
            Stage::Due | Stage::Opening | Stage::Over => Vec::new(),
        }
    }

    fn begin(&mut self, stage: Stage, at: Instant) {
        (self.stage, self.rounds, self.due) = (stage, 0, Some(at));
    }
}

/// Tests of a client: one for each coordinator that offers four ports, repeated after a change of
/// the public address.
#[derive(Debug, Default)]
pub(crate) struct EarlyPackets {
    tests: BTreeMap<ControlStreamId, Test>,
    next_pool: u32,
    /// Pools of tests that were abandoned.
    abandoned: Vec<u32>,
}

impl EarlyPackets {
    /// Schedules a test with a coordinator that offers four ports.
    pub(crate) fn offered(&mut self, stream: ControlStreamId, peer: PeerId, now: Instant) {
        self.schedule(stream, peer, now);
    }

    /// Repeats the test with a coordinator that sees this peer at another address, perhaps behind
    /// another NAT.
    pub(crate) fn address_changed(&mut self, stream: ControlStreamId, now: Instant) {
        if let Some(peer) = self.tests.get(&stream).map(|test| test.peer) {
            self.schedule(stream, peer, now + SETTLING);
        }
    }

    fn schedule(&mut self, stream: ControlStreamId, peer: PeerId, due: Instant) {
        self.stream_down(stream);
        let pool = self.next_pool;
        self.next_pool = pool.wrapping_add(1);
        let (stage, due) = (Stage::Due, Some(due));
        let test = Test { peer, pool, stage, due, rounds: 0, usual: [None; USUAL], outcome: None };
        self.tests.insert(stream, test);
    }

    pub(crate) fn stream_down(&mut self, stream: ControlStreamId) {
        let test = self.tests.remove(&stream);
        let opened = test.filter(|test| !matches!(test.stage, Stage::Due | Stage::Over));
        self.abandoned.extend(opened.map(|test| test.pool));
    }

    /// Starts the test whose socket is open. Returns false if no test waits for the socket.
    pub(crate) fn opened(&mut self, pool: u32, socket: Option<SocketId>, now: Instant) -> bool {
        let mut tests = self.tests.values_mut();
        let waiting = tests.find(|test| test.pool == pool && test.stage == Stage::Opening);
        let (Some(test), Some(socket)) = (waiting, socket) else { return false };
        test.begin(Stage::Mapping(socket), now);
        true
    }

    /// Takes the answer of the port at index `place` of the offer: it saw the socket of a test at
    /// this port.
    pub(crate) fn answered(
        &mut self,
        stream: ControlStreamId,
        place: usize,
        socket: SocketId,
        port: u16,
        now: Instant,
    ) {
        let Some(test) = self.tests.get_mut(&stream).filter(|test| test.socket() == Some(socket)) else {
            return;
        };
        match test.stage {
            Stage::Mapping(_) => {
                if let Some(seen) = test.usual.get_mut(place) {
                    *seen = Some(port);
                }
                if test.usual.iter().all(Option::is_some) {
                    test.begin(Stage::Contacting(socket), now + ARRIVAL);
                }
            }
            Stage::Contacting(_) if place == EARLY => {
                // If every destination has another port, the port that the fourth one saw shows
                // nothing.
                let [first, second] = test.usual;
                test.outcome = (first == second).then_some((Some(port) != first, now));
                test.begin(Stage::Over, now);
            }
            _ => {}
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tests.values().filter_map(|test| test.due).min()
    }

    /// Returns the steps that are due.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<Step> {
        let mut steps: Vec<Step> = self.abandoned.drain(..).map(Step::Close).collect();
        for (stream, test) in &mut self.tests {
            if test.due.is_none_or(|due| due > now) {
                continue;
            }
            let pool = test.pool;
            match test.stage {
                Stage::Due => {
                    test.begin(Stage::Opening, now + OPENING);
                    steps.push(Step::Open(*stream, pool));
                }
                Stage::Mapping(socket) | Stage::Contacting(socket) if test.rounds <= RETRY_DELAYS.len() => {
                    steps.extend(test.missing().into_iter().map(|place| Step::Ask(*stream, socket, place)));
                    // The last request needs time for its answer.
                    let wait =
                        RETRY_DELAYS.get(test.rounds).or(RETRY_DELAYS.last()).copied().unwrap_or_default();
                    (test.rounds, test.due) = (test.rounds + 1, Some(now + wait));
                }
                _ => {
                    (test.stage, test.due) = (Stage::Over, None);
                    steps.push(Step::Close(pool));
                }
            }
        }
        steps
    }

    /// Carries out the steps that are due.
    pub(crate) fn run(&mut self, cx: &mut Context<'_>, observing: &mut Observing) {
        for step in self.poll(cx.now) {
            match step {
                Step::Open(stream, number) => {
                    let socket = cx.env.streams.get(stream).and_then(|stream| stream.socket);
                    if let Some(socket) = socket.and_then(|socket| cx.env.local.socket(socket)) {
                        let (pool, local) = (Pool::EarlyPackets(number), socket.local.ip());
                        cx.env.out.command(Command::OpenSockets { pool, local, count: 1 });
                    }
                }
                Step::Ask(stream, socket, place) => {
                    let data = cx.env.rng.random();
                    if let Some((path, payload)) = observing.test(stream, place, socket, data, cx.now) {
                        cx.env.out.transmit(path, payload);
                    }
                }
                Step::Close(number) => Self::close(cx, number),
            }
        }
    }

    /// Closes the pool of a test.
    pub(crate) fn close(cx: &mut Context<'_>, number: u32) {
        cx.env.out.command(Command::CloseSockets { pool: Pool::EarlyPackets(number), keep: Vec::new() });
    }

    /// Returns true if this is a socket of a test.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.tests.values().any(|test| test.socket() == Some(socket))
    }

    /// Returns true if early packets harm, by the tests over the control streams that `is_meant`
    /// selects. Returns `None` if none of these tests has a result.
    pub(crate) fn finding(&self, is_meant: impl Fn(ControlStreamId) -> bool) -> Option<Finding<bool>> {
        let tests = self.tests.iter().filter(|(stream, _)| is_meant(**stream));
        let all: Vec<_> = tests.filter_map(|(_, test)| Some((test.peer, test.outcome?))).collect();
        // An early packet that was lost did no harm.
        let value = all.iter().map(|(_, (harms, _))| *harms).max()?;
        let agree = all.iter().filter(|(_, (harms, _))| *harms == value);
        let evidence = Evidence::new(agree.map(|(peer, (_, at))| (*peer, *at)))?;
        let contradicted = all.iter().any(|(_, (harms, _))| *harms != value);
        let confidence = match contradicted {
            true => Confidence::Low,
            false => Confidence::of_observers(evidence.observers.len()),
        };
        Some(Finding { value, confidence, evidence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: ControlStreamId = ControlStreamId(8);
    const SOCKET: SocketId = SocketId(70);

    /// Runs a test in which the ports that are not `None` answer, and returns the steps and their
    /// times.
    fn run(test: &mut EarlyPackets, seen: [Option<u16>; 4], start: Instant) -> Vec<(Duration, Step)> {
        let mut steps = Vec::new();
        while let Some(at) = test.next_deadline() {
            for step in test.poll(at) {
                steps.push((at - start, step));
                match step {
                    Step::Open(_, pool) => assert!(test.opened(pool, Some(SOCKET), at)),
                    Step::Ask(stream, socket, place) => {
                        if let Some(port) = seen[place] {
                            test.answered(stream, place, socket, port, at);
                        }
                    }
                    Step::Close(_) => {}
                }
            }
        }
        steps
    }

    fn offered(now: Instant) -> EarlyPackets {
        let mut test = EarlyPackets::default();
        test.offered(LINK, PeerId::random(), now);
        test
    }

    fn outcome(seen: [Option<u16>; 4]) -> Option<bool> {
        let now = Instant::now();
        let mut test = offered(now);
        run(&mut test, seen, now);
        assert!(!test.owns(SOCKET));
        test.finding(|stream| stream == LINK).map(|finding| finding.value)
    }

    #[test]
    fn a_port_that_was_given_away_shows_where_the_coordinator_sent_first() {
        let [usual, other] = [Some(7000), Some(9000)];
        assert_eq!(outcome([usual, usual, None, usual]), Some(false));
        assert_eq!(outcome([usual, usual, None, other]), Some(true));
        assert_eq!(
            outcome([usual, other, None, Some(9001)]),
            None,
            "every destination has another port there"
        );
        assert_eq!(outcome([usual, usual, None, None]), None, "no answer");
        assert_eq!(outcome([usual, None, None, usual]), None, "the usual port is not known");
    }

    #[test]
    fn the_fourth_port_is_asked_only_once_the_first_two_have_answered_and_early_packets_had_time() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut test = offered(now);
        let ask = |place| Step::Ask(LINK, SOCKET, place);
        assert_eq!(
            run(&mut test, [Some(7000), Some(7000), None, Some(9000)], now),
            [
                (ms(0), Step::Open(LINK, 0)),
                (ms(0), ask(0)),
                (ms(0), ask(1)),
                (ms(150), ask(EARLY)),
                (ms(150), Step::Close(0)),
            ]
        );
        let mut test = offered(now);
        let silent = run(&mut test, [Some(7000), None, None, None], now);
        let asked = |place| silent.iter().filter(|(_, step)| *step == ask(place)).count();
        assert_eq!((asked(0), asked(1), asked(EARLY)), (1, 4, 0));
        assert!(matches!(silent.last(), Some((_, Step::Close(_)))));
    }

    #[test]
    fn a_test_that_is_given_up_leaves_no_socket_and_another_address_is_tested_anew() {
        let now = Instant::now();
        let mut test = offered(now);
        assert_eq!(test.poll(now), [Step::Open(LINK, 0)]);
        test.address_changed(LINK, now);
        assert_eq!(test.poll(now), [Step::Close(0)]);
        assert!(!test.opened(0, Some(SOCKET), now), "too late");
        assert_eq!(test.poll(now + SETTLING), [Step::Open(LINK, 1)]);
        assert!(test.opened(1, Some(SOCKET), now + SETTLING));
        test.answered(LINK, 0, SocketId(71), 7000, now);
        test.stream_down(LINK);
        assert_eq!(test.poll(now + SETTLING), [Step::Close(1)]);
        assert_eq!(test.next_deadline(), None);
    }

    #[test]
    fn one_coordinator_whose_packets_did_harm_outweighs_another_whose_packets_were_lost() {
        let now = Instant::now();
        let mut test = offered(now);
        run(&mut test, [Some(7000), Some(7000), None, Some(7000)], now);
        test.offered(ControlStreamId(9), PeerId::random(), now);
        run(&mut test, [Some(7000), Some(7000), None, Some(9000)], now);
        let finding = test.finding(|_| true).expect("both were tested");
        assert_eq!((finding.value, finding.confidence), (true, Confidence::Low));
        assert_eq!(test.finding(|stream| stream == LINK).map(|finding| finding.value), Some(false));
    }
}
