//! Kinds of NAT, in the words of RFC 4787.

use std::{fmt, str::FromStr};

/// NATs between a host and the WAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No NAT: the host has a public address.
    Public,
    /// Endpoint-independent mapping, endpoint-independent filtering.
    EimEif,
    /// Endpoint-independent mapping, address-dependent filtering.
    EimAdf,
    /// Endpoint-independent mapping, address- and port-dependent filtering; the port is kept.
    EimApdf,
    /// As `EimApdf`, with a port that is not kept.
    EimApdfOtherPort,
    /// As `EimApdf`, without a firewall: a packet that comes before its flow goes out takes the
    /// port of that flow, which then gets another one.
    EimApdfBare,
    /// Two boxes of kind EIM+APDF, one behind the other.
    Double,
    /// Address-dependent mapping, address- and port-dependent filtering.
    AdmApdf,
    /// Address- and port-dependent mapping to random ports, address- and port-dependent filtering.
    ApdmRandom,
    /// Address- and port-dependent mapping to one port after the other, address- and port-dependent
    /// filtering.
    ApdmSequential,
}

/// Part of the remote endpoint on which a mapping or a filter depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DependsOn {
    /// No part.
    Nothing,
    /// The address.
    Address,
    /// The address and the port.
    AddressAndPort,
}

/// Order in which external ports are allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The internal port is kept.
    Kept,
    /// Each mapping gets the next port.
    Sequential,
    /// No order is visible.
    Scattered,
}

/// Mapping and filtering of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// RFC 4787 §4.1.
    pub mapping: DependsOn,
    /// RFC 4787 §5.
    pub filtering: DependsOn,
    /// RFC 4787 §4.2.
    pub ports: Ports,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 10] = [
        Kind::Public,
        Kind::EimEif,
        Kind::EimAdf,
        Kind::EimApdf,
        Kind::EimApdfOtherPort,
        Kind::EimApdfBare,
        Kind::AdmApdf,
        Kind::ApdmRandom,
        Kind::ApdmSequential,
        Kind::Double,
    ];

    /// The kinds of the matrix by which implementations are compared.
    pub const MATRIX: [Kind; 8] = [
        Kind::Public,
        Kind::EimEif,
        Kind::EimAdf,
        Kind::EimApdf,
        Kind::EimApdfOtherPort,
        Kind::ApdmRandom,
        Kind::ApdmSequential,
        Kind::Double,
    ];

    /// Kinds with endpoint-independent mapping.
    pub const EIM: [Kind; 6] =
        [Kind::Public, Kind::EimEif, Kind::EimAdf, Kind::EimApdf, Kind::EimApdfOtherPort, Kind::Double];

    /// Kinds with endpoint-dependent mapping.
    pub const EDM: [Kind; 3] = [Kind::AdmApdf, Kind::ApdmRandom, Kind::ApdmSequential];

    /// Returns the name on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Public => "public",
            Kind::EimEif => "eim+eif",
            Kind::EimAdf => "eim+adf",
            Kind::EimApdf => "eim+apdf",
            Kind::EimApdfOtherPort => "eim+apdf+hashed",
            Kind::EimApdfBare => "eim+apdf+bare",
            Kind::Double => "double+eim+apdf",
            Kind::AdmApdf => "adm+apdf",
            Kind::ApdmRandom => "apdm+apdf+random",
            Kind::ApdmSequential => "apdm+apdf+sequential",
        }
    }

    /// Returns the label in a table: a name, and the property that sets the kind apart.
    pub fn label(self) -> (&'static str, &'static str) {
        match self {
            Kind::Public => ("public", "no NAT"),
            Kind::EimEif => ("EIM+EIF", ""),
            Kind::EimAdf => ("EIM+ADF", ""),
            Kind::EimApdf => ("EIM+APDF", "port kept"),
            Kind::EimApdfOtherPort => ("EIM+APDF", "port not kept"),
            Kind::EimApdfBare => ("EIM+APDF", "no firewall"),
            Kind::Double => ("EIM+APDF", "behind another"),
            Kind::AdmApdf => ("ADM+APDF", ""),
            Kind::ApdmRandom => ("APDM+APDF", "random ports"),
            Kind::ApdmSequential => ("APDM+APDF", "sequential"),
        }
    }

    /// Returns the behaviour that a measurement must find.
    pub fn behaviour(self) -> Behaviour {
        use DependsOn::{Address, AddressAndPort, Nothing};
        let (mapping, filtering, ports) = match self {
            Kind::Public | Kind::EimEif => (Nothing, Nothing, Ports::Kept),
            Kind::EimAdf => (Nothing, Address, Ports::Kept),
            Kind::EimApdf | Kind::EimApdfBare | Kind::Double => (Nothing, AddressAndPort, Ports::Kept),
            Kind::EimApdfOtherPort => (Nothing, AddressAndPort, Ports::Scattered),
            Kind::AdmApdf => (Address, AddressAndPort, Ports::Scattered),
            Kind::ApdmRandom => (AddressAndPort, AddressAndPort, Ports::Scattered),
            Kind::ApdmSequential => (AddressAndPort, AddressAndPort, Ports::Sequential),
        };
        Behaviour { mapping, filtering, ports }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Kind::ALL.into_iter().find(|kind| kind.word() == text).ok_or_else(|| {
            let words: Vec<&str> = Kind::ALL.iter().map(|kind| kind.word()).collect();
            format!("there is no kind '{text}'; there are {}", words.join(", "))
        })
    }
}

impl fmt::Display for DependsOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DependsOn::Nothing => "endpoint-independent",
            DependsOn::Address => "address-dependent",
            DependsOn::AddressAndPort => "address-and-port-dependent",
        })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Ports::Kept => "kept",
            Ports::Sequential => "sequential",
            Ports::Scattered => "scattered",
        })
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mapping, {} filtering, ports {}", self.mapping, self.filtering, self.ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_word_and_nothing_else_is() {
        for kind in Kind::ALL {
            assert_eq!(kind.word().parse(), Ok(kind));
        }
        for wrong in ["", "cone", "EIM+EIF", "eim", "eim+apdf+"] {
            assert!(wrong.parse::<Kind>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn kinds_of_the_matrix_differ_in_what_is_measured_or_in_the_number_of_boxes() {
        for (index, one) in Kind::MATRIX.iter().enumerate() {
            for other in &Kind::MATRIX[..index] {
                let boxes = |kind: Kind| match kind {
                    Kind::Public => 0,
                    Kind::Double => 2,
                    _ => 1,
                };
                assert_ne!((one.behaviour(), boxes(*one)), (other.behaviour(), boxes(*other)));
                assert_ne!(one.label(), other.label());
            }
        }
    }
}
