//! Causes that only `punch doctor` can tell apart.

use libp2p_punch::{event::RejectReason, explain::explanations};
use libp2p_punch_node::{Multiaddr, PeerId};

/// Reason for which no coordinator could be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    /// The machine is connected to no network.
    #[error("this node listens on loopback alone, and no route leads to {address}")]
    NoNetwork {
        /// Address of the coordinator.
        address: Multiaddr,
    },
    /// The name of the coordinator is not resolved.
    #[error("the name {name} of the coordinator has no address: {cause}")]
    NoSuchName {
        /// The name.
        name: String,
        /// The cause.
        cause: String,
    },
    /// The operating system refuses to send.
    #[error("this machine does not let datagrams to {address} out")]
    Forbidden {
        /// Address of the coordinator.
        address: Multiaddr,
    },
    /// The operating system has no socket, or cannot use it.
    #[error("this machine cannot send datagrams: {cause}")]
    NoSocket {
        /// The cause.
        cause: String,
    },
    /// There is no route.
    #[error("no route leads to {address}")]
    NoRoute {
        /// Address of the coordinator.
        address: Multiaddr,
    },
    /// TCP passes, and UDP does not.
    #[error("datagrams of 1200 bytes to {address} are lost, while its machine answers TCP")]
    UdpBlocked {
        /// Address of the coordinator.
        address: Multiaddr,
    },
    /// The port is closed.
    #[error("nothing listens at {address}")]
    CoordinatorDown {
        /// Address of the coordinator.
        address: Multiaddr,
    },
    /// There is no sign of the coordinator.
    #[error("nothing came back from {address}")]
    CoordinatorSilent {
        /// Address of the coordinator.
        address: Multiaddr,
    },
    /// A server answers, and the handshake fails.
    #[error("a QUIC server answers at {address}, and the handshake with it fails: {cause}")]
    CoordinatorHandshake {
        /// Address of the coordinator.
        address: Multiaddr,
        /// The cause.
        cause: String,
    },
    /// Another peer is at the address.
    #[error("{obtained} answers at {address}, not {expected}")]
    WrongCoordinator {
        /// The PeerId that was configured.
        expected: PeerId,
        /// The PeerId of the peer that answered.
        obtained: PeerId,
        /// Address of the coordinator.
        address: Multiaddr,
    },
    /// The node at the address is none.
    #[error("the node at {address} does not coordinate")]
    NotACoordinator {
        /// Address of the node.
        address: Multiaddr,
    },
    /// The coordinators refuse the registration.
    #[error("the coordinator refused the registration: {0}")]
    Refused(RejectReason),
}

explanations! {
    Cause {
        Self::NoNetwork { .. } => "no-network",
            "Connect this machine to a network.";
        Self::NoSuchName { .. } => "no-such-name",
            "Correct the name, or the DNS settings of this machine.";
        Self::Forbidden { .. } => "udp-forbidden-here",
            "Allow outgoing UDP in the firewall of this machine.";
        Self::NoSocket { .. } => "no-socket",
            "Read the message of the operating system. The usual cause is the limit of open files, which `ulimit -n` raises.";
        Self::NoRoute { .. } => "no-route",
            "Check the routes of this machine, and that the address is of an IP version that it has.";
        Self::UdpBlocked { .. } => "udp-blocked",
            "Allow outgoing UDP in the firewall of this network, and UDP to the port at the coordinator. Another network, such as a mobile one, shows which of the two it is. A tunnel with an MTU below 1,228 bytes has the same effect.";
        Self::CoordinatorDown { .. } => "coordinator-down",
            "Start the coordinator, or correct the address. A firewall on the way may also refuse in its name.";
        Self::CoordinatorSilent { .. } => "coordinator-silent",
            "Check that the machine of the coordinator runs and takes UDP at the port, and that this network allows UDP.";
        Self::CoordinatorHandshake { .. } => "coordinator-handshake",
            "Check that a libp2p node runs at the address, and update the older of the two sides.";
        Self::WrongCoordinator { .. } => "coordinator-wrong-id",
            "Correct the PeerId in the address of the coordinator. Its key file may have been replaced.";
        Self::NotACoordinator { .. } => "not-a-coordinator",
            "Use the address of a coordinator. A node coordinates once others have confirmed that they reach it.";
    } wraps {
        Self::Refused(reason) => reason.explanation();
    }
}
