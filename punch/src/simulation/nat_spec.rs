//! NAT boxes, by the words of RFC 4787.

use std::fmt;

use libp2p_punch_sim::{Filtering, Mapping, Nat, Ports};

/// What the words mean.
pub(super) const HELP: &str = "\
A NAT is 'public' for none, or MAPPING+FILTERING[+PORTS][+bare], 'double+' before it for two of a kind in a row:
  MAPPING    eim   the same external port for every destination
             adm   one for each destination address
             apdm  one for each destination address and port
  FILTERING  eif   lets everybody in
             adf   lets in the addresses that were sent to
             apdf  lets in the addresses and ports that were sent to
  PORTS      kept, hashed, sequential or random; default: kept for eim, random for the others
  bare       no firewall: what comes before a flow takes the port of that flow";

/// What a peer is behind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Behind {
    /// Nothing.
    Public,
    /// A NAT.
    One(Nat),
    /// A NAT behind another one of its kind.
    Two(Nat),
}

/// Reads words such as `eim+apdf`, `double+eim+eif` and `public`.
pub(crate) fn parse(text: &str) -> Result<Behind, String> {
    match text.strip_prefix("double+") {
        _ if text == "public" => Ok(Behind::Public),
        Some(rest) => nat(rest).map(Behind::Two),
        None => nat(text).map(Behind::One),
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

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nat, before) = match self {
            Behind::Public => return f.write_str("no NAT"),
            Behind::One(nat) => (nat, ""),
            Behind::Two(nat) => (nat, "two of "),
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
        let shown = |text: &str| parse(text).map(|nat| nat.to_string());
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
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
