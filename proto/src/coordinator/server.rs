//! Services of a coordinator for its clients.
//!
//! [`Coordinator`] keeps the registrations and forwards requests. Observers, filtering tests, early
//! packets and delayed replies tell clients about their NATs. Datagrams of these services go to the
//! other end of the client's own connection, or to the IP address of that connection; the exception
//! is `FILTERING_ASSIST_REQUEST`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use rand::{Rng, rngs::StdRng};

use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::{Scope, scope},
    command::{Command, Pool},
    config::{Config, Disclosure, Role},
    control_streams::ControlStream,
    coordinator::Coordinator,
    environment::{Context, Environment},
    local_addresses::Family,
    nat::{
        binding_lifetime::{DelayedReplies, HoldRequest},
        early_packets::{EARLY_DATAGRAMS, EARLY_RATE, MAX_EARLY_CLIENTS},
        filtering::{
            AssistRequest, AssistResponse, FilteringTestAnswer, FilteringTestServer, Senders, Test,
            needs_another,
        },
        observer::{Observers, PORTS, Request},
    },
    rate_limit::PeerBuckets,
    wire::frame::{Frame, Registration},
};

/// Services of a coordinator. See the [module](self).
#[derive(Debug)]
pub(crate) struct CoordinatorServer {
    pub(crate) coordinator: Coordinator,
    observers: Observers,
    /// Bounds the requests of each client for early packets.
    early_packets: PeerBuckets,
    filtering: FilteringTestServer,
    delayed_replies: DelayedReplies,
}

impl CoordinatorServer {
    /// Server without clients. It coordinates at once if the role says so.
    pub(crate) fn new(config: &Config, rng: &mut StdRng) -> Self {
        Self {
            coordinator: Coordinator::new(
                matches!(config.role, Role::Server | Role::Bootstrap),
                config.coordinator_limits,
                config.gater.clone(),
            ),
            observers: Observers::new(rng.random()),
            early_packets: PeerBuckets::new(EARLY_RATE, MAX_EARLY_CLIENTS),
            filtering: FilteringTestServer::new(),
            delayed_replies: DelayedReplies::new(),
        }
    }

    /// Returns the time of the next [`handle_timeout`](Self::handle_timeout).
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        [
            self.coordinator.next_deadline(),
            self.filtering.next_deadline(),
            self.delayed_replies.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Drops registrations that have expired, and sends the datagrams and replies that are due.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let is_due = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        if is_due(self.coordinator.next_deadline()) {
            self.coordinator.handle_timeout(now);
        }
        if is_due(self.filtering.next_deadline()) {
            self.run_filtering_tests(cx);
        }
        for (path, payload) in self.delayed_replies.poll(now) {
            cx.env.out.transmit(path, payload);
        }
    }

    /// Returns true if requests to observers arrive at this socket.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.observers.has(socket)
    }

    /// Takes a datagram at the socket of an observer.
    pub(crate) fn handle_datagram(&mut self, cx: &mut Context<'_>, path: Path, datagram: &[u8]) {
        let request = self.observers.judge(datagram);
        let client = request.and_then(|(id, request)| Some((request, cx.env.streams.get(id)?.clone())));
        match client {
            Some((request, from)) if self.coordinator.may_observe(&from.peer, cx.now) => match request {
                Request::Where { data } => {
                    cx.env.out.frame(from.id, Frame::ProbeObserved { data, address: path.remote });
                }
                Request::Provoke { data } => self.send_early_packets(cx, &from, path, data),
                Request::Hold { data, delay } => self.delay_reply(cx, &from, path, data, delay),
            },
            _ => cx.env.out.counters.probes_refused += 1,
        }
    }

    /// A control stream is gone.
    pub(crate) fn handle_stream_down(&mut self, cx: &mut Context<'_>, stream: &ControlStream) {
        self.coordinator.stream_down(stream.id, &stream.peer, cx.now);
        self.delayed_replies.stream_down(stream.id);
        self.filtering.stream_down(stream.id, cx.now);
    }

    /// An interface has lost an address.
    pub(crate) fn handle_address_down(&mut self, cx: &mut Context<'_>, address: IpAddr) {
        if self.filtering.address_down(address) {
            let pool = Pool::Filtering(address);
            cx.env.out.command(Command::CloseSockets { pool, keep: Vec::new() });
        }
    }

    /// `REGISTER` of a client.
    pub(crate) fn handle_register(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        registration: Registration,
        disclosure: Disclosure,
    ) {
        self.coordinator.register(from, registration, disclosure, cx.now, &mut cx.env.out);
        self.offer_observers(cx, from);
    }

    /// The sockets of observers at `local` are open, perhaps fewer than were asked for.
    pub(crate) fn handle_observers_opened(
        &mut self,
        cx: &mut Context<'_>,
        local: IpAddr,
        sockets: &[(SocketId, u16)],
    ) {
        self.observers.opened(local, sockets);
        if sockets.is_empty() {
            // Another client is the reason to try again.
            let pool = Pool::Observers(local);
            return cx.env.out.command(Command::CloseSockets { pool, keep: Vec::new() });
        }
        for stream in cx.env.streams.all() {
            self.offer_observers(cx, &stream);
        }
    }

    /// The socket of filtering tests at `local` is open, unless it could not be opened.
    pub(crate) fn handle_filtering_opened(
        &mut self,
        cx: &mut Context<'_>,
        local: IpAddr,
        sockets: &[(SocketId, u16)],
    ) {
        self.filtering.opened(local, sockets, cx.now);
        self.run_filtering_tests(cx);
    }

    /// Offers a registered client to observe it over both families, now or once the ports are open.
    fn offer_observers(&mut self, cx: &mut Context<'_>, to: &ControlStream) {
        if self.coordinator.serves(&to.peer, to.id) {
            self.offer_observers_of_stream(cx, to);
            self.offer_observers_of_other_family(cx, to);
        }
    }

    fn offer_observers_of_stream(&mut self, cx: &mut Context<'_>, to: &ControlStream) {
        let socket = to.socket.and_then(|socket| cx.env.local.socket(socket));
        let Some(local) = socket.map(|socket| socket.local.ip()).filter(|_| !to.told_observers) else {
            return;
        };
        if let Some(offer) = self.observers.offer(to.id, local, true) {
            if to.remote.is_some() && cx.env.streams.told_observers(to.id) {
                cx.env.out.frame(to.id, Frame::Observer(offer));
            }
        } else {
            self.open_observers(cx, local);
        }
    }

    /// Offers observers of the family that the connection does not use. No connection shows the
    /// client's address there.
    fn offer_observers_of_other_family(&mut self, cx: &mut Context<'_>, to: &ControlStream) {
        let Some(remote) = to.remote.filter(|_| !to.told_observers_at) else { return };
        let family = Family::of(remote.ip()).other();
        let Some(at) = cx.env.local.reachable_at(family, scope(remote.ip())) else { return };
        if let Some(offer) = self.observers.offer(to.id, at.local, false) {
            if cx.env.streams.told_observers_at(to.id) {
                cx.env.out.frame(to.id, Frame::ObserverAt { ip: at.ip, offer });
            }
        } else {
            self.open_observers(cx, at.local);
        }
    }

    fn open_observers(&mut self, cx: &mut Context<'_>, local: IpAddr) {
        if self.observers.ask_for(local) {
            let pool = Pool::Observers(local);
            cx.env.out.command(Command::OpenSockets { pool, local, count: PORTS });
        }
    }

    /// Sends early packets to the mapping from which a client asks for them: to the IP address of
    /// its connection only, and never to the port of that connection.
    fn send_early_packets(&mut self, cx: &mut Context<'_>, from: &ControlStream, path: Path, data: [u8; 8]) {
        let is_its_own = from
            .remote
            .is_some_and(|remote| remote.ip() == path.remote.ip() && remote.port() != path.remote.port());
        let is_allowed = is_its_own && from.is_proven(cx.now);
        let Some(socket) = self.observers.early(path.socket).filter(|_| is_allowed) else {
            cx.env.out.counters.probes_refused += 1;
            return;
        };
        if self.early_packets.take(from.peer, cx.now).is_err() {
            return cx.env.out.cap_hit();
        }
        let payload = self.observers.early_packet(from.id);
        for _ in 0..EARLY_DATAGRAMS {
            cx.env.out.transmit(Path { socket, remote: path.remote }, payload);
        }
        cx.env.out.frame(from.id, Frame::ProbeObserved { data, address: path.remote });
    }

    /// Takes a request to reply after `delay` seconds, if it comes from the IP address of the
    /// client's connection.
    fn delay_reply(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        path: Path,
        data: [u8; 8],
        delay: u16,
    ) {
        let is_its_own = from.remote.is_some_and(|remote| remote.ip() == path.remote.ip());
        if !is_its_own || !from.is_proven(cx.now) {
            cx.env.out.counters.probes_refused += 1;
            return;
        }
        let request = HoldRequest { data, delay, key: self.observers.key_of(from.id) };
        match self.delayed_replies.hold(from, path, request, cx.now) {
            Some(payload) => cx.env.out.transmit(path, payload),
            None => cx.env.out.cap_hit(),
        }
    }

    /// `FILTER_TEST` of a client.
    pub(crate) fn handle_filter_test(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        data: [u8; 8],
        key: [u8; 32],
    ) {
        let serves = self.coordinator.serves(&from.peer, from.id);
        let refusal = Frame::FilterTested { data, rounds: 0, sources: Vec::new() };
        let (Some(remote), Some(socket)) = (from.remote, from.socket) else {
            return cx.env.out.frame(from.id, refusal);
        };
        let test = Test { data, key, path: Path { socket, remote } };
        let own = cx.env.local.own_addresses();
        let senders = Senders { own: &own, assistant: assistant_for(cx.env, from, remote) };
        let begun = serves.then(|| self.filtering.begin(from, test, senders, cx.now)).flatten();
        let Some(missing) = begun else {
            if serves {
                cx.env.out.cap_hit();
            }
            return cx.env.out.frame(from.id, refusal);
        };
        self.open_filtering(cx, missing);
    }

    /// `FILTERING_ASSIST_REQUEST` of another coordinator, to send to a client of that coordinator.
    pub(crate) fn handle_assist_request(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        request: AssistRequest,
    ) {
        let AssistRequest { data, target, .. } = request;
        let is_trusted = cx.env.is_operated() && cx.env.registrations.contains(&from.peer);
        let refusal = Frame::FilteringAssistResponse { data, rounds: 0, source: None };
        if !is_trusted || scope(target.ip()) != Scope::Global {
            cx.env.out.refuse_frame();
            return cx.env.out.frame(from.id, refusal);
        }
        let own = cx.env.local.own_addresses();
        let Some(missing) = self.filtering.assist(from, request, &own, cx.now) else {
            cx.env.out.cap_hit();
            return cx.env.out.frame(from.id, refusal);
        };
        self.open_filtering(cx, missing);
    }

    /// `FILTERING_ASSIST_RESPONSE` of another coordinator, with the number of rounds that it has
    /// sent.
    pub(crate) fn handle_assist_response(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        response: AssistResponse,
    ) {
        if !self.filtering.assisted(from.id, response, cx.now) {
            return cx.env.out.refuse_frame();
        }
        self.run_filtering_tests(cx);
    }

    fn open_filtering(&mut self, cx: &mut Context<'_>, missing: Vec<IpAddr>) {
        for local in missing {
            cx.env.out.command(Command::OpenSockets { pool: Pool::Filtering(local), local, count: 1 });
        }
        self.run_filtering_tests(cx);
    }

    /// Sends the datagrams of filtering tests that are due, for clients and for other coordinators.
    fn run_filtering_tests(&mut self, cx: &mut Context<'_>) {
        let Environment { streams, out, .. } = &mut *cx.env;
        let proven = |stream: &&ControlStream| stream.is_proven(cx.now);
        let due = self.filtering.poll(cx.now, |id| streams.get(id).filter(proven)?.remote);
        out.counters.filter_probes_sent += due.transmits.len() as u64;
        for (path, payload) in due.transmits {
            out.transmit(path, payload);
        }
        for (id, AssistRequest { data, key, target }) in due.asks {
            out.frame(id, Frame::FilteringAssistRequest { data, key, target });
        }
        for (id, AssistResponse { data, rounds, source }) in due.assisted {
            out.frame(id, Frame::FilteringAssistResponse { data, rounds, source });
        }
        for (id, FilteringTestAnswer { data, rounds, sources }) in due.ended {
            out.frame(id, Frame::FilterTested { data, rounds, sources });
        }
    }
}

/// Returns the control stream to another coordinator, which is to send to a client, too. `None` if
/// the own addresses of this peer are enough for the test.
fn assistant_for(
    env: &mut Environment,
    client: &ControlStream,
    remote: SocketAddr,
) -> Option<ControlStreamId> {
    if !env.is_operated() || !needs_another(remote.ip(), &env.local.own_addresses()) {
        return None;
    }
    // A NAT filters nothing that comes from the address of the client.
    let is_elsewhere = |stream: &ControlStream| {
        stream.peer != client.peer && stream.remote.is_none_or(|at| at.ip() != remote.ip())
    };
    let mut others = env.registrations.connected();
    others.retain(|(_, id)| env.streams.get(*id).is_some_and(is_elsewhere));
    // Any of them: this peer does not know to which of them the client has sent.
    let choice = (!others.is_empty()).then(|| env.rng.random_range(0..others.len()))?;
    others.get(choice).map(|(_, id)| *id)
}
