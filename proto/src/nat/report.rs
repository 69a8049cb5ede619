//! Findings on the NAT, with their evidence, for the application.
//!
//! A [`Report`] holds a [`Finding`] for each property of the NAT. A finding is a value with a
//! [`Confidence`] and the [`Evidence`] for it: observers, number of observations and time.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{
    address_policy::{Scope, scope},
    nat::{FilteringBehaviour, MappingBehaviour, strategy::Allocation},
};

/// Findings on the NAT in front of the socket that the coordinators know. `None` means unknown. No
/// finding is guessed, or inferred from the success of connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Local address of the socket, possibly a wildcard. `None` until an observer has seen the
    /// socket.
    pub local_address: Option<SocketAddr>,
    /// Address at which most observers see the socket.
    pub public_address: Option<Finding<SocketAddr>>,
    /// True if there is a NAT: observers see an address that is not one of this host.
    pub translated: Option<Finding<bool>>,
    /// Mapping behaviour.
    pub mapping: Option<Finding<MappingBehaviour>>,
    /// Filtering behaviour of the NAT or of a firewall, measured by datagrams from addresses to
    /// which this host has not sent.
    pub filtering: Option<Finding<FilteringBehaviour>>,
    /// True if every mapping keeps the port of the socket.
    pub port_preserved: Option<Finding<bool>>,
    /// Allocation of the ports of new mappings.
    pub allocation: Option<Finding<Allocation>>,
    /// True if a packet from outside that arrives before the first packet of a flow takes the port
    /// of that flow. This is the behaviour of a NAT without a firewall. Two peers behind such NATs
    /// cannot both send first.
    pub early_packets_harm: Option<Finding<bool>>,
    /// Lifetime of a mapping without traffic (RFC 4787 §4.3), measured once for each network with
    /// separate sockets.
    pub idle_lifetime: Option<Finding<IdleLifetime>>,
    /// Shortest lifetime of a mapping in use, if the NAT ends such mappings, as the NATs of some
    /// carriers do every minute. Connected sessions move to another socket before that time.
    pub mapping_lifetime: Option<Finding<Duration>>,
    /// True if datagrams to the own public address arrive (RFC 4787 §6).
    pub hairpin: Option<Finding<bool>>,
    /// Other sockets and peers at the own public IP address, as far as they are known.
    pub sharing: Option<Finding<Sharing>>,
    /// `true` with evidence of a carrier-grade NAT: an address of the shared space (RFC 6598) at
    /// which an observer sees this host, or as its only address. Never `false`, because a carrier
    /// may use any other address.
    pub carrier_nat: Option<Finding<bool>>,
    /// `true` if coordinators were dialed over UDP and none answered, `false` if one answered.
    pub udp_blocked: Option<Finding<bool>>,
}

/// Value that is known, with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding<T> {
    /// The value.
    pub value: T,
    /// Confidence in the value.
    pub confidence: Confidence,
    /// Observations that support the value.
    pub evidence: Evidence,
}

/// Confidence in a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Confidence {
    /// One observer, or observers that disagree.
    Low,
    /// Two observers agree, or one observer sent datagrams that arrived. With loss one more
    /// observer is needed.
    Medium,
    /// Three observers agree, or two observers sent datagrams that arrived. With loss one more
    /// observer is needed.
    High,
}

/// Observations that support a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Peers that contributed, each once, ordered by peer ID.
    pub observers: Vec<PeerId>,
    /// Number of observations or datagrams.
    pub observations: usize,
    /// Time of the latest observation.
    pub at: Instant,
}

/// Lifetime of a mapping without traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleLifetime {
    /// The mapping still existed after this time; zero if it never did.
    pub at_least: Duration,
    /// The mapping had ended after this time, if it ever did.
    pub less_than: Option<Duration>,
}

/// Sockets and peers at one public IP address.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sharing {
    /// The address.
    pub address: IpAddr,
    /// Number of sockets of this peer that observers see at the address.
    pub sockets: usize,
    /// Connected peers at the address: hosts behind the same NAT, or on this host.
    pub peers: Vec<PeerId>,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Confidence::Low => "low",
            Confidence::Medium => "medium",
            Confidence::High => "high",
        })
    }
}

impl Confidence {
    /// Returns the confidence that this many independent observers justify.
    pub(crate) fn of_observers(count: usize) -> Self {
        match count {
            0 | 1 => Self::Low,
            2 => Self::Medium,
            _ => Self::High,
        }
    }
}

impl Evidence {
    /// Summarizes observations; `None` without any.
    pub(crate) fn new(all: impl IntoIterator<Item = (PeerId, Instant)>) -> Option<Self> {
        let (mut observers, mut observations, mut at) = (BTreeSet::new(), 0, None);
        for (peer, when) in all {
            observers.insert(peer);
            observations += 1;
            at = at.max(Some(when));
        }
        Some(Self { observers: observers.into_iter().collect(), observations, at: at? })
    }
}

impl<T> Finding<T> {
    /// Creates a finding on which observers agree.
    pub(crate) fn agreed(value: T, evidence: Evidence) -> Self {
        let confidence = Confidence::of_observers(evidence.observers.len());
        Self { value, confidence, evidence }
    }
}

/// Values and confidences of a report.
type Said<'a> = (
    [Option<(bool, Confidence)>; 6],
    Option<(SocketAddr, Confidence)>,
    Option<(MappingBehaviour, Confidence)>,
    Option<(FilteringBehaviour, Confidence)>,
    Option<(Allocation, Confidence)>,
    Option<(Duration, Confidence)>,
    Option<(IdleLifetime, Confidence)>,
    Option<(&'a Sharing, Confidence)>,
);

impl Report {
    /// Returns true if values and confidences are equal. Evidence is not compared.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.local_address == other.local_address && self.said() == other.said()
    }

    fn said(&self) -> Said<'_> {
        fn of<T: Copy>(finding: &Option<Finding<T>>) -> Option<(T, Confidence)> {
            finding.as_ref().map(|finding| (finding.value, finding.confidence))
        }
        let flags = [
            &self.translated,
            &self.port_preserved,
            &self.early_packets_harm,
            &self.hairpin,
            &self.carrier_nat,
            &self.udp_blocked,
        ];
        (
            flags.map(of),
            of(&self.public_address),
            of(&self.mapping),
            of(&self.filtering),
            of(&self.allocation),
            of(&self.mapping_lifetime),
            of(&self.idle_lifetime),
            self.sharing.as_ref().map(|finding| (&finding.value, finding.confidence)),
        )
    }
}

/// Returns true if all addresses of a socket that could lead out are in the shared space of
/// carriers.
pub(crate) fn is_in_shared_space(local: &[SocketAddr]) -> bool {
    let mut outward = local.iter().map(SocketAddr::ip).filter(|ip| match ip {
        IpAddr::V4(v4) => scope(*ip) != Scope::Loopback && !v4.is_link_local(),
        IpAddr::V6(_) => true,
    });
    // Overlay networks use the shared space, too. The space is evidence only without another
    // address.
    outward.next().is_some_and(is_shared_space) && outward.all(is_shared_space)
}

pub(super) fn is_shared_space(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64)
}
