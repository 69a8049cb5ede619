//! Peers tell each other the coordinators with which they are registered (`COORDINATORS`).
//!
//! A peer that was connected once is found again without a lookup: its coordinators are known. The
//! shell remembers them, since they outlive the connection.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    address_policy::{Scope, scope},
    control_streams::ControlStream,
    environment::Environment,
    wire::frame::{CoordinatorAddress, Frame, MAX_FRAME_COORDINATORS},
};

/// One frame covers the changes within this time. Receivers take one frame a second.
const COALESCE_DELAY: Duration = Duration::from_secs(1);

/// Sends `COORDINATORS` after changes.
#[derive(Debug, Default)]
pub(crate) struct CoordinatorExchange {
    /// The coordinators of this peer.
    current: Vec<CoordinatorAddress>,
    /// Time at which all peers get the next frame.
    due: Option<Instant>,
}

impl CoordinatorExchange {
    /// Notes a change of the coordinators of this peer. All peers get a frame soon. A peer without
    /// coordinators sends none: its earlier coordinators may know it again.
    pub(crate) fn update(&mut self, env: &Environment, now: Instant) {
        let current = Vec::from_iter(registered_coordinators(env));
        if current == self.current {
            return;
        }
        self.current = current;
        if self.current.is_empty() {
            self.due = None;
        } else if env.streams.iter().any(|stream| needs_coordinators(env, stream)) {
            self.due.get_or_insert(now + COALESCE_DELAY);
        }
    }

    /// A control stream is open. Its peer gets a frame at once, unless all peers get one soon.
    pub(crate) fn stream_up(&self, env: &mut Environment, stream: &ControlStream) {
        if self.due.is_none() {
            self.tell(env, stream);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Tells all peers the coordinators of this peer.
    pub(crate) fn handle_timeout(&mut self, env: &mut Environment) {
        self.due = None;
        for stream in env.streams.all() {
            self.tell(env, &stream);
        }
    }

    fn tell(&self, env: &mut Environment, stream: &ControlStream) {
        if !needs_coordinators(env, stream) {
            return;
        }
        let is_useful = |known: &&CoordinatorAddress| may_be_named(known.address, stream.remote);
        let coordinators = self.current.iter().filter(is_useful).take(MAX_FRAME_COORDINATORS);
        let coordinators = Vec::from_iter(coordinators.copied());
        if !coordinators.is_empty() {
            env.out.frame(stream.id, Frame::Coordinators(coordinators));
        }
    }
}

/// Returns true if a peer needs the coordinators of this peer. It does not if it is one of them.
fn needs_coordinators(env: &Environment, stream: &ControlStream) -> bool {
    !env.registrations.contains(&stream.peer)
}

/// Returns the coordinators that have registered this peer and whose address is known.
fn registered_coordinators(env: &Environment) -> impl Iterator<Item = CoordinatorAddress> {
    env.registrations.registered().filter_map(|(coordinator, stream)| {
        let address = env.streams.get(stream)?.remote?;
        Some(CoordinatorAddress { coordinator, address })
    })
}

/// Returns true if an address means the same to both ends of a connection to `remote`: the address
/// is global, or both ends are in a private network or on one host.
pub(crate) fn may_be_named(address: SocketAddr, remote: Option<SocketAddr>) -> bool {
    match scope(address.ip()) {
        Scope::Global => true,
        Scope::Never => false,
        local @ (Scope::Private | Scope::Loopback) => {
            remote.is_some_and(|remote| scope(remote.ip()) == local)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_private_network_are_named_only_inside_private_networks() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (lan, global, host) = (at("192.168.1.2:1"), at("192.0.2.1:1"), at("127.0.0.1:1"));
        assert!(may_be_named(global, None) && may_be_named(global, Some(lan)));
        assert!(may_be_named(lan, Some(at("10.0.0.1:1"))) && may_be_named(host, Some(host)));
        assert!(!may_be_named(lan, None) && !may_be_named(lan, Some(global)));
        assert!(!may_be_named(host, Some(lan)) && !may_be_named(host, Some(global)));
        assert!(!may_be_named(at("169.254.169.254:80"), Some(at("169.254.1.1:1"))));
    }
}
