//! Networks within networks, both families, hosts that move.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use crate::support::{Observers, ms, socket, within_a_second};
use futures::{FutureExt, StreamExt};
use libp2p_punch::io::{InterfaceAddress, InterfaceEvent, Network};
use libp2p_punch_sim::{Filtering, Hairpin, Host, Mapping, Nat, Socket, Verdict, World};

const SERVER: [u8; 4] = [203, 0, 113, 9];

#[tokio::test(start_paused = true)]
async fn a_datagram_from_behind_two_nats_is_translated_twice_and_the_answer_comes_back() {
    let world = World::new(1);
    let server = socket(&world.public_host(SERVER), 80);
    let carrier = world.nat(Nat::random(), [198, 51, 100, 1]);
    let home = carrier.nat(Nat::default(), [100, 64, 0, 2]);
    let client = socket(&home.host([192, 168, 1, 2]), 5000);
    client.send_to((SERVER, 80).into(), b"up");
    let seen = server.receive().await.from;
    assert_eq!(seen, carrier.mappings()[0].external);
    assert_eq!(carrier.mappings()[0].internal, ([100, 64, 0, 2], 5000).into());
    assert_eq!(home.mappings()[0].internal, ([192, 168, 1, 2], 5000).into());
    server.send_to(seen, b"down");
    assert_eq!(client.receive().await.from, (SERVER, 80).into());
}

#[tokio::test(start_paused = true)]
async fn homes_behind_one_carrier_reach_each_other_within_it_and_by_its_hairpin() {
    let world = World::new(1);
    let observers = Observers::new(&world);
    let open = Nat::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent);
    let carrier = world.nat(Nat { hairpin: Hairpin::ExternalSource, ..open.clone() }, [198, 51, 100, 1]);
    let [a, b] = [2, 3].map(|last| {
        let home = carrier.nat(open.clone(), [100, 64, 0, last]);
        socket(&home.host([192, 168, 1, 2]), 5000 + u16::from(last))
    });
    observers.sees(&a, 0, 0).await;
    let external = observers.sees(&b, 0, 0).await;
    a.send_to(([100, 64, 0, 3], 5003).into(), b"within");
    assert_eq!(b.receive().await.from, ([100, 64, 0, 2], 5002).into());
    a.send_to(external, b"by hairpin");
    assert_eq!(b.receive().await.from, ([198, 51, 100, 1], 5002).into());
}

#[tokio::test(start_paused = true)]
async fn hosts_behind_one_nat_talk_directly_and_the_nat_makes_no_mapping() {
    let world = World::new(1);
    let gateway = world.nat(Nat::default(), [198, 51, 100, 1]);
    let [a, b] = [2, 3].map(|last| socket(&gateway.host([192, 168, 1, last]), 5000));
    let before = tokio::time::Instant::now();
    a.send_to(([192, 168, 1, 3], 5000).into(), b"hello");
    assert_eq!(b.receive().await.from, ([192, 168, 1, 2], 5000).into());
    assert_eq!(before.elapsed(), ms(1));
    assert_eq!(gateway.mappings(), []);
}

#[tokio::test(start_paused = true)]
async fn a_firewall_lets_in_only_answers_and_changes_no_address() {
    let address = |host: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, host, 0, 0, 0, 1));
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 5000));
    let world = World::new(1);
    let outside = world.public_host(address(1)).socket(any).unwrap();
    let inside = world.firewall(Nat::default()).host(address(2)).socket(any).unwrap();
    outside.send_to((address(2), 5000).into(), b"unasked");
    assert!(within_a_second(&inside).await.is_empty());
    assert_eq!(world.stats().of(Verdict::Filtered), 1);
    inside.send_to((address(1), 5000).into(), b"hello");
    assert_eq!(outside.receive().await.from, (address(2), 5000).into());
    outside.send_to((address(2), 5000).into(), b"answer");
    assert_eq!(&*inside.receive().await.payload, b"answer");
}

#[tokio::test(start_paused = true)]
async fn a_home_router_translates_ipv4_and_filters_ipv6() {
    let address = |host: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, host, 0, 0, 0, 1));
    let world = World::new(1);
    let server = world.public_host(SERVER);
    world.attach(&server, address(1));
    let router = world.nat(Nat::random(), [198, 51, 100, 1]);
    let client = router.host([192, 168, 1, 2]);
    router.attach(&client, address(2));
    for (ip, seen) in [(SERVER.into(), [198, 51, 100, 1].into()), (address(1), address(2))] {
        let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let [here, there] = [&client, &server].map(|host| host.socket((any, 5000).into()).unwrap());
        here.send_to((ip, 5000).into(), b"hello");
        let from = there.receive().await.from;
        assert_eq!(from.ip(), seen);
        there.send_to(from, b"answer");
        assert_eq!(here.receive().await.from, (ip, 5000).into());
    }
}

#[tokio::test(start_paused = true)]
async fn interfaces_are_announced_at_first_and_when_they_change() {
    let host = World::new(1).public_host(SERVER);
    let mut events = host.interfaces().unwrap();
    let mut next = || events.next().now_or_never().map(|event| event.unwrap().unwrap());
    let [old, new] = [9, 10].map(|last| InterfaceAddress { ip: [203, 0, 113, last].into(), prefix_len: 24 });
    assert_eq!(next(), Some(InterfaceEvent::Up(old)));
    assert_eq!(next(), None);
    host.renumber(SERVER, [203, 0, 113, 10]);
    assert_eq!(next(), Some(InterfaceEvent::Down(old)));
    assert_eq!(next(), Some(InterfaceEvent::Up(new)));
    host.interface_up(SERVER);
    assert_eq!(next(), Some(InterfaceEvent::Up(old)));
    assert_eq!(next(), None);
}

#[tokio::test(start_paused = true)]
async fn a_wildcard_socket_survives_a_move_from_one_nat_to_another() {
    let world = World::new(1);
    let observers = Observers::new(&world);
    let [wifi, mobile] = [1, 2].map(|last| world.nat(Nat::default(), [198, 51, 100, last]));
    let phone = wifi.host([192, 168, 1, 2]);
    let client = socket(&phone, 5000);
    assert_eq!(observers.sees(&client, 0, 0).await, ([198, 51, 100, 1], 5000).into());
    phone.interface_down([192, 168, 1, 2]);
    client.send_to(observers.0[0][0].0, b"nowhere to go");
    assert_eq!(world.stats().of(Verdict::NoRoute), 1);
    mobile.attach(&phone, [10, 0, 0, 7]);
    assert_eq!(phone.source_for(SERVER.into()).unwrap(), IpAddr::from([10, 0, 0, 7]));
    assert_eq!(observers.sees(&client, 0, 0).await, ([198, 51, 100, 2], 5000).into());
}

#[tokio::test(start_paused = true)]
async fn a_move_to_a_network_that_uses_the_same_addresses_leaves_the_old_one() {
    let world = World::new(1);
    let [home, office] = [1, 2].map(|last| world.nat(Nat::default(), [198, 51, 100, last]));
    let laptop = home.host([192, 168, 1, 2]);
    let [left, met] = [&home, &office].map(|gateway| socket(&gateway.host([192, 168, 1, 3]), 80));
    let client = socket(&laptop, 80);
    office.attach(&laptop, [192, 168, 1, 2]);
    left.send_to(([192, 168, 1, 2], 80).into(), b"gone");
    met.send_to(([192, 168, 1, 2], 80).into(), b"here");
    let arrived = within_a_second(&client).await;
    assert_eq!(arrived.iter().map(|datagram| &*datagram.payload).collect::<Vec<_>>(), [b"here"]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_a_firewall_routes_can_move_behind_another_one() {
    let address = IpAddr::from([0x2001, 0xdb8, 0, 2, 0, 0, 0, 1]);
    let outside = IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, 1]);
    let world = World::new(1);
    let bind = |host: &Host| host.socket((Ipv6Addr::UNSPECIFIED, 80).into()).unwrap();
    let server = bind(&world.public_host(outside));
    let [first, second] = [world.firewall(Nat::default()), world.firewall(Nat::default())];
    let host = first.host(address);
    let client = bind(&host);
    second.attach(&host, address);
    client.send_to((outside, 80).into(), b"hello");
    let from = server.receive().await.from;
    server.send_to(from, b"answer");
    assert_eq!(client.receive().await.from, (outside, 80).into());
    assert_eq!((first.mappings().len(), second.mappings().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_to_an_address_that_goes_down_is_lost() {
    let world = World::new(1);
    let [a, b] = [1, 2].map(|last| world.public_host([203, 0, 113, last]));
    let [sender, receiver] = [&a, &b].map(|host| socket(host, 80));
    sender.send_to(([203, 0, 113, 2], 80).into(), b"too late");
    tokio::time::sleep(ms(10)).await;
    b.interface_down([203, 0, 113, 2]);
    assert!(within_a_second(&receiver).await.is_empty());
    assert_eq!(world.stats().of(Verdict::NoRoute), 1);
}

#[tokio::test(start_paused = true)]
async fn a_source_is_on_the_link_of_the_destination_or_the_first_of_its_family() {
    let world = World::new(1);
    let host = world.public_host(SERVER);
    world.attach(&host, [192, 0, 2, 1]);
    let source_for = |to: &str| host.source_for(to.parse().unwrap()).map_err(|error| error.kind());
    assert_eq!(source_for("192.0.2.77"), Ok([192, 0, 2, 1].into()));
    assert_eq!(source_for("8.8.8.8"), Ok(SERVER.into()));
    assert_eq!(source_for("127.0.0.1"), Ok([127, 0, 0, 1].into()));
    assert_eq!(source_for("2001:db8::1"), Err(ErrorKind::NetworkUnreachable));
}

#[tokio::test(start_paused = true)]
async fn binding_follows_the_rules_of_udp() {
    let host = World::new(1).public_host(SERVER);
    let bind = |address: &str| host.socket(address.parse().unwrap());
    let error = |address: &str| bind(address).map(|_| ()).map_err(|error| error.kind());
    let wildcard = bind("0.0.0.0:80").unwrap();
    assert_eq!(error("203.0.113.9:80"), Err(ErrorKind::AddrInUse));
    assert_eq!(error("203.0.113.8:81"), Err(ErrorKind::AddrNotAvailable));
    assert_eq!(error("[::]:80"), Ok(()));
    drop(wildcard);
    let specific = bind("203.0.113.9:80").unwrap();
    assert_eq!(error("0.0.0.0:80"), Err(ErrorKind::AddrInUse));
    assert_eq!(error("127.0.0.1:80"), Ok(()));
    let free = bind("0.0.0.0:0").unwrap();
    assert!(free.address().port() >= 49152);
    specific.send_to(free.address(), b"to nobody");
    specific.send_to((SERVER, free.address().port()).into(), b"to myself");
    assert_eq!(free.receive().await.from, specific.address());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_sees_the_address_that_it_was_sent_to() {
    let world = World::new(1);
    let server = world.public_host(SERVER);
    world.attach(&server, [203, 0, 113, 10]);
    let [server, client] = [server, world.public_host([203, 0, 113, 11])].map(|host| socket(&host, 80));
    let sent_to = async |client: &Socket, last| {
        client.send_to(([203, 0, 113, last], 80).into(), b"hello");
        server.receive().await.to
    };
    assert_eq!(sent_to(&client, 9).await, (SERVER, 80).into());
    assert_eq!(sent_to(&client, 10).await, ([203, 0, 113, 10], 80).into());
}

#[tokio::test(start_paused = true)]
async fn a_world_ends_with_its_last_handle() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let host = World::new(1).public_host(SERVER);
    let client = socket(&host, 80);
    drop(host);
    client.send_to((SERVER, 80).into(), b"to myself");
    client.receive().await;
    assert_eq!(alive(), 1);
    drop(client);
    tokio::task::yield_now().await;
    assert_eq!(alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_forged_datagram_arrives_from_the_address_that_it_claims_and_the_answer_goes_there() {
    let world = World::new(1);
    let [server, victim, attacker] = [9, 8, 66].map(|last| world.public_host([203, 0, 113, last]));
    let (server, victim) = (socket(&server, 80), socket(&victim, 7));
    attacker.send_forged(([203, 0, 113, 8], 7).into(), (SERVER, 80).into(), b"forged");
    let forged = server.receive().await;
    assert_eq!(forged.from, ([203, 0, 113, 8], 7).into());
    server.send_to(forged.from, b"answer");
    assert_eq!(victim.receive().await.from, (SERVER, 80).into());
    assert_eq!(attacker.open_sockets(), 0);
}
