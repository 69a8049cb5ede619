//! Pairs of sites that end in a direct connection, and their times.

use std::time::Duration;

use libp2p::swarm::SwarmEvent;
use libp2p_punch::Config;
use libp2p_punch_sim::World;
use tokio::time::Instant;

use crate::{
    nats::{self, observed},
    network::{Site, coordinator, on_paused_time, registered, run, swarm, until},
};

/// Round-trip times between dialer and coordinator, listener and coordinator, dialer and listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) a: Duration,
    pub(crate) b: Duration,
    pub(crate) d: Duration,
}

impl Geometry {
    const fn ms(a: u64, b: u64, d: u64) -> Self {
        Self { a: Duration::from_millis(a), b: Duration::from_millis(b), d: Duration::from_millis(d) }
    }

    /// No scheme with a third party is sooner.
    fn bound(self) -> Duration {
        (self.a + self.b + self.d) / 2
    }
}

pub(crate) const EVEN: Geometry = Geometry::ms(50, 50, 50);

/// A dial of the matrix.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    pub(crate) dialer: Site,
    pub(crate) listener: Site,
    pub(crate) geometry: Geometry,
    pub(crate) loss: f64,
    pub(crate) seed: u64,
    /// The configurations of both sides, but for the coordinator.
    pub(crate) configs: [Config; 2],
    /// Interval at which other hosts behind the dialer's and the listener's NAT take a port.
    pub(crate) others: Option<Duration>,
    /// The dial does not wait until the dialer's NAT is measured.
    pub(crate) hasty: bool,
}

impl Dial {
    pub(crate) fn new(dialer: Site, listener: Site, geometry: Geometry, seed: u64) -> Self {
        let configs = [Config::default(), Config::default()];
        Self { dialer, listener, geometry, loss: 0.0, seed, configs, others: None, hasty: false }
    }

    /// From `dial` to a connection that application data can be sent on, or why there is none.
    pub(crate) fn run(self) -> Result<Duration, String> {
        on_paused_time(self.dial())
    }

    async fn dial(self) -> Result<Duration, String> {
        let world = World::new(self.seed);
        let (c, address) = coordinator(&world);
        let config = |config: &Config| {
            let mut config = config.clone();
            config.coordinators = vec![address.clone()];
            config
        };
        let a = nats::host(self.dialer, &world, 1, self.loss, self.others);
        let b = nats::host(self.listener, &world, 2, self.loss, self.others);
        let Geometry { a: to_a, b: to_b, d } = self.geometry;
        world.set_path(&a, &c, to_a / 2);
        world.set_path(&b, &c, to_b / 2);
        world.set_path(&a, &b, d / 2);
        let [config_a, config_b] = self.configs.each_ref().map(config);
        let mut dialer = swarm(&a, 1, config_a, |punch, _| punch);
        let mut listener = swarm(&b, 2, config_b, |punch, _| punch);
        observed(&mut listener).await;
        let peer = run(listener);
        match self.hasty {
            true => registered(&mut dialer).await,
            false => observed(&mut dialer).await,
        }
        let begin = Instant::now();
        dialer.dial(peer).expect("the peer is not dialed yet");
        until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } if peer_id == peer => {
                assert!(!endpoint.is_relayed(), "no relay runs here");
                Some(Ok(begin.elapsed()))
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(id), error, .. } if id == peer => {
                Some(Err(error.to_string()))
            }
            _ => None,
        })
        .await
    }
}

fn dial(dialer: Site, listener: Site, geometry: Geometry, loss: f64, seed: u64) -> Result<Duration, String> {
    Dial { loss, ..Dial::new(dialer, listener, geometry, seed) }.run()
}

fn every_pair_is_direct(pairs: &[(Site, Site)], loss: f64) {
    let mut failed = Vec::new();
    for (index, (dialer, listener)) in pairs.iter().enumerate() {
        if let Err(why) = dial(*dialer, *listener, EVEN, loss, index as u64) {
            failed.push(format!("{dialer:?} -> {listener:?}: {why}"));
        }
    }
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), pairs.len());
}

fn eim_pairs() -> Vec<(Site, Site)> {
    Site::EIM.iter().flat_map(|dialer| Site::EIM.map(|listener| (*dialer, listener))).collect()
}

#[test]
fn every_pair_of_endpoint_independent_mapping_is_direct_without_loss() {
    every_pair_is_direct(&eim_pairs(), 0.0);
}

#[test]
fn every_pair_of_endpoint_independent_mapping_is_direct_at_five_percent_loss() {
    every_pair_is_direct(&eim_pairs(), 0.05);
}

#[test]
fn every_pair_of_endpoint_independent_mapping_is_direct_at_twenty_percent_loss() {
    every_pair_is_direct(&eim_pairs(), 0.2);
}

#[test]
fn endpoint_dependent_mapping_is_direct_against_public_and_filters_that_ignore_ports() {
    let easy = [Site::Public, Site::EIM_EIF, Site::EIM_ADF];
    let pairs: Vec<_> =
        easy.iter().flat_map(|&site| [(Site::APDM_RANDOM, site), (site, Site::APDM_RANDOM)]).collect();
    for loss in [0.0, 0.05] {
        every_pair_is_direct(&pairs, loss);
    }
}

#[test]
fn a_dial_takes_half_the_sum_of_the_three_round_trips() {
    for geometry in [
        EVEN,
        Geometry::ms(50, 50, 100),
        Geometry::ms(20, 180, 180),
        Geometry::ms(180, 20, 180),
        Geometry::ms(100, 100, 20),
        Geometry::ms(200, 200, 200),
    ] {
        let elapsed = dial(Site::EIM_APDF, Site::EIM_APDF, geometry, 0.0, 1).expect("direct");
        println!("{geometry:?}: {elapsed:?}, bound {:?}", geometry.bound());
        assert!(elapsed >= geometry.bound(), "sooner than possible");
        assert!(elapsed <= geometry.bound() + Duration::from_millis(10), "{elapsed:?} at {geometry:?}");
    }
}

#[test]
fn a_dialer_that_needs_no_hole_takes_half_the_sum_of_the_three_round_trips_in_every_geometry() {
    for geometry in [
        Geometry::ms(300, 20, 50),
        Geometry::ms(200, 20, 20),
        Geometry::ms(100, 40, 20),
        Geometry::ms(180, 20, 100),
        Geometry::ms(20, 300, 50),
        Geometry::ms(50, 50, 50),
    ] {
        for dialer in [Site::Public, Site::EIM_EIF] {
            for listener in Site::EIM {
                let elapsed = dial(dialer, listener, geometry, 0.0, 1).expect("direct");
                println!("{dialer:?} to {listener:?}, {geometry:?}: {elapsed:?}");
                let limit = (geometry.a + geometry.b + geometry.d) / 2 + Duration::from_millis(10);
                assert!(elapsed <= limit, "{elapsed:?} at {geometry:?}, {dialer:?} to {listener:?}");
            }
        }
    }
}

#[test]
fn a_dialer_far_from_the_coordinator_waits_for_one_round_trip_after_the_answer() {
    for geometry in [
        Geometry::ms(300, 20, 50),
        Geometry::ms(200, 20, 20),
        Geometry::ms(100, 40, 20),
        Geometry::ms(180, 20, 100),
    ] {
        for (dialer, listener) in eim_pairs() {
            let elapsed = dial(dialer, listener, geometry, 0.0, 1).expect("direct");
            println!("{dialer:?} to {listener:?}, {geometry:?}: {elapsed:?}");
            let limit = geometry.a + geometry.d + Duration::from_millis(10);
            assert!(elapsed <= limit, "{elapsed:?} at {geometry:?}, {dialer:?} to {listener:?}");
        }
    }
}

#[test]
fn a_hopeless_pair_fails_with_a_reason_within_the_time_outs() {
    let why = dial(Site::APDM_RANDOM, Site::APDM_RANDOM, EVEN, 0.0, 1).expect_err("no way through");
    assert!(why.contains("only a relay can help"), "{why}");
}
