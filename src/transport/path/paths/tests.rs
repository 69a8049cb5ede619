//! Tests of the paths of a virtual connection.

use proptest::prelude::*;

use super::*;
use libp2p_punch_proto::SocketId;

fn target(n: u32) -> SocketPath<u32> {
    let remote = std::net::SocketAddr::from(([192, 0, 2, 1], 1000 + n as u16));
    SocketPath { path: Path { socket: SocketId(n), remote }, socket: n }
}

/// Sent datagrams: the socket and the datagram's first byte.
#[derive(Default)]
struct SharedEndpoint(Vec<(u32, u8)>);

impl SharedEndpoint {
    fn send(&mut self) -> impl FnMut(&SocketPath<u32>, &[u8]) -> bool + '_ {
        |target, datagram| {
            self.0.push((target.socket, datagram[0]));
            true
        }
    }

    fn take(&mut self) -> Vec<(u32, u8)> {
        std::mem::take(&mut self.0)
    }
}

fn datagrams(ids: &[u8], size: usize) -> Vec<u8> {
    ids.iter().flat_map(|id| vec![*id; size]).collect()
}

fn firsts(datagrams: Option<Vec<Bytes>>) -> Option<Vec<u8>> {
    datagrams.map(|datagrams| datagrams.iter().map(|datagram| datagram[0]).collect())
}

#[test]
fn what_follows_an_answer_takes_the_place_and_the_budget_of_what_was_answered() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    assert_eq!(paths.hold(&datagrams(&[1, 1, 1, 1], 100), 100, wire.send()), 0);
    paths.admit(target(0)).unwrap();
    paths.answered();
    assert!(paths.credit(&target(0).path, 250, wire.send()));
    assert_eq!(wire.take(), []);
    assert_eq!(paths.hold(&datagrams(&[2, 3, 4], 100), 100, wire.send()), 0);
    assert_eq!(wire.take(), [(0, 2), (0, 3)]);
    assert_eq!(firsts(Some(paths.select(target(0), true))), Some(vec![4]), "what found no budget");
}

#[test]
fn a_client_keeps_its_handshake_until_the_server_is_done_with_its_own() {
    let mut paths = Paths::default();
    assert_eq!(paths.unconfirmed(), None);
    paths.answered();
    paths.select(target(0), true);
    paths.sent_on_selected(&datagrams(&[1, 2], 100), 100, true);
    for _ in 1..DONE {
        paths.short_header();
        assert_eq!(firsts(paths.unconfirmed()), Some(vec![1, 2]));
    }
    paths.short_header();
    assert_eq!(paths.unconfirmed(), None);
    assert!(paths.is_settled());
}

#[test]
fn what_was_lost_before_the_peer_was_heard_goes_out_again_within_the_budget() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    paths.permit(target(0), 350, false, wire.send()).unwrap();
    assert_eq!(paths.hold(&datagrams(&[1, 2], 100), 100, wire.send()), 0);
    assert_eq!(wire.take(), [(0, 1), (0, 2)]);
    paths.permit(target(0), 60, true, wire.send()).unwrap();
    assert_eq!(wire.take(), [(0, 1), (0, 2)], "150 were left, and 60 came");
    paths.permit(target(0), 60, true, wire.send()).unwrap();
    assert_eq!(wire.take(), []);
}

#[test]
fn unnamed_paths_are_few_and_get_what_their_budget_allows() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    paths.hold(&datagrams(&[1, 2, 3], 100), 100, wire.send());
    for n in 0..MAX_UNNAMED as u32 {
        paths.meet(target(n), 200, wire.send()).unwrap();
        assert_eq!(wire.take(), [(n, 1), (n, 2)]);
    }
    assert_eq!(paths.meet(target(99), 200, wire.send()), Err(Full));
    assert_eq!(paths.meet(target(0), 100, wire.send()), Ok(()), "it is known");
    assert_eq!(wire.take(), [(0, 3)]);
    paths.admit_met(&target(0).path);
    assert_eq!(
        paths.meet(target(99), 200, wire.send()),
        Err(Full),
        "packets are taken from it, and it is not named"
    );
    paths.admit(target(0)).unwrap();
    assert_eq!(paths.meet(target(99), 0, wire.send()), Ok(()), "one of them has been named");
    assert_eq!(paths.admitted().count(), 1);
}

#[test]
fn the_first_four_datagrams_are_kept_and_go_out_when_permitted() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    assert_eq!(paths.hold(&datagrams(&[1, 2, 3], 100), 100, wire.send()), 0);
    assert_eq!(paths.hold(&datagrams(&[4, 5], 100), 100, wire.send()), 1, "one too many");
    assert_eq!(wire.take(), []);
    paths.permit(target(0), 350, false, wire.send()).unwrap();
    assert_eq!(wire.take(), [(0, 1), (0, 2), (0, 3)]);
    paths.permit(target(0), 60, false, wire.send()).unwrap();
    assert_eq!(wire.take(), [(0, 4)], "50 were left over, and nothing goes twice");
}

#[test]
fn the_most_recently_permitted_path_with_room_carries_what_comes_next() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    paths.permit(target(0), 1000, false, wire.send()).unwrap();
    paths.permit(target(1), 100, false, wire.send()).unwrap();
    assert!(paths.credit(&target(1).path, 50, wire.send()));
    assert_eq!(paths.best(), Some(&target(1)));
    paths.hold(&datagrams(&[1, 2], 100), 100, wire.send());
    assert_eq!(wire.take(), [(1, 1), (0, 2)]);
}

#[test]
fn every_permitted_path_carries_what_is_sent_until_the_peer_was_heard() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    paths.permit(target(0), 1000, false, wire.send()).unwrap();
    paths.permit(target(1), 150, false, wire.send()).unwrap();
    paths.hold(&datagrams(&[1, 2], 100), 100, wire.send());
    assert_eq!(wire.take(), [(1, 1), (0, 1), (0, 2)]);
    assert!(paths.credit(&target(0).path, 300, wire.send()));
    paths.hold(&datagrams(&[3], 100), 100, wire.send());
    assert_eq!(wire.take(), [(0, 3)]);
}

#[test]
fn a_path_that_blocks_costs_no_budget() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    paths.permit(target(0), 100, false, wire.send()).unwrap();
    paths.hold(&datagrams(&[1], 100), 100, |_, _| false);
    paths.permit(target(0), 0, false, wire.send()).unwrap();
    assert_eq!(wire.take(), [(0, 1)]);
}

#[test]
fn selection_sends_everything_again_while_nothing_was_heard() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    paths.permit(target(0), 1000, false, wire.send()).unwrap();
    paths.hold(&datagrams(&[1, 2], 100), 100, wire.send());
    assert_eq!(firsts(Some(paths.select(target(0), false))), Some(vec![1, 2]));
    assert_eq!(firsts(Some(paths.select(target(0), false))), Some(vec![]), "selected already");
    paths.sent_on_selected(&datagrams(&[3], 100), 100, false);
    assert_eq!(firsts(Some(paths.select(target(1), false))), Some(vec![1, 2, 3]));
}

#[test]
fn selection_sends_what_was_held_back_and_the_last_datagram_once_the_peer_was_heard() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    let flight = datagrams(&[1, 2], 100);
    paths.hold(&flight, 100, wire.send());
    assert_eq!(firsts(Some(paths.capture())), Some(vec![1, 2]));
    let reply = datagrams(&[3], 100);
    paths.remember(&reply, 100);
    paths.hold(&reply, 100, wire.send());
    assert_eq!(firsts(Some(paths.select(target(0), true))), Some(vec![3]), "the last one goes once");
    paths.remember(&datagrams(&[4, 5], 100), 100);
    assert_eq!(firsts(Some(paths.select(target(1), true))), Some(vec![5]));
}

#[test]
fn after_selection_no_budget_is_left() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    paths.permit(target(0), 1000, false, wire.send()).unwrap();
    paths.select(target(1), false);
    assert!(!paths.forget(&target(1).path), "it was never admitted");
    assert_eq!(paths.selected(), None);
    paths.hold(&datagrams(&[1], 100), 100, wire.send());
    assert_eq!(wire.take(), []);
}

#[test]
fn paths_are_bounded_and_selection_always_works() {
    let mut paths = Paths::default();
    for n in 0..MAX_PATHS as u32 {
        assert_eq!(paths.admit(target(n)), Ok(()));
    }
    assert_eq!(paths.admit(target(0)), Ok(()), "again");
    assert_eq!(paths.admit(target(999)), Err(Full));
    assert_eq!(paths.permit(target(999), 1, false, |_, _| true), Err(Full));
    let _ = paths.select(target(999), false);
    assert_eq!(paths.best(), Some(&target(999)));
    assert!(paths.forget(&target(0).path));
    assert!(!paths.forget(&target(0).path));
    assert_eq!(paths.admit(target(998)), Ok(()));
}

#[test]
fn who_no_longer_listens_on_a_path_may_still_send_there() {
    let (mut paths, mut wire) = (Paths::default(), SharedEndpoint::default());
    paths.admit(target(0)).unwrap();
    paths.admit(target(1)).unwrap();
    paths.permit(target(0), 1000, false, wire.send()).unwrap();
    (0..2).for_each(|n| paths.dismiss(&target(n).path));
    assert_eq!(paths.admitted().count(), 0);
    paths.hold(&datagrams(&[1], 100), 100, wire.send());
    assert_eq!(wire.take().len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Permit(u32, usize),
    Send(Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u32..3, 0usize..4000).prop_map(|(path, budget)| Step::Permit(path, budget)),
        prop::collection::vec(1usize..1500, 1..4).prop_map(Step::Send),
    ]
}

proptest! {
    #[test]
    fn a_budget_is_never_exceeded(steps in prop::collection::vec(step(), 1..30)) {
        let mut paths = Paths::default();
        let (mut allowed, mut sent) = ([0usize; 3], [0usize; 3]);
        for step in steps {
            let mut send = |target: &SocketPath<u32>, datagram: &[u8]| {
                sent[target.socket as usize] += datagram.len();
                true
            };
            match step {
                Step::Permit(path, budget) => {
                    allowed[path as usize] += budget;
                    paths.permit(target(path), budget, false, &mut send).unwrap();
                }
                Step::Send(sizes) => for size in sizes {
                    paths.hold(&vec![0; size], size, &mut send);
                },
            }
            for path in 0..3 {
                prop_assert!(sent[path] <= allowed[path]);
            }
        }
    }
}
