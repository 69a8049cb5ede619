use super::*;

const KEY: [u8; 32] = [7; 32];

fn offer() -> ObserverOffer {
    ObserverOffer { ports: vec![1005], token: [3; 8], key: KEY }
}

/// Runs a measurement against an observer. A reply arrives if `passes` returns true for its delay
/// and for its kind, true for the delayed reply.
fn measured(passes: impl Fn(u16, bool) -> bool) -> (Option<IdleLifetime>, usize, Duration) {
    let (start, peer) = (Instant::now(), PeerId::random());
    let (mut idling, mut delayed_replies, mut names) =
        (BindingLifetimeTest::default(), DelayedReplies::new(), 0u64);
    let from = ControlStream::new(ControlStreamId(1), peer, None, None);
    idling.offered(&from, [192, 0, 2, 1].into(), &offer(), start);
    let sockets: Vec<SocketId> = (0..8).map(SocketId).collect();
    let delay = |socket: SocketId| DELAYS[socket.0 as usize];
    let mut sent = 0;
    let mut now = start;
    loop {
        while let Some(step) = idling.poll(now) {
            match step {
                Step::Open => {
                    let name = || {
                        names += 1;
                        names.to_be_bytes()
                    };
                    assert!(idling.opened(&sockets, name, now));
                }
                Step::Send(path, datagram) => {
                    sent += 1;
                    let data = datagram[11..19].try_into().unwrap();
                    let delay_asked = delay_of(&datagram[19..37]).unwrap();
                    let asked = HoldRequest { data, delay: delay_asked, key: KEY };
                    let reply = delayed_replies.hold(&from, path, asked, now).unwrap();
                    if passes(delay(path.socket), false) {
                        assert!(idling.answered(path.socket, &reply, now));
                    }
                }
                Step::Close => {
                    return (idling.result().map(|finding| finding.value), sent, now - start);
                }
            }
        }
        for (path, datagram) in delayed_replies.poll(now) {
            if passes(delay(path.socket), true) {
                assert!(idling.answered(path.socket, &datagram, now));
            }
        }
        now = [idling.next_deadline(), delayed_replies.next_deadline()].into_iter().flatten().min().unwrap();
    }
}

fn lifetime(at_least: u64, less_than: Option<u64>) -> Option<IdleLifetime> {
    let secs = Duration::from_secs;
    Some(IdleLifetime { at_least: secs(at_least), less_than: less_than.map(secs) })
}

#[test]
fn the_longest_silence_that_an_answer_outlived_and_the_next_one_bound_the_lifetime() {
    assert_eq!(measured(|delay, held| !held || delay < 60).0, lifetime(55, Some(75)));
    assert_eq!(measured(|delay, held| !held || delay < 30).0, lifetime(20, Some(40)));
    assert_eq!(measured(|_, held| !held).0, lifetime(0, Some(20)));
    let (found, sent, took) = measured(|_, _| true);
    assert_eq!((found, sent), (lifetime(290, None), 16));
    assert!(took <= Duration::from_secs(310), "{took:?}");
}

#[test]
fn what_arrived_late_counts_more_than_what_got_lost_early() {
    assert_eq!(measured(|delay, held| !held || (delay < 130 && delay != 40)).0, lifetime(100, Some(150)));
}

#[test]
fn an_observer_that_never_answers_shows_nothing_and_is_asked_four_times() {
    let (found, sent, _) = measured(|_, _| false);
    assert_eq!((found, sent), (None, 32));
}

#[test]
fn an_observer_keeps_so_many_requests_of_a_client_and_answers_each_twice() {
    let (mut delayed_replies, now) = (DelayedReplies::new(), Instant::now());
    let [client, other] =
        [1, 2].map(|id| ControlStream::new(ControlStreamId(id), PeerId::random(), None, None));
    let path = Path { socket: SocketId(1), remote: ([192, 0, 2, 1], 5).into() };
    let request = |n: u8| HoldRequest { data: [n; 8], delay: 20, key: KEY };
    let mut hold = |n: u8, now| delayed_replies.hold(&client, path, request(n), now).is_some();
    assert!((0..8).all(|n| hold(n, now)));
    assert!(!hold(8, now) && hold(7, now), "the same once more is no other one");
    let later = now + Duration::from_secs(20);
    assert_eq!(delayed_replies.next_deadline(), Some(later));
    let answers = delayed_replies.poll(later).len() + delayed_replies.poll(later + REPLY_INTERVAL).len();
    assert_eq!((answers, delayed_replies.next_deadline()), (16, None));
    delayed_replies.hold(&other, path, request(1), now);
    delayed_replies.stream_down(ControlStreamId(2));
    assert_eq!(delayed_replies.next_deadline(), None);
}

#[test]
fn only_an_authentic_answer_to_the_very_request_counts() {
    let whole = answer(&KEY, [5; 8], true);
    assert_eq!(judge(&whole, &KEY, [5; 8]), Some(true));
    assert_eq!(judge(&answer(&KEY, [5; 8], false), &KEY, [5; 8]), Some(false));
    assert_eq!(judge(&whole, &KEY, [6; 8]), None);
    assert_eq!(judge(&whole, &[8; 32], [5; 8]), None);
    for at in 0..PROBE_LEN {
        let mut forged = whole;
        forged[at] ^= 2;
        assert_eq!(judge(&forged, &KEY, [5; 8]), None, "byte {at}");
    }
    assert_eq!(judge(&whole[..52], &KEY, [5; 8]), None);
    assert_eq!((delay_of(&[0; 18]), delay_of(&[0xff; 18])), (None, None));
}
