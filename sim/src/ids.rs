//! Names of nodes and of networks.

/// Name of a host or a gateway in its [`World`](crate::World); other worlds do not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) usize);

/// Name of a network in which addresses are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RealmId(pub(crate) usize);

/// The public internet.
pub(crate) const CORE: RealmId = RealmId(0);
