//! NAT client: measurements of the NAT in front of this peer, and the report on it.
//!
//! Coordinators report the address at which they see a socket, and
//! [`Observations`](super::observations::Observations) evaluates these reports. `NatClient` runs
//! the tests that need packets of their own: requests to observers, filtering, hairpinning, early
//! packets, and the lifetime of unused mappings. From all of these follow the [`Report`] for the
//! application and the [`NatProfile`] for peers. Sessions learn of a change by [`Learned`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use libp2p_identity::PeerId;
use rand::Rng;

use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::{Scope, scope},
    command::Command,
    control_streams::ControlStream,
    environment::{Context, Environment},
    event::Event,
    local_addresses::Family,
    nat::{
        Confidence, Evidence, FilteringBehaviour, Finding, Report, Sharing,
        binding_lifetime::BindingLifetimeTest,
        early_packets::EarlyPackets,
        filtering::{FilteringTestAnswer, FilteringTestClient, Outcome, Test, is_filter_probe},
        hairpin::Hairpins,
        is_in_shared_space,
        observations::{Observer, Recorded},
        observer::{Observed, Observing, Offered, PORTS, Purpose, Sample},
        strategy::{Allocation, LEAST_SPRAY, NatProfile, WINDOW_SOCKETS},
    },
    session::key::Key,
    wire::frame::{Frame, ObserverOffer},
};

/// Observers have ports that the system chose. Ports below this one belong to services.
const LEAST_PORT: u16 = 1024;
/// Unreachable coordinators that are remembered.
const MAX_UNREACHABLE: usize = 16;

/// Returns true if a session has probed this address, at any port if none is given.
pub(crate) type HasProbed<'a> = &'a dyn Fn(IpAddr, Option<u16>) -> bool;

/// Consequence of an input to the NAT client for the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Learned {
    /// Sessions are not affected.
    Nothing,
    /// Observers see this peer at another address.
    Address,
    /// Observers see this peer at another address, because the NAT has dropped the mapping of this
    /// socket.
    Remapping(SocketId),
    /// An observer sees a socket of a search at this port.
    Sample { session: Key, socket: SocketId, port: u16 },
    /// An observer sees the socket to which sessions are to move at this address.
    Renewal { socket: SocketId, address: SocketAddr },
}

/// Measurements of the NAT in front of this peer. See the [module](self).
#[derive(Debug)]
pub(crate) struct NatClient {
    observing: Observing,
    early_packets: EarlyPackets,
    filtering: FilteringTestClient,
    hairpins: Hairpins,
    binding_lifetime: BindingLifetimeTest,
    /// The last report to the application.
    reported: Report,
    /// Coordinators that did not answer when they were dialed over UDP, and the time of the last
    /// dial.
    unreachable: BTreeMap<PeerId, Instant>,
    /// The path layer was asked to look for datagrams of tests.
    expects_probes: bool,
    /// Sockets that searches may open.
    max_search_sockets: usize,
}

impl NatClient {
    /// Client without findings, where searches may open `max_search_sockets` sockets.
    pub(crate) fn new(max_search_sockets: usize) -> Self {
        Self {
            observing: Observing::default(),
            early_packets: EarlyPackets::default(),
            filtering: FilteringTestClient::default(),
            hairpins: Hairpins::default(),
            binding_lifetime: BindingLifetimeTest::default(),
            reported: Report::default(),
            unreachable: BTreeMap::new(),
            expects_probes: false,
            max_search_sockets,
        }
    }

    /// Sets the number of sockets that searches may open. The NAT profile declines searches that
    /// need more.
    pub(crate) fn limit_search_sockets(&mut self, max: usize) {
        self.max_search_sockets = max;
    }

    /// Returns the time of the next [`handle_timeout`](Self::handle_timeout).
    pub(crate) fn next_deadline(&self, env: &Environment) -> Option<Instant> {
        [
            env.local.observations.next_expiry(),
            self.observing.next_deadline(),
            self.early_packets.next_deadline(),
            self.filtering.next_deadline(),
            self.hairpins.next_deadline(),
            self.binding_lifetime.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Drops observations that have expired, and runs the tests that are due.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>, has_probed: HasProbed<'_>) {
        let now = cx.now;
        let is_due = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        if is_due(cx.env.local.observations.next_expiry()) && cx.env.local.observations.expire(now) {
            cx.refresh_candidates();
            self.report_changes(cx);
        }
        if is_due(self.observing.next_deadline()) {
            self.observe(cx);
        }
        if is_due(self.early_packets.next_deadline()) {
            self.early_packets.run(cx, &mut self.observing);
        }
        if is_due(self.filtering.next_deadline()) || is_due(self.hairpins.next_deadline()) {
            self.conclude_filtering_tests(cx, has_probed);
        }
        if is_due(self.binding_lifetime.next_deadline()) {
            self.run_binding_lifetime(cx);
        }
    }

    /// Takes a datagram. Returns false if the datagram belongs to no test.
    pub(crate) fn handle_datagram(&mut self, cx: &mut Context<'_>, path: Path, datagram: &[u8]) -> bool {
        if self.early_packets.owns(path.socket) {
            // The filter of the NAT let in an early packet.
            return true;
        }
        if self.binding_lifetime.owns(path.socket) {
            if !self.binding_lifetime.answered(path.socket, datagram, cx.now) {
                cx.env.out.counters.probes_refused += 1;
            }
            self.run_binding_lifetime(cx);
            return true;
        }
        if !is_filter_probe(datagram) {
            return false;
        }
        if self.hairpins.arrived(path.socket, datagram) {
            self.expect_probes(cx);
            self.report_findings(cx);
        } else if !self.filtering.arrived(path, datagram) {
            cx.env.out.counters.probes_refused += 1;
        }
        true
    }

    /// Chooses the sockets that coordinators of the other address family observe, after a change of
    /// the local sockets.
    pub(crate) fn handle_sockets_changed(&mut self, cx: &mut Context<'_>) {
        let local = &cx.env.local;
        self.observing.sockets_changed(|remote| local.sockets_for(remote).first().copied(), cx.now);
        self.observe(cx);
    }

    /// Ends the tests of a socket that is gone.
    pub(crate) fn handle_socket_down(&mut self, cx: &mut Context<'_>, socket: SocketId) {
        self.filtering.socket_down(socket);
        self.hairpins.socket_down(socket);
        self.expect_probes(cx);
        self.handle_sockets_changed(cx);
    }

    /// Starts measurements again after a change of the local network.
    pub(crate) fn handle_network_changed(&mut self, cx: &mut Context<'_>) {
        cx.env.local.observations.network_changed(cx.now);
        self.observing.network_changed(cx.now);
        if self.binding_lifetime.network_changed(cx.now) {
            BindingLifetimeTest::close(cx);
        }
    }

    /// Ends the tests that use a control stream which is gone.
    pub(crate) fn handle_stream_down(&mut self, cx: &mut Context<'_>, id: ControlStreamId) {
        cx.env.local.observations.stream_down(id, cx.now);
        self.observing.stream_down(id);
        self.early_packets.stream_down(id);
        self.early_packets.run(cx, &mut self.observing);
        if self.binding_lifetime.stream_down(id) {
            BindingLifetimeTest::close(cx);
        }
        self.filtering.stream_down(id);
        self.expect_probes(cx);
    }

    /// The sockets of a test are open, perhaps fewer than were asked for.
    pub(crate) fn handle_early_packets_opened(
        &mut self,
        cx: &mut Context<'_>,
        number: u32,
        sockets: &[(SocketId, u16)],
    ) {
        let socket = sockets.first().map(|(socket, _)| *socket);
        if self.early_packets.opened(number, socket, cx.now) {
            self.early_packets.run(cx, &mut self.observing);
        } else {
            EarlyPackets::close(cx, number);
        }
    }

    /// The sockets of the test of unused mappings are open, perhaps fewer than were asked for.
    pub(crate) fn handle_binding_lifetime_opened(
        &mut self,
        cx: &mut Context<'_>,
        sockets: &[(SocketId, u16)],
    ) {
        let ids: Vec<SocketId> = sockets.iter().map(|(id, _)| *id).collect();
        let rng = &mut cx.env.rng;
        if self.binding_lifetime.opened(&ids, || rng.random(), cx.now) {
            self.run_binding_lifetime(cx);
        } else {
            BindingLifetimeTest::close(cx);
        }
    }

    /// A coordinator offers to observe this peer.
    pub(crate) fn handle_observer(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        offer: ObserverOffer,
    ) {
        let (Some(remote), Some(socket)) = (from.remote, from.socket) else { return };
        if !cx.env.registrations.contains(&from.peer) {
            return cx.env.out.refuse_frame();
        }
        if !self.observing.takes_offer(from.peer, cx.now) {
            return cx.env.out.cap_hit();
        }
        self.binding_lifetime.offered(from, remote.ip(), &offer, cx.now);
        if offer.ports.len() == PORTS {
            self.early_packets.offered(from.id, from.peer, cx.now);
        }
        let offered = Offered { offer, ip: remote.ip(), socket: Some(socket), is_other_family: false };
        self.observing.offered(from.id, offered, cx.now);
        self.observe(cx);
        self.early_packets.run(cx, &mut self.observing);
    }

    /// A coordinator offers to observe this peer over the address family that its connection does
    /// not use.
    pub(crate) fn handle_observer_at(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        ip: IpAddr,
        offer: ObserverOffer,
    ) {
        let Some(remote) = from.remote else { return };
        let is_allowed = cx.env.registrations.contains(&from.peer)
            && Family::of(ip) != Family::of(remote.ip())
            && may_be_observer(cx.env, remote, ip)
            && offer.ports.iter().all(|port| *port >= LEAST_PORT);
        if !is_allowed {
            return cx.env.out.refuse_frame();
        }
        if !self.observing.takes_offer(from.peer, cx.now) {
            return cx.env.out.cap_hit();
        }
        let first = offer.ports.first().copied().unwrap_or_default();
        let socket = cx.env.local.sockets_for(SocketAddr::new(ip, first)).first().copied();
        self.observing.offered(from.id, Offered { offer, ip, socket, is_other_family: true }, cx.now);
        self.observe(cx);
    }

    /// The peer of a control stream sees the connection of that stream, which uses `path`, at
    /// `address`.
    pub(crate) fn handle_observed_address(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        path: Path,
        address: SocketAddr,
    ) -> Learned {
        let (id, observer) = (from.id, from.peer);
        let Path { socket, remote } = path;
        let by = Observer { stream: id, peer: observer, address: remote };
        let recorded = cx.env.local.observations.record(socket, by, address, cx.now);
        if matches!(recorded, Recorded::Moved | Recorded::Remapped) {
            self.observing.again(id, cx.now);
            self.observe(cx);
            self.early_packets.address_changed(id, cx.now);
            self.early_packets.run(cx, &mut self.observing);
        }
        let learned = self.report_observation(cx, recorded, Event::Observed { observer, socket, address });
        if learned != Learned::Nothing {
            self.test_filtering(cx, id, true);
        }
        learned
    }

    /// A coordinator reports the address from which a request to its observers came.
    pub(crate) fn handle_probe_observed(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        data: [u8; 8],
        address: SocketAddr,
    ) -> Learned {
        let before = self.profile(cx.env);
        let Some(observed) = self.observing.answered(from.id, data, address.port(), cx.now) else {
            cx.env.out.refuse_frame();
            return Learned::Nothing;
        };
        match observed.purpose {
            Purpose::EarlyPackets(place) => {
                self.early_packets.answered(from.id, place, observed.socket, address.port(), cx.now);
                self.early_packets.run(cx, &mut self.observing);
                self.report_measurement(cx, before);
            }
            Purpose::OtherFamily(0) => return self.handle_other_family(cx, from, observed, address),
            Purpose::ControlStream(_) | Purpose::OtherFamily(_) => {
                if !cx.env.local.is_plausible(observed.socket, observed.from, address) {
                    cx.env.out.refuse_frame();
                    return Learned::Nothing;
                }
                let by = Observer { stream: from.id, peer: from.peer, address: observed.from };
                cx.env.local.observations.record_probe(observed.socket, by, address, cx.now);
                self.report_measurement(cx, before);
            }
            Purpose::Session(session) => {
                return Learned::Sample { session, socket: observed.socket, port: address.port() };
            }
            Purpose::Renewal => return Learned::Renewal { socket: observed.socket, address },
        }
        Learned::Nothing
    }

    /// A coordinator sees a socket of the family that its connection does not use: a candidate, as
    /// with `OBSERVED_ADDRESS`.
    fn handle_other_family(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        Observed { socket, from: observer_address, .. }: Observed,
        address: SocketAddr,
    ) -> Learned {
        if !cx.env.local.is_plausible(socket, observer_address, address) {
            cx.env.out.refuse_frame();
            return Learned::Nothing;
        }
        let observer = from.peer;
        let by = Observer { stream: from.id, peer: observer, address: observer_address };
        let recorded = cx.env.local.observations.record(socket, by, address, cx.now);
        self.report_observation(cx, recorded, Event::Observed { observer, socket, address })
    }

    fn report_observation(&mut self, cx: &mut Context<'_>, recorded: Recorded, observed: Event) -> Learned {
        let learned = match (recorded, &observed) {
            (Recorded::Known, _) => return Learned::Nothing,
            (Recorded::Full, _) => {
                cx.env.out.cap_hit();
                return Learned::Nothing;
            }
            (Recorded::Remapped, Event::Observed { socket, .. }) => Learned::Remapping(*socket),
            (Recorded::Remapped | Recorded::New | Recorded::Moved, _) => Learned::Address,
        };
        cx.env.out.event(observed);
        cx.refresh_candidates();
        self.report_changes(cx);
        learned
    }

    /// A coordinator accepted the registration over this control stream.
    pub(crate) fn handle_registered(&mut self, cx: &mut Context<'_>, id: ControlStreamId) {
        self.test_filtering(cx, id, false);
    }

    /// A coordinator reports what it has sent for a filtering test.
    pub(crate) fn handle_filter_tested(
        &mut self,
        cx: &mut Context<'_>,
        id: ControlStreamId,
        answer: FilteringTestAnswer,
        has_probed: HasProbed<'_>,
    ) {
        if !self.filtering.answered(id, answer, cx.now) {
            return cx.env.out.refuse_frame();
        }
        self.conclude_filtering_tests(cx, has_probed);
    }

    /// A coordinator did not answer when it was dialed over UDP.
    pub(crate) fn handle_coordinator_timeout(&mut self, cx: &mut Context<'_>, coordinator: PeerId) {
        if cx.env.registrations.contains(&coordinator)
            && (self.unreachable.len() < MAX_UNREACHABLE || self.unreachable.contains_key(&coordinator))
        {
            self.unreachable.insert(coordinator, cx.now);
            self.report_findings(cx);
        }
    }

    /// A peer is connected over UDP.
    pub(crate) fn handle_reached(&mut self, peer: &PeerId) {
        self.unreachable.remove(peer);
    }

    /// Asks an observer where a socket is seen, if there is such an observer.
    pub(crate) fn sample(&mut self, cx: &mut Context<'_>, sample: Sample, data: [u8; 8]) {
        if let Some((path, payload)) = self.observing.sample(sample, data, cx.now) {
            cx.env.out.transmit(path, payload);
        }
    }

    /// Returns true if the coordinator of this control stream observes over this address family.
    pub(crate) fn has_observer(&self, id: ControlStreamId, family: Family) -> bool {
        self.observing.serves(id, family)
    }

    /// Sends the requests to observers that are due.
    fn observe(&mut self, cx: &mut Context<'_>) {
        let Environment { rng, out, local, .. } = &mut *cx.env;
        for (path, payload) in self.observing.poll(cx.now, || rng.random()) {
            out.transmit(path, payload);
        }
        let silent = self.observing.take_silent();
        for Path { socket, remote } in &silent {
            local.observations.not_seen_from(*socket, *remote);
        }
        if !silent.is_empty() {
            cx.refresh_candidates();
            self.report_changes(cx);
        }
    }

    fn run_binding_lifetime(&mut self, cx: &mut Context<'_>) {
        if self.binding_lifetime.run(cx) {
            self.report_findings(cx);
        }
    }

    /// Asks the coordinator of a control stream for a filtering test, once; `again` if the local
    /// address there has changed.
    fn test_filtering(&mut self, cx: &mut Context<'_>, id: ControlStreamId, again: bool) {
        let Some(stream) = cx.env.streams.get(id) else { return };
        let (Some(remote), Some(socket)) = (stream.remote, stream.socket) else { return };
        if !cx.env.registrations.contains(&stream.peer) || self.filtering.knows(id) != again {
            return;
        }
        let (data, key) = (cx.env.rng.random(), cx.env.rng.random());
        self.filtering.begin(stream, Test { data, key, path: Path { socket, remote } }, cx.now);
        self.expect_probes(cx);
        cx.env.out.frame(id, Frame::FilterTest { data, key });
    }

    /// Tells the path layer if datagrams of tests may come.
    fn expect_probes(&mut self, cx: &mut Context<'_>) {
        let expects = self.filtering.is_testing() || self.hairpins.is_testing();
        if self.expects_probes != expects {
            self.expects_probes = expects;
            cx.env.out.command(Command::ExpectProbes { expected: expects });
        }
    }

    /// Ends the filtering tests that are due, and continues with hairpin tests of their sockets.
    fn conclude_filtering_tests(&mut self, cx: &mut Context<'_>, has_probed: HasProbed<'_>) {
        let Environment { streams, local, rng, .. } = &mut *cx.env;
        let observing = &self.observing;
        let contacted = |ip: IpAddr, port: Option<u16>| {
            let is_it =
                |remote: SocketAddr| remote.ip() == ip && port.is_none_or(|port| port == remote.port());
            streams.iter().any(|stream| stream.remote.is_some_and(is_it))
                || port.is_some_and(|port| observing.asks(SocketAddr::new(ip, port)))
                || has_probed(ip, port)
        };
        for socket in self.filtering.conclude(cx.now, contacted) {
            let Some(public) = local.observations.reflexive(socket).first().copied() else { continue };
            let is_own = local.addresses_of_socket(socket).contains(&public);
            if !is_own && scope(public.ip()) == Scope::Global {
                let (data, key) = (rng.random(), rng.random());
                let path = Path { socket, remote: public };
                self.hairpins.begin(Test { data, key, path }, cx.now);
            }
        }
        for (path, payload) in self.hairpins.poll(cx.now) {
            cx.env.out.transmit(path, payload);
        }
        self.expect_probes(cx);
        self.report_findings(cx);
    }

    /// Reports mappings and findings that have changed.
    pub(crate) fn report_changes(&mut self, cx: &mut Context<'_>) {
        cx.report_mappings();
        self.report_findings(cx);
    }

    /// Reports the findings if one has changed.
    pub(crate) fn report_findings(&mut self, cx: &mut Context<'_>) {
        let report = self.report(cx.env);
        if !report.says_the_same(&self.reported) {
            self.reported = report.clone();
            cx.env.out.event(Event::Nat(Box::new(report)));
        }
    }

    /// Reports what a measurement has shown. Coordinators learn at once of a profile that is not
    /// the one `before`.
    fn report_measurement(&mut self, cx: &mut Context<'_>, before: NatProfile) {
        self.report_changes(cx);
        if self.profile(cx.env) != before {
            cx.env.registrations.renew_now(cx.now);
        }
    }

    /// Returns the profile that other peers learn of the NAT.
    pub(crate) fn profile(&self, env: &Environment) -> NatProfile {
        let declines_search = !env.config.birthday_search;
        let Some(id) = env.coordinated_socket() else {
            return NatProfile { declines_search, ..NatProfile::default() };
        };
        let view = env.local.current_view(id);
        // A window with fewer sockets than planned would be half a search.
        let predicts = env.config.prediction && self.max_search_sockets >= WINDOW_SOCKETS;
        let allocation = match self.allocation(env, id) {
            Some(Allocation::Sequential { .. }) if !predicts => Some(Allocation::Random),
            other => other,
        };
        let early_packets_harm = self.early_packets_harm(env, id).is_some_and(|finding| finding.value);
        let profile = NatProfile { mapping: view.mapping, allocation, declines_search, early_packets_harm };
        let declines_search =
            declines_search || (profile.needs_spray() && self.max_search_sockets < LEAST_SPRAY);
        NatProfile { declines_search, ..profile }
    }

    /// Returns the findings on the NAT in front of the socket that coordinators know.
    pub(crate) fn report(&self, env: &Environment) -> Report {
        let udp_blocked = self.udp_blocked(env);
        let Some(socket) = env.coordinated_socket() else {
            return Report { udp_blocked, ..Report::default() };
        };
        let local = env.local.addresses_of_socket(socket);
        let observations = &env.local.observations;
        let mut report = observations.report(socket, &env.local.current_view(socket), &local);
        report.udp_blocked = udp_blocked;
        if report.translated.is_some() {
            report.local_address = env.local.socket(socket).map(|socket| socket.local);
        }
        report.filtering = self.filtering_behaviour(socket);
        report.allocation = self
            .allocation(env, socket)
            .zip(observations.sampled(socket))
            .map(|(value, evidence)| Finding::agreed(value, evidence));
        report.idle_lifetime = self.binding_lifetime.result();
        report.early_packets_harm = self.early_packets_harm(env, socket);
        let translated = report.translated.as_ref().is_some_and(|finding| finding.value);
        if let Some(public) = report.public_address.clone() {
            let back = self.hairpins.result(socket, public.value).filter(|_| translated);
            report.hairpin = back.map(|value| {
                // A datagram that arrived is proof. A missing datagram may have been lost.
                let confidence = if value { Confidence::High } else { public.confidence };
                Finding { value, confidence, evidence: public.evidence.clone() }
            });
            report.sharing = sharing(env, public.value.ip());
        }
        let seen = observations.seen_in_shared_space(socket, &local);
        let own = || report.translated.as_ref().filter(|_| translated && is_in_shared_space(&local));
        let carrier = seen.or_else(|| own().map(|finding| finding.evidence.clone()));
        report.carrier_nat = carrier.map(|evidence| Finding::agreed(true, evidence));
        report
    }

    /// Returns how the NAT in front of a socket allocates ports.
    fn allocation(&self, env: &Environment, id: SocketId) -> Option<Allocation> {
        self.observing.allocation(id, env.local.socket(id)?.local.port())
    }

    /// Returns true if early packets harm the sockets in the network of `socket`; `None` if no test
    /// has ended.
    fn early_packets_harm(&self, env: &Environment, socket: SocketId) -> Option<Finding<bool>> {
        let is_meant = |id| env.streams.get(id).is_some_and(|stream| stream.socket == Some(socket));
        self.early_packets.finding(is_meant)
    }

    fn filtering_behaviour(&self, socket: SocketId) -> Option<Finding<FilteringBehaviour>> {
        use FilteringBehaviour::*;
        let mut outcomes: Vec<_> = self.filtering.outcomes(socket).collect();
        // A datagram that arrived outweighs a missing one.
        outcomes.sort_by_key(|outcome| match outcome.filtering {
            EndpointIndependent => 0,
            AddressDependent => 1,
            PortIndependent => 2,
            AddressAndPortDependent => 3,
        });
        let value = outcomes.first()?.filtering;
        let agrees = |other| match (value, other) {
            (EndpointIndependent | AddressDependent, PortIndependent) => true,
            (a, b) => a == b,
        };
        let (agree, contradict): (Vec<&Outcome>, Vec<&Outcome>) =
            outcomes.into_iter().partition(|outcome| agrees(outcome.filtering));
        let mut evidence = Evidence::new(agree.iter().map(|outcome| (outcome.peer, outcome.at)))?;
        evidence.observations = agree.iter().map(|outcome| outcome.datagrams).sum();
        let lossless = agree.iter().all(|outcome| outcome.lossless);
        // Silence is evidence only if the coordinator did send, as it claims. A datagram that
        // arrived needs no such claim.
        let rests_on_silence = matches!(value, AddressDependent | AddressAndPortDependent);
        let weight = evidence.observers.len() + usize::from(!rests_on_silence);
        let confidence = match (contradict.is_empty(), lossless) {
            (true, true) => Confidence::of_observers(weight),
            (true, false) => Confidence::of_observers(weight - 1),
            (false, _) => Confidence::Low,
        };
        Some(Finding { value, confidence, evidence })
    }

    fn udp_blocked(&self, env: &Environment) -> Option<Finding<bool>> {
        if let Some(evidence) = env.local.observations.seen_at_all() {
            // A single observer that sees this peer is proof.
            return Some(Finding { value: false, confidence: Confidence::High, evidence });
        }
        let evidence = Evidence::new(self.unreachable.iter().map(|(peer, at)| (*peer, *at)))?;
        Some(Finding::agreed(true, evidence))
    }
}

/// Returns true if requests may go to `ip` on the word of the coordinator at `remote`. A private
/// address must be on a local network, as that of the coordinator is.
fn may_be_observer(env: &Environment, remote: SocketAddr, ip: IpAddr) -> bool {
    let prefixes = env.local.prefixes();
    let is_own = prefixes.iter().any(|prefix| prefix.address == ip);
    match scope(ip) {
        Scope::Never => false,
        Scope::Loopback => scope(remote.ip()) == Scope::Loopback,
        Scope::Private => {
            let is_near = |ip| prefixes.iter().any(|prefix| prefix.contains(ip));
            !is_own && is_near(ip) && is_near(remote.ip())
        }
        Scope::Global => !is_own,
    }
}

fn sharing(env: &Environment, address: IpAddr) -> Option<Finding<Sharing>> {
    let (sockets, evidence) = env.local.observations.sockets_at(address)?;
    let is_there = |stream: &&ControlStream| stream.remote.is_some_and(|remote| remote.ip() == address);
    let mut peers: Vec<PeerId> = env.streams.iter().filter(is_there).map(|stream| stream.peer).collect();
    peers.sort();
    peers.dedup();
    Some(Finding::agreed(Sharing { address, sockets, peers }, evidence))
}
