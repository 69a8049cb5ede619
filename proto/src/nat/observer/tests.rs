use super::*;

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

fn observers() -> Observers {
    let mut observers = Observers::new([7; 32]);
    assert!(observers.offer(ControlStreamId(1), LOCAL, false).is_none());
    observers.opened(LOCAL, &[(SocketId(5), 1005), (SocketId(6), 1006), (SocketId(7), 1007)]);
    observers
}

fn offered(offer: ObserverOffer, is_other_family: bool) -> Offered {
    Offered { offer, ip: [192, 0, 2, 1].into(), socket: Some(SocketId(1)), is_other_family }
}

#[test]
fn a_request_is_authentic_under_its_own_token_only() {
    let observers = observers();
    let offer = observers.offer(ControlStreamId(3), LOCAL, false).unwrap();
    let datagram = request(&offer, [9; 8]);
    assert_eq!(observers.judge(&datagram), Some((ControlStreamId(3), Request::Where { data: [9; 8] })));
    for at in 0..PROBE_LEN {
        let mut forged = datagram;
        forged[at] ^= 1;
        assert_eq!(observers.judge(&forged), None, "byte {at}");
    }
    assert_eq!(observers.judge(&datagram[..52]), None);
    assert_eq!(Observers::new([8; 32]).judge(&datagram), None, "another coordinator's");
}

#[test]
fn every_port_is_asked_until_it_answers_and_never_more_than_four_times() {
    let offer = observers().offer(ControlStreamId(3), LOCAL, false).unwrap();
    let start = Instant::now();
    let (mut observing, mut next) = (Observing::default(), 0u64);
    observing.offered(ControlStreamId(8), offered(offer, false), start);
    let (mut sent, mut first) = (Vec::new(), None);
    while let Some(at) = observing.next_deadline() {
        for (path, datagram) in observing.poll(at, || {
            next += 1;
            next.to_be_bytes()
        }) {
            sent.push((at - start, path.remote.port()));
            first.get_or_insert(datagram);
        }
        if at == start {
            assert_eq!(
                observing.answered(ControlStreamId(9), 1u64.to_be_bytes(), 5000, at),
                None,
                "another stream"
            );
            assert!(observing.answered(ControlStreamId(8), 1u64.to_be_bytes(), 5000, at).is_some());
            assert_eq!(observing.answered(ControlStreamId(8), 1u64.to_be_bytes(), 5000, at), None, "once");
        }
    }
    assert_eq!(sent.iter().filter(|(_, port)| *port == 1005).count(), 1);
    assert_eq!(sent.iter().filter(|(_, port)| *port == 1006).count(), 4);
    assert_eq!(observing.allocation(SocketId(1), 1), None, "not all answered");
}

/// Returns the times and ports of the requests until `end`. Each request is answered if `answers`
/// is true.
fn asked(observing: &mut Observing, [start, end]: [Instant; 2], answers: bool) -> Vec<(Duration, u16)> {
    let (mut asked, mut next) = (Vec::new(), 0u64);
    while let Some(at) = observing.next_deadline().filter(|at| *at < end) {
        for (path, datagram) in observing.poll(at, || {
            next += 1;
            next.to_be_bytes()
        }) {
            asked.push((at - start, path.remote.port()));
            if answers {
                observing.answered(ControlStreamId(8), datagram[11..19].try_into().unwrap(), 5000, at);
            }
        }
    }
    asked
}

#[test]
fn the_mapping_of_the_other_family_is_kept_alive_and_given_up_when_its_observer_is_silent() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut observing = Observing::default();
    observing.offered(
        ControlStreamId(8),
        offered(observers().offer(ControlStreamId(3), LOCAL, false).unwrap(), true),
        start,
    );
    let first = asked(&mut observing, [start, after(1)], true);
    assert_eq!(first.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [1005, 1006, 1007]);
    let kept = asked(&mut observing, [start, after(61)], true);
    let every: Vec<_> = (1..=6).map(|n| (n * KEEP_ALIVE, 1005)).collect();
    assert_eq!(kept, every);
    assert!(observing.take_silent().is_empty());
    let silent = asked(&mut observing, [start, after(100)], false);
    assert_eq!(silent.len(), 12, "three rounds of four requests: {silent:?}");
    assert_eq!(observing.take_silent().len(), 1);
    assert!(observing.take_silent().is_empty(), "once");
}

#[test]
fn an_observer_of_the_other_family_that_never_answers_is_not_kept_alive() {
    let start = Instant::now();
    let mut observing = Observing::default();
    observing.offered(
        ControlStreamId(8),
        offered(observers().offer(ControlStreamId(3), LOCAL, false).unwrap(), true),
        start,
    );
    let end = start + Duration::from_secs(600);
    assert_eq!(asked(&mut observing, [start, end], false).len(), 12);
    assert_eq!(observing.next_deadline(), None);
}

#[test]
fn offers_of_one_coordinator_are_bounded() {
    let (mut observing, now) = (Observing::default(), Instant::now());
    let [one, other] = [PeerId::random(), PeerId::random()];
    assert_eq!((0..100).filter(|_| observing.takes_offer(one, now)).count(), 8);
    assert!(observing.takes_offer(other, now));
    assert!(observing.takes_offer(one, now + Duration::from_secs(30)));
}

#[test]
fn three_answers_tell_the_allocation() {
    let offer = observers().offer(ControlStreamId(3), LOCAL, false).unwrap();
    let now = Instant::now();
    let (mut observing, mut next) = (Observing::default(), 0u64);
    observing.offered(ControlStreamId(8), offered(offer, false), now);
    let asked = observing.poll(now, || {
        next += 1;
        next.to_be_bytes()
    });
    assert_eq!(asked.len(), 3);
    for n in 1..=3u16 {
        assert!(
            observing.answered(ControlStreamId(8), u64::from(n).to_be_bytes(), 6000 + 2 * n, now).is_some()
        );
    }
    assert_eq!(observing.allocation(SocketId(1), 1), Some(Allocation::Sequential { step: 2 }));
    assert_eq!(observing.next_deadline(), None);
    observing.stream_down(ControlStreamId(8));
    assert_eq!(observing.allocation(SocketId(1), 1), None);
}

#[test]
fn the_port_that_sends_early_packets_is_never_asked_from_the_socket_of_the_connection() {
    let mut observers = observers();
    observers.opened(LOCAL, &[(SocketId(8), 1008)]);
    assert_eq!(observers.early(SocketId(5)), Some(SocketId(8)));
    assert_eq!(observers.early(SocketId(99)), None);
    let (mut observing, now) = (Observing::default(), Instant::now());
    let offer = observers.offer(ControlStreamId(3), LOCAL, true).unwrap();
    assert_eq!(offer.ports, [1005, 1006, 1007, 1008]);
    observing.offered(ControlStreamId(8), offered(offer, false), now);
    let end = now + Duration::from_secs(600);
    let asked = asked(&mut observing, [now, end], false);
    assert_eq!(asked.len(), 12, "three ports, four times");
    assert!(asked.iter().all(|(_, port)| *port != 1008));
    let (path, datagram) = observing.test(ControlStreamId(8), 0, SocketId(70), [1; 8], now).unwrap();
    assert_eq!((path.socket, path.remote.port()), (SocketId(70), 1005));
    assert_eq!(observers.judge(&datagram), Some((ControlStreamId(3), Request::Provoke { data: [1; 8] })));
    let (path, datagram) = observing.test(ControlStreamId(8), EARLY, SocketId(70), [2; 8], now).unwrap();
    assert_eq!(path.remote.port(), 1008);
    assert_eq!(observers.judge(&datagram), Some((ControlStreamId(3), Request::Where { data: [2; 8] })));
}
