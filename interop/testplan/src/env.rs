//! Environment variables of the official suites, in their two dialects.

use std::{env, net::IpAddr, str::FromStr, time::Duration};

use anyhow::{Context, bail, ensure};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// Time-out of a suite that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(180);

/// Suite that runs the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// unified-testing: upper-case variables, keys that begin with that of the test, YAML.
    Unified {
        /// Identifies a test among those that run at once.
        test_key: String,
    },
    /// test-plans: lower-case variables, fixed keys, JSON.
    Legacy,
}

/// The configuration of the transport and perf suites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contract {
    pub(crate) dialect: Dialect,
    pub(crate) is_dialer: bool,
    pub(crate) redis: String,
    /// Listen address.
    pub(crate) ip: IpAddr,
    pub(crate) timeout: Duration,
}

impl Contract {
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        Self::from_lookup(|name| env::var(name).ok())
    }

    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let unified = lookup("TEST_KEY");
        let names = match unified {
            Some(_) => ["TRANSPORT", "IS_DIALER", "REDIS_ADDR", "LISTENER_IP", "TEST_TIMEOUT_SECS"],
            None => ["transport", "is_dialer", "redis_addr", "ip", "test_timeout_seconds"],
        };
        let [transport, is_dialer, redis, ip, timeout] = names;
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let transport = get(transport).with_context(|| format!("{transport} is not set"))?;
        ensure!(transport == "quic-v1", "the transport {transport} is not ours; it is quic-v1");
        Ok(Self {
            is_dialer: parse(is_dialer, get(is_dialer).with_context(|| format!("{is_dialer} is not set"))?)?,
            redis: get(redis).unwrap_or_else(|| "redis:6379".into()),
            ip: parse(ip, get(ip).unwrap_or_else(|| "0.0.0.0".into()))?,
            timeout: match get(timeout) {
                Some(seconds) => Duration::from_secs(parse(timeout, seconds)?),
                None => DEFAULT_TIMEOUT,
            },
            dialect: unified.map_or(Dialect::Legacy, |test_key| Dialect::Unified { test_key }),
        })
    }

    /// Under which key the listener's address is found.
    pub(crate) fn listener_key(&self) -> String {
        match &self.dialect {
            Dialect::Unified { test_key } => format!("{test_key}_listener_multiaddr"),
            Dialect::Legacy => "listenerAddr".into(),
        }
    }
}

/// The configuration of the hole punching suites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HolePunchTest {
    pub(crate) dialect: Dialect,
    pub(crate) is_dialer: bool,
    pub(crate) redis: String,
    /// Our listen address, so that the port of the dials is one that can be punched to.
    pub(crate) ip: IpAddr,
}

impl HolePunchTest {
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        Self::from_lookup(|name| env::var(name).ok())
    }

    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let transport = lookup("TRANSPORT").context("TRANSPORT is not set")?;
        ensure!(matches!(transport.as_str(), "quic" | "quic-v1"), "the transport {transport} is not ours");
        let redis = lookup("REDIS_ADDR").unwrap_or_else(|| "redis:6379".into());
        if let Some(test_key) = lookup("TEST_KEY") {
            let is_dialer = parse("IS_DIALER", lookup("IS_DIALER").context("IS_DIALER is not set")?)?;
            let ip = if is_dialer { "DIALER_IP" } else { "LISTENER_IP" };
            let ip = parse(ip, lookup(ip).unwrap_or_else(|| "0.0.0.0".into()))?;
            return Ok(Self { dialect: Dialect::Unified { test_key }, is_dialer, redis, ip });
        }
        let is_dialer = match lookup("MODE").context("neither TEST_KEY nor MODE is set")?.as_str() {
            "dial" => true,
            "listen" => false,
            other => bail!("MODE is {other}, it must be dial or listen"),
        };
        Ok(Self { dialect: Dialect::Legacy, is_dialer, redis, ip: IpAddr::from([0; 4]) })
    }
}

/// Returns true if the suite asks for debug output.
pub(crate) fn debug() -> bool {
    env::var("DEBUG").is_ok_and(|value| matches!(value.as_str(), "true" | "1"))
}

/// Returns the listen address on an interface.
pub(crate) fn listen_address(ip: IpAddr) -> Multiaddr {
    Multiaddr::from(ip).with(Protocol::Udp(0)).with(Protocol::QuicV1)
}

/// Returns true for an address that another container could dial.
pub(crate) fn is_public(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => !ip.is_loopback() && !ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
        _ => false,
    }
}

/// The peer at the end of an address.
pub(crate) fn peer_of(address: &Multiaddr) -> anyhow::Result<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Ok(peer),
        _ => bail!("{address} does not end in /p2p/PEER_ID"),
    }
}

/// A number, or nothing for `null`, as the suite writes a value that it does not have.
pub(crate) fn number(name: &str, default: u64) -> anyhow::Result<u64> {
    match env::var(name) {
        Ok(value) if !value.is_empty() && value != "null" => parse(name, value),
        _ => Ok(default),
    }
}

fn parse<T: FromStr>(name: &str, value: String) -> anyhow::Result<T> {
    value.parse().map_err(|_| anyhow::anyhow!("{name} is {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_test_key_makes_it_the_unified_dialect() {
        let contract = Contract::from_lookup(of(&[
            ("TEST_KEY", "a5b50d5e"),
            ("TRANSPORT", "quic-v1"),
            ("IS_DIALER", "true"),
            ("REDIS_ADDR", "transport-redis:6379"),
            ("TEST_TIMEOUT_SECS", "60"),
        ]))
        .unwrap();
        assert!(contract.is_dialer);
        assert_eq!(contract.listener_key(), "a5b50d5e_listener_multiaddr");
        assert_eq!((contract.redis.as_str(), contract.timeout.as_secs()), ("transport-redis:6379", 60));
    }

    #[test]
    fn without_one_the_variables_are_those_of_the_test_plans() {
        let contract =
            Contract::from_lookup(of(&[("transport", "quic-v1"), ("is_dialer", "false"), ("ip", "0.0.0.0")]))
                .unwrap();
        assert_eq!((contract.is_dialer, contract.dialect.clone()), (false, Dialect::Legacy));
        assert_eq!(
            (contract.listener_key().as_str(), contract.redis.as_str()),
            ("listenerAddr", "redis:6379")
        );
    }

    #[test]
    fn other_transports_are_refused() {
        assert!(Contract::from_lookup(of(&[("transport", "tcp"), ("is_dialer", "false")])).is_err());
        assert!(HolePunchTest::from_lookup(of(&[("TRANSPORT", "tcp"), ("MODE", "dial")])).is_err());
    }

    #[test]
    fn the_older_hole_punching_suite_says_mode() {
        let meeting = HolePunchTest::from_lookup(of(&[("TRANSPORT", "quic"), ("MODE", "listen")])).unwrap();
        assert_eq!((meeting.is_dialer, meeting.dialect), (false, Dialect::Legacy));
        assert!(HolePunchTest::from_lookup(of(&[("TRANSPORT", "quic"), ("MODE", "hum")])).is_err());
    }

    #[test]
    fn addresses_of_one_host_are_not_for_others() {
        for (address, public) in [
            ("/ip4/127.0.0.1/udp/1/quic-v1", false),
            ("/ip4/172.17.0.2/udp/1/quic-v1", true),
            ("/ip6/::1/udp/1/quic-v1", false),
            ("/ip6/fe80::1/udp/1/quic-v1", false),
            ("/dns/listener/udp/1/quic-v1", false),
        ] {
            assert_eq!(is_public(&address.parse().unwrap()), public, "{address}");
        }
    }
}
