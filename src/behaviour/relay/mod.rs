//! Relays as the last resort, through the libp2p relay client of the same swarm.
//!
//! - *Fallback*: once the first dial of a peer has waited for traversal for a second, or an attempt
//!   has failed, the peer is dialed over a relay as well. If no known relay helps, the sources of
//!   coordinators are asked for the peer. If that succeeds, the first dial
//!   continues to wait, and ends with the direct connection, if there is one. If it fails, and
//!   traversal has failed for good, the first dial fails.
//! - *Reservations*: a peer that others cannot reach directly keeps up to three of them.
//! - *Upgrade*: a peer that is connected over relays only is tried again until a direct connection
//!   is open.
//!
//! The relay client itself is unknown here: the swarm reaches it by dials and listeners on circuit
//! addresses. A swarm without a relay client reports these as unsupported, once.

mod fallback;
mod observed;
mod relays;
mod reservations;
mod upgrades;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    error::Error,
    io,
    net::SocketAddr,
    num::NonZeroU8,
    time::Instant,
};

use libp2p_core::{
    ConnectedPoint, Multiaddr,
    multiaddr::Protocol,
    transport::{ListenerId, TransportError},
};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    CloseConnection, ConnectionId, DialError, ListenOpts, NotifyHandler, ToSwarm,
    behaviour::{ConnectionClosed, ConnectionEstablished, DialFailure},
    dial_opts::{DialOpts, PeerCondition},
};

use self::{
    fallback::{Circuit, Fallback, TimedOut},
    observed::ObservedAddresses,
    relays::{Relays, circuit, relay_of},
    reservations::{Outcome, Released, Reservations},
    upgrades::{News, Origin, Upgrades},
};
use super::{
    FromBehaviour,
    event::{Event, NatEvent, RelayEvent, RelayFailure, SessionEvent},
    link::Input,
};
use crate::{
    config::{Config, Role},
    transport::addr,
};
use libp2p_punch_proto::{
    event::{FailureReason, Phase},
    wire::frame::RejectReason,
};

/// Relays are tried in turn, so that the peer sees one connection and not a race.
const ONE_AT_A_TIME: NonZeroU8 = NonZeroU8::MIN;
/// No coordinator knows the peer. Peers that need a relay reserve with the coordinators that they
/// register with, so that these would refuse as relays, too.
const UNKNOWN_PEER: FailureReason = FailureReason::Rejected(RejectReason::NotConnected);

/// Request of the relay logic to the behaviour.
pub(super) enum Output {
    /// To the swarm.
    Swarm(ToSwarm<Event, FromBehaviour>),
    /// To the driver.
    Driver(Input),
    /// Looks up the coordinators of this peer: one of them may relay for it.
    LookUp(PeerId),
}

/// All that the behaviour knows of relays and of the connections over them.
pub(super) struct Relaying {
    falls_back: bool,
    /// Others may need a relay to reach us, by our role.
    reserves: bool,
    /// The swarm turned a circuit address down: it has no relay client.
    has_no_client: bool,
    /// Listens on a circuit without a relay, which every relay client refuses, and without one no
    /// transport supports.
    client_test: Option<ListenerId>,
    is_reachable: bool,
    relays: Relays,
    /// Coordinators that the behaviour connects to, because of a peer that is looked for. The relay
    /// client would dial them as well, and the swarm refuses the second dial.
    connecting: BTreeSet<PeerId>,
    reservations: Reservations,
    upgrades: Upgrades,
    observed: ObservedAddresses,
    dials: Fallback,
    /// Our own dials for connections that stand already.
    collecting: BTreeMap<ConnectionId, (PeerId, SocketAddr)>,
    out: VecDeque<Output>,
}

impl Relaying {
    pub(super) fn new(config: &Config) -> Self {
        let (mut client_test, mut out) = (None, VecDeque::new());
        if config.relay_fallback {
            let opts = ListenOpts::new(Protocol::P2pCircuit.into());
            let id = *client_test.insert(opts.listener_id());
            let actions = [ToSwarm::ListenOn { opts }, ToSwarm::RemoveListener { id }];
            out.extend(actions.map(Output::Swarm));
        }
        Self {
            falls_back: config.relay_fallback,
            reserves: config.relay_fallback && matches!(config.role, Role::Auto | Role::Client),
            has_no_client: false,
            client_test,
            is_reachable: false,
            relays: Relays::default(),
            connecting: BTreeSet::new(),
            reservations: Reservations::default(),
            upgrades: Upgrades::new(config.relay_drain),
            observed: ObservedAddresses::default(),
            dials: Fallback::default(),
            collecting: BTreeMap::new(),
            out,
        }
    }

    /// Returns true for a dial of ours, which needs no more addresses.
    pub(super) fn is_own_dial(&self, id: ConnectionId) -> bool {
        self.dials.is_circuit(id) || self.collecting.contains_key(&id)
    }

    /// Returns the relays that `peer` is known to use, each with its address: they likely
    /// coordinate for it.
    pub(super) fn relays_of(&self, peer: &PeerId) -> Vec<(PeerId, Multiaddr)> {
        self.relays.used_by(peer)
    }

    /// Sets the coordinators that are asked for `peer`, each with an address: the peer may have a
    /// reservation with one of them. A dial that waits for a relay asks them.
    pub(super) fn set_coordinators_of(
        &mut self,
        peer: PeerId,
        coordinators: &[(PeerId, Multiaddr)],
        now: Instant,
    ) {
        self.relays.set_coordinators_of(peer, coordinators);
        if !coordinators.is_empty() && self.dials.has_begun(&peer) {
            self.dial_over_relay(peer, now);
        }
    }

    /// A connection to this coordinator is being opened, and opened again after a failure: it may
    /// be asked as a relay afterwards.
    pub(super) fn connecting(&mut self, coordinator: PeerId) {
        self.connecting.insert(coordinator);
    }

    /// The connection to this coordinator is open: dials that wait for a relay ask it now.
    fn connected(&mut self, coordinator: &PeerId, now: Instant) {
        if self.connecting.remove(coordinator) {
            for peer in self.dials.begun() {
                self.dial_over_relay(peer, now);
            }
        }
    }

    /// No connection to this coordinator is needed any longer.
    pub(super) fn not_connecting(&mut self, coordinator: &PeerId) {
        self.connecting.remove(coordinator);
    }

    /// No more relays of `peer` are found. If one is being asked, or connected to, the dial waits
    /// for it.
    pub(super) fn cannot_look_up(&mut self, peer: PeerId, now: Instant) {
        let is_next = |relay: &PeerId| self.connecting.contains(relay) && self.dials.may_ask(&peer, relay);
        if !self.relays.circuits_to(peer, is_next).is_empty() {
            return;
        }
        self.dials.end_lookup(&peer, now);
        if self.dials.is_last_resort(&peer) && !self.dials.is_asking(&peer) {
            self.release(peer);
        }
    }

    /// Returns true if this coordinator is being asked as a relay for `peer`, or has yet to be.
    pub(super) fn may_still_relay(&self, coordinator: &PeerId, peer: &PeerId) -> bool {
        let waits = || self.dials.has_begun(peer) && self.dials.may_ask(peer, coordinator);
        !self.connecting.contains(coordinator)
            && !self.has_no_client
            && (self.dials.is_asking_over(peer, coordinator) || waits())
    }

    /// Records a dial that may wait for a session. The swarm reports its end.
    pub(super) fn dialing(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        if self.falls_back {
            self.dials.dialing(peer, id, now);
        }
    }

    /// An event that is about to be reported.
    pub(super) fn handle_event(
        &mut self,
        event: &Event,
        is_coordinator: impl Fn(&PeerId) -> bool,
        now: Instant,
    ) {
        match event {
            Event::Session(SessionEvent::Retry { peer, reason, .. })
                if met_silence(*reason) && self.dials.is_awaited(peer) =>
            {
                self.dial_over_relay(*peer, now);
            }
            Event::Session(SessionEvent::Retry { peer, reason: UNKNOWN_PEER, .. })
                if !self.relays.knows_some_of(peer) =>
            {
                self.dials.mark_unknown(peer);
            }
            Event::Session(SessionEvent::Phase { peer, to: Phase::Synchronization, .. }) => {
                self.dials.mark_known(peer, now)
            }
            Event::Session(SessionEvent::Failed { peer, reason, .. }) => {
                self.upgrades.failed(peer, now);
                // Without a dial that waits for the session, no relay is needed.
                if *reason != FailureReason::Cancelled && self.dials.is_awaited(peer) {
                    self.dials.session_failed(*peer);
                    if *reason != UNKNOWN_PEER || self.relays.knows_some_of(peer) {
                        self.seek_relay(*peer, now);
                    } else {
                        self.release(*peer);
                    }
                }
            }
            Event::Session(SessionEvent::Connected { peer, .. }) => self.dials.end_search(peer),
            Event::Nat(NatEvent::Observed { observer, address, .. })
                if is_coordinator(observer) && self.observed.is_change(*observer, address.ip()) =>
            {
                self.upgrades.network_changed(now);
            }
            _ => {}
        }
    }

    /// A connection exists without a dial that waits for it. The peer is at `remote`.
    pub(super) fn collect(&mut self, peer: PeerId, remote: SocketAddr) {
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(vec![addr::from_socket(remote)])
            .build();
        self.collecting.insert(opts.connection_id(), (peer, remote));
        self.out.push_back(Output::Swarm(ToSwarm::Dial { opts }));
    }

    /// Dials the peer over relays that have not been asked. Without one, more are looked for, and
    /// without more the dials of the peer end.
    fn seek_relay(&mut self, peer: PeerId, now: Instant) {
        if !self.dials.is_awaited(&peer) || self.dial_over_relay(peer, now) {
            return;
        }
        if self.has_no_client {
            self.cannot_look_up(peer, now);
        } else if self.dials.begin_search(peer, now) {
            self.out.push_back(Output::LookUp(peer));
        } else if !self.dials.is_searching(&peer, now) {
            self.cannot_look_up(peer, now);
        }
    }

    /// Returns false if there is no relay to dial over. Does nothing if that is done already.
    fn dial_over_relay(&mut self, peer: PeerId, now: Instant) -> bool {
        self.dials.end_head_start(&peer);
        if self.has_no_client {
            return false;
        }
        if self.upgrades.is_connected(&peer) || self.dials.is_asking(&peer) {
            return true;
        }
        let may_ask = |relay: &PeerId| !self.connecting.contains(relay) && self.dials.may_ask(&peer, relay);
        let mut addresses = self.relays.circuits_to(peer, may_ask);
        addresses.truncate(self.dials.room(&peer));
        if addresses.is_empty() {
            return false;
        }
        self.dial_over(addresses, peer, now);
        true
    }

    fn dial_over(&mut self, circuits: Vec<Multiaddr>, peer: PeerId, now: Instant) {
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(circuits.clone())
            .override_dial_concurrency_factor(ONE_AT_A_TIME)
            .build();
        self.dials.asked(opts.connection_id(), peer, circuits, now);
        self.out.push_back(Output::Swarm(ToSwarm::Dial { opts }));
    }

    /// Skips a relay that does not answer: the next relays in the order are asked, if a dial still
    /// waits.
    fn pass_over(&mut self, TimedOut { peer, silent, remaining }: TimedOut, now: Instant) {
        tracing::debug!(%peer, ?silent, "relay does not answer");
        silent.as_ref().and_then(relay_of).into_iter().for_each(|relay| self.relays.failed(&relay));
        if self.upgrades.is_connected(&peer) || self.dials.is_asking(&peer) || !self.dials.is_awaited(&peer) {
            return;
        }
        if remaining.is_empty() {
            self.seek_relay(peer, now);
        } else {
            self.dial_over(remaining, peer, now);
        }
    }

    /// Lets the first dial fail.
    fn release(&mut self, peer: PeerId) {
        let reason = match self.dials.has_asked(&peer) {
            true => RelayFailure::Unreachable,
            false => RelayFailure::NoRelay,
        };
        self.dials.end_search(&peer);
        self.out.push_back(Output::Driver(Input::Release(peer)));
        if !self.has_no_client {
            self.report(RelayEvent::Failed { peer, reason });
        }
    }

    fn report(&mut self, event: RelayEvent) {
        self.out.push_back(Output::Swarm(ToSwarm::GenerateEvent(Event::Relay(event))));
    }

    pub(super) fn established(
        &mut self,
        event: &ConnectionEstablished<'_>,
        is_coordinator: bool,
        now: Instant,
    ) {
        let (peer, id) = (event.peer_id, event.connection_id);
        self.dials.no_longer_waiting(id);
        self.collecting.remove(&id);
        let address = address_of(event.endpoint);
        let circuit = self.dials.settled(id);
        if let Some(circuit) = &circuit {
            event.failed_addresses.iter().filter_map(relay_of).for_each(|relay| self.relays.failed(&relay));
            if let Some(relay) = relay_of(address) {
                self.relays.succeeded(&relay, now.saturating_duration_since(circuit.since));
            }
        }
        if event.endpoint.is_relayed() {
            if circuit.is_some() && self.upgrades.is_relayed(&peer) {
                // Another relay was quicker, and this connection has no users yet.
                let connection = CloseConnection::One(id);
                self.out.push_back(Output::Swarm(ToSwarm::CloseConnection { peer_id: peer, connection }));
            }
            self.dials.relayed(&peer);
            let origin = match event.endpoint.is_dialer() {
                true if self.dials.is_last_resort(&peer) => Origin::LastResort,
                true => Origin::Dialed,
                false => Origin::Accepted,
            };
            if self.upgrades.relayed(peer, id, origin, now) == News::Relayed {
                self.report(RelayEvent::Connected { peer, relay: relay_of(address) });
            }
            self.keep_alive(peer);
            return;
        }
        self.upgrades.direct(peer, id, now);
        if is_coordinator {
            self.coordinator_connected(peer, address, now);
        }
        self.connected(&peer, now);
    }

    /// A direct connection to a coordinator of ours is open, or a connected peer has become one.
    pub(super) fn coordinator_connected(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) {
        if self.relays.connected(peer, address) {
            self.dials.relay_arrived(&peer, now);
            self.reservations.arrived(peer, now);
        }
    }

    pub(super) fn closed(&mut self, event: &ConnectionClosed<'_>, now: Instant) {
        let peer = event.peer_id;
        let is_last = self.upgrades.closed(&peer, event.connection_id, now);
        if event.endpoint.is_relayed() {
            self.keep_alive(peer);
        }
        if !self.upgrades.is_direct(&peer) {
            self.relays.disconnected(&peer);
        }
        if is_last && self.dials.is_last_resort(&peer) {
            self.release(peer);
        }
    }

    /// Direct connections are kept alive while relayed ones drain: otherwise a stream could keep
    /// the relayed connection while the direct connection idles out, and must be made again.
    fn keep_alive(&mut self, peer: PeerId) {
        let (direct, keep) = self.upgrades.draining(&peer);
        for id in direct {
            let (handler, event) = (NotifyHandler::One(id), FromBehaviour::KeepAlive(keep));
            self.out.push_back(Output::Swarm(ToSwarm::NotifyHandler { peer_id: peer, handler, event }));
        }
    }

    /// Returns true if the peer is connected over a relay, maybe directly as well.
    pub(super) fn is_relayed(&self, peer: &PeerId) -> bool {
        self.upgrades.is_relayed(peer)
    }

    /// Our swarm denied a connection that the peer made.
    pub(super) fn denied(&mut self, peer: &PeerId, now: Instant) {
        self.upgrades.failed(peer, now);
    }

    pub(super) fn dial_failed(&mut self, event: &DialFailure<'_>, now: Instant) {
        self.dials.no_longer_waiting(event.connection_id);
        if let Some((peer, remote)) = self.collecting.remove(&event.connection_id) {
            self.upgrades.failed(&peer, now);
            self.out.push_back(Output::Driver(Input::Discard { peer, remote }));
        }
        let Some(Circuit { peer, .. }) = self.dials.settled(event.connection_id) else { return };
        if let DialError::Transport(errors) = event.error {
            for (circuit, error) in errors {
                tracing::debug!(%peer, relay = ?relay_of(circuit), ?error, "not reached over a relay");
            }
            let unsupported = |(_, error): &(_, TransportError<_>)| {
                matches!(error, TransportError::MultiaddrNotSupported(_))
            };
            if errors.iter().all(unsupported) {
                self.note_no_client();
            }
            errors
                .iter()
                .filter_map(|(address, _)| relay_of(address))
                .for_each(|relay| self.relays.failed(&relay));
        }
        self.seek_relay(peer, now);
    }

    fn note_no_client(&mut self) {
        if !self.has_no_client {
            tracing::debug!(
                "the swarm has no relay client: peers that cannot be reached directly are not reached"
            );
            self.has_no_client = true;
        }
    }

    /// Sets if peers reach this one without a relay.
    pub(super) fn set_reachable(&mut self, reachable: bool) {
        self.is_reachable = reachable;
        if reachable {
            let released = self.reservations.give_up();
            self.end(released);
        }
    }

    fn end(&mut self, reservations: Vec<Released>) {
        for Released { listener, relay } in reservations {
            self.out.push_back(Output::Swarm(ToSwarm::RemoveListener { id: listener }));
            self.report(RelayEvent::Unreserved { relay });
        }
    }

    /// Forgets a peer that is no coordinator of ours any longer, and so no relay.
    pub(super) fn forget(&mut self, relay: &PeerId) {
        self.relays.forget(relay);
        self.connecting.remove(relay);
        self.observed.forget(relay);
        let released = self.reservations.forget(relay);
        self.end(released);
    }

    /// We have other addresses than before.
    pub(super) fn network_changed(&mut self, now: Instant) {
        self.upgrades.network_changed(now);
    }

    pub(super) fn learned(&mut self, peer: PeerId, address: &Multiaddr) {
        self.relays.learned(peer, address);
    }
}

/// Listeners, and time.
impl Relaying {
    pub(super) fn listening(&mut self, listener: ListenerId, now: Instant) {
        match self.reservations.opened(listener, now) {
            Some(Outcome::Accepted(relay, took)) => {
                self.relays.succeeded(&relay, took);
                self.report(RelayEvent::Reserved { relay });
            }
            Some(Outcome::Unwanted(id)) => self.out.push_back(Output::Swarm(ToSwarm::RemoveListener { id })),
            Some(Outcome::Refused(_) | Outcome::Lost(_)) | None => {}
        }
    }

    pub(super) fn not_listening(&mut self, listener: ListenerId, now: Instant) {
        match self.reservations.closed(listener, now) {
            Some(Outcome::Refused(relay)) => {
                tracing::debug!(%relay, "no reservation");
                self.relays.failed(&relay);
            }
            Some(Outcome::Lost(relay)) => self.report(RelayEvent::Unreserved { relay }),
            Some(Outcome::Accepted(..) | Outcome::Unwanted(_)) | None => {}
        }
    }

    /// A listener could not be started.
    pub(super) fn listener_failed(
        &mut self,
        listener: ListenerId,
        error: &(dyn Error + 'static),
        now: Instant,
    ) {
        if self.client_test.take_if(|test| *test == listener).is_some()
            && let Some(TransportError::<io::Error>::MultiaddrNotSupported(_)) = error.downcast_ref()
        {
            self.note_no_client();
        }
        if self.reservations.contains(listener) {
            self.note_no_client();
            self.not_listening(listener, now);
        }
    }

    fn ranked(&self) -> Vec<(PeerId, Multiaddr)> {
        let is_needed = self.reserves && !self.is_reachable && !self.has_no_client;
        if is_needed { self.relays.ranked() } else { Vec::new() }
    }

    /// Returns the next time at which [`poll`](Self::poll) must be called.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let reservations = self.reservations.next_time(&self.ranked());
        [self.dials.next_time(), self.upgrades.next_time(), reservations].into_iter().flatten().min()
    }

    /// Returns the next request that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Output> {
        while let Some(peer) = self.dials.due(now) {
            self.dial_over_relay(peer, now);
        }
        while let Some(timed_out) = self.dials.timed_out(now) {
            self.pass_over(timed_out, now);
        }
        for peer in self.dials.fruitless(now) {
            self.release(peer);
        }
        if let Some(output) = self.out.pop_front() {
            return Some(output);
        }
        if let Some((relay, address)) = self.reservations.next(&self.ranked(), now) {
            let opts = ListenOpts::new(circuit(&address, relay));
            self.reservations.asked(relay, opts.listener_id(), now);
            return Some(Output::Swarm(ToSwarm::ListenOn { opts }));
        }
        if let Some(peer) = self.upgrades.proved(now) {
            self.report(RelayEvent::Upgraded { peer });
            return self.out.pop_front();
        }
        if let Some((peer_id, id)) = self.upgrades.drained(now) {
            let connection = CloseConnection::One(id);
            return Some(Output::Swarm(ToSwarm::CloseConnection { peer_id, connection }));
        }
        self.upgrades.due(now).map(|peer| Output::Driver(Input::Upgrade(peer)))
    }
}

/// Returns true if the attempt failed in a way that shows the direct path to be hard, or the peer
/// to be silent. After the other failures the next attempt begins within moments, and may take the
/// rest of the head start.
fn met_silence(reason: FailureReason) -> bool {
    !matches!(
        reason,
        FailureReason::NatMeasured | FailureReason::CoordinatorLost | FailureReason::Rejected(_)
    )
}

/// The address of a connection that names its relay, if there is one.
fn address_of(endpoint: &ConnectedPoint) -> &Multiaddr {
    match endpoint {
        ConnectedPoint::Dialer { address, .. } => address,
        ConnectedPoint::Listener { local_addr, send_back_addr } => {
            if endpoint.is_relayed() {
                local_addr
            } else {
                send_back_addr
            }
        }
    }
}
