//! Limits on requests of other peers for a session.

use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p_identity::PeerId;
use rand::{Rng, rngs::StdRng};
use sha2::{Digest, Sha256};

use crate::{
    SessionId,
    network_prefix::NetworkPrefix,
    rate_limit::{HashedBuckets, PAIR_RATE, PeerBuckets, Rate, Recent},
    wire::frame::PunchMeNow,
};

/// Sessions under way that others asked for.
pub(crate) const MAX_RESPONDING: usize = 1024;
/// Connections that one peer may have from sessions that it asked for, and ask for another.
pub(crate) const MAX_CONNECTED_TO_ONE: usize = 4;
/// Requests that one coordinator may pass to us. Each costs a signature check, about 50 µs.
pub(crate) const COORDINATOR_RATE: Rate = Rate { interval: Duration::from_millis(10), burst: 200 };
/// Requests of that burst that are kept for initiators that did not ask through this coordinator in
/// the last [`LATELY`]. As many again are kept for networks from which nobody asked. Initiators
/// that repeat their requests do not silence the others.
pub(crate) const NEWCOMERS: u32 = 50;
/// Memory of the initiators, and their networks, that asked.
pub(crate) const LATELY: Duration = Duration::from_secs(20);
/// Requests beyond [`COORDINATOR_RATE`] of peers that were connected before, through one
/// coordinator.
pub(crate) const ACQUAINTED_RATE: Rate = Rate { interval: Duration::from_millis(10), burst: 100 };
/// Sessions under way that are left for such peers.
pub(crate) const ACQUAINTED_PLACES: usize = 64;
/// Peers that are remembered to have been connected, and for how long.
const MAX_ACQUAINTED: usize = 4096;
const ACQUAINTED_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Buckets of a row of [`HashedBuckets`]: a few coordinators pass on a few hundred requests in a
/// second, and a bucket of a pair is full again after five seconds.
const PAIR_BUCKETS: usize = 4096;
/// For what is remembered for [`LATELY`], of as many requests.
const LATELY_BUCKETS: usize = 16_384;
/// Requests remembered, so that one that is played again does nothing.
const MAX_SEEN: usize = 4096;
/// Time for which a request is remembered. A request played again after that costs what any request
/// of that peer costs.
const SEEN_LIFETIME: Duration = Duration::from_secs(600);
/// Coordinators whose request rate is remembered.
const MAX_BUCKETS: usize = 4096;

/// Limits on requests of other peers.
#[derive(Debug)]
pub(crate) struct RequestLimiter {
    coordinators: PeerBuckets,
    /// By coordinator, for peers that were connected before.
    acquainted_requests: PeerBuckets,
    /// Peers that were connected, by a session or with a control stream.
    acquainted: Recent<PeerId, ()>,
    /// By coordinator and the initiator's key, which nobody has proved yet: a coordinator can use
    /// up only what comes through itself.
    askers: HashedBuckets<(PeerId, Bytes)>,
    /// The same, and networks of initiators, that asked lately.
    lately: HashedBuckets<(PeerId, Origin)>,
    pub(super) initiators: HashedBuckets<PeerId>,
    /// By initiator, session and round.
    pub(super) seen: Recent<(PeerId, SessionId, u32), ()>,
    /// One more connection is within the limits of the application.
    pub(crate) has_room: bool,
}

/// Source of a request, as its coordinator names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Origin {
    Initiator(Bytes),
    Network(NetworkPrefix),
}

impl RequestLimiter {
    pub(crate) fn new(rng: &mut StdRng) -> Self {
        let lately = Rate { interval: LATELY, burst: 1 };
        Self {
            coordinators: PeerBuckets::new(COORDINATOR_RATE, MAX_BUCKETS),
            acquainted_requests: PeerBuckets::new(ACQUAINTED_RATE, MAX_BUCKETS),
            acquainted: Recent::new(MAX_ACQUAINTED, ACQUAINTED_LIFETIME),
            askers: HashedBuckets::new(PAIR_RATE, PAIR_BUCKETS, rng.random()),
            lately: HashedBuckets::new(lately, LATELY_BUCKETS, rng.random()),
            initiators: HashedBuckets::new(PAIR_RATE, PAIR_BUCKETS, rng.random()),
            seen: Recent::new(MAX_SEEN, SEEN_LIFETIME),
            has_room: true,
        }
    }

    /// A peer is connected: its requests have a place when strangers ask for more than there is.
    pub(crate) fn acquaint(&mut self, peer: PeerId, now: Instant) {
        if self.acquainted.get(&peer, now).is_none() {
            self.acquainted.insert(peer, (), now);
        }
    }

    /// Decides if a request that a coordinator passed on is looked at. Each initiator, and each
    /// network, has its own share of what a coordinator may pass on. The error is the time from
    /// which on such a request may be.
    pub(super) fn admit(
        &mut self,
        coordinator: PeerId,
        punch: &PunchMeNow,
        now: Instant,
    ) -> Result<(), Instant> {
        let key = &punch.request.initiator;
        let asker = (coordinator, key.clone());
        if !self.askers.has(&asker, now) {
            return Err(self.askers.next(&asker, now));
        }
        let network = network_of(punch);
        let origins = [Some(Origin::Initiator(key.clone())), network.map(Origin::Network)];
        let origins = origins.map(|origin| origin.map(|origin| (coordinator, origin)));
        let asked = origins.iter().flatten().filter(|origin| !self.lately.has(origin, now)).count();
        let reserve = NEWCOMERS.saturating_mul(u32::try_from(asked).unwrap_or(u32::MAX));
        let is_admitted = self.coordinators.take_above(reserve, coordinator, now).is_ok()
            || (self.is_acquainted(key, now) && self.acquainted_requests.take(coordinator, now).is_ok());
        if !is_admitted {
            return Err(self.coordinators.next_above(reserve, &coordinator, now));
        }
        for origin in origins.iter().flatten() {
            self.lately.take(origin, now);
        }
        self.askers.take(&asker, now);
        Ok(())
    }

    /// Returns true if the peer of this public key was connected before.
    fn is_acquainted(&self, key: &[u8], now: Instant) -> bool {
        peer_named_by(key).is_some_and(|peer| self.acquainted.get(&peer, now).is_some())
    }

    /// Sessions under way that `initiator` may find and still ask for one.
    pub(super) fn max_responding(&self, initiator: &PeerId, now: Instant) -> usize {
        match self.acquainted.get(initiator, now) {
            Some(()) => MAX_RESPONDING,
            None => MAX_RESPONDING - ACQUAINTED_PLACES,
        }
    }
}

/// Returns the network in which the coordinator sees the initiator.
pub(super) fn network_of(punch: &PunchMeNow) -> Option<NetworkPrefix> {
    NetworkPrefix::of(punch.observed?.ip())
}

/// Returns the PeerId of an encoded public key without decoding the key: the key as it is up to 42
/// bytes, else its digest.
fn peer_named_by(key: &[u8]) -> Option<PeerId> {
    const IDENTITY: u8 = 0x00;
    const SHA2_256: u8 = 0x12;
    let named = match u8::try_from(key.len()) {
        Ok(len) if len <= 42 => [&[IDENTITY, len][..], key].concat(),
        _ => [&[SHA2_256, 32][..], Sha256::digest(key).as_slice()].concat(),
    };
    PeerId::from_bytes(&named).ok()
}
