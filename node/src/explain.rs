//! Codes and remedies of the failures of a node.

use libp2p_punch::{event::FailureReason, explain::explanations};

use crate::{
    error::{BuildError, ConnectError, OpenError, SendError, ShutDown, TicketUnavailable},
    key_file::KeyFileError,
    status::CloseReason,
    target::TargetError,
    ticket::TicketError,
};

explanations! {
    BuildError {
        Self::Noise(_) => "noise-key",
            "Use an Ed25519 key.";
        Self::Resolvers(_) => "resolvers",
            "Check `/etc/resolv.conf`, or the DNS settings of this machine.";
        Self::Address { .. } => "not-an-address",
            "Write a multiaddr, such as `/ip4/192.0.2.1/udp/4001/quic-v1/p2p/PEER_ID`.";
        Self::ConnectTimeout { .. } => "connect-timeout-out-of-bounds",
            "Set the time-out within its bounds.";
        Self::Listen { .. } => "cannot-listen",
            "Choose an address of this machine and a free port.";
        Self::ProtocolName { .. } => "protocol-name",
            "Put a slash in front of the name.";
    } wraps {
        Self::KeyFile(error) => error.explanation();
        Self::Punch(error) => error.explanation();
    }
}

explanations! {
    ConnectError {
        Self::NoAddresses => "no-addresses",
            "Use a ticket of the peer, or check that this node and the peer are connected to the same network.";
        Self::WrongPeer { .. } => "wrong-peer",
            "Get a new ticket: another peer has the address now. The key file of the peer may have been replaced.";
        Self::Transport { .. } => "address-failed",
            "Check the address, and that UDP to its port is allowed on the way.";
        Self::Denied { .. } => "refused-by-this-node",
            "Read the cause. A limit on connections of this node is the usual one.";
        Self::TimedOut { .. } => "connect-timeout",
            "Check that the peer runs and has a connection to the network. Allow more time for slow networks.";
    } wraps {
        Self::DialSelf => FailureReason::DialSelf.explanation();
        Self::Target(error) => error.explanation();
        Self::Traversal(reason) => reason.explanation();
        Self::Shutdown => ShutDown.explanation();
    }
}

explanations! {
    OpenError {
        Self::Unsupported { .. } => "protocol-unsupported",
            "Check that both applications use the same name of the protocol.";
        Self::TimedOut => "no-further-stream",
            "Close streams that are no longer used. The application of the peer may have stopped accepting.";
        Self::Io { .. } => "stream-failed",
            "Connect again: the connection failed while the stream was opened.";
    } wraps {
        Self::Closed(reason) => reason.explanation();
    }
}

explanations! {
    SendError {
        Self::TooLong { .. } => "message-too-long",
            "Send it in parts, or over a stream.";
        Self::NotAcknowledged { .. } => "not-acknowledged",
            "Send the message again if it may arrive twice.";
        Self::TimedOut { .. } => "acknowledgement-timeout",
            "Check that the application of the peer receives messages.";
    } wraps {
        Self::Connect(error) => error.explanation();
        Self::Open(error) => error.explanation();
        Self::Shutdown => ShutDown.explanation();
    }
}

explanations! {
    CloseReason {
        Self::Local => "closed-by-this-node",
            "Nothing is wrong: connect again if the connection is still needed.";
        Self::Peer => "closed-by-the-peer",
            "Look into the log of the peer: it closed the connection.";
        Self::Idle => "idle",
            "Keep the connection or a stream of it open for as long as it is needed.";
        Self::TimedOut => "peer-silent",
            "Check the network of both peers, and that the peer runs.";
        Self::Failed { .. } => "connection-broken",
            "Read the cause, and connect again.";
    } wraps {
        Self::NotConnected(error) => error.explanation();
    }
}

explanations! {
    TargetError {
        Self::Address { .. } => "target-not-an-address",
            "Write a multiaddr, such as `/ip4/192.0.2.1/udp/4001/quic-v1/p2p/PEER_ID`.";
        Self::NoPeerId { .. } => "address-without-peer-id",
            "Append `/p2p/` and the PeerId of the peer to the address.";
        Self::Unknown { .. } => "target-unknown",
            "Copy the whole ticket, address or PeerId of the peer.";
    } wraps {
        Self::Ticket(error) => error.explanation();
    }
}

explanations! {
    TicketError {
        Self::Prefix => "ticket-prefix",
            "Copy the whole ticket, from its first character on.";
        Self::TooLong { .. } => "ticket-too-long",
            "Copy the ticket alone. A ticket that is made needs fewer addresses.";
        Self::Character { .. } => "ticket-character",
            "Copy the ticket again: a character was changed on its way.";
        Self::Truncated => "ticket-truncated",
            "Copy the whole ticket, up to its last character.";
        Self::Checksum => "ticket-checksum",
            "Copy the ticket again: a character was changed on its way.";
        Self::Version { .. } => "ticket-version",
            "Update this program.";
        Self::Malformed { .. } => "ticket-malformed",
            "Have the peer make a new ticket. If that one fails as well, report it as a bug.";
        Self::TooMany { .. } => "ticket-too-many",
            "Make the ticket with fewer items.";
        Self::OtherPeer { .. } => "ticket-other-peer",
            "Make the ticket with addresses of its peer alone.";
        Self::NoCoordinatorId { .. } => "ticket-coordinator-without-peer-id",
            "Append `/p2p/` and the PeerId of the coordinator to its address.";
        Self::TrailingBytes { .. } => "ticket-trailing-bytes",
            "Copy the ticket alone, without what follows it.";
    }
}

explanations! {
    TicketUnavailable {
        Self::NoAddresses => "no-ticket-yet",
            "Wait until the node listens, or has found a coordinator.";
    } wraps {
        Self::Ticket(error) => error.explanation();
        Self::Shutdown => ShutDown.explanation();
    }
}

explanations! {
    ShutDown {
        Self => "shut-down",
            "Build a new node.";
    }
}

explanations! {
    KeyFileError {
        Self::Read { .. } => "key-file-unreadable",
            "Let the user of the process read the file.";
        Self::Create { .. } => "key-file-not-created",
            "Create the folder, and let the user of the process write to it.";
        Self::NotAKey { .. } => "not-a-key",
            "Name another file. A file that does not exist is created with a new key.";
    }
}
