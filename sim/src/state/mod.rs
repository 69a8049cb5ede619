//! The state of a world: its nodes, its networks and the topology.
//!
//! A **realm** is one network in which addresses are unique: the core, or the one behind a gateway.
//! A host is in the realms of its interfaces, a gateway in the one inside and in the one outside.

mod events;
mod gateway;
mod host;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};
use tokio::time::Instant;

pub(crate) use self::host::BindRefusal;
use self::{events::Events, gateway::GatewayState, host::HostState};
use crate::{
    ids::{CORE, NodeId, RealmId},
    link::{Direction, Link, Order},
    nat::{Nat, Table},
    receive_buffer::ReceiveBuffer,
    trace::{Record, Stats},
};

/// Latency from a node to the core, unless [`World::set_link`](crate::World::set_link) says
/// otherwise.
const CORE_LINK_LATENCY: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
pub(crate) struct Realm {
    pub(crate) addresses: BTreeMap<IpAddr, NodeId>,
    pub(crate) gateway: Option<NodeId>,
    /// Latency between two nodes that are not the gateway.
    pub(crate) latency: Duration,
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    Host(HostState),
    Gateway(GatewayState),
}

#[derive(Debug)]
pub(crate) struct Node {
    link: Option<Link>,
    pub(crate) up: Direction,
    pub(crate) down: Direction,
    pub(crate) kind: NodeKind,
}

/// Work for the time after the lock is released: readers to wake, and journeys for the taps.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) ended: Vec<(Record, Arc<[u8]>)>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) start: Instant,
    pub(crate) rng: StdRng,
    nodes: Vec<Node>,
    realms: Vec<Realm>,
    pub(crate) paths: BTreeMap<(NodeId, NodeId), Duration>,
    pub(crate) blocked: BTreeSet<(NodeId, NodeId)>,
    pub(crate) order: Order,
    pub(crate) events: Events,
    pub(crate) driver: Option<Waker>,
    pub(crate) stats: Stats,
    pub(crate) effects: Effects,
}

// Building and changing the topology.
impl State {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            start: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            realms: vec![Realm::default()],
            paths: BTreeMap::new(),
            blocked: BTreeSet::new(),
            order: Order::default(),
            events: Events::default(),
            driver: None,
            stats: Stats::default(),
            effects: Effects::default(),
        }
    }

    pub(crate) fn add_host(&mut self) -> NodeId {
        self.add(NodeKind::Host(HostState::default()))
    }

    pub(crate) fn add_gateway(&mut self, nat: Nat, outside: RealmId, outer: Vec<IpAddr>) -> NodeId {
        let inside = RealmId(self.realms.len());
        self.realms.push(Realm { latency: nat.lan_latency, ..Realm::default() });
        let table = Table::new(nat, &mut self.rng);
        let id = self.add(NodeKind::Gateway(GatewayState { outer: outer.clone(), inside, outside, table }));
        self.realm_mut(inside).gateway = Some(id);
        outer.into_iter().for_each(|address| self.announce(outside, address, id));
        id
    }

    fn add(&mut self, kind: NodeKind) -> NodeId {
        self.nodes.push(Node { link: None, up: Direction::default(), down: Direction::default(), kind });
        NodeId(self.nodes.len() - 1)
    }

    pub(crate) fn attach(&mut self, host: NodeId, realm: RealmId, address: IpAddr) {
        // Private networks use the same addresses: a host that moves may bring its own along.
        if self.host(host).realm_of(address).is_some_and(|known| known != realm) {
            self.set_interface(host, address, false);
        }
        if self.host_mut(host).set(address, realm, true).is_some() {
            self.announce(realm, address, host);
        }
    }

    pub(crate) fn set_interface(&mut self, host: NodeId, address: IpAddr, up: bool) {
        let realm = self.host(host).interface(address).map(|interface| interface.realm);
        let Some(realm) = realm else { panic!("{address} is no address of this host") };
        match self.host_mut(host).set(address, realm, up) {
            Some(()) if up => self.announce(realm, address, host),
            Some(()) => self.withdraw(realm, address, host),
            None => {}
        }
    }

    /// Makes an address known in a realm, and beyond its gateway if the gateway does not translate
    /// it.
    fn announce(&mut self, realm: RealmId, address: IpAddr, node: NodeId) {
        let addresses = &mut self.realm_mut(realm).addresses;
        assert!(!addresses.contains_key(&address), "{address} is taken");
        addresses.insert(address, node);
        if let Some((gateway, outside)) = self.routed_by(realm, address) {
            self.announce(outside, address, gateway);
        }
    }

    fn withdraw(&mut self, realm: RealmId, address: IpAddr, node: NodeId) {
        let addresses = &mut self.realm_mut(realm).addresses;
        if addresses.get(&address) == Some(&node) {
            addresses.remove(&address);
            if let Some((gateway, outside)) = self.routed_by(realm, address) {
                self.withdraw(outside, address, gateway);
            }
        }
    }

    fn routed_by(&self, realm: RealmId, address: IpAddr) -> Option<(NodeId, RealmId)> {
        let gateway = self.realm(realm).gateway?;
        let state = self.gateway(gateway);
        state.outer(address).is_none().then_some((gateway, state.outside))
    }

    pub(crate) fn set_link(&mut self, node: NodeId, link: Link) {
        self.node_mut(node).link = Some(link);
    }

    pub(crate) fn set_path(&mut self, from: NodeId, to: NodeId, one_way: Duration) {
        self.paths.insert(self.meeting(from, to), one_way);
    }

    pub(crate) fn block(&mut self, from: NodeId, to: NodeId, blocked: bool) {
        let pair = self.meeting(from, to);
        if blocked {
            self.blocked.insert(pair)
        } else {
            self.blocked.remove(&pair)
        };
    }

    /// Returns the two nodes between which traffic from `from` to `to` crosses the innermost realm
    /// that both can reach.
    fn meeting(&self, from: NodeId, to: NodeId) -> (NodeId, NodeId) {
        let theirs = self.way_out(to);
        let common = self.way_out(from).into_iter().find_map(|(realm, mine)| {
            let (_, other) = theirs.iter().find(|(other, _)| *other == realm)?;
            (mine != *other).then_some((mine, *other))
        });
        common.unwrap_or_else(|| panic!("{from:?} and {to:?} have no network in common"))
    }

    /// Returns the realms from the node to the core, and the node of its path in each.
    fn way_out(&self, node: NodeId) -> Vec<(RealmId, NodeId)> {
        let (mut way, mut next) = match &self.node(node).kind {
            NodeKind::Host(host) => {
                let way: Vec<_> = host.realms().map(|realm| (realm, node)).collect();
                let gateway = host.realms().find_map(|realm| self.realm(realm).gateway);
                (way, gateway)
            }
            NodeKind::Gateway(_) => (Vec::new(), Some(node)),
        };
        while let Some(id) = next {
            let gateway = self.gateway(id);
            way.extend([(gateway.inside, id), (gateway.outside, id)]);
            next = self.realm(gateway.outside).gateway;
        }
        way
    }
}

// Access. Ids and handles come from the world only, and nodes never go away.
impl State {
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    pub(crate) fn realm(&self, id: RealmId) -> &Realm {
        &self.realms[id.0]
    }

    fn realm_mut(&mut self, id: RealmId) -> &mut Realm {
        &mut self.realms[id.0]
    }

    pub(crate) fn host(&self, id: NodeId) -> &HostState {
        match &self.node(id).kind {
            NodeKind::Host(host) => host,
            NodeKind::Gateway(_) => unreachable!("a host's handle names a host"),
        }
    }

    pub(crate) fn host_mut(&mut self, id: NodeId) -> &mut HostState {
        match &mut self.node_mut(id).kind {
            NodeKind::Host(host) => host,
            NodeKind::Gateway(_) => unreachable!("a host's handle names a host"),
        }
    }

    pub(crate) fn gateway(&self, id: NodeId) -> &GatewayState {
        match &self.node(id).kind {
            NodeKind::Gateway(gateway) => gateway,
            NodeKind::Host(_) => unreachable!("a gateway's handle names a gateway"),
        }
    }

    /// Returns the gateway and the random source that its translation table needs.
    pub(crate) fn gateway_mut(&mut self, id: NodeId) -> (&mut GatewayState, &mut StdRng) {
        match &mut self.nodes[id.0].kind {
            NodeKind::Gateway(gateway) => (gateway, &mut self.rng),
            NodeKind::Host(_) => unreachable!("a gateway's handle names a gateway"),
        }
    }

    pub(crate) fn bind(
        &mut self,
        host: NodeId,
        address: SocketAddr,
    ) -> io::Result<(SocketAddr, Arc<ReceiveBuffer>)> {
        match &mut self.nodes[host.0].kind {
            NodeKind::Host(host) => host.bind(address, &mut self.rng),
            NodeKind::Gateway(_) => unreachable!("a host's handle names a host"),
        }
    }

    /// Returns the link between a node and a realm. The inner side of a gateway is perfect.
    pub(crate) fn link(&self, node: NodeId, realm: RealmId) -> Link {
        if self.realm(realm).gateway == Some(node) {
            return Link::default();
        }
        let usual = if realm == CORE { CORE_LINK_LATENCY } else { Duration::ZERO };
        self.node(node).link.unwrap_or_else(|| Link::with_latency(usual))
    }
}
