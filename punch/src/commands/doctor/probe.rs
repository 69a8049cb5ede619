//! Datagrams and connections of `punch doctor` to a coordinator that did not answer the node.
//!
//! The node knows no more than that its handshake timed out. The operating system tells whether it
//! let the datagrams out, and whether a message came back that nobody listens there.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use libp2p_punch_node::{Multiaddr, multiaddr::Protocol};
use rand::Rng;
use tokio::{
    net::{TcpStream, UdpSocket, lookup_host},
    time::{sleep, timeout},
};

/// Time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Time from one datagram to the next: one may get lost.
const REPEAT_INTERVAL: Duration = Duration::from_millis(400);
/// Smallest datagram of a QUIC handshake (RFC 9000 §14.1). Servers answer no smaller ones
/// (§5.2.2).
const LEN: usize = 1_200;
/// Version of QUIC that no server has (RFC 9000 §15). It is answered by the list of versions.
const NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
/// Length of each connection ID.
const ID_LEN: usize = 8;

/// Answer to datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UdpAnswer {
    /// A QUIC server answered.
    Server,
    /// A message came back that nobody listens at the port.
    Refused,
    /// The operating system of this machine did not let the datagrams out.
    Forbidden,
    /// This machine, or a router, knows no way to the address.
    NoRoute,
    /// No datagram was sent, for another reason of this machine.
    NotSent(String),
    /// Nothing came back.
    Silence,
}

/// Answers of the address of a coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Probe {
    /// The name in the address has no IP address.
    NoSuchName {
        /// The name.
        name: String,
        /// The cause.
        cause: String,
    },
    /// The address was probed.
    Answers {
        /// Answer to datagrams.
        udp: UdpAnswer,
        /// True if a TCP connection was accepted or refused: the machine is there.
        tcp: bool,
    },
}

/// Probes an address of the form `/ip4/…/udp/PORT`, or with a name. Returns `None` for others.
pub(super) async fn probe(address: &Multiaddr) -> Option<Probe> {
    let remote = match resolve(address).await? {
        Ok(remote) => remote,
        Err(failure) => return Some(failure),
    };
    let (udp, tcp) = tokio::join!(ask_server(remote), is_answered_by_tcp(remote));
    Some(Probe::Answers { udp, tcp })
}

async fn resolve(address: &Multiaddr) -> Option<Result<SocketAddr, Probe>> {
    let mut parts = address.iter();
    let host = parts.next()?;
    let Protocol::Udp(port) = parts.next()? else { return None };
    let name = match host {
        Protocol::Ip4(ip) => return Some(Ok((ip, port).into())),
        Protocol::Ip6(ip) => return Some(Ok((ip, port).into())),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
        _ => return None,
    };
    let no_such_name = |cause| Probe::NoSuchName { name: name.clone(), cause };
    Some(match lookup_host((name.as_str(), port)).await {
        Ok(mut addresses) => addresses.next().ok_or_else(|| no_such_name("it has no address".into())),
        Err(error) => Err(no_such_name(error.to_string())),
    })
}

/// Asks a QUIC server for its versions.
async fn ask_server(remote: SocketAddr) -> UdpAnswer {
    let (datagram, id) = question();
    let exchange = async {
        let any: IpAddr =
            if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(remote).await?;
        let sending = async {
            loop {
                if let Err(error) = socket.send(&datagram).await {
                    return error;
                }
                sleep(REPEAT_INTERVAL).await;
            }
        };
        let receiving = async {
            let mut buffer = [0; LEN];
            loop {
                let len = socket.recv(&mut buffer).await?;
                if buffer.get(..len).is_some_and(|answer| is_version_negotiation(answer, &id)) {
                    return io::Result::Ok(());
                }
            }
        };
        tokio::select! {
            error = sending => Err(error),
            answered = receiving => answered,
        }
    };
    match timeout(ANSWER_TIMEOUT, exchange).await {
        Err(_) => UdpAnswer::Silence,
        Ok(Ok(())) => UdpAnswer::Server,
        Ok(Err(error)) => answer_of(&error),
    }
}

/// Returns the answer that an error of a socket tells.
fn answer_of(error: &io::Error) -> UdpAnswer {
    match error.kind() {
        ErrorKind::ConnectionRefused => UdpAnswer::Refused,
        ErrorKind::PermissionDenied => UdpAnswer::Forbidden,
        ErrorKind::NetworkUnreachable
        | ErrorKind::HostUnreachable
        | ErrorKind::AddrNotAvailable
        | ErrorKind::NetworkDown => UdpAnswer::NoRoute,
        _ => UdpAnswer::NotSent(error.to_string()),
    }
}

/// Returns the first packet of a connection of no version (RFC 8999 §5.1), and its source
/// connection ID.
fn question() -> (Vec<u8>, [u8; ID_LEN]) {
    let ids: [[u8; ID_LEN]; 2] = rand::rng().random();
    let mut datagram = vec![0xc0];
    datagram.extend(NO_VERSION);
    for id in ids {
        datagram.push(ID_LEN as u8);
        datagram.extend(id);
    }
    datagram.resize(LEN, 0);
    (datagram, ids[1])
}

/// Returns true for the list of versions of a server, addressed to this connection ID
/// (RFC 8999 §6).
fn is_version_negotiation(packet: &[u8], id: &[u8; ID_LEN]) -> bool {
    let [first, 0, 0, 0, 0, len, rest @ ..] = packet else { return false };
    first & 0x80 != 0 && usize::from(*len) == ID_LEN && rest.starts_with(id)
}

async fn is_answered_by_tcp(remote: SocketAddr) -> bool {
    match timeout(ANSWER_TIMEOUT, TcpStream::connect(remote)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_versions_for_another_connection_is_no_answer() {
        let (question, id) = question();
        assert_eq!(question.len(), LEN);
        let answer = |to: [u8; ID_LEN]| [&[0x80, 0, 0, 0, 0, 8][..], &to, &[8, 0]].concat();
        assert!(is_version_negotiation(&answer(id), &id));
        assert!(!is_version_negotiation(&answer([0; ID_LEN]), &id));
        assert!(!is_version_negotiation(&question, &id));
        assert!(!is_version_negotiation(&[], &id));
    }

    #[test]
    fn a_machine_that_has_no_socket_left_is_not_taken_for_silence() {
        let answer = answer_of(&io::Error::other("too many open files"));
        assert_eq!(answer, UdpAnswer::NotSent("too many open files".into()));
        assert_eq!(answer_of(&ErrorKind::PermissionDenied.into()), UdpAnswer::Forbidden);
        assert_eq!(answer_of(&ErrorKind::HostUnreachable.into()), UdpAnswer::NoRoute);
    }

    #[tokio::test]
    async fn a_closed_port_of_this_machine_is_refused() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let address = format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap();
        assert_eq!(probe(&address).await, Some(Probe::Answers { udp: UdpAnswer::Refused, tcp: true }));
    }

    #[tokio::test]
    async fn an_address_over_tcp_is_not_probed() {
        assert_eq!(probe(&"/ip4/127.0.0.1/tcp/1".parse().unwrap()).await, None);
    }
}
