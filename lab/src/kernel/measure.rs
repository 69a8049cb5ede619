//! Measures mapping and filtering of a site (RFC 4787) instead of trusting its rules.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use super::{
    Lab, OBSERVERS, Site,
    error::{Error, Result},
};
use crate::{Behaviour, DependsOn, Ports};

/// Time for a packet to arrive. Only the wait for a filtered packet takes this long.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A port outside of the range from which boxes choose.
const LOCAL_PORT: u16 = 5_000;
/// Sockets that are opened to see how ports are allocated.
const SAMPLES: usize = 8;

/// Two observers with two sockets each.
struct Observers([[UdpSocket; 2]; 2]);

impl Observers {
    fn new(lab: &Lab) -> Result<Self> {
        let [one, two] = OBSERVERS.map(IpAddr::from);
        let open = || io::Result::Ok([[bind(one, 0)?, bind(one, 0)?], [bind(two, 0)?, bind(two, 0)?]]);
        Ok(Self(lab.wan.inside(open)?.map_err(unmeasured)?))
    }

    /// Sends from `local` to an observer and returns the source that the observer sees.
    fn see(&self, local: &UdpSocket, address: usize, port: usize) -> io::Result<SocketAddr> {
        let observer = &self.0[address][port];
        local.send_to(b"?", observer.local_addr()?)?;
        let (_, seen) = observer.recv_from(&mut [0; 8])?;
        Ok(seen)
    }
}

/// Measures a site of this lab.
pub fn behaviour(lab: &Lab, site: &Site) -> Result<Behaviour> {
    let observers = Observers::new(lab)?;
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let open = || {
        let samples = (0..SAMPLES).map(|_| bind(any, 0)).collect::<io::Result<Vec<_>>>()?;
        io::Result::Ok((bind(any, LOCAL_PORT)?, bind(any, LOCAL_PORT + 1)?, samples))
    };
    let (local, fresh, samples) = site.host.inside(open)?.map_err(unmeasured)?;
    let measure = || {
        io::Result::Ok(Behaviour {
            mapping: mapping(&observers, &local)?,
            filtering: filtering(&observers, &fresh)?,
            ports: ports(&observers, &samples)?,
        })
    };
    measure().map_err(unmeasured)
}

fn unmeasured(error: io::Error) -> Error {
    Error::new("a NAT cannot be measured", error)
}

fn mapping(observers: &Observers, local: &UdpSocket) -> io::Result<DependsOn> {
    let first = observers.see(local, 0, 0)?;
    let other_port = observers.see(local, 0, 1)?;
    let other_address = observers.see(local, 1, 0)?;
    Ok(match (first == other_port, first == other_address) {
        (true, true) => DependsOn::Nothing,
        (true, false) => DependsOn::Address,
        _ => DependsOn::AddressAndPort,
    })
}

/// Contacts one endpoint, lets three send, and returns those that get through.
fn filtering(observers: &Observers, local: &UdpSocket) -> io::Result<DependsOn> {
    let seen = observers.see(local, 0, 0)?;
    let [[contacted, other_port], [other_address, _]] = &observers.0;
    let mut heard = [false; 2];
    // The contacted endpoint's own packet is sent last and so comes last; three rounds, in case it
    // overtakes.
    for _ in 0..3 {
        for (socket, word) in [(other_port, b"p"), (other_address, b"a"), (contacted, b"!")] {
            socket.send_to(word, seen)?;
        }
        loop {
            let mut word = [0; 8];
            local.recv_from(&mut word)?;
            match word[0] {
                b'p' => heard[0] = true,
                b'a' => heard[1] = true,
                _ => break,
            }
        }
    }
    Ok(match heard {
        [true, true] => DependsOn::Nothing,
        [true, false] => DependsOn::Address,
        _ => DependsOn::AddressAndPort,
    })
}

fn ports(observers: &Observers, samples: &[UdpSocket]) -> io::Result<Ports> {
    let see = |socket: &UdpSocket| {
        io::Result::Ok((socket.local_addr()?.port(), observers.see(socket, 0, 0)?.port()))
    };
    let seen: Vec<(u16, u16)> = samples.iter().map(see).collect::<io::Result<_>>()?;
    Ok(if seen.iter().all(|(local, given)| local == given) {
        Ports::Kept
    } else if seen.windows(2).all(|pair| pair[1].1 == pair[0].1.wrapping_add(1)) {
        Ports::Sequential
    } else {
        Ports::Scattered
    })
}

fn bind(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, port))?;
    socket.set_read_timeout(Some(ARRIVAL_TIMEOUT))?;
    Ok(socket)
}
