//! Gateways: the boxes between a private network and the one outside.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    engine::Engine,
    host::Host,
    ids::NodeId,
    nat::{Nat, Translation},
};

/// A NAT or a firewall, and the network behind it. Hosts there reach each other directly.
pub struct Gateway {
    engine: Engine,
    id: NodeId,
}

impl Gateway {
    pub(crate) fn new(engine: Engine, id: NodeId) -> Self {
        Self { engine, id }
    }

    /// Returns the name of this node in its world.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Adds a host behind this gateway.
    ///
    /// # Panics
    ///
    /// If the address is taken.
    pub fn host(&self, address: impl Into<IpAddr>) -> Arc<Host> {
        let host = Arc::new(Host::new(self.engine.clone()));
        self.attach(&host, address);
        host
    }

    /// Gives a host one more address behind this gateway. If it has the same address in another
    /// network, that one goes down first.
    ///
    /// # Panics
    ///
    /// If the address is taken, or if the host is of another world.
    pub fn attach(&self, host: &Host, address: impl Into<IpAddr>) {
        self.engine.with(|state| {
            let realm = state.gateway(self.id).inside;
            state.attach(host.id(), realm, address.into());
        });
    }

    /// Adds a NAT behind this one, with `address` as its outer address.
    ///
    /// # Panics
    ///
    /// If the address is taken, or if `nat` has no ports.
    pub fn nat(&self, nat: Nat, address: impl Into<IpAddr>) -> Arc<Self> {
        let id = self.engine.with(|state| {
            let realm = state.gateway(self.id).inside;
            state.add_gateway(nat, realm, vec![address.into()])
        });
        Arc::new(Self::new(self.engine.clone(), id))
    }

    /// Returns the live mappings, by external endpoint.
    pub fn mappings(&self) -> Vec<Translation> {
        self.engine.with(|state| state.gateway(self.id).table.translations(Instant::now()))
    }

    /// Forgets all mappings but those made by hand, as a reboot does.
    pub fn flush(&self) {
        self.engine.with(|state| state.gateway_mut(self.id).0.table.flush());
    }

    /// Maps an external port by hand, as UPnP or PCP would: open to every source, without a
    /// time-out. A firewall, which translates nothing, opens the internal endpoint.
    pub fn forward(&self, external_port: u16, internal: SocketAddr) {
        self.engine.with(|state| {
            let (gateway, _) = state.gateway_mut(self.id);
            let outer = gateway.outer(internal.ip());
            let external = outer.map_or(internal, |outer| SocketAddr::new(outer, external_port));
            gateway.table.forward(external, internal, Instant::now());
        });
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gateway({})", self.id.0)
    }
}

impl From<&Gateway> for NodeId {
    fn from(gateway: &Gateway) -> Self {
        gateway.id()
    }
}

impl From<&Arc<Gateway>> for NodeId {
    fn from(gateway: &Arc<Gateway>) -> Self {
        gateway.id()
    }
}
