//! Dials over relays for dials that wait for a direct connection.
//!
//! A dial has a head start of [`HEAD_START`] for traversal; then the peer is dialed over relays in
//! parallel. One dial names several relays, which the swarm asks in turn. A relay that does not
//! answer within [`RELAY_TIMEOUT`] is skipped: a further dial asks the others. The swarm cannot
//! cancel a dial, so the first dial may still end in a connection.
//!
//! If none of the known relays reaches the peer, the sources of coordinators are asked for more:
//! the peer keeps its reservations with its coordinators. A dial waits for them for
//! [`SEARCH_TIMEOUT`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

use super::relays::relay_of;

/// Time that a dial waits for a direct connection before relays are asked as well.
pub(super) const HEAD_START: Duration = Duration::from_secs(1);
/// Time that a relay may take to connect us before the next relay is asked.
pub(super) const RELAY_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for the sources of coordinators to find more relays, once none of those that are known has
/// helped.
pub(super) const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Relays that are asked for one peer in all.
const MAX_ASKED: usize = 12;

#[derive(Debug)]
struct Waiting {
    peer: PeerId,
    /// Time at which relays are asked; `None` once they have been.
    relay_at: Option<Instant>,
    /// No coordinator knows the peer.
    is_unknown: bool,
}

/// A dial of ours over relays.
#[derive(Debug)]
pub(super) struct Circuit {
    pub(super) peer: PeerId,
    pub(super) since: Instant,
    addresses: Vec<Multiaddr>,
    /// Time at which the first relay is skipped; `None` once it has been.
    deadline: Option<Instant>,
}

/// A dial over relays that has had its time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TimedOut {
    pub(super) peer: PeerId,
    /// The relay that did not answer, by its circuit address.
    pub(super) silent: Option<Multiaddr>,
    /// The relays that have not had their time.
    pub(super) remaining: Vec<Multiaddr>,
}

/// State of the attempts to reach one peer over relays, while a dial of it waits.
#[derive(Debug, Default)]
struct Search {
    /// Relays that have been asked.
    asked: BTreeSet<PeerId>,
    /// The session has failed for good: the dial ends with that of the relays.
    is_last_resort: bool,
    /// Time until which more relays are looked for; `None` before.
    until: Option<Instant>,
}

/// Dials that wait for a direct connection, and our dials over relays for them.
#[derive(Debug, Default)]
pub(super) struct Fallback {
    waiting: BTreeMap<ConnectionId, Waiting>,
    circuits: BTreeMap<ConnectionId, Circuit>,
    /// By the peer. Each has a dial that waits.
    searches: BTreeMap<PeerId, Search>,
}

impl Fallback {
    /// Records a dial that may wait for a session. The swarm reports its end.
    pub(super) fn dialing(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        self.waiting.insert(id, Waiting { peer, relay_at: Some(now + HEAD_START), is_unknown: false });
    }

    /// No coordinator knows the peer: none of them is asked to relay meanwhile.
    pub(super) fn mark_unknown(&mut self, peer: &PeerId) {
        for waiting in self.waiting.values_mut().filter(|waiting| waiting.peer == *peer) {
            (waiting.relay_at, waiting.is_unknown) = (None, true);
        }
    }

    /// A coordinator knows the peer: dials that waited for that have a head start from now on.
    pub(super) fn mark_known(&mut self, peer: &PeerId, now: Instant) {
        for waiting in self.waiting.values_mut().filter(|waiting| waiting.peer == *peer) {
            if std::mem::take(&mut waiting.is_unknown) {
                waiting.relay_at = Some(now + HEAD_START);
            }
        }
    }

    /// Removes a dial that is over. Without another dial of its peer, nothing is sought for it.
    pub(super) fn no_longer_waiting(&mut self, id: ConnectionId) {
        if let Some(Waiting { peer, .. }) = self.waiting.remove(&id)
            && !self.is_awaited(&peer)
        {
            self.searches.remove(&peer);
        }
    }

    /// The session with the peer has failed for good.
    pub(super) fn session_failed(&mut self, peer: PeerId) {
        if self.is_awaited(&peer) {
            self.searches.entry(peer).or_default().is_last_resort = true;
        }
    }

    /// The session with the peer has ended well, or its dials are let go.
    pub(super) fn end_search(&mut self, peer: &PeerId) {
        self.searches.remove(peer);
        self.end_head_start(peer);
    }

    /// Returns true if only relays can still help a dial that waits.
    pub(super) fn is_last_resort(&self, peer: &PeerId) -> bool {
        self.searches.get(peer).is_some_and(|search| search.is_last_resort)
    }

    /// Returns true if this relay may be asked for the peer: it has not been, and others may be.
    pub(super) fn may_ask(&self, peer: &PeerId, relay: &PeerId) -> bool {
        self.room(peer) > 0 && self.searches.get(peer).is_none_or(|search| !search.asked.contains(relay))
    }

    /// Returns true if this relay is being asked for the peer, and has its time.
    pub(super) fn is_asking_over(&self, peer: &PeerId, relay: &PeerId) -> bool {
        let names_relay = |circuit: &Circuit| circuit.addresses.iter().any(|to| relay_of(to) == Some(*relay));
        self.circuits.values().any(|circuit| circuit.is_asking(peer) && names_relay(circuit))
    }

    /// Returns the number of relays that may still be asked for the peer.
    pub(super) fn room(&self, peer: &PeerId) -> usize {
        MAX_ASKED.saturating_sub(self.searches.get(peer).map_or(0, |search| search.asked.len()))
    }

    /// A relayed connection to the peer is open. The dial goes on, and may become direct.
    pub(super) fn relayed(&mut self, peer: &PeerId) {
        if let Some(search) = self.searches.get_mut(peer) {
            search.until = None;
        }
    }

    /// None of the known relays has helped. Returns true if more are to be looked for; false if
    /// that has been done.
    pub(super) fn begin_search(&mut self, peer: PeerId, now: Instant) -> bool {
        let search = self.searches.entry(peer).or_default();
        let is_first = search.until.is_none();
        search.until.get_or_insert(now + SEARCH_TIMEOUT);
        is_first
    }

    /// No more relays are found.
    pub(super) fn end_lookup(&mut self, peer: &PeerId, now: Instant) {
        if let Some(search) = self.searches.get_mut(peer) {
            search.until = Some(now);
        }
    }

    /// Returns true if some relay was asked for the peer.
    pub(super) fn has_asked(&self, peer: &PeerId) -> bool {
        self.searches.get(peer).is_some_and(|search| !search.asked.is_empty())
    }

    /// Returns true if more relays may still be found.
    pub(super) fn is_searching(&self, peer: &PeerId, now: Instant) -> bool {
        self.searches.get(peer).and_then(|search| search.until).is_some_and(|until| now < until)
    }

    /// Returns true if relays have been asked for a dial that waits.
    pub(super) fn has_begun(&self, peer: &PeerId) -> bool {
        self.searches.contains_key(peer)
    }

    /// Returns the peers of dials that need a relay.
    pub(super) fn begun(&self) -> Vec<PeerId> {
        self.searches.keys().copied().collect()
    }

    /// Returns the peers of dials for which no relay was found in time.
    pub(super) fn fruitless(&self, now: Instant) -> Vec<PeerId> {
        let is_over = |search: &Search| search.is_last_resort && search.until.is_some_and(|at| at <= now);
        let over = self.searches.iter().filter(|(peer, search)| is_over(search) && !self.is_asking(peer));
        over.map(|(peer, _)| *peer).collect()
    }

    pub(super) fn is_awaited(&self, peer: &PeerId) -> bool {
        self.waiting.values().any(|waiting| waiting.peer == *peer)
    }

    /// The head start of the peer's dials is over: relays are asked now, or need not be asked.
    pub(super) fn end_head_start(&mut self, peer: &PeerId) {
        let waiting = self.waiting.values_mut().filter(|waiting| waiting.peer == *peer);
        waiting.for_each(|waiting| waiting.relay_at = None);
    }

    /// A relay is connected that was not: dials that wait without any have a head start again,
    /// since it is their coordinator, too. The relay may be asked again.
    pub(super) fn relay_arrived(&mut self, relay: &PeerId, now: Instant) {
        for search in self.searches.values_mut() {
            search.asked.remove(relay);
        }
        for waiting in self.waiting.values_mut() {
            let is_asking = self.circuits.values().any(|circuit| circuit.is_asking(&waiting.peer));
            if waiting.relay_at.is_none() && !waiting.is_unknown && !is_asking {
                waiting.relay_at = Some(now + HEAD_START);
            }
        }
    }

    /// Returns the next peer whose dials have had their head start.
    pub(super) fn due(&mut self, now: Instant) -> Option<PeerId> {
        let is_fresh = |waiting: &&Waiting| waiting.relay_at.is_some_and(|at| at <= now);
        let peer = self.waiting.values().find(is_fresh)?.peer;
        self.end_head_start(&peer);
        Some(peer)
    }

    /// The swarm is asked to dial the peer over these relays.
    pub(super) fn asked(&mut self, id: ConnectionId, peer: PeerId, addresses: Vec<Multiaddr>, now: Instant) {
        let deadline = Some(now + RELAY_TIMEOUT);
        if self.is_awaited(&peer) {
            self.searches.entry(peer).or_default().asked.extend(addresses.iter().filter_map(relay_of));
        }
        self.circuits.insert(id, Circuit { peer, since: now, addresses, deadline });
    }

    /// Returns true if a relay is being asked that still has time.
    pub(super) fn is_asking(&self, peer: &PeerId) -> bool {
        self.circuits.values().any(|circuit| circuit.is_asking(peer))
    }

    pub(super) fn is_circuit(&self, id: ConnectionId) -> bool {
        self.circuits.contains_key(&id)
    }

    /// Removes a dial over relays that is over.
    pub(super) fn settled(&mut self, id: ConnectionId) -> Option<Circuit> {
        self.circuits.remove(&id)
    }

    /// Returns the next dial over relays whose first relay has not answered in time.
    pub(super) fn timed_out(&mut self, now: Instant) -> Option<TimedOut> {
        let is_over = |circuit: &&mut Circuit| circuit.deadline.is_some_and(|at| at <= now);
        let circuit = self.circuits.values_mut().find(is_over)?;
        circuit.deadline = None;
        let mut addresses = circuit.addresses.iter().cloned();
        let silent = addresses.next();
        Some(TimedOut { peer: circuit.peer, silent, remaining: addresses.collect() })
    }

    /// Returns the next time at which [`due`](Self::due), [`timed_out`](Self::timed_out) or
    /// [`fruitless`](Self::fruitless) returns something.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let waiting = self.waiting.values().filter_map(|waiting| waiting.relay_at);
        let circuits = self.circuits.values().filter_map(|circuit| circuit.deadline);
        let is_silent = |(peer, search): &(&PeerId, &Search)| search.is_last_resort && !self.is_asking(peer);
        let searches = self.searches.iter().filter(is_silent).filter_map(|(_, search)| search.until);
        waiting.chain(circuits).chain(searches).min()
    }
}

impl Circuit {
    fn is_asking(&self, peer: &PeerId) -> bool {
        self.peer == *peer && self.deadline.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    fn addresses() -> Vec<Multiaddr> {
        (1..=3).map(|n| format!("/ip4/192.0.2.{n}/udp/1/quic-v1/p2p-circuit").parse().unwrap()).collect()
    }

    #[test]
    fn relays_are_asked_once_for_all_dials_of_a_peer_after_a_second() {
        let (mut fallback, peer, now) = (Fallback::default(), PeerId::random(), Instant::now());
        fallback.dialing(peer, id(1), now);
        fallback.dialing(peer, id(2), now);
        assert_eq!((fallback.next_time(), fallback.due(now)), (Some(now + HEAD_START), None));
        assert_eq!(fallback.due(now + HEAD_START), Some(peer));
        assert_eq!((fallback.next_time(), fallback.due(now + HEAD_START)), (None, None));
        fallback.no_longer_waiting(id(1));
        assert!(fallback.is_awaited(&peer));
        fallback.no_longer_waiting(id(2));
        assert!(!fallback.is_awaited(&peer));
    }

    #[test]
    fn no_relay_is_asked_for_a_peer_that_no_coordinator_knows_until_one_does() {
        let (mut fallback, peer, now) = (Fallback::default(), PeerId::random(), Instant::now());
        fallback.dialing(peer, id(1), now);
        fallback.mark_unknown(&peer);
        fallback.relay_arrived(&PeerId::random(), now);
        assert_eq!(fallback.next_time(), None);
        fallback.mark_known(&PeerId::random(), now);
        assert_eq!(fallback.next_time(), None);
        fallback.mark_known(&peer, now);
        assert_eq!(fallback.next_time(), Some(now + HEAD_START));
        fallback.due(now + HEAD_START);
        fallback.mark_known(&peer, now + HEAD_START);
        assert_eq!(fallback.next_time(), None, "relays are asked once");
    }

    #[test]
    fn a_silent_relay_is_passed_over_until_none_is_left() {
        let (mut fallback, peer, now) = (Fallback::default(), PeerId::random(), Instant::now());
        fallback.asked(id(1), peer, addresses(), now);
        assert!(fallback.is_asking(&peer) && fallback.timed_out(now).is_none());
        let now = now + RELAY_TIMEOUT;
        let TimedOut { silent, remaining, .. } = fallback.timed_out(now).unwrap();
        assert_eq!((silent.as_ref(), remaining.as_slice()), (addresses().first(), &addresses()[1..]));
        assert!(!fallback.is_asking(&peer) && fallback.timed_out(now).is_none());
        assert!(fallback.is_circuit(id(1)), "it may still end in a connection");
        fallback.asked(id(2), peer, addresses()[2..].to_vec(), now);
        assert_eq!(fallback.timed_out(now + RELAY_TIMEOUT).unwrap().remaining, []);
        assert!(fallback.settled(id(1)).is_some() && fallback.settled(id(2)).is_some());
        assert_eq!(fallback.next_time(), None);
    }

    #[test]
    fn a_relay_that_arrives_is_asked_for_dials_that_found_none() {
        let (mut fallback, peer, now) = (Fallback::default(), PeerId::random(), Instant::now());
        fallback.dialing(peer, id(1), now);
        fallback.due(now + HEAD_START);
        let later = now + 5 * HEAD_START;
        fallback.relay_arrived(&PeerId::random(), later);
        assert_eq!(fallback.next_time(), Some(later + HEAD_START));
        fallback.due(later + HEAD_START);
        fallback.asked(id(2), peer, addresses(), later);
        fallback.relay_arrived(&PeerId::random(), later);
        assert_eq!(fallback.next_time(), Some(later + RELAY_TIMEOUT), "they are being asked");
    }

    #[test]
    fn more_relays_are_looked_for_once_and_for_a_limited_time() {
        let (mut fallback, peer, now) = (Fallback::default(), PeerId::random(), Instant::now());
        fallback.dialing(peer, id(1), now);
        fallback.end_head_start(&peer);
        fallback.session_failed(peer);
        assert!(fallback.is_last_resort(&peer) && fallback.begin_search(peer, now));
        assert!(!fallback.begin_search(peer, now + HEAD_START), "they are being looked for");
        let over = now + SEARCH_TIMEOUT;
        assert!(fallback.is_searching(&peer, over - HEAD_START) && !fallback.is_searching(&peer, over));
        assert_eq!((fallback.next_time(), fallback.fruitless(over)), (Some(over), vec![peer]));
        // A relay that was found has its time.
        fallback.asked(id(2), peer, addresses(), now);
        assert_eq!(fallback.fruitless(over), []);
        fallback.settled(id(2));
        assert_eq!(fallback.fruitless(over), [peer]);
        fallback.no_longer_waiting(id(1));
        assert!(fallback.fruitless(over).is_empty() && !fallback.is_last_resort(&peer));
    }

    #[test]
    fn a_dial_that_a_relay_has_reached_does_not_end_with_the_search() {
        let (mut fallback, peer, now) = (Fallback::default(), PeerId::random(), Instant::now());
        fallback.dialing(peer, id(1), now);
        fallback.end_head_start(&peer);
        fallback.session_failed(peer);
        fallback.begin_search(peer, now);
        fallback.relayed(&peer);
        assert_eq!((fallback.fruitless(now + SEARCH_TIMEOUT), fallback.next_time()), (vec![], None));
        assert!(fallback.is_last_resort(&peer), "the dial ends with the relayed connection");
    }

    #[test]
    fn a_relay_is_asked_once_for_a_peer_and_not_too_many_are() {
        let (mut fallback, peer, now) = (Fallback::default(), PeerId::random(), Instant::now());
        fallback.dialing(peer, id(1), now);
        let relays: Vec<_> = (0..MAX_ASKED).map(|_| PeerId::random()).collect();
        let circuit = |relay: &PeerId| format!("/memory/1/p2p/{relay}/p2p-circuit").parse().unwrap();
        fallback.asked(id(2), peer, relays[1..].iter().map(circuit).collect(), now);
        assert_eq!(fallback.room(&peer), 1);
        assert!(fallback.may_ask(&peer, &relays[0]) && !fallback.may_ask(&peer, &relays[1]));
        fallback.asked(id(3), peer, vec![circuit(&relays[0])], now);
        assert!(!fallback.may_ask(&peer, &PeerId::random()) && fallback.has_asked(&peer));
        assert!(fallback.is_asking_over(&peer, &relays[0]) && fallback.is_asking_over(&peer, &relays[1]));
        fallback.timed_out(now + RELAY_TIMEOUT);
        assert!(!fallback.is_asking_over(&peer, &relays[1]), "its time is over");
        assert!(fallback.is_asking_over(&peer, &relays[0]), "another dial asks this one");
        fallback.relay_arrived(&relays[1], now);
        assert!(fallback.may_ask(&peer, &relays[1]), "it may know the peer now");
    }
}
