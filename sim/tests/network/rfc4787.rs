//! Gateways do what RFC 4787 calls the behaviour that they are configured with, seen from outside.

use std::{net::SocketAddr, sync::Arc};

use crate::support::{Observers, ms, socket, within_a_second};
use libp2p_punch_sim::{
    Filtering::{self, *},
    Hairpin, Mapping, Nat, Ports, Socket, Verdict, World,
};

const OUTER: [u8; 4] = [198, 51, 100, 1];

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] = [EndpointIndependent, AddressDependent, AddressAndPortDependent];

/// One client behind one NAT, and the observers.
fn behind(nat: Nat) -> (World, Observers, Arc<Socket>) {
    let world = World::new(7);
    let observers = Observers::new(&world);
    let client = socket(&world.nat(nat, OUTER).host([192, 168, 1, 2]), 5000);
    (world, observers, client)
}

async fn measured_mapping(observers: &Observers, client: &Socket) -> Mapping {
    let first = observers.sees(client, 0, 0).await;
    let other_port = observers.sees(client, 0, 1).await;
    let other_address = observers.sees(client, 1, 0).await;
    assert_eq!(observers.sees(client, 0, 0).await, first, "a mapping stays");
    match (other_port == first, other_address == first) {
        (true, true) => Mapping::EndpointIndependent,
        (true, false) => Mapping::AddressDependent,
        (false, false) => Mapping::AddressAndPortDependent,
        (false, true) => panic!("no mapping of RFC 4787"),
    }
}

async fn measured_filtering(observers: &Observers, client: &Socket) -> Filtering {
    let external = observers.sees(client, 0, 0).await;
    for (name, (address, port)) in [(0, 0), (0, 1), (1, 0)].into_iter().enumerate() {
        observers.0[address][port].1.send_to(external, &[name as u8]);
    }
    let arrived: Vec<_> = within_a_second(client).await.iter().map(|datagram| datagram.payload[0]).collect();
    match arrived.as_slice() {
        [0, 1, 2] => EndpointIndependent,
        [0, 1] => AddressDependent,
        [0] => AddressAndPortDependent,
        other => panic!("no filtering of RFC 4787: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn every_mapping_and_filtering_is_measured_as_configured() {
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            for ports in [Ports::Preserving, Ports::Sequential { step: 1 }, Ports::Random, Ports::Hashed] {
                let nat = Nat { ports, ..Nat::new(mapping, filtering) };
                let (_world, observers, client) = behind(nat.clone());
                assert_eq!(measured_filtering(&observers, &client).await, filtering, "{nat:?}");
                let (_world, observers, client) = behind(nat.clone());
                assert_eq!(measured_mapping(&observers, &client).await, mapping, "{nat:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_preserved_port_goes_to_the_first_and_the_second_gets_another() {
    let world = World::new(1);
    let observers = Observers::new(&world);
    let gateway = world.nat(Nat::default(), OUTER);
    let [first, second] = [2, 3].map(|last| socket(&gateway.host([192, 168, 1, last]), 5000));
    assert_eq!(observers.sees(&first, 0, 0).await.port(), 5000);
    let other = observers.sees(&second, 0, 0).await.port();
    assert_ne!(other, 5000);
    assert_eq!(observers.sees(&second, 1, 1).await.port(), other);
}

#[tokio::test(start_paused = true)]
async fn sequential_ports_advance_by_the_step_pass_over_taken_ones_and_go_around() {
    let mapping = Mapping::AddressAndPortDependent;
    let nat =
        Nat { ports: Ports::Sequential { step: 2 }, port_range: 6000..=6005, mapping, ..Nat::default() };
    let world = World::new(1);
    let observers = Observers::new(&world);
    let gateway = world.nat(nat, OUTER);
    let client = socket(&gateway.host([192, 168, 1, 2]), 5000);
    gateway.forward(6002, ([192, 168, 1, 9], 80).into());
    let mut ports = Vec::new();
    for (address, port) in [(0, 0), (0, 1)] {
        ports.push(observers.sees(&client, address, port).await.port());
    }
    // Round to 6000, which is taken, like every even one: then the odd ones, one by one.
    for (address, port) in [(1, 0), (1, 1)] {
        ports.push(observers.sees(&client, address, port).await.port());
    }
    assert_eq!(ports, [6000, 6004, 6001, 6003]);
}

#[tokio::test(start_paused = true)]
async fn random_ports_lie_in_the_range_and_do_not_follow_each_other() {
    let (_world, observers, client) = behind(Nat { port_range: 20000..=29999, ..Nat::random() });
    let mut ports = Vec::new();
    for (address, port) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        ports.push(observers.sees(&client, address, port).await.port());
    }
    assert!(ports.iter().all(|port| (20000..=29999).contains(port)), "{ports:?}");
    assert!(ports.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 8), "{ports:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hashed_port_is_not_the_internal_one_but_comes_back_after_expiry() {
    let nat = Nat { ports: Ports::Hashed, port_range: 40000..=48191, ..Nat::default() };
    let lifetime = nat.lifetime;
    let (_world, observers, client) = behind(nat);
    let first = observers.sees(&client, 0, 0).await;
    assert!((40000..=48191).contains(&first.port()));
    tokio::time::sleep(lifetime).await;
    assert_eq!(observers.sees(&client, 1, 1).await, first);
}

#[tokio::test(start_paused = true)]
async fn a_full_table_drops_new_flows_until_old_ones_expire() {
    let nat = Nat { capacity: Some(2), ..Nat::random() };
    let lifetime = nat.lifetime;
    let (world, observers, client) = behind(nat);
    observers.sees(&client, 0, 0).await;
    observers.sees(&client, 0, 1).await;
    client.send_to(observers.0[1][0].0, b"one too many");
    assert!(within_a_second(&observers.0[1][0].1).await.is_empty());
    assert_eq!(world.stats().of(Verdict::TableFull), 1);
    tokio::time::sleep(lifetime).await;
    observers.sees(&client, 1, 0).await;
}

/// Returns true if the first observer reaches `external`.
async fn reaches(observers: &Observers, external: SocketAddr, client: &Socket) -> bool {
    observers.0[0][0].1.send_to(external, b"still there?");
    !within_a_second(client).await.is_empty()
}

#[tokio::test(start_paused = true)]
async fn a_mapping_dies_after_its_lifetime_without_outbound_traffic() {
    let nat = Nat { lifetime: ms(30_000), ..Nat::new(Mapping::EndpointIndependent, EndpointIndependent) };
    let (world, observers, client) = behind(nat);
    let external = observers.sees(&client, 0, 0).await;
    tokio::time::sleep(ms(20_000)).await;
    assert!(reaches(&observers, external, &client).await);
    tokio::time::sleep(ms(10_000)).await;
    assert!(!reaches(&observers, external, &client).await, "inbound traffic does not refresh");
    assert_eq!(world.stats().of(Verdict::NoMapping), 1);
}

#[tokio::test(start_paused = true)]
async fn inbound_traffic_refreshes_where_the_nat_says_so() {
    let (_world, observers, client) =
        behind(Nat { lifetime: ms(30_000), refresh_inbound: true, ..Nat::default() });
    let external = observers.sees(&client, 0, 0).await;
    for _ in 0..3 {
        tokio::time::sleep(ms(20_000)).await;
        assert!(reaches(&observers, external, &client).await);
    }
}

#[tokio::test(start_paused = true)]
async fn outbound_traffic_keeps_a_mapping_alive_but_only_the_permissions_that_it_uses() {
    for filtering in [AddressDependent, AddressAndPortDependent] {
        let nat = Nat { lifetime: ms(30_000), ..Nat::new(Mapping::EndpointIndependent, filtering) };
        let (world, observers, client) = behind(nat);
        let external = observers.sees(&client, 0, 0).await;
        tokio::time::sleep(ms(20_000)).await;
        assert_eq!(observers.sees(&client, 1, 1).await, external);
        tokio::time::sleep(ms(11_000)).await;
        assert!(!reaches(&observers, external, &client).await);
        assert_eq!(world.stats().of(Verdict::Filtered), 1);
        observers.0[1][1].1.send_to(external, b"I may");
        assert_eq!(client.receive().await.from, observers.0[1][1].0);
        for _ in 0..3 {
            tokio::time::sleep(ms(20_000)).await;
            assert_eq!(observers.sees(&client, 1, 1).await, external);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_absolute_lifetime_ends_even_a_busy_mapping_and_its_successor_lives_as_long() {
    let nat = Nat { absolute_lifetime: Some(ms(60_000)), ports: Ports::Random, ..Nat::default() };
    let world = World::new(7);
    let observers = Observers::new(&world);
    let gateway = world.nat(nat, OUTER);
    let [client, other] = [2, 3].map(|last| socket(&gateway.host([192, 168, 1, last]), 5000));
    let first = observers.sees(&client, 0, 0).await;
    tokio::time::sleep(ms(59_000)).await;
    assert_eq!(observers.sees(&client, 0, 0).await, first);
    tokio::time::sleep(ms(2_000)).await;
    let second = observers.sees(&client, 0, 0).await;
    assert_ne!(second, first);
    // A new flow, by which the table has forgotten the first mapping.
    tokio::time::sleep(ms(59_000)).await;
    observers.sees(&other, 0, 0).await;
    assert_eq!(observers.sees(&client, 0, 0).await, second);
}

#[tokio::test(start_paused = true)]
async fn without_a_firewall_an_early_packet_takes_the_port_of_its_flow_and_of_all_later_ones() {
    for early_packets_harm in [false, true] {
        let (_world, observers, client) = behind(Nat { early_packets_harm, ..Nat::default() });
        let external = observers.sees(&client, 0, 0).await;
        observers.0[1][0].1.send_to(external, b"early");
        assert_eq!(within_a_second(&client).await, [], "filtered all the same");
        assert_eq!(observers.sees(&client, 0, 1).await, external, "nothing was sent to the early one yet");
        let other = observers.sees(&client, 1, 0).await;
        assert_eq!(other == external, !early_packets_harm);
        assert_eq!(observers.sees(&client, 1, 0).await, other, "it stays");
        assert_eq!(observers.sees(&client, 1, 1).await, other, "a later flow takes the port of the newest");
        assert_eq!(observers.sees(&client, 0, 1).await, external, "an older flow keeps its own");
        observers.0[0][0].1.send_to(external, b"in time");
        assert_eq!(within_a_second(&client).await.len(), 1);
    }
    let (_world, observers, client) = behind(Nat { early_packets_harm: true, ..Nat::default() });
    let external = observers.sees(&client, 0, 0).await;
    observers.0[1][0].1.send_to(external, b"early");
    tokio::time::sleep(ms(31_000)).await;
    assert_eq!(observers.sees(&client, 1, 0).await, external, "forgotten");
}

#[tokio::test(start_paused = true)]
async fn without_a_firewall_a_packet_before_the_first_flow_harms_the_socket_and_no_other_one() {
    let world = World::new(7);
    let observers = Observers::new(&world);
    let host = world.nat(Nat { early_packets_harm: true, ..Nat::default() }, OUTER).host([192, 168, 1, 2]);
    let [client, sibling] = [5000, 5001].map(|port| socket(&host, port));
    let usual: SocketAddr = (OUTER, 5000).into();
    observers.0[0][0].1.send_to(usual, b"early");
    within_a_second(&client).await;
    let other = observers.sees(&client, 0, 0).await;
    assert_ne!(other, usual);
    assert_eq!(observers.sees(&client, 0, 1).await, other, "a later flow takes the port of the newest");
    observers.0[1][0].1.send_to(other, b"early");
    within_a_second(&client).await;
    assert_eq!(
        observers.sees(&client, 1, 0).await,
        usual,
        "the socket's own port, where the newest is taken"
    );
    assert_eq!(observers.sees(&sibling, 0, 0).await.port(), 5001);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_forgets_mappings_but_not_forwarded_ports() {
    let world = World::new(1);
    let observers = Observers::new(&world);
    let gateway = world.nat(Nat::default(), OUTER);
    let host = gateway.host([192, 168, 1, 2]);
    let [client, server] = [5000, 80].map(|port| socket(&host, port));
    gateway.forward(8080, ([192, 168, 1, 2], 80).into());
    let external = observers.sees(&client, 0, 0).await;
    assert_eq!(gateway.mappings().len(), 2);
    gateway.flush();
    assert!(!reaches(&observers, external, &client).await);
    assert!(reaches(&observers, (OUTER, 8080).into(), &server).await);
    assert_eq!(observers.sees(&server, 1, 0).await, (OUTER, 8080).into());
}

#[tokio::test(start_paused = true)]
async fn a_reply_leaves_from_the_forwarded_port_and_every_other_flow_from_a_port_of_its_own() {
    let world = World::new(1);
    let observers = Observers::new(&world);
    let gateway = world.nat(Nat::random(), OUTER);
    let server = socket(&gateway.host([192, 168, 1, 2]), 80);
    let forwarded = (OUTER, 8080).into();
    gateway.forward(8080, ([192, 168, 1, 2], 80).into());
    let before = observers.sees(&server, 0, 0).await;
    assert_ne!(before, forwarded, "a flow from inside");
    assert!(reaches(&observers, forwarded, &server).await);
    let asker = observers.0.iter().flatten().filter(|(at, _)| *at != observers.0[0][0].0);
    let mut replies = Vec::new();
    for (at, observer) in asker {
        observer.send_to(forwarded, b"hello");
        server.receive().await;
        server.send_to(*at, b"hello to you");
        replies.push(observer.receive().await.from);
    }
    assert_eq!(replies, [forwarded; 3]);
}

/// The source that a host sees when its neighbour sends to its external endpoint.
async fn hairpinned(hairpin: Hairpin) -> Option<SocketAddr> {
    let world = World::new(1);
    let observers = Observers::new(&world);
    let nat = Nat { hairpin, ..Nat::new(Mapping::EndpointIndependent, EndpointIndependent) };
    let gateway = world.nat(nat, OUTER);
    let [a, b] = [2, 3].map(|last| socket(&gateway.host([192, 168, 1, last]), 5000 + u16::from(last)));
    let external = observers.sees(&b, 0, 0).await;
    a.send_to(external, b"hello, neighbour");
    within_a_second(&b).await.first().map(|datagram| datagram.from)
}

#[tokio::test(start_paused = true)]
async fn a_hairpinning_nat_shows_the_source_that_it_is_configured_to_show() {
    assert_eq!(hairpinned(Hairpin::Off).await, None);
    assert_eq!(hairpinned(Hairpin::ExternalSource).await, Some((OUTER, 5002).into()));
    assert_eq!(hairpinned(Hairpin::InternalSource).await, Some(([192, 168, 1, 2], 5002).into()));
}
