//! Attacker that reads all traffic and forges sources: it replays, changes and invents datagrams.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use libp2p_punch_sim::{Host, World};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Number of datagrams that the forger remembers.
const MEMORY: usize = 512;

/// A datagram that crossed the network.
#[derive(Debug, Clone)]
struct Seen {
    source: SocketAddr,
    destination: SocketAddr,
    payload: Vec<u8>,
}

/// Sends from a host whose network lets forged sources out.
pub(crate) struct Forger {
    host: Arc<Host>,
    seen: Arc<Mutex<VecDeque<Seen>>>,
    /// Separate source of randomness: the forger depends on the traffic, and the other faults must
    /// not.
    rng: StdRng,
}

impl Forger {
    pub(crate) fn new(world: &World, host: Arc<Host>, seed: u64) -> Self {
        let seen = Arc::new(Mutex::new(VecDeque::new()));
        let memory = seen.clone();
        world.tap(move |packet| {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            // Packets between public addresses: from the outside of one NAT to the outside of
            // another.
            let (source, destination) = (packet.record.seen_from, packet.record.to);
            memory.push_back(Seen { source, destination, payload: packet.payload.to_vec() });
            if memory.len() > MEMORY {
                memory.pop_front();
            }
        });
        Self { host, seen, rng: StdRng::seed_from_u64(seed) }
    }

    /// Sends some forged datagrams; returns how many.
    pub(crate) fn attack(&mut self) -> u64 {
        let Self { host, seen, rng } = self;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if seen.is_empty() {
            return 0;
        }
        let count = rng.random_range(1..50);
        for _ in 0..count {
            let (one, other) =
                (&seen[rng.random_range(0..seen.len())], &seen[rng.random_range(0..seen.len())]);
            let mut payload = one.payload.clone();
            let (mut source, mut destination) = (one.source, one.destination);
            match rng.random_range(0..6) {
                // As it was, again.
                0 => {}
                // Unchanged, but from or to another peer.
                1 => source = other.source,
                2 => destination = other.destination,
                3 => {
                    let at = rng.random_range(0..payload.len().max(1));
                    payload.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.random_range(0..8));
                }
                4 => payload.truncate(rng.random_range(0..=payload.len())),
                // Only its kind and its size.
                _ => rng.fill(payload.get_mut(1..).unwrap_or_default()),
            }
            host.send_forged(source, destination, &payload);
        }
        count
    }
}
