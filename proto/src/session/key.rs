//! Names of sessions inside the endpoint.

/// Name of a session inside the endpoint. The initiator chooses the name on the wire, so that this
/// peer cannot rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);
