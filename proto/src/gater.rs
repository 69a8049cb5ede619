//! Decisions of the application on who is served, and on the addresses that are announced.
//!
//! The endpoint asks before it answers a request, sends a probe or forwards a frame. A decision
//! must follow from the arguments and from the state of the application, without I/O, since the
//! endpoint waits for it. State that changes, such as a block list, counts from the next decision
//! on; it does not end what is under way.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use libp2p_identity::PeerId;

/// A peer that asks for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// Its identity, which a signature or the connection has proved.
    pub peer: PeerId,
    /// Its address: of its connection to the coordinator. `None` if that is not a connection of
    /// this transport.
    pub address: Option<SocketAddr>,
}

/// Decides who is served, and which addresses are announced. Every method allows everything by
/// default.
pub trait Gater: fmt::Debug + Send + Sync {
    /// Returns true if a peer may connect to this one. The request came through `coordinator`,
    /// which also says where it sees the peer.
    fn allow_connection(&self, initiator: &Remote, coordinator: &PeerId) -> bool {
        let _ = (initiator, coordinator);
        true
    }

    /// Returns true if a peer may register with this one, so that others find it here.
    fn allow_registration(&self, peer: &Remote) -> bool {
        let _ = peer;
        true
    }

    /// Returns true if a peer may ask this one for a registered peer.
    fn allow_request(&self, initiator: &Remote, responder: &PeerId) -> bool {
        let _ = (initiator, responder);
        true
    }

    /// Returns true if coordinators and peers may learn this address of this peer: that of an
    /// interface, or one at which others see it.
    fn allow_announcement(&self, address: IpAddr) -> bool {
        let _ = address;
        true
    }
}

/// The gater of an endpoint. The default allows everything.
#[derive(Debug, Clone, Default)]
pub struct SharedGater(Option<Arc<dyn Gater>>);

impl SharedGater {
    /// Returns the gater of an endpoint that asks `gater`.
    pub fn new(gater: Arc<dyn Gater>) -> Self {
        Self(Some(gater))
    }

    pub(crate) fn allows(&self, decide: impl FnOnce(&dyn Gater) -> bool) -> bool {
        self.0.as_deref().is_none_or(decide)
    }
}

/// Two are equal if they are the same object, or if both allow everything.
impl PartialEq for SharedGater {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Eq for SharedGater {}
