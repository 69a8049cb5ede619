//! Links between a node and its network: delay, loss, order, rate and size.

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng, rngs::StdRng};
use tokio::time::Instant;

use crate::{ids::NodeId, trace::Verdict};

/// The link between a node and the network outside of it, alike in both directions.
///
/// A datagram between two nodes of one network passes the links of both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// One-way propagation time. [`World::set_path`](crate::World::set_path) takes its place for a
    /// pair of nodes.
    pub latency: Duration,
    /// Upper bound of an additional delay, uniformly distributed. Jitter alone never reorders.
    pub jitter: Duration,
    /// Probability of losing a datagram, 0 to 1.
    pub loss: f64,
    /// Probability of holding a datagram back by [`reorder_delay`](Self::reorder_delay), 0 to 1.
    pub reorder: f64,
    /// Additional delay of a datagram that is held back.
    pub reorder_delay: Duration,
    /// Probability of delivering a datagram twice, 0 to 1.
    pub duplicate: f64,
    /// Bytes per second in each direction, IP and UDP headers included. `None`: no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for a rate-limited link in each direction before it drops.
    pub queue: u64,
    /// Largest IP packet in bytes; a UDP payload may have 28 (IPv4) or 48 (IPv6) bytes less.
    pub mtu: usize,
}

impl Default for Link {
    /// Perfect, instantaneous Ethernet.
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            reorder_delay: Duration::from_millis(10),
            duplicate: 0.0,
            rate: None,
            queue: 256 * 1024,
            mtu: 1500,
        }
    }
}

impl Link {
    /// A perfect link of this one-way latency.
    pub fn with_latency(latency: Duration) -> Self {
        Self { latency, ..Self::default() }
    }
}

/// A draw that leaves the random source alone when the outcome is certain, so that turning one
/// fault on does not change the others.
fn chance(probability: f64, rng: &mut StdRng) -> bool {
    probability > 0.0 && rng.random_bool(probability.min(1.0))
}

/// One direction of a rate-limited link.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    busy_until: Option<Instant>,
}

impl Direction {
    /// Returns the time at which a packet of `size` bytes that comes at `at` has passed.
    pub(crate) fn admit(&mut self, link: &Link, at: Instant, size: usize) -> Result<Instant, Verdict> {
        let Some(rate) = link.rate else { return Ok(at) };
        let rate = rate.max(1) as f64;
        let begin = self.busy_until.map_or(at, |until| until.max(at));
        let waiting = (begin - at).as_secs_f64() * rate;
        if waiting + size as f64 > link.queue as f64 && begin > at {
            return Err(Verdict::QueueFull);
        }
        let through = begin + Duration::from_secs_f64(size as f64 / rate);
        self.busy_until = Some(through);
        Ok(through)
    }
}

/// Effect of two links together on a datagram, apart from the limit of their rate.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(crate) arrives: Instant,
    pub(crate) copies: usize,
}

/// Remembers the last arrival between two nodes, so that jitter keeps the order.
#[derive(Debug, Default)]
pub(crate) struct Order(BTreeMap<(NodeId, NodeId), Instant>);

impl Order {
    /// Draws the fate of a datagram that leaves at `leaves` over both `links`, `base` being the
    /// latency.
    pub(crate) fn pass(
        &mut self,
        nodes: (NodeId, NodeId),
        links: [&Link; 2],
        leaves: Instant,
        base: Duration,
        rng: &mut StdRng,
    ) -> Result<Passage, Verdict> {
        let mut arrives = leaves + base;
        let (mut copies, mut held_back) = (1, false);
        for link in links {
            if chance(link.loss, rng) {
                return Err(Verdict::Lost);
            }
            if !link.jitter.is_zero() {
                arrives += link.jitter.mul_f64(rng.random());
            }
            if chance(link.reorder, rng) {
                arrives += link.reorder_delay;
                held_back = true;
            }
            copies += usize::from(chance(link.duplicate, rng));
        }
        if !held_back && links.iter().any(|link| !link.jitter.is_zero()) {
            let last = self.0.entry(nodes).or_insert(arrives);
            arrives = arrives.max(*last);
            *last = arrives;
        }
        Ok(Passage { arrives, copies })
    }
}
