//! Filtering tests: having them made, making them for others; and the report on our NAT.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use libp2p_identity::PeerId;
use rand::Rng;

use super::Endpoint;
use crate::{
    ControlStreamId, Path, SocketId,
    address_policy::{Scope, scope},
    command::{Command, Pool},
    control_streams::ControlStream,
    event::Event,
    nat::{
        Confidence, Evidence, FilteringBehaviour, Finding, Report, Sharing,
        filtering::{Outcome, Test},
        is_in_shared_space,
    },
    outbox::Transmit,
    wire::frame::Frame,
};

/// Coordinators that cannot be reached and are remembered.
const MAX_UNREACHABLE: usize = 16;

/// What the report needs beside what others keep.
#[derive(Debug, Default)]
pub(super) struct Reporting {
    said: Report,
    /// Coordinators that were dialed over UDP and did not answer, and when last.
    unreachable: BTreeMap<PeerId, Instant>,
    /// The path layer was asked to look for probes.
    expects: bool,
}

impl Endpoint {
    /// What is known of the NAT in front of the socket that our coordinators know.
    pub fn nat_report(&self) -> Report {
        let blocked = self.udp_blocked();
        let known = self.coordinated_socket();
        let Some(socket) = known else { return Report { udp_blocked: blocked, ..Report::default() } };
        let local = self.network.addresses_of_socket(socket);
        let observations = &self.network.observations;
        let mut report = observations.report(socket, &self.network.current_view(socket), &local);
        report.udp_blocked = blocked;
        report.filtering = self.filtering(socket);
        report.allocation = self
            .allocation(socket)
            .zip(observations.sampled(socket))
            .map(|(value, evidence)| Finding::agreed(value, evidence));
        report.idle_lifetime = self.idling.result();
        report.early_packets_harm = self.early_packets_harm(socket);
        let translated = report.translated.as_ref().is_some_and(|finding| finding.value);
        if let Some(public) = report.public_address.clone() {
            let back = self.hairpins.result(socket, public.value).filter(|_| translated);
            report.hairpin = back.map(|value| {
                // What came back cannot have been lost; what did not may have been.
                let confidence = if value { Confidence::High } else { public.confidence };
                Finding { value, confidence, evidence: public.evidence.clone() }
            });
            report.sharing = self.sharing(public.value.ip());
        }
        let seen = observations.seen_in_shared_space(socket, &local);
        let own = || report.translated.as_ref().filter(|_| translated && is_in_shared_space(&local));
        let carrier = seen.or_else(|| own().map(|finding| finding.evidence.clone()));
        report.carrier_nat = carrier.map(|evidence| Finding::agreed(true, evidence));
        report
    }

    /// Says it if something about our NAT is known that was not, or no longer.
    pub(super) fn report_nat(&mut self) {
        let report = self.nat_report();
        if !report.says_the_same(&self.reporting.said) {
            self.reporting.said = report.clone();
            self.out.event(Event::Nat(Box::new(report)));
        }
    }

    fn filtering(&self, socket: SocketId) -> Option<Finding<FilteringBehaviour>> {
        use FilteringBehaviour::*;
        let mut outcomes: Vec<_> = self.filter_tests.outcomes(socket).collect();
        // What arrived proves more than what did not.
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
        // Silence is evidence only if the coordinator did send: its word. What arrived speaks for itself.
        let rests_on_silence = matches!(value, AddressDependent | AddressAndPortDependent);
        let weight = evidence.observers.len() + usize::from(!rests_on_silence);
        let confidence = match (contradict.is_empty(), lossless) {
            (true, true) => Confidence::of_observers(weight),
            (true, false) => Confidence::of_observers(weight - 1),
            (false, _) => Confidence::Low,
        };
        Some(Finding { value, confidence, evidence })
    }

    fn sharing(&self, address: IpAddr) -> Option<Finding<Sharing>> {
        let (sockets, evidence) = self.network.observations.sockets_at(address)?;
        let there = |link: &ControlStream| link.remote.is_some_and(|remote| remote.ip() == address);
        let mut peers: Vec<PeerId> =
            self.links.iter().filter(|(_, link)| there(link)).map(|(_, link)| link.peer).collect();
        peers.sort();
        peers.dedup();
        Some(Finding::agreed(Sharing { address, sockets, peers }, evidence))
    }

    fn udp_blocked(&self) -> Option<Finding<bool>> {
        if let Some(evidence) = self.network.observations.seen_at_all() {
            // One that saw us is proof enough.
            return Some(Finding { value: false, confidence: Confidence::High, evidence });
        }
        let evidence = Evidence::new(self.reporting.unreachable.iter().map(|(peer, at)| (*peer, *at)))?;
        Some(Finding::agreed(true, evidence))
    }

    /// A coordinator was dialed over UDP, and nobody answered.
    pub fn coordinator_timed_out(&mut self, coordinator: PeerId, now: Instant) {
        let unreachable = &mut self.reporting.unreachable;
        if self.registration_client.contains(&coordinator)
            && (unreachable.len() < MAX_UNREACHABLE || unreachable.contains_key(&coordinator))
        {
            unreachable.insert(coordinator, now);
            self.report_nat();
        }
    }

    /// A peer is connected over UDP after all.
    pub(super) fn reached(&mut self, peer: &PeerId) {
        self.reporting.unreachable.remove(peer);
    }

    /// Has the coordinator at the other end of a link test how our NAT filters, unless it has done so; `anew` if our
    /// address there has changed.
    pub(super) fn test_filtering(&mut self, id: ControlStreamId, anew: bool, now: Instant) {
        let Some(link) = self.links.get(id) else { return };
        let (Some(remote), Some(socket), peer) = (link.remote, link.socket, link.peer) else { return };
        if !self.registration_client.contains(&peer) || self.filter_tests.knows(id) != anew {
            return;
        }
        let (data, key) = (self.rng.random(), self.rng.random());
        self.filter_tests.begin((id, peer), Test { data, key, path: Path { socket, remote } }, now);
        self.expect_probes();
        self.out.frame(id, Frame::FilterTest { data, key });
    }

    /// Tells the path layer whether datagrams of tests may come.
    pub(super) fn expect_probes(&mut self) {
        let expects = self.filter_tests.is_testing() || self.hairpins.is_testing();
        if self.reporting.expects != expects {
            self.reporting.expects = expects;
            self.out.command(Command::ExpectProbes { expected: expects });
        }
    }

    /// A coordinator says what it has sent.
    pub(super) fn filter_tested(
        &mut self,
        id: ControlStreamId,
        (data, rounds, sources): ([u8; 8], u8, Vec<SocketAddr>),
        now: Instant,
    ) {
        if !self.filter_tests.answered(id, data, (rounds, sources), now) {
            return self.out.refuse_frame();
        }
        self.run_filter_tests(now);
    }

    /// A datagram of a test has come; `false` if it is of none of ours.
    pub(super) fn filter_probe(&mut self, path: Path, datagram: &[u8]) -> bool {
        if self.hairpins.arrived(path.socket, datagram) {
            self.expect_probes();
            self.report_nat();
            return true;
        }
        self.filter_tests.arrived(path, datagram)
    }

    /// Ends the tests that are due, and goes on with those of whether our own address leads back to us.
    pub(super) fn run_filter_tests(&mut self, now: Instant) {
        let (links, sessions, observing) = (&self.links, &self.sessions, &self.observing);
        let contacted = |ip: IpAddr, port: Option<u16>| {
            let is_it =
                |remote: SocketAddr| remote.ip() == ip && port.is_none_or(|port| port == remote.port());
            links.iter().any(|(_, link)| link.remote.is_some_and(is_it))
                || port.is_some_and(|port| observing.asks(SocketAddr::new(ip, port)))
                || sessions.has_probed(is_it)
        };
        let concluded = self.filter_tests.conclude(now, contacted);
        for socket in concluded {
            let Some(public) = self.network.observations.reflexive(socket).first().copied() else { continue };
            let is_own = self.network.addresses_of_socket(socket).contains(&public);
            if !is_own && scope(public.ip()) == Scope::Global {
                let name = (self.rng.random(), self.rng.random());
                self.hairpins.begin(Path { socket, remote: public }, name, now);
            }
        }
        self.send_all(|endpoint| endpoint.hairpins.poll(now));
        self.expect_probes();
        self.report_nat();
    }

    fn send_all(&mut self, what: impl FnOnce(&mut Self) -> Vec<(Path, [u8; crate::wire::probe::PROBE_LEN])>) {
        let transmits = what(self).into_iter().map(|(path, payload)| Transmit { path, payload });
        self.out.transmits.extend(transmits);
    }

    /// A client wants its NAT tested.
    pub(super) fn filter_test(
        &mut self,
        id: ControlStreamId,
        link: &ControlStream,
        (data, key): ([u8; 8], [u8; 32]),
        now: Instant,
    ) {
        let serves = self.coordinator.serves(&link.peer, id);
        let (Some(remote), Some(socket)) = (link.remote, link.socket) else {
            return self.out.frame(id, Frame::FilterTested { data, rounds: 0, sources: Vec::new() });
        };
        let test = Test { data, key, path: Path { socket, remote } };
        let own = self.network.own_addresses();
        let earliest = link.proven_at().map_or(now, |at| at.max(now));
        let other = self.assistant_for(link, remote);
        let from = (own.as_slice(), other);
        let begun =
            serves.then(|| self.filters.begin((id, link.peer), test, from, (now, earliest))).flatten();
        let Some(missing) = begun else {
            if serves {
                self.out.cap_hit();
            }
            return self.out.frame(id, Frame::FilterTested { data, rounds: 0, sources: Vec::new() });
        };
        for local in missing {
            self.out.command(Command::OpenSockets { pool: Pool::Filtering(local), local, count: 1 });
        }
        self.run_filters(now);
    }

    /// Sends what is due of the tests that we make for clients, and of those of other coordinators.
    pub(super) fn run_filters(&mut self, now: Instant) {
        let links = &self.links;
        let proven = |link: &&ControlStream| link.proven_at().is_none_or(|at| at <= now);
        let due = self.filters.poll(now, |link| links.get(link).filter(proven)?.remote);
        self.out.counters.filter_probes_sent += due.transmits.len() as u64;
        self.send_all(|_| due.transmits);
        for (link, data, key, target) in due.asks {
            self.out.frame(link, Frame::FilteringAssistRequest { data, key, target });
        }
        for (link, data, rounds, source) in due.assisted {
            self.out.frame(link, Frame::FilteringAssistResponse { data, rounds, source });
        }
        for (link, data, rounds, sources) in due.ended {
            self.out.frame(link, Frame::FilterTested { data, rounds, sources });
        }
    }
}
