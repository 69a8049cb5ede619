//! Procedures of a responder: the request of an initiator, and the server's flight before a path is
//! validated.

use std::{net::SocketAddr, time::Duration};

use crate::{
    address_policy::{Scope, scope},
    command::Command,
    control_streams::ControlStream,
    event::{Phase, SessionRole},
    nat::strategy::NatProfile,
    network_prefix::NetworkPrefix,
    probe_budget::probes_in,
    session::{
        Session, Transition,
        checklist::FlightOnceHeard,
        context::Context,
        pair::{self, Pair},
        port_search::Ticket,
        probing::RemoteAddresses,
        searching::PlannedFrom,
    },
    wire::{
        frame::{PunchMeNow, PunchRequest},
        keys::{FlightBinding, ProbeKeys},
    },
};

/// Bytes of a server flight for each byte of the first flight (RFC 9000 §8.1), to an address that
/// is not validated.
const FLIGHT_FACTOR: usize = 3;
/// Bytes of a server flight to an address that only the initiator named: three times a first flight
/// of one datagram.
const MAX_SIGNED_FLIGHT: usize = 3_600;
/// Time after a request from which on the same request counts as a repeated one.
const REPETITION_TIMEOUT: Duration = Duration::from_millis(500);

/// A request that was accepted, and the keys that follow from it.
#[derive(Debug)]
pub(super) struct AcceptedRequest<'a> {
    pub(super) from: &'a ControlStream,
    pub(super) punch: PunchMeNow,
    pub(super) keys: ProbeKeys,
}

impl Session {
    /// Begins a new session as the responder.
    pub(super) fn begin_response(
        &mut self,
        cx: &mut Context<'_>,
        request: AcceptedRequest<'_>,
    ) -> Transition {
        self.take_part(&request.punch.request);
        self.enter_first(cx);
        self.respond(cx, request, None)
    }

    /// Takes the role of the responder in a session that is under way. The attempt under way ends
    /// with that.
    pub(super) fn handle_request(
        &mut self,
        cx: &mut Context<'_>,
        request: AcceptedRequest<'_>,
    ) -> Transition {
        // Another round of an attempt that waits for its turn keeps its place.
        let ticket = self.search.plan.as_mut().and_then(|search| search.turn.ticket.take());
        self.abandon_attempt(cx);
        self.take_part(&request.punch.request);
        self.enter(cx, Phase::Synchronization);
        self.respond(cx, request, ticket)
    }

    fn take_part(&mut self, request: &PunchRequest) {
        self.role = SessionRole::Responder;
        self.id = request.session;
        self.attempt = request.round;
    }

    fn respond(
        &mut self,
        cx: &mut Context<'_>,
        accepted: AcceptedRequest<'_>,
        ticket: Option<Ticket>,
    ) -> Transition {
        let AcceptedRequest { from, punch, keys } = accepted;
        let request_len = punch.request_len();
        let observed = punch.observed;
        let request = punch.request;
        self.asked_from = observed.and_then(|at| NetworkPrefix::of(at.ip())).map(Box::new);
        self.begin_attempt(cx);
        self.keys = Some(Box::new(keys));
        let flow = cx.new_virtual_connection();
        self.flow = Some(flow);
        let bytes = first_flight_len(&request);
        let rtt = self.course.earlier_rtt();
        let binding = FlightBinding::new(&self.peer, &request.probe_key);
        let first_flight = request.first_flight;
        cx.env.out.command(Command::Accept { flow, peer: self.peer, first_flight, rtt, binding });
        let remote = RemoteAddresses { from, candidates: request.candidates, observed };
        self.form_checklist(cx, remote, request_len);
        self.permit_flight(cx, from, observed, bytes);
        self.permit_flight_to_signed(cx, observed, bytes);
        if let Some(checklist) = &mut self.paths.checklist {
            let budget = FLIGHT_FACTOR * bytes;
            checklist.flight_once_heard = Some(FlightOnceHeard { coordinator: from.peer, budget });
        }
        let theirs = NatProfile::parse(&request.nat);
        self.plan_search(cx, PlannedFrom { stream: from, theirs, coordination: None });
        match &mut self.search.plan {
            Some(search) => search.turn.ticket = ticket,
            None => cx.shared.searches.left(ticket),
        }
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// Returns true if a request repeats that of this session, and nothing was heard of the
    /// initiator meanwhile. A request that comes through another coordinator at about the same time
    /// repeats nothing.
    pub(super) fn is_repeated_by(&self, cx: &Context<'_>, request: &PunchRequest) -> bool {
        let is_meant = self.role == SessionRole::Responder
            && (self.id, self.attempt) == (request.session, request.round);
        let since = cx.now.saturating_duration_since(self.course.phase_since);
        self.course.is_silent() && is_meant && since >= REPETITION_TIMEOUT
    }

    /// The initiator repeats its request, as it does not hear this peer. It may have moved, as its
    /// coordinator sees.
    pub(super) fn handle_repeated_request(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        punch: PunchMeNow,
    ) -> Transition {
        let (request, observed) = (punch.request, punch.observed);
        let bytes = first_flight_len(&request);
        let checklist = self.paths.checklist.as_ref();
        let is_new = observed.is_some_and(|at| checklist.is_some_and(|known| !known.is_announced(at)));
        if let Some(search) = &mut self.search.plan {
            search.turn.asked_again(cx.now);
        }
        self.extend_targets(cx, RemoteAddresses { from, candidates: request.candidates, observed });
        self.search.retarget(observed, cx.now);
        let progress = self.poll(cx);
        if progress.is_ok() && is_new {
            self.permit_flight(cx, from, observed, bytes);
        }
        self.conclude(cx, progress)
    }

    /// Lets the server's flight go to where the coordinator sees the initiator, up to three times
    /// the bytes of the first flight.
    fn permit_flight(
        &mut self,
        cx: &mut Context<'_>,
        from: &ControlStream,
        observed: Option<SocketAddr>,
        bytes: usize,
    ) {
        if cx.shared.flights.take(from.peer, cx.now).is_err() {
            // The flight waits for an authentic probe.
            return cx.env.out.cap_hit();
        }
        let (Some(checklist), Some(flow)) = (&mut self.paths.checklist, self.flow) else { return };
        checklist.flight_vouched_by = Some(from.peer);
        let is_observed =
            |pair: &&Pair| Some(pair.path.remote) == observed && pair.origin == pair::Origin::Observed;
        let usable = || checklist.pairs().iter().filter(is_observed);
        // The coordinator saw that address from the network of its stream: through the same local
        // socket the NATs know each other.
        let path = usable()
            .find(|pair| Some(pair.path.socket) == from.socket)
            .or_else(|| usable().next())
            .map(|pair| pair.path);
        if let Some(path) = path
            && let Some(pair) = checklist.get_mut(path)
        {
            pair.permitted = true;
            let budget = FLIGHT_FACTOR * bytes;
            cx.env.out.command(Command::Permit { flow, path, budget, again: false });
        }
    }

    /// The coordinator sees the initiator over one address family. Over another one the server's
    /// flight goes to the best global address that the initiator signed, within what the request
    /// may cost any address.
    fn permit_flight_to_signed(&mut self, cx: &mut Context<'_>, observed: Option<SocketAddr>, bytes: usize) {
        let (Some(checklist), Some(flow)) = (&mut self.paths.checklist, self.flow) else { return };
        let is_unseen = |pair: &&Pair| {
            pair.origin == pair::Origin::Announced
                && scope(pair.path.remote.ip()) == Scope::Global
                && observed.is_none_or(|seen| seen.is_ipv4() != pair.path.remote.is_ipv4())
        };
        let Some(path) = checklist.pairs().iter().find(is_unseen).map(|pair| pair.path) else { return };
        let budget = (FLIGHT_FACTOR * bytes).min(MAX_SIGNED_FLIGHT);
        let probes = probes_in(budget);
        if !checklist.affords(path, probes) {
            return;
        }
        if !cx.shared.probes.take_flight(path.remote.ip().into(), cx.now) {
            // The flight waits for an authentic probe.
            return cx.env.out.cap_hit();
        }
        checklist.charge(path, probes);
        if let Some(pair) = checklist.get_mut(path) {
            pair.permitted = true;
        }
        cx.env.out.command(Command::Permit { flow, path, budget, again: false });
    }
}

fn first_flight_len(request: &PunchRequest) -> usize {
    request.first_flight.iter().map(|datagram| datagram.len()).sum()
}
