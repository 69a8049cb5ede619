//! Events of the endpoint as applications see them: a local address in place of the name of a
//! socket.

use std::net::SocketAddr;

use libp2p_core::multiaddr::Protocol;
use libp2p_punch_proto::{SocketId, event::Event, wire::frame::CoordinatorAddress};

use crate::{
    behaviour::event::{self, NatEvent, RegistrationEvent, SessionEvent},
    transport::addr,
};

/// Translates an event of the endpoint. `local` returns the address to which a socket is bound.
pub(super) fn public(event: Event, local: impl Fn(SocketId) -> Option<SocketAddr>) -> event::Event {
    let path =
        |path: libp2p_punch_proto::Path| event::Path { local: local(path.socket), remote: path.remote };
    let session = match event {
        Event::Phase { peer, role, attempt, from, to, after } => {
            SessionEvent::Phase { peer, role, attempt, from, to, after }
        }
        Event::Retry { peer, attempt, reason, delay } => SessionEvent::Retry { peer, attempt, reason, delay },
        Event::Candidates { peer, local, remote } => SessionEvent::Candidates { peer, local, remote },
        Event::PathValidated { peer, path: at, rtt } => {
            SessionEvent::PathValidated { peer, path: path(at), rtt }
        }
        Event::PathSelected { peer, path: at } => SessionEvent::PathSelected { peer, path: path(at) },
        Event::Search { peer, sockets } => SessionEvent::Search { peer, sockets },
        Event::Connected { peer, role, path: at, kind, elapsed, times, nats } => {
            SessionEvent::Connected { peer, role, path: path(at), kind, elapsed, times, nats }
        }
        Event::Failed { peer, role, reason, elapsed, nats } => {
            SessionEvent::Failed { peer, role, reason, elapsed, nats }
        }
        Event::Denied { peer, role } => SessionEvent::Denied { peer, role },
        Event::PathLost { peer, role } => SessionEvent::PathLost { peer, role },
        Event::Observed { observer, socket, address } => {
            return event::Event::Nat(NatEvent::Observed { observer, local: local(socket), address });
        }
        Event::Mapping { socket, mapping, port_preserved, allocation_step } => {
            let local = local(socket);
            let mapping = NatEvent::Mapping { local, mapping, port_preserved, allocation_step };
            return event::Event::Nat(mapping);
        }
        Event::Nat(report) => return event::Event::Nat(NatEvent::Report(report)),
        Event::Registered { coordinator, rtt } => {
            return event::Event::Registration(RegistrationEvent::Accepted { coordinator, rtt });
        }
        Event::RegistrationRenewed { coordinator, rtt } => {
            return event::Event::Registration(RegistrationEvent::Renewed { coordinator, rtt });
        }
        Event::RegistrationRejected { coordinator, reason } => {
            return event::Event::Registration(RegistrationEvent::Rejected { coordinator, reason });
        }
        Event::PeerCoordinators { peer, coordinators } => {
            let multiaddr = |CoordinatorAddress { coordinator, address }| {
                addr::from_socket(address).with(Protocol::P2p(coordinator))
            };
            let coordinators = coordinators.into_iter().map(multiaddr).collect();
            let told = RegistrationEvent::PeerCoordinators { peer, coordinators };
            return event::Event::Registration(told);
        }
        Event::Registration(status) => {
            return event::Event::Registration(RegistrationEvent::Status(status));
        }
    };
    event::Event::Session(session)
}
