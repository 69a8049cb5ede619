//! Choice of the observations that count if observers contradict each other.
//!
//! Any peer can claim to see this peer at any address. So coordinators, which this peer chose,
//! count before strangers. Networks are counted rather than identities, because an attacker can
//! create identities without limit.

use std::{collections::BTreeSet, net::SocketAddr};

use libp2p_identity::PeerId;

use super::observation::Observation;
use crate::network_prefix::NetworkPrefix;

/// Observations of a socket that count.
pub(super) struct Vote<'a> {
    pub(super) counted: Vec<&'a Observation>,
    /// An observer contradicts the counted observations, or they contradict each other about a NAT
    /// with endpoint-independent mapping.
    pub(super) is_contested: bool,
}

impl<'a> Vote<'a> {
    /// Counts strangers that agree with a coordinator, and all strangers if no coordinator sees the
    /// socket. Two networks of strangers also count against a single network of coordinators that
    /// has not measured with further ports.
    pub(super) fn new(all: Vec<&'a Observation>, coordinators: &BTreeSet<PeerId>) -> Self {
        let (chosen, strangers): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|o| coordinators.contains(&o.by.peer));
        if chosen.is_empty() {
            return Self::of_majority(strangers);
        }
        let addresses: BTreeSet<SocketAddr> = chosen.iter().map(|o| o.seen).collect();
        let (agreeing, dissenting): (Vec<_>, Vec<_>) =
            strangers.into_iter().partition(|o| addresses.contains(&o.seen));
        let is_measured = networks_of(chosen.iter().copied()) > 1 || chosen.iter().any(|o| o.is_probe);
        // If coordinators differ among themselves, a stranger need not see the address that one of
        // them sees.
        let is_contested = addresses.len() == 1 && !dissenting.is_empty();
        let mut counted = chosen;
        counted.extend(agreeing);
        if !is_measured && networks_of(dissenting.iter().copied()) > 1 {
            counted.extend(dissenting);
        }
        let vote = Self::of_majority(counted);
        Self { is_contested: is_contested || vote.is_contested, ..vote }
    }

    /// Leaves out the networks that contradict the majority, if at least two networks agree. With a
    /// mapping that depends on the endpoint no two networks agree. Further ports of a coordinator
    /// count as the network of that coordinator.
    fn of_majority(all: Vec<&'a Observation>) -> Self {
        let networks: BTreeSet<Option<NetworkPrefix>> = all.iter().map(|o| network(o)).collect();
        let sees_only = |of: &Option<NetworkPrefix>, address: SocketAddr| {
            all.iter().filter(|o| network(o) == *of).all(|o| o.seen == address)
        };
        let candidates: BTreeSet<SocketAddr> = all.iter().map(|o| o.seen).collect();
        let most = candidates
            .into_iter()
            .map(|address| (networks.iter().filter(|of| sees_only(of, address)).count(), address))
            .max();
        let majority =
            most.filter(|(agree, _)| *agree > 1 && agree * 2 > networks.len() && *agree < networks.len());
        let Some((_, address)) = majority else { return Self { counted: all, is_contested: false } };
        let counted = all.iter().copied().filter(|o| sees_only(&network(o), address)).collect();
        Self { counted, is_contested: true }
    }
}

fn network(observation: &Observation) -> Option<NetworkPrefix> {
    NetworkPrefix::of(observation.by.address.ip())
}

/// Returns the number of networks of the observers.
pub(super) fn networks_of<'a>(observations: impl Iterator<Item = &'a Observation>) -> usize {
    observations.map(network).collect::<BTreeSet<_>>().len()
}

/// Returns the index of the observation that a new observation replaces. Candidates are, in this
/// order: an observation whose connection has ended, a stranger's in favour of a coordinator's, and
/// one of the most frequent network in favour of a less frequent network.
pub(super) fn least_useful(
    all: &[Observation],
    coordinators: &BTreeSet<PeerId>,
    new: &Observation,
) -> Option<usize> {
    let is_stranger = |o: &Observation| !coordinators.contains(&o.by.peer);
    let places = |o: &Observation| all.iter().filter(|other| network(other) == network(o)).count();
    if let Some(stale) = all.iter().position(|o| o.expires.is_some()) {
        return Some(stale);
    }
    let strangers = all.iter().enumerate().filter(|(_, o)| is_stranger(o));
    let (index, of_most) = strangers.max_by_key(|(_, o)| places(o))?;
    (!is_stranger(new) || places(new) + 1 < places(of_most)).then_some(index)
}

/// Refutes observers that alone reported the end of a mapping that other observers continue to see.
pub(super) fn refute(all: &mut [Observation], still_seen: &BTreeSet<SocketAddr>) {
    let in_use: BTreeSet<SocketAddr> = all.iter().map(|o| o.seen).collect();
    for address in in_use.difference(still_seen).copied().collect::<Vec<_>>() {
        let mut alone = all.iter_mut().filter(|o| o.seen == address && !o.is_probe);
        if let (Some(only), None) = (alone.next(), alone.next()) {
            only.is_refuted = true;
        }
    }
}
