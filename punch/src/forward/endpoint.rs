//! Names of ports, as the user writes them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Longest name of a host.
const MAX_HOST_LEN: usize = 253;

/// TCP port of a host, which the side that serves resolves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
}

/// Local port, and the port at the peer to which it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) local: SocketAddr,
    pub(crate) target: Endpoint,
}

/// Reason for which a text names no port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("a port at the peer looks like HOST:PORT, an IPv6 address in brackets")]
    Endpoint,
    #[error("a forwarded port looks like [BIND:]PORT:HOST:PORT, IPv6 addresses in brackets")]
    Tunnel,
    #[error("{text:?} is no port: it must be a number from 1 to 65535")]
    Port { text: String },
    #[error("{text:?} is no local port: it must be a number from 0 to 65535, and 0 takes a free one")]
    LocalPort { text: String },
    #[error("{text:?} is no address to listen on: it must be an IP address or localhost")]
    Bind { text: String },
    #[error("{text:?} is not the name of a host")]
    Host { text: String },
}

impl Endpoint {
    fn new(host: &str, port: &str) -> Result<Self, EndpointError> {
        let number = port.parse().ok().filter(|port| *port > 0);
        let port = number.ok_or_else(|| EndpointError::Port { text: port.to_owned() })?;
        Self { host: host.to_ascii_lowercase(), port }.checked()
    }

    /// Checks the words of a peer or of a user. An address gets its usual form.
    pub(super) fn checked(mut self) -> Result<Self, EndpointError> {
        let is_of_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_');
        if let Ok(address) = self.host.parse::<IpAddr>() {
            self.host = address.to_string();
        } else if self.host.is_empty() || self.host.len() > MAX_HOST_LEN || !self.host.chars().all(is_of_name)
        {
            return Err(EndpointError::Host { text: self.host.chars().take(80).collect() });
        }
        if self.port == 0 { Err(EndpointError::Port { text: "0".to_owned() }) } else { Ok(self) }
    }

    /// Returns the host and the port, to be resolved.
    pub(super) fn resolvable(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        match parts(text).as_deref() {
            Some([host, port]) => Self::new(host, port),
            _ => Err(EndpointError::Endpoint),
        }
    }
}

impl FromStr for Tunnel {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let parts = parts(text).ok_or(EndpointError::Tunnel)?;
        let (bind, local, host, port) = match parts.as_slice() {
            [local, host, port] => ("localhost", local, host, port),
            [bind, local, host, port] => (*bind, local, host, port),
            _ => return Err(EndpointError::Tunnel),
        };
        let bind = match bind {
            "localhost" => Ok(IpAddr::from(Ipv4Addr::LOCALHOST)),
            bind => bind.parse().map_err(|_| EndpointError::Bind { text: bind.to_owned() }),
        };
        let local = local.parse().map_err(|_| EndpointError::LocalPort { text: (*local).to_owned() })?;
        Ok(Self { local: SocketAddr::new(bind?, local), target: Endpoint::new(host, port)? })
    }
}

/// Splits at the colons that are not within brackets, and removes the brackets.
fn parts(text: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        parts.push(part);
        if after.is_empty() {
            return Some(parts);
        }
        rest = after.strip_prefix(':')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_understood_as_ssh_writes_them() {
        let shown = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
        assert_eq!(shown("Localhost:80"), Ok("localhost:80".into()));
        assert_eq!(shown("[0:0::1]:22"), Ok("[::1]:22".into()));
        let tunnel =
            |text: &str| text.parse::<Tunnel>().map(|it| (it.local.to_string(), it.target.to_string()));
        assert_eq!(tunnel("8080:web:80"), Ok(("127.0.0.1:8080".into(), "web:80".into())));
        assert_eq!(tunnel("[::]:0:[::1]:80"), Ok(("[::]:0".into(), "[::1]:80".into())));
        assert_eq!(tunnel("0.0.0.0:1:10.0.0.1:2"), Ok(("0.0.0.0:1".into(), "10.0.0.1:2".into())));
    }

    #[test]
    fn texts_that_are_no_ports_are_refused_with_the_cause() {
        let error = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert_eq!(error("80"), EndpointError::Endpoint);
        assert_eq!(error("::1:80"), EndpointError::Endpoint);
        assert_eq!(error("[::1:80"), EndpointError::Endpoint);
        assert!(matches!(error("host:0"), EndpointError::Port { .. }));
        assert!(matches!(error("host:http"), EndpointError::Port { .. }));
        assert!(matches!(error("a b:1"), EndpointError::Host { .. }));
        assert!(matches!(error(":1"), EndpointError::Host { .. }));
        let error = |text: &str| text.parse::<Tunnel>().unwrap_err();
        assert_eq!(error("80:host"), EndpointError::Tunnel);
        assert!(matches!(error("x:host:80"), EndpointError::LocalPort { .. }));
        assert!(matches!(error("web:1:host:80"), EndpointError::Bind { .. }));
    }
}
