use std::{collections::BTreeSet, net::IpAddr};

use rand::SeedableRng;

use super::*;

const FROM: SocketId = SocketId(1);

fn target() -> SocketAddr {
    ([198, 51, 100, 7], 4001).into()
}

fn search(strategy: Strategy, now: Instant) -> Search {
    let plan = SearchPlan {
        strategy,
        theirs: NatProfile::default(),
        stream: ControlStreamId(1),
        from: FROM,
        target: target(),
        begins: now + SILENCE_TIMEOUT,
    };
    Search::new(plan, &mut StdRng::seed_from_u64(7))
}

fn own(count: usize) -> Vec<SocketId> {
    (100..).take(count).map(SocketId).collect()
}

/// Begins a search, and returns how many sockets it wants.
fn begin(search: &mut Search, now: Instant) -> usize {
    assert_eq!(search.poll(now + SILENCE_TIMEOUT - Duration::from_nanos(1)), None, "silence first");
    assert_eq!(search.poll(now + SILENCE_TIMEOUT), Some(Action::Silence));
    search.begun(now + SILENCE_TIMEOUT);
    search.sockets()
}

/// Every shot and when it leaves.
fn shots(search: &mut Search) -> Vec<(Instant, Path)> {
    let mut all = Vec::new();
    while let Some(at) = search.next_due() {
        match search.poll(at) {
            Some(Action::Shoot(path)) => all.push((at, path)),
            other => panic!("{other:?}"),
        }
    }
    all
}

fn assert_rate(shots: &[(Instant, Path)]) {
    for (n, (at, _)) in shots.iter().enumerate() {
        let within = shots[n..].iter().take_while(|(later, _)| *later - *at < Duration::from_secs(1)).count();
        assert!(within <= 300, "{within} in a second");
    }
}

#[test]
fn a_scan_looks_at_1500_distinct_ports_of_one_address_at_300_a_second() {
    let now = Instant::now();
    let mut search = search(Strategy::BirthdayScan, now);
    assert_eq!(begin(&mut search, now), 0);
    let shots = shots(&mut search);
    assert_eq!(shots.len(), 1500);
    assert_rate(&shots);
    assert!(shots.iter().all(|(_, path)| path.socket == FROM && path.remote.ip() == target().ip()));
    let ports: BTreeSet<u16> = shots.iter().map(|(_, path)| path.remote.port()).collect();
    assert_eq!(ports.len(), 1500);
    assert!(ports.first() >= Some(&1024));
    assert!(shots.last().map(|(at, _)| *at) <= Some(now + SILENCE_TIMEOUT + Duration::from_secs(5)));
}

#[test]
fn a_spray_sends_twice_from_each_of_256_sockets_to_the_known_address() {
    let now = Instant::now();
    let mut search = search(Strategy::BirthdayOpen, now);
    assert_eq!(begin(&mut search, now), 256);
    assert_eq!(search.next_due(), None, "no socket yet");
    search.opened(&own(256), now + SILENCE_TIMEOUT);
    let shots = shots(&mut search);
    assert_eq!(shots.len(), 512);
    assert_rate(&shots);
    assert!(shots.iter().all(|(_, path)| path.remote == target()));
    let sockets: BTreeSet<SocketId> = shots[..256].iter().map(|(_, path)| path.socket).collect();
    assert_eq!(sockets.len(), 256);
}

#[test]
fn without_sockets_a_spray_is_over() {
    let now = Instant::now();
    let mut search = search(Strategy::BirthdayOpen, now);
    begin(&mut search, now);
    search.opened(&[], now + SILENCE_TIMEOUT);
    assert_eq!(search.next_due(), None);
}

#[test]
fn a_sequential_side_samples_until_it_is_answered_and_then_opens() {
    let now = Instant::now();
    let mut search = search(Strategy::PredictOpen { step: 2 }, now);
    assert_eq!((begin(&mut search, now), search.step()), (32, Some(2)));
    let start = now + SILENCE_TIMEOUT;
    search.opened(&own(32), start);
    assert_eq!(search.poll(start), Some(Action::Sample(SocketId(100))));
    assert_eq!(search.poll(start), None);
    assert_eq!(search.poll(start + SAMPLE_AGAIN), Some(Action::Sample(SocketId(101))), "another socket");
    let window = Window { port: 5002, step: 2 };
    assert_eq!(search.sampled(SocketId(101), 5002, start + SAMPLE_AGAIN), Some(window));
    assert_eq!(search.sampled(SocketId(100), 5000, start + SAMPLE_AGAIN), None, "an answer that comes late");
    assert_eq!(shots(&mut search).len(), 64);
}

#[test]
fn samples_that_nobody_answers_end() {
    let now = Instant::now();
    let mut search = search(Strategy::PredictOpen { step: 2 }, now);
    begin(&mut search, now);
    search.opened(&own(32), now + SILENCE_TIMEOUT);
    let mut samples = 0;
    while let Some(at) = search.next_due() {
        samples += usize::from(matches!(search.poll(at), Some(Action::Sample(_))));
    }
    assert_eq!(samples, MAX_SAMPLES);
}

#[test]
fn the_other_side_follows_the_window_that_it_is_told_first_and_no_other() {
    let now = Instant::now();
    let mut search = search(Strategy::PredictScan, now);
    search.follow(Window { port: 65_530, step: 2 }, now);
    assert_eq!(search.poll(now), None, "silence first");
    begin(&mut search, now);
    search.follow(Window { port: 5000, step: 1 }, now + SILENCE_TIMEOUT);
    let shots = shots(&mut search);
    assert_eq!(shots.len(), 96);
    let ports: Vec<u16> = shots.iter().map(|(_, path)| path.remote.port()).take(4).collect();
    assert_eq!(ports, [65_532, 65_534, 1024, 1026], "around at the end");
}

/// NAT report of a peer whose NAT early packets harm.
fn fragile() -> NatProfile {
    NatProfile { early_packets_harm: true, ..NatProfile::default() }
}

/// All that a search does from now on, and when; every sample is answered with the port of the
/// socket's number.
fn actions(search: &mut Search) -> Vec<(Instant, Action)> {
    let mut all = Vec::new();
    while let Some(at) = search.next_due() {
        if let Some(action) = search.poll(at) {
            all.push((at, action));
            if let Action::Sample(socket) = action {
                search.sampled(socket, u16::try_from(socket.0).unwrap_or(0), at);
            }
        }
    }
    all
}

#[test]
fn a_scan_from_fresh_sockets_tells_the_peer_of_each_only_once_its_shots_have_left() {
    let now = Instant::now();
    let mut search = search(Strategy::BirthdayScanFresh, now);
    assert_eq!(begin(&mut search, now), 5);
    assert_eq!(search.next_due(), None, "no socket yet");
    search.opened(&own(5), now + SILENCE_TIMEOUT);
    let actions = actions(&mut search);
    let shots: Vec<(Instant, Path)> = actions
        .iter()
        .filter_map(|(at, action)| if let Action::Shoot(path) = action { Some((*at, *path)) } else { None })
        .collect();
    assert_eq!(shots.len(), 5 * 256);
    assert_rate(&shots);
    let ports: BTreeSet<u16> = shots.iter().map(|(_, path)| path.remote.port()).collect();
    assert_eq!(ports.len(), shots.len(), "distinct");
    for (n, socket) in own(5).into_iter().enumerate() {
        let port = u16::try_from(socket.0).unwrap();
        let told = |action: &Action| *action == Action::Tell(Window { port, step: 0 });
        let last = actions
            .iter()
            .rposition(|(_, action)| matches!(action, Action::Shoot(path) if path.socket == socket));
        let at = actions.iter().position(|(_, action)| told(action));
        assert!(at > last && last.is_some(), "socket {n}");
        assert_eq!(actions.iter().filter(|(_, action)| told(action)).count(), 1);
        assert_eq!(actions.iter().filter(|(_, action)| *action == Action::Sample(socket)).count(), 1);
    }
    assert!(actions.last().map(|(at, _)| *at) < Some(now + SILENCE_TIMEOUT + Duration::from_millis(4_300)));
}

#[test]
fn a_fresh_socket_whose_sample_is_answered_late_is_told_late_and_one_without_an_answer_never() {
    let now = Instant::now();
    let mut search = search(Strategy::BirthdayScanFresh, now);
    begin(&mut search, now);
    search.opened(&own(5), now + SILENCE_TIMEOUT);
    let mut samples = 0;
    let mut told = 0;
    while let Some(at) = search.next_due() {
        match search.poll(at) {
            Some(Action::Sample(_)) => samples += 1,
            Some(Action::Tell(_)) => told += 1,
            _ => {}
        }
    }
    assert_eq!((samples, told), (20, 0));
    assert_eq!(search.sampled(SocketId(102), 6000, now + SEARCH_TIMEOUT), None);
    assert_eq!(search.poll(now + SEARCH_TIMEOUT), Some(Action::Tell(Window { port: 6000, step: 0 })));
    assert_eq!(search.poll(now + SEARCH_TIMEOUT), None);
}

#[test]
fn a_spray_towards_a_fragile_peer_waits_for_its_word_and_sends_once_from_each_socket_to_each_port_told() {
    let now = Instant::now();
    let mut search = search(Strategy::BirthdayOpen, now);
    search.plan.theirs = fragile();
    begin(&mut search, now);
    search.opened(&own(256), now + SILENCE_TIMEOUT);
    assert_eq!(search.next_due(), None, "what is sent now would come too early");
    search.retarget(([198, 51, 100, 7], 4002).into(), now + SILENCE_TIMEOUT);
    assert_eq!(search.next_due(), None, "what the coordinator sees is another socket");
    let mut all = Vec::new();
    for port in 6001..6020u16 {
        search.follow(Window { port, step: 0 }, now + SILENCE_TIMEOUT);
        let sent = shots(&mut search);
        assert!(sent.iter().all(|(_, path)| path.remote == (target().ip(), port).into()));
        all.push(sent.len());
    }
    assert_eq!(all.iter().sum::<usize>(), 5 * 256);
    assert_eq!(all[..6], [256, 256, 256, 256, 256, 0]);
}

#[test]
fn a_spray_that_learns_of_a_fresh_socket_while_it_sends_goes_on_there_within_the_bound_of_a_search() {
    let now = Instant::now();
    let mut search = search(Strategy::BirthdayOpen, now);
    begin(&mut search, now);
    search.opened(&own(256), now + SILENCE_TIMEOUT);
    let mut sent = shots(&mut search).len();
    assert_eq!(sent, 512, "it does not know that the peer is fragile");
    for port in 6001..=6005u16 {
        search.follow(Window { port, step: 0 }, now + SILENCE_TIMEOUT);
        sent += shots(&mut search).len();
    }
    assert_eq!(sent, usize::try_from(MAX_SHOTS).unwrap());
}

#[test]
fn a_window_of_a_fresh_socket_that_comes_before_ours_are_open_is_kept() {
    let now = Instant::now();
    let mut search = search(Strategy::BirthdayOpen, now);
    search.plan.theirs = fragile();
    search.follow(Window { port: 6000, step: 0 }, now);
    begin(&mut search, now);
    search.opened(&own(256), now + SILENCE_TIMEOUT);
    assert!(shots(&mut search).iter().all(|(_, path)| path.remote.port() == 6000));
}

#[test]
fn who_follows_afresh_has_sent_to_every_port_before_the_sequential_side_sends_anything() {
    let now = Instant::now();
    let start = now + SILENCE_TIMEOUT;
    let mut open = search(Strategy::PredictOpen { step: 1 }, now);
    open.plan.theirs = fragile();
    begin(&mut open, now);
    open.opened(&own(32), start);
    assert_eq!(open.poll(start), Some(Action::Sample(SocketId(100))));
    let window = open.sampled(SocketId(100), 5000, start).expect("the peer must know at once");
    assert_eq!(open.next_due(), None, "not before the peer");

    let mut follow = search(Strategy::PredictScanFresh, now);
    assert_eq!(begin(&mut follow, now), 1);
    follow.opened(&own(1), start);
    assert_eq!(follow.poll(start), Some(Action::Sample(SocketId(100))));
    assert_eq!(follow.sampled(SocketId(100), 6000, start), None, "the peer learns of it later");
    assert_eq!(follow.next_due(), None, "no port is known yet");
    follow.follow(window, start);
    let actions = actions(&mut follow);
    assert_eq!(actions.len(), 49);
    let (_, last) = actions[48];
    let told = Window { port: 6000, step: 0 };
    assert_eq!(last, Action::Tell(told));
    let ports: Vec<u16> = actions[..48]
        .iter()
        .filter_map(
            |(_, action)| if let Action::Shoot(path) = action { Some(path.remote.port()) } else { None },
        )
        .collect();
    assert_eq!(ports, (5001..=5048).collect::<Vec<u16>>());

    open.follow(told, start);
    let sent = shots(&mut open);
    assert_eq!(sent.len(), 64);
    assert!(sent.iter().all(|(_, path)| path.remote == (target().ip(), 6000).into()));
}

#[test]
fn both_aim_at_one_port_in_each_run_so_that_mappings_of_others_in_between_do_no_harm() {
    let now = Instant::now();
    for (others_a, others_b) in (0..=19).flat_map(|a| (0..=19).map(move |b| (a, b))) {
        let ends = [(5000u16, 9000u16), (9000, 5000)].map(|(_, theirs)| {
            let mut search = search(Strategy::PredictBoth { step: 1 }, now);
            begin(&mut search, now);
            search.opened(&own(32), now + SILENCE_TIMEOUT);
            assert!(matches!(search.poll(now + SILENCE_TIMEOUT), Some(Action::Sample(_))));
            search.follow(Window { port: theirs, step: 1 }, now + SILENCE_TIMEOUT);
            assert!(!matches!(search.poll(now + SILENCE_TIMEOUT), Some(Action::Shoot(_))), "sampled first");
            assert!(search.sampled(SocketId(100), 1, now + SILENCE_TIMEOUT).is_some());
            shots(&mut search).into_iter().map(|(_, path)| path.remote.port()).collect::<Vec<_>>()
        });
        // What each NAT gives to the sockets of its side, in their order, twice: once for each port
        // that they send to.
        let given = |sampled: u16, others: u16| (0..64).map(move |n| sampled + 1 + others + n);
        let a: BTreeSet<_> = given(5000, others_a).zip(ends[0].iter().copied()).collect();
        let b: BTreeSet<_> = ends[1].iter().copied().zip(given(9000, others_b)).collect();
        assert_eq!(a.intersection(&b).count(), 2, "{others_a} {others_b}: once in each run");
    }
}

#[test]
fn searches_are_bounded_in_all_and_towards_one_address() {
    let now = Instant::now();
    let mut budget = SearchBudget::new();
    let ip = |n: u8| IpAddr::from([198, 51, 100, n]);
    assert!((0..4).all(|_| budget.admit(None, ip(1), 0, now) == Admission::Now));
    assert_eq!(budget.admit(None, ip(1), 0, now), Admission::Never, "one address");
    assert!((0..12).all(|n| budget.admit(None, ip(10 + n), 0, now) == Admission::Now));
    let Admission::Later(ticket) = budget.admit(None, ip(99), 0, now) else { panic!("in all") };
    budget.ended();
    assert_eq!(budget.admit(Some(ticket), ip(99), 0, now), Admission::Now);
    budget.ended();
    assert_eq!(budget.admit(None, ip(1), 0, now + Duration::from_secs(9)), Admission::Never);
    assert_eq!(budget.admit(None, ip(1), 0, now + Duration::from_secs(10)), Admission::Now);
}

#[test]
fn two_sprays_run_at_once_and_others_in_turn_as_the_sockets_of_one_are_closed() {
    let now = Instant::now();
    let mut budget = SearchBudget::new();
    let ip = |n: u8| IpAddr::from([198, 51, 100, n]);
    let later = |admission| match admission {
        Admission::Later(ticket) => Some(ticket),
        other => panic!("{other:?}"),
    };
    assert!((1..=2).all(|n| budget.admit(None, ip(n), SPRAY_SOCKETS, now) == Admission::Now));
    let third = later(budget.admit(None, ip(3), SPRAY_SOCKETS, now));
    let fourth = later(budget.admit(None, ip(4), WINDOW_SOCKETS, now));
    let fifth = later(budget.admit(None, ip(5), SPRAY_SOCKETS, now));
    assert_eq!(budget.admit(None, ip(6), 0, now), Admission::Now, "a scan opens none");
    budget.ended();
    assert_eq!(later(budget.admit(third, ip(3), SPRAY_SOCKETS, now)), third, "its sockets are still open");
    budget.closed(SPRAY_SOCKETS);
    for ticket in [fourth, fifth] {
        assert_eq!(later(budget.admit(ticket, ip(4), WINDOW_SOCKETS, now)), ticket, "not its turn");
    }
    budget.left(third);
    assert_eq!(budget.admit(fourth, ip(4), WINDOW_SOCKETS, now), Admission::Now);
    assert_eq!(later(budget.admit(fifth, ip(5), SPRAY_SOCKETS, now)), fifth);
    budget.closed(WINDOW_SOCKETS);
    assert_eq!(budget.admit(fifth, ip(5), SPRAY_SOCKETS, now), Admission::Now);
}

#[test]
fn only_so_many_searches_wait() {
    let now = Instant::now();
    let mut budget = SearchBudget::new();
    let ip = |n: u8| IpAddr::from([198, 51, 100, n]);
    assert!((1..=2).all(|n| budget.admit(None, ip(n), SPRAY_SOCKETS, now) == Admission::Now));
    let waits = |budget: &mut SearchBudget| budget.admit(None, ip(3), SPRAY_SOCKETS, now);
    assert!((0..MAX_WAITING).all(|_| matches!(waits(&mut budget), Admission::Later(_))));
    assert_eq!(waits(&mut budget), Admission::Never);
}

#[test]
fn a_scan_waits_with_the_peer_and_goes_on_with_the_shots_that_are_left() {
    let now = Instant::now();
    let mut scan = search(Strategy::BirthdayScan, now);
    assert_eq!(scan.poll(now + SILENCE_TIMEOUT), Some(Action::Silence));
    let begins = now + SILENCE_TIMEOUT;
    scan.begun(begins);
    let shots = |scan: &mut Search, at| std::iter::from_fn(|| scan.poll(at)).count();
    assert_eq!(shots(&mut scan, begins + PROBE_INTERVAL * 9), 10);
    assert!(!scan.peer_turn(false, begins + PROBE_INTERVAL * 9));
    assert!(scan.waits_for_peer() && scan.next_due().is_none());
    let turn = begins + Duration::from_secs(20);
    assert!(!scan.peer_turn(true, turn));
    assert_eq!(shots(&mut scan, turn), 1, "no burst");
    assert_eq!(shots(&mut scan, turn + PROBE_INTERVAL * MAX_SHOTS), usize::try_from(MAX_SHOTS).unwrap() - 11);

    let mut early = search(Strategy::BirthdayScan, now);
    early.peer_turn(false, now);
    assert!(early.is_held(), "before silence");
    early.hold();
    assert!(early.peer_turn(true, turn), "now it begins");
}

#[test]
fn plain_and_hopeless_pairs_are_told_of_the_silence_once() {
    for strategy in [Strategy::Impossible, Strategy::ProbeOnly] {
        let now = Instant::now();
        let mut search = search(strategy, now);
        assert_eq!(search.poll(now), None);
        assert_eq!(search.poll(now + SILENCE_TIMEOUT), Some(Action::Silence));
        assert_eq!(search.next_due(), None);
    }
}
