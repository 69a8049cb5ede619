//! Addresses at which coordinators see us, to detect a move to another network.

use std::{collections::BTreeMap, net::IpAddr};

use libp2p_identity::PeerId;

/// The last IPv4 and the last IPv6 address at which each coordinator saw us. Ports do not count: a
/// NAT may give each coordinator, and each connection to it, another port.
#[derive(Debug, Default)]
pub(super) struct ObservedAddresses(BTreeMap<(PeerId, bool), IpAddr>);

impl ObservedAddresses {
    /// Notes where a coordinator sees us. Returns true if we have an address that we did not have.
    pub(super) fn is_change(&mut self, coordinator: PeerId, address: IpAddr) -> bool {
        let is_known = self.0.values().any(|known| *known == address);
        let before = self.0.insert((coordinator, address.is_ipv6()), address);
        before != Some(address) && !is_known
    }

    pub(super) fn forget(&mut self, coordinator: &PeerId) {
        self.0.retain(|(known, _), _| known != coordinator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_no_coordinator_has_seen_is_a_change() {
        let mut observed = ObservedAddresses::default();
        let coordinators = [PeerId::random(), PeerId::random()];
        let [home, mobile]: [IpAddr; 2] = [[198, 51, 100, 1].into(), [198, 51, 100, 2].into()];
        assert!(observed.is_change(coordinators[0], home));
        assert!(!observed.is_change(coordinators[0], home) && !observed.is_change(coordinators[1], home));
        assert!(observed.is_change(coordinators[1], mobile));
        assert!(!observed.is_change(coordinators[0], mobile));
        assert!(observed.is_change(coordinators[0], home), "and back");
        assert!(observed.is_change(coordinators[0], "2001:db8::1".parse().unwrap()));
        observed.forget(&coordinators[0]);
        assert_eq!(observed.0.len(), 1);
    }
}
