//! A world of protocol endpoints: a virtual clock, control streams with latency, and for each peer
//! an optional NAT that maps independently of the endpoint and, unless a test says otherwise,
//! filters by address and port. QUIC is four packets: the first flight inside `PUNCH_ME_NOW`, the
//! server's flight, and the client's finish.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use libp2p_punch_proto::{
    ControlStreamId, Path, SocketId, VirtualConnectionId,
    command::{Command, Pool},
    config::{Config, Role},
    endpoint::Endpoint,
    event::{Event, FailureReason},
    nat::FilteringBehaviour,
    wire::frame::Frame,
};

pub(crate) const SOCKET: SocketId = SocketId(1);
const PORT: u16 = 4001;
/// Registrations have generations above this.
pub(crate) const GENERATION: u64 = 1_700_000_000_000_000;

/// Content of a datagram.
#[derive(Debug, Clone)]
pub(crate) enum Packet {
    Probe(Bytes),
    ServerFlight(u64),
    Finish(u64),
}

enum Delivery {
    Frame { to: usize, link: ControlStreamId, frame: Frame },
    Packet { to: usize, from: SocketAddr, packet: Packet },
}

/// One QUIC connection attempt as the path layer sees it.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    token: u64,
    is_client: bool,
    admitted: BTreeSet<Path>,
    permitted: Vec<Path>,
    selected: Option<Path>,
    heard: bool,
    sent: bool,
}

pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) peer: PeerId,
    local: SocketAddr,
    /// The outer address, and whom its mapping has contacted.
    pub(crate) nat: Option<(IpAddr, BTreeSet<SocketAddr>)>,
    pub(crate) filtering: FilteringBehaviour,
    /// Sockets for filtering tests can be opened.
    pub(crate) opens: bool,
    pub(crate) pool: BTreeMap<SocketId, SocketAddr>,
    pub(crate) opened: Vec<(Pool, SocketId, u16)>,
    pub(crate) links: BTreeMap<ControlStreamId, (usize, ControlStreamId)>,
    pub(crate) flows: BTreeMap<VirtualConnectionId, Flow>,
    pub(crate) events: Vec<(Duration, Event)>,
    pub(crate) commands: Vec<(Duration, Command)>,
    pub(crate) probes: Vec<(Duration, Path)>,
    /// The last of them.
    pub(crate) probe: Bytes,
    /// `Command::Connect` and `Command::Accept` lead to packets.
    pub(crate) quic_works: bool,
}

/// Changes a frame on its way: frames to deliver, each with an additional delay.
pub(crate) type Tamper = Box<dyn FnMut(usize, usize, Frame) -> Vec<(Duration, Frame)>>;

pub(crate) struct World {
    start: Instant,
    pub(crate) now: Instant,
    pub(crate) nodes: Vec<Node>,
    latency: BTreeMap<(usize, usize), Duration>,
    queue: BTreeMap<(Instant, u64), Delivery>,
    /// The time at which each node wants to be woken.
    timers: BTreeSet<(Instant, usize)>,
    scheduled: Vec<Option<Instant>>,
    sequence: u64,
    next_link: u64,
    pub(crate) tamper: Option<Tamper>,
    /// Datagrams between peers that are not coordinators are lost.
    pub(crate) blackhole: bool,
    /// Datagrams of this peer arrive as from another address.
    pub(crate) divert: Option<(usize, SocketAddr)>,
    /// Returns true if a datagram from an address to a peer is lost.
    pub(crate) lose: Option<Lose>,
}

pub(crate) type Lose = Box<dyn FnMut(SocketAddr, usize) -> bool>;

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn at(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

pub(crate) fn keypair(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).unwrap()
}

/// The seed of the node of this number.
fn seed(number: usize) -> [u8; 32] {
    let Ok(number) = u8::try_from(number) else {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
        return seed;
    };
    [number; 32]
}

pub(crate) fn client() -> Config {
    Config { role: Role::Client, ..Config::default() }
}

pub(crate) fn server() -> Config {
    Config { role: Role::Server, ..Config::default() }
}

impl World {
    pub(crate) fn new() -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            nodes: Vec::new(),
            latency: BTreeMap::new(),
            queue: BTreeMap::new(),
            timers: BTreeSet::new(),
            scheduled: Vec::new(),
            sequence: 0,
            next_link: 0,
            tamper: None,
            blackhole: false,
            divert: None,
            lose: None,
        }
    }

    /// Adds a peer with one listener at `local`, behind a NAT if there is an outer address.
    pub(crate) fn add(&mut self, config: &Config, local: &str, outer: Option<&str>) -> usize {
        let seed = seed(self.nodes.len() + 1);
        let keypair = Keypair::ed25519_from_bytes(seed).unwrap();
        let peer = keypair.public().to_peer_id();
        let mut endpoint = Endpoint::new(config, keypair, seed, GENERATION);
        let ip: IpAddr = local.parse().unwrap();
        let local = SocketAddr::new(ip, PORT);
        endpoint.handle_interface_up(ip, 24, self.now);
        endpoint.handle_socket_up(SOCKET, SocketAddr::new(IpAddr::from([0, 0, 0, 0]), PORT), true, self.now);
        self.nodes.push(Node {
            endpoint,
            peer,
            local,
            nat: outer.map(|outer| (outer.parse().unwrap(), BTreeSet::new())),
            links: BTreeMap::new(),
            flows: BTreeMap::new(),
            events: Vec::new(),
            commands: Vec::new(),
            probes: Vec::new(),
            probe: Bytes::new(),
            quic_works: true,
            filtering: FilteringBehaviour::AddressAndPortDependent,
            opens: false,
            pool: BTreeMap::new(),
            opened: Vec::new(),
        });
        self.nodes.len() - 1
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub(crate) fn set_latency(&mut self, a: usize, b: usize, one_way: Duration) {
        self.latency.insert((a.min(b), a.max(b)), one_way);
    }

    fn latency(&self, a: usize, b: usize) -> Duration {
        self.latency.get(&(a.min(b), a.max(b))).copied().unwrap_or(ms(10))
    }

    /// Returns the address at which others see a peer.
    pub(crate) fn outer(&self, node: usize) -> SocketAddr {
        let node = &self.nodes[node];
        SocketAddr::new(node.nat.as_ref().map_or(node.local.ip(), |(outer, _)| *outer), PORT)
    }

    /// Opens a control stream between two peers; `a` is the one behind a NAT, if any is.
    pub(crate) fn link(&mut self, a: usize, b: usize) -> (ControlStreamId, ControlStreamId) {
        let (here, there) = (ControlStreamId(self.next_link), ControlStreamId(self.next_link + 1));
        self.next_link += 2;
        self.nodes[a].links.insert(here, (b, there));
        self.nodes[b].links.insert(there, (a, here));
        let (outer_a, outer_b) = (self.outer(a), self.outer(b));
        if let Some((_, contacted)) = &mut self.nodes[a].nat {
            contacted.insert(outer_b);
        }
        let (peer_a, peer_b) = (self.nodes[a].peer, self.nodes[b].peer);
        self.nodes[a].endpoint.handle_link_up(here, peer_b, Some(outer_b), Some(SOCKET), self.now);
        self.drain(a);
        self.nodes[b].endpoint.handle_link_up(there, peer_a, Some(outer_a), Some(SOCKET), self.now);
        self.drain(b);
        (here, there)
    }

    /// A peer's NAT is replaced by another.
    pub(crate) fn move_behind(&mut self, node: usize, outer: &str) {
        self.nodes[node].nat = Some((outer.parse().unwrap(), BTreeSet::new()));
    }

    pub(crate) fn unlink(&mut self, node: usize, link: ControlStreamId) {
        if let Some((other, there)) = self.nodes[node].links.remove(&link) {
            self.nodes[other].links.remove(&there);
            self.input(node, |endpoint, now| endpoint.handle_link_down(link, now));
            self.input(other, |endpoint, now| endpoint.handle_link_down(there, now));
        }
    }

    pub(crate) fn coordinate(
        &mut self,
        node: usize,
        coordinator: usize,
    ) -> (ControlStreamId, ControlStreamId) {
        let peer = self.nodes[coordinator].peer;
        self.input(node, |endpoint, now| endpoint.add_coordinator(peer, now));
        self.link(node, coordinator)
    }

    pub(crate) fn connect(&mut self, from: usize, to: usize) -> Result<(), FailureReason> {
        let peer = self.nodes[to].peer;
        self.input(from, |endpoint, now| endpoint.connect(peer, now))
    }

    /// Gives an endpoint an input and carries out what it wants.
    pub(crate) fn input<T>(&mut self, node: usize, f: impl FnOnce(&mut Endpoint, Instant) -> T) -> T {
        let result = f(&mut self.nodes[node].endpoint, self.now);
        self.drain(node);
        result
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        // Tests may have given endpoints inputs of their own.
        (0..self.nodes.len()).for_each(|node| self.schedule(node));
        loop {
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = self.timers.first().map(|(at, _)| *at);
            let Some(next) = [queued, timer].into_iter().flatten().min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if queued.is_some_and(|at| at <= self.now) {
                let Some((_, delivery)) = self.queue.pop_first() else { break };
                self.deliver(delivery);
                continue;
            }
            let due = self.timers.iter().take_while(|(at, _)| *at <= self.now).map(|(_, node)| *node);
            let mut due: Vec<usize> = due.collect();
            due.sort_unstable();
            for node in due {
                if self.nodes[node].endpoint.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.input(node, |endpoint, now| endpoint.handle_timeout(now));
                }
            }
        }
        self.now = end;
    }

    fn schedule(&mut self, node: usize) {
        self.scheduled.resize(self.nodes.len(), None);
        let next = self.nodes[node].endpoint.poll_timeout();
        if let Some(old) = std::mem::replace(&mut self.scheduled[node], next) {
            self.timers.remove(&(old, node));
        }
        self.timers.extend(next.map(|at| (at, node)));
    }

    fn push(&mut self, at: Instant, delivery: Delivery) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), delivery);
    }

    pub(crate) fn inject(&mut self, to: usize, link: ControlStreamId, frame: Frame, after: Duration) {
        self.push(self.now + after, Delivery::Frame { to, link, frame });
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Frame { to, link, frame } => {
                self.input(to, |endpoint, now| endpoint.handle_frame(link, frame, now));
            }
            Delivery::Packet { to, from, .. } if self.is_filtered(to, from) => {}
            Delivery::Packet { to, from, packet } => {
                let path = Path { socket: SOCKET, remote: from };
                match packet {
                    Packet::Probe(bytes) => {
                        self.input(to, |endpoint, now| endpoint.handle_datagram(path, &bytes, now));
                    }
                    Packet::ServerFlight(token) => self.quic(to, path, token, true),
                    Packet::Finish(token) => self.quic(to, path, token, false),
                }
            }
        }
    }

    /// A QUIC packet, for the client's end of a virtual connection or for the server's.
    fn quic(&mut self, to: usize, path: Path, token: u64, for_client: bool) {
        let flows = &mut self.nodes[to].flows;
        let mut all = flows.iter_mut();
        let found = all.find(|(_, f)| f.token == token && f.is_client == for_client && !f.heard);
        let Some((id, flow)) = found.filter(|(_, flow)| flow.admitted.contains(&path)) else { return };
        flow.heard = true;
        let id = *id;
        self.input(to, |endpoint, now| endpoint.handle_established(id, path, now));
        self.flush(to, id);
    }

    /// Sends what QUIC has to send, on the paths that it may use.
    fn flush(&mut self, node: usize, id: VirtualConnectionId) {
        let Some(flow) = self.nodes[node].flows.get_mut(&id) else { return };
        let (packet, ready) = match flow.is_client {
            true => (Packet::Finish(flow.token), flow.heard),
            false => (Packet::ServerFlight(flow.token), !flow.heard),
        };
        let paths: Vec<Path> = match flow.selected {
            Some(path) => vec![path],
            None if flow.sent => Vec::new(),
            None => flow.permitted.clone(),
        };
        if ready && !paths.is_empty() {
            flow.sent = true;
            for path in paths {
                self.send(node, path.remote, packet.clone());
            }
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: Packet) {
        self.send_from(from, self.outer(from), to, packet);
    }

    fn send_from(&mut self, from: usize, source: SocketAddr, to: SocketAddr, packet: Packet) {
        let inside = self.nodes[from].nat.as_ref().map(|(outer, _)| *outer);
        // On the same network, behind the same outer address, nothing is translated.
        let neighbour = |n: &Node| n.local == to && n.nat.as_ref().map(|(outer, _)| *outer) == inside;
        let local = self.nodes[from].local;
        if let Some(target) = self.nodes.iter().position(neighbour) {
            return self.arrive(from, target, local, packet);
        }
        if let Some((_, contacted)) = &mut self.nodes[from].nat {
            contacted.insert(to);
        }
        let Some(target) = (0..self.nodes.len()).find(|n| self.outer(*n) == to) else { return };
        self.arrive(from, target, source, packet);
    }

    fn arrive(&mut self, from: usize, to: usize, source: SocketAddr, packet: Packet) {
        let is_lost = self.lose.as_mut().is_some_and(|lose| lose(source, to));
        if self.blackhole || is_lost {
            return;
        }
        let source = self.divert.filter(|(node, _)| *node == from).map_or(source, |(_, address)| address);
        self.push(self.now + self.latency(from, to), Delivery::Packet { to, from: source, packet });
    }

    fn is_filtered(&self, to: usize, source: SocketAddr) -> bool {
        let same_network = self.nodes.iter().any(|n| n.local == source && n.nat.is_some());
        let filter = self.nodes[to].nat.as_ref();
        let filtering = self.nodes[to].filtering;
        filter.is_some_and(|(_, contacted)| {
            !same_network
                && match filtering {
                    FilteringBehaviour::EndpointIndependent => false,
                    FilteringBehaviour::AddressDependent => {
                        !contacted.iter().any(|to| to.ip() == source.ip())
                    }
                    _ => !contacted.contains(&source),
                }
        })
    }

    fn drain(&mut self, node: usize) {
        let elapsed = self.elapsed();
        while let Some(transmit) = self.nodes[node].endpoint.poll_transmit() {
            self.nodes[node].probes.push((elapsed, transmit.path));
            let payload = Bytes::copy_from_slice(&transmit.payload);
            self.nodes[node].probe = payload.clone();
            let packet = Packet::Probe(payload);
            let source = self.nodes[node].pool.get(&transmit.path.socket).copied();
            // A NAT in front of such a socket keeps its port.
            let outer = self.nodes[node].nat.as_ref().map(|(outer, _)| *outer);
            let seen = source.map(|at| SocketAddr::new(outer.unwrap_or(at.ip()), at.port()));
            self.send_from(node, seen.unwrap_or(self.outer(node)), transmit.path.remote, packet);
        }
        let mut flights = VecDeque::new();
        while let Some(command) = self.nodes[node].endpoint.poll_command() {
            self.nodes[node].commands.push((elapsed, command.clone()));
            flights.extend(self.carry_out(node, command));
        }
        while let Some((link, frame)) = self.nodes[node].endpoint.poll_frame() {
            self.forward(node, link, frame);
        }
        while let Some(event) = self.nodes[node].endpoint.poll_event() {
            self.nodes[node].events.push((elapsed, event));
        }
        for (pool, socket, port) in std::mem::take(&mut self.nodes[node].opened) {
            self.input(node, |endpoint, now| endpoint.handle_sockets_opened(pool, &[(socket, port)], now));
        }
        while let Some((flow, datagrams)) = flights.pop_front() {
            self.input(node, |endpoint, now| endpoint.handle_first_flight(flow, datagrams, now));
        }
        self.schedule(node);
    }

    fn carry_out(&mut self, node: usize, command: Command) -> Option<(VirtualConnectionId, Vec<Bytes>)> {
        let works = self.nodes[node].quic_works;
        let flows = &mut self.nodes[node].flows;
        let id = match command {
            Command::Connect { flow, .. } => {
                let token = (node as u64) << 32 | flow.0;
                flows.insert(flow, Flow { token, is_client: true, ..Flow::default() });
                let mut datagram = vec![0xc0; 1200];
                datagram[..8].copy_from_slice(&token.to_be_bytes());
                return works.then(|| (flow, vec![datagram.into()]));
            }
            Command::Accept { flow, first_flight, .. } => {
                let token = u64::from_be_bytes(first_flight[0][..8].try_into().unwrap());
                // A server that does not work never has anything to send.
                flows.insert(flow, Flow { token, heard: !works, ..Flow::default() });
                return None;
            }
            Command::Admit { flow, path, .. } => {
                flows.get_mut(&flow)?.admitted.insert(path);
                flow
            }
            Command::Permit { flow, path, .. } => {
                flows.get_mut(&flow)?.permitted.push(path);
                flow
            }
            Command::Select { flow, path } => {
                flows.get_mut(&flow)?.selected = Some(path);
                flow
            }
            Command::Forget { flow, path } => {
                flows.get_mut(&flow)?.admitted.remove(&path);
                return None;
            }
            Command::OpenSockets { pool: pool @ Pool::Filtering(_), local, .. } => {
                self.open(node, pool, local);
                return None;
            }
            // Peers of these tests have one socket only.
            Command::OpenSockets { .. } | Command::CloseSockets { .. } | Command::ExpectProbes { .. } => {
                return None;
            }
            Command::Close { flow } => {
                flows.remove(&flow);
                return None;
            }
        };
        self.flush(node, id);
        None
    }

    /// Opens a socket of a pool, where a test allows it.
    fn open(&mut self, node: usize, pool: Pool, local: IpAddr) {
        let node = &mut self.nodes[node];
        if node.opens {
            let number = u32::try_from(node.pool.len()).unwrap() + 500;
            let port = 7000 + u16::try_from(node.pool.len()).unwrap();
            node.pool.insert(SocketId(number), SocketAddr::new(local, port));
            node.opened.push((pool, SocketId(number), port));
        }
    }

    fn forward(&mut self, node: usize, link: ControlStreamId, frame: Frame) {
        let Some((to, there)) = self.nodes[node].links.get(&link).copied() else { return };
        let frames = match &mut self.tamper {
            Some(tamper) => tamper(node, to, frame),
            None => vec![(Duration::ZERO, frame)],
        };
        for (later, frame) in frames {
            let at = self.now + self.latency(node, to) + later;
            self.push(at, Delivery::Frame { to, link: there, frame });
        }
    }
}
