//! The share of the process's file descriptors that the sockets of one node take.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Divisor of the descriptors of the process: a node's sockets get one part.
const SHARE: usize = 4;

/// Counts the sockets of one node, from the request to open them until they are closed.
///
/// Sockets that the application asks for, by listeners and dials, are counted and never refused.
/// Sockets that remotes cause are opened only within the limit.
#[derive(Debug)]
pub(crate) struct SocketBudget {
    limit: usize,
    taken: AtomicUsize,
}

/// The place of one socket. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct SocketPlace(Arc<SocketBudget>);

impl SocketBudget {
    /// A quarter of the `descriptors` that the process may have open; no limit if none is known.
    pub(crate) fn new(descriptors: Option<usize>) -> Self {
        let limit = descriptors.map_or(usize::MAX, |descriptors| descriptors / SHARE);
        Self { limit, taken: AtomicUsize::new(0) }
    }

    /// The sockets that there may be before no further ones are opened for remotes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes a place for a socket that the application needs.
    pub(crate) fn take(self: &Arc<Self>) -> SocketPlace {
        self.taken.fetch_add(1, Relaxed);
        SocketPlace(self.clone())
    }

    /// Takes as many places within the limit as there are, at most `count`.
    pub(crate) fn take_up_to(self: &Arc<Self>, count: usize) -> Vec<SocketPlace> {
        let mut granted = 0;
        let taken = self.taken.fetch_update(Relaxed, Relaxed, |taken| {
            granted = count.min(self.limit.saturating_sub(taken));
            taken.checked_add(granted)
        });
        match taken {
            Ok(_) => (0..granted).map(|_| SocketPlace(self.clone())).collect(),
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for SocketPlace {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_descriptors_is_granted_and_given_back() {
        let budget = Arc::new(SocketBudget::new(Some(43)));
        let listeners: Vec<_> = (0..4).map(|_| budget.take()).collect();
        let pool = budget.take_up_to(256);
        assert_eq!((budget.limit(), pool.len()), (10, 6));
        assert!(budget.take_up_to(1).is_empty());
        let beyond = budget.take();
        drop(listeners);
        assert_eq!(budget.take_up_to(256).len(), 3);
        drop((pool, beyond));
        assert_eq!(budget.take_up_to(256).len(), 10);
    }

    #[test]
    fn an_unknown_limit_is_none() {
        assert_eq!(Arc::new(SocketBudget::new(None)).take_up_to(256).len(), 256);
    }
}
