//! An endpoint under inputs in any order: the state machine of the protocol, as
//! `proto/tests/scenarios/inputs.rs` and the fuzz target `endpoint` drive it.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use libp2p_identity::{Keypair, PeerId};
use libp2p_punch_proto::{
    ControlStreamId, Path, SessionId, SocketId, VirtualConnectionId,
    candidate::{Candidate, CandidateKind},
    command::{Command, Pool},
    config::{Config, Disclosure, Role},
    endpoint::Endpoint,
    event::{Event, SessionRole},
    rate_limit::Rate,
    wire::{
        frame::{Frame, PunchAnswer, PunchMeNow, PunchRequest, Registration, RejectReason, decode},
        keys::{ProbeKeys, ProbeSecret},
        probe::Probe,
    },
};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn keypair(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes make a key")
}

/// A few of everything, so that inputs meet.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Socket(u8, bool),
    SocketDown(u8),
    Interface(u8),
    InterfaceDown(u8),
    Reachable(bool),
    Coordinator(u8),
    NoCoordinator(u8),
    ControlStream(u8, u8),
    LinkDown(u8),
    Connect(u8),
    Cancel(u8),
    FirstFlight(u8, u8),
    Established(u8),
    Closed(u8),
    Observed(u8, u8, u8),
    Announce(u8, u8),
    Withdraw(u8, u8),
    Register(u8, u8),
    Registered(u8, u8),
    RegisterRejected(u8, u8),
    /// Link, initiator, round, whether for us, observed.
    Punch(u8, u8, u8, bool, u8),
    /// Answers the last request that was sent, as this peer.
    Answer(u8, u8),
    Reject(u8, u8),
    Probe(u8, u8, bool),
    /// A datagram at a socket.
    Noise(u8, Vec<u8>),
    /// A frame as on the wire, if it is one.
    Raw(u8, Vec<u8>),
    /// The sockets that the endpoint asked for last are open, as far as this many.
    Opened(u8),
    Silent(u8),
    Quiet(u8),
    /// A connection over a relay is to become direct.
    Upgrade(u8),
    Wait(u16),
}

fn peer(seed: u8) -> Keypair {
    keypair(seed.wrapping_add(100))
}

/// Loopback, private, public, multicast and port 0, IPv4 and IPv6.
fn address(seed: u8) -> SocketAddr {
    const IPS: [&str; 8] =
        ["127.0.0.1", "10.0.0.1", "192.0.2.1", "203.0.113.7", "224.0.0.1", "2001:db8::1", "fe80::1", "::"];
    let ip: IpAddr = IPS[usize::from(seed) % IPS.len()].parse().unwrap();
    SocketAddr::new(ip, u16::from(seed / 8) * 100)
}

fn candidates(seed: u8) -> Vec<Candidate> {
    (0..u64::from(seed % 12))
        .map(|sequence| {
            let mut address = address(seed.wrapping_mul(7).wrapping_add(sequence as u8));
            address.set_port(address.port().max(1));
            Candidate { sequence, kind: CandidateKind::Host, priority: u32::from(seed), address }
        })
        .collect()
}

/// Returns mostly the last virtual connection, sometimes any.
fn flow(seed: u8, last: u64) -> u64 {
    if seed < 192 { last.saturating_sub(u64::from(seed / 64)) } else { u64::from(seed % 16) }
}

fn reason(seed: u8) -> RejectReason {
    use RejectReason::*;
    [NotConnected, RateLimited, NotWilling, Superseded][usize::from(seed) % 4]
}

/// An endpoint, and what is needed to say something that it believes.
struct Rig {
    endpoint: Endpoint,
    us: Keypair,
    now: Instant,
    /// The last request that the endpoint sent, and its own registration key.
    request: Option<PunchRequest>,
    probe_key: [u8; 32],
    /// Keys with which the peer of a session can make probes.
    keys: Vec<ProbeKeys>,
    last_flow: u64,
    generation: u64,
    /// Sockets that the endpoint asked for, and how many were opened so far.
    wanted: Option<(Pool, u32)>,
    opened: u32,
}

const SECRET: [u8; 32] = [42; 32];

impl Rig {
    fn new(role: Role) -> Self {
        let us = keypair(1);
        let now = Instant::now();
        let config = Config { role, ..Config::default() };
        let endpoint = Endpoint::new(&config, us.clone(), [3; 32], 0);
        Self {
            endpoint,
            us,
            now,
            request: None,
            probe_key: [0; 32],
            keys: Vec::new(),
            last_flow: 0,
            generation: 0,
            wanted: None,
            opened: 0,
        }
    }

    fn our_id(&self) -> PeerId {
        self.us.public().to_peer_id()
    }

    /// Every other connection ends because a swarm denies it.
    fn closed(&mut self, f: u8) {
        let flow = VirtualConnectionId(flow(f, self.last_flow));
        match f % 2 {
            0 => self.endpoint.handle_closed(flow, self.now),
            _ => self.endpoint.handle_denied(flow, self.now),
        }
    }

    fn apply(&mut self, input: Input) {
        let now = self.now;
        let endpoint = &mut self.endpoint;
        let id = |seed: u8| peer(seed).public().to_peer_id();
        match input {
            Input::Socket(s, accepts) => {
                let local = if s % 2 == 0 { "0.0.0.0:4001" } else { "[::]:4001" };
                endpoint.handle_socket_up(SocketId(s.into()), local.parse().unwrap(), accepts, now);
            }
            Input::SocketDown(s) => endpoint.handle_socket_down(SocketId(s.into()), now),
            Input::Interface(a) => endpoint.handle_interface_up(address(a).ip(), a, now),
            Input::InterfaceDown(a) => endpoint.handle_interface_down(address(a).ip(), now),
            Input::Reachable(yes) => endpoint.set_publicly_reachable(yes, now),
            Input::Coordinator(p) => endpoint.add_coordinator(id(p), now),
            Input::NoCoordinator(p) => endpoint.remove_coordinator(&id(p), now),
            Input::ControlStream(l, p) => {
                let socket = Some(SocketId(u32::from(l)));
                let who = id(if p < 3 { l } else { 0 });
                endpoint.handle_link_up(
                    ControlStreamId(l.into()),
                    who,
                    Some(address(l * 8 + 10)),
                    socket,
                    now,
                );
            }
            Input::LinkDown(l) => endpoint.handle_link_down(ControlStreamId(l.into()), now),
            Input::Connect(p) => {
                assert_eq!(endpoint.connect(id(p), now), Ok(()));
            }
            Input::Cancel(p) => endpoint.cancel(&id(p), now),
            Input::FirstFlight(f, n) => {
                let flight = vec![Bytes::from_static(&[0xc0; 1200]); usize::from(n.max(1))];
                endpoint.handle_first_flight(
                    VirtualConnectionId(self.last_flow.saturating_sub(f.into())),
                    flight,
                    now,
                );
            }
            Input::Established(f) => {
                let path = Path { socket: SocketId(0), remote: address(3) };
                endpoint.handle_established(VirtualConnectionId(flow(f, self.last_flow)), path, now);
            }
            Input::Closed(f) => self.closed(f),
            Input::Probe(a, s, nominate) => self.probe(a, s, nominate),
            Input::Silent(f) => endpoint.handle_silent(VirtualConnectionId(flow(f, self.last_flow)), now),
            Input::Quiet(f) => endpoint.handle_quiet(VirtualConnectionId(flow(f, self.last_flow)), now),
            Input::Upgrade(p) => {
                assert_eq!(endpoint.upgrade(id(p), now), Ok(()));
            }
            Input::Opened(count) => {
                if let Some((pool, wanted)) = self.wanted.take() {
                    let first = 100 + self.opened;
                    let opened = u32::from(count).min(wanted);
                    self.opened += opened;
                    let sockets: Vec<_> = (first..first + opened).map(|n| (SocketId(n), port(n))).collect();
                    endpoint.handle_sockets_opened(pool, &sockets, now);
                }
            }
            Input::Noise(s, bytes) => {
                let path = Path { socket: SocketId(u32::from(s)), remote: address(3) };
                endpoint.handle_datagram(path, &bytes, now);
            }
            Input::Wait(millis) => self.wait(ms(u64::from(millis / 8))),
            frame => self.frame(frame),
        }
        self.drain();
    }

    fn frame(&mut self, input: Input) {
        let now = self.now;
        let (link, frame) = match input {
            Input::Observed(l, n, a) => {
                (l, Frame::ObservedAddress { sequence: n.into(), address: address(a) })
            }
            Input::Announce(l, s) => match candidates(s).pop() {
                Some(candidate) => (l, Frame::AddAddress(candidate)),
                None => return,
            },
            Input::Withdraw(l, s) => (l, Frame::RemoveAddress { sequence: s.into() }),
            Input::Register(l, p) => {
                let lifetime = Duration::from_secs(u64::from(p) * 3);
                self.generation += 1;
                let signer = peer(if p == 0 { 3 } else { l });
                let signed =
                    Registration::sign(&signer, self.generation, lifetime, [7; 32], &[], Bytes::new())
                        .unwrap();
                (l, Frame::Register { registration: signed, disclosure: Disclosure::ToAll })
            }
            Input::Registered(l, g) => {
                let allowance = Rate { burst: u32::from(g), interval: ms(g.into()) };
                let lifetime = Duration::from_secs(30);
                (l, Frame::Registered { generation: g.into(), lifetime, allowance })
            }
            Input::RegisterRejected(l, g) => {
                let (reason, retry_after) = (reason(g), ms(u64::from(g) * 100));
                (l, Frame::RegisterRejected { generation: g.into(), reason, retry_after })
            }
            Input::Punch(l, p, round, true, observed) => (0, self.punch(p.max(l), round, true, observed)),
            Input::Punch(l, p, round, false, observed) => {
                (l, self.punch(if p == 0 { 3 } else { l }, round, false, observed))
            }
            Input::Answer(l, p) => match self.answer(p) {
                Some(frame) => (l / 2, frame),
                None => return,
            },
            Input::Reject(l, r) => {
                let Some(request) = &self.request else { return };
                let (session, round) = (request.session, request.round);
                let retry_after = ms(u64::from(r) * 100);
                (l, Frame::PunchRejected { session, round, reason: reason(r), retry_after })
            }
            Input::Raw(l, bytes) => match decode(&mut BytesMut::from(&bytes[..])) {
                Ok(Some(frame)) => (l, frame),
                _ => return,
            },
            other => unreachable!("{other:?} is no frame"),
        };
        self.endpoint.handle_frame(ControlStreamId(link.into()), frame, now);
    }

    fn punch(&mut self, from: u8, round: u8, for_us: bool, observed: u8) -> Frame {
        let keypair = peer(from);
        let initiator = keypair.public().to_peer_id();
        let responder = if for_us { self.our_id() } else { peer(3 - from).public().to_peer_id() };
        let session = SessionId([observed % 3; 16]);
        let secret = ProbeSecret::new(SECRET);
        let (role, theirs) = (SessionRole::Initiator, &self.probe_key);
        self.keys.extend(ProbeKeys::derive(&secret, theirs, session, &initiator, &responder, role));
        let request = PunchRequest {
            session,
            round: round.into(),
            initiator: keypair.public().encode_protobuf().into(),
            responder,
            lifetime: ms(u64::from(round) * 100),
            probe_key: secret.public(),
            candidates: candidates(observed),
            nat: Bytes::new(),
            first_flight: vec![Bytes::from_static(&[0xc0; 1200])],
        };
        let signature = request.sign(&keypair).unwrap();
        let observed = Some(address(observed));
        Frame::PunchMeNow(Box::new(PunchMeNow { request, signature, observed }))
    }

    fn answer(&mut self, p: u8) -> Option<Frame> {
        let request = self.request.clone()?;
        let keypair = (0..4).map(peer).find(|k| k.public().to_peer_id() == request.responder)?;
        let secret = ProbeSecret::new(SECRET);
        let (session, round) = (request.session, request.round);
        let (ours, role) = (self.our_id(), SessionRole::Responder);
        let theirs = &request.probe_key;
        self.keys.extend(ProbeKeys::derive(&secret, theirs, session, &ours, &request.responder, role));
        let candidates = candidates(p * 50 + 3);
        // One in four is signed by somebody else.
        let signer = if p == 0 { peer(9) } else { keypair };
        let registration =
            Registration::sign(&signer, 1, ms(9000), secret.public(), &candidates, Bytes::new()).unwrap();
        let observed = Some(address(p + 1));
        Some(Frame::PunchAnswer(Box::new(PunchAnswer { session, round, registration, candidates, observed })))
    }

    fn probe(&mut self, from: u8, key: u8, nominate: bool) {
        let Some(keys) = self.keys.iter().rev().nth(key.into()) else { return };
        let probe = Probe::Challenge { data: [from; 8], nominate };
        let path = Path { socket: SocketId(u32::from(from % 2)), remote: address(from) };
        self.endpoint.handle_datagram(path, &probe.encode(keys), self.now);
    }

    /// Lets time pass as the shell does, with a bound on how often the endpoint may want to be
    /// woken.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        let mut wakes = 0;
        while let Some(at) = self.endpoint.poll_timeout().filter(|at| *at <= end) {
            wakes += 1;
            assert!(wakes < 20_000, "woken for nothing");
            self.now = self.now.max(at);
            self.endpoint.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.endpoint.poll_transmit() {
            let remote = transmit.path.remote;
            assert!(remote.port() != 0 && !remote.ip().is_multicast() && !remote.ip().is_unspecified());
            // Half of the probes are answered, if the peer's keys are at hand.
            for keys in &self.keys {
                if let Ok(Probe::Challenge { data, .. }) = Probe::decode(&transmit.payload, keys)
                    && data[0] % 2 == 0
                {
                    let response = Probe::Response { data, observed: address(3) }.encode(keys);
                    self.endpoint.handle_datagram(transmit.path, &response, self.now);
                }
            }
        }
        while let Some(command) = self.endpoint.poll_command() {
            match command {
                Command::Connect { flow, .. } | Command::Accept { flow, .. } => {
                    self.last_flow = self.last_flow.max(flow.0);
                }
                Command::OpenSockets { pool, count, .. } => {
                    self.wanted = Some((pool, u32::try_from(count).expect("few")));
                }
                _ => {}
            }
        }
        while let Some((_, frame)) = self.endpoint.poll_frame() {
            match frame {
                Frame::PunchMeNow(punch) => self.request = Some(punch.request),
                Frame::Register { registration, .. } => self.probe_key = registration.probe_key,
                _ => {}
            }
        }
        while let Some(event) = self.endpoint.poll_event() {
            if let Event::Connected { peer, .. } | Event::Failed { peer, .. } = event {
                assert_ne!(peer, self.our_id());
            }
        }
        let c = self.endpoint.counters();
        assert_eq!(c.attempts, c.successes + c.failures + c.in_flight, "{c:?}");
        assert!(c.in_flight <= self.endpoint.sessions() as u64);
        assert!(c.denied <= c.failures, "{c:?}");
    }
}

fn port(n: u32) -> u16 {
    40_000 + u16::try_from(n % 10_000).expect("below 10,000")
}

/// Gives an endpoint all inputs and takes everything away again: nothing may be left, and no count
/// may be wrong.
pub(crate) fn run(role: Role, inputs: impl IntoIterator<Item = Input>) {
    let mut rig = Rig::new(role);
    for socket in 0..2 {
        rig.apply(Input::Socket(socket, true));
        rig.apply(Input::Interface(1 + socket * 4));
    }
    rig.apply(Input::Coordinator(0));
    rig.apply(Input::ControlStream(0, 0));
    for input in inputs {
        rig.apply(input);
    }
    // When everybody is gone and every connection has ended, nothing is left.
    for seed in 0..4 {
        rig.apply(Input::NoCoordinator(seed));
        rig.apply(Input::LinkDown(seed));
    }
    rig.wait(Duration::from_secs(4000));
    assert_eq!(rig.endpoint.counters().in_flight, 0);
    for flow in 0..=rig.last_flow {
        rig.endpoint.handle_closed(VirtualConnectionId(flow), rig.now);
        rig.drain();
    }
    rig.wait(Duration::from_secs(4000));
    assert_eq!(rig.endpoint.sessions(), 0);
    assert_eq!(rig.endpoint.poll_timeout(), None);
}

/// Inputs that follow from bytes. Every byte string is some sequence of them, and small changes of
/// the bytes are small changes of the inputs.
pub(crate) fn inputs_of(bytes: &[u8]) -> (Role, Vec<Input>) {
    let mut script = Script(bytes);
    let role = match script.byte() % 3 {
        0 => Role::Auto,
        1 => Role::Client,
        _ => Role::Server,
    };
    (role, std::iter::from_fn(|| script.input()).take(MAX_INPUTS).collect())
}

/// Inputs of one run, so that a run ends soon.
const MAX_INPUTS: usize = 200;

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn small(&mut self) -> u8 {
        self.byte() % 4
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte()) * 8;
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    fn input(&mut self) -> Option<Input> {
        use Input::*;
        if self.0.is_empty() {
            return None;
        }
        Some(match self.byte() % 32 {
            0 => Socket(self.small(), self.small() > 0),
            1 => SocketDown(self.small()),
            2 => Interface(self.byte()),
            3 => InterfaceDown(self.byte()),
            4 => Reachable(self.small() > 0),
            5 => Coordinator(self.small()),
            6 => NoCoordinator(self.small()),
            7 => ControlStream(self.small(), self.small()),
            8 => LinkDown(self.small()),
            9 => Connect(self.small()),
            10 => Cancel(self.small()),
            11 => FirstFlight(self.small(), self.small()),
            12 => Established(self.byte()),
            13 => Closed(self.byte()),
            14 => Observed(self.small(), self.byte(), self.byte()),
            15 => Announce(self.small(), self.byte()),
            16 => Withdraw(self.small(), self.small()),
            17 => Register(self.small(), self.small()),
            18 => Registered(self.small(), self.small()),
            19 => RegisterRejected(self.small(), self.small()),
            20 => Punch(self.small(), self.small(), self.small(), self.small() > 0, self.byte()),
            21 => Answer(self.small(), self.small()),
            22 => Reject(self.small(), self.small()),
            23 => Probe(self.byte(), self.small(), self.small() > 0),
            24 => Noise(self.byte(), self.bytes()),
            25 => Raw(self.small(), self.bytes()),
            26 => Opened(self.byte()),
            27 => Silent(self.byte()),
            28 => Quiet(self.byte()),
            29 => Upgrade(self.small()),
            _ => Wait(u16::from_be_bytes([self.byte(), self.byte()])),
        })
    }
}
