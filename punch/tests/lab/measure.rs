//! Measures how a site maps and filters (RFC 4787), so that no NAT is trusted for what its rules claim.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use super::{Lab, OBSERVERS};

/// Long enough for a packet that will come; only a packet that never comes waits so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A port whose number the boxes that choose ports do not choose.
const LOCAL_PORT: u16 = 5_000;
/// Sockets that are opened to see how ports are allocated.
const SAMPLES: usize = 8;

/// On how much of the remote endpoint a mapping or a filter depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DependsOn {
    /// On nothing.
    Nothing,
    /// On its address.
    Address,
    /// On its address and port.
    AddressAndPort,
}

/// In which order external ports are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// The internal port is kept.
    Kept,
    /// Each mapping gets the next port.
    Sequential,
    /// No order is seen.
    Scattered,
}

/// What was measured at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behaviour {
    /// RFC 4787 §4.1.
    pub(crate) mapping: DependsOn,
    /// RFC 4787 §5.
    pub(crate) filtering: DependsOn,
    /// RFC 4787 §4.2.
    pub(crate) ports: Ports,
}

/// Two observers with two sockets each.
struct Observers([[UdpSocket; 2]; 2]);

impl Observers {
    fn new(lab: &Lab) -> Self {
        Self(lab.wan.inside(|| OBSERVERS.map(|address| [bind(address.into(), 0), bind(address.into(), 0)])))
    }

    /// Sends from `local` to an observer and returns what this one sees as the source.
    fn see(&self, local: &UdpSocket, address: usize, port: usize) -> SocketAddr {
        let observer = &self.0[address][port];
        local.send_to(b"?", observer.local_addr().expect("it is bound")).expect("the WAN is reachable");
        let (_, seen) = observer.recv_from(&mut [0; 8]).expect("a packet to the WAN arrives");
        seen
    }
}

/// Measures site number `site`.
pub(crate) fn behaviour(lab: &Lab, site: usize) -> Behaviour {
    let observers = Observers::new(lab);
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let (local, fresh, samples) = lab.sites[site].host.inside(|| {
        let samples: [UdpSocket; SAMPLES] = std::array::from_fn(|_| bind(any, 0));
        (bind(any, LOCAL_PORT), bind(any, LOCAL_PORT + 1), samples)
    });
    Behaviour {
        mapping: mapping(&observers, &local),
        filtering: filtering(&observers, &fresh),
        ports: ports(&observers, &samples),
    }
}

fn mapping(observers: &Observers, local: &UdpSocket) -> DependsOn {
    let first = observers.see(local, 0, 0);
    let other_port = observers.see(local, 0, 1);
    let other_address = observers.see(local, 1, 0);
    match (first == other_port, first == other_address) {
        (true, true) => DependsOn::Nothing,
        (true, false) => DependsOn::Address,
        _ => DependsOn::AddressAndPort,
    }
}

/// Contacts one endpoint, lets three send, and looks which of them get through.
fn filtering(observers: &Observers, local: &UdpSocket) -> DependsOn {
    let seen = observers.see(local, 0, 0);
    let [[contacted, other_port], [other_address, _]] = &observers.0;
    let mut heard = [false; 2];
    // The contacted endpoint's own packet is sent last and so comes last; three rounds, in case it overtakes.
    for _ in 0..3 {
        for (socket, word) in [(other_port, b"p"), (other_address, b"a"), (contacted, b"!")] {
            socket.send_to(word, seen).expect("the WAN can send to the site");
        }
        loop {
            let mut word = [0; 8];
            local.recv_from(&mut word).expect("the contacted endpoint gets through");
            match word[0] {
                b'p' => heard[0] = true,
                b'a' => heard[1] = true,
                _ => break,
            }
        }
    }
    match heard {
        [true, true] => DependsOn::Nothing,
        [true, false] => DependsOn::Address,
        _ => DependsOn::AddressAndPort,
    }
}

fn ports(observers: &Observers, samples: &[UdpSocket]) -> Ports {
    let given: Vec<u16> = samples.iter().map(|socket| observers.see(socket, 0, 0).port()).collect();
    let kept = samples
        .iter()
        .zip(&given)
        .all(|(socket, given)| socket.local_addr().is_ok_and(|local| local.port() == *given));
    if kept {
        Ports::Kept
    } else if given.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)) {
        Ports::Sequential
    } else {
        Ports::Scattered
    }
}

fn bind(address: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).expect("the address is ours and the port is free");
    socket.set_read_timeout(Some(PATIENCE)).expect("a read can time out");
    socket
}
