//! Our side of the network: sockets, interfaces, what observers saw, and the candidates that
//! follow.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use crate::{
    SocketId,
    address_policy::{Prefix, Scope, scope},
    candidate::{Candidate, CandidateKind, LocalCandidates},
    config::HostCandidates,
    gater::SharedGater,
    nat::{NatView, observations::Observations},
};

/// Reflexive addresses announced of each socket. A NAT whose mapping depends on the endpoint shows
/// another one to every observer, and few of them are of use to anybody else.
const MAX_REFLEXIVE: usize = 3;
/// Confirmed external addresses announced of each address family.
const MAX_EXTERNAL: usize = 2;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// An address at which others reach this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reachable {
    pub(crate) ip: IpAddr,
    /// The address that a socket must be bound to for that, perhaps a wildcard.
    pub(crate) local: IpAddr,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Socket {
    pub(crate) local: SocketAddr,
    pub(crate) accepts: bool,
    view: NatView,
}

#[derive(Debug)]
pub(crate) struct LocalAddresses {
    sockets: BTreeMap<SocketId, Socket>,
    interfaces: BTreeSet<Prefix>,
    /// Confirmed external addresses, best first.
    external: Vec<SocketAddr>,
    pub(crate) observations: Observations,
    pub(crate) candidates: LocalCandidates,
    max_candidates: usize,
    host_candidates: HostCandidates,
    gater: SharedGater,
}

impl LocalAddresses {
    pub(crate) fn new(max_candidates: usize) -> Self {
        Self {
            sockets: BTreeMap::new(),
            interfaces: BTreeSet::new(),
            external: Vec::new(),
            observations: Observations::default(),
            candidates: LocalCandidates::default(),
            max_candidates,
            host_candidates: HostCandidates::Announced,
            gater: SharedGater::default(),
        }
    }

    pub(crate) fn with_host_candidates(self, host_candidates: HostCandidates) -> Self {
        Self { host_candidates, ..self }
    }

    pub(crate) fn with_gater(self, gater: SharedGater) -> Self {
        Self { gater, ..self }
    }

    pub(crate) fn socket_up(&mut self, id: SocketId, local: SocketAddr, accepts: bool) {
        self.sockets.insert(id, Socket { local, accepts, view: NatView::default() });
    }

    /// `true` if there was such a socket.
    pub(crate) fn socket_down(&mut self, id: SocketId) -> bool {
        self.observations.socket_down(id);
        self.sockets.remove(&id).is_some()
    }

    /// `true` if that is new.
    pub(crate) fn interface_up(&mut self, address: IpAddr, length: u8) -> bool {
        self.interfaces.insert(Prefix { address, length })
    }

    /// `true` if there was such an interface.
    pub(crate) fn interface_down(&mut self, address: IpAddr) -> bool {
        let before = self.interfaces.len();
        self.interfaces.retain(|prefix| prefix.address != address);
        self.interfaces.len() != before
    }

    /// Replaces the external addresses that are confirmed.
    pub(crate) fn set_external(&mut self, mut addresses: Vec<SocketAddr>) {
        addresses.retain(|address| address.port() != 0 && scope(address.ip()) == Scope::Global);
        self.external = addresses;
    }

    /// Returns true if this peer announces a mapped port.
    pub(crate) fn has_mapped_port(&self) -> bool {
        self.candidates.contains(CandidateKind::PortMapped)
    }

    pub(crate) fn socket(&self, id: SocketId) -> Option<&Socket> {
        self.sockets.get(&id)
    }

    /// Returns true if a peer can connect to us.
    pub(crate) fn accepts(&self) -> bool {
        self.sockets.values().any(|socket| socket.accepts)
    }

    /// Our sockets that can send to `remote`; listeners first.
    pub(crate) fn sockets_for(&self, remote: SocketAddr) -> Vec<SocketId> {
        let mut usable: Vec<_> = self
            .sockets
            .iter()
            .filter(|(_, socket)| {
                socket.local.is_ipv4() == remote.is_ipv4()
                    && (!socket.local.ip().is_loopback() || remote.ip().is_loopback())
            })
            .collect();
        usable.sort_by_key(|(id, socket)| (!socket.accepts, **id));
        usable.into_iter().map(|(id, _)| *id).collect()
    }

    /// Returns the addresses of a socket on our interfaces, as far as others may learn them.
    fn announced_addresses_of(&self, socket: &Socket) -> Vec<SocketAddr> {
        let mut addresses = match self.host_candidates {
            HostCandidates::Announced => self.addresses_of(socket),
            HostCandidates::Hidden => Vec::new(),
        };
        addresses.retain(|address| self.may_announce(address));
        addresses
    }

    fn may_announce(&self, address: &SocketAddr) -> bool {
        self.gater.allows(|gater| gater.allow_announcement(address.ip()))
    }

    /// Returns the address of this family at which others reach us, if we accept connections over
    /// it: a global one, or else one that reaches as far as `reach`. An address of our own comes
    /// before one at which others see us.
    pub(crate) fn reachable_at(&self, family: Family, reach: Scope) -> Option<Reachable> {
        let accepting = || {
            self.sockets
                .iter()
                .filter(|(_, socket)| socket.accepts && Family::of(socket.local.ip()) == family)
        };
        let own = accepting().flat_map(|(_, socket)| {
            self.announced_addresses_of(socket).into_iter().map(move |address| (socket, address))
        });
        let seen = accepting().flat_map(|(id, socket)| {
            self.observations.reflexive(*id).into_iter().map(move |address| (socket, address))
        });
        let all: Vec<Reachable> = own
            .chain(seen)
            .map(|(socket, address)| Reachable { ip: address.ip(), local: socket.local.ip() })
            .collect();
        let reaching = |wanted: Scope| all.iter().find(|at| scope(at.ip) == wanted).copied();
        reaching(Scope::Global).or_else(|| reaching(reach))
    }

    /// The networks that we share with others.
    pub(crate) fn prefixes(&self) -> Vec<Prefix> {
        self.interfaces.iter().filter(|p| !p.address.is_loopback()).copied().collect()
    }

    /// Every address at which this host itself could reach one of our sockets.
    pub(crate) fn own_addresses(&self) -> Vec<SocketAddr> {
        self.sockets.values().flat_map(|socket| self.addresses_of(socket)).collect()
    }

    /// Every address at which this host itself could reach a socket.
    pub(crate) fn addresses_of_socket(&self, id: SocketId) -> Vec<SocketAddr> {
        self.sockets.get(&id).map(|socket| self.addresses_of(socket)).unwrap_or_default()
    }

    fn addresses_of(&self, socket: &Socket) -> Vec<SocketAddr> {
        if !socket.local.ip().is_unspecified() {
            return vec![socket.local];
        }
        self.interfaces
            .iter()
            .filter(|prefix| prefix.address.is_ipv4() == socket.local.is_ipv4())
            .map(|prefix| SocketAddr::new(prefix.address, socket.local.port()))
            .collect()
    }

    /// Forms the candidates again; returns true if they changed.
    pub(crate) fn refresh(&mut self) -> bool {
        let mut wanted = Vec::new();
        for (id, socket) in &self.sockets {
            for address in self.announced_addresses_of(socket) {
                if address.port() != 0 && scope(address.ip()) != Scope::Never {
                    wanted.push((CandidateKind::Host, address));
                }
            }
            let mut reflexive = self.observations.reflexive(*id);
            reflexive.retain(|address| self.may_announce(address));
            for address in reflexive.into_iter().take(MAX_REFLEXIVE) {
                wanted.push((CandidateKind::ServerReflexive, address));
            }
        }
        let mapped = self.mapped_ports(&wanted);
        wanted.extend(mapped.into_iter().map(|address| (CandidateKind::PortMapped, address)));
        self.candidates.update(wanted, self.max_candidates)
    }

    /// Returns the confirmed external addresses that are none of the other candidates: those of
    /// ports that lead to a socket of ours by other means than its own traffic.
    fn mapped_ports(&self, others: &[(CandidateKind, SocketAddr)]) -> Vec<SocketAddr> {
        let mut mapped = Vec::new();
        for family in [Family::V4, Family::V6] {
            let accepts = |socket: &Socket| socket.accepts && Family::of(socket.local.ip()) == family;
            if !self.sockets.values().any(accepts) {
                continue;
            }
            let is_new = |address: &&SocketAddr| {
                Family::of(address.ip()) == family
                    && self.may_announce(address)
                    && others.iter().all(|(_, known)| known != *address)
            };
            mapped.extend(self.external.iter().filter(is_new).take(MAX_EXTERNAL));
        }
        mapped
    }

    /// The sockets of which something else is known than before, with what is known.
    pub(crate) fn changed_views(&mut self) -> Vec<(SocketId, NatView)> {
        let mut changed = Vec::new();
        for (id, socket) in &self.sockets {
            let view = self.current_view(*id);
            if view != socket.view {
                changed.push((*id, view));
            }
        }
        for (id, view) in &changed {
            if let Some(socket) = self.sockets.get_mut(id) {
                socket.view = *view;
            }
        }
        changed
    }

    /// Returns the present findings on the NAT in front of a socket.
    pub(crate) fn current_view(&self, id: SocketId) -> NatView {
        let Some(socket) = self.sockets.get(&id) else { return NatView::default() };
        self.observations.view(id, socket.local.port(), &self.addresses_of(socket))
    }

    /// Returns true if an observer at `from` can have seen `socket` at `seen`.
    pub(crate) fn is_plausible(&self, socket: SocketId, from: SocketAddr, seen: SocketAddr) -> bool {
        let Some(socket) = self.sockets.get(&socket) else { return false };
        let reach = |address: SocketAddr| scope(address.ip());
        seen.port() != 0
            && seen.is_ipv4() == socket.local.is_ipv4()
            && match reach(seen) {
                Scope::Never => false,
                Scope::Loopback => reach(from) == Scope::Loopback,
                Scope::Private => reach(from) != Scope::Global,
                Scope::Global => true,
            }
    }

    /// Our candidates, for a peer that is, or is not, reached over loopback.
    pub(crate) fn candidates_for(&self, loopback: bool) -> Vec<Candidate> {
        self.candidates.of(loopback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    fn hosts(network: &mut LocalAddresses) -> Vec<String> {
        network.refresh();
        network.candidates_for(true).iter().map(|c| c.address.to_string()).collect()
    }

    #[test]
    fn hidden_host_candidates_are_named_to_nobody() {
        let address = "2001:db8::2".parse().unwrap();
        let reachable = |host_candidates| {
            let mut network = LocalAddresses::new(8).with_host_candidates(host_candidates);
            network.socket_up(SocketId(1), at("[::]:4001"), true);
            network.interface_up(address, 64);
            (hosts(&mut network).len(), network.reachable_at(Family::V6, Scope::Global).map(|at| at.ip))
        };
        assert_eq!(reachable(HostCandidates::Announced), (1, Some(address)));
        assert_eq!(reachable(HostCandidates::Hidden), (0, None));
    }

    #[test]
    fn a_wildcard_socket_is_at_every_interface_of_its_family() {
        let mut network = LocalAddresses::new(8);
        network.socket_up(SocketId(1), at("0.0.0.0:4001"), true);
        for (address, length) in
            [("192.168.1.2", 24), ("10.0.0.2", 8), ("127.0.0.1", 8), ("fd00::2", 64), ("fe80::2", 64)]
        {
            network.interface_up(address.parse().unwrap(), length);
        }
        assert_eq!(hosts(&mut network), ["10.0.0.2:4001", "127.0.0.1:4001", "192.168.1.2:4001"]);
        network.socket_up(SocketId(2), at("[::]:4001"), true);
        assert!(hosts(&mut network).contains(&"[fd00::2]:4001".to_owned()));
        assert!(!hosts(&mut network).contains(&"[fe80::2]:4001".to_owned()), "link-local");
        network.interface_down("10.0.0.2".parse().unwrap());
        network.socket_down(SocketId(2));
        assert_eq!(hosts(&mut network), ["127.0.0.1:4001", "192.168.1.2:4001"]);
    }

    #[test]
    fn a_bound_socket_is_only_where_it_is_bound() {
        let mut network = LocalAddresses::new(8);
        network.socket_up(SocketId(1), at("192.168.1.2:4001"), true);
        network.interface_up("10.0.0.2".parse().unwrap(), 8);
        assert_eq!(hosts(&mut network), ["192.168.1.2:4001"]);
    }

    #[test]
    fn a_confirmed_address_is_a_mapped_port_unless_it_is_known_by_other_means() {
        let mut network = LocalAddresses::new(8);
        network.interface_up("198.51.100.7".parse().unwrap(), 24);
        let [own, mapped] = [at("198.51.100.7:4001"), at("203.0.113.1:40001")];
        network.set_external(vec![
            own,
            mapped,
            at("[2001:db8::1]:4001"),
            at("192.168.1.2:4001"),
            at("203.0.113.1:0"),
        ]);
        assert!(hosts(&mut network).is_empty() && !network.has_mapped_port(), "nothing accepts");
        network.socket_up(SocketId(1), at("0.0.0.0:4001"), true);
        network.refresh();
        let mut all: Vec<_> = network.candidates_for(true).iter().map(|c| (c.kind, c.address)).collect();
        all.sort();
        assert_eq!(all, [(CandidateKind::Host, own), (CandidateKind::PortMapped, mapped)]);
        assert!(network.has_mapped_port());
        network.set_external(Vec::new());
        assert!(network.refresh() && !network.has_mapped_port());
    }

    #[test]
    fn a_socket_serves_remotes_of_its_family_and_a_loopback_one_only_loopback() {
        let mut network = LocalAddresses::new(8);
        network.socket_up(SocketId(1), at("0.0.0.0:1"), false);
        network.socket_up(SocketId(2), at("0.0.0.0:2"), true);
        network.socket_up(SocketId(3), at("[::]:3"), true);
        network.socket_up(SocketId(4), at("127.0.0.1:4"), true);
        assert_eq!(network.sockets_for(at("192.0.2.1:1")), [SocketId(2), SocketId(1)]);
        assert_eq!(network.sockets_for(at("127.0.0.1:1")), [SocketId(2), SocketId(4), SocketId(1)]);
        assert_eq!(network.sockets_for(at("[2001:db8::1]:1")), [SocketId(3)]);
    }

    #[test]
    fn an_observer_cannot_have_seen_us_where_it_cannot_reach() {
        let mut network = LocalAddresses::new(8);
        network.socket_up(SocketId(1), at("0.0.0.0:1"), true);
        let plausible = |from: &str, seen: &str| network.is_plausible(SocketId(1), at(from), at(seen));
        assert!(plausible("192.0.2.1:1", "203.0.113.1:5"));
        assert!(plausible("10.0.0.1:1", "10.0.0.2:5"));
        assert!(plausible("127.0.0.1:1", "127.0.0.1:5"));
        for (from, seen) in [
            ("192.0.2.1:1", "10.0.0.2:5"),
            ("192.0.2.1:1", "127.0.0.1:5"),
            ("10.0.0.1:1", "127.0.0.1:5"),
            ("192.0.2.1:1", "203.0.113.1:0"),
            ("192.0.2.1:1", "224.0.0.1:5"),
            ("192.0.2.1:1", "[2001:db8::1]:5"),
        ] {
            assert!(!plausible(from, seen), "{from} {seen}");
        }
        assert!(!network.is_plausible(SocketId(2), at("192.0.2.1:1"), at("203.0.113.1:5")));
    }
}
