//! IP addresses to which this host may have sent.
//!
//! A NAT with address-dependent filtering (RFC 4787 §5) lets an address in once the host has sent
//! to it. A connection from any other global address proves that the address of this peer is open
//! to everybody. The transport notes what it dials, the driver what it probes.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Addresses that are remembered. Once there are as many, every address counts as a contact, so
/// that an address that was forgotten proves nothing.
const MAX_CONTACTS: usize = 4096;

/// The set, shared by transport, driver and behaviour. Addresses stay for the life of the process:
/// a connection that is older than any time-out may still hold the filter of a NAT open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contacts(Arc<Mutex<BTreeSet<IpAddr>>>);

impl Contacts {
    /// Notes an address. Returns true if the host had not sent to the address before.
    pub(crate) fn note(&self, address: IpAddr) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.len() < MAX_CONTACTS && known.insert(address.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_is_new_once_whatever_its_notation() {
        let (contacts, address) = (Contacts::default(), Ipv4Addr::new(198, 51, 100, 1));
        assert!(contacts.note(address.into()));
        assert!(!contacts.clone().note(address.to_ipv6_mapped().into()));
    }

    #[test]
    fn a_full_set_takes_no_address_for_new() {
        let contacts = Contacts::default();
        let address = |number: usize| IpAddr::from(Ipv4Addr::from_bits(u32::try_from(number).unwrap()));
        assert!((0..MAX_CONTACTS).all(|number| contacts.note(address(number))));
        assert!(!contacts.note(address(MAX_CONTACTS)));
    }
}
