//! A gateway as the network knows it: its two sides and its translation table.

use std::net::IpAddr;

use crate::{ids::RealmId, nat::Table};

/// A NAT or a firewall.
#[derive(Debug)]
pub(crate) struct GatewayState {
    pub(crate) outer: Vec<IpAddr>,
    pub(crate) inside: RealmId,
    pub(crate) outside: RealmId,
    pub(crate) table: Table,
}

impl GatewayState {
    /// Returns the external address for a family; `None` if the gateway does not translate it.
    pub(crate) fn outer(&self, like: IpAddr) -> Option<IpAddr> {
        self.outer.iter().copied().find(|outer| outer.is_ipv4() == like.is_ipv4())
    }
}
