//! The world: the handle of a test or a demo.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use crate::{
    engine::Engine,
    gateway::Gateway,
    host::Host,
    ids::{CORE, NodeId},
    link::Link,
    nat::Nat,
    state::State,
    trace::{Packet, Stats},
};

/// A simulated network. Clones are handles to the same world.
#[derive(Clone)]
pub struct World(Engine);

impl World {
    /// Creates an empty world. All its random choices follow from `seed`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled: a task of that runtime delivers the datagrams.
    pub fn new(seed: u64) -> Self {
        Self(Engine::start(seed))
    }

    /// Adds a host with a public address.
    ///
    /// # Panics
    ///
    /// If the address is taken.
    pub fn public_host(&self, address: impl Into<IpAddr>) -> Arc<Host> {
        let host = self.host();
        self.attach(&host, address);
        host
    }

    /// Adds a host without an address; see [`World::attach`] and [`Gateway::attach`].
    pub fn host(&self) -> Arc<Host> {
        Arc::new(Host::new(self.0.clone()))
    }

    /// Gives a host one more public address.
    ///
    /// # Panics
    ///
    /// If the address is taken.
    pub fn attach(&self, host: &Host, address: impl Into<IpAddr>) {
        self.with(|state| state.attach(host.id(), CORE, address.into()));
    }

    /// Adds a NAT with a public address. The NAT translates the family of that address; hosts
    /// behind it may have public addresses of the other family, and for those it is a firewall that
    /// filters in the same way.
    ///
    /// # Panics
    ///
    /// If the address is taken, or if `nat` has no ports.
    pub fn nat(&self, nat: Nat, address: impl Into<IpAddr>) -> Arc<Gateway> {
        let id = self.with(|state| state.add_gateway(nat, CORE, vec![address.into()]));
        Arc::new(Gateway::new(self.0.clone(), id))
    }

    /// Adds a firewall, which translates nothing and filters like `nat`.
    pub fn firewall(&self, nat: Nat) -> Arc<Gateway> {
        let id = self.with(|state| state.add_gateway(nat, CORE, Vec::new()));
        Arc::new(Gateway::new(self.0.clone(), id))
    }

    /// Changes the link between a node and the network outside of it. By default a link to the core
    /// takes 10 ms, and a link to a gateway no time.
    pub fn set_link(&self, node: impl Into<NodeId>, link: Link) {
        let node = node.into();
        self.with(|state| state.set_link(node, link));
    }

    /// Sets the one-way time between two nodes, in both directions, in place of the latencies of
    /// their links.
    ///
    /// This is the time to cross the innermost network that both can reach. For hosts behind
    /// different NATs that is the network between the NATs, so the time holds for all hosts there.
    /// For hosts behind the same NAT it is their own network.
    ///
    /// # Panics
    ///
    /// If the nodes are one, or have no network in common.
    pub fn set_path(&self, a: impl Into<NodeId>, b: impl Into<NodeId>, one_way: Duration) {
        let (a, b) = (a.into(), b.into());
        self.set_path_towards(a, b, one_way);
        self.set_path_towards(b, a, one_way);
    }

    /// Sets the one-way time as [`set_path`](Self::set_path) does, in one direction.
    ///
    /// # Panics
    ///
    /// If the nodes are one, or have no network in common.
    pub fn set_path_towards(&self, from: impl Into<NodeId>, to: impl Into<NodeId>, one_way: Duration) {
        let (from, to) = (from.into(), to.into());
        self.with(|state| state.set_path(from, to, one_way));
    }

    /// Blocks the path between two nodes, in both directions: the path whose time
    /// [`set_path`](Self::set_path) sets.
    ///
    /// # Panics
    ///
    /// If the nodes are one, or have no network in common.
    pub fn block(&self, a: impl Into<NodeId>, b: impl Into<NodeId>) {
        self.set_blocked(a.into(), b.into(), true);
    }

    /// Undoes [`block`](Self::block).
    ///
    /// # Panics
    ///
    /// If the nodes are one, or have no network in common.
    pub fn unblock(&self, a: impl Into<NodeId>, b: impl Into<NodeId>) {
        self.set_blocked(a.into(), b.into(), false);
    }

    fn set_blocked(&self, a: NodeId, b: NodeId, blocked: bool) {
        self.with(|state| {
            state.block(a, b, blocked);
            state.block(b, a, blocked);
        });
    }

    /// Shows every datagram to `tap` at the end of its journey. A tap must not add taps. A handle
    /// of this world in a tap, such as a socket, keeps the world alive without end.
    pub fn tap(&self, tap: impl FnMut(Packet<'_>) + Send + 'static) {
        self.0.add_tap(tap);
    }

    /// Returns the counters so far.
    pub fn stats(&self) -> Stats {
        self.with(|state| state.stats.clone())
    }

    /// Returns tokio's time since the start of the world, by which [records](crate::Record) count.
    pub fn elapsed(&self) -> Duration {
        self.with(|state| state.start.elapsed())
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        self.0.with(act)
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("World").finish_non_exhaustive()
    }
}
