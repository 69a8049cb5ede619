//! NATs that give up mappings in use, as those of some carriers do every minute.

use std::{sync::Arc, time::Duration};

use libp2p::swarm::SwarmEvent;
use libp2p_punch::{Event, NatEvent, SessionEvent};
use libp2p_punch_proto::nat::IdleLifetime;
use libp2p_punch_sim::{Filtering, Host, Mapping, Nat, Ports, World};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    moving::{ApplicationEvent, exchange, exchange_of, two_on},
    network::{client, coordinator, on_paused_time, registered, swarm, until},
};

/// Longest delay of a message beyond the usual 66 ms, once the lifetime of mappings is known.
const PATIENCE: Duration = Duration::from_millis(40);
/// Longest stall of an unexpected loss: a second or a little more of silence, half a second between
/// two checks, and the message to the peer.
const SILENCE: Duration = Duration::from_millis(2_200);
/// An idle connection to a coordinator sends something every 5 s, which shows it our new address;
/// it looks once a second. Until then not even the coordinator can reach us.
const IDLE: Duration = Duration::from_millis(6_500);
/// Time by which each side has lost one mapping.
const LEARNED: u64 = 100;

fn site(world: &World, number: u8, lifetime: u64) -> Arc<Host> {
    let absolute_lifetime = Some(Duration::from_secs(lifetime));
    let nat = Nat { ports: Ports::Random, absolute_lifetime, ..Nat::default() };
    world.nat(nat, [198, 51, 100, number]).host([192, 168, number, 2])
}

#[test]
fn a_session_outlives_the_mappings_of_both_sides_and_soon_without_a_stall() {
    on_paused_time(async {
        let world = World::new(1);
        let (mut dialer, peer, _) = two_on(&world, [site(&world, 1, 60), site(&world, 2, 73)]).await;
        let start = Instant::now();
        let (mut first, mut later) = (Duration::ZERO, Vec::new());
        for second in 0..600 {
            let next = start + Duration::from_secs(second);
            // A swarm makes progress only while it is polled.
            let nothing = timeout_at(next, until(&mut dialer, |_| None::<()>)).await;
            assert!(nothing.is_err());
            // The test ends if the connection does.
            let took = exchange(&mut dialer, peer, 0).await;
            match start.elapsed().as_secs() {
                ..LEARNED => first = first.max(took),
                _ => later.push(took),
            }
        }
        later.sort();
        let (usual, slowest) = (later[later.len() / 2], later[later.len() - 1]);
        assert!(slowest - usual <= PATIENCE, "{usual:?}, {slowest:?}");
        println!("at first {first:?}, later {slowest:?}, usually {usual:?}");
        assert!(first <= IDLE, "{first:?}");
        // Each side moves before each of its mappings ends.
        assert!(dialer.behaviour().punch.counters().protocol.renewals >= 500 / 60);
        let lifetime = dialer.behaviour().punch.nat_report().mapping_lifetime.as_ref().unwrap().value;
        assert!((54..=66).contains(&lifetime.as_secs()), "{lifetime:?}");
    });
}

#[test]
fn a_client_that_only_idles_learns_its_new_address_within_seconds() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let mut client = swarm(&site(&world, 1, 60), 1, client(&address), |punch, _| punch);
        registered(&mut client).await;
        let mut seen = Vec::new();
        let begin = Instant::now();
        while seen.len() < 4 {
            let at = until(&mut client, |event| match event {
                SwarmEvent::Behaviour(Event::Nat(NatEvent::Observed { address, .. })) => Some(address),
                _ => None,
            });
            seen.push((at.await, begin.elapsed()));
        }
        for pair in seen.windows(2) {
            assert_ne!(pair[0].0, pair[1].0);
            let stood = pair[1].1 - pair[0].1;
            assert!(stood < Duration::from_secs(60) + IDLE, "{seen:?}");
        }
    });
}

/// Restarts a NAT in the middle of a transfer, and returns the difference between the slowest
/// message and the usual message.
fn reboot(which: usize) -> Duration {
    on_paused_time(async {
        let world = World::new(1);
        let gateways = [1, 2]
            .map(|number| world.nat(Nat { ports: Ports::Random, ..Nat::default() }, [198, 51, 100, number]));
        let hosts = [0, 1].map(|n| gateways[n].host([192, 168, n as u8 + 1, 2]));
        let (mut dialer, peer, _) = two_on(&world, hosts).await;
        let mut times = Vec::new();
        for number in 0..60 {
            if number == 30 {
                gateways[which].flush();
            }
            times.push(exchange(&mut dialer, peer, number).await);
        }
        times.sort();
        times[59] - times[30]
    })
}

#[test]
fn a_session_outlives_a_reboot_of_either_nat_by_noticing_that_nobody_answers() {
    for which in [0, 1] {
        let stall = reboot(which);
        println!("{which}: {stall:?}");
        assert!(stall <= SILENCE, "{which}: {stall:?}");
    }
}

/// Exchanges short messages, each answered before the next is sent a while later. The listener
/// sends nothing by itself, and would not notice that its answers are lost.
fn interrupted_talk(dialer: Nat, which: usize, pause: Duration) -> Duration {
    on_paused_time(async {
        let world = World::new(1);
        let listener = Nat { ports: Ports::Random, ..Nat::default() };
        let gateways = [world.nat(dialer, [198, 51, 100, 1]), world.nat(listener, [198, 51, 100, 2])];
        let hosts = [0, 1].map(|n| gateways[n].host([192, 168, n as u8 + 1, 2]));
        let (mut dialer, peer, _) = two_on(&world, hosts).await;
        let mut times = Vec::new();
        for number in 0..60 {
            if number == 30 {
                gateways[which].flush();
            }
            times.push(exchange_of(64, &mut dialer, peer, number).await);
            let _ = timeout(pause, until(&mut dialer, |_| None::<()>)).await;
        }
        times[30..].iter().max().copied().unwrap_or_default()
    })
}

#[test]
fn a_session_whose_listener_only_answers_outlives_a_reboot_of_either_nat() {
    for filtering in
        [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent]
    {
        for (which, pause) in [(0, 100), (1, 10), (1, 100), (1, 500), (1, 1_000)] {
            let nat = Nat { ports: Ports::Random, ..Nat::new(Mapping::EndpointIndependent, filtering) };
            let took = interrupted_talk(nat, which, Duration::from_millis(pause));
            println!("{filtering:?}, {which}, every {pause} ms: {took:?}");
            assert!(
                took <= Duration::from_millis(2_000),
                "{filtering:?}, {which}, every {pause} ms: {took:?}"
            );
        }
    }
}

/// Times from the death of a path between two filters until the session is closed, and until the
/// next session is connected over a path that works again.
fn replaced(seed: u64) -> [Duration; 2] {
    on_paused_time(async {
        let world = World::new(seed);
        let easy = Nat { ports: Ports::Random, ..Nat::default() };
        let gateways = [1, 2].map(|number| world.nat(easy.clone(), [198, 51, 100, number]));
        let hosts = [0, 1].map(|n| gateways[n].host([192, 168, n as u8 + 1, 2]));
        let (mut dialer, peer, hosts) = two_on(&world, hosts).await;
        for number in 0..30 {
            exchange_of(64, &mut dialer, peer, number).await;
            let _ = timeout(Duration::from_millis(100), until(&mut dialer, |_| None::<()>)).await;
        }
        world.block(&hosts[0], &hosts[1]);
        let begin = Instant::now();
        let (mut lost, mut closed) = (false, false);
        while !closed {
            dialer.behaviour_mut().echo.send_request(&peer, "anybody there?".to_owned());
            let event = until(&mut dialer, |event| match event {
                SwarmEvent::Behaviour(ApplicationEvent::Punch(Event::Session(SessionEvent::PathLost {
                    peer: who,
                    ..
                }))) => {
                    assert_eq!(who, peer);
                    Some(false)
                }
                SwarmEvent::ConnectionClosed { peer_id, .. } if peer_id == peer => Some(true),
                _ => None,
            });
            match timeout(Duration::from_millis(100), event).await {
                Ok(true) => closed = true,
                Ok(false) => lost = true,
                Err(_) => {}
            }
        }
        assert!(lost, "the reason was told");
        let ended = begin.elapsed();
        world.unblock(&hosts[0], &hosts[1]);
        until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => Some(()),
            SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
            _ => None,
        })
        .await;
        exchange_of(64, &mut dialer, peer, 100).await;
        [ended, begin.elapsed()]
    })
}

#[test]
fn a_session_whose_path_has_died_is_closed_within_three_seconds_and_dialed_again() {
    for seed in 1..=5 {
        let [closed, again] = replaced(seed);
        println!("{seed}: closed after {closed:?}, connected again after {again:?}");
        assert!(closed <= Duration::from_secs(3), "{seed}: {closed:?}");
        assert!(again <= Duration::from_secs(10), "{seed}: {again:?}");
    }
}

/// Returns the idle lifetime in the report of a client behind a NAT with this lifetime, after six
/// minutes.
fn idle_lifetime(lifetime: u64) -> IdleLifetime {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let nat = Nat { lifetime: Duration::from_secs(lifetime), ..Nat::default() };
        let host = world.nat(nat, [198, 51, 100, 1]).host([192, 168, 1, 2]);
        let mut client = swarm(&host, 1, client(&address), |punch, _| punch);
        let _ = timeout(Duration::from_secs(360), until(&mut client, |_| None::<()>)).await;
        client.behaviour().nat_report().idle_lifetime.as_ref().expect("measured").value
    })
}

#[test]
fn how_long_a_nat_remembers_who_is_silent_is_measured() {
    for (lifetime, at_least, less_than) in [(30, 20, Some(40)), (120, 100, Some(150)), (600, 290, None)] {
        let secs = Duration::from_secs;
        let expected = IdleLifetime { at_least: secs(at_least), less_than: less_than.map(secs) };
        assert_eq!(idle_lifetime(lifetime), expected, "{lifetime} s");
    }
}
