//! Times at which relays are asked: soon enough for every pair, not for pairs that are direct at
//! once, and not without end.

use std::{sync::Arc, time::Duration};

use libp2p::{
    PeerId, Swarm,
    swarm::{DialError, dial_opts::DialOpts},
};
use libp2p_punch::{Event, RelayEvent};
use libp2p_punch_sim::{Host, Link, Nat, World};
use tokio::time::Instant;

use crate::{
    nats,
    network::{Site, client, on_paused_time},
    relaying::{Peer, Seen, clients, peer_at, relay, reserved, see, serve, watch},
};

const RTT: Duration = Duration::from_millis(50);

/// Round trips of [`RTT`] between all hosts.
fn apart(world: &World, hosts: &[&Arc<Host>]) {
    for (index, a) in hosts.iter().enumerate() {
        hosts[index + 1..].iter().for_each(|b| world.set_path(*a, *b, RTT / 2));
    }
}

/// From the dial to a relayed connection.
async fn relayed_after(dialer: &mut Swarm<Peer>, listener: PeerId) -> Duration {
    let begin = Instant::now();
    dialer.dial(listener).expect("not dialed yet");
    loop {
        match see(dialer, listener).await {
            Seen::Connected { relayed, .. } => {
                assert!(relayed, "nothing gets through directly");
                return begin.elapsed();
            }
            Seen::NotDialed(why) => panic!("{why}"),
            _ => {}
        }
    }
}

/// Two peers between which nothing gets through, and their hosts, the dialer's first.
async fn blocked(world: &World, hosts: [Arc<Host>; 2]) -> (Swarm<Peer>, PeerId, [Arc<Host>; 2]) {
    let (c, address, _) = relay(world, 254);
    apart(world, &[&hosts[0], &hosts[1], &c]);
    let mut listener = peer_at(&hosts[1], 2, client(&address));
    reserved(&mut listener).await;
    let listener = serve(listener, Duration::ZERO);
    let mut dialer = peer_at(&hosts[0], 1, client(&address));
    reserved(&mut dialer).await;
    watch(&mut dialer, listener, Duration::from_secs(1)).await;
    world.block(&hosts[0], &hosts[1]);
    (dialer, listener, hosts)
}

#[test]
fn every_pair_that_meets_silence_is_relayed_within_a_second_and_a_half() {
    let mut longest = Duration::ZERO;
    for dialer in nats::ALL {
        for listener in nats::ALL {
            let took = on_paused_time(async {
                let world = World::new(1);
                let hosts =
                    [nats::host(dialer, &world, 1, 0.0, None), nats::host(listener, &world, 2, 0.0, None)];
                let (mut swarm, peer, _) = blocked(&world, hosts).await;
                relayed_after(&mut swarm, peer).await
            });
            assert!(took <= Duration::from_millis(1_500), "{dialer:?} -> {listener:?}: {took:?}");
            longest = longest.max(took);
        }
    }
    println!("the longest: {longest:?}");
}

#[test]
fn a_dialer_whose_nat_lost_its_state_is_relayed_within_a_second_and_a_half() {
    let took = on_paused_time(async {
        let world = World::new(1);
        let gateway = world.nat(Nat::random(), [198, 51, 100, 1]);
        world.set_link(&gateway, Link::with_latency(Duration::ZERO));
        let hosts = [gateway.host([192, 168, 1, 2]), Site::APDM_RANDOM.host(&world, 2, 0.0)];
        let (mut swarm, peer, _) = blocked(&world, hosts).await;
        gateway.flush();
        relayed_after(&mut swarm, peer).await
    });
    println!("{took:?}");
    assert!(took <= Duration::from_millis(1_500), "{took:?}");
}

#[test]
fn the_attempt_goes_on_beside_the_relayed_connection() {
    on_paused_time(async {
        let world = World::new(1);
        let hosts = [1, 2].map(|number| Site::EIM_APDF.host(&world, number, 0.0));
        let (mut dialer, listener, hosts) = blocked(&world, hosts).await;
        relayed_after(&mut dialer, listener).await;
        world.unblock(&hosts[0], &hosts[1]);
        let seen = watch(&mut dialer, listener, Duration::from_secs(10)).await;
        let direct = seen.iter().filter(|seen| matches!(seen, Seen::Connected { relayed: false, .. }));
        assert_eq!(direct.count(), 1, "{seen:#?}");
        let is_upgrade = |seen: &Seen| matches!(seen, Seen::Punch(Event::Relay(RelayEvent::Upgraded { peer, .. })) if *peer == listener);
        assert!(seen.iter().any(is_upgrade), "{seen:#?}");
    });
}

/// Dials `other` after `delay`, and records its connections for ten seconds.
async fn dial_after(delay: Duration, swarm: &mut Swarm<Peer>, other: PeerId) -> Vec<Seen> {
    let mut seen = watch(swarm, other, delay).await;
    // The other's session may have led to a connection meanwhile.
    let dialed = swarm.dial(DialOpts::peer_id(other).build());
    assert!(matches!(dialed, Ok(()) | Err(DialError::DialPeerConditionFalse(_))), "{dialed:?}");
    seen.extend(watch(swarm, other, Duration::from_secs(10)).await);
    seen
}

/// Returns the number of 40 runs that make a relayed connection where both sides dial. The peers
/// are registered, or dial right after their start; the offset grows from run to run.
fn relayed_runs(registered: bool, offset: Duration) -> usize {
    let runs = 0..40;
    let is_relayed = |run: &u32| {
        on_paused_time(async {
            let world = World::new(u64::from(*run));
            let (c, address, _) = relay(&world, 254);
            let hosts = [1, 2].map(|number| Site::EIM_APDF.host(&world, number, 0.0));
            apart(&world, &[&hosts[0], &hosts[1], &c]);
            let mut a = peer_at(&hosts[0], 1, client(&address));
            let mut b = peer_at(&hosts[1], 2, client(&address));
            if registered {
                reserved(&mut a).await;
                reserved(&mut b).await;
            }
            let [at_a, at_b] = [*a.local_peer_id(), *b.local_peer_id()];
            let later = offset * (*run / 2);
            let delays =
                if run.is_multiple_of(2) { [later, Duration::ZERO] } else { [Duration::ZERO, later] };
            let (seen_a, seen_b) =
                tokio::join!(dial_after(delays[0], &mut a, at_b), dial_after(delays[1], &mut b, at_a));
            let connections = |wanted| {
                let is_wanted =
                    |seen: &&Seen| matches!(seen, Seen::Connected { relayed, .. } if *relayed == wanted);
                [&seen_a, &seen_b].map(|seen| seen.iter().filter(is_wanted).count())
            };
            assert!(connections(false).iter().all(|direct| *direct >= 1), "{seen_a:#?} {seen_b:#?}");
            connections(true).iter().any(|relayed| *relayed > 0)
        })
    };
    runs.filter(is_relayed).count()
}

#[test]
fn two_peers_that_dial_each_other_at_once_touch_no_relay() {
    let offset = Duration::from_millis(3);
    let relayed = [(true, Duration::ZERO), (true, offset), (false, Duration::ZERO), (false, offset)]
        .map(|(registered, offset)| relayed_runs(registered, offset));
    println!("{relayed:?} of 40 runs relayed");
    assert_eq!(relayed, [0; 4]);
}

#[test]
fn a_relay_that_does_not_answer_is_passed_over() {
    let took = [0, 1].map(|silent| {
        on_paused_time(async {
            let world = World::new(1);
            let relays = [253, 254].map(|number| relay(&world, number));
            let addresses = relays.each_ref().map(|(_, address, _)| address.clone());
            let hosts = [1, 2].map(|number| Site::APDM_RANDOM.host(&world, number, 0.0));
            apart(&world, &[&hosts[0], &hosts[1], &relays[0].0, &relays[1].0]);
            let mut listener = peer_at(&hosts[1], 2, clients(&addresses));
            reserved(&mut listener).await;
            reserved(&mut listener).await;
            let listener = serve(listener, Duration::ZERO);
            let mut dialer = peer_at(&hosts[0], 1, clients(&addresses));
            reserved(&mut dialer).await;
            reserved(&mut dialer).await;
            // The relay waits for the listener, and the dialer for the relay.
            world.block(&hosts[1], &relays[silent].0);
            relayed_after(&mut dialer, listener).await
        })
    });
    println!("{took:?}");
    assert!(took.iter().all(|took| *took <= Duration::from_secs(5)), "{took:?}");
    assert!(
        took.iter().any(|took| *took >= Duration::from_secs(3)),
        "none of them was asked first: {took:?}"
    );
}

#[test]
fn if_no_relay_answers_the_dial_ends() {
    on_paused_time(async {
        let world = World::new(1);
        let (c, address, _) = relay(&world, 254);
        let hosts = [1, 2].map(|number| Site::APDM_RANDOM.host(&world, number, 0.0));
        apart(&world, &[&hosts[0], &hosts[1], &c]);
        let mut listener = peer_at(&hosts[1], 2, client(&address));
        reserved(&mut listener).await;
        let listener = serve(listener, Duration::ZERO);
        let mut dialer = peer_at(&hosts[0], 1, client(&address));
        reserved(&mut dialer).await;
        world.block(&hosts[1], &c);
        let begin = Instant::now();
        dialer.dial(listener).expect("not dialed yet");
        let why = loop {
            match see(&mut dialer, listener).await {
                Seen::NotDialed(why) => break why,
                Seen::Connected { .. } => panic!("nothing gets through"),
                _ => {}
            }
        };
        println!("{:?}: {why}", begin.elapsed());
        assert!(begin.elapsed() <= Duration::from_secs(30), "{:?}: {why}", begin.elapsed());
    });
}
