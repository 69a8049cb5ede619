//! Moves of connected sessions to a fresh socket before the NAT drops the mapping of the old one.
//!
//! A NAT that drops mappings in use cuts every path over them at once, and the packets of the peers
//! are lost until both sides have found each other again. Once the lifetime of mappings is known,
//! sessions therefore move to a fresh socket in time: the old path works until the new one does.
//! One socket serves all sessions, as a NAT that maps independently of the endpoint shows it to all
//! peers at one address; with any other NAT nothing is done.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::Rng;

use crate::{
    SocketId,
    address_policy::{Scope, scope},
    command::{Command, Pool},
    environment::Environment,
    local_addresses::Family,
    nat::{
        MappingBehaviour,
        observer::{Purpose, Sample},
    },
    session::{Key, Session, Transition, context::Context, table::Table},
};

/// Interval of the checks of the sessions, once mappings are known to end.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time from a round of moves to the next one: the peers need to find this peer.
const ROUND_INTERVAL: Duration = Duration::from_secs(5);
/// Time from one session's move to the next, within what coordinators pass on of one peer.
const MOVE_INTERVAL: Duration = Duration::from_millis(25);
/// Time without an answer after which the next observer is asked.
const SAMPLE_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Requests to observers for one socket.
const MAX_SAMPLES: usize = 8;
/// Age below which no mapping is left behind, whatever observers say: moves cost probes.
const MIN_AGE: Duration = Duration::from_secs(10);
/// The share of the shortest known life of a mapping after which it is left behind. An observer may
/// see a change up to six seconds late, so that the known life is as much too long: of a minute
/// this leaves a third to spare.
const SHARE: std::ops::Range<f64> = 0.5..0.6;

/// A fresh socket, and the address at which it is seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RenewalSocket {
    pub(crate) socket: SocketId,
    pub(crate) address: SocketAddr,
}

/// A socket for sessions.
#[derive(Debug, Clone, Copy)]
struct Fresh {
    /// The number of its pool.
    pool: u32,
    socket: SocketId,
    /// The address at which it is seen, and the time of the first sight.
    mapping: Option<(SocketAddr, Instant)>,
}

/// Stage of a renewal.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// A socket is being opened.
    Opening { pool: u32 },
    /// Observers are asked where it is seen.
    Sampling { socket: SocketId, samples: usize },
    /// Sessions are moved to it, one after the other.
    Moving { sessions: VecDeque<Key> },
}

/// Fresh sockets, and the renewal that is under way.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    stage: Stage,
    /// Time of the next step.
    due: Option<Instant>,
    /// The latest last.
    sockets: Vec<Fresh>,
    pools: u32,
}

impl Renewals {
    /// Returns the time of the next [`handle_timeout`](Self::handle_timeout).
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Returns true if this is a fresh socket.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.sockets.iter().any(|fresh| fresh.socket == socket)
    }

    /// Checks the age of the mappings soon: another session is connected, or their lifetime is
    /// known now.
    pub(crate) fn check_soon(&mut self, cx: &Context<'_>) {
        if cx.env.local.observations.replacements.shortest_lifetime().is_some()
            && matches!(self.stage, Stage::Idle)
        {
            let at = cx.now + POLL_INTERVAL;
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
    }

    /// Takes the next step.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>, table: &mut Table) {
        self.due = None;
        match &mut self.stage {
            Stage::Idle => self.renew_old_mappings(cx, table),
            // It was not opened in time.
            Stage::Opening { .. } => self.rest(cx.now),
            Stage::Sampling { socket, samples } if *samples < MAX_SAMPLES => {
                let (socket, place) = (*socket, *samples);
                *samples += 1;
                self.due = Some(cx.now + SAMPLE_RETRY_DELAY);
                sample(cx, socket, place);
            }
            Stage::Sampling { .. } => self.rest(cx.now),
            Stage::Moving { sessions } => match sessions.pop_front() {
                Some(key) => {
                    self.due = Some(cx.now + MOVE_INTERVAL);
                    if let Some((to, _)) = self.latest() {
                        table.update(cx, key, |session, cx| session.handle_renewal(cx, to));
                    }
                }
                None => self.rest(cx.now),
            },
        }
    }

    /// The fresh socket is open, unless it could not be opened.
    pub(crate) fn handle_opened(
        &mut self,
        cx: &mut Context<'_>,
        table: &mut Table,
        number: u32,
        sockets: &[(SocketId, u16)],
    ) {
        let is_awaited = matches!(self.stage, Stage::Opening { pool } if pool == number);
        match sockets.first() {
            Some((socket, _)) if is_awaited => {
                self.sockets.push(Fresh { pool: number, socket: *socket, mapping: None });
                self.stage = Stage::Sampling { socket: *socket, samples: 0 };
                self.handle_timeout(cx, table);
            }
            _ => {
                close(cx, number);
                if is_awaited {
                    self.rest(cx.now);
                }
            }
        }
    }

    /// An observer sees the socket to which sessions are to move.
    pub(crate) fn handle_sample(&mut self, cx: &mut Context<'_>, table: &mut Table, seen: RenewalSocket) {
        let RenewalSocket { socket, address } = seen;
        let is_awaited = matches!(self.stage, Stage::Sampling { socket: sampled, .. } if sampled == socket);
        if !is_awaited {
            return;
        }
        // Peers will be asked to probe it: it can only be an address of the own NAT.
        if address.port() == 0 || !cx.env.local.observations.reflexive_ips().contains(&address.ip()) {
            return cx.env.out.refuse_frame();
        }
        if let Some(fresh) = self.sockets.last_mut() {
            fresh.mapping = Some((address, cx.now));
        }
        let lifetime = cx.env.local.observations.replacements.shortest_lifetime();
        let age = lifetime.map_or(Duration::MAX, |lifetime| oldest_mapping(cx, lifetime));
        let sessions = self.sessions_on_mappings_older_than(age.mul_f64(SHARE.start), cx, table);
        self.stage = Stage::Moving { sessions };
        self.handle_timeout(cx, table);
    }

    /// Begins to move the sessions whose mapping may be dropped soon, and closes sockets that no
    /// session uses any more.
    fn renew_old_mappings(&mut self, cx: &mut Context<'_>, table: &mut Table) {
        self.close_unused(cx, table);
        let observations = &cx.env.local.observations;
        let socket = cx.env.coordinated_socket();
        if let Some(since) = socket.and_then(|socket| observations.mapped_since(socket)) {
            let age = cx.now.saturating_duration_since(since);
            cx.env.local.observations.replacements.outlived(age);
        }
        let lifetime = cx.env.local.observations.replacements.shortest_lifetime();
        if !self.sockets.is_empty() || lifetime.is_some() && is_any_connected(table) {
            self.due = Some(cx.now + POLL_INTERVAL);
        }
        let Some(lifetime) = lifetime else { return };
        let oldest = oldest_mapping(cx, lifetime);
        let sessions = self.sessions_on_mappings_older_than(oldest, cx, table);
        let Some(local) = local(cx.env).filter(|_| !sessions.is_empty()) else { return };
        match self.latest() {
            // Some sessions did not get there, or were made since.
            Some((_, since)) if cx.now.saturating_duration_since(since) < oldest => {
                self.stage = Stage::Moving { sessions };
                self.due = Some(cx.now);
            }
            _ => {
                self.pools = self.pools.wrapping_add(1);
                let pool = self.pools;
                self.stage = Stage::Opening { pool };
                self.due = Some(cx.now + POLL_INTERVAL);
                cx.env.out.command(Command::OpenSockets { pool: Pool::Renewal(pool), local, count: 1 });
            }
        }
    }

    fn sessions_on_mappings_older_than(
        &self,
        age: Duration,
        cx: &Context<'_>,
        table: &Table,
    ) -> VecDeque<Key> {
        let v4 = local(cx.env).map(|local| local.is_ipv4());
        let is_old = |session: &Session| {
            let path = session
                .paths
                .selected()
                .filter(|path| scope(path.remote.ip()) == Scope::Global && Some(path.remote.is_ipv4()) == v4);
            let since = path.and_then(|path| self.mapped_since(cx.env, path.socket));
            session.is_connected()
                && since.is_some_and(|since| cx.now.saturating_duration_since(since) >= age)
        };
        table.keys_of(is_old).into()
    }

    /// Returns the time since which the mapping of a socket exists, if there is one, and it is the
    /// same for all peers.
    fn mapped_since(&self, env: &Environment, socket: SocketId) -> Option<Instant> {
        let fresh = self.sockets.iter().find(|fresh| fresh.socket == socket);
        if let Some((_, since)) = fresh.and_then(|fresh| fresh.mapping) {
            return Some(since);
        }
        let view = env.local.current_view(socket);
        let seen = env.local.observations.reflexive(socket).into_iter().next()?;
        let is_translated = !env.local.addresses_of_socket(socket).contains(&seen);
        let since = env.local.observations.mapped_since(socket);
        since.filter(|_| is_translated && view.mapping == Some(MappingBehaviour::EndpointIndependent))
    }

    /// Returns the latest socket and the time since which it is seen, if it is seen.
    fn latest(&self) -> Option<(RenewalSocket, Instant)> {
        let fresh = self.sockets.last()?;
        fresh.mapping.map(|(address, since)| (RenewalSocket { socket: fresh.socket, address }, since))
    }

    /// Ends the renewal. The sessions are checked again after a while.
    fn rest(&mut self, now: Instant) {
        (self.stage, self.due) = (Stage::Idle, Some(now + ROUND_INTERVAL));
    }

    /// Closes the sockets that no session uses, except the latest while sessions may move there.
    fn close_unused(&mut self, cx: &mut Context<'_>, table: &mut Table) {
        let used: BTreeSet<SocketId> =
            table.iter().filter_map(|session| session.paths.selected()).map(|path| path.socket).collect();
        let latest = self.latest().map(|(to, _)| to.socket);
        let awaits =
            cx.env.local.observations.replacements.shortest_lifetime().is_some() && is_any_connected(table);
        let (kept, unused): (Vec<Fresh>, Vec<Fresh>) = self
            .sockets
            .iter()
            .partition(|fresh| used.contains(&fresh.socket) || awaits && latest == Some(fresh.socket));
        self.sockets = kept;
        for Fresh { pool, socket, .. } in unused {
            close(cx, pool);
            // Sessions have paths of the socket that none of them has selected.
            table.update_all(cx, table.keys(), |session, cx| {
                session.paths.forget_socket(cx, session.current(), socket);
                Transition::Stay
            });
        }
    }
}

fn close(cx: &mut Context<'_>, pool: u32) {
    cx.env.out.command(Command::CloseSockets { pool: Pool::Renewal(pool), keep: Vec::new() });
}

fn is_any_connected(table: &Table) -> bool {
    table.iter().any(Session::is_connected)
}

fn oldest_mapping(cx: &mut Context<'_>, lifetime: Duration) -> Duration {
    lifetime.mul_f64(cx.env.rng.random_range(SHARE)).max(MIN_AGE)
}

/// Returns the address to bind to: that of the socket which the coordinators know. Sessions of the
/// other family stay.
fn local(env: &Environment) -> Option<IpAddr> {
    let socket = env.local.socket(env.coordinated_socket()?)?;
    Some(socket.local.ip())
}

/// Asks one coordinator after the other where the socket is seen.
fn sample(cx: &mut Context<'_>, socket: SocketId, place: usize) {
    let Some(family) = local(cx.env).map(Family::of) else { return };
    let mut coordinators = cx.env.registrations.connected();
    coordinators.retain(|(_, stream)| cx.nat.has_observer(*stream, family));
    let Some((_, stream)) = coordinators.get(place % coordinators.len().max(1)) else { return };
    let sample = Sample { stream: *stream, family, purpose: Purpose::Renewal, socket };
    let data = cx.env.rng.random();
    cx.nat.sample(&mut cx.env.at(cx.now), sample, data);
}
