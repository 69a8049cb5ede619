//! What is known of the NAT, with its evidence, for an application to read.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::{FilteringBehaviour, MappingBehaviour, NatView, Observation, Observations};
use crate::{
    SocketId,
    address_policy::{Scope, scope},
    nat::strategy::Allocation,
};

/// What is known of the NAT in front of the socket that our coordinators know. `None` is not known: nothing here is
/// guessed, nor inferred from which connections succeed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Address to which the socket is bound that the findings are about, possibly a wildcard. `None` until an observer has
    /// seen the socket.
    pub local_address: Option<SocketAddr>,
    /// Where most observers see it.
    pub public_address: Option<Finding<SocketAddr>>,
    /// Whether a NAT is in the way at all: observers see another address than those of this host.
    pub translated: Option<Finding<bool>>,
    /// How the NAT maps.
    pub mapping: Option<Finding<MappingBehaviour>>,
    /// How the NAT, or a firewall, filters. Measured by datagrams from where we have not sent to.
    pub filtering: Option<Finding<FilteringBehaviour>>,
    /// Whether every mapping keeps the socket's port.
    pub port_preserved: Option<Finding<bool>>,
    /// How the NAT picks the ports of new mappings.
    pub allocation: Option<Finding<Allocation>>,
    /// Whether a packet from outside that comes before the first one of a flow takes the port which that flow would have
    /// had: a box that translates and has no firewall. Both sides of a connection cannot be the one that sends first.
    pub early_packets_harm: Option<Finding<bool>>,
    /// How long a mapping stands that nobody uses (RFC 4787 §4.3), measured once for each network with sockets of its own.
    pub idle_lifetime: Option<Finding<IdleLifetime>>,
    /// The shortest time that a mapping stood which was in use, if the NAT ends such ones, as some carriers' do every minute.
    /// Connected sessions move to another socket before that.
    pub mapping_lifetime: Option<Finding<Duration>>,
    /// Whether what we send to our own public address comes back to us (RFC 4787 §6).
    pub hairpin: Option<Finding<bool>>,
    /// Who else is seen at our public IP address, as far as known.
    pub sharing: Option<Finding<Sharing>>,
    /// `true` if there is evidence of a carrier-grade NAT: an address of its shared space (RFC 6598), our only one or one
    /// at which an observer sees us. Never `false`: a carrier may use any other addresses.
    pub carrier_nat: Option<Finding<bool>>,
    /// Whether UDP is blocked: `true` if coordinators were dialed over UDP and none answered, `false` if one did.
    pub udp_blocked: Option<Finding<bool>>,
}

/// Something that is known, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding<T> {
    /// What is known.
    pub value: T,
    /// How sure that is.
    pub confidence: Confidence,
    /// Who says so.
    pub evidence: Evidence,
}

/// How sure a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Confidence {
    /// The word of one observer, or observers that disagree.
    Low,
    /// Two observers agree, or one showed it by datagrams that arrived. Where some were lost, one more.
    Medium,
    /// Three observers agree, or two showed it by datagrams that arrived. Where some were lost, one more.
    High,
}

/// What a finding rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The peers that contributed, each once, in the order of their IDs.
    pub observers: Vec<PeerId>,
    /// How many observations there were, or datagrams.
    pub observations: usize,
    /// When the latest was made.
    pub at: Instant,
}

/// How long a mapping stands that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleLifetime {
    /// It was still there after so long; zero if it never was.
    pub at_least: Duration,
    /// It was gone after so long, if ever.
    pub less_than: Option<Duration>,
}

/// Who is seen at one public IP address.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sharing {
    /// The address.
    pub address: IpAddr,
    /// Sockets of ours that observers see there.
    pub sockets: usize,
    /// Peers that are connected to us from there, hosts behind the same NAT or on this host.
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
    /// What this many independent observers are worth.
    pub(crate) fn of_observers(count: usize) -> Self {
        match count {
            0 | 1 => Self::Low,
            2 => Self::Medium,
            _ => Self::High,
        }
    }
}

impl Evidence {
    /// `None` if there is none.
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
    /// What observers agree on.
    pub(crate) fn agreed(value: T, evidence: Evidence) -> Self {
        let confidence = Confidence::of_observers(evidence.observers.len());
        Self { value, confidence, evidence }
    }
}

/// The values and confidences of a report.
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
    /// Whether the findings are the same, whatever new evidence there is for them.
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

fn evidence<'a>(used: impl IntoIterator<Item = &'a Observation>) -> Option<Evidence> {
    Evidence::new(used.into_iter().map(|o| (o.observer, o.at)))
}

impl Observations {
    /// The part of a report that follows from what observers saw of `socket`.
    pub(crate) fn report(&self, socket: SocketId, view: &NatView, local: &[SocketAddr]) -> Report {
        let vote = self.vote(socket);
        let used = vote.counted;
        let all = || evidence(used.iter().copied());
        let public = self.reflexive(socket).into_iter().find(|address| {
            let seen = |o: &&Observation| o.seen == *address;
            used.iter().any(seen)
        });
        let at = |address: SocketAddr| evidence(used.iter().copied().filter(|o| o.seen == address));
        let public_address = public.and_then(|address| Some((address, at(address)?)));
        let is_translated = !used.iter().all(|o| local.contains(&o.seen));
        fn finding<T>(is_contested: bool, known: Option<(T, Evidence)>) -> Option<Finding<T>> {
            let mut finding = known.map(|(value, evidence)| Finding::agreed(value, evidence))?;
            if is_contested {
                finding.confidence = Confidence::Low;
            }
            Some(finding)
        }
        Report {
            public_address: finding(vote.is_contested, public_address),
            translated: finding(vote.is_contested, all().map(|evidence| (is_translated, evidence))),
            mapping: finding(vote.is_contested, view.mapping.zip(all())),
            port_preserved: finding(vote.is_contested, view.port_preserved.zip(all())),
            mapping_lifetime: self.lifetimes.finding(),
            ..Report::default()
        }
    }

    /// How often and by whom a socket's NAT was sampled at coordinators' further ports.
    pub(crate) fn sampled(&self, socket: SocketId) -> Option<Evidence> {
        evidence(self.used(socket).into_iter().filter(|o| o.is_probe))
    }

    /// Everybody who has seen any socket of ours.
    pub(crate) fn seen_at_all(&self) -> Option<Evidence> {
        evidence(self.by_socket.values().flatten())
    }

    /// How many sockets are seen at `ip`, and by whom.
    pub(crate) fn sockets_at(&self, ip: IpAddr) -> Option<(usize, Evidence)> {
        let at = |o: &&Observation| o.seen.ip() == ip && !o.is_probe;
        let sockets = self.by_socket.values().filter(|all| all.iter().any(|o| at(&o))).count();
        Some((sockets, evidence(self.by_socket.values().flatten().filter(at))?))
    }

    /// Who sees `socket` in the shared address space of carriers (RFC 6598), though none of its own addresses is there.
    pub(crate) fn seen_in_shared_space(&self, socket: SocketId, local: &[SocketAddr]) -> Option<Evidence> {
        let all = self.by_socket.get(&socket).into_iter().flatten();
        evidence(
            all.filter(|o| is_shared_space(o.seen.ip()) && !local.iter().any(|own| own.ip() == o.seen.ip())),
        )
    }
}

/// Whether all of a socket's addresses that could lead out are in the shared space of carriers.
pub(crate) fn is_in_shared_space(local: &[SocketAddr]) -> bool {
    let mut outward = local.iter().map(SocketAddr::ip).filter(|ip| match ip {
        IpAddr::V4(v4) => scope(*ip) != Scope::Loopback && !v4.is_link_local(),
        IpAddr::V6(_) => true,
    });
    // Overlay networks use this space, too: beside another address it means nothing.
    outward.next().is_some_and(is_shared_space) && outward.all(is_shared_space)
}

fn is_shared_space(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64)
}
