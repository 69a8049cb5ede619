//! Cost of the protocol core, without any I/O: `cargo bench --bench core`.
//!
//! Besides criterion's figures it prints the memory of sessions, as the growth of the resident set
//! (Linux).

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test is a caller")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BatchSize, Criterion};
use libp2p_identity::{Keypair, PeerId};
use libp2p_punch_proto::{
    ControlStreamId, SessionId, SocketId,
    candidate::{Candidate, CandidateKind},
    command::Command,
    config::{Config, Disclosure, Role},
    endpoint::Endpoint,
    wire::{
        frame::{Frame, PunchAnswer, PunchMeNow, PunchRequest, Registration},
        keys::ProbeSecret,
    },
};

/// The only link of every endpoint here is to a coordinator, or from a peer if it is one itself.
const LINK: ControlStreamId = ControlStreamId(1);
const SESSIONS: usize = 1_000;

fn keypair(n: usize) -> Keypair {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&n.to_be_bytes());
    seed[31] = 1;
    Keypair::ed25519_from_bytes(seed).expect("32 bytes make a key")
}

fn candidate(n: usize) -> Candidate {
    let [_, _, _, _, _, _, high, low] = n.to_be_bytes();
    let address = ([198, 51, high, low], 4001).into();
    Candidate { sequence: 0, kind: CandidateKind::ServerReflexive, priority: 1_694_498_815, address }
}

fn endpoint(role: Role, n: usize, now: Instant) -> Endpoint {
    let mut endpoint = Endpoint::new(&Config { role, ..Config::default() }, keypair(n), [7; 32], 0);
    endpoint.handle_interface_up([203, 0, 113, 9].into(), 24, now);
    endpoint.handle_socket_up(SocketId(0), ([0, 0, 0, 0], 4001).into(), true, now);
    endpoint
}

fn registration(n: usize) -> (Registration, Candidate) {
    let (secret, candidate) = (ProbeSecret::new([n as u8; 32]), candidate(n));
    let lifetime = Duration::from_secs(3600);
    let signed = Registration::sign(&keypair(n), 1, lifetime, secret.public(), &[candidate], Bytes::new());
    (signed.expect("an Ed25519 key signs"), candidate)
}

fn drain(endpoint: &mut Endpoint) -> usize {
    let mut outputs = 0;
    outputs += std::iter::from_fn(|| endpoint.poll_transmit()).map(black_box).count();
    outputs += std::iter::from_fn(|| endpoint.poll_command()).map(black_box).count();
    outputs += std::iter::from_fn(|| endpoint.poll_frame()).map(black_box).count();
    outputs + std::iter::from_fn(|| endpoint.poll_event()).map(black_box).count()
}

/// A coordinator with one registered peer, and a request for it of each of `initiators` others.
fn coordinator(initiators: usize, now: Instant) -> (Endpoint, Vec<(ControlStreamId, Frame)>) {
    let mut endpoint = endpoint(Role::Server, 0, now);
    let responder = keypair(1).public().to_peer_id();
    let remote = |n: usize| Some(candidate(n).address);
    endpoint.handle_link_up(LINK, responder, remote(1), Some(SocketId(0)), now);
    let (registration, registered) = registration(1);
    endpoint.handle_frame(LINK, Frame::AddAddress(registered), now);
    endpoint.handle_frame(LINK, Frame::Register { registration, disclosure: Disclosure::ToAll }, now);
    let requests = (2..initiators + 2).map(|n| {
        let (keypair, link) = (keypair(n), ControlStreamId(n as u64));
        endpoint.handle_link_up(link, keypair.public().to_peer_id(), remote(n), Some(SocketId(0)), now);
        let request = PunchRequest {
            session: SessionId((n as u128).to_be_bytes()),
            round: 0,
            initiator: keypair.public().encode_protobuf().into(),
            responder,
            lifetime: Duration::from_secs(10),
            probe_key: [1; 32],
            candidates: vec![candidate(n)],
            nat: Bytes::new(),
            first_flight: vec![Bytes::from_static(&[0xc0; 1200])],
        };
        let signature = request.sign(&keypair).expect("an Ed25519 key signs");
        (link, Frame::PunchMeNow(Box::new(PunchMeNow { request, signature, observed: None })))
    });
    let requests = requests.collect();
    drain(&mut endpoint);
    (endpoint, requests)
}

/// An initiator that punches towards peers of which none answers.
fn punching(answers: &[(PeerId, Registration, Candidate)], now: Instant) -> Endpoint {
    let mut endpoint = endpoint(Role::Client, 1 << 20, now);
    let coordinator = keypair(0).public().to_peer_id();
    endpoint.add_coordinator(coordinator, now);
    let remote = Some(([203, 0, 113, 1], 4001).into());
    endpoint.handle_link_up(LINK, coordinator, remote, Some(SocketId(0)), now);
    for (peer, registration, candidate) in answers {
        endpoint.connect(*peer, now).expect("there is room");
        while let Some(command) = endpoint.poll_command() {
            if let Command::Connect { flow, .. } = command {
                endpoint.handle_first_flight(flow, vec![Bytes::from_static(&[0xc0; 1200])], now);
            }
        }
        while let Some((link, frame)) = endpoint.poll_frame() {
            let Frame::PunchMeNow(asked) = frame else { continue };
            let answer = PunchAnswer {
                session: asked.request.session,
                round: asked.request.round,
                registration: registration.clone(),
                candidates: vec![*candidate],
                observed: Some(candidate.address),
            };
            endpoint.handle_frame(link, Frame::PunchAnswer(Box::new(answer)), now);
        }
        drain(&mut endpoint);
    }
    endpoint
}

/// Runs the endpoint's timers for `span`; how many outputs they gave.
fn run(endpoint: &mut Endpoint, from: Instant, span: Duration) -> usize {
    let mut outputs = 0;
    while let Some(at) = endpoint.poll_timeout().filter(|at| *at <= from + span) {
        endpoint.handle_timeout(at);
        outputs += drain(endpoint);
    }
    outputs
}

fn answers(sessions: usize) -> Vec<(PeerId, Registration, Candidate)> {
    (1..=sessions)
        .map(|n| {
            let (registration, candidate) = registration(n);
            (keypair(n).public().to_peer_id(), registration, candidate)
        })
        .collect()
}

/// The resident set, in bytes.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

fn report_memory(now: Instant) {
    const MANY: usize = 10_000;
    let answers = answers(MANY);
    let before = resident();
    let endpoint = punching(&answers, now);
    if let (Some(before), Some(after)) = (before, resident()) {
        let each = after.saturating_sub(before) / MANY;
        println!("memory of one of {} punching sessions: {each} B", endpoint.sessions());
    }
}

fn main() {
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let start = Instant::now();
    report_memory(start);

    let (mut endpoint, requests) = coordinator(10_000, start);
    let (mut now, mut requests) = (start, requests.iter().cycle());
    criterion.bench_function("coordinator/request", |bencher| {
        bencher.iter(|| {
            // Each of them asks as fast as the coordinator's limits let it.
            now += Duration::from_micros(2);
            let Some((link, frame)) = requests.next() else { return };
            endpoint.handle_frame(*link, frame.clone(), now);
            assert!(drain(&mut endpoint) >= 2, "an answer and a request passed on");
        });
    });

    let answers = answers(SESSIONS);
    criterion.bench_function("endpoint/1000 sessions punch for 4 s unanswered", |bencher| {
        bencher.iter_batched_ref(
            || punching(&answers, start),
            |endpoint| run(endpoint, start, Duration::from_secs(4)),
            BatchSize::PerIteration,
        );
    });
    criterion.final_summary();
}
