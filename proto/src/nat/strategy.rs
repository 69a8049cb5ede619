//! NAT profiles that two peers exchange, and the search that each pair of profiles needs
//! (`docs/protocol.md` §7.5).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::nat::MappingBehaviour;

/// Number of sockets on the side whose NAT allocates ports in sequence.
pub(crate) const WINDOW_SOCKETS: usize = 32;
/// Number of sockets on the side whose NAT allocates random ports.
pub(crate) const SPRAY_SOCKETS: usize = 256;
/// Minimum number of sockets for [`Strategy::BirthdayOpen`]. With 1,500 probes of the peer, 128
/// sockets find 19 of 20 peers, and 256 sockets find almost all.
pub(crate) const LEAST_SPRAY: usize = 128;

/// Allocation of the external port of a new mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Allocation {
    /// The port of the socket.
    Preserving,
    /// The port of the previous mapping plus a constant.
    Sequential {
        /// The constant, at least 1.
        step: u16,
    },
    /// No pattern.
    Random,
}

/// NAT in front of a peer, as the peer describes it. The peer signs the profile, and a false
/// profile harms only sessions of that peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NatProfile {
    /// Mapping behaviour (RFC 4787 §4.1); `None` if unknown.
    pub mapping: Option<MappingBehaviour>,
    /// Allocation of ports; `None` if unknown.
    pub allocation: Option<Allocation>,
    /// The peer takes no part in birthday searches.
    pub declines_search: bool,
    /// A packet from outside that arrives before the first packet of a flow takes the port of that
    /// flow. This is the behaviour of a NAT without a firewall.
    pub early_packets_harm: bool,
}

const DECLINES_SEARCH: u8 = 1;
const EARLY_PACKETS_HARM: u8 = 2;

impl NatProfile {
    /// Encodes the content of a NAT report, which is empty if nothing is known.
    pub fn encode(&self) -> Bytes {
        if *self == Self::default() {
            return Bytes::new();
        }
        let mapping = match self.mapping {
            None => 0,
            Some(MappingBehaviour::EndpointIndependent) => 1,
            Some(MappingBehaviour::AddressDependent) => 2,
            Some(MappingBehaviour::AddressAndPortDependent) => 3,
            Some(MappingBehaviour::EndpointDependent) => 4,
        };
        let (allocation, step) = match self.allocation {
            None => (0, 0),
            Some(Allocation::Preserving) => (1, 0),
            Some(Allocation::Sequential { step }) => (2, step),
            Some(Allocation::Random) => (3, 0),
        };
        let mut out = BytesMut::with_capacity(5);
        out.put_slice(&[mapping, allocation]);
        out.put_u16(step);
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        out.put_u8(
            flag(self.declines_search, DECLINES_SEARCH) | flag(self.early_packets_harm, EARLY_PACKETS_HARM),
        );
        out.freeze()
    }

    /// Decodes the content of a NAT report. Undefined and missing values count as unknown, and
    /// further bytes are ignored for later versions.
    pub fn parse(report: &[u8]) -> Self {
        let byte = |at: usize| report.get(at).copied().unwrap_or_default();
        let mapping = match byte(0) {
            1 => Some(MappingBehaviour::EndpointIndependent),
            2 => Some(MappingBehaviour::AddressDependent),
            3 => Some(MappingBehaviour::AddressAndPortDependent),
            4 => Some(MappingBehaviour::EndpointDependent),
            _ => None,
        };
        let allocation = match (byte(1), u16::from_be_bytes([byte(2), byte(3)])) {
            (1, _) => Some(Allocation::Preserving),
            (2, step) if step > 0 => Some(Allocation::Sequential { step }),
            (3, _) => Some(Allocation::Random),
            _ => None,
        };
        Self {
            mapping,
            allocation,
            declines_search: byte(4) & DECLINES_SEARCH != 0,
            early_packets_harm: byte(4) & EARLY_PACKETS_HARM != 0,
        }
    }

    /// Returns true if both profiles lead to the same strategies.
    pub(crate) fn acts_like(&self, other: &Self) -> bool {
        (self.kind(), self.declines_search) == (other.kind(), other.declines_search)
    }

    /// Returns true if early packets harm, and the mapping is otherwise endpoint-independent.
    pub(crate) fn is_fragile(&self) -> bool {
        self.kind() == Kind::Fragile
    }

    /// Returns true if a search against an easy NAT opens many sockets on this side.
    pub(crate) fn needs_spray(&self) -> bool {
        matches!(self.kind(), Kind::Random)
    }

    /// Returns the kind of the NAT.
    pub fn nat_kind(&self) -> NatKind {
        match self.kind() {
            Kind::Easy if self.mapping.is_none() => match self.allocation {
                Some(Allocation::Preserving) => NatKind::PortPreserving,
                _ => NatKind::Unknown,
            },
            Kind::Easy => NatKind::EndpointIndependent,
            Kind::Fragile => NatKind::NoFirewall,
            Kind::Sequential { .. } => NatKind::Sequential,
            Kind::Random => NatKind::Random,
            Kind::Unmeasured => NatKind::EndpointDependent,
        }
    }

    /// Returns the row or column of the profile in the table of strategies.
    fn kind(&self) -> Kind {
        match (self.mapping, self.allocation) {
            (None | Some(MappingBehaviour::EndpointIndependent), _) if self.early_packets_harm => {
                Kind::Fragile
            }
            (None | Some(MappingBehaviour::EndpointIndependent), _) => Kind::Easy,
            (Some(_), Some(Allocation::Sequential { step })) => Kind::Sequential { step },
            // A NAT with endpoint-dependent mapping preserves a port only while the port is free.
            (Some(_), Some(Allocation::Preserving | Allocation::Random)) => Kind::Random,
            (Some(_), None) => Kind::Unmeasured,
        }
    }
}

/// Kind of a NAT, as far as it decides on the way to get through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NatKind {
    /// The NAT was not measured, or there is none.
    #[default]
    Unknown,
    /// The NAT keeps the ports of sockets, and its mapping was not measured.
    PortPreserving,
    /// Endpoint-independent mapping (RFC 4787 §4.1). A peer without a NAT has it, too.
    EndpointIndependent,
    /// Endpoint-independent mapping, and early packets take the port of the flow: there is no
    /// firewall.
    NoFirewall,
    /// Endpoint-dependent mapping with ports in sequence.
    Sequential,
    /// Endpoint-dependent mapping with random ports.
    Random,
    /// Endpoint-dependent mapping, and the allocation of ports was not measured.
    EndpointDependent,
}

impl NatKind {
    /// Returns the name, such as `endpoint-independent`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::PortPreserving => "port-preserving",
            Self::EndpointIndependent => "endpoint-independent",
            Self::NoFirewall => "no-firewall",
            Self::Sequential => "sequential",
            Self::Random => "random",
            Self::EndpointDependent => "endpoint-dependent",
        }
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Easy,
    /// Easy for peers whose packets do not arrive early.
    Fragile,
    Sequential {
        step: u16,
    },
    Random,
    /// The mapping depends on the endpoint, and the allocation was not measured yet.
    Unmeasured,
}

/// Part of one side in a search, after plain probes have met silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Continue with plain probes.
    ProbeOnly,
    /// Open many sockets towards the one known address of the peer.
    BirthdayOpen,
    /// Probe random ports of the peer for one of its sockets.
    BirthdayScan,
    /// `BirthdayScan` from a series of fresh sockets. The peer learns of each socket after that
    /// socket has sent its probes.
    BirthdayScanFresh,
    /// Sample the NAT, report the sample to the peer, and open some sockets towards the one known
    /// address of the peer.
    PredictOpen {
        /// Distance between two consecutive ports of this peer.
        step: u16,
    },
    /// Wait for the position of the peer's NAT in its sequence, or for the peer's fresh socket, and
    /// probe there.
    PredictScan,
    /// `PredictScan` from a fresh socket. The peer learns of the socket after it has sent its
    /// probes.
    PredictScanFresh,
    /// `PredictOpen` towards one port in the sequence of the peer's NAT.
    PredictBoth {
        /// Distance between two consecutive ports of this peer.
        step: u16,
    },
    /// Open one socket towards the one known address of the peer, and report the address of the
    /// socket to the peer.
    FreshSocket,
    /// Fail, so that a relay can take over.
    Impossible,
}

impl Strategy {
    /// Returns true if the strategy needs more than plain probes.
    pub(crate) fn is_search(self) -> bool {
        !matches!(self, Self::ProbeOnly | Self::Impossible)
    }
}

/// Chooses the strategy of this side by the table of `docs/protocol.md` §7.5. `first` is true in
/// the first round with these profiles.
pub(crate) fn strategy(ours: &NatProfile, theirs: &NatProfile, first: bool) -> Strategy {
    let declined = ours.declines_search || theirs.declines_search;
    let is_fragile = ours.is_fragile();
    let is_easy = |kind| if kind == Kind::Fragile { Kind::Easy } else { kind };
    match (ours.kind(), theirs.kind()) {
        // An early packet has spoilt the port that the peer knows. The side that early packets do
        // not harm sends second.
        (Kind::Fragile, Kind::Easy) => return Strategy::FreshSocket,
        (Kind::Easy, Kind::Fragile) => return Strategy::PredictScan,
        _ => {}
    }
    match (is_easy(ours.kind()), is_easy(theirs.kind())) {
        (Kind::Easy, Kind::Easy) => Strategy::ProbeOnly,
        (Kind::Sequential { step }, Kind::Easy) if first || declined => Strategy::PredictOpen { step },
        (Kind::Easy, Kind::Sequential { .. }) if first || declined => match is_fragile {
            true => Strategy::PredictScanFresh,
            false => Strategy::PredictScan,
        },
        (Kind::Sequential { step }, Kind::Sequential { .. }) => Strategy::PredictBoth { step },
        // A prediction that failed may have been about a NAT that does not allocate in sequence.
        (_, Kind::Easy) if !declined => Strategy::BirthdayOpen,
        (Kind::Easy, _) if !declined => match is_fragile {
            true => Strategy::BirthdayScanFresh,
            false => Strategy::BirthdayScan,
        },
        // The allocation may be measured by the next round.
        (Kind::Unmeasured, Kind::Sequential { .. } | Kind::Unmeasured) if first => Strategy::ProbeOnly,
        (Kind::Sequential { .. }, Kind::Unmeasured) if first => Strategy::ProbeOnly,
        _ => Strategy::Impossible,
    }
}

/// Returns the allocation that the ports of new mappings show; `None` for fewer than three ports.
/// The mappings were made in quick succession, and the ports may be in any order. `local` is the
/// port of the socket.
pub(crate) fn allocation(ports: &[u16], local: u16) -> Option<Allocation> {
    /// Maximum distance between two neighbours in a sequence: five mappings of other hosts at a
    /// step of 16, and a margin.
    const MAX_GAP: u16 = 128;
    if ports.len() < 3 {
        return None;
    }
    if ports.iter().all(|port| *port == local) {
        return Some(Allocation::Preserving);
    }
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let gaps = || sorted.iter().zip(sorted.iter().skip(1)).map(|(a, b)| b - a);
    // Mappings of other hosts are whole steps apart, too.
    let step = gaps().fold(0, gcd);
    Some(match gaps().all(|gap| (1..=MAX_GAP).contains(&gap)) {
        true => Allocation::Sequential { step },
        false => Allocation::Random,
    })
}

pub(crate) fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MappingBehaviour::{AddressAndPortDependent, EndpointDependent, EndpointIndependent};

    fn traits(mapping: Option<MappingBehaviour>, allocation: Option<Allocation>) -> NatProfile {
        NatProfile { mapping, allocation, ..NatProfile::default() }
    }

    const SEQUENTIAL: Option<Allocation> = Some(Allocation::Sequential { step: 2 });

    #[test]
    fn a_report_says_what_was_put_in_and_nothing_known_is_empty() {
        let mappings = [
            None,
            Some(EndpointIndependent),
            Some(MappingBehaviour::AddressDependent),
            Some(AddressAndPortDependent),
            Some(MappingBehaviour::EndpointDependent),
        ];
        let allocations = [None, Some(Allocation::Preserving), SEQUENTIAL, Some(Allocation::Random)];
        for mapping in mappings {
            for allocation in allocations {
                for (declines_search, early_packets_harm) in [(false, false), (false, true), (true, false)] {
                    let traits = NatProfile { mapping, allocation, declines_search, early_packets_harm };
                    assert_eq!(NatProfile::parse(&traits.encode()), traits);
                }
            }
        }
        assert!(NatProfile::default().encode().is_empty());
    }

    #[test]
    fn a_profile_has_the_kind_that_decides_on_the_search() {
        let sequential = traits(Some(AddressAndPortDependent), SEQUENTIAL);
        let kinds = [
            (NatProfile::default(), NatKind::Unknown),
            (traits(None, Some(Allocation::Preserving)), NatKind::PortPreserving),
            (traits(Some(EndpointIndependent), None), NatKind::EndpointIndependent),
            (NatProfile { early_packets_harm: true, ..NatProfile::default() }, NatKind::NoFirewall),
            (sequential, NatKind::Sequential),
            (traits(Some(EndpointDependent), Some(Allocation::Random)), NatKind::Random),
            (traits(Some(EndpointDependent), None), NatKind::EndpointDependent),
        ];
        for (profile, kind) in kinds {
            assert_eq!(profile.nat_kind(), kind, "{profile:?}");
        }
    }

    #[test]
    fn a_report_of_a_later_version_is_read_as_far_as_it_is_known() {
        assert_eq!(
            NatProfile::parse(&[3, 2, 0, 2, 0xfc, 9, 9]),
            traits(Some(AddressAndPortDependent), SEQUENTIAL)
        );
        assert_eq!(NatProfile::parse(&[77, 2, 0, 0]), NatProfile::default(), "a step of 0 is none");
        assert_eq!(NatProfile::parse(&[3]), traits(Some(AddressAndPortDependent), None));
    }

    #[test]
    fn every_pair_of_kinds_has_two_parts_that_fit() {
        let easy = traits(Some(EndpointIndependent), None);
        let unknown = NatProfile::default();
        let sequential = traits(Some(AddressAndPortDependent), SEQUENTIAL);
        let random = traits(Some(AddressAndPortDependent), Some(Allocation::Random));
        let unmeasured = traits(Some(AddressAndPortDependent), None);
        let fragile = NatProfile { early_packets_harm: true, ..easy };
        use Strategy::*;
        for (a, b, first, second, retry_first, retry_second) in [
            (easy, easy, ProbeOnly, ProbeOnly, ProbeOnly, ProbeOnly),
            (easy, unknown, ProbeOnly, ProbeOnly, ProbeOnly, ProbeOnly),
            (fragile, easy, FreshSocket, PredictScan, FreshSocket, PredictScan),
            (fragile, unknown, FreshSocket, PredictScan, FreshSocket, PredictScan),
            (fragile, fragile, ProbeOnly, ProbeOnly, ProbeOnly, ProbeOnly),
            (fragile, random, BirthdayScanFresh, BirthdayOpen, BirthdayScanFresh, BirthdayOpen),
            (fragile, unmeasured, BirthdayScanFresh, BirthdayOpen, BirthdayScanFresh, BirthdayOpen),
            (fragile, sequential, PredictScanFresh, PredictOpen { step: 2 }, BirthdayScanFresh, BirthdayOpen),
            (random, easy, BirthdayOpen, BirthdayScan, BirthdayOpen, BirthdayScan),
            (random, unknown, BirthdayOpen, BirthdayScan, BirthdayOpen, BirthdayScan),
            (sequential, easy, PredictOpen { step: 2 }, PredictScan, BirthdayOpen, BirthdayScan),
            (
                sequential,
                sequential,
                PredictBoth { step: 2 },
                PredictBoth { step: 2 },
                PredictBoth { step: 2 },
                PredictBoth { step: 2 },
            ),
            (random, random, Impossible, Impossible, Impossible, Impossible),
            (random, unmeasured, Impossible, Impossible, Impossible, Impossible),
            (sequential, unmeasured, ProbeOnly, ProbeOnly, Impossible, Impossible),
            (unmeasured, unmeasured, ProbeOnly, ProbeOnly, Impossible, Impossible),
            (unmeasured, easy, BirthdayOpen, BirthdayScan, BirthdayOpen, BirthdayScan),
            (random, sequential, Impossible, Impossible, Impossible, Impossible),
        ] {
            assert_eq!((strategy(&a, &b, true), strategy(&b, &a, true)), (first, second), "{a:?} {b:?}");
            assert_eq!(
                (strategy(&a, &b, false), strategy(&b, &a, false)),
                (retry_first, retry_second),
                "{a:?} {b:?}"
            );
        }
    }

    #[test]
    fn who_declines_searches_has_none_on_either_side() {
        let easy = NatProfile { declines_search: true, ..traits(Some(EndpointIndependent), None) };
        let random = traits(Some(AddressAndPortDependent), Some(Allocation::Random));
        let sequential = traits(Some(AddressAndPortDependent), SEQUENTIAL);
        assert_eq!(strategy(&easy, &random, true), Strategy::Impossible);
        assert_eq!(strategy(&random, &easy, true), Strategy::Impossible);
        assert_eq!(strategy(&sequential, &easy, false), Strategy::PredictOpen { step: 2 });
        assert_eq!(strategy(&easy, &sequential, false), Strategy::PredictScan);
    }

    #[test]
    fn sequences_are_found_with_other_hosts_mappings_in_between() {
        assert_eq!(allocation(&[5000, 5001], 1), None);
        assert_eq!(allocation(&[4001, 4001, 4001], 4001), Some(Allocation::Preserving));
        assert_eq!(allocation(&[5000, 5001, 5002], 1), Some(Allocation::Sequential { step: 1 }));
        assert_eq!(allocation(&[5002, 5000, 5012], 1), Some(Allocation::Sequential { step: 2 }));
        assert_eq!(allocation(&[5000, 5006, 5007], 1), Some(Allocation::Sequential { step: 1 }));
        assert_eq!(allocation(&[5000, 5096, 5144], 1), Some(Allocation::Sequential { step: 48 }));
        assert_eq!(allocation(&[5000, 9000, 2000], 1), Some(Allocation::Random));
        assert_eq!(allocation(&[5000, 5000, 5001], 1), Some(Allocation::Random));
    }
}
