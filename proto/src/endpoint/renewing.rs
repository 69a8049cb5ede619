//! New paths for connected sessions before our NAT forgets the mapping of the old ones.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::Rng;

use super::{Endpoint, probing::pair_priority_of};
use crate::{
    Path, SocketId,
    address_policy::{Scope, scope},
    candidate::{self, Candidate, CandidateKind},
    command::{Command, Pool},
    local_addresses::Family,
    nat::{MappingBehaviour, observer::Purpose},
    outbox::Transmit,
    session::{
        Key, Session,
        checklist::MAX_PAIRS,
        pair::Origin,
        renewal::{Fresh, MAX_SAMPLES, MIN_AGE, MOVE_INTERVAL, POLL_INTERVAL, SAMPLE_RETRY_DELAY, Stage},
    },
};

/// The share of the shortest known life of a mapping after which it is left behind. An observer may see a change up to six
/// seconds late, so that what is known is as much too long: of a minute this leaves a third to spare.
const SHARE: std::ops::Range<f64> = 0.5..0.6;

impl Endpoint {
    /// Mappings may be too old, now that another session is connected or it is known how long they stand.
    pub(super) fn look_for_old_mappings(&mut self, now: Instant) {
        if self.network.observations.lifetimes.shortest().is_some() {
            self.renewals.look_by(now + POLL_INTERVAL);
        }
    }

    pub(super) fn run_renewals(&mut self, now: Instant) {
        self.renewals.due = None;
        match &mut self.renewals.stage {
            Stage::Idle => self.renew_old_mappings(now),
            // It was not opened in time.
            Stage::Opening { .. } => self.renewals.rest(now),
            Stage::Sampling { socket, samples } if *samples < MAX_SAMPLES => {
                let (socket, place) = (*socket, *samples);
                *samples += 1;
                self.renewals.due = Some(now + SAMPLE_RETRY_DELAY);
                self.sample_renewal(socket, place, now);
            }
            Stage::Sampling { .. } => self.renewals.rest(now),
            Stage::Moving { sessions } => match sessions.pop_front() {
                Some(key) => {
                    self.renewals.due = Some(now + MOVE_INTERVAL);
                    self.move_session(key, now);
                }
                None => self.renewals.rest(now),
            },
        }
    }

    /// Begins to move the sessions whose mapping may be forgotten soon, and closes sockets that no session uses any more.
    fn renew_old_mappings(&mut self, now: Instant) {
        self.close_unused();
        let known =
            self.coordinated_socket().and_then(|socket| self.network.observations.mapped_since(socket));
        if let Some(since) = known {
            self.network.observations.lifetimes.outlived(now.saturating_duration_since(since));
        }
        let lifetime = self.network.observations.lifetimes.shortest();
        if !self.renewals.sockets.is_empty() || lifetime.is_some() && self.is_any_connected() {
            self.renewals.due = Some(now + POLL_INTERVAL);
        }
        let Some(lifetime) = lifetime else { return };
        let oldest = self.oldest_mapping(lifetime);
        let sessions = self.sessions_on_mappings_older_than(oldest, now);
        let Some(local) = self.local().filter(|_| !sessions.is_empty()) else { return };
        match self.renewals.latest() {
            // Some did not get there, or were made since.
            Some((.., since)) if now.saturating_duration_since(since) < oldest => {
                self.renewals.stage = Stage::Moving { sessions };
                self.renewals.due = Some(now);
            }
            _ => {
                let pool = self.renewals.new_pool();
                self.renewals.stage = Stage::Opening { pool };
                self.renewals.due = Some(now + POLL_INTERVAL);
                self.out.command(Command::OpenSockets { pool: Pool::Renewal(pool), local, count: 1 });
            }
        }
    }

    fn oldest_mapping(&mut self, lifetime: Duration) -> Duration {
        lifetime.mul_f64(self.rng.random_range(SHARE)).max(MIN_AGE)
    }

    fn is_connected(&self, key: Key) -> bool {
        self.sessions.get(key).is_some_and(Session::is_connected)
    }

    fn is_any_connected(&self) -> bool {
        self.sessions.keys().iter().any(|key| self.is_connected(*key))
    }

    fn sessions_on_mappings_older_than(&self, age: Duration, now: Instant) -> VecDeque<Key> {
        let v4 = self.local().map(|local| local.is_ipv4());
        let may_move =
            |path: &Path| scope(path.remote.ip()) == Scope::Global && Some(path.remote.is_ipv4()) == v4;
        let is_old = |key: &Key| {
            let session = self.sessions.get(*key).filter(|session| session.is_connected());
            let path = session.and_then(Session::selected);
            let since = path.filter(may_move).and_then(|path| self.mapped_since(path.socket));
            since.is_some_and(|since| now.saturating_duration_since(since) >= age)
        };
        self.sessions.keys().into_iter().filter(is_old).collect()
    }

    /// Since when the mapping of a socket stands, if there is one, and it is the same for all peers.
    fn mapped_since(&self, socket: SocketId) -> Option<Instant> {
        if let Some(since) = self.renewals.mapped_since(socket) {
            return Some(since);
        }
        let view = self.network.current_view(socket);
        let seen = self.network.observations.reflexive(socket).into_iter().next()?;
        let is_translated = !self.network.addresses_of_socket(socket).contains(&seen);
        let since = self.network.observations.mapped_since(socket);
        since.filter(|_| is_translated && view.mapping == Some(MappingBehaviour::EndpointIndependent))
    }

    /// The address to bind to: that of the socket which our coordinators know. Sessions of the other family stay.
    fn local(&self) -> Option<IpAddr> {
        let socket = self.network.socket(self.coordinated_socket()?)?;
        Some(socket.local.ip())
    }

    pub(super) fn renewal_opened(&mut self, number: u32, sockets: &[(SocketId, u16)], now: Instant) {
        let is_awaited = matches!(self.renewals.stage, Stage::Opening { pool } if pool == number);
        match sockets.first() {
            Some((socket, _)) if is_awaited => {
                self.renewals.sockets.push(Fresh { pool: number, socket: *socket, mapping: None });
                self.renewals.stage = Stage::Sampling { socket: *socket, samples: 0 };
                self.run_renewals(now);
            }
            _ => {
                self.out.command(Command::CloseSockets { pool: Pool::Renewal(number), keep: Vec::new() });
                if is_awaited {
                    self.renewals.rest(now);
                }
            }
        }
    }

    /// Asks one coordinator after the other where the socket is seen.
    fn sample_renewal(&mut self, socket: SocketId, place: usize, now: Instant) {
        let Some(family) = self.local().map(Family::of) else { return };
        let mut links = self.registration_client.connected();
        links.retain(|(_, link)| self.observing.serves(*link, family));
        let Some((_, link)) = links.get(place % links.len().max(1)) else { return };
        let data = self.rng.random();
        let sample = self.observing.sample(*link, family, Purpose::Renewal, socket, data, now);
        if let Some((path, payload)) = sample {
            self.out.transmits.push_back(Transmit { path, payload });
        }
    }

    /// An observer saw the socket to which sessions are to move.
    pub(super) fn renewal_sampled(&mut self, socket: SocketId, address: SocketAddr, now: Instant) {
        let is_awaited =
            matches!(self.renewals.stage, Stage::Sampling { socket: sampled, .. } if sampled == socket);
        if !is_awaited {
            return;
        }
        // Peers will be asked to probe it: it can only be an address of our own NAT.
        if address.port() == 0 || !self.network.observations.reflexive_ips().contains(&address.ip()) {
            return self.out.refuse_frame();
        }
        self.renewals.seen(address, now);
        let lifetime = self.network.observations.lifetimes.shortest();
        let age = lifetime.map_or(Duration::MAX, |lifetime| self.oldest_mapping(lifetime));
        let sessions = self.sessions_on_mappings_older_than(age.mul_f64(SHARE.start), now);
        self.renewals.stage = Stage::Moving { sessions };
        self.run_renewals(now);
    }

    /// Makes a path from the latest socket, from which the peer is told to expect us, and goes there once it works.
    fn move_session(&mut self, key: Key, now: Instant) {
        let Some((socket, address, _)) = self.renewals.latest() else { return };
        let Some(session) = self.sessions.get(key).filter(|session| session.is_connected()) else { return };
        let (Some(flow), Some(selected), role) = (session.flow, session.selected(), session.role) else {
            return;
        };
        if selected.socket == socket || selected.remote.is_ipv4() != address.is_ipv4() {
            return;
        }
        let path = Path { socket, remote: selected.remote };
        self.wake(key, now);
        let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut())
        else {
            return;
        };
        if let Some(pair) = checklist.get_mut(path) {
            pair.restart(now);
        } else if checklist.pairs().len() < MAX_PAIRS {
            let remote = candidate::priority(CandidateKind::ServerReflexive, path.remote.ip());
            checklist.add(path, pair_priority_of(role, path.remote.ip(), remote), Origin::Announced, now);
            self.out.command(Command::Admit { flow, path, heard: false });
        } else {
            return self.out.cap_hit();
        }
        checklist.move_to(path);
        self.out.counters.renewals += 1;
        let kind = CandidateKind::ServerReflexive;
        let priority = candidate::priority(kind, address.ip());
        self.tell_where(key, vec![Candidate { sequence: 0, address, kind, priority }]);
        self.poll_session(key, now);
    }

    /// Closes the sockets that no session uses, but for the latest as long as sessions may move there.
    fn close_unused(&mut self) {
        let used: BTreeSet<SocketId> = self
            .sessions
            .keys()
            .into_iter()
            .filter_map(|key| self.sessions.get(key)?.selected())
            .map(|path| path.socket)
            .collect();
        let latest = self.renewals.latest().map(|(socket, ..)| socket);
        let awaits = self.network.observations.lifetimes.shortest().is_some() && self.is_any_connected();
        let (kept, unused): (Vec<Fresh>, Vec<Fresh>) = self
            .renewals
            .sockets
            .iter()
            .partition(|fresh| used.contains(&fresh.socket) || awaits && latest == Some(fresh.socket));
        self.renewals.sockets = kept;
        for Fresh { pool, socket, .. } in unused {
            self.out.command(Command::CloseSockets { pool: Pool::Renewal(pool), keep: Vec::new() });
            self.leave_socket(socket);
        }
    }

    /// Forgets the paths of a socket that no session has selected.
    fn leave_socket(&mut self, socket: SocketId) {
        for key in self.sessions.keys() {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            let (Some(checklist), Some(flow)) = (&mut session.checklist, session.flow) else { continue };
            for path in checklist.remove_socket(socket) {
                self.out.command(Command::Forget { flow, path });
            }
            self.sessions.reschedule(key);
        }
    }
}
