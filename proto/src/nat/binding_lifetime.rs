//! Lifetime of a mapping without traffic (RFC 4787 §4.3), by the method of RFC 5780 §4.6
//! (`docs/protocol.md` §7.6).
//!
//! A client opens a socket for each delay. From each socket it asks an observer for a delayed
//! reply, and then sends nothing until the reply is due. A reply that arrives shows that the
//! mapping has outlived the delay. `BindingLifetimeTest` is the side of the client,
//! `DelayedReplies` that of the observer.
//!
//! The observer replies only to the IP address of the client's own connection, with at most three
//! times the bytes of the request. So a client cannot direct replies at other hosts.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{
    ControlStreamId, Path, SocketId,
    command::{Command, Pool},
    control_streams::ControlStream,
    environment::Context,
    nat::{Evidence, Finding, IdleLifetime},
    rate_limit::{PeerBuckets, Rate},
    wire::{
        envelope::{Envelope, Kind, PROBE_LEN, SealedProbe},
        frame::ObserverOffer,
        mac::MacKey,
    },
};

/// Delays of the replies in seconds. Common lifetimes are 30, 60, 90, 120, 180 and 300 s, and lie
/// between two delays.
pub(crate) const DELAYS: [u16; 8] = [20, 40, 55, 75, 100, 150, 200, 290];
/// Maximum delay that an observer accepts, in seconds.
const MAX_DELAY: u16 = 600;
/// Delay of the measurement after an offer. A program that runs for a moment needs no measurement.
const START_DELAY: Duration = Duration::from_secs(10);
/// Time for the sockets to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Times of the requests of a socket, from the opening of the sockets on. Linux gives a mapping its
/// full lifetime only after two seconds of traffic in both directions. Later requests replace lost
/// ones.
const REQUESTS: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(3), Duration::from_millis(3_600), Duration::from_millis(4_800)];
/// Time after which an immediate reply shows that the mapping has its full lifetime, which then
/// begins.
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// Time for the reply to the last request to arrive.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Number of delayed replies to a request. The first may be lost.
const REPLIES: u8 = 2;
const REPLY_INTERVAL: Duration = Duration::from_millis(300);
/// Limit on the requests of a client: one measurement at once, then one socket per minute.
pub(crate) const HOLD_RATE: Rate = Rate { interval: Duration::from_secs(60), burst: 8 };
/// Maximum number of clients with a limit.
const MAX_CLIENTS: usize = 16_384;
/// Maximum number of pending requests of all clients.
pub(crate) const MAX_HOLDS: usize = 4096;

/// Returns a request for a reply after `delay` seconds.
pub fn request(offer: &ObserverOffer, data: [u8; 8], delay: u16) -> [u8; PROBE_LEN] {
    let mut address = [0; 18];
    address[..2].copy_from_slice(&delay.to_be_bytes());
    Envelope { address, ..Envelope::new(Kind::Hold, offer.token, data) }.seal(&MacKey::new(&offer.key))
}

/// Decodes the delay from the address field of a request.
pub(crate) fn delay_of(address: &[u8]) -> Option<u16> {
    let (delay, rest) = address.split_first_chunk::<2>()?;
    let delay = u16::from_be_bytes(*delay);
    ((1..=MAX_DELAY).contains(&delay) && rest.iter().all(|byte| *byte == 0)).then_some(delay)
}

/// Returns the immediate reply to a request, or the delayed reply if `held`.
pub fn answer(key: &[u8; 32], data: [u8; 8], held: bool) -> [u8; PROBE_LEN] {
    reply(data, held).seal(&MacKey::new(key))
}

fn reply(data: [u8; 8], held: bool) -> Envelope {
    Envelope::new(Kind::Held, data, [0, 0, 0, 0, 0, 0, 0, u8::from(held)])
}

/// Checks a reply to the request `data`. Returns true for the delayed reply, false for the
/// immediate one, and `None` for any other datagram.
pub(crate) fn judge(datagram: &[u8], key: &[u8; 32], data: [u8; 8]) -> Option<bool> {
    let sealed = SealedProbe::parse(datagram)?;
    let held = sealed.claimed == reply(data, true);
    let is_meant = held || sealed.claimed == reply(data, false);
    (is_meant && sealed.is_authentic(&MacKey::new(key))).then_some(held)
}

/// Request for an immediate and a delayed reply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HoldRequest {
    pub(crate) data: [u8; 8],
    /// Delay of the second reply in seconds.
    pub(crate) delay: u16,
    /// Key of the client.
    pub(crate) key: [u8; 32],
}

#[derive(Debug)]
struct Hold {
    path: Path,
    key: [u8; 32],
    due: Instant,
    sent: u8,
}

/// Delayed replies of an observer.
#[derive(Debug)]
pub(crate) struct DelayedReplies {
    all: BTreeMap<(ControlStreamId, [u8; 8]), Hold>,
    clients: PeerBuckets,
}

impl DelayedReplies {
    pub(crate) fn new() -> Self {
        Self { all: BTreeMap::new(), clients: PeerBuckets::new(HOLD_RATE, MAX_CLIENTS) }
    }

    /// Takes a request or its repetition, and returns the immediate reply.
    pub(crate) fn hold(
        &mut self,
        from: &ControlStream,
        path: Path,
        request: HoldRequest,
        now: Instant,
    ) -> Option<[u8; PROBE_LEN]> {
        let HoldRequest { data, delay, key } = request;
        let name = (from.id, data);
        let known = self.all.contains_key(&name);
        if !known && (self.all.len() >= MAX_HOLDS || self.clients.take(from.peer, now).is_err()) {
            return None;
        }
        let due = now + Duration::from_secs(delay.into());
        self.all.insert(name, Hold { path, key, due, sent: 0 });
        Some(answer(&key, data, false))
    }

    pub(crate) fn stream_down(&mut self, stream: ControlStreamId) {
        self.all.retain(|(of, _), _| *of != stream);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.all.values().map(|hold| hold.due).min()
    }

    /// Returns the replies that are due.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<(Path, [u8; PROBE_LEN])> {
        let mut answers = Vec::new();
        self.all.retain(|(_, data), hold| {
            if hold.due <= now {
                answers.push((hold.path, answer(&hold.key, *data, true)));
                hold.sent += 1;
                hold.due = now + REPLY_INTERVAL;
            }
            hold.sent < REPLIES
        });
        answers
    }
}

/// Outcome of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Lived,
    Died,
    /// The observer did not send an immediate reply.
    Unknown,
}

/// Test of one delay with one socket.
#[derive(Debug)]
struct Trial {
    socket: SocketId,
    delay: u16,
    data: [u8; 8],
    requests: usize,
    /// Time of the next request, or end of the wait for a reply.
    due: Instant,
    /// The mapping has its full lifetime, which has begun.
    settled: bool,
    outcome: Option<Outcome>,
}

#[derive(Debug)]
struct Measurement {
    stream: ControlStreamId,
    peer: PeerId,
    /// IP address of the observer.
    ip: IpAddr,
    offer: ObserverOffer,
    /// Time of the request for sockets, then the time at which they were open.
    begun: Option<Instant>,
    due: Instant,
    trials: Vec<Trial>,
}

/// Next step of the measurement.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Open,
    Send(Path, [u8; PROBE_LEN]),
    /// The measurement has ended.
    Close,
}

/// Measurement of a client. There is one at a time, and one for each network.
#[derive(Debug, Default)]
pub(crate) struct BindingLifetimeTest {
    measurement: Option<Measurement>,
    result: Option<Finding<IdleLifetime>>,
}

impl BindingLifetimeTest {
    /// Schedules a measurement with a coordinator at `ip` that offers to observe.
    pub(crate) fn offered(&mut self, from: &ControlStream, ip: IpAddr, offer: &ObserverOffer, now: Instant) {
        if self.measurement.is_none() && self.result.is_none() {
            let (stream, peer) = (from.id, from.peer);
            let (offer, due) = (offer.clone(), now + START_DELAY);
            let measurement = Measurement { stream, peer, ip, offer, begun: None, due, trials: Vec::new() };
            self.measurement = Some(measurement);
        }
    }

    /// Ends the measurement over a control stream. Returns true if there are sockets to close.
    pub(crate) fn stream_down(&mut self, stream: ControlStreamId) -> bool {
        let gone = self.measurement.take_if(|measurement| measurement.stream == stream);
        gone.is_some_and(|measurement| measurement.begun.is_some())
    }

    /// Schedules another measurement after a change of the network, and drops the result. Returns
    /// true if there are sockets to close.
    pub(crate) fn network_changed(&mut self, now: Instant) -> bool {
        self.result = None;
        let Some(measurement) = &mut self.measurement else { return false };
        measurement.trials.clear();
        measurement.due = now + START_DELAY;
        measurement.begun.take().is_some()
    }

    pub(crate) fn result(&self) -> Option<Finding<IdleLifetime>> {
        self.result.clone()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let measurement = self.measurement.as_ref()?;
        let pending = measurement.trials.iter().filter(|trial| trial.outcome.is_none());
        pending.map(|trial| trial.due).min().or(Some(measurement.due))
    }

    /// Starts a trial with each open socket. There may be fewer sockets than delays. Returns false
    /// if no measurement waits for sockets.
    pub(crate) fn opened(
        &mut self,
        sockets: &[SocketId],
        mut data: impl FnMut() -> [u8; 8],
        now: Instant,
    ) -> bool {
        let Some(measurement) = self.measurement.as_mut().filter(|m| m.begun.is_some()) else { return false };
        let trial = |(socket, delay): (&SocketId, &u16)| Trial {
            socket: *socket,
            delay: *delay,
            data: data(),
            requests: 0,
            due: now,
            settled: false,
            outcome: None,
        };
        measurement.trials = sockets.iter().zip(&DELAYS).map(trial).collect();
        (measurement.begun, measurement.due) = (Some(now), now);
        true
    }

    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        let mut trials = self.measurement.iter().flat_map(|measurement| &measurement.trials);
        trials.any(|trial| trial.socket == socket)
    }

    /// Returns the next step that is due.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Step> {
        let measurement = self.measurement.as_mut()?;
        let Some(begun) = measurement.begun else {
            let is_due = measurement.due <= now;
            return is_due.then(|| {
                (measurement.begun, measurement.due) = (Some(now), now + OPEN_TIMEOUT);
                Step::Open
            });
        };
        let port = measurement.offer.ports.first().copied()?;
        for trial in measurement.trials.iter_mut().filter(|t| t.outcome.is_none() && t.due <= now) {
            if trial.settled || trial.requests == REQUESTS.len() {
                trial.outcome = Some(if trial.settled { Outcome::Died } else { Outcome::Unknown });
                continue;
            }
            trial.requests += 1;
            trial.due = REQUESTS.get(trial.requests).map_or(now + REPLY_TIMEOUT, |after| begun + *after);
            let path = Path { socket: trial.socket, remote: (measurement.ip, port).into() };
            return Some(Step::Send(path, request(&measurement.offer, trial.data, trial.delay)));
        }
        let over = measurement.due <= now && measurement.trials.iter().all(|trial| trial.outcome.is_some());
        let opened = !measurement.trials.is_empty();
        if over {
            self.conclude(now);
        }
        (over && opened).then_some(Step::Close)
    }

    /// Carries out the steps that are due. Returns true if the measurement has ended.
    pub(crate) fn run(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_ended = false;
        while let Some(step) = self.poll(cx.now) {
            match step {
                Step::Open => open_sockets(cx),
                Step::Send(path, payload) => cx.env.out.transmit(path, payload),
                Step::Close => {
                    Self::close(cx);
                    has_ended = true;
                }
            }
        }
        has_ended
    }

    /// Closes the sockets of the measurement.
    pub(crate) fn close(cx: &mut Context<'_>) {
        cx.env.out.command(Command::CloseSockets { pool: Pool::BindingLifetimeTest, keep: Vec::new() });
    }

    /// Takes a datagram to a socket of the measurement. Returns false if the datagram is not a
    /// reply.
    pub(crate) fn answered(&mut self, socket: SocketId, datagram: &[u8], now: Instant) -> bool {
        let Some(measurement) = &mut self.measurement else { return false };
        let Some(begun) = measurement.begun else { return false };
        let Some(trial) = measurement.trials.iter_mut().find(|trial| trial.socket == socket) else {
            return false;
        };
        match judge(datagram, &measurement.offer.key, trial.data) {
            Some(false) if now >= begun + SETTLE_TIME && !trial.settled => {
                trial.settled = true;
                trial.due = now + Duration::from_secs(trial.delay.into()) + REPLY_TIMEOUT;
            }
            Some(true) if trial.settled => trial.outcome = Some(Outcome::Lived),
            Some(_) => {}
            None => return false,
        }
        true
    }

    fn conclude(&mut self, now: Instant) {
        if let Some(measurement) = self.measurement.take() {
            let with = |outcome| {
                let all = measurement.trials.iter().filter(move |trial| trial.outcome == Some(outcome));
                all.map(|trial| Duration::from_secs(trial.delay.into()))
            };
            let lived = with(Outcome::Lived).max();
            let at_least = lived.unwrap_or_default();
            // An arrived reply outweighs a missing one, which may have been lost.
            let less_than = with(Outcome::Died).filter(|died| *died > at_least).min();
            let heard = with(Outcome::Lived).chain(with(Outcome::Died)).map(|_| (measurement.peer, now));
            let evidence = Evidence::new(heard);
            self.result =
                evidence.map(|evidence| Finding::agreed(IdleLifetime { at_least, less_than }, evidence));
        }
    }
}

/// Opens the sockets of a measurement, if there is a NAT. Without a NAT the measurement ends
/// without a result.
fn open_sockets(cx: &mut Context<'_>) {
    let Some(id) = cx.env.coordinated_socket() else { return };
    let local = &cx.env.local;
    let report = local.observations.report(id, &local.current_view(id), &local.addresses_of_socket(id));
    let is_translated = report.translated.is_some_and(|finding| finding.value);
    if let Some(local) = local.socket(id).map(|socket| socket.local.ip()).filter(|_| is_translated) {
        let (pool, count) = (Pool::BindingLifetimeTest, DELAYS.len());
        cx.env.out.command(Command::OpenSockets { pool, local, count });
    }
}

#[cfg(test)]
mod tests;
