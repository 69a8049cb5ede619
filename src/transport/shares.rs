//! Places that networks share, so that one attacker cannot take all of them. See [`NetworkPrefix`].

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libp2p_punch_proto::NetworkPrefix;

/// Counts places by network. There are as many networks in it as places, at most.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_prefix: BTreeMap<NetworkPrefix, usize>,
}

/// A place, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shares: Arc<Shares>,
    prefix: Option<NetworkPrefix>,
}

impl Shares {
    /// Places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().all
    }

    /// Places that the network of `address` has; none if that is not limited.
    pub(crate) fn taken_by(&self, address: IpAddr) -> usize {
        NetworkPrefix::of(address).and_then(|prefix| self.lock().by_prefix.get(&prefix).copied()).unwrap_or(0)
    }

    /// Takes a place for `address`. The caller checks that there is one.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Place {
        let prefix = NetworkPrefix::of(address);
        let mut counts = self.lock();
        counts.all += 1;
        if let Some(prefix) = prefix {
            *counts.by_prefix.entry(prefix).or_default() += 1;
        }
        Place { shares: self.clone(), prefix }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.shares.lock();
        counts.all -= 1;
        if let Some(prefix) = self.prefix
            && let Entry::Occupied(mut count) = counts.by_prefix.entry(prefix)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_until_they_are_dropped_and_nothing_is_kept_of_them() {
        let shares = Arc::new(Shares::default());
        let [a, b, own] = ["192.0.2.1", "192.0.3.1", "127.0.0.1"].map(|ip| ip.parse().unwrap());
        let places = [a, a, b, own].map(|ip| shares.take(ip));
        assert_eq!([a, b, own].map(|ip| shares.taken_by(ip)), [2, 1, 0]);
        assert_eq!(shares.taken(), 4);
        drop(places);
        assert_eq!(shares.taken(), 0);
        assert!(shares.lock().by_prefix.is_empty());
    }
}
