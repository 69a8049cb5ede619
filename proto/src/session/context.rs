//! Context of an input to a session.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use libp2p_identity::PeerId;
use rand::Rng;

use crate::{
    ControlStreamId, SessionId, VirtualConnectionId,
    environment::Environment,
    nat::{client::NatClient, strategy::NatProfile},
    pacing::Pacing,
    probe_budget::ProbeBudget,
    rate_limit::{PeerBuckets, Rate, TokenBucket},
    session::port_search::SearchBudget,
};

/// Coordinators that an attempt asks while nothing is heard of the peer although one of them has
/// answered.
pub(super) const MAX_ASKED: usize = 3;
/// Server flights to addresses that one coordinator names and from which nothing comes. A
/// coordinator that lies can aim them, at most three times the bytes of the request each. An
/// address that answers gives its place back.
pub(crate) const FLIGHT_RATE: Rate = Rate { interval: std::time::Duration::from_secs(1), burst: 128 };
/// Coordinators whose server flights are remembered.
const MAX_FLIGHT_COORDINATORS: usize = 4096;

/// Budgets and tables that all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) probes: ProbeBudget,
    pub(crate) searches: SearchBudget,
    /// Server flights to addresses from which nothing came yet, by coordinator.
    pub(crate) flights: PeerBuckets,
    /// Requests to coordinators.
    pub(crate) pacing: Pacing,
    /// Bounds the registrations that are renewed because a session hears nothing.
    pub(crate) renewed_registrations: TokenBucket,
    /// Coordinators that were named for a peer, by that peer. Sessions with other peers do not ask
    /// them.
    pub(crate) named: BTreeMap<PeerId, BTreeSet<PeerId>>,
    next_virtual_connection: u64,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            probes: ProbeBudget::new(),
            searches: SearchBudget::new(),
            flights: PeerBuckets::new(FLIGHT_RATE, MAX_FLIGHT_COORDINATORS),
            pacing: Pacing::default(),
            renewed_registrations: TokenBucket::default(),
            named: BTreeMap::new(),
            next_virtual_connection: 0,
        }
    }

    /// Returns true if a coordinator was named for any peer.
    pub(crate) fn is_named(&self, coordinator: &PeerId) -> bool {
        self.named.values().any(|named| named.contains(coordinator))
    }
}

/// Context of an input to a session: the time, the knowledge about this host and its NAT, and what
/// all sessions share.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) env: &'a mut Environment,
    pub(crate) nat: &'a mut NatClient,
    pub(crate) shared: &'a mut Shared,
}

impl Context<'_> {
    /// Returns the profile of the local NAT.
    pub(crate) fn nat_profile(&self) -> NatProfile {
        self.nat.profile(self.env)
    }

    pub(crate) fn new_session_id(&mut self) -> SessionId {
        SessionId(self.env.rng.random())
    }

    pub(crate) fn new_virtual_connection(&mut self) -> VirtualConnectionId {
        let id = VirtualConnectionId(self.shared.next_virtual_connection);
        self.shared.next_virtual_connection += 1;
        id
    }

    /// Returns true if a session with `peer` may ask `coordinator`.
    pub(crate) fn may_ask(&self, coordinator: &PeerId, peer: &PeerId) -> bool {
        self.env.registrations.contains(coordinator)
            || self.shared.named.get(peer).is_some_and(|named| named.contains(coordinator))
    }

    /// Returns the connected coordinators that were named for `peer` and that this peer is not
    /// registered with.
    pub(crate) fn named_for(&self, peer: &PeerId) -> Vec<(PeerId, ControlStreamId)> {
        let named = self.shared.named.get(peer).into_iter().flatten();
        named
            .filter(|coordinator| !self.env.registrations.contains(coordinator))
            .filter_map(|coordinator| Some((*coordinator, self.env.streams.best_of(coordinator)?)))
            .collect()
    }
}
