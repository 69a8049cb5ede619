//! Filtering of NATs and firewalls (RFC 4787 §5, RFC 6092 §3.1).

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::time::Instant;

/// Remotes that may send to an internal endpoint that has sent something out (RFC 4787 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filtering {
    /// Everybody (EIF).
    EndpointIndependent,
    /// Addresses that the internal endpoint has sent to (ADF).
    AddressDependent,
    /// Addresses and ports that the internal endpoint has sent to (APDF).
    AddressAndPortDependent,
}

/// Destinations of an internal endpoint, with the time of the last datagram to each.
#[derive(Debug, Default)]
pub(crate) struct Contacts {
    last: BTreeMap<SocketAddr, Instant>,
    pruned: Option<Instant>,
}

impl Contacts {
    /// Notes traffic with `remote`, and forgets once per `lifetime` what is older than that.
    pub(crate) fn note(&mut self, remote: SocketAddr, now: Instant, lifetime: Duration) {
        let pruned = *self.pruned.get_or_insert(now);
        if now - pruned >= lifetime {
            self.last.retain(|_, last| now - *last < lifetime);
            self.pruned = Some(now);
        }
        self.last.insert(remote, now);
    }

    pub(crate) fn admits(
        &self,
        filtering: Filtering,
        remote: SocketAddr,
        now: Instant,
        lifetime: Duration,
    ) -> bool {
        let fresh = |last: &Instant| now - *last < lifetime;
        match filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => {
                self.last.iter().any(|(known, last)| known.ip() == remote.ip() && fresh(last))
            }
            Filtering::AddressAndPortDependent => self.last.get(&remote).is_some_and(fresh),
        }
    }
}
