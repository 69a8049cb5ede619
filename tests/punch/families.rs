//! Peers that share a network or a public address, and IPv6 together with IPv4.

use std::{net::Ipv6Addr, sync::Arc, time::Duration};

use libp2p::{Multiaddr, Swarm, SwarmBuilder, multiaddr::Protocol, swarm::SwarmEvent};
use libp2p_punch::{Behaviour, Config, Event, Role, SessionEvent};
use libp2p_punch_sim::{Filtering, Hairpin, Host, Mapping, Nat, Ports, World};
use tokio::time::{Instant, timeout};

use crate::{
    network::{NEVER, Site, client, on_paused_time, parts, registered, run, until},
    relaying::{Seen, peer, peer_at, relay, reserved, serve, watch},
};

const V4: &str = "/ip4/0.0.0.0/udp/4001/quic-v1";
const V6: &str = "/ip6/::/udp/4001/quic-v1";
/// Time in which a relayed pair may become direct.
const PATIENCE: Duration = Duration::from_secs(60);

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
}

/// A swarm that listens on these addresses.
fn direct_peer(host: &Arc<Host>, seed: u8, config: Config, listen: &[&str]) -> Swarm<Behaviour> {
    let (keypair, transport, punch) = parts(host, seed, config);
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_behaviour(|_| punch)
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
        .with_connection_timeout(NEVER)
        .build();
    for address in listen {
        swarm.listen_on(address.parse().expect("valid")).expect("port is free");
    }
    swarm
}

/// A coordinator with an address of each family; its host and both addresses.
fn coordinator(world: &World) -> (Arc<Host>, [Multiaddr; 2]) {
    let host = world.public_host([203, 0, 113, 254]);
    world.attach(&host, v6(0xfe));
    let swarm = direct_peer(
        &host,
        254,
        {
            let mut config = Config::default();
            config.role = Role::Server;
            config
        },
        &[V4, V6],
    );
    let id = run(swarm);
    let addresses = [
        format!("/ip4/203.0.113.254/udp/4001/quic-v1/p2p/{id}"),
        format!("/ip6/{}/udp/4001/quic-v1/p2p/{id}", v6(0xfe)),
    ];
    (host, addresses.map(|address| address.parse().expect("valid")))
}

/// Two peers with these hosts and this coordinator: where the dialer reaches the listener, or why
/// it does not.
fn dial(
    world: impl FnOnce(&World) -> [Arc<Host>; 2],
    family: usize,
    listen: &[&str],
) -> Result<String, String> {
    timed_dial(world, Duration::ZERO, family, listen).map(|(remote, _)| remote)
}

/// As [`dial`], with this round-trip time between any two of the three hosts; also how long the
/// dial took.
fn timed_dial(
    world: impl FnOnce(&World) -> [Arc<Host>; 2],
    rtt: Duration,
    family: usize,
    listen: &[&str],
) -> Result<(String, Duration), String> {
    on_paused_time(async {
        let all = World::new(1);
        let hosts = world(&all);
        let (server, addresses) = coordinator(&all);
        for (x, y) in [(&hosts[0], &server), (&hosts[1], &server), (&hosts[0], &hosts[1])] {
            if !rtt.is_zero() {
                all.set_path(x, y, rtt / 2);
            }
        }
        let coordinator = addresses[family].clone();
        let config = || {
            let mut config = Config::default();
            config.coordinators = vec![coordinator.clone()];
            config
        };
        let mut listener = direct_peer(&hosts[1], 2, config(), listen);
        registered(&mut listener).await;
        let id = run(listener);
        let mut dialer = direct_peer(&hosts[0], 1, config(), listen);
        registered(&mut dialer).await;
        let begin = Instant::now();
        dialer.dial(id).expect("not dialed yet");
        let mut selected = None;
        let mut note = |event: &SwarmEvent<Event>| {
            if let SwarmEvent::Behaviour(Event::Session(SessionEvent::PathSelected { peer, path, .. })) =
                event
                && *peer == id
            {
                selected = Some(path.remote.to_string());
            }
        };
        let connected = until(&mut dialer, |event| {
            note(&event);
            match event {
                SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == id => Some(Ok(())),
                SwarmEvent::OutgoingConnectionError { peer_id: Some(who), error, .. } if who == id => {
                    Some(Err(error.to_string()))
                }
                _ => None,
            }
        });
        connected.await?;
        let took = begin.elapsed();
        // Probing goes on for a while, in search of a better path.
        let later = until(&mut dialer, |event| {
            note(&event);
            None::<()>
        });
        let _ = timeout(Duration::from_secs(10), later).await;
        Ok((selected.expect("a path was selected"), took))
    })
}

fn random() -> Nat {
    Nat {
        ports: Ports::Random,
        ..Nat::new(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
    }
}

#[test]
fn two_peers_behind_one_nat_are_connected_inside_it_whether_it_hairpins_or_not() {
    for nat in [Nat::default(), Nat { hairpin: Hairpin::Off, ..Nat::default() }, random()] {
        let reached = dial(
            |world| {
                let gateway = world.nat(nat.clone(), [198, 51, 100, 1]);
                [gateway.host([192, 168, 1, 2]), gateway.host([192, 168, 1, 3])]
            },
            0,
            &[V4],
        );
        assert_eq!(reached.as_deref(), Ok("192.168.1.3:4001"), "{nat:?}");
    }
}

#[test]
fn two_homes_behind_one_carriers_nat_are_connected_if_that_hairpins() {
    let homes = |hairpin| {
        move |world: &World| {
            let carrier = world.nat(Nat { hairpin, ..Nat::default() }, [198, 51, 100, 1]);
            [2u8, 3].map(|n| carrier.nat(Nat::default(), [100, 64, 0, n]).host([192, 168, n, 2]))
        }
    };
    let reached = dial(homes(Hairpin::ExternalSource), 0, &[V4]).expect("direct");
    assert!(reached.starts_with("198.51.100.1:"), "{reached}");
    let why = dial(homes(Hairpin::Off), 0, &[V4]).expect_err("nothing gets through");
    assert!(why.contains("no probe was answered"), "{why}");
}

#[test]
fn two_peers_behind_ipv6_firewalls_are_connected() {
    let reached = dial(|world| [1, 2].map(|n| world.firewall(Nat::default()).host(v6(n))), 1, &[V6]);
    assert_eq!(reached, Ok(format!("[{}]:4001", v6(2))));
}

#[test]
fn ipv6_gets_through_where_both_ipv4_nats_are_hopeless() {
    for family in [0, 1] {
        let reached = dial(
            |world| {
                [1u8, 2].map(|n| {
                    let gateway = world.nat(random(), [198, 51, 100, n]);
                    let host = gateway.host([192, 168, n, 2]);
                    gateway.attach(&host, v6(n.into()));
                    host
                })
            },
            family,
            &[V4, V6],
        );
        assert_eq!(reached, Ok(format!("[{}]:4001", v6(2))), "coordinator over family {family}");
    }
}

#[test]
fn a_dial_over_the_family_that_the_coordinator_does_not_see_takes_no_longer() {
    let rtt = Duration::from_millis(50);
    let host = |world: &World, n: u8| {
        let gateway = world.nat(random(), [198, 51, 100, n]);
        let host = gateway.host([192, 168, n, 2]);
        gateway.attach(&host, v6(n.into()));
        host
    };
    let (remote, took) =
        timed_dial(|world| [1, 2].map(|n| host(world, n)), rtt, 0, &[V4, V6]).expect("direct");
    assert_eq!(remote, format!("[{}]:4001", v6(2)));
    // The coordinator vouches for IPv4 only. The server's flight also goes to the IPv6 address that
    // the dialer signed.
    assert!(took <= 3 * rtt / 2 + Duration::from_millis(10), "{took:?}");
}

/// The address families that a peer has. Its IPv4 address is behind a NAT, its IPv6 address behind
/// a firewall.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Families {
    V4,
    V6,
    Both,
}

impl Families {
    fn host(self, world: &World, n: u8) -> Arc<Host> {
        let gateway = world.nat(Nat::default(), [198, 51, 100, n]);
        match self {
            Self::V4 => gateway.host([192, 168, n, 2]),
            Self::V6 => world.firewall(Nat::default()).host(v6(n.into())),
            Self::Both => {
                let host = gateway.host([192, 168, n, 2]);
                gateway.attach(&host, v6(n.into()));
                host
            }
        }
    }

    fn listen(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &[V4],
            Self::V6 => &[V6],
            Self::Both => &[V4, V6],
        }
    }

    /// The addresses of a coordinator that such a peer uses, if it knows these.
    fn usable(self, known: &[Multiaddr]) -> Vec<Multiaddr> {
        let is_usable = |address: &&Multiaddr| match address.iter().next() {
            Some(Protocol::Ip4(_)) => self != Self::V6,
            _ => self != Self::V4,
        };
        known.iter().filter(is_usable).cloned().collect()
    }
}

/// Returns how long the dial took, or why it led to no direct connection.
fn dial_between(peers: [Families; 2], known: &[usize], rtt: Duration) -> Result<Duration, String> {
    on_paused_time(async {
        let world = World::new(1);
        let hosts = [peers[0].host(&world, 1), peers[1].host(&world, 2)];
        let (server, addresses) = coordinator(&world);
        for (x, y) in [(&hosts[0], &server), (&hosts[1], &server), (&hosts[0], &hosts[1])] {
            world.set_path(x, y, rtt / 2);
        }
        let known: Vec<Multiaddr> = known.iter().map(|family| addresses[*family].clone()).collect();
        let swarm = |at: usize| {
            // A peer that reaches none of the known addresses uses the address that it can reach.
            let usable = [peers[at].usable(&known), peers[at].usable(&addresses)];
            let coordinators = usable.into_iter().find(|usable| !usable.is_empty()).expect("one family");
            let mut config = Config::default();
            config.coordinators = coordinators;
            direct_peer(&hosts[at], at as u8 + 1, config, peers[at].listen())
        };
        let (mut dialer, mut listener) = (swarm(0), swarm(1));
        registered(&mut listener).await;
        let id = run(listener);
        registered(&mut dialer).await;
        // Both have had time to be observed.
        let _ = timeout(Duration::from_secs(1), until(&mut dialer, |_| None::<()>)).await;
        let begin = Instant::now();
        dialer.dial(id).expect("not dialed yet");
        until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == id => Some(Ok(begin.elapsed())),
            SwarmEvent::OutgoingConnectionError { peer_id: Some(who), error, .. } if who == id => {
                Some(Err(error.to_string()))
            }
            _ => None,
        })
        .await
    })
}

#[test]
fn a_dual_stack_peer_and_any_other_are_connected_whichever_family_leads_to_the_coordinator() {
    let rtt = Duration::from_millis(50);
    let limit = 3 * rtt / 2 + Duration::from_millis(10);
    let mut failed = Vec::new();
    for known in [&[0][..], &[1], &[0, 1]] {
        for other in [Families::V4, Families::V6, Families::Both] {
            for peers in [[Families::Both, other], [other, Families::Both]] {
                match dial_between(peers, known, rtt) {
                    Ok(took) if took <= limit => println!("{peers:?} {known:?}: {took:?}"),
                    result => failed.push(format!("{peers:?} {known:?}: {result:?}")),
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} of 18 dials: {failed:#?}", failed.len());
}

#[test]
fn a_peer_with_ipv4_only_and_one_with_ipv6_only_are_connected_over_a_relay_that_has_both() {
    on_paused_time(async {
        let world = World::new(1);
        let (host, relay4, _) = relay(&world, 254);
        world.attach(&host, v6(0xfe));
        let id = relay4.iter().last().expect("it has parts");
        let relay6 =
            format!("/ip6/{}/udp/4001/quic-v1", v6(0xfe)).parse::<Multiaddr>().expect("valid").with(id);
        let listener = world.firewall(Nat::default()).host(v6(2));
        let mut listener = peer_at(&listener, 2, client(&relay6));
        listener.listen_on(V6.parse().expect("valid")).expect("port is free");
        reserved(&mut listener).await;
        let listener = serve(listener, Duration::ZERO);
        let mut dialer = peer(&world, Site::EIM_APDF, 1, client(&relay4));
        reserved(&mut dialer).await;
        dialer.dial(listener).expect("not dialed yet");
        dialer.behaviour_mut().echo.send_request(&listener, "hello".to_owned());
        let seen = watch(&mut dialer, listener, PATIENCE).await;
        assert!(seen.iter().any(|seen| matches!(seen, Seen::Connected { relayed: true, .. })), "{seen:#?}");
        assert!(!seen.iter().any(|seen| matches!(seen, Seen::Connected { relayed: false, .. })), "{seen:#?}");
        assert!(seen.contains(&Seen::Echoed(Ok("hello".to_owned()))), "{seen:#?}");
    });
}
