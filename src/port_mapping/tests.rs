use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use super::{
    Announcement, Event, Gateway, Grant, Mapping, Protocol, Request,
    mapper::{Action, LIFETIME, Mapper},
};

const GATEWAY: Gateway =
    Gateway { address: Ipv4Addr::new(192, 168, 1, 1), local: Ipv4Addr::new(192, 168, 1, 2) };
const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const HOUR: Duration = Duration::from_secs(3_600);

fn at(ip: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip, port)
}

fn actions(mapper: &mut Mapper) -> Vec<Action> {
    std::iter::from_fn(|| mapper.poll()).collect()
}

fn requests(protocols: &[Protocol]) -> Vec<Request> {
    protocols.iter().map(|protocol| Request { gateway: GATEWAY, protocol: *protocol, port: 4001 }).collect()
}

fn asked(mapper: &mut Mapper) -> Vec<Request> {
    let asked = |action| if let Action::Ask(request) = action { Some(request) } else { None };
    actions(mapper).into_iter().filter_map(asked).collect()
}

fn grant(external: SocketAddrV4) -> Grant {
    Grant { external, lifetime: HOUR }
}

/// A mapper that has asked its gateway for port 4001, and peers of which see it at [`PUBLIC`].
fn asking(now: Instant) -> (Mapper, Vec<Request>) {
    let mut mapper = Mapper::default();
    mapper.observed(PUBLIC);
    mapper.listening(at(GATEWAY.local, 4001), now);
    assert_eq!(actions(&mut mapper), [Action::FindGateway]);
    mapper.gateway_found(Some(GATEWAY), now);
    let asked = asked(&mut mapper);
    (mapper, asked)
}

fn mapping(protocol: Protocol, external: SocketAddrV4, announcement: Announcement) -> Mapping {
    Mapping { protocol, port: 4001, external, announcement }
}

#[test]
fn all_protocols_are_asked_at_once_and_the_first_grant_counts() {
    let now = Instant::now();
    let (mut mapper, asked) = asking(now);
    assert_eq!(asked, requests(&Protocol::ALL));
    let external = at(PUBLIC, 50_000);
    mapper.granted(asked[1], grant(external), now);
    let held = mapping(Protocol::NatPmp, external, Announcement::Confirmed);
    assert_eq!(actions(&mut mapper), [Action::Confirm(external), Action::Report(Event::Mapped(held))]);
    mapper.granted(asked[0], grant(at(PUBLIC, 50_001)), now);
    mapper.refused(asked[2], now);
    assert_eq!(actions(&mut mapper), []);
    assert_eq!(mapper.mappings(), [held]);
    mapper.close();
    let [pcp, nat_pmp] = [asked[0], asked[1]].map(Action::Delete);
    let ended = Action::Report(Event::Unmapped(held));
    assert_eq!(actions(&mut mapper), [Action::Expire(external), ended, pcp, nat_pmp]);
    assert_eq!((mapper.mappings(), mapper.next_time()), (vec![], None));
}

#[test]
fn nothing_is_asked_for_loopback_for_global_addresses_and_for_other_networks() {
    let now = Instant::now();
    let mut mapper = Mapper::default();
    mapper.listening(at(Ipv4Addr::LOCALHOST, 4001), now);
    mapper.listening(at(PUBLIC, 4001), now);
    assert_eq!(actions(&mut mapper), []);
    mapper.listening(at(Ipv4Addr::new(172, 17, 0, 1), 4001), now);
    assert_eq!(actions(&mut mapper), [Action::FindGateway]);
    mapper.gateway_found(Some(GATEWAY), now);
    mapper.gateway_found(None, now);
    assert_eq!(actions(&mut mapper), []);
}

#[test]
fn a_gateway_that_lies_or_is_behind_a_nat_makes_no_address_public() {
    let now = Instant::now();
    for (external, announcement) in [
        (at(Ipv4Addr::new(203, 0, 113, 9), 4001), Announcement::NotObserved),
        (at(Ipv4Addr::new(100, 64, 0, 9), 4001), Announcement::NotGlobal),
        (at(Ipv4Addr::new(10, 0, 0, 9), 4001), Announcement::NotGlobal),
        (at(Ipv4Addr::BROADCAST, 4001), Announcement::NotGlobal),
    ] {
        let (mut mapper, asked) = asking(now);
        mapper.granted(asked[0], grant(external), now);
        let held = mapping(Protocol::Pcp, external, announcement);
        assert_eq!(actions(&mut mapper), [Action::Report(Event::Mapped(held))]);
    }
}

#[test]
fn a_mapping_is_announced_once_a_peer_sees_this_host_at_its_address() {
    let now = Instant::now();
    let (mut mapper, asked) = asking(now);
    let external = at(Ipv4Addr::new(203, 0, 113, 9), 4001);
    mapper.granted(asked[0], grant(external), now);
    actions(&mut mapper);
    mapper.observed(Ipv4Addr::new(203, 0, 113, 8));
    assert_eq!(actions(&mut mapper), []);
    mapper.observed(*external.ip());
    let held = mapping(Protocol::Pcp, external, Announcement::Confirmed);
    assert_eq!(actions(&mut mapper), [Action::Confirm(external), Action::Report(Event::Changed(held))]);
}

#[test]
fn claims_of_many_strangers_neither_end_a_mapping_nor_keep_the_right_address_out() {
    let now = Instant::now();
    let (mut mapper, asked) = asking(now);
    let claim = |mapper: &mut Mapper| {
        (0..100).for_each(|number| mapper.observed(Ipv4Addr::new(192, 0, 2, number)));
    };
    mapper.granted(asked[0], grant(at(PUBLIC, 4001)), now);
    actions(&mut mapper);
    claim(&mut mapper);
    assert_eq!(actions(&mut mapper), []);
    let (mut mapper, asked) = asking(now);
    claim(&mut mapper);
    let external = at(Ipv4Addr::new(203, 0, 113, 9), 4001);
    mapper.granted(asked[0], grant(external), now);
    actions(&mut mapper);
    mapper.observed(*external.ip());
    assert_eq!(actions(&mut mapper).first(), Some(&Action::Confirm(external)));
}

#[test]
fn a_mapping_is_renewed_at_half_of_its_lifetime_and_ends_where_no_renewal_succeeds() {
    let now = Instant::now();
    let (mut mapper, asks) = asking(now);
    let external = at(PUBLIC, 4001);
    mapper.granted(asks[0], grant(external), now);
    asks[1..].iter().for_each(|request| mapper.refused(*request, now));
    actions(&mut mapper);
    assert_eq!(mapper.next_time(), Some(now + HOUR / 2));
    let half = now + HOUR / 2;
    mapper.handle_timeout(half);
    assert_eq!(actions(&mut mapper), [Action::Ask(asks[0]), Action::FindGateway]);
    mapper.granted(asks[0], grant(external), half);
    assert_eq!((actions(&mut mapper), mapper.next_time()), (vec![], Some(half + HOUR / 2)));

    let end = half + HOUR;
    let mut renewals = 0;
    while let Some(at) = mapper.next_time().filter(|at| *at < end) {
        mapper.handle_timeout(at);
        assert_eq!(actions(&mut mapper), [Action::Ask(asks[0]), Action::FindGateway]);
        mapper.refused(asks[0], at);
        renewals += 1;
    }
    assert!((5..=30).contains(&renewals), "{renewals}");
    mapper.handle_timeout(end);
    let seen = actions(&mut mapper);
    assert!(seen.contains(&Action::Expire(external)), "{seen:?}");
    assert_eq!(seen.iter().filter(|action| matches!(action, Action::Ask(_))).count(), 3, "{seen:?}");
    assert_eq!(mapper.mappings(), []);
}

#[test]
fn a_renewal_that_gives_another_port_replaces_the_external_address() {
    let now = Instant::now();
    let (mut mapper, asked) = asking(now);
    let [first, second] = [50_000, 50_001].map(|port| at(PUBLIC, port));
    mapper.granted(asked[0], grant(first), now);
    mapper.handle_timeout(now + HOUR / 2);
    actions(&mut mapper);
    mapper.granted(asked[0], grant(second), now + HOUR / 2);
    let [before, after] =
        [first, second].map(|external| mapping(Protocol::Pcp, external, Announcement::Confirmed));
    assert_eq!(
        actions(&mut mapper),
        [
            Action::Expire(first),
            Action::Report(Event::Unmapped(before)),
            Action::Confirm(second),
            Action::Report(Event::Mapped(after))
        ]
    );
}

#[test]
fn another_gateway_is_asked_anew_and_late_answers_of_the_former_one_do_not_count() {
    let now = Instant::now();
    let (mut mapper, asks) = asking(now);
    let external = at(PUBLIC, 4001);
    mapper.granted(asks[0], grant(external), now);
    actions(&mut mapper);
    let other = Gateway { address: Ipv4Addr::new(192, 168, 1, 254), ..GATEWAY };
    mapper.gateway_found(Some(other), now);
    let seen = actions(&mut mapper);
    assert!(seen.contains(&Action::Expire(external)) && seen.contains(&Action::Delete(asks[0])), "{seen:?}");
    assert_eq!(seen.iter().filter(|a| matches!(a, Action::Ask(ask) if ask.gateway == other)).count(), 3);
    mapper.granted(asks[1], grant(external), now);
    mapper.refused(asks[2], now);
    assert_eq!(actions(&mut mapper), [Action::Delete(asks[1])]);
    assert_eq!(mapper.mappings(), []);
}

#[test]
fn a_gateway_that_refuses_is_asked_less_and_less_often_and_reported_once() {
    let mut now = Instant::now();
    let (mut mapper, mut asks) = asking(now);
    let mut delays = Vec::new();
    for round in 0..6 {
        asks.iter().for_each(|request| mapper.refused(*request, now));
        let reports = if round == 0 { vec![Action::Report(Event::Refused { port: 4001 })] } else { vec![] };
        assert_eq!(actions(&mut mapper), reports);
        let next = mapper.next_time().unwrap();
        delays.push((next - now).as_secs());
        now = next;
        mapper.handle_timeout(now);
        asks = asked(&mut mapper);
        assert_eq!(asks.len(), 3);
    }
    assert_eq!(delays, [60, 120, 240, 480, 900, 900]);
}

#[test]
fn grants_that_make_no_sense_do_no_harm() {
    let now = Instant::now();
    let (mut mapper, asks) = asking(now);
    mapper.granted(asks[0], grant(at(PUBLIC, 0)), now);
    assert_eq!(mapper.mappings(), []);
    let external = at(PUBLIC, 4001);
    mapper.granted(asks[1], Grant { external, lifetime: Duration::MAX }, now);
    assert_eq!(mapper.next_time(), Some(now + HOUR), "half of two hours at most");
    let endless = Grant { external, lifetime: Duration::ZERO };
    mapper.handle_timeout(now + HOUR);
    mapper.granted(asks[1], endless, now + HOUR);
    assert_eq!(mapper.next_time(), Some(now + HOUR + LIFETIME / 2));
    let unasked = Request { port: 9, ..asks[0] };
    mapper.refused(unasked, now);
    mapper.granted(unasked, grant(external), now);
    assert_eq!(mapper.mappings().len(), 1);
}

#[test]
fn a_listener_that_closes_loses_its_mapping() {
    let now = Instant::now();
    let (mut mapper, asks) = asking(now);
    mapper.granted(asks[2], grant(at(PUBLIC, 4001)), now);
    actions(&mut mapper);
    mapper.not_listening(at(GATEWAY.local, 4001), now);
    let seen = actions(&mut mapper);
    assert!(seen.contains(&Action::Delete(asks[2])), "{seen:?}");
    assert_eq!(mapper.mappings(), []);
}

#[test]
fn few_ports_are_mapped_at_once() {
    let now = Instant::now();
    let mut mapper = Mapper::default();
    (1..=40).for_each(|port| mapper.listening(at(GATEWAY.local, port), now));
    mapper.gateway_found(Some(GATEWAY), now);
    assert_eq!(asked(&mut mapper).len(), 8 * 3);
}
