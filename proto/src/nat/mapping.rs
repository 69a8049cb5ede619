//! Classification of the mapping behaviour of a NAT (RFC 4787 §4.1).
//!
//! The method is that of RFC 5780 §4.3, with any connected peers in place of one server with two
//! addresses: the differences between the reports of several observers show the behaviour.

use super::observation::Observation;

/// Mapping behaviour of a NAT (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MappingBehaviour {
    /// The same external port for every destination (EIM), or no NAT.
    EndpointIndependent,
    /// One external port for each destination address (ADM).
    AddressDependent,
    /// One external port for each destination address and port (APDM).
    AddressAndPortDependent,
    /// One of the two dependent behaviours (EDM). Which one is unknown, because no two observers
    /// shared an IP address.
    EndpointDependent,
}

/// Mapping and ports of the NAT in front of a socket. `None` means unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NatView {
    /// Mapping behaviour.
    pub mapping: Option<MappingBehaviour>,
    /// True if every mapping kept the port of the socket.
    pub port_preserved: Option<bool>,
    /// Distance between the ports of consecutive mappings, if it is constant, positive and small,
    /// as it is with NATs that allocate in sequence.
    pub allocation_step: Option<u16>,
}

/// Maximum distance between two ports that counts as allocation in sequence.
const MAX_STEP: u16 = 16;

/// Decides the mapping behaviour by comparing each two observations.
pub(super) fn mapping(observations: &[&Observation]) -> Option<MappingBehaviour> {
    let mut same_ip_agrees = None;
    let (mut across_agree, mut across_differ) = (false, false);
    for (i, a) in observations.iter().enumerate() {
        for b in observations.iter().skip(i + 1).filter(|b| b.by.address != a.by.address) {
            let agree = a.seen == b.seen;
            if a.by.address.ip() == b.by.address.ip() {
                same_ip_agrees = Some(same_ip_agrees.unwrap_or(true) && agree);
            } else if agree {
                across_agree = true;
            } else {
                across_differ = true;
            }
        }
    }
    match (same_ip_agrees, across_agree, across_differ) {
        (Some(false), _, _) => Some(MappingBehaviour::AddressAndPortDependent),
        (Some(true), _, true) => Some(MappingBehaviour::AddressDependent),
        (None, _, true) => Some(MappingBehaviour::EndpointDependent),
        (_, true, false) => Some(MappingBehaviour::EndpointIndependent),
        (_, false, false) => None,
    }
}

/// Returns the distance between the ports of consecutive mappings, if it is constant.
pub(super) fn allocation_step(in_order: &[&Observation]) -> Option<u16> {
    let mut ports: Vec<u16> = in_order.iter().map(|o| o.seen.port()).collect();
    ports.dedup();
    let mut steps = ports.windows(2).map(|pair| pair[1].checked_sub(pair[0]));
    let first = steps.next()??;
    // A constant distance needs at least two distances.
    (ports.len() >= 3 && (1..=MAX_STEP).contains(&first) && steps.all(|step| step == Some(first)))
        .then_some(first)
}
