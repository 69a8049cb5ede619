//! Decisions of the application on who is served, and on the addresses that are announced.
//!
//! A [`Gater`] in [`Config::gater`](crate::Config::gater) is asked before a request is answered, a
//! probe is sent or a frame is forwarded. A refused peer costs no connection, and its request fails
//! with `NotWilling`.
//!
//! libp2p's `allow_block_list` and `connection_limits` judge connections, and no other behaviour
//! can ask them. Peers that the swarm will refuse are refused before the punch only if the gater
//! knows them, too: share the block list with it. [`QuicConfig::max_connections`] is known here.
//! All others are punched for first, and count as [denied](crate::event::SessionEvent::Denied)
//! then.
//!
//! [`QuicConfig::max_connections`]: crate::config::QuicConfig::max_connections
//!
//! ```
//! use std::{
//!     collections::HashSet,
//!     sync::{Arc, Mutex, PoisonError},
//! };
//!
//! use libp2p_identity::PeerId;
//! use libp2p_punch::{
//!     Config,
//!     gater::{Gater, Remote, SharedGater},
//! };
//!
//! /// Peers that the swarm blocks.
//! #[derive(Debug, Default)]
//! struct BlockList(Mutex<HashSet<PeerId>>);
//!
//! impl Gater for BlockList {
//!     fn allow_connection(&self, initiator: &Remote, _: &PeerId) -> bool {
//!         !self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&initiator.peer)
//!     }
//! }
//!
//! let blocked = Arc::new(BlockList::default());
//! let mut config = Config::default();
//! config.gater = SharedGater::new(blocked.clone());
//! blocked.0.lock().unwrap().insert(PeerId::random());
//! # assert_eq!(config.validate(), Ok(()));
//! ```

use std::net::IpAddr;

pub use libp2p_punch_proto::gater::{Gater, Remote, SharedGater};

/// A gater that announces no address of certain interfaces and networks, and allows all else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HiddenInterfaces {
    /// Names of interfaces, such as `docker0` or `wg0`.
    pub names: Vec<String>,
    /// Networks, each as an address and the length of its prefix.
    pub networks: Vec<(IpAddr, u8)>,
}

impl HiddenInterfaces {
    fn is_hidden(&self, address: IpAddr, name_of: impl FnOnce(IpAddr) -> Option<String>) -> bool {
        self.networks.iter().any(|(network, length)| contains(*network, *length, address))
            || (!self.names.is_empty() && name_of(address).is_some_and(|name| self.names.contains(&name)))
    }
}

impl Gater for HiddenInterfaces {
    fn allow_announcement(&self, address: IpAddr) -> bool {
        !self.is_hidden(address, interface_name)
    }
}

/// Returns the name of the interface that has an address.
fn interface_name(address: IpAddr) -> Option<String> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    interfaces.into_iter().find(|interface| interface.ip() == address).map(|interface| interface.name)
}

/// Returns true if an address is in a network.
fn contains(network: IpAddr, length: u8, address: IpAddr) -> bool {
    let differing = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => (network.to_bits() ^ address.to_bits()).leading_zeros(),
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits() ^ address.to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= u32::from(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_named_interfaces_and_networks_are_hidden() {
        let hidden = HiddenInterfaces {
            names: vec!["docker0".to_owned()],
            networks: vec![("100.64.0.0".parse().unwrap(), 10), ("fd00::".parse().unwrap(), 8)],
        };
        let name = |address: IpAddr| match address.to_string().as_str() {
            "172.17.0.1" => Some("docker0".to_owned()),
            _ => Some("eth0".to_owned()),
        };
        for (address, is_hidden) in [
            ("172.17.0.1", true),
            ("172.18.0.1", false),
            ("100.127.0.1", true),
            ("100.128.0.1", false),
            ("fd12::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(hidden.is_hidden(address.parse().unwrap(), name), is_hidden, "{address}");
        }
    }

    #[test]
    fn the_loopback_interface_is_found_by_its_name() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let name = interface_name(loopback).unwrap();
        let hidden = HiddenInterfaces { names: vec![name], networks: Vec::new() };
        assert!(!hidden.allow_announcement(loopback));
        assert!(hidden.allow_announcement(IpAddr::from([192, 0, 2, 1])));
    }
}
