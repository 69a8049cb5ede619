//! Links delay, lose, reorder, duplicate, limit and cut as configured.

use std::{sync::Arc, time::Duration};

use crate::support::{ms, socket, within_a_second};
use libp2p_punch_sim::{Host, Link, Nat, Socket, SocketConfig, Stats, Trace, Verdict, World};
use tokio::time::Instant;

/// Two public hosts with a socket each; the first one's link is `link`, the second one's is
/// perfect.
fn pair(seed: u64, link: Link) -> (World, [Arc<Host>; 2], [Arc<Socket>; 2]) {
    let world = World::new(seed);
    let hosts = [1, 2].map(|last| world.public_host([203, 0, 113, last]));
    world.set_link(&hosts[0], link);
    world.set_link(&hosts[1], Link::default());
    let sockets = [0, 1].map(|index| socket(&hosts[index], 80));
    (world, hosts, sockets)
}

fn send(from: &Socket, payload: &[u8]) {
    from.send_to(([203, 0, 113, 2], 80).into(), payload);
}

/// The numbers that arrive of `count`, sent a millisecond apart.
async fn numbers(count: u16, [from, to]: &[Arc<Socket>; 2]) -> Vec<u16> {
    for number in 0..count {
        send(from, &number.to_be_bytes());
        tokio::time::sleep(ms(1)).await;
    }
    let arrived = within_a_second(to).await;
    arrived.iter().map(|datagram| u16::from_be_bytes([datagram.payload[0], datagram.payload[1]])).collect()
}

#[tokio::test(start_paused = true)]
async fn latency_in_whole_milliseconds_is_exact() {
    let (world, hosts, [a, b]) = pair(1, Link::with_latency(ms(17)));
    for (set, expected) in [(None, ms(17)), (Some(ms(25)), ms(25))] {
        if let Some(one_way) = set {
            world.set_path(&hosts[0], &hosts[1], one_way);
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            let before = Instant::now();
            from.send_to(([203, 0, 113, if Arc::ptr_eq(to, &b) { 2 } else { 1 }], 80).into(), b"tick");
            to.receive().await;
            assert_eq!(before.elapsed(), expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn any_latency_is_recorded_exactly_and_woken_at_the_next_tick() {
    let latency = Duration::from_nanos(12_345_678);
    let (world, _hosts, [a, b]) = pair(1, Link::with_latency(latency));
    let trace = Trace::start(&world);
    let before = Instant::now();
    send(&a, b"tick");
    b.receive().await;
    assert_eq!(before.elapsed(), ms(13));
    let records = trace.records();
    assert_eq!(records[0].at - records[0].sent, latency);
}

#[tokio::test(start_paused = true)]
async fn a_line_of_the_trace_tells_the_whole_journey() {
    let world = World::new(1);
    let server = socket(&world.public_host([203, 0, 113, 1]), 80);
    let client = socket(&world.nat(Nat::random(), [198, 51, 100, 1]).host([192, 168, 1, 2]), 5000);
    let trace = Trace::start(&world);
    client.send_to(([203, 0, 113, 1], 80).into(), &[7; 40]);
    let seen = server.receive().await.from;
    let expected = format!(
        "     0.000 ms  192.168.1.2:5000 -> 203.0.113.1:80 (as {seen} -> 203.0.113.1:80)  40 B [0x07]  Delivered at 20.000 ms\n"
    );
    assert_eq!(trace.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_path_between_hosts_behind_nats_is_exact_end_to_end_and_may_differ_by_direction() {
    let world = World::new(1);
    let [a, b] = [1, 2].map(|last| {
        let gateway = world.nat(Nat::default(), [198, 51, 100, last]);
        let host = gateway.host([192, 168, 1, 2]);
        gateway.forward(80, ([192, 168, 1, 2], 80).into());
        host
    });
    world.set_path_towards(&a, &b, ms(20));
    world.set_path_towards(&b, &a, ms(31));
    let [at_a, at_b] = [&a, &b].map(|host| socket(host, 80));
    let before = Instant::now();
    at_a.send_to(([198, 51, 100, 2], 80).into(), b"there");
    let from = at_b.receive().await.from;
    assert_eq!(before.elapsed(), ms(20));
    at_b.send_to(from, b"and back");
    at_a.receive().await;
    assert_eq!(before.elapsed(), ms(51));
}

#[tokio::test(start_paused = true)]
async fn loss_is_close_to_its_probability_and_the_same_for_the_same_seed() {
    let lost = async |seed| {
        let (world, _hosts, sockets) = pair(seed, Link { loss: 0.1, ..Link::default() });
        let arrived = numbers(5000, &sockets).await.len() as u64;
        let lost = world.stats().of(Verdict::Lost);
        assert_eq!(arrived + lost, 5000);
        lost
    };
    let counts = [lost(1).await, lost(2).await, lost(3).await];
    // The standard deviation is 21.
    assert!(counts.iter().all(|count| (415..=585).contains(count)), "{counts:?}");
    assert_eq!(lost(1).await, counts[0]);
    assert!(counts[0] != counts[1] || counts[1] != counts[2], "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reordering_link_changes_the_order_and_nothing_else() {
    let (_world, _hosts, sockets) = pair(1, Link { reorder: 0.1, ..Link::default() });
    let mut arrived = numbers(500, &sockets).await;
    let late = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!((25..=75).contains(&late), "{late}");
    arrived.sort_unstable();
    assert_eq!(arrived, (0..500).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_arrivals_but_keeps_the_order() {
    let (world, _hosts, sockets) = pair(1, Link { jitter: ms(20), ..Link::default() });
    let trace = Trace::start(&world);
    assert_eq!(numbers(500, &sockets).await, (0..500).collect::<Vec<_>>());
    let delays: Vec<_> = trace.records().iter().map(|record| record.at - record.sent).collect();
    assert!(delays.iter().all(|delay| *delay <= ms(20)));
    assert!(delays.iter().max().unwrap().abs_diff(*delays.iter().min().unwrap()) > ms(5));
}

#[tokio::test(start_paused = true)]
async fn a_duplicating_link_delivers_copies_and_counts_them() {
    let (world, _hosts, sockets) = pair(1, Link { duplicate: 0.2, ..Link::default() });
    let mut arrived = numbers(500, &sockets).await;
    let Stats { sent, duplicated, .. } = world.stats();
    assert_eq!((sent, arrived.len() as u64), (500, 500 + duplicated));
    assert!((60..=140).contains(&duplicated), "{duplicated}");
    arrived.dedup();
    assert_eq!(arrived, (0..500).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_spaces_datagrams_and_drops_what_its_queue_does_not_hold() {
    // 1000 bytes with headers take 10 ms, and three of them may wait.
    let link = Link { rate: Some(100_000), queue: 3000, ..Link::default() };
    let (world, _hosts, [a, b]) = pair(1, link);
    let trace = Trace::start(&world);
    (0..10).for_each(|_| send(&a, &[0; 972]));
    let arrived = within_a_second(&b).await.len();
    let delivered: Vec<_> = trace.records().into_iter().filter(|r| r.verdict == Verdict::Delivered).collect();
    assert_eq!(delivered.iter().map(|r| r.at - r.sent).collect::<Vec<_>>(), [ms(10), ms(20), ms(30)]);
    assert_eq!(arrived, 3);
    assert_eq!(world.stats().of(Verdict::QueueFull), 7);
}

#[tokio::test(start_paused = true)]
async fn a_datagram_larger_than_the_mtu_is_dropped_and_counted() {
    let (world, _hosts, [a, b]) = pair(1, Link { mtu: 1280, ..Link::default() });
    send(&a, &[0; 1252]);
    send(&a, &[0; 1253]);
    assert_eq!(within_a_second(&b).await.len(), 1);
    assert_eq!(world.stats().of(Verdict::TooBig), 1);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_pair_is_cut_off_until_it_is_unblocked() {
    let (world, hosts, [a, b]) = pair(1, Link::default());
    world.block(&hosts[0], &hosts[1]);
    send(&a, b"lost");
    assert!(within_a_second(&b).await.is_empty());
    assert_eq!(world.stats().of(Verdict::Blocked), 1);
    world.unblock(&hosts[0], &hosts[1]);
    send(&a, b"found");
    assert_eq!(&*b.receive().await.payload, b"found");
}

#[tokio::test(start_paused = true)]
async fn a_full_receive_buffer_drops_until_it_is_read() {
    let (world, hosts, [a, _b]) = pair(1, Link::default());
    hosts[1].configure(SocketConfig { receive_buffer: 2500, ..SocketConfig::default() });
    let small = socket(&hosts[1], 81);
    (0..3).for_each(|_| a.send_to(([203, 0, 113, 2], 81).into(), &[0; 1000]));
    assert_eq!(within_a_second(&small).await.len(), 2);
    assert_eq!(world.stats().of(Verdict::BufferFull), 1);
    assert_eq!(world.stats().bytes_delivered, 2000);
    a.send_to(([203, 0, 113, 2], 81).into(), &[0; 1000]);
    small.receive().await;
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let trace = async |seed| {
        let link = Link { loss: 0.1, jitter: ms(5), reorder: 0.1, duplicate: 0.1, ..Link::default() };
        let (world, _hosts, sockets) = pair(seed, link);
        let trace = Trace::start(&world);
        numbers(200, &sockets).await;
        assert!(world.stats().ended() > 200);
        trace.records()
    };
    let first = trace(1).await;
    assert_eq!(trace(1).await, first);
    assert_ne!(trace(2).await, first);
}
