//! The port of each flow through a box that masquerades and has no firewall, as Linux connection
//! tracking gives it.
//!
//! Such a box also tracks unsolicited packets: as a flow of its own, whose endpoints no flow from
//! inside may use. A flow from inside gets, of these, the first port that is free towards its
//! destination: that of the newest live flow of the same socket, the socket's own port, a random
//! one. It keeps that port. So one early packet costs a socket its port towards every destination
//! to which it sends for the first time after that.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::time::Instant;

/// Lifetime of the entry of a packet that came unasked: `nf_conntrack_udp_timeout` of Linux.
const UNASKED_LIFETIME: Duration = Duration::from_secs(30);

/// One direction of a flow from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    /// The endpoint outside.
    pub(crate) external: SocketAddr,
    /// The other end.
    pub(crate) remote: SocketAddr,
}

#[derive(Debug, Default)]
pub(crate) struct Tuples {
    /// Times of the last packets that came unasked, by the external endpoint and the remote.
    unasked: BTreeMap<(SocketAddr, SocketAddr), Instant>,
    /// Flows from inside by the internal endpoint and the remote: their number, and the external
    /// endpoint.
    flows: BTreeMap<(SocketAddr, SocketAddr), (u64, SocketAddr)>,
    /// The remotes of these flows, by the internal endpoint and the number of the flow.
    order: BTreeMap<(SocketAddr, u64), SocketAddr>,
    next: u64,
}

impl Tuples {
    /// Records a packet that no flow expects.
    pub(crate) fn came_unasked(&mut self, flow: Flow, now: Instant) {
        self.unasked.retain(|_, at| now - *at < UNASKED_LIFETIME);
        self.unasked.insert((flow.external, flow.remote), now);
    }

    /// Returns true if a packet came unasked between these endpoints.
    pub(crate) fn is_taken(&self, flow: Flow, now: Instant) -> bool {
        let last = self.unasked.get(&(flow.external, flow.remote));
        last.is_some_and(|at| now - *at < UNASKED_LIFETIME)
    }

    /// Records the beginning of a flow.
    pub(crate) fn began(&mut self, internal: SocketAddr, flow: Flow) {
        let number = self.next;
        self.next += 1;
        if let Some((before, _)) = self.flows.insert((internal, flow.remote), (number, flow.external)) {
            self.order.remove(&(internal, before));
        }
        self.order.insert((internal, number), flow.remote);
    }

    /// The flow of a socket to `remote`, dead or alive.
    pub(crate) fn flow(&self, internal: SocketAddr, remote: SocketAddr) -> Option<Flow> {
        self.flows.get(&(internal, remote)).map(|(_, external)| Flow { external: *external, remote })
    }

    /// The flows of a socket, the newest first.
    pub(crate) fn newest(&self, internal: SocketAddr) -> impl Iterator<Item = Flow> {
        let order = self.order.range((internal, 0)..=(internal, u64::MAX)).rev();
        order.filter_map(move |(_, remote)| self.flow(internal, *remote))
    }

    /// Forgets flows.
    pub(crate) fn retain(&mut self, mut is_live: impl FnMut(SocketAddr, Flow) -> bool) {
        let order = &mut self.order;
        self.flows.retain(|(internal, remote), (number, external)| {
            let stays = is_live(*internal, Flow { external: *external, remote: *remote });
            if !stays {
                order.remove(&(*internal, *number));
            }
            stays
        });
    }
}
