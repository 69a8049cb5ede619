//! The kinds of NAT box, as nftables rules.
//!
//! Each box has an interface `wan` and an interface `lan`. Linux connection tracking keeps a source
//! port while it is free, so `masquerade` alone is EIM+APDF. The input chain drops unsolicited
//! packets. Without that rule, an early packet takes the tuple of the flow that it belongs to, and
//! the flow gets another port.

use std::fmt::Write as _;

use crate::Kind;

/// The number of ports from which the boxes that do not keep a port choose.
const PORTS: u32 = 8192;
const FIRST_PORT: u32 = 40_000;

/// Returns the rules of a box of this kind.
pub(super) fn rules(kind: Kind) -> String {
    let to_lan = match kind {
        Kind::EimEif => "iifname wan meta l4proto udp dnat ip addr . port to udp dport map @eim",
        Kind::EimAdf => {
            "iifname wan meta l4proto udp ip saddr . udp dport @contacted \
                 dnat ip addr . port to udp dport map @eim"
        }
        _ => "",
    };
    let to_wan = match kind {
        Kind::Public | Kind::EimEif | Kind::EimAdf | Kind::EimApdf | Kind::EimApdfBare | Kind::Double => {
            "masquerade".to_owned()
        }
        Kind::EimApdfOtherPort => to_ports("jhash ip saddr . udp sport mod", "seed 0x70756e63"),
        Kind::AdmApdf => to_ports("jhash ip saddr . udp sport . ip daddr mod", "seed 0x70756e63"),
        Kind::ApdmRandom => "masquerade fully-random".to_owned(),
        Kind::ApdmSequential => to_ports("numgen inc mod", ""),
    };
    let unasked = if kind == Kind::EimApdfBare { "accept" } else { "drop" };
    let remember = match kind {
        Kind::EimEif => REMEMBER_MAPPING.to_owned(),
        Kind::EimAdf => {
            format!(
                "{REMEMBER_MAPPING}\n  oifname wan meta l4proto udp update @contacted {{ ip daddr . udp sport }}"
            )
        }
        _ => String::new(),
    };
    format!(
        "table ip box {{
 map eim {{ type inet_service : ipv4_addr . inet_service; flags dynamic; size 8192; timeout 5m; }}
 set contacted {{ type ipv4_addr . inet_service; flags dynamic; size 8192; timeout 5m; }}
 chain to_lan {{
  type nat hook prerouting priority dstnat;
  {to_lan}
 }}
 chain to_wan {{
  type nat hook postrouting priority srcnat;
  oifname wan meta l4proto udp {to_wan}
 }}
 chain remember {{
  type filter hook postrouting priority srcnat + 10;
  {remember}
 }}
 chain input {{
  type filter hook input priority filter; policy {unasked};
  iifname != wan accept
  ct state established,related accept
  meta l4proto icmp accept
 }}
 chain forward {{
  type filter hook forward priority filter; policy drop;
  iifname != wan accept
  ct state established,related accept
  ct status dnat accept
 }}
}}
"
    )
}

/// Notes the LAN socket of an external port, after the translation.
const REMEMBER_MAPPING: &str = "oifname wan meta l4proto udp \
     update @eim { udp sport : ct original ip saddr . ct original proto-src }";

/// Masquerades to a port chosen by an expression. The map is written out, since the expression's
/// own `offset` is added in the wrong byte order.
fn to_ports(before: &str, after: &str) -> String {
    let mut rule = format!("masquerade to :{before} {PORTS} {after} map {{ ");
    for index in 0..PORTS {
        let _ = write!(rule, "{index} : {}, ", FIRST_PORT + index);
    }
    rule.push('}');
    rule
}
