//! Bounds on the work and the memory that a remote can cause: token buckets and bounded memories.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    marker::PhantomData,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

/// Rate of an event in the long run, and the burst at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Time in which one more event becomes allowed.
    pub interval: Duration,
    /// Number of events at once after a long silence.
    pub burst: u32,
}

impl Rate {
    /// The same, with `reserve` tokens left for others.
    fn above(self, reserve: u32) -> Self {
        Self { burst: self.burst.saturating_sub(reserve), ..self }
    }

    /// Time in which an empty bucket is full again.
    pub(crate) fn time_to_fill(self) -> Duration {
        self.interval * self.burst
    }
}

/// A token bucket in 16 bytes (the generic cell rate algorithm, ITU-T I.371): instead of tokens it
/// keeps the time at which the bucket will be full again.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenBucket {
    full_at: Option<Instant>,
}

impl TokenBucket {
    /// Takes a token; `false` if there is none.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at.saturating_duration_since(now) > rate.interval * rate.burst.saturating_sub(1) {
            return false;
        }
        self.full_at = Some(full_at + rate.interval);
        true
    }

    /// Returns true if [`take`](Self::take) would find a token.
    pub fn has(mut self, rate: Rate, now: Instant) -> bool {
        self.take(rate, now)
    }

    /// Returns when [`take`](Self::take) finds a token, from `now` on.
    pub fn next(&self, rate: Rate, now: Instant) -> Instant {
        let ahead = rate.interval * rate.burst.saturating_sub(1);
        self.full_at.and_then(|at| at.checked_sub(ahead)).map_or(now, |at| at.max(now))
    }

    /// Takes a token that may not be there yet; the debt is paid from later tokens.
    pub fn charge(&mut self, rate: Rate, now: Instant) {
        self.full_at = Some(self.full_at.map_or(now, |at| at.max(now)) + rate.interval);
    }

    /// Puts a token back that was taken.
    pub fn give_back(&mut self, rate: Rate) {
        self.full_at = self.full_at.and_then(|at| at.checked_sub(rate.interval));
    }

    /// Returns true if the bucket is full, and so may be forgotten.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

/// Token buckets by peer, for peers that have no other state here.
#[derive(Debug)]
pub struct PeerBuckets {
    rate: Rate,
    capacity: usize,
    buckets: BTreeMap<PeerId, TokenBucket>,
}

/// Requests of one initiator for one responder, at the responder and, by default, at a coordinator:
/// attempts are at least half a second apart.
pub const PAIR_RATE: Rate = Rate { interval: Duration::from_millis(500), burst: 10 };

/// Token buckets by key, for keys that have no other state here. The oldest make room for others,
/// and so are full again.
#[derive(Debug)]
pub struct RecentBuckets<K> {
    rate: Rate,
    recent: Recent<K, TokenBucket>,
}

impl<K: Ord + Clone> RecentBuckets<K> {
    /// Returns an empty table of at most `capacity` buckets of `rate`.
    pub fn new(rate: Rate, capacity: usize) -> Self {
        // After that a bucket is full, and so as good as forgotten.
        Self { rate, recent: Recent::new(capacity, rate.interval * rate.burst) }
    }

    /// Returns true if [`take`](Self::take) would find a token.
    pub fn has(&self, key: &K, now: Instant) -> bool {
        self.recent.get(key, now).copied().unwrap_or_default().take(self.rate, now)
    }

    /// Returns when [`take`](Self::take) finds a token, from `now` on.
    pub fn next(&self, key: &K, now: Instant) -> Instant {
        self.recent.get(key, now).copied().unwrap_or_default().next(self.rate, now)
    }

    /// Takes a token of `key`; `false` if there is none.
    pub fn take(&mut self, key: K, now: Instant) -> bool {
        let mut bucket = self.recent.get(&key, now).copied().unwrap_or_default();
        let taken = bucket.take(self.rate, now);
        if taken {
            self.recent.insert(key, bucket, now);
        }
        taken
    }
}

/// Token buckets by key in a table of fixed size (a count-min sketch, Cormode and Muthukrishnan
/// 2005).
///
/// Every operation takes constant time, and nothing is ever forgotten to make room. A key has a
/// bucket in each of two rows, which it may share with other keys. It has a token if either bucket
/// has one. So other keys can only take tokens away, and only where they share both buckets. The
/// secret keeps an attacker from choosing such keys.
#[derive(Debug)]
pub struct HashedBuckets<K> {
    rate: Rate,
    secret: [u8; 16],
    /// Buckets of a row.
    width: usize,
    /// Empty until the first token is taken.
    rows: [Vec<TokenBucket>; 2],
    key: PhantomData<fn(&K)>,
}

impl<K: Hash> HashedBuckets<K> {
    /// Returns two empty rows of `width` buckets. `secret` is the key of the hash that chooses a
    /// bucket.
    pub fn new(rate: Rate, width: usize, secret: [u8; 16]) -> Self {
        Self { rate, secret, width: width.max(1), rows: [Vec::new(), Vec::new()], key: PhantomData }
    }

    /// Returns true if [`take`](Self::take) would find a token.
    pub fn has(&self, key: &K, now: Instant) -> bool {
        let places = self.places(key);
        self.rows
            .iter()
            .zip(places)
            .any(|(row, place)| row.get(place).is_none_or(|bucket| bucket.has(self.rate, now)))
    }

    /// Returns when [`take`](Self::take) finds a token, from `now` on.
    pub fn next(&self, key: &K, now: Instant) -> Instant {
        let rows = self.rows.iter().zip(self.places(key));
        let times = rows.map(|(row, place)| row.get(place).map_or(now, |bucket| bucket.next(self.rate, now)));
        times.min().unwrap_or(now)
    }

    /// Takes a token of `key`; `false` if there is none.
    pub fn take(&mut self, key: &K, now: Instant) -> bool {
        let (rate, width, places) = (self.rate, self.width, self.places(key));
        let mut taken = false;
        for (row, place) in self.rows.iter_mut().zip(places) {
            if row.is_empty() {
                row.resize(width, TokenBucket::default());
            }
            // Both pay, whichever has the token.
            taken |= row.get_mut(place).is_some_and(|bucket| bucket.take(rate, now));
        }
        taken
    }

    /// Returns the buckets of a key, one in each row.
    fn places(&self, key: &K) -> [usize; 2] {
        [0_u8, 1].map(|row| {
            let mut hasher = DefaultHasher::new();
            (self.secret, row).hash(&mut hasher);
            key.hash(&mut hasher);
            usize::try_from(hasher.finish() % self.width as u64).unwrap_or(0)
        })
    }
}

/// Reason of a refusal by [`PeerBuckets::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The bucket of this peer is empty.
    Empty,
    /// Too many peers have buckets that are not full.
    Capacity,
}

impl PeerBuckets {
    /// Returns an empty table of at most `capacity` buckets of `rate`.
    pub fn new(rate: Rate, capacity: usize) -> Self {
        Self { rate, capacity, buckets: BTreeMap::new() }
    }

    /// Takes a token of `peer`.
    pub fn take(&mut self, peer: PeerId, now: Instant) -> Result<(), Refused> {
        self.take_above(0, peer, now)
    }

    /// Puts a token back that `peer` took.
    pub fn give_back(&mut self, peer: &PeerId) {
        if let Some(bucket) = self.buckets.get_mut(peer) {
            bucket.give_back(self.rate);
        }
    }

    /// Returns when [`take_above`](Self::take_above) finds a token of `peer`, from `now` on.
    pub fn next_above(&self, reserve: u32, peer: &PeerId, now: Instant) -> Instant {
        self.buckets.get(peer).map_or(now, |bucket| bucket.next(self.rate.above(reserve), now))
    }

    /// Takes a token of `peer` if more than `reserve` are left.
    pub fn take_above(&mut self, reserve: u32, peer: PeerId, now: Instant) -> Result<(), Refused> {
        let rate = self.rate.above(reserve);
        if self.buckets.len() >= self.capacity && !self.buckets.contains_key(&peer) {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= self.capacity {
                return Err(Refused::Capacity);
            }
        }
        match self.buckets.entry(peer).or_default().take(rate, now) {
            true => Ok(()),
            false => Err(Refused::Empty),
        }
    }
}

/// Remembers the last `capacity` keys for `lifetime` each.
#[derive(Debug)]
pub struct Recent<K, V> {
    capacity: usize,
    lifetime: Duration,
    entries: BTreeMap<K, (Instant, V)>,
    /// Keys in the order of insertion. A key that was removed early stays here until its turn
    /// comes.
    order: VecDeque<(Instant, K)>,
}

impl<K: Ord + Clone, V> Recent<K, V> {
    /// Returns an empty table of at most `capacity` entries, each of which is kept for `lifetime`.
    pub fn new(capacity: usize, lifetime: Duration) -> Self {
        Self { capacity, lifetime, entries: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &K, now: Instant) -> Option<&V> {
        self.entries.get(key).filter(|(until, _)| *until > now).map(|(_, value)| value)
    }

    /// Returns the value of `key`, to be changed.
    pub fn get_mut(&mut self, key: &K, now: Instant) -> Option<&mut V> {
        self.entries.get_mut(key).filter(|(until, _)| *until > now).map(|(_, value)| value)
    }

    /// Remembers `value`; `true` if an entry that had not expired made room for it.
    pub fn insert(&mut self, key: K, value: V, now: Instant) -> bool {
        self.expire(now);
        let until = now + self.lifetime;
        let mut evicted = false;
        while self.order.len() >= self.capacity {
            evicted |= self.pop();
        }
        self.entries.insert(key.clone(), (until, value));
        self.order.push_back((until, key));
        evicted
    }

    /// Drops expired entries.
    pub fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.pop();
        }
    }

    fn pop(&mut self) -> bool {
        let Some((until, key)) = self.order.pop_front() else { return false };
        // The key may have been inserted again since; that entry has a later place in the order.
        if self.entries.get(&key).is_some_and(|(at, _)| *at == until) {
            self.entries.remove(&key);
            return true;
        }
        false
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { interval: Duration::from_millis(100), burst: 3 };

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_its_rate() {
        let now = Instant::now();
        let mut bucket = TokenBucket::default();
        let taken = (0..10).filter(|_| bucket.take(RATE, now)).count();
        assert_eq!(taken, 3);
        assert!(!bucket.take(RATE, now + Duration::from_millis(99)));
        assert!(bucket.take(RATE, now + Duration::from_millis(100)));
        assert!(!bucket.take(RATE, now + Duration::from_millis(100)));
        assert!(!bucket.is_full(now + Duration::from_millis(399)));
        assert!(bucket.is_full(now + Duration::from_millis(400)));
    }

    #[test]
    fn a_bucket_says_when_it_has_a_token() {
        let now = Instant::now();
        let mut bucket = TokenBucket::default();
        assert_eq!(bucket.next(RATE, now), now);
        (0..3).for_each(|_| bucket.charge(RATE, now));
        assert_eq!(bucket.next(RATE, now), now + Duration::from_millis(100));
        bucket.charge(RATE, now);
        let at = bucket.next(RATE, now);
        assert_eq!(at, now + Duration::from_millis(200));
        assert!(!bucket.has(RATE, at - Duration::from_millis(1)) && bucket.has(RATE, at));
    }

    #[test]
    fn what_was_charged_has_to_be_made_up_for() {
        let now = Instant::now();
        let mut bucket = TokenBucket::default();
        (0..5).for_each(|_| bucket.charge(RATE, now));
        assert!(!bucket.take(RATE, now + Duration::from_millis(299)));
        assert!(bucket.take(RATE, now + Duration::from_millis(300)));
    }

    #[test]
    fn a_token_that_is_given_back_can_be_taken_again() {
        let now = Instant::now();
        let (mut buckets, peer) = (PeerBuckets::new(RATE, 2), PeerId::random());
        assert!((0..3).all(|_| buckets.take(peer, now).is_ok()));
        buckets.give_back(&peer);
        assert_eq!(buckets.take(peer, now), Ok(()));
        assert_eq!(buckets.take(peer, now), Err(Refused::Empty));
        (0..9).for_each(|_| buckets.give_back(&peer));
        assert_eq!(
            (0..9).filter(|_| buckets.take(peer, now).is_ok()).count(),
            3,
            "never more than the burst"
        );
    }

    #[test]
    fn buckets_of_peers_are_apart_and_bounded_and_full_ones_make_room() {
        let now = Instant::now();
        let mut buckets = PeerBuckets::new(RATE, 2);
        let [a, b, c] = [PeerId::random(), PeerId::random(), PeerId::random()];
        assert!((0..3).all(|_| buckets.take(a, now).is_ok()));
        assert_eq!(buckets.take(a, now), Err(Refused::Empty));
        assert_eq!(buckets.take(b, now), Ok(()));
        assert_eq!(buckets.take(c, now), Err(Refused::Capacity));
        assert_eq!(buckets.take(c, now + Duration::from_millis(100)), Ok(()), "b's bucket is full again");
    }

    #[test]
    fn a_reserve_is_left_for_those_who_may_take_it() {
        let now = Instant::now();
        let (mut buckets, peer) = (PeerBuckets::new(RATE, 2), PeerId::random());
        assert_eq!(buckets.take_above(1, peer, now), Ok(()));
        assert_eq!(buckets.take_above(1, peer, now), Ok(()));
        assert_eq!(buckets.take_above(1, peer, now), Err(Refused::Empty));
        assert_eq!(buckets.take(peer, now), Ok(()));
        assert_eq!(buckets.take(peer, now), Err(Refused::Empty));
    }

    #[test]
    fn recent_buckets_are_apart_and_forgotten_when_full() {
        let now = Instant::now();
        let mut buckets = RecentBuckets::new(RATE, 2);
        assert!((0..3).all(|_| buckets.take('a', now)));
        assert!(!buckets.has(&'a', now) && !buckets.take('a', now));
        assert!(buckets.has(&'b', now) && buckets.take('b', now));
        assert!(buckets.has(&'a', now + Duration::from_millis(300)));
        assert!(buckets.recent.len() <= 2);
    }

    #[test]
    fn hashed_buckets_forget_nobody_under_a_flood_of_other_keys() {
        let now = Instant::now();
        let mut buckets = HashedBuckets::new(RATE, 4096, [7; 16]);
        assert!((0..3).all(|_| buckets.take(&0_u32, now)));
        let served = (1..1_000_u32).filter(|key| buckets.take(key, now)).count();
        assert_eq!(served, 999, "the flood does not fill the table");
        assert!(!buckets.has(&0, now) && !buckets.take(&0, now));
        (1_000..100_000_u32).for_each(|key| {
            buckets.take(&key, now);
        });
        assert!(!buckets.take(&0, now + Duration::from_millis(99)), "nor does a greater one make it forget");
        assert!(buckets.has(&0, now + Duration::from_millis(300)));
    }

    #[test]
    fn what_is_recent_is_remembered_up_to_capacity_and_lifetime() {
        let now = Instant::now();
        let mut recent = Recent::new(2, Duration::from_secs(10));
        assert!(!recent.insert(1, 'a', now));
        assert!(!recent.insert(2, 'b', now + Duration::from_secs(1)));
        assert_eq!(recent.get(&1, now + Duration::from_secs(9)), Some(&'a'));
        assert_eq!(recent.get(&1, now + Duration::from_secs(10)), None);
        assert!(recent.insert(3, 'c', now + Duration::from_secs(2)), "the oldest made room");
        assert_eq!(recent.get(&1, now + Duration::from_secs(2)), None);
        recent.expire(now + Duration::from_secs(11));
        assert_eq!(recent.len(), 1);
    }

    #[test]
    fn a_key_inserted_again_lives_on_when_its_first_place_expires() {
        let now = Instant::now();
        let mut recent = Recent::new(4, Duration::from_secs(10));
        recent.insert(1, 'a', now);
        recent.insert(1, 'b', now + Duration::from_secs(5));
        recent.expire(now + Duration::from_secs(12));
        assert_eq!(recent.get(&1, now + Duration::from_secs(12)), Some(&'b'));
    }
}
