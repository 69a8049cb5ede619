//! Kinds of NAT in the words of RFC 4787.

use std::{fmt, str::FromStr};

use libp2p_punch_sim::{Filtering, Mapping, Nat, Ports};

/// Help text for the words.
pub(crate) const HELP: &str = "\
A NAT is 'public' for none, or MAPPING+FILTERING[+PORTS][+bare], 'double+' before it for two of a kind, one behind the other:
  MAPPING    eim   the same external port for every destination
             adm   one for each destination address
             apdm  one for each destination address and port
  FILTERING  eif   lets everybody in
             adf   lets in the addresses that were sent to
             apdf  lets in the addresses and ports that were sent to
  PORTS      kept, hashed, sequential or random; default: kept for eim, random for the others
  bare       no firewall: what comes before a flow takes the port of that flow";

/// NATs between a peer and the internet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NatSpec {
    /// No NAT.
    Public,
    /// One NAT.
    Single(Nat),
    /// A NAT behind another NAT of the same kind.
    Double(Nat),
}

impl FromStr for NatSpec {
    type Err = String;

    /// Reads words such as `eim+apdf`, `double+eim+eif` and `public`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("double+") {
            _ if text == "public" => Ok(NatSpec::Public),
            Some(rest) => nat(rest).map(NatSpec::Double),
            None => nat(text).map(NatSpec::Single),
        }
    }
}

fn nat(text: &str) -> Result<Nat, String> {
    let mut words = text.split('+');
    let mapping = match words.next() {
        Some("eim") => Mapping::EndpointIndependent,
        Some("adm") => Mapping::AddressDependent,
        Some("apdm") => Mapping::AddressAndPortDependent,
        _ => return Err("a NAT begins with eim, adm or apdm, or is public".into()),
    };
    let filtering = match words.next() {
        Some("eif") => Filtering::EndpointIndependent,
        Some("adf") => Filtering::AddressDependent,
        Some("apdf") => Filtering::AddressAndPortDependent,
        _ => return Err("the mapping is followed by +eif, +adf or +apdf".into()),
    };
    let early_packets_harm = text.ends_with("+bare");
    let ports = match words.next() {
        None | Some("bare") if mapping == Mapping::EndpointIndependent => Ports::Preserving,
        None | Some("bare" | "random") => Ports::Random,
        Some("kept") => Ports::Preserving,
        Some("hashed") => Ports::Hashed,
        Some("sequential") => Ports::Sequential { step: 1 },
        Some(_) => return Err("ports are kept, hashed, sequential or random".into()),
    };
    match words.next() {
        None | Some("bare") if words.next().is_none() => {
            Ok(Nat { ports, early_packets_harm, ..Nat::new(mapping, filtering) })
        }
        _ => Err("there is too much behind the ports".into()),
    }
}

impl fmt::Display for NatSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nat, before) = match self {
            NatSpec::Public => return f.write_str("no NAT"),
            NatSpec::Single(nat) => (nat, ""),
            NatSpec::Double(nat) => (nat, "two of "),
        };
        let mapping = match nat.mapping {
            Mapping::EndpointIndependent => "EIM",
            Mapping::AddressDependent => "ADM",
            Mapping::AddressAndPortDependent => "APDM",
        };
        let filtering = match nat.filtering {
            Filtering::EndpointIndependent => "EIF",
            Filtering::AddressDependent => "ADF",
            Filtering::AddressAndPortDependent => "APDF",
        };
        let ports = match nat.ports {
            Ports::Preserving => "kept",
            Ports::Hashed => "hashed",
            Ports::Sequential { .. } => "sequential",
            Ports::Random => "random",
        };
        let bare = if nat.early_packets_harm { ", no firewall" } else { "" };
        write!(f, "{before}{mapping}+{filtering}, ports {ports}{bare}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_mapping_filtering_and_ports() {
        let shown = |text: &str| text.parse::<NatSpec>().map(|nat| nat.to_string());
        assert_eq!(shown("public"), Ok("no NAT".into()));
        assert_eq!(shown("eim+apdf"), Ok("EIM+APDF, ports kept".into()));
        assert_eq!(shown("apdm+apdf"), Ok("APDM+APDF, ports random".into()));
        assert_eq!(shown("adm+adf+sequential"), Ok("ADM+ADF, ports sequential".into()));
        assert_eq!(shown("eim+apdf+bare"), Ok("EIM+APDF, ports kept, no firewall".into()));
        assert_eq!(shown("eim+apdf+random+bare"), Ok("EIM+APDF, ports random, no firewall".into()));
        assert_eq!(shown("double+eim+eif+hashed"), Ok("two of EIM+EIF, ports hashed".into()));
    }

    #[test]
    fn other_words_are_refused() {
        for text in [
            "",
            "cone",
            "eim",
            "eim+x",
            "eim+eif+x",
            "eim+eif+kept+x",
            "eim+eif+bare+kept",
            "eim+eif+kept+bare+x",
            "eim+bare",
            "double+public",
            "EIM+EIF",
        ] {
            assert!(text.parse::<NatSpec>().is_err(), "{text}");
        }
    }
}
