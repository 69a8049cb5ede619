//! Direct connections that a swarm does not want, or does not keep, next to a relayed connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    relay,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, SwarmEvent, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dial_opts::DialOpts, dummy,
    },
};
use libp2p_punch::{Behaviour, Config, Event, NatEvent, RelayEvent, SessionEvent};
use libp2p_punch_sim::World;

use crate::{
    network::{PORT, Site, client, coordinator, keypair, on_paused_time, run, until},
    relaying::{self, Peer, Seen, peer, peer_with_idle_timeout, relayed_swarm, reserved, see, serve, watch},
};

const MINUTE: Duration = Duration::from_secs(60);

/// Denies every further connection to a connected peer, as libp2p-connection-limits does with a
/// limit of one per peer.
#[derive(Default)]
struct OnePerPeer(BTreeMap<PeerId, BTreeSet<ConnectionId>>);

#[derive(Debug, thiserror::Error)]
#[error("the peer is connected")]
struct IsConnected;

impl OnePerPeer {
    /// As if the peer was connected: every connection to it is denied.
    fn connected_to(peer: PeerId) -> Self {
        Self(BTreeMap::from([(peer, BTreeSet::from([ConnectionId::new_unchecked(usize::MAX)]))]))
    }

    fn admit(&self, peer: &PeerId) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        match self.0.get(peer).is_some_and(|connections| !connections.is_empty()) {
            true => Err(ConnectionDenied::new(IsConnected)),
            false => Ok(dummy::ConnectionHandler),
        }
    }
}

impl NetworkBehaviour for OnePerPeer {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(&peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(&peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                self.0.entry(event.peer_id).or_default().insert(event.connection_id);
            }
            FromSwarm::ConnectionClosed(event) => {
                self.0.entry(event.peer_id).or_default().remove(&event.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[derive(NetworkBehaviour)]
struct Limited {
    limit: OnePerPeer,
    punch: Behaviour,
    relay: relay::client::Behaviour,
}

/// Dials a peer over the relay that both have a reservation with.
fn dial_over_relay(dialer: &mut Swarm<Peer>, listener: PeerId) {
    let is_circuit = |address: &&Multiaddr| address.iter().any(|part| part == Protocol::P2pCircuit);
    let own = dialer.listeners().find(is_circuit).expect("it is reserved");
    let circuit: Multiaddr = own.iter().take_while(|part| *part != Protocol::P2pCircuit).collect();
    dialer.dial(circuit.with(Protocol::P2pCircuit).with(Protocol::P2p(listener))).expect("not dialed yet");
}

/// Waits for the relayed connection.
async fn relayed(dialer: &mut Swarm<Peer>, listener: PeerId) -> ConnectionId {
    loop {
        match see(dialer, listener).await {
            Seen::Connected { id, relayed } => {
                assert!(relayed);
                return id;
            }
            Seen::NotDialed(why) => panic!("{why}"),
            _ => {}
        }
    }
}

fn count(seen: &[Seen], wanted: impl Fn(&Seen) -> bool) -> usize {
    seen.iter().filter(|seen| wanted(seen)).count()
}

/// Returns the events of a dialer about a peer with a relayed connection, in five minutes, and the
/// number of packets of all peers.
fn with_a_peer(limited: bool) -> (Vec<Seen>, u64) {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relaying::relay(&world, 254);
        let host = Site::EIM_APDF.host(&world, 2, 0.0);
        let listener = if limited {
            let mut listener = relayed_swarm(&host, 2, client(&address), |punch, relay, _| Limited {
                limit: OnePerPeer::default(),
                punch,
                relay,
            });
            until(&mut listener, |event| {
                matches!(
                    event,
                    SwarmEvent::Behaviour(LimitedEvent::Punch(Event::Relay(RelayEvent::Reserved { .. })))
                )
                .then_some(())
            })
            .await;
            run(listener)
        } else {
            let mut listener = relaying::peer_at(&host, 2, client(&address));
            reserved(&mut listener).await;
            serve(listener, Duration::ZERO)
        };
        let mut dialer = peer(&world, Site::EIM_APDF, 1, client(&address));
        reserved(&mut dialer).await;
        dial_over_relay(&mut dialer, listener);
        relayed(&mut dialer, listener).await;
        let before = world.stats().ended();
        let seen = watch(&mut dialer, listener, 5 * MINUTE).await;
        (seen, (world.stats().ended() - before) / 5)
    })
}

#[test]
fn a_peer_that_denies_the_direct_connection_is_tried_ever_less_often() {
    let (seen, packets) = with_a_peer(true);
    let is_session =
        |seen: &Seen| matches!(seen, Seen::Punch(Event::Session(SessionEvent::Connected { .. })));
    let (_, idle) = with_a_peer(false);
    let sessions = count(&seen, is_session);
    println!("{sessions} sessions, {packets} packets a minute; {idle} with a peer that denies none");
    assert!((2..=9).contains(&sessions), "{sessions} sessions in five minutes");
    assert!(packets <= idle * 3 / 2, "{packets} packets a minute");
    assert_eq!(
        count(&seen, |seen| matches!(seen, Seen::Punch(Event::Relay(RelayEvent::Upgraded { .. })))),
        0,
        "it never was"
    );
    let [opened, closed] = [
        count(&seen, |seen| matches!(seen, Seen::Connected { .. })),
        count(&seen, |seen| matches!(seen, Seen::Closed { .. })),
    ];
    assert_eq!(opened, closed, "the relayed connection stays: {seen:#?}");
}

/// Swarm that denies the connection of a session, if any does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeniedBy {
    Dialer,
    Listener,
    Nobody,
}

/// A peer of a dial, and the events of its `Behaviour`.
struct Side {
    swarm: Swarm<Limited>,
    events: Vec<Event>,
}

impl Side {
    fn new(world: &World, number: u8, coordinator: &Multiaddr, limit: OnePerPeer) -> Self {
        let host = Site::EIM_APDF.host(world, number, 0.0);
        let behaviour = |punch, relay, _: &_| Limited { limit, punch, relay };
        Self { swarm: relayed_swarm(&host, number, client(coordinator), behaviour), events: Vec::new() }
    }

    fn peer(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    async fn run_for(&mut self, duration: Duration) {
        let events = &mut self.events;
        let endless = async {
            loop {
                if let SwarmEvent::Behaviour(LimitedEvent::Punch(event)) = self.swarm.select_next_some().await
                {
                    events.push(event);
                }
            }
        };
        let _: Result<Infallible, _> = tokio::time::timeout(duration, endless).await;
    }

    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| wanted(event)).count()
    }

    /// Attempts, successes, failures, failures by denial, and attempts under way.
    fn outcomes(&self) -> [u64; 5] {
        let counters = self.swarm.behaviour().punch.counters().protocol;
        [counters.attempts, counters.successes, counters.failures, counters.denied, counters.in_flight]
    }
}

/// A dial that connects within a second, after which the dialer disconnects if `is_short`, and five
/// seconds more.
fn dialed(by: DeniedBy, is_short: bool) -> [Side; 2] {
    on_paused_time(async {
        let world = World::new(1);
        let (_, coordinator, _) = relaying::relay(&world, 254);
        let listener = keypair(2).public().to_peer_id();
        let limit = |is_denied: bool, peer| match is_denied {
            true => OnePerPeer::connected_to(peer),
            false => OnePerPeer::default(),
        };
        let mut dialer = Side::new(&world, 1, &coordinator, limit(by == DeniedBy::Dialer, listener));
        let mut listener = Side::new(&world, 2, &coordinator, limit(by == DeniedBy::Listener, dialer.peer()));
        let both = async |[dialer, listener]: [&mut Side; 2], seconds| {
            let duration = Duration::from_secs(seconds);
            tokio::join!(dialer.run_for(duration), listener.run_for(duration));
        };
        both([&mut dialer, &mut listener], 5).await;
        dialer.swarm.dial(listener.peer()).expect("not dialed yet");
        both([&mut dialer, &mut listener], 1).await;
        if is_short {
            dialer.swarm.disconnect_peer_id(listener.peer()).expect("it is connected");
        }
        both([&mut dialer, &mut listener], 5).await;
        [dialer, listener]
    })
}

#[test]
fn a_session_whose_connection_the_swarm_of_either_side_denies_is_a_failure_on_both_sides() {
    for by in [DeniedBy::Dialer, DeniedBy::Listener] {
        for side in dialed(by, false) {
            let events = &side.events;
            assert_eq!(
                side.count(|event| matches!(event, Event::Session(SessionEvent::Connected { .. }))),
                1,
                "{by:?}: {events:#?}"
            );
            assert_eq!(side.outcomes(), [1, 0, 1, 1, 0], "{by:?}");
            assert_eq!(
                side.count(|event| matches!(event, Event::Session(SessionEvent::Denied { .. }))),
                1,
                "{by:?}: {events:#?}"
            );
        }
    }
}

#[test]
fn a_session_whose_connection_is_used_is_a_success_however_soon_it_ends() {
    for is_short in [false, true] {
        for side in dialed(DeniedBy::Nobody, is_short) {
            assert_eq!(side.outcomes(), [1, 1, 0, 0, 0], "short: {is_short}");
            assert_eq!(
                side.count(|event| matches!(event, Event::Session(SessionEvent::Denied { .. }))),
                0,
                "short: {is_short}"
            );
        }
    }
}

#[test]
fn a_hopeless_peer_is_not_tried_more_often_because_others_come_and_go() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relaying::relay(&world, 254);
        let mut listener = peer(&world, Site::APDM_RANDOM, 2, client(&address));
        reserved(&mut listener).await;
        let listener = serve(listener, Duration::ZERO);
        let mut others = Vec::new();
        for number in 10..40 {
            let mut other = peer(&world, Site::Public, number, client(&address));
            reserved(&mut other).await;
            others.push(serve(other, Duration::ZERO));
        }
        let mut dialer = peer(&world, Site::APDM_RANDOM, 1, client(&address));
        reserved(&mut dialer).await;
        dialer.dial(listener).expect("not dialed yet");
        let (mut failures, mut observations) = (0, 0);
        for other in others {
            dialer.dial(other).expect("it is not connected");
            let seen = watch(&mut dialer, listener, Duration::from_secs(5)).await;
            dialer.disconnect_peer_id(other).expect("it is connected");
            let rest = watch(&mut dialer, listener, Duration::from_secs(5)).await;
            for seen in [seen, rest] {
                let is_failure = |seen: &Seen| matches!(seen, Seen::Punch(Event::Session(SessionEvent::Failed { peer, .. })) if *peer == listener);
                failures += count(&seen, is_failure);
                observations +=
                    count(&seen, |seen| matches!(seen, Seen::Punch(Event::Nat(NatEvent::Observed { .. }))));
            }
        }
        println!("{failures} failures and {observations} observations in five minutes");
        assert!(observations >= 15, "others tell the dialer where they see it: {observations}");
        assert!((2..=9).contains(&failures), "{failures} attempts");
    });
}

#[test]
fn a_long_stream_on_the_relayed_connection_keeps_the_direct_one_until_it_has_had_its_time() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address, _) = relaying::relay(&world, 254);
        let mut listener = peer(&world, Site::EIM_APDF, 2, client(&address));
        reserved(&mut listener).await;
        let listener = serve(listener, 10 * MINUTE);
        let host = Site::EIM_APDF.host(&world, 1, 0.0);
        let mut dialer = peer_with_idle_timeout(&host, 1, client(&address), Duration::ZERO);
        reserved(&mut dialer).await;
        dial_over_relay(&mut dialer, listener);
        dialer.behaviour_mut().echo.send_request(&listener, "long".to_owned());
        let relayed = relayed(&mut dialer, listener).await;
        let seen = watch(&mut dialer, listener, Duration::from_secs(110)).await;
        assert_eq!(
            count(&seen, |seen| matches!(seen, Seen::Connected { relayed: false, .. })),
            1,
            "{seen:#?}"
        );
        assert_eq!(count(&seen, |seen| matches!(seen, Seen::Closed { .. })), 0, "{seen:#?}");
        let rest = watch(&mut dialer, listener, MINUTE).await;
        let first = rest.iter().find(|seen| matches!(seen, Seen::Closed { .. }));
        assert_eq!(first, Some(&Seen::Closed { id: relayed }), "{rest:#?}");
    });
}

#[test]
fn a_denied_connection_does_not_lend_its_socket_to_the_next_one_to_the_same_address() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let Some(Protocol::P2p(observer)) = address.iter().last() else { panic!("{address}") };
        let host = Site::EIM_APDF.host(&world, 1, 0.0);
        let mut swarm = relayed_swarm(&host, 1, Config::default(), |punch, relay, _| Limited {
            limit: OnePerPeer::connected_to(observer),
            punch,
            relay,
        });
        let opts = DialOpts::peer_id(observer).addresses(vec![address.clone()]);
        swarm.dial(opts.allocate_new_port().build()).expect("it is not dialed yet");
        until(&mut swarm, |event| matches!(event, SwarmEvent::OutgoingConnectionError { .. }).then_some(()))
            .await;
        swarm.behaviour_mut().limit.0.clear();
        swarm.dial(address).expect("it is an address");
        let local = until(&mut swarm, |event| match event {
            SwarmEvent::Behaviour(LimitedEvent::Punch(Event::Nat(NatEvent::Observed { local, .. }))) => {
                Some(local)
            }
            _ => None,
        })
        .await;
        assert_eq!(local.map(|local| local.port()), Some(PORT), "the socket of the second connection");
    });
}
