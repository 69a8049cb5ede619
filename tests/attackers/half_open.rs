//! Places for handshakes and connections that one network could take from the others.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::support::*;

const SERVER: &str = "/ip4/203.0.113.2/udp/4001/quic-v1";
const ATTACKER: [u8; 4] = [198, 51, 100, 66];

/// Dials that honest clients make, one in a second.
const HONEST: usize = 6;
/// The attacker's dials in a second.
const RATE: u32 = 230;

#[tokio::test(start_paused = true)]
async fn one_network_takes_only_its_share_of_the_half_open_places() {
    let world = World::new(1);
    let server = world.public_host([203, 0, 113, 2]);
    let honest = world.public_host([192, 0, 2, 3]);
    let attacker = Attacker::new(world.public_host(ATTACKER));
    attacker.behaving().lock().unwrap().hears = Hears::Retry;
    serve(transport(server, 2, QuicConfig::default()), &[SERVER]);
    let sent = Arc::new(AtomicU64::new(0));
    let copy = sent.clone();
    world.tap(move |packet| {
        if packet.record.from.ip() == IpAddr::from(ATTACKER) {
            copy.fetch_add(packet.payload.len() as u64 + 28, Relaxed);
        }
    });
    let mut patient = QuicConfig::default();
    patient.handshake_timeout = Duration::from_secs(60);
    let mut attacking = transport(Arc::new(attacker), 66, patient);
    let flood = tokio::spawn(async move {
        loop {
            tokio::spawn(attacking.dial(SERVER.parse().unwrap(), FRESH).unwrap());
            tokio::time::sleep(Duration::from_secs(1) / RATE).await;
        }
    });
    // Until the first handshakes time out.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let mut dialer = transport(honest, 3, QuicConfig::default());
    let (mut refused, start) = (0, sent.load(Relaxed));
    for _ in 0..HONEST {
        refused += usize::from(dialer.dial(SERVER.parse().unwrap(), FRESH).unwrap().await.is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    flood.abort();
    let rate = (sent.load(Relaxed) - start) / HONEST as u64 / 1_000;
    println!("{refused} of {HONEST} honest dials were refused while one address sent {rate} kB/s");
    assert_eq!(refused, 0);
}

#[tokio::test(start_paused = true)]
async fn one_network_takes_only_its_share_of_the_connections() {
    const SHARE: u32 = 8;
    let world = World::new(1);
    let server = world.public_host([203, 0, 113, 2]);
    let mut quic = QuicConfig::default();
    quic.max_connections = Some(2 * SHARE);
    quic.max_connections_per_prefix = Some(SHARE);
    serve(transport(server, 2, quic), &[SERVER]);
    let (mut kept, mut refused) = (Vec::new(), 0);
    // Two hosts of one /24.
    for (seed, last) in [(66, 66), (67, 67)] {
        let mut dialer = transport(world.public_host([198, 51, 100, last]), seed, QuicConfig::default());
        for _ in 0..SHARE {
            match dialer.dial(SERVER.parse().unwrap(), FRESH).unwrap().await {
                Ok((_, connection)) => kept.push(connection),
                Err(_) => refused += 1,
            }
        }
    }
    let mut honest = transport(world.public_host([192, 0, 2, 3]), 3, QuicConfig::default());
    let dialed = honest.dial(SERVER.parse().unwrap(), FRESH).unwrap().await;
    println!("one /24 got {} connections, {refused} were refused", kept.len());
    assert!(kept.len() <= SHARE as usize);
    dialed.unwrap();
}
