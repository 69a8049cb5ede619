//! Probes of a session: sending them and answering those of the peer.

use rand::Rng;

use crate::{
    Path, SocketId,
    candidate::{self, CandidateKind},
    command::Command,
    event::{Event, Phase, SessionRole},
    session::{
        Progress, Session, Transition, checklist::CHALLENGE_RATE, contact::Contact, context::Context,
        paths::pair_priority_of,
    },
    wire::probe::Probe,
};

impl Session {
    /// An authentic probe arrived on `path`.
    pub(super) fn handle_probe(&mut self, cx: &mut Context<'_>, path: Path, probe: Probe) -> Transition {
        let progress = match probe {
            Probe::Challenge { data, nominate } => self.challenged(cx, path, data, nominate),
            Probe::Response { data, .. } => self.answered(cx, path, data),
        };
        if progress.is_ok() {
            self.settle(cx);
        }
        self.conclude(cx, progress)
    }

    fn challenged(&mut self, cx: &mut Context<'_>, path: Path, data: [u8; 8], nominate: bool) -> Progress {
        let triggered = cx.env.rng.random();
        self.paths.restore_checklist(cx, self.role);
        let connected = self.is_connected();
        let priority = pair_priority_of(self.role, path.remote.ip(), {
            candidate::priority(CandidateKind::PeerReflexive, path.remote.ip())
        });
        let Some(checklist) = &mut self.paths.checklist else { return Ok(()) };
        if !self.paths.answers.take(CHALLENGE_RATE, cx.now) {
            cx.env.out.cap_hit();
            return Ok(());
        }
        let was_heard = checklist.is_heard(path);
        let heard = checklist.on_challenge(path, priority, nominate, cx.now);
        if heard.capped {
            cx.env.out.cap_hit();
        }
        let due = if heard.trigger { checklist.trigger(path, triggered, cx.now) } else { None };
        if heard.is_new && connected {
            checklist.recheck_selected(cx.now);
        }
        let Some(keys) = &self.keys else { return Ok(()) };
        if heard.answer {
            cx.env.out.probe(path, Probe::Response { data, observed: path.remote }, keys);
        }
        if let Some(due) = due {
            cx.env.out.probe(due.path, Probe::Challenge { data: due.data, nominate: due.nominate }, keys);
        }
        if let Some(flow) = self.flow.filter(|_| heard.answer && !was_heard) {
            cx.env.out.command(Command::Admit { flow, path, heard: true });
        }
        if heard.answer {
            self.validating(cx);
            self.paths.permit_heard(cx, self.current(), path);
            self.paths.select(cx, self.current());
            return self.poll(cx);
        }
        Ok(())
    }

    fn answered(&mut self, cx: &mut Context<'_>, path: Path, data: [u8; 8]) -> Progress {
        let (peer, flow) = (self.peer, self.flow);
        let was_asked = matches!(self.course.contact, Contact::Asked | Contact::Told);
        let Some(checklist) = &mut self.paths.checklist else { return Ok(()) };
        let (in_doubt, was_heard) = (checklist.is_in_doubt(), checklist.is_heard(path));
        let Some((rtt, first)) = checklist.on_response(path, data, cx.now) else { return Ok(()) };
        let works_again = in_doubt && !checklist.is_in_doubt();
        if let Some(flow) = flow {
            if !was_heard {
                cx.env.out.command(Command::Admit { flow, path, heard: true });
            }
            if works_again && !was_asked {
                // The packets that QUIC sent meanwhile are lost.
                cx.env.out.command(Command::Select { flow, path });
            }
        }
        self.validating(cx);
        if first {
            cx.env.out.event(Event::PathValidated { peer, path, rtt });
        }
        self.paths.select(cx, self.current());
        self.poll(cx)?;
        self.contact_kept(cx);
        Ok(())
    }

    /// The first authentic probe begins the phase Validation.
    fn validating(&mut self, cx: &mut Context<'_>) {
        if self.course.is_silent() {
            self.paths.give_flight_back(cx);
            self.search.end(cx.shared);
            self.course.enter(cx, self.current(), Phase::Validation);
        }
    }

    /// Sends the probe that is due, such as a nomination, and continues with everything else that
    /// is due.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Progress {
        self.ask_again(cx)?;
        let data = cx.env.rng.random();
        let due = self.paths.checklist.as_mut().and_then(|checklist| checklist.poll(cx.now, data));
        let is_of_peer = self.role == SessionRole::Responder || self.is_connected();
        if let Some(due) = due
            && let Some(keys) = &self.keys
        {
            let destination = due.path.remote.ip().into();
            if is_of_peer && due.is_unproven && !cx.shared.probes.take(destination, cx.now) {
                cx.env.out.cap_hit();
            } else {
                let challenge = Probe::Challenge { data: due.data, nominate: due.nominate };
                cx.env.out.probe(due.path, challenge, keys);
            }
            if self.course.phase == Phase::Synchronization {
                self.course.enter(cx, self.current(), Phase::Punching);
            }
        }
        if self.course.is_silent() || self.is_missing() {
            self.run_search(cx)?;
        }
        // A probe that goes unanswered may be the one by which the selected path proves dead.
        self.paths.select(cx, self.current());
        self.tell_if_unheard(cx);
        self.settle(cx);
        Ok(())
    }

    /// Drops what a connected session that idles does not need.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) {
        let is_settled = self.is_connected() && self.search.plan.is_none();
        if is_settled && self.paths.settle(cx, self.flow) {
            self.search.close_sockets(cx, self.flow, &self.paths);
        }
    }

    /// The local sockets changed: new pairs are probed at once.
    pub(super) fn handle_sockets_changed(&mut self, cx: &mut Context<'_>) -> Transition {
        self.paths.restore_checklist(cx, self.role);
        self.paths.extend_checklist(cx, self.current(), None);
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// A socket is gone: its pairs go, and another path takes over if it carried the connection.
    pub(super) fn handle_socket_down(&mut self, cx: &mut Context<'_>, socket: SocketId) -> Transition {
        self.paths.restore_checklist(cx, self.role);
        if !self.paths.forget_socket(cx, self.current(), socket) {
            return Transition::Stay;
        }
        self.paths.extend_checklist(cx, self.current(), None);
        self.paths.select(cx, self.current());
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }

    /// The local addresses changed: every pair is probed again.
    pub(super) fn handle_network_changed(&mut self, cx: &mut Context<'_>) -> Transition {
        self.paths.restart_checklist(cx, self.current());
        let progress = self.poll(cx);
        self.conclude(cx, progress)
    }
}
