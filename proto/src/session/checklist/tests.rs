use super::*;

fn path(last: u8) -> Path {
    Path { socket: SocketId(1), remote: SocketAddr::from(([192, 0, 2, last], 1)) }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Returns the times at which each path was probed within `until` of the start, as the timers of a
/// session do it.
fn run(checklist: &mut Checklist, start: Instant, until: u64) -> Vec<(u64, Path)> {
    let mut sent = Vec::new();
    let mut data = 0_u64;
    while let Some(at) = checklist.next_due().filter(|at| *at <= start + ms(until)) {
        data += 1;
        if let Some(due) = checklist.poll(at, data.to_be_bytes()) {
            sent.push(((at - start).as_millis() as u64, due.path));
        }
    }
    sent
}

fn checklist(role: SessionRole, paths: u8, start: Instant) -> Checklist {
    let mut checklist = Checklist::new(role, 3, 16);
    for i in 0..paths {
        checklist.add(path(i), u64::from(100 - i), Origin::Announced, start);
    }
    checklist
}

#[test]
fn one_pair_is_probed_by_the_schedule_and_then_fails() {
    let start = Instant::now();
    let mut checklist = checklist(SessionRole::Initiator, 1, start);
    let times: Vec<_> = run(&mut checklist, start, 60_000).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, SCHEDULE);
    assert_eq!(checklist.pairs()[0].state, State::Failed);
    assert_eq!(checklist.next_due(), None);
}

#[test]
fn no_two_probes_leave_within_five_milliseconds_and_three_pairs_open_at_once() {
    let start = Instant::now();
    let mut checklist = checklist(SessionRole::Initiator, 8, start);
    let sent = run(&mut checklist, start, 60_000);
    assert_eq!(sent.len(), 8 * SCHEDULE.len());
    assert!(sent.windows(2).all(|w| w[1].0 - w[0].0 >= 5), "{sent:?}");
    for (at, _) in &sent {
        let opening = (0..8)
            .filter(|i| {
                let mut own = sent.iter().filter(|(_, p)| *p == path(*i)).map(|(at, _)| at);
                own.next().is_some_and(|first| first <= at) && own.nth(3).is_some_and(|fifth| fifth > at)
            })
            .count();
        assert!(opening <= 3, "{opening} at {at}");
    }
}

#[test]
fn pairs_that_have_spent_their_budget_keep_no_other_from_its_turn() {
    let start = Instant::now();
    let mut checklist = checklist(SessionRole::Initiator, 0, start);
    // Three at once, which have one probe each and so never end their opening.
    for i in 0..3 {
        checklist.add(path(i), 100, Origin::Announced, start);
    }
    checklist.limit_each_destination(1);
    checklist.add(path(9), 1, Origin::Announced, start);
    let sent = run(&mut checklist, start, 100);
    assert!(sent.iter().any(|(_, sent)| *sent == path(9)), "{sent:?}");
}

#[test]
fn the_observed_address_comes_first_and_then_the_highest_priority() {
    let start = Instant::now();
    let mut checklist = checklist(SessionRole::Responder, 2, start);
    checklist.add(path(77), 0, Origin::Observed, start);
    let order: Vec<_> = run(&mut checklist, start, 10).into_iter().map(|(_, path)| path).collect();
    assert_eq!(order, [path(77), path(0), path(1)]);
}

#[test]
fn a_budget_bounds_what_goes_to_those_who_never_answer() {
    let start = Instant::now();
    let mut checklist = Checklist::new(SessionRole::Initiator, 3, 1);
    for i in 0..4 {
        checklist.add(path(i), 1, Origin::Announced, start);
    }
    assert_eq!(run(&mut checklist, start, 60_000).len(), SCHEDULE.len());
}

#[test]
fn a_response_validates_only_the_path_of_its_challenge_and_only_once() {
    let start = Instant::now();
    let mut checklist = checklist(SessionRole::Initiator, 2, start);
    let due = checklist.poll(start, [1; 8]).unwrap();
    let later = start + ms(20);
    assert_eq!(checklist.on_response(path(1), [1; 8], later), None, "another path");
    assert_eq!(checklist.on_response(due.path, [2; 8], later), None, "other data");
    assert_eq!(checklist.on_response(due.path, [1; 8], later), Some((ms(20), true)));
    assert_eq!(checklist.on_response(due.path, [1; 8], later), None, "again");
}

/// Lets both paths answer, with these RTTs, and tells what is selected after each.
fn select(role: SessionRole, remotes: [(&str, u64); 2]) -> (Checklist, Vec<SocketAddr>) {
    let start = Instant::now();
    let mut checklist = Checklist::new(role, 3, 16);
    let mut selected = Vec::new();
    for (i, (remote, rtt)) in remotes.into_iter().enumerate() {
        let path = Path { socket: SocketId(1), remote: remote.parse().unwrap() };
        checklist.add(path, 1, Origin::Announced, start);
        assert!(checklist.trigger(path, [i as u8; 8], start).is_some());
        assert!(checklist.on_response(path, [i as u8; 8], start + ms(rtt)).is_some());
        selected.extend(checklist.reconsider(start + ms(rtt)).map(|path| path.remote));
    }
    (checklist, selected)
}

#[test]
fn the_initiator_moves_to_a_better_class_or_a_clearly_shorter_way_only() {
    let moves = |remotes| select(SessionRole::Initiator, remotes).1.len() == 2;
    assert!(moves([("192.0.2.1:1", 50), ("[2001:db8::1]:1", 90)]), "IPv6 before IPv4");
    assert!(moves([("[2001:db8::1]:1", 10), ("192.168.0.2:1", 11)]), "the LAN before IPv6");
    assert!(!moves([("192.168.0.2:1", 50), ("192.0.2.1:1", 1)]), "not back");
    assert!(moves([("192.0.2.1:1", 50), ("192.0.2.2:1", 37)]), "a quarter shorter");
    assert!(!moves([("192.0.2.1:1", 50), ("192.0.2.2:1", 40)]), "noise");
    assert!(!moves([("192.0.2.1:1", 6), ("192.0.2.2:1", 2)]), "a small difference");
}

#[test]
fn the_responder_stays_until_the_initiator_nominates() {
    let remotes = [("192.0.2.1:1", 50), ("192.168.0.2:1", 1)];
    let (mut checklist, selected) = select(SessionRole::Responder, remotes);
    assert_eq!(selected.len(), 1);
    let now = Instant::now() + ms(60);
    let other = checklist.pairs()[1].path;
    assert!(checklist.on_challenge(other, 1, true, now).answer);
    assert_eq!(checklist.reconsider(now), Some(other));
    assert_eq!(checklist.reconsider(now), None);
}

#[test]
fn a_nomination_is_repeated_until_it_is_answered() {
    let (mut checklist, _) = select(SessionRole::Initiator, [("192.0.2.1:1", 1), ("192.0.2.2:1", 1)]);
    let first = checklist.next_due().unwrap();
    let due = checklist.poll(first, [9; 8]).unwrap();
    assert!(due.nominate);
    let again = checklist.next_due().unwrap();
    assert_eq!(again - first, ms(SCHEDULE[1]));
    assert!(checklist.on_response(due.path, [9; 8], again).is_some());
    assert_eq!(checklist.next_due(), None);
    assert!(checklist.is_idle());
}

#[test]
fn a_selected_path_that_died_is_left_for_one_that_answers() {
    let remotes = [("192.0.2.1:1", 10), ("192.0.2.2:1", 10)];
    let (mut checklist, _) = select(SessionRole::Responder, remotes);
    let now = Instant::now() + ms(100);
    checklist.recheck_selected(now);
    let mut moved = None;
    while let Some(at) = checklist.next_due().filter(|_| moved.is_none()) {
        checklist.poll(at, [5; 8]);
        moved = checklist.reconsider(at).map(|path| (path, at - now));
    }
    assert_eq!(moved, Some((checklist.pairs()[1].path, ms(SCHEDULE[4]))));
}

#[test]
fn a_selected_path_whose_socket_is_gone_is_left_at_once() {
    let remotes = [("192.0.2.1:1", 10), ("192.0.2.2:1", 10)];
    let (mut checklist, _) = select(SessionRole::Initiator, remotes);
    let other = Path { socket: SocketId(2), remote: "192.0.2.2:1".parse().unwrap() };
    let now = Instant::now() + ms(100);
    checklist.add(other, 1, Origin::Announced, now);
    checklist.trigger(other, [7; 8], now);
    checklist.on_response(other, [7; 8], now + ms(30));
    assert_eq!(checklist.remove_socket(SocketId(1)).len(), 2);
    assert_eq!(checklist.reconsider(now + ms(30)), Some(other));
}

#[test]
fn a_list_resumes_with_the_path_that_was_selected() {
    let start = Instant::now();
    let (checklist, _) = select(SessionRole::Initiator, [("192.0.2.1:1", 10), ("192.0.2.2:1", 10)]);
    let known = checklist.known().unwrap();
    let mut resumed = Checklist::new(SessionRole::Initiator, 3, 16).resume(known, start);
    assert_eq!(resumed.selected, checklist.selected);
    assert!(resumed.is_idle());
    assert_eq!(resumed.reconsider(start), None);
    assert!(Checklist::new(SessionRole::Initiator, 3, 16).known().is_none());
}

#[test]
fn either_side_follows_a_nomination_from_where_the_peer_moved_as_soon_as_that_path_is_validated() {
    for role in [SessionRole::Initiator, SessionRole::Responder] {
        let start = Instant::now();
        let known = Known { path: path(0), rtt: ms(20) };
        let mut checklist = Checklist::new(role, 3, 16).resume(known, start);
        assert!(checklist.on_challenge(path(1), 0, true, start).is_new);
        let due = checklist.trigger(path(1), [1; 8], start).unwrap();
        assert_eq!(checklist.reconsider(start), None, "{role:?}: not validated yet");
        checklist.on_response(path(1), due.data, start + ms(20));
        assert_eq!(checklist.reconsider(start + ms(20)), Some(path(1)), "{role:?}");
    }
}

#[test]
fn whoever_moved_nominates_the_path_that_it_goes_on_using_until_that_is_answered() {
    for role in [SessionRole::Initiator, SessionRole::Responder] {
        let start = Instant::now();
        let mut checklist = Checklist::new(role, 3, 16).resume(Known { path: path(0), rtt: ms(20) }, start);
        assert_eq!(checklist.next_due(), None);
        checklist.restart(start);
        let due = checklist.poll(start, [1; 8]).unwrap();
        assert_eq!(due, Due { path: path(0), data: [1; 8], nominate: true, is_unproven: false }, "{role:?}");
        checklist.on_response(path(0), due.data, start + ms(20));
        let mut later = (1..100).filter_map(|n| checklist.poll(start + ms(20 * n), [n as u8 + 1; 8]));
        assert!(later.all(|due| !due.nominate), "{role:?}");
    }
}
