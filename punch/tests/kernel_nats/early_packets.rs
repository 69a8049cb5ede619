//! A box without a firewall gives ports alike in the kernel and in the simulator.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use libp2p_punch_sim::{Nat, World};
use punch_lab::{
    Kind,
    kernel::{Lab, OBSERVERS},
};

use super::lab_is_possible;

/// The port of the client's socket.
const OWN: u16 = 5000;

/// There are four observers: two ports of each of two addresses.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The client sends to this observer, which notes the port from which that came.
    Send(usize),
    /// This observer sends to a port of the box: the client's own one (0), or the first, second …
    /// other one that was noted.
    Early(usize, usize),
}
use Step::{Early, Send};

/// The steps of each script, and the port that each `Send` leaves from, numbered as for `Early`.
const SCRIPTS: [(&[Step], &[usize]); 6] = [
    (&[Send(0), Send(1), Send(2), Send(3)], &[0, 0, 0, 0]),
    // One early packet costs the socket its port for that flow and all later ones.
    (&[Send(0), Early(2, 0), Send(1), Send(2), Send(3), Send(0), Send(1)], &[0, 0, 1, 1, 0, 0]),
    // Before the first flow, too.
    (&[Early(0, 0), Send(0), Send(1), Send(2)], &[1, 1, 1]),
    // The newest port is taken: the socket's own one comes back.
    (&[Early(0, 0), Send(0), Early(1, 1), Send(1), Send(2)], &[1, 0, 0]),
    // Both are taken.
    (&[Send(0), Early(1, 0), Send(1), Early(2, 0), Early(2, 1), Send(2), Send(3)], &[0, 1, 2, 2]),
    // What comes early from several, and again after the flow has begun.
    (&[Send(0), Early(1, 0), Early(2, 0), Send(1), Early(1, 0), Send(1), Send(2), Send(3)], &[0, 1, 1, 1, 1]),
];

/// The place of `port` among those seen, in their order.
fn place(seen: &mut Vec<u16>, port: u16) -> usize {
    seen.iter().position(|known| *known == port).unwrap_or_else(|| {
        seen.push(port);
        seen.len() - 1
    })
}

/// The ports that the kernel gives.
fn in_the_kernel(script: &[Step]) -> io::Result<Vec<usize>> {
    let lab = Lab::new([Kind::EimApdfBare, Kind::Public]).map_err(io::Error::other)?;
    let bind = |address: Ipv4Addr, port| {
        let socket = UdpSocket::bind((address, port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        io::Result::Ok(socket)
    };
    let [one, two] = OBSERVERS;
    let open = || [one, one, two, two].into_iter().map(|at| bind(at, 0)).collect::<io::Result<Vec<_>>>();
    let observers = lab.wan.inside(open).map_err(io::Error::other)??;
    let site = &lab.sites[0];
    let client = site.host.inside(|| bind(Ipv4Addr::UNSPECIFIED, OWN)).map_err(io::Error::other)??;
    let (mut seen, mut ports) = (vec![OWN], Vec::new());
    for step in script {
        match *step {
            Send(observer) => {
                let observer = &observers[observer];
                client.send_to(b"?", observer.local_addr()?)?;
                let (_, from) = observer.recv_from(&mut [0; 8])?;
                ports.push(place(&mut seen, from.port()));
            }
            Early(observer, port) => {
                observers[observer].send_to(b"!", (site.public, seen[port]))?;
                // It must be at the box before what follows, which takes another way.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    Ok(ports)
}

/// The ports that the simulated box gives.
async fn in_the_simulator(script: &[Step]) -> Vec<usize> {
    let world = World::new(7);
    let [one, two] = OBSERVERS.map(|address| world.public_host(IpAddr::from(address)));
    let observers = [(&one, 4001), (&one, 4002), (&two, 4001), (&two, 4002)]
        .map(|(host, port)| host.socket((Ipv4Addr::UNSPECIFIED, port).into()).expect("a free port"));
    let addresses: [SocketAddr; 4] = [(0, 4001), (0, 4002), (1, 4001), (1, 4002)]
        .map(|(address, port): (usize, u16)| (OBSERVERS[address], port).into());
    let public = Ipv4Addr::new(198, 51, 100, 2);
    let host = world.nat(Nat { early_packets_harm: true, ..Nat::default() }, public).host([192, 168, 1, 2]);
    let client = host.socket((Ipv4Addr::UNSPECIFIED, OWN).into()).expect("a free port");
    let (mut seen, mut ports) = (vec![OWN], Vec::new());
    for step in script {
        match *step {
            Send(observer) => {
                client.send_to(addresses[observer], b"?");
                ports.push(place(&mut seen, observers[observer].receive().await.from.port()));
            }
            Early(observer, port) => {
                observers[observer].send_to((public, seen[port]).into(), b"!");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    ports
}

#[tokio::test(start_paused = true)]
async fn the_simulated_box_without_a_firewall_gives_the_ports_that_the_kernel_gives() {
    for (script, expected) in SCRIPTS {
        assert_eq!(in_the_simulator(script).await, expected, "simulated: {script:?}");
    }
    if !lab_is_possible() {
        return;
    }
    for (script, expected) in SCRIPTS {
        let measured = in_the_kernel(script).expect("a lab");
        assert_eq!(measured, expected, "in the kernel: {script:?}");
    }
}
