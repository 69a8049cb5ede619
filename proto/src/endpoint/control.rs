//! Control streams: coordinators, links and frames.

use std::{collections::BTreeSet, net::SocketAddr, time::Instant};

use libp2p_identity::PeerId;

use super::Endpoint;
use crate::{
    ControlStreamId, SocketId,
    control_streams::ControlStream,
    event::Event,
    nat::Recorded,
    outbox::Refusal,
    registration_client::Grant,
    wire::frame::{Frame, PunchMeNow},
};

impl Endpoint {
    /// Registers with `peer` whenever it is connected, and asks it to coordinate for us.
    pub fn add_coordinator(&mut self, peer: PeerId, now: Instant) {
        let link = self.links.best_of(&peer);
        if peer == self.peer || !self.registration_client.add(peer, link, now) {
            return;
        }
        self.network.observations.trust(peer);
        if link.is_some() {
            self.refresh_candidates(now);
            self.report_views();
            self.run_registrar(now);
            self.coordinator_arrived(&peer, now);
        }
    }

    /// Sets the coordinators that may know `peer` although this peer is not registered with them. Sessions with `peer` ask them, too,
    /// while control streams to them are open. An empty set ends this.
    pub fn set_coordinators_of(&mut self, peer: PeerId, coordinators: BTreeSet<PeerId>, now: Instant) {
        if coordinators.is_empty() {
            self.named.remove(&peer);
            return;
        }
        let before = self.named.insert(peer, coordinators.clone()).unwrap_or_default();
        for coordinator in coordinators.difference(&before) {
            if self.links.best_of(coordinator).is_some() {
                self.coordinator_arrived(coordinator, now);
            }
        }
    }

    /// Returns true if sessions with `peer` may ask `coordinator`.
    pub(super) fn may_ask(&self, coordinator: &PeerId, peer: &PeerId) -> bool {
        self.registration_client.contains(coordinator)
            || self.named.get(peer).is_some_and(|named| named.contains(coordinator))
    }

    fn is_named(&self, coordinator: &PeerId) -> bool {
        self.named.values().any(|named| named.contains(coordinator))
    }

    /// No longer uses `peer` as a coordinator.
    pub fn remove_coordinator(&mut self, peer: &PeerId, now: Instant) {
        if self.registration_client.contains(peer) {
            self.registration_client.remove(peer, now);
            self.network.observations.distrust(peer);
            self.refresh_candidates(now);
            self.report_views();
            self.run_registrar(now);
        }
    }

    /// A control stream to `peer` is open. `remote` and `socket` are the ends of the connection, if it is one of our
    /// transport. Called again for a link whose ends have changed.
    pub fn handle_link_up(
        &mut self,
        link: ControlStreamId,
        peer: PeerId,
        remote: Option<SocketAddr>,
        socket: Option<SocketId>,
        now: Instant,
    ) {
        if let Some(known) = self.links.get_mut(link).filter(|known| known.peer == peer) {
            let moved = known.remote != remote;
            known.remote = remote;
            known.socket = socket;
            if moved {
                known.moved = Some(now);
                self.tell_observed(link);
                self.report_nat();
            }
            return;
        }
        self.handle_link_down(link, now);
        self.gate.acquaint(peer, now);
        let state = ControlStream {
            peer,
            remote,
            socket,
            next_observation: 0,
            last_observation: None,
            moved: None,
            told_observers: false,
            told_observers_at: false,
        };
        self.links.insert(link, state);
        self.coordinator.link_up(peer, now);
        if remote.is_some() {
            self.reached(&peer);
        }
        self.tell_observed(link);
        if self.registration_client.contains(&peer) {
            self.registration_client.link_up(&peer, link, &self.links, now);
            self.run_registrar(now);
            self.coordinator_arrived(&peer, now);
        } else if self.is_named(&peer) {
            self.coordinator_arrived(&peer, now);
        }
        self.report_nat();
    }

    fn tell_observed(&mut self, id: ControlStreamId) {
        if let Some(link) = self.links.get_mut(id)
            && let Some(address) = link.remote
        {
            let sequence = link.next_observation;
            link.next_observation += 1;
            self.out.frame(id, Frame::ObservedAddress { sequence, address });
        }
    }

    /// A control stream is gone.
    pub fn handle_link_down(&mut self, link: ControlStreamId, now: Instant) {
        let Some(ControlStream { peer, .. }) = self.links.remove(link) else { return };
        self.coordinator.link_down(link, &peer, now);
        self.network.observations.link_down(link, now);
        self.observing.link_down(link);
        self.delayed_replies.link_down(link);
        self.early_packets.link_down(link);
        self.run_early_packets(now);
        if self.idling.link_down(link) {
            self.close_idling();
        }
        self.filters.link_down(link, now);
        self.filter_tests.link_down(link);
        self.expect_probes();
        if self.registration_client.contains(&peer) {
            self.registration_client.link_down(&peer, link, self.links.best_of(&peer), now);
            self.run_registrar(now);
        }
        if self.links.best_of(&peer).is_none() {
            self.pacing.forget(&peer);
        }
        // Sessions may have asked it that no longer need it.
        self.coordinator_lost(link, now);
        self.report_nat();
    }

    /// A frame arrived.
    pub fn handle_frame(&mut self, id: ControlStreamId, frame: Frame, now: Instant) {
        let Some(link) = self.links.get(id).cloned() else {
            return self.out.refuse_frame();
        };
        match frame {
            Frame::ObservedAddress { sequence, address } => self.observed(id, sequence, address, now),
            Frame::AddAddress(candidate) => self.coordinator.add_address(id, candidate, &mut self.out),
            Frame::RemoveAddress { sequence } => self.coordinator.remove_address(id, sequence),
            Frame::Register(registration) => {
                self.coordinator.register((id, &link), registration, now, &mut self.out);
                self.offer_observers(id, &link);
            }
            Frame::Registered { generation, lifetime, allowance } => {
                let grant = Grant { generation, lifetime };
                let known = self.registration_client.accepted(&link.peer, grant, now, &mut self.out);
                self.registration_answered(known, now);
                if known {
                    self.pacing.announced(link.peer, allowance);
                    self.test_filtering(id, false, now);
                }
            }
            Frame::RegisterRejected { generation, reason, retry_after } => {
                let answer = (generation, Refusal { reason, retry_after });
                let at = (now, &mut self.rng);
                let known = self.registration_client.rejected(&link.peer, answer, at, &mut self.out);
                self.registration_answered(known, now);
            }
            Frame::PunchMeNow(punch) => self.punch_me_now((id, &link), punch, now),
            Frame::PunchAnswer(answer) => self.punch_answer((id, &link), *answer, now),
            Frame::Observer(offer) => self.observer_offered(id, &link, offer, now),
            Frame::ObserverAt { ip, offer } => self.observer_at_offered(id, &link, ip, offer, now),
            Frame::ProbeObserved { data, address } => self.probe_observed(id, &link, (data, address), now),
            Frame::PortPrediction(window) => {
                if !self.search_window(&window, now) {
                    self.coordinator.window(&link, window, now, &mut self.out);
                }
            }
            Frame::PunchMoved(moved) => {
                if !self.peer_moved(id, &link, &moved, now) {
                    self.coordinator.moved(&link, moved, now, &mut self.out);
                }
            }
            Frame::FilterTest { data, key } => self.filter_test(id, &link, (data, key), now),
            Frame::FilterTested { data, rounds, sources } => {
                self.filter_tested(id, (data, rounds, sources), now)
            }
            Frame::FilteringAssistRequest { data, key, target } => {
                self.filter_ask(id, &link, (data, key, target), now)
            }
            Frame::FilteringAssistResponse { data, rounds, source } => {
                self.filter_asked(id, (data, rounds, source), now)
            }
            Frame::PunchRejected { session, round, reason, retry_after } => {
                let request = (session, round);
                let refusal = Refusal { reason, retry_after };
                if !self.punch_rejected(&link.peer, request, refusal, now)
                    && !self.coordinator.rejected(&link.peer, request, refusal, now, &mut self.out)
                {
                    self.out.refuse_frame();
                }
            }
        }
    }

    fn registration_answered(&mut self, known: bool, now: Instant) {
        if known {
            self.run_registrar(now);
        } else {
            self.out.refuse_frame();
        }
    }

    fn punch_me_now(
        &mut self,
        (id, link): (ControlStreamId, &ControlStream),
        punch: Box<PunchMeNow>,
        now: Instant,
    ) {
        if punch.request.responder == self.peer {
            self.requested((id, link), *punch, now);
        } else {
            self.coordinator.punch_me_now((id, link), punch, &self.links, now, &mut self.out);
        }
    }

    fn observed(&mut self, id: ControlStreamId, sequence: u64, address: SocketAddr, now: Instant) {
        let Some(link) = self.links.get_mut(id) else { return };
        if !self.coordinator.may_tell(&link.peer, now) {
            self.out.cap_hit();
            return self.out.refuse_frame();
        }
        if link.last_observation.is_some_and(|last| sequence <= last) {
            return self.out.refuse_frame();
        }
        link.last_observation = Some(sequence);
        let (observer, remote, socket) = (link.peer, link.remote, link.socket);
        // Over anything but a socket of ours the observation says nothing about the ports that we use.
        let (Some(remote), Some(socket)) = (remote, socket) else { return };
        if !self.network.is_plausible(socket, remote, address) {
            return self.out.refuse_frame();
        }
        if self.sees_another_socket(&observer) {
            return;
        }
        let recorded = self.network.observations.record(socket, id, (observer, remote), address, now);
        if matches!(recorded, Recorded::Moved | Recorded::Remapped) {
            self.observing.again(id, now);
            self.observe(now);
            self.early_packets.address_changed(id, now);
            self.run_early_packets(now);
        }
        if recorded == Recorded::Remapped {
            self.remapped(socket, now);
            self.look_for_old_mappings(now);
        }
        match recorded {
            Recorded::Known => {}
            Recorded::Full => self.out.cap_hit(),
            Recorded::New | Recorded::Moved | Recorded::Remapped => {
                self.out.event(Event::Observed { observer, socket, address });
                self.refresh_candidates(now);
                self.report_views();
                self.tell_moved(now);
                self.test_filtering(id, true, now);
            }
        }
    }

    /// Whether a session with a peer uses a socket that was opened for sessions only: what the peer sees is the mapping of
    /// that one.
    fn sees_another_socket(&self, peer: &PeerId) -> bool {
        self.sessions.of_peer(peer).any(|key| {
            let session = self.sessions.get(key).filter(|session| session.is_connected());
            let path = session.and_then(|session| session.selected());
            path.is_some_and(|path| self.network.socket(path.socket).is_none())
        })
    }
}
