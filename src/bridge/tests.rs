//! A driver whose swarm is busy.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::join_all, task::noop_waker_ref};
use libp2p_core::{
    Endpoint, Transport as _,
    transport::{DialOpts, PortUse},
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{NetworkBehaviour, ToSwarm};
use quinn::TokioRuntime;

use super::*;
use crate::{
    behaviour::event::{Event, SessionEvent},
    config::PhaseTimeouts,
    io::OsNetwork,
};
use libp2p_punch_proto::event::FailureReason;

/// More than the driver owes before it stops to take input.
const DIALS: usize = 5000;

fn failed(behaviour: &mut Behaviour) -> usize {
    let mut cx = Context::from_waker(noop_waker_ref());
    let mut failed = 0;
    while let Poll::Ready(action) = behaviour.poll(&mut cx) {
        if let ToSwarm::GenerateEvent(Event::Session(SessionEvent::Failed { reason, .. })) = action {
            assert_eq!(reason, FailureReason::NoCoordinator);
            failed += 1;
        }
    }
    failed
}

#[tokio::test(start_paused = true)]
async fn a_swarm_that_is_busy_hears_of_every_failure_later_and_nothing_new_begins_meanwhile() {
    let discovery = Duration::from_millis(500);
    let mut phase_timeouts = PhaseTimeouts::default();
    phase_timeouts.discovery = discovery;
    let config = Config { phase_timeouts, relay_fallback: false, ..Config::default() };
    let keypair = Keypair::generate_ed25519();
    let (mut transport, mut behaviour) =
        build(&keypair, config, Arc::new(OsNetwork::default()), Arc::new(TokioRuntime)).unwrap();
    let mut dial = || {
        let offer = transport.offers().open(PeerId::random()).unwrap();
        transport
            .dial(offer.address(), DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse })
            .unwrap()
    };
    let dials = join_all((0..DIALS).map(|_| dial())).await;
    assert!(dials.iter().all(Result::is_err));

    let mut late = dial();
    tokio::time::sleep(10 * discovery).await;
    assert!((&mut late).now_or_never().is_none());
    tokio::time::sleep(10 * discovery).await;
    assert!((&mut late).now_or_never().is_none(), "it has not begun");

    let mut told = 0;
    while told <= DIALS {
        told += failed(&mut behaviour);
        let _ = (&mut late).now_or_never();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(told, DIALS + 1);
    assert!(behaviour.counters().events_dropped > 0, "those of phases");
}
