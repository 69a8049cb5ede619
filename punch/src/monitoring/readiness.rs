//! Readiness of a node: it listens, and peers find it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Readiness of a node, shared with the server that reports it.
#[derive(Debug, Clone)]
pub(crate) struct Readiness(Arc<State>);

#[derive(Debug)]
struct State {
    is_listening: AtomicBool,
    /// A coordinator knows the node, or it needs none.
    is_found: AtomicBool,
}

impl Readiness {
    /// A node that does not listen yet. Peers find it only once a coordinator has registered it, if
    /// it `needs_registration`.
    pub(crate) fn new(needs_registration: bool) -> Self {
        Self(Arc::new(State {
            is_listening: AtomicBool::new(false),
            is_found: AtomicBool::new(!needs_registration),
        }))
    }

    pub(crate) fn set_listening(&self) {
        self.0.is_listening.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_registered(&self, is_registered: bool) {
        self.0.is_found.store(is_registered, Ordering::Relaxed);
    }

    /// Returns the reason for which the node is not ready; `None` if it is.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        if !self.0.is_listening.load(Ordering::Relaxed) {
            return Some("not listening");
        }
        (!self.0.is_found.load(Ordering::Relaxed)).then_some("not registered with any coordinator")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_ready_once_it_listens_and_a_client_once_it_is_registered_too() {
        let (coordinator, client) = (Readiness::new(false), Readiness::new(true));
        assert_eq!(coordinator.obstacle(), Some("not listening"));
        for node in [&coordinator, &client] {
            node.set_listening();
        }
        assert_eq!(coordinator.obstacle(), None);
        assert_eq!(client.obstacle(), Some("not registered with any coordinator"));
        client.set_registered(true);
        assert_eq!(client.obstacle(), None);
        client.set_registered(false);
        assert!(client.obstacle().is_some());
    }
}
