//! The libp2p `NetworkBehaviour`: control streams in, frames out, and dials for the swarm.
//!
//! The decisions are in [`proto`](libp2p_punch_proto), which the bridge's driver runs in its own
//! task. The behaviour keeps the connections to the coordinators open, and gives every connection a
//! `Handler` that links it to the driver. It offers an address for every dial of a peer that a
//! coordinator may know (see `offers`), so that `swarm.dial(peer)` punches in parallel to all other
//! attempts.

mod control;
mod coordinators;
pub(crate) mod counts;
mod discovery;
pub(crate) mod event;
pub(crate) mod frames;
mod handler;
mod keep_alive;
pub(crate) mod link;
mod lookup;
mod peer_coordinators;
mod reachability;
mod redials;
mod registrations;
mod relay;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p_core::{ConnectedPoint, Endpoint, Multiaddr, multiaddr::Protocol, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, DialError, FromSwarm, ListenError, ListenOpts,
    NetworkBehaviour, NotifyHandler, StreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    behaviour::DialFailure,
    dial_opts::{DialOpts, PeerCondition},
};
use quinn::{AsyncTimer, Runtime};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

pub(crate) use self::discovery::sort_by_distance;
#[cfg(test)]
pub(crate) use self::handler::STUCK_TIMEOUT;
use self::handler::{FromBehaviour, Handler, ToBehaviour};
pub use self::lookup::CoordinatorLookup;
pub(crate) use self::lookup::MAX_SPARE;
use self::{
    coordinators::{Coordinators, Due},
    counts::Counts,
    discovery::{Change, Discovery},
    event::{Event, NatEvent, RegistrationEvent, SessionEvent},
    handler::Shared,
    link::{FromDriver, Input},
    lookup::{Found, Lookups},
    peer_coordinators::PeerCoordinators,
    reachability::{Reachability, is_global_quic},
    redials::{Lost, Redials},
    registrations::Registrations,
    relay::{Output, Relaying},
};
use crate::{
    config::{Config, ConfigError, Role, peer_of},
    contacts::Contacts,
    counters::Counters,
    offers::{self, Offer, Offers},
    transport::addr,
};
use libp2p_punch_proto::{
    ControlStreamId,
    nat::{FilteringBehaviour, Report},
};

/// The control protocol.
pub const PROTOCOL_NAME: StreamProtocol = StreamProtocol::new("/libp2p-punch/1.0.0");

/// The control protocol of a peer that coordinates for others. It is the same protocol: the name
/// tells peers that they may register.
pub const COORDINATOR_PROTOCOL_NAME: StreamProtocol = StreamProtocol::new("/libp2p-punch/coordinator/1.0.0");

/// Addresses of a connected peer that are remembered of those that it claims.
const MAX_TOLD: usize = 4;
/// Coordinators that are asked for one peer, besides those that we are registered with.
const MAX_NAMED: usize = 8;

/// The ends of the bridge's channels that the behaviour holds.
pub(crate) struct Ends {
    pub(crate) driver: mpsc::Sender<Input>,
    pub(crate) events: mpsc::Receiver<FromDriver>,
    pub(crate) offers: Offers,
    pub(crate) contacts: Contacts,
    pub(crate) counters: Arc<Mutex<Counters>>,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// Chooses among the coordinators that are found. Others must not be able to guess it.
    pub(crate) secret: [u8; 32],
}

/// A dial of a peer that has an offer.
struct PunchedDial {
    offer: Arc<Offer>,
    /// The sources of coordinators are asked for the peer.
    looks_up: bool,
    /// The addresses that the application gave. They may name coordinators.
    addresses: Vec<Multiaddr>,
}

/// A connection, from the making of its handler on.
struct Link {
    id: ControlStreamId,
    peer: PeerId,
    is_established: bool,
    /// The address that we dialed, if the peer can be dialed there again.
    dialed: Option<Multiaddr>,
    /// Addresses that the peer claims.
    told: Vec<Multiaddr>,
}

/// A coordinator that a [`Behaviour`] stays registered with, or tries to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoordinatorInfo {
    /// Its identity.
    pub peer: PeerId,
    /// The addresses at which it is dialed.
    pub addresses: Vec<Multiaddr>,
    /// The coordinator was found among the connected peers. Other coordinators were configured, or
    /// added by the application.
    pub is_found: bool,
    /// A connection to it is open.
    pub is_connected: bool,
    /// The coordinator has registered this peer over that connection.
    pub is_registered: bool,
    /// Time of the first registration over that connection.
    pub registered_since: Option<Instant>,
    /// Time that the coordinator took to answer the last registration.
    pub rtt: Option<Duration>,
    /// Registrations that the coordinator accepted, renewals among them.
    pub registrations_accepted: u64,
    /// Dials of the coordinator that failed, and registrations that it rejected.
    pub failures: u64,
}

/// Makes `swarm.dial(peer)` get through NATs, and passes `PUNCH_ME_NOW` for others. Made by
/// [`new`](crate::new), together with the transport that does the work on the wire.
pub struct Behaviour {
    local_peer: PeerId,
    ends: Ends,
    coordinators: Coordinators,
    discovery: Discovery,
    lookups: Lookups,
    /// Coordinators that peers have named.
    peer_coordinators: PeerCoordinators,
    registrations: Registrations,
    role: Role,
    relaying: Relaying,
    redials: Redials,
    driver: PollSender<Input>,
    /// For the driver, when its channel is full.
    inputs: VecDeque<Input>,
    actions: VecDeque<ToSwarm<Event, FromBehaviour>>,
    reachability: Reachability,
    /// External-address candidates already reported, by observer.
    reported: BTreeMap<PeerId, Multiaddr>,
    links: BTreeMap<ConnectionId, Link>,
    /// Sources of the counters.
    counts: Counts,
    /// Dials that have an offer.
    dialing: BTreeMap<ConnectionId, PunchedDial>,
    /// Peers that are connected over a relay, and with which a session is under way.
    upgrading: BTreeSet<PeerId>,
    next_link: u64,
    nat: Report,
    timer: Option<Pin<Box<dyn AsyncTimer>>>,
}

impl Behaviour {
    pub(crate) fn new(local_peer: PeerId, config: &Config, ends: Ends) -> Result<Self, ConfigError> {
        let actions = config
            .bind_addresses
            .iter()
            .cloned()
            .map(|address| ToSwarm::ListenOn { opts: ListenOpts::new(address) });
        let counts = Counts::new(ends.counters.clone());
        let mut behaviour = Self {
            local_peer,
            discovery: Discovery::new(
                local_peer,
                ends.secret,
                match config.role {
                    Role::Auto | Role::Client => config.max_found_coordinators,
                    _ => 0,
                },
            ),
            driver: PollSender::new(ends.driver.clone()),
            ends,
            coordinators: Coordinators::default(),
            lookups: Lookups::new(),
            peer_coordinators: PeerCoordinators::default(),
            registrations: Registrations::default(),
            role: config.role,
            relaying: Relaying::new(config),
            redials: Redials::default(),
            inputs: VecDeque::new(),
            actions: actions.collect(),
            reachability: Reachability::new(local_peer),
            reported: BTreeMap::new(),
            links: BTreeMap::new(),
            counts,
            dialing: BTreeMap::new(),
            upgrading: BTreeSet::new(),
            next_link: 0,
            nat: Report::default(),
            timer: None,
        };
        for address in &config.coordinators {
            behaviour.add_coordinator(address.clone())?;
        }
        Ok(behaviour)
    }

    /// Stays connected to and registered with the coordinator at `address`, which must end in
    /// `/p2p/PEER_ID`.
    ///
    /// Several addresses of one coordinator may be added one by one.
    pub fn add_coordinator(&mut self, address: Multiaddr) -> Result<PeerId, ConfigError> {
        let Some(peer) = peer_of(&address) else {
            return Err(ConfigError::CoordinatorWithoutPeerId { value: address });
        };
        let (connections, now) = (self.connections_to(&peer), self.ends.runtime.now());
        if self.coordinators.add(peer, address, connections, now) {
            self.register_with(peer);
        }
        self.discovery.reconsider();
        self.timer = None;
        Ok(peer)
    }

    /// Registers with a coordinator that is new.
    fn register_with(&mut self, peer: PeerId) {
        self.inputs.push_back(Input::AddCoordinator(peer));
        self.notify(peer, true);
        let links = self.links.values().filter(|link| link.peer == peer && link.is_established);
        if let Some(address) = links.filter_map(|link| link.dialed.as_ref()).next() {
            self.relaying.coordinator_connected(peer, address, self.ends.runtime.now());
        }
    }

    /// Removes a coordinator; returns false if the peer was none. Existing connections stay for
    /// their other uses. A found coordinator is not chosen again for an hour.
    pub fn remove_coordinator(&mut self, peer: &PeerId) -> bool {
        self.discovery.exclude(peer, self.ends.runtime.now());
        let was = self.coordinators.remove(peer);
        if was {
            self.end_registration(peer);
        }
        was
    }

    fn end_registration(&mut self, peer: &PeerId) {
        self.registrations.remove(peer);
        self.relaying.forget(peer);
        self.inputs.push_back(Input::RemoveCoordinator(*peer));
        self.notify(*peer, self.coordinators.needs(peer));
    }

    fn connections_to(&self, peer: &PeerId) -> Vec<ConnectionId> {
        let links = self.links.iter().filter(|(_, link)| link.peer == *peer && link.is_established);
        links.map(|(id, _)| *id).collect()
    }

    /// A session for a dial of `peer` begins. The coordinators that may know the peer are found and
    /// asked. A dial without a session, such as the dial-back of AutoNAT, has no such effect,
    /// whatever its addresses.
    fn look_for(&mut self, peer: PeerId) {
        let mut is_dialed = false;
        for dial in self.dialing.values_mut().filter(|dial| dial.offer.peer() == peer) {
            is_dialed = true;
            for address in std::mem::take(&mut dial.addresses) {
                self.relaying.learned(peer, &address);
            }
        }
        if is_dialed {
            self.name_coordinators(peer);
        }
        if self.registrations.is_empty() {
            self.look_up(peer);
        }
    }

    /// No coordinator of ours knows a peer that is dialed, or there is none, or none relays for it:
    /// the sources are asked. Returns false if there is no source.
    fn look_up(&mut self, peer: PeerId) -> bool {
        let looks_up = self.dialing.values().any(|dial| dial.looks_up && dial.offer.peer() == peer);
        if looks_up {
            self.lookups.begin(peer);
        }
        looks_up
    }

    /// Connects to the coordinators that addresses of `target` name, and has them asked for it.
    fn name_coordinators(&mut self, target: PeerId) {
        let now = self.ends.runtime.now();
        for (coordinator, address) in self.known_coordinators_of(&target) {
            self.name(coordinator, vec![address], target, now);
        }
        self.report_named(target);
    }

    /// Has the coordinators asked that were found for a peer, as many as there is room for.
    fn name_found(&mut self, peer: PeerId) {
        while self.coordinators.named_for(&peer).len() < MAX_NAMED
            && let Some(Found { coordinator, addresses, .. }) =
                self.lookups.next(&peer, self.ends.runtime.now())
        {
            let is_within_reach = !addresses.is_empty() || !self.connections_to(&coordinator).is_empty();
            if !is_within_reach || coordinator == peer || coordinator == self.local_peer {
                continue;
            }
            self.name(coordinator, addresses, peer, self.ends.runtime.now());
        }
        self.report_named(peer);
    }

    /// A source found the dialed peer itself, with its own addresses: it may need no coordinator.
    /// The transport dials them for each dial of the peer that has an offer.
    fn locate(&self, found: &Found) {
        let named = found.addresses.iter().filter_map(addr::to_socket).map(|(remote, _)| remote);
        let addresses: Vec<_> = named.take(MAX_TOLD).collect();
        let dials = self.dialing.values().filter(|dial| dial.looks_up && dial.offer.peer() == found.peer);
        if !addresses.is_empty() {
            dials.for_each(|dial| self.ends.offers.locate(&dial.offer, addresses.clone()));
        }
    }

    /// Connects to a coordinator that may know `target`.
    fn name(&mut self, coordinator: PeerId, addresses: Vec<Multiaddr>, target: PeerId, now: Instant) {
        let connections = self.connections_to(&coordinator);
        if self.coordinators.name(coordinator, addresses, target, connections, now) {
            self.notify(coordinator, true);
        }
        if !self.coordinators.is_connected(&coordinator) {
            self.relaying.connecting(coordinator);
        }
    }

    /// A coordinator is no longer needed.
    fn release(&mut self, coordinator: &PeerId) {
        self.notify(*coordinator, false);
        self.relaying.not_connecting(coordinator);
    }

    /// Replaces a coordinator that cannot help to reach `peer`, if another was found.
    fn replace_named(&mut self, coordinator: &PeerId, peer: PeerId) {
        if self.lookups.has_spare(&peer) {
            self.lookups.give_up(&peer, coordinator);
            if self.coordinators.unname(coordinator, &peer) {
                self.release(coordinator);
            }
            self.name_found(peer);
        }
    }

    /// No coordinator that has answered knows `peer`. Others are asked, if some were found.
    fn replace_unknowing(&mut self, peer: PeerId) {
        for coordinator in self.lookups.unknowing(&peer, self.ends.runtime.now()) {
            self.replace_named(&coordinator, peer);
        }
    }

    /// Returns the coordinators that addresses of `target` name, or that `target` itself has named.
    fn known_coordinators_of(&self, target: &PeerId) -> Vec<(PeerId, Multiaddr)> {
        let mut named = self.relaying.relays_of(target);
        named.extend(self.peer_coordinators.of(target, self.ends.runtime.now()));
        named.retain(|(coordinator, _)| coordinator != target && *coordinator != self.local_peer);
        named
    }

    fn report_named(&mut self, target: PeerId) {
        let coordinators = self.coordinators.named_for(&target);
        let with_address = |peer: &PeerId| {
            let links = self.links.values().filter(|link| link.peer == *peer && link.is_established);
            let dialed = links.filter_map(|link| link.dialed.clone()).next();
            Some((*peer, dialed.or_else(|| self.coordinators.address_of(peer))?))
        };
        let mut relays: Vec<_> = coordinators.iter().filter_map(with_address).collect();
        discovery::sort_by_distance(&target, &mut relays, |(peer, _)| *peer);
        self.relaying.set_coordinators_of(target, &relays, self.ends.runtime.now());
        self.inputs.push_back(Input::CoordinatorsOf { peer: target, coordinators });
    }

    /// Lets go of the coordinators that were named for `target`, unless a dial or an upgrade still
    /// needs them.
    fn release_named(&mut self, target: PeerId) {
        let is_looked_for =
            self.upgrading.contains(&target) || self.dialing.values().any(|dial| dial.offer.peer() == target);
        if is_looked_for {
            return;
        }
        self.lookups.end(&target);
        for coordinator in self.coordinators.release(&target) {
            self.release(&coordinator);
        }
        self.relaying.set_coordinators_of(target, &[], self.ends.runtime.now());
        self.inputs.push_back(Input::CoordinatorsOf { peer: target, coordinators: BTreeSet::new() });
    }

    /// The attempt to reach a relayed peer directly is over.
    fn upgrade_ended(&mut self, peer: PeerId) {
        if self.upgrading.remove(&peer) {
            self.release_named(peer);
        }
    }

    /// Returns the coordinators that this peer stays registered with, in the order of their
    /// PeerIds.
    pub fn coordinators(&self) -> Vec<CoordinatorInfo> {
        let info = |(peer, addresses, is_connected)| {
            let registration = self.registrations.of(&peer);
            CoordinatorInfo {
                peer,
                addresses,
                is_found: self.discovery.is_chosen(&peer),
                is_connected,
                is_registered: registration.since.is_some(),
                registered_since: registration.since,
                rtt: registration.rtt,
                registrations_accepted: registration.accepted,
                failures: registration.failed,
            }
        };
        self.coordinators.registrars().map(info).collect()
    }

    /// Adds a source of coordinators. The source is asked for coordinators of each dialed peer that
    /// none of our coordinators knows, or that no known relay reaches. `kad::Behaviour`, with the
    /// feature `kad`, is one.
    pub fn coordinator_lookup(&mut self) -> CoordinatorLookup {
        self.lookups.add()
    }

    /// Returns the coordinators that peers named while they were connected, for up to 24 h: each
    /// peer with the addresses of its coordinators. An application that stores them may add them
    /// again after a restart, with [`add_peer_coordinators`](Self::add_peer_coordinators).
    pub fn peer_coordinators(&self) -> impl Iterator<Item = (PeerId, &[Multiaddr])> {
        self.peer_coordinators.iter(self.ends.runtime.now())
    }

    /// Asks the coordinators at these addresses in dials of `peer`, for 24 h or until the peer
    /// names others. They replace those that are known so far; the first eight count.
    ///
    /// # Errors
    ///
    /// [`ConfigError::CoordinatorWithoutPeerId`] if an address does not end in `/p2p/PEER_ID`;
    /// nothing changes then.
    pub fn add_peer_coordinators(
        &mut self,
        peer: PeerId,
        coordinators: Vec<Multiaddr>,
    ) -> Result<(), ConfigError> {
        if let Some(value) = coordinators.iter().find(|address| peer_of(address).is_none()) {
            return Err(ConfigError::CoordinatorWithoutPeerId { value: value.clone() });
        }
        self.peer_coordinators.insert(peer, coordinators, self.ends.runtime.now());
        Ok(())
    }

    /// Returns true if this peer coordinates for others at the moment.
    pub fn is_coordinator(&self) -> bool {
        match self.role {
            Role::Server | Role::Bootstrap => true,
            Role::Auto => self.reachability.is_reachable(),
            _ => false,
        }
    }

    /// Returns the sources of the counters.
    #[cfg(feature = "metrics")]
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the counters so far.
    pub fn counters(&self) -> Counters {
        self.counts.get()
    }

    /// Returns the findings about our NAT from the last [`NatEvent::Report`]; the default before
    /// the first.
    pub fn nat_report(&self) -> &Report {
        &self.nat
    }

    fn notify(&mut self, peer: PeerId, is_coordinator: bool) {
        let connections = self.links.iter().filter(|(_, link)| link.peer == peer);
        self.actions.extend(connections.map(|(connection, _)| ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(*connection),
            event: FromBehaviour::Coordinator(is_coordinator),
        }));
    }

    fn handler(&mut self, id: ConnectionId, peer: PeerId, address: &Multiaddr, opens: bool) -> Handler {
        let link = ControlStreamId(self.next_link);
        self.next_link += 1;
        let may_be_dialed = opens && !is_circuit(address) && !offers::is_offer(address);
        let dialed = may_be_dialed.then(|| address.clone());
        self.links.insert(id, Link { id: link, peer, is_established: false, dialed, told: Vec::new() });
        let is_coordinator = self.coordinators.needs(&peer);
        let shared = Shared {
            driver: self.ends.driver.clone(),
            runtime: self.ends.runtime.clone(),
            queued: self.counts.queued.clone(),
            traffic: self.counts.traffic.clone(),
        };
        let dial = self.dialing.get(&id).filter(|_| offers::is_offer(address));
        let offer = dial.map(|dial| dial.offer.clone());
        Handler::new(link, peer, opens, is_coordinator, shared)
            .relayed(is_circuit(address))
            .dialed_at(offer)
            .coordinates(self.is_coordinator())
    }

    /// Handles the end of a dial, with any outcome.
    fn dial_ended(&mut self, id: ConnectionId) {
        if let Some(PunchedDial { offer, .. }) = self.dialing.remove(&id) {
            self.ends.offers.close(&offer);
            let target = offer.peer();
            self.inputs.push_back(Input::DialEnded(offer));
            self.release_named(target);
        }
    }

    fn dial_failed(&mut self, event: &DialFailure<'_>, now: Instant) {
        self.dial_ended(event.connection_id);
        self.relaying.dial_failed(event, now);
        self.forget_link(event.connection_id);
        let Some(peer) = event.peer_id else { return };
        let is_ours = self.coordinators.is_own_dial(&peer, event.connection_id);
        self.coordinators.failed(&peer, event.connection_id, now);
        // A dial of the application, or a dial that was refused because another is under way, does
        // not count against the coordinator.
        let is_refused = matches!(event.error, DialError::DialPeerConditionFalse(_));
        if is_ours && !is_refused && !self.coordinators.is_connected(&peer) {
            tracing::debug!(%peer, error = %event.error, "coordinator cannot be reached");
            if self.coordinators.contains(&peer) {
                self.registrations.failed(peer);
            }
            self.discovery.failed(&peer, now);
            for target in self.coordinators.targets_of(&peer) {
                self.replace_named(&peer, target);
            }
        }
    }

    /// As [`handler`](Self::handler), for a direct connection. It is kept alive from the start if a
    /// relayed connection is to drain.
    fn direct_handler(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        opens: bool,
    ) -> Handler {
        let mut handler = self.handler(id, peer, address, opens);
        handler.set_draining(self.relaying.is_relayed(&peer));
        handler
    }

    fn forget_link(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.remove(&id) {
            self.inputs.push_back(Input::Closed { link: link.id });
        }
    }

    /// Takes news about the addresses of this peer, and tells all parts what has changed.
    fn update_reachability(&mut self, update: impl FnOnce(&mut Reachability)) {
        let state = |of: &Reachability| (of.external_addresses(), of.is_reachable(), of.needs_no_help());
        let (had_addresses, was_reachable, needed_no_help) = state(&self.reachability);
        update(&mut self.reachability);
        let (addresses, is_reachable, needs_no_help) = state(&self.reachability);
        if addresses != had_addresses {
            self.inputs.push_back(Input::ExternalAddresses(addresses));
        }
        if is_reachable != was_reachable {
            self.set_reachable(is_reachable);
        }
        if needs_no_help != needed_no_help {
            self.relaying.set_reachable(needs_no_help);
            self.discovery.set_reachable(needs_no_help);
        }
    }

    fn update_reachability_with(&mut self, event: &FromSwarm<'_>) {
        match event {
            FromSwarm::NewExternalAddrCandidate(event) => {
                self.update_reachability(|reachability| reachability.observed(event.addr));
            }
            FromSwarm::ExternalAddrConfirmed(event) => {
                self.update_reachability(|reachability| reachability.confirmed(event.addr));
            }
            FromSwarm::ExternalAddrExpired(event) => {
                self.update_reachability(|reachability| reachability.expired(event.addr));
            }
            FromSwarm::NewListenAddr(event) if !is_circuit(event.addr) => {
                self.update_reachability(|reachability| reachability.listening(event.addr));
            }
            FromSwarm::ExpiredListenAddr(event) if !is_circuit(event.addr) => {
                self.update_reachability(|reachability| reachability.not_listening(event.addr));
            }
            FromSwarm::ConnectionEstablished(event) if !event.endpoint.is_relayed() => {
                if let ConnectedPoint::Listener { send_back_addr, .. } = event.endpoint {
                    self.connected_from(send_back_addr);
                }
            }
            _ => {}
        }
    }

    /// A peer has connected to us. If this host had not sent to the peer's address, nobody else
    /// needs a coordinator to reach us.
    fn connected_from(&mut self, remote: &Multiaddr) {
        if let Some((remote, _)) = addr::to_socket(remote)
            && self.ends.contacts.note(remote.ip())
        {
            self.update_reachability(|reachability| reachability.reached_from(remote.ip().to_canonical()));
        }
    }

    fn set_reachable(&mut self, reachable: bool) {
        self.inputs.push_back(Input::Reachable(reachable));
        if self.role == Role::Auto {
            self.actions.extend(self.links.iter().map(|(connection, link)| ToSwarm::NotifyHandler {
                peer_id: link.peer,
                handler: NotifyHandler::One(*connection),
                event: FromBehaviour::Coordinates(reachable),
            }));
        }
    }

    /// Registers with the coordinators that were found, and lets go of those that are no longer
    /// wanted.
    fn choose_coordinators(&mut self, now: Instant) {
        if self.discovery.refresh(now) {
            self.lookups.refresh(self.local_peer);
        }
        while let Some(change) = self.discovery.poll(|peer| self.coordinators.is_configured(peer), now) {
            match change {
                Change::Choose { coordinator, addresses } => {
                    tracing::debug!(%coordinator, "coordinator found");
                    let connections = self.connections_to(&coordinator);
                    if self.coordinators.find(coordinator, addresses, connections, now) {
                        self.register_with(coordinator);
                    }
                    let event = Event::Registration(RegistrationEvent::CoordinatorFound { coordinator });
                    self.actions.push_back(ToSwarm::GenerateEvent(event));
                }
                Change::Drop { coordinator } => {
                    tracing::debug!(%coordinator, "coordinator dropped");
                    if self.coordinators.drop_found(&coordinator) {
                        self.end_registration(&coordinator);
                    }
                    let event = Event::Registration(RegistrationEvent::CoordinatorDropped { coordinator });
                    self.actions.push_back(ToSwarm::GenerateEvent(event));
                }
            }
        }
    }

    /// A coordinator accepted the registration of this peer, or renewed it.
    fn note_registration(&mut self, coordinator: PeerId, rtt: Option<Duration>, now: Instant) {
        if self.coordinators.contains(&coordinator) && self.coordinators.is_connected(&coordinator) {
            self.registrations.accepted(coordinator, rtt, now);
        }
        self.discovery.succeeded(&coordinator);
    }

    /// Draws the consequences of an event that is about to be reported.
    fn note(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Registration(RegistrationEvent::Accepted { coordinator, rtt }) => {
                self.note_registration(*coordinator, *rtt, now);
            }
            Event::Registration(RegistrationEvent::Renewed { coordinator, rtt }) => {
                self.note_registration(*coordinator, Some(*rtt), now);
            }
            Event::Registration(RegistrationEvent::Rejected { coordinator, reason }) => {
                if self.coordinators.contains(coordinator) {
                    self.registrations.rejected(*coordinator, *reason);
                }
                self.discovery.failed(coordinator, now);
            }
            Event::Registration(RegistrationEvent::PeerCoordinators { peer, coordinators }) => {
                self.peer_coordinators.insert(*peer, coordinators.clone(), now);
            }
            Event::Session(SessionEvent::Phase { peer, from: None, .. }) => self.look_for(*peer),
            Event::Session(SessionEvent::Retry { peer, .. }) => {
                self.look_up(*peer);
                self.replace_unknowing(*peer);
            }
            _ => {}
        }
    }

    /// An observed address is a candidate for an external address; other behaviours confirm it.
    fn report_candidate(&mut self, event: &Event) {
        let Event::Nat(NatEvent::Observed { observer, address, .. }) = event else { return };
        let address = addr::from_socket(*address);
        if !is_global_quic(&address, &self.local_peer) {
            return;
        }
        if self.reported.get(observer) != Some(&address) {
            self.reported.insert(*observer, address.clone());
            self.actions.push_back(ToSwarm::NewExternalAddrCandidate(address));
        }
    }

    fn poll_inputs(&mut self, cx: &mut Context<'_>) {
        while !self.inputs.is_empty() {
            match self.driver.poll_reserve(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return self.inputs.clear(),
                Poll::Pending => return,
            }
            if let Some(input) = self.inputs.pop_front() {
                let _ = self.driver.send_item(input);
            }
        }
    }

    /// Processes the deadlines of coordinators and relays.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Option<ToSwarm<Event, FromBehaviour>> {
        let now = self.ends.runtime.now();
        for (coordinator, target) in self.lookups.overdue(now) {
            match self.relaying.may_still_relay(&coordinator, &target) {
                true => self.lookups.renew(&target, &coordinator, now),
                false => self.replace_named(&coordinator, target),
            }
        }
        self.choose_coordinators(now);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Some(Due { peer, addresses, in_parallel }) = self.coordinators.due(now) {
            let condition = match in_parallel {
                true => PeerCondition::Disconnected,
                false => PeerCondition::DisconnectedAndNotDialing,
            };
            let opts = DialOpts::peer_id(peer).condition(condition).addresses(addresses).build();
            self.coordinators.dialing(&peer, opts.connection_id(), now);
            return Some(ToSwarm::Dial { opts });
        }
        while let Some(output) = self.relaying.poll(now) {
            match output {
                Output::Swarm(action) => return Some(action),
                Output::Driver(Input::Upgrade(peer)) => {
                    if self.is_worth_punching(&peer) {
                        self.upgrading.insert(peer);
                        self.name_coordinators(peer);
                        self.inputs.push_back(Input::Upgrade(peer));
                    }
                }
                Output::Driver(input) => self.inputs.push_back(input),
                Output::LookUp(peer) => {
                    if !self.look_up(peer) {
                        self.relaying.cannot_look_up(peer, now);
                    }
                }
            }
        }
        self.poll_inputs(cx);
        let times = [
            self.coordinators.next_dial(),
            self.relaying.next_time(),
            self.discovery.next_time(),
            self.lookups.next_time(),
        ];
        let next = times.into_iter().flatten().min()?;
        let timer = self.timer.get_or_insert_with(|| self.ends.runtime.new_timer(next));
        timer.as_mut().reset(next);
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        None
    }

    /// A connection was closed because it could not move.
    fn lost(&mut self, lost: Lost) {
        let is_connected = self.links.values().any(|link| link.peer == lost.peer && link.is_established);
        if let Some(lost) = self.redials.lost(lost, is_connected, self.ends.runtime.now()) {
            self.redial(lost);
        }
    }

    /// Dials a peer that was lost, where it was dialed before and through coordinators. These are
    /// looked after in any case.
    fn redial(&mut self, Lost { peer, dialed }: Lost) {
        if self.coordinators.contains(&peer) || (dialed.is_none() && !self.is_worth_punching(&peer)) {
            return;
        }
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(dialed.into_iter().map(addr::from_socket).collect())
            .extend_addresses_through_behaviour();
        self.actions.push_back(ToSwarm::Dial { opts: opts.build() });
    }

    /// We have another address than before, or an interface came up: nothing that backs off waits
    /// any longer.
    fn network_changed(&mut self) {
        let now = self.ends.runtime.now();
        self.coordinators.network_changed(now);
        self.relaying.network_changed(now);
    }

    fn is_worth_punching(&self, peer: &PeerId) -> bool {
        let has_coordinators =
            || !self.coordinators.is_empty() || !self.known_coordinators_of(peer).is_empty();
        *peer != self.local_peer && !self.coordinators.needs(peer) && has_coordinators()
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let Some(peer) = peer.filter(|_| role == Endpoint::Dialer) else { return Ok(Vec::new()) };
        if self.relaying.is_own_dial(id) || self.coordinators.needs(&peer) {
            return Ok(Vec::new());
        }
        let looks_up = !self.lookups.is_empty() && !self.lookups.is_own_dial(&id) && peer != self.local_peer;
        let names_coordinator = || addresses.iter().any(is_circuit);
        if !looks_up && !names_coordinator() && !self.is_worth_punching(&peer) {
            return Ok(Vec::new());
        }
        // An address of this form in a dial of another component is not ours, and an open offer
        // must not make it look so.
        if addresses.iter().any(offers::is_offer) {
            return Ok(Vec::new());
        }
        let Some(offer) = self.ends.offers.open(peer) else { return Ok(Vec::new()) };
        let now = self.ends.runtime.now();
        self.relaying.dialing(peer, id, now);
        self.coordinators.wanted(&peer, now);
        let dial = PunchedDial { offer: offer.clone(), looks_up, addresses: addresses.to_vec() };
        self.dialing.insert(id, dial);
        let address = offer.address();
        if addresses.is_empty() {
            // The dial has no address but those of behaviours, so that the swarm takes them. With
            // others, the session begins when the swarm hands the offered address to the transport:
            // until then, the swarm may be about to discard it.
            self.look_for(peer);
            self.inputs.push_back(Input::Dialing(offer));
        }
        Ok(vec![address])
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(match is_circuit(local) {
            true => self.handler(id, peer, remote, false),
            false => self.direct_handler(id, peer, remote, false),
        })
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let opens = role == Endpoint::Dialer;
        Ok(match is_circuit(address) {
            true => self.handler(id, peer, address, opens),
            false => self.direct_handler(id, peer, address, opens),
        })
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        let now = self.ends.runtime.now();
        self.update_reachability_with(&event);
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                self.dial_ended(event.connection_id);
                if let Some(link) = self.links.get_mut(&event.connection_id) {
                    link.is_established = true;
                }
                if self.coordinators.connected(&event.peer_id, event.connection_id, now) {
                    let connection = CloseConnection::One(event.connection_id);
                    self.actions.push_back(ToSwarm::CloseConnection { peer_id: event.peer_id, connection });
                }
                let is_coordinator = self.coordinators.contains(&event.peer_id);
                self.relaying.established(&event, is_coordinator, now);
            }
            FromSwarm::ConnectionClosed(event) => {
                self.relaying.closed(&event, now);
                self.forget_link(event.connection_id);
                self.coordinators.disconnected(&event.peer_id, event.connection_id, now);
                if !self.relaying.is_relayed(&event.peer_id) {
                    self.upgrade_ended(event.peer_id);
                }
                if event.remaining_established == 0 {
                    self.reported.remove(&event.peer_id);
                    self.registrations.disconnected(&event.peer_id);
                }
                if let Some(lost) = self.redials.closed(&event.peer_id, event.remaining_established, now) {
                    self.redial(lost);
                }
            }
            FromSwarm::AddressChange(event) => {
                if let Some(link) = self.links.get(&event.connection_id) {
                    self.inputs.push_back(Input::Moved { link: link.id });
                }
            }
            FromSwarm::ListenFailure(event) => {
                if let (Some(peer), ListenError::Denied { .. }) = (&event.peer_id, event.error)
                    && !is_circuit(event.local_addr)
                {
                    self.relaying.denied(peer, now);
                }
                self.forget_link(event.connection_id);
            }
            FromSwarm::DialFailure(event) => self.dial_failed(&event, now),
            FromSwarm::NewListenAddr(event) => {
                if !is_circuit(event.addr) {
                    self.network_changed();
                }
                self.relaying.listening(event.listener_id, now);
            }
            FromSwarm::ListenerClosed(event) => self.relaying.not_listening(event.listener_id, now),
            FromSwarm::ListenerError(event) => {
                self.relaying.listener_failed(event.listener_id, event.err, now)
            }
            FromSwarm::NewExternalAddrOfPeer(event) => {
                self.relaying.learned(event.peer_id, event.addr);
                if is_global_quic(event.addr, &event.peer_id) {
                    self.discovery.learned(event.peer_id, event.addr);
                    let links = self.links.values_mut().filter(|link| link.peer == event.peer_id);
                    links
                        .filter(|link| link.told.len() < MAX_TOLD)
                        .for_each(|link| link.told.push(event.addr.clone()));
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        ToBehaviour::PeerCoordinates(coordinates): THandlerOutEvent<Self>,
    ) {
        match (coordinates, self.links.get(&id)) {
            (true, Some(link)) => {
                let (dialed, told) = (link.dialed.clone(), link.told.clone());
                let addresses = Vec::from_iter(dialed.iter().chain(&told).cloned());
                self.discovery.coordinates(peer, dialed, told);
                for target in self.lookups.peers() {
                    self.lookups.keep(Found {
                        peer: target,
                        coordinator: peer,
                        addresses: addresses.clone(),
                    });
                    self.name_found(target);
                }
            }
            _ => self.discovery.stopped(&peer),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.poll_inputs(cx);
        while let Poll::Ready(found) = self.lookups.poll(cx) {
            let peer = found.peer;
            if found.coordinator == peer {
                self.locate(&found);
            } else {
                self.lookups.keep(found);
                self.name_found(peer);
            }
        }
        if let Some(action) = self.actions.pop_front() {
            return Poll::Ready(action);
        }
        while let Poll::Ready(Some(news)) = self.ends.events.poll_recv(cx) {
            match news {
                FromDriver::Event(event) => {
                    self.report_candidate(&event);
                    self.note(&event, self.ends.runtime.now());
                    if let Event::Session(
                        SessionEvent::Failed { peer, .. } | SessionEvent::Connected { peer, .. },
                    ) = &event
                    {
                        self.upgrade_ended(*peer);
                    }
                    if let Event::Nat(NatEvent::Report(report)) = &event {
                        self.nat = (**report).clone();
                        let filtering = self.nat.filtering.as_ref().map(|finding| &finding.value);
                        let public = self.nat.public_address.as_ref().map(|finding| finding.value.ip());
                        if let (Some(FilteringBehaviour::EndpointIndependent), Some(public)) =
                            (filtering, public)
                        {
                            self.update_reachability(|reachability| reachability.filters_nothing(public));
                        }
                    }
                    let is_coordinator = |peer: &PeerId| self.coordinators.contains(peer);
                    self.relaying.handle_event(&event, is_coordinator, self.ends.runtime.now());
                    return Poll::Ready(ToSwarm::GenerateEvent(event));
                }
                FromDriver::Collect { peer, remote } => self.relaying.collect(peer, remote),
                FromDriver::NotUpgrading(peer) => self.upgrade_ended(peer),
                FromDriver::InterfaceUp => self.network_changed(),
                FromDriver::Lost { peer, dialed } => self.lost(Lost { peer, dialed }),
            }
        }
        if let Some(action) = self.actions.pop_front() {
            return Poll::Ready(action);
        }
        match self.poll_deadlines(cx) {
            Some(action) => Poll::Ready(action),
            None => Poll::Pending,
        }
    }
}

fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}
