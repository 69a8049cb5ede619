//! Peers that take all places for registrations at a coordinator.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p_identity::Keypair;
use libp2p_punch_proto::{
    ControlStreamId, SocketId,
    config::Disclosure,
    endpoint::Endpoint,
    wire::frame::{Frame, Registration, RejectReason},
};

use crate::harness::server;

struct Coordinator {
    endpoint: Endpoint,
    now: Instant,
    next_link: u64,
}

/// Outcome of a `REGISTER`.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Registered,
    Rejected(RejectReason),
}

impl Coordinator {
    fn new() -> Self {
        let now = Instant::now();
        let mut endpoint =
            Endpoint::new(&server(), Keypair::ed25519_from_bytes([1; 32]).unwrap(), [1; 32], 0);
        endpoint.handle_socket_up(SocketId(1), ([198, 51, 100, 1], 4001).into(), true, now);
        Self { endpoint, now, next_link: 0 }
    }

    /// Registers a new identity from `remote`.
    fn register(&mut self, remote: SocketAddr) -> (ControlStreamId, Answer) {
        self.next_link += 1;
        let link = ControlStreamId(self.next_link);
        let mut seed = [9; 32];
        seed[..8].copy_from_slice(&self.next_link.to_be_bytes());
        let keypair = Keypair::ed25519_from_bytes(seed).unwrap();
        let peer = keypair.public().to_peer_id();
        self.endpoint.handle_link_up(link, peer, Some(remote), Some(SocketId(1)), self.now);
        // A coordinator leaves it to initiators to verify the signature.
        let registration = Registration {
            peer: keypair.public().encode_protobuf().into(),
            generation: 1,
            lifetime: Duration::from_secs(300),
            probe_key: [7; 32],
            nat: Bytes::new(),
            signature: Bytes::from_static(&[1; 64]),
            public_signature: Bytes::from_static(&[1; 64]),
        };
        self.endpoint.handle_frame(
            link,
            Frame::Register { registration, disclosure: Disclosure::ToAll },
            self.now,
        );
        let mut answers = self.frames().into_iter().filter(|(to, _)| *to == link);
        (link, answers.next().expect("an answer").1)
    }

    fn frames(&mut self) -> Vec<(ControlStreamId, Answer)> {
        while self.endpoint.poll_transmit().is_some() || self.endpoint.poll_command().is_some() {}
        while self.endpoint.poll_event().is_some() {}
        let frames = std::iter::from_fn(|| self.endpoint.poll_frame());
        let answer = |(link, frame)| match frame {
            Frame::Registered { .. } => Some((link, Answer::Registered)),
            Frame::RegisterRejected { reason, .. } => Some((link, Answer::Rejected(reason))),
            _ => None,
        };
        frames.filter_map(answer).collect()
    }
}

#[test]
fn a_newcomer_of_another_network_is_registered_at_a_full_coordinator() {
    let mut coordinator = Coordinator::new();
    let flooder = |port: u16| SocketAddr::from(([192, 0, 2, 66], port));
    let mut accepted = 0;
    for n in 0..12_000_u16 {
        let (_, answer) = coordinator.register(flooder(1024 + n));
        accepted += usize::from(answer == Answer::Registered);
    }
    assert_eq!(accepted, 10_000);
    let mut honest = 0;
    for n in 0..200_u8 {
        let (_, answer) = coordinator.register(SocketAddr::from(([203, 0, n, 1], 4001)));
        honest += usize::from(answer == Answer::Registered);
    }
    println!("{accepted} places taken by one host, then {honest} of 200 newcomers registered");
    assert_eq!(honest, 200);
    let (_, again) = coordinator.register(flooder(60_000));
    assert_eq!(again, Answer::Rejected(RejectReason::Full));
}
