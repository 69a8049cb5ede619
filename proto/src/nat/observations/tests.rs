use super::*;

const SOCKET: SocketId = SocketId(1);
const LOCAL: &str = "192.168.1.2:4001";

fn at(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

fn observer(stream: u64, peer: PeerId, address: SocketAddr) -> Observer {
    Observer { stream: ControlStreamId(stream), peer, address }
}

#[test]
fn what_was_seen_before_our_network_changed_is_not_compared_with_what_is_seen_after() {
    let (mut observations, start) = (Observations::default(), Instant::now());
    let observers =
        [1u16, 2, 3].map(|n| observer(0, PeerId::random(), SocketAddr::from(([192, 0, 2, 1], n))));
    let say = |observations: &mut Observations, n: usize, seen: &str, after: u64| {
        let now = start + Duration::from_secs(after);
        observations.record(SOCKET, observers[n], at(seen), now)
    };
    for n in 0..3 {
        assert_eq!(say(&mut observations, n, "198.51.100.1:4001", 0), Recorded::New);
    }
    observations.network_changed(start + Duration::from_secs(1));
    assert_eq!(say(&mut observations, 0, "198.51.100.1:4001", 2), Recorded::Known, "the same mapping");
    assert_eq!(say(&mut observations, 0, "198.51.100.7:50000", 3), Recorded::Moved);
    assert_eq!(observations.reflexive(SOCKET), [at("198.51.100.7:50000")]);
    assert_eq!(say(&mut observations, 1, "198.51.100.7:50000", 4), Recorded::New);
    assert_eq!(
        say(&mut observations, 0, "198.51.100.7:50001", 5),
        Recorded::Remapped,
        "no change of ours explains it"
    );
    assert_eq!(observations.reflexive(SOCKET).len(), 2);
}

fn observe(seen: &[(&str, &str)]) -> Observations {
    let mut observations = Observations::default();
    let start = Instant::now();
    for (i, (from, seen)) in seen.iter().enumerate() {
        let now = start + Duration::from_millis(i as u64);
        let by = observer(i as u64, PeerId::random(), at(from));
        assert_eq!(observations.record(SOCKET, by, at(seen), now), Recorded::New);
    }
    observations
}

fn view(seen: &[(&str, &str)]) -> NatView {
    observe(seen).view(SOCKET, 4001, &[at(LOCAL)])
}

#[test]
fn nothing_is_known_without_observers_and_little_from_one() {
    assert_eq!(view(&[]), NatView::default());
    let one = view(&[("192.0.2.1:1", "203.0.113.1:4001")]);
    assert_eq!((one.mapping, one.port_preserved), (None, Some(true)));
}

#[test]
fn the_same_address_at_two_ips_is_endpoint_independent() {
    let view = view(&[("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.2:1", "203.0.113.1:5000")]);
    assert_eq!(view.mapping, Some(MappingBehaviour::EndpointIndependent));
    assert_eq!((view.port_preserved, view.allocation_step), (Some(false), None));
}

#[test]
fn the_same_address_at_two_ports_of_one_ip_decides_nothing() {
    let view = view(&[("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.1:2", "203.0.113.1:5000")]);
    assert_eq!(view.mapping, None);
}

#[test]
fn different_addresses_at_two_ips_are_endpoint_dependent_of_an_unknown_kind() {
    let view = view(&[("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.2:1", "203.0.113.1:6000")]);
    assert_eq!(view.mapping, Some(MappingBehaviour::EndpointDependent));
}

#[test]
fn two_ports_of_one_ip_tell_address_dependent_from_port_dependent() {
    let same = [
        ("192.0.2.1:1", "203.0.113.1:5000"),
        ("192.0.2.1:2", "203.0.113.1:5000"),
        ("192.0.2.2:1", "203.0.113.1:6000"),
    ];
    assert_eq!(view(&same).mapping, Some(MappingBehaviour::AddressDependent));
    let differ = [("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.1:2", "203.0.113.1:5007")];
    assert_eq!(view(&differ).mapping, Some(MappingBehaviour::AddressAndPortDependent));
}

#[test]
fn seen_at_our_own_address_there_is_no_nat() {
    let view = view(&[("192.0.2.1:1", LOCAL)]);
    assert_eq!(view.mapping, Some(MappingBehaviour::EndpointIndependent));
    assert_eq!(view.port_preserved, Some(true));
}

#[test]
fn an_observer_on_our_side_of_the_nat_does_not_count() {
    let seen =
        [("192.168.1.9:1", LOCAL), ("192.0.2.1:1", "203.0.113.1:5000"), ("192.0.2.2:1", "203.0.113.1:5000")];
    assert_eq!(view(&seen).mapping, Some(MappingBehaviour::EndpointIndependent));
    assert_eq!(view(&seen).port_preserved, Some(false));
}

#[test]
fn ports_at_a_constant_small_distance_are_allocation_in_sequence() {
    let steps = |ports: [u16; 4]| {
        let seen: Vec<_> = (1..)
            .zip(ports)
            .map(|(i, port)| (format!("192.0.2.{i}:1"), format!("203.0.113.1:{port}")))
            .collect();
        let seen: Vec<_> = seen.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        view(&seen).allocation_step
    };
    assert_eq!(steps([5000, 5001, 5002, 5003]), Some(1));
    assert_eq!(steps([5000, 5002, 5004, 5006]), Some(2));
    assert_eq!(steps([5000, 5001, 5003, 5004]), None);
    assert_eq!(steps([5003, 5002, 5001, 5000]), None);
    assert_eq!(steps([5000, 5100, 5200, 5300]), None);
}

#[test]
fn observations_linger_after_their_connection_and_then_expire() {
    let mut observations = observe(&[("192.0.2.1:1", "203.0.113.1:5000")]);
    let now = Instant::now() + Duration::from_secs(1);
    assert_eq!(observations.next_expiry(), None, "the connection keeps the mapping");
    observations.stream_down(ControlStreamId(0), now);
    assert_eq!(observations.next_expiry(), Some(now + OBSERVATION_LIFETIME));
    assert!(!observations.expire(now + OBSERVATION_LIFETIME - Duration::from_millis(1)));
    assert_eq!(observations.reflexive(SOCKET), [at("203.0.113.1:5000")]);
    assert!(observations.expire(now + OBSERVATION_LIFETIME));
    assert!(observations.reflexive(SOCKET).is_empty());
}

#[test]
fn what_more_observers_agree_on_comes_first() {
    let observations = observe(&[
        ("192.0.2.1:1", "203.0.113.1:5000"),
        ("192.0.2.2:1", "203.0.113.1:5000"),
        ("192.0.2.3:1", "198.51.100.66:1"),
    ]);
    assert_eq!(observations.reflexive(SOCKET), [at("203.0.113.1:5000"), at("198.51.100.66:1")]);
}

#[test]
fn observers_are_bounded_and_one_whose_connection_is_gone_makes_room() {
    let mut observations = Observations::default();
    let now = Instant::now();
    let say = |observations: &mut Observations, i: u64| {
        let by = observer(i, PeerId::random(), at("192.0.2.1:1"));
        observations.record(SOCKET, by, at("203.0.113.1:5000"), now)
    };
    assert!((0..MAX_OBSERVATIONS).all(|i| say(&mut observations, i as u64) == Recorded::New));
    assert_eq!(say(&mut observations, 99), Recorded::Full);
    observations.stream_down(ControlStreamId(3), now);
    assert_eq!(say(&mut observations, 99), Recorded::New);
}

#[test]
fn a_mapping_that_is_gone_is_told_from_one_that_depends_on_the_endpoint() {
    let (mut observations, start) = (Observations::default(), Instant::now());
    let observers = [1u8, 2, 3]
        .map(|n| observer(u64::from(n - 1), PeerId::random(), SocketAddr::from(([192, 0, 2, n], 1))));
    let say = |observations: &mut Observations, n: usize, seen: &str, after: u64| {
        observations.record(SOCKET, observers[n], at(seen), start + Duration::from_secs(after))
    };
    for n in 0..3 {
        say(&mut observations, n, "198.51.100.1:1", 0);
    }
    assert_eq!(say(&mut observations, 0, "198.51.100.1:2", 60), Recorded::Remapped);
    let mapping = |observations: &Observations| observations.view(SOCKET, 4001, &[at(LOCAL)]).mapping;
    assert_eq!(
        mapping(&observations),
        Some(MappingBehaviour::EndpointIndependent),
        "others are yet to see it"
    );
    assert_eq!(observations.reflexive(SOCKET), [at("198.51.100.1:2"), at("198.51.100.1:1")]);
    assert_eq!(observations.mapped_since(SOCKET), Some(start + Duration::from_secs(60)));
    assert_eq!(say(&mut observations, 1, "198.51.100.1:2", 62), Recorded::New);
    let lifetime = observations.replacements.finding().unwrap();
    assert_eq!((lifetime.value, lifetime.confidence), (Duration::from_secs(60), Confidence::Medium));
    // The third observer still sees the old mapping: the NAT is of another kind, or the first two
    // lie.
    observations.expire(start + Duration::from_secs(70));
    assert_eq!(mapping(&observations), Some(MappingBehaviour::EndpointDependent));
    assert_eq!(observations.reflexive(SOCKET)[0], at("198.51.100.1:2"));
    observations.network_changed(start + Duration::from_secs(80));
    assert_eq!(observations.replacements.finding(), None, "of another network nothing is known");
}

#[test]
fn an_observer_that_moves_takes_its_observation_with_it() {
    let (mut observations, now) = (Observations::default(), Instant::now());
    let (mover, other) = (PeerId::random(), PeerId::random());
    let mut say = |stream, peer, from: &str, seen: &str| {
        observations.record(SOCKET, observer(stream, peer, at(from)), at(seen), now)
    };
    say(1, mover, "192.0.2.1:1", "198.51.100.1:1");
    say(2, other, "192.0.2.2:1", "198.51.100.1:2");
    assert_eq!(say(1, mover, "192.0.2.1:7", "198.51.100.1:2"), Recorded::New);
    assert_eq!(observations.reflexive(SOCKET), [at("198.51.100.1:2")]);
}
