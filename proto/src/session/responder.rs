//! Procedures of a responder: the request of an initiator, and the server's flight before a path is
//! validated.

use std::time::Duration;

use crate::{
    command::Command,
    control_streams::ControlStream,
    event::{Phase, SessionRole},
    nat::strategy::NatProfile,
    network_prefix::NetworkPrefix,
    session::{
        Session, Transition,
        checklist::FlightOnceHeard,
        context::Context,
        paths::{FLIGHT_FACTOR, RemoteAddresses},
        port_search::Ticket,
        searching::PlannedFrom,
    },
    wire::{
        frame::{PunchMeNow, PunchRequest},
        keys::{FlightBinding, ProbeKeys},
    },
};

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
        self.course.enter_first(cx, self.current());
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
        self.course.enter(cx, self.current(), Phase::Synchronization);
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
        self.course.begin_attempt(cx);
        self.keys = Some(Box::new(keys));
        let flow = cx.new_virtual_connection();
        self.flow = Some(flow);
        let bytes = first_flight_len(&request);
        let rtt = self.course.earlier_rtt();
        let binding = FlightBinding::new(&self.peer, &request.probe_key);
        let first_flight = request.first_flight;
        cx.env.out.command(Command::Accept { flow, peer: self.peer, first_flight, rtt, binding });
        let remote = RemoteAddresses { from, candidates: request.candidates, observed };
        self.paths.form_checklist(cx, self.current(), remote, request_len);
        self.paths.permit_flight(cx, self.current(), from, observed, bytes);
        self.paths.permit_flight_to_signed(cx, self.current(), observed, bytes);
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

    /// Returns true if this is the request that the present attempt answers.
    pub(super) fn answers(&self, request: &PunchRequest) -> bool {
        self.role == SessionRole::Responder && (self.id, self.attempt) == (request.session, request.round)
    }

    /// Returns true if a request repeats that of this session, and nothing was heard of the
    /// initiator meanwhile. A request that comes through another coordinator at about the same time
    /// repeats nothing.
    pub(super) fn is_repeated_by(&self, cx: &Context<'_>, request: &PunchRequest) -> bool {
        let since = cx.now.saturating_duration_since(self.course.phase_since);
        self.course.is_silent() && self.answers(request) && since >= REPETITION_TIMEOUT
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
        self.paths.extend_targets(
            cx,
            self.current(),
            RemoteAddresses { from, candidates: request.candidates, observed },
        );
        self.search.retarget(observed, cx.now);
        let progress = self.poll(cx);
        if progress.is_ok() && is_new {
            self.paths.permit_flight(cx, self.current(), from, observed, bytes);
        }
        self.conclude(cx, progress)
    }
}

fn first_flight_len(request: &PunchRequest) -> usize {
    request.first_flight.iter().map(|datagram| datagram.len()).sum()
}
