//! Values on the command line: addresses, times and shares.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// Reads `/ip4|ip6/ADDRESS/udp/PORT/quic-v1`.
pub(crate) fn listen_address(text: &str) -> Result<Multiaddr, String> {
    let address = parse(text)?;
    match parts(&address) {
        Some((_, None)) => Ok(address),
        _ => Err("an address to listen on looks like /ip4/0.0.0.0/udp/4001/quic-v1".into()),
    }
}

/// Reads `/ip4|ip6/ADDRESS/udp/PORT/quic-v1/p2p/PEER_ID`, with a port other than 0.
pub(crate) fn coordinator_address(text: &str) -> Result<Multiaddr, String> {
    let address = parse(text)?;
    match parts(&address) {
        Some((1.., Some(_))) => Ok(address),
        _ => Err("a coordinator's address looks like /ip4/192.0.2.1/udp/4001/quic-v1/p2p/PEER_ID".into()),
    }
}

/// Reads the address of a node through which others enter their network.
pub(crate) fn bootstrap_address(text: &str) -> Result<Multiaddr, String> {
    let address = parse(text)?;
    match address.iter().next() {
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => Ok(address),
        _ if parts(&address).is_some_and(|(port, _)| port > 0) => Ok(address),
        _ => Err("an address of a node looks like /ip4/192.0.2.1/udp/4001/quic-v1/p2p/PEER_ID".into()),
    }
}

fn parse(text: &str) -> Result<Multiaddr, String> {
    text.parse().map_err(|error| format!("it is not a multiaddr ({error})"))
}

/// Returns port and peer of `/ip4|ip6/ADDRESS/udp/PORT/quic-v1[/p2p/PEER_ID]`.
fn parts(address: &Multiaddr) -> Option<(u16, Option<PeerId>)> {
    let mut parts = address.iter();
    let (Protocol::Ip4(_) | Protocol::Ip6(_)) = parts.next()? else { return None };
    let Protocol::Udp(port) = parts.next()? else { return None };
    let Protocol::QuicV1 = parts.next()? else { return None };
    match (parts.next(), parts.next()) {
        (None, _) => Some((port, None)),
        (Some(Protocol::P2p(peer)), None) => Some((port, Some(peer))),
        _ => None,
    }
}

/// Reads a time of at most a day: a number of seconds, or a time with a unit.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let refused = "it must be a number of seconds, or a time such as 90s or 5m, above 0 and at most a day";
    let time = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| refused)?,
        Err(_) => humantime::parse_duration(text).map_err(|_| refused)?,
    };
    if time > Duration::ZERO && time <= Duration::from_secs(86_400) { Ok(time) } else { Err(refused.into()) }
}

/// Reads a number of bytes, or a size with a unit.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let size: bytesize::ByteSize =
        text.parse().map_err(|_| "it must be a number of bytes, or a size such as 32MiB or 1GB")?;
    // The parser turns what is too large into the largest number.
    if size.as_u64() < u64::MAX { Ok(size.as_u64()) } else { Err("it must be below 16 EiB".into()) }
}

/// Reads a number of events a second, and returns the time from one to the next.
pub(crate) fn per_second(text: &str) -> Result<Duration, String> {
    let refused = "it must be a number a second from 0.01 to 1000000";
    let value: f64 = text.parse().map_err(|_| refused)?;
    if (0.01..=1e6).contains(&value) {
        Ok(Duration::from_secs_f64(value.recip()))
    } else {
        Err(refused.into())
    }
}

/// Reads a time in milliseconds, of at most a minute.
pub(crate) fn milliseconds(text: &str) -> Result<Duration, String> {
    let refused = "it must be a number of milliseconds from 0 to 60000";
    let value: f64 = text.parse().map_err(|_| refused)?;
    if (0.0..=60_000.0).contains(&value) {
        Ok(Duration::from_secs_f64(value / 1e3))
    } else {
        Err(refused.into())
    }
}

/// Reads a share in percent.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    let refused = "it must be a number from 0 to 100";
    let value: f64 = text.parse().map_err(|_| refused)?;
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err(refused.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "/ip4/192.0.2.1/udp/4001/quic-v1";
    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[test]
    fn addresses_of_another_shape_are_refused() {
        assert!(listen_address(ADDRESS).is_ok());
        for wrong in ["", "here", "/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3/udp/1/quic-v1", "/ip4/1.2.3.4/udp/1/quic"]
        {
            assert!(listen_address(wrong).is_err(), "{wrong}");
        }
        assert!(coordinator_address(&format!("{ADDRESS}/p2p/{PEER}")).is_ok());
        assert!(coordinator_address(&format!("/ip4/192.0.2.1/udp/0/quic-v1/p2p/{PEER}")).is_err());
        assert!(coordinator_address(ADDRESS).is_err());
        assert!(listen_address(&format!("{ADDRESS}/p2p/{PEER}")).is_err());
    }

    #[test]
    fn a_size_is_a_number_of_bytes_or_has_a_unit() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("32MiB"), Ok(32 << 20));
        assert_eq!(bytes("1 kB"), Ok(1000));
        for wrong in ["", "-1", "much", "1 parsec", "99999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_timeout_is_a_positive_number_of_seconds() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2_500)));
        assert_eq!(seconds("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(seconds("1h 30m"), Ok(Duration::from_secs(5_400)));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", "soon", "0s", "25h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
