//! Time of a dial, against the bound of any scheme with a third party: `cargo bench --bench
//! time_to_connect`.
//!
//! Whole swarms on the simulated network, EIM+APDF NATs on both sides, simulated time.

#[path = "../tests/punch/network.rs"]
mod network;

use std::time::Duration;

use libp2p::swarm::SwarmEvent;
use libp2p_punch::counters::Counters;
use libp2p_punch_sim::World;
use network::{Site, client, coordinator, on_paused_time, registered, run, swarm, until};
use tokio::time::Instant;

/// The hardest pair that needs no prediction.
const HARD: [Site; 2] = [Site::EIM_APDF, Site::EIM_APDF];
/// All three round trips 50 ms.
const EVEN: [u64; 3] = [50; 3];

/// The times of some dials, sorted, and the dialer's counters of the last.
struct Figures {
    times: Vec<Duration>,
    counters: Counters,
}

impl Figures {
    /// In milliseconds: 0.5 is the median, 1 the worst.
    fn at(&self, share: f64) -> f64 {
        let index = ((self.times.len() - 1) as f64 * share).round() as usize;
        self.times[index].as_secs_f64() * 1e3
    }
}

fn dial(sites: [Site; 2], [a, b, d]: [u64; 3], loss: f64, seed: u64) -> (Duration, Counters) {
    on_paused_time(async move {
        let world = World::new(seed);
        let (c, address) = coordinator(&world);
        let (host_a, host_b) = (sites[0].host(&world, 1, loss), sites[1].host(&world, 2, loss));
        for (x, y, rtt) in [(&host_a, &c, a), (&host_b, &c, b), (&host_a, &host_b, d)] {
            world.set_path(x, y, Duration::from_millis(rtt) / 2);
        }
        let mut dialer = swarm(&host_a, 1, client(&address), |punch, _| punch);
        let mut listener = swarm(&host_b, 2, client(&address), |punch, _| punch);
        registered(&mut listener).await;
        let peer = run(listener);
        registered(&mut dialer).await;
        let begin = Instant::now();
        dialer.dial(peer).expect("the peer is not dialed yet");
        let connected = |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => Some(Instant::now()),
            SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
            _ => None,
        };
        let end = until(&mut dialer, connected).await;
        // Probing goes on for a while, in search of a better path.
        let _ = tokio::time::timeout(Duration::from_secs(10), until(&mut dialer, |_| None::<()>)).await;
        (end - begin, dialer.behaviour().counters())
    })
}

fn figures(sites: [Site; 2], geometry: [u64; 3], loss: f64, runs: u64) -> Figures {
    let runs = (1..=runs).map(|seed| dial(sites, geometry, loss, seed));
    let (mut times, counters): (Vec<_>, Vec<_>) = runs.unzip();
    times.sort();
    Figures { times, counters: counters.last().copied().unwrap_or_default() }
}

fn main() {
    println!("| a, b, d (ms) | bound (ms) | dial (ms) | over the bound | probes of the dialer |");
    println!("|---|---|---|---|---|");
    for geometry in [
        [50, 50, 50],
        [25, 25, 50],
        [50, 50, 100],
        [20, 180, 180],
        [180, 20, 180],
        [100, 100, 20],
        [200, 200, 200],
    ] {
        let bound = geometry.iter().sum::<u64>() as f64 / 2.0;
        let figures = figures(HARD, geometry, 0.0, 1);
        let (took, counters) = (figures.at(1.0), figures.counters.protocol);
        let probes = format!("{}, {} B", counters.probes_sent, counters.probe_bytes_sent);
        println!("| {geometry:?} | {bound:.1} | {took:.1} | {:.1} ms | {probes} |", took - bound);
    }
    println!("\n| a, b, d (ms) | bound (ms) | a + d (ms) | dial (ms) | dial of a public dialer (ms) |");
    println!("|---|---|---|---|---|");
    for geometry in [[300, 20, 50], [200, 20, 20], [100, 40, 20], [180, 20, 100]] {
        let [a, b, d] = geometry;
        let took = [HARD, [Site::Public, HARD[1]]].map(|sites| figures(sites, geometry, 0.0, 1).at(1.0));
        let bound = (a + b + d) as f64 / 2.0;
        println!("| {geometry:?} | {bound:.1} | {} | {:.1} | {:.1} |", a + d, took[0], took[1]);
    }
    println!("\n| dialer | listener | dial (ms), a = b = d = 50 ms |");
    println!("|---|---|---|");
    let endpoint_dependent = [Site::EIM_EIF, Site::EIM_ADF].map(|open| [Site::APDM_RANDOM, open]);
    for [dialer, listener] in
        Site::EIM.into_iter().chain([Site::Bare]).map(|site| [site, Site::EIM_APDF]).chain(endpoint_dependent)
    {
        let took = figures([dialer, listener], EVEN, 0.0, 1).at(1.0);
        println!("| {dialer:?} | {listener:?} | {took:.1} |");
    }
    println!("\n| loss, a = b = d = 50 ms | runs | median (ms) | 95% (ms) | worst (ms) |");
    println!("|---|---|---|---|---|");
    for loss in [0.01, 0.05, 0.2] {
        let figures = figures(HARD, EVEN, loss, 200);
        let [median, most, worst] = [0.5, 0.95, 1.0].map(|share| figures.at(share));
        println!("| {:.0}% | 200 | {median:.0} | {most:.0} | {worst:.0} |", loss * 100.0);
    }
}
