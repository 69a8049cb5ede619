//! NAT boxes and firewalls: the configuration, in the words of RFC 4787, and the translation table.

mod filtering;
mod mapping;
mod ports;
mod tuples;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use rand::rngs::StdRng;
use tokio::time::Instant;

use self::{
    filtering::Contacts,
    mapping::Scope,
    ports::Allocator,
    tuples::{Flow, Tuples},
};
pub use self::{filtering::Filtering, mapping::Mapping, ports::Ports};
use crate::trace::Verdict;

/// Handling of datagrams from an inside host to an external endpoint of the same NAT (RFC 4787 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hairpin {
    /// Drops it.
    Off,
    /// Turns it around, from the sender's external endpoint (RFC 4787 REQ-9).
    ExternalSource,
    /// Turns it around, from the sender's internal endpoint.
    InternalSource,
}

/// The behaviour of a NAT, or of a firewall: see [`World::nat`](crate::World::nat).
#[derive(Debug, Clone, PartialEq)]
pub struct Nat {
    /// Condition for the reuse of a mapping.
    pub mapping: Mapping,
    /// Remotes that may use a mapping from outside.
    pub filtering: Filtering,
    /// Choice of external ports.
    pub ports: Ports,
    /// The external ports to choose from. A preserved port may lie elsewhere.
    pub port_range: RangeInclusive<u16>,
    /// Reachability of inside hosts by their external endpoints.
    pub hairpin: Hairpin,
    /// Lifetime of a mapping, or of the permission of one remote, after the last outbound datagram
    /// (RFC 4787 REQ-5).
    pub lifetime: Duration,
    /// Inbound datagrams refresh as well (RFC 4787 REQ-6).
    pub refresh_inbound: bool,
    /// Longest lifetime of a mapping, however busy; `None` for no limit.
    pub absolute_lifetime: Option<Duration>,
    /// The box has no firewall and tracks a packet that comes unasked as a flow of its own, as bare
    /// Linux masquerade does. A flow from inside that would use the same endpoints then gets
    /// another port, and so do all later flows of its socket. This lasts until half a minute after
    /// the last such packet. Only with endpoint-independent mapping.
    pub early_packets_harm: bool,
    /// Largest number of mappings at once; further flows are dropped. `None` for as many as there
    /// are ports.
    pub capacity: Option<usize>,
    /// One-way time between two hosts of the network behind the NAT, and of turning a datagram
    /// around.
    pub lan_latency: Duration,
}

impl Default for Nat {
    /// The usual home router: EIM, APDF, ports preserved, no hairpinning, two minutes.
    fn default() -> Self {
        Self {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressAndPortDependent,
            ports: Ports::Preserving,
            port_range: 1024..=65535,
            hairpin: Hairpin::Off,
            lifetime: Duration::from_secs(120),
            refresh_inbound: false,
            absolute_lifetime: None,
            early_packets_harm: false,
            capacity: None,
            lan_latency: Duration::from_millis(1),
        }
    }
}

impl Nat {
    /// The default with another mapping and filtering.
    pub fn new(mapping: Mapping, filtering: Filtering) -> Self {
        Self { mapping, filtering, ..Self::default() }
    }

    /// The default that is hardest to get through: APDM with random ports, and APDF.
    pub fn random() -> Self {
        Self { mapping: Mapping::AddressAndPortDependent, ports: Ports::Random, ..Self::default() }
    }
}

/// A live mapping, as [`Gateway::mappings`](crate::Gateway::mappings) shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The endpoint inside.
    pub internal: SocketAddr,
    /// The endpoint outside; the same as inside where a firewall does not translate.
    pub external: SocketAddr,
}

#[derive(Debug)]
struct Entry {
    internal: SocketAddr,
    scope: Scope,
    created: Instant,
    refreshed: Instant,
    contacts: Contacts,
    /// Made by hand: open to everybody, for ever.
    forwarded: bool,
}

/// The translation table.
#[derive(Debug)]
pub(crate) struct Table {
    nat: Nat,
    allocator: Allocator,
    outward: BTreeMap<(SocketAddr, Scope), SocketAddr>,
    entries: BTreeMap<SocketAddr, Entry>,
    /// The flows of a box without a firewall.
    tuples: Tuples,
    swept: Option<Instant>,
}

impl Table {
    pub(crate) fn new(nat: Nat, rng: &mut StdRng) -> Self {
        let allocator = Allocator::new(nat.port_range.clone(), rng);
        Self {
            nat,
            allocator,
            outward: BTreeMap::new(),
            entries: BTreeMap::new(),
            tuples: Tuples::default(),
            swept: None,
        }
    }

    pub(crate) fn nat(&self) -> &Nat {
        &self.nat
    }

    /// The external endpoint of `internal` towards `remote`, from a new mapping if need be.
    /// Without an `outer` address the box is a firewall, and both endpoints are one.
    pub(crate) fn outbound(
        &mut self,
        internal: SocketAddr,
        remote: SocketAddr,
        outer: Option<IpAddr>,
        now: Instant,
        rng: &mut StdRng,
    ) -> Result<SocketAddr, Verdict> {
        let external = match (self.forwarded(internal, remote, now), outer) {
            (Some(external), _) => external,
            (None, Some(outer)) if self.is_bare() => self.bare_outbound(internal, remote, outer, now, rng)?,
            (None, _) => {
                let scope = outer.map_or(Scope::Everywhere, |_| self.nat.mapping.scope(remote));
                match self.mapped(internal, scope, now) {
                    Some(external) => external,
                    None => self.create(internal, scope, outer, now, rng)?,
                }
            }
        };
        let lifetime = self.nat.lifetime;
        if let Some(entry) = self.entries.get_mut(&external) {
            entry.refreshed = now;
            entry.contacts.note(remote, now, lifetime);
        }
        Ok(external)
    }

    /// The forwarded endpoint through which `remote` reached `internal`. As connection tracking
    /// does, replies leave from where the other side sent to; what `internal` sends to others has a
    /// mapping of its own.
    fn forwarded(&self, internal: SocketAddr, remote: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let is_reply = |entry: &Entry| {
            let filtering = Filtering::AddressAndPortDependent;
            entry.forwarded
                && entry.internal == internal
                && entry.contacts.admits(filtering, remote, now, self.nat.lifetime)
        };
        self.entries.iter().find(|(_, entry)| is_reply(entry)).map(|(external, _)| *external)
    }

    /// The live mapping of an internal endpoint.
    fn mapped(&self, internal: SocketAddr, scope: Scope, now: Instant) -> Option<SocketAddr> {
        self.outward.get(&(internal, scope)).copied().filter(|external| self.is_live(external, now))
    }

    fn is_bare(&self) -> bool {
        self.nat.early_packets_harm && self.nat.mapping == Mapping::EndpointIndependent
    }

    /// The external endpoint of a flow through a box without a firewall.
    fn bare_outbound(
        &mut self,
        internal: SocketAddr,
        remote: SocketAddr,
        outer: IpAddr,
        now: Instant,
        rng: &mut StdRng,
    ) -> Result<SocketAddr, Verdict> {
        if let Some(flow) =
            self.tuples.flow(internal, remote).filter(|flow| self.is_flow(internal, *flow, now))
        {
            return Ok(flow.external);
        }
        let newest = self.tuples.newest(internal).find(|flow| self.is_flow(internal, *flow, now));
        let usual = SocketAddr::new(outer, internal.port());
        let mut known = newest.map(|flow| flow.external).into_iter().chain([usual]);
        let external = known.find(|external| {
            let owned = self.entries.get(external).is_some_and(|entry| entry.internal == internal);
            owned
                && self.is_live(external, now)
                && !self.tuples.is_taken(Flow { external: *external, remote }, now)
        });
        let external = match external {
            Some(external) => external,
            None => self.create(internal, Scope::Endpoint(remote), Some(outer), now, rng)?,
        };
        self.tuples.began(internal, Flow { external, remote });
        Ok(external)
    }

    /// Returns true if this is a live flow of `internal`.
    fn is_flow(&self, internal: SocketAddr, flow: Flow, now: Instant) -> bool {
        let uses = |entry: &Entry| {
            let Flow { remote, .. } = flow;
            entry.internal == internal
                && entry.contacts.admits(Filtering::AddressAndPortDependent, remote, now, self.nat.lifetime)
        };
        self.is_live(&flow.external, now) && self.entries.get(&flow.external).is_some_and(uses)
    }

    /// The internal endpoint behind `external`, if `remote` may reach it.
    pub(crate) fn inbound(
        &mut self,
        external: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<SocketAddr, Verdict> {
        let found = self.admit(external, remote, now);
        if found.is_err() && self.is_bare() {
            self.tuples.came_unasked(Flow { external, remote }, now);
        }
        found
    }

    fn admit(
        &mut self,
        external: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<SocketAddr, Verdict> {
        if !self.is_live(&external, now) {
            return Err(Verdict::NoMapping);
        }
        let Nat { filtering, lifetime, refresh_inbound, .. } = self.nat;
        let entry = self.entries.get_mut(&external).ok_or(Verdict::NoMapping)?;
        if !entry.forwarded && !entry.contacts.admits(filtering, remote, now, lifetime) {
            return Err(Verdict::Filtered);
        }
        if entry.forwarded {
            entry.contacts.note(remote, now, lifetime);
        }
        if refresh_inbound {
            entry.refreshed = now;
            if entry.contacts.admits(Filtering::AddressAndPortDependent, remote, now, lifetime) {
                entry.contacts.note(remote, now, lifetime);
            }
        }
        Ok(entry.internal)
    }

    /// Adds a mapping by hand, in place of an existing one.
    pub(crate) fn forward(&mut self, external: SocketAddr, internal: SocketAddr, now: Instant) {
        self.remove(&external);
        let entry = Entry {
            internal,
            scope: Scope::Everywhere,
            created: now,
            refreshed: now,
            contacts: Contacts::default(),
            forwarded: true,
        };
        self.entries.insert(external, entry);
        if self.nat.mapping == Mapping::EndpointIndependent {
            self.outward.insert((internal, Scope::Everywhere), external);
        }
    }

    /// Forgets every mapping that was not made by hand.
    pub(crate) fn flush(&mut self) {
        self.entries.retain(|_, entry| entry.forwarded);
        let entries = &self.entries;
        self.outward.retain(|_, external| entries.contains_key(external));
        self.tuples = Tuples::default();
    }

    pub(crate) fn translations(&self, now: Instant) -> Vec<Translation> {
        let live = self.entries.iter().filter(|(external, _)| self.is_live(external, now));
        live.map(|(external, entry)| Translation { internal: entry.internal, external: *external }).collect()
    }

    fn is_live(&self, external: &SocketAddr, now: Instant) -> bool {
        self.entries.get(external).is_some_and(|entry| {
            let young = self.nat.absolute_lifetime.is_none_or(|limit| now - entry.created < limit);
            entry.forwarded || (young && now - entry.refreshed < self.nat.lifetime)
        })
    }

    fn create(
        &mut self,
        internal: SocketAddr,
        scope: Scope,
        outer: Option<IpAddr>,
        now: Instant,
        rng: &mut StdRng,
    ) -> Result<SocketAddr, Verdict> {
        self.sweep(now);
        if self.nat.capacity.is_some_and(|capacity| self.entries.len() >= capacity) {
            return Err(Verdict::TableFull);
        }
        let external = match outer {
            None => internal,
            Some(outer) => {
                let remote = if let Scope::Endpoint(remote) = scope { Some(remote) } else { None };
                let free = |port| {
                    let external = SocketAddr::new(outer, port);
                    let is_taken = |remote| self.tuples.is_taken(Flow { external, remote }, now);
                    !self.is_live(&external, now) && !remote.is_some_and(is_taken)
                };
                let port = self.allocator.allocate(self.nat.ports, internal, &scope, rng, free);
                let port = port.ok_or(Verdict::TableFull)?;
                self.allocator.took(port);
                SocketAddr::new(outer, port)
            }
        };
        self.remove(&external);
        let contacts = Contacts::default();
        let entry = Entry { internal, scope, created: now, refreshed: now, contacts, forwarded: false };
        self.entries.insert(external, entry);
        self.outward.insert((internal, scope), external);
        Ok(external)
    }

    /// Removes dead mappings. A table that is not full can wait: dead mappings do no harm there.
    fn sweep(&mut self, now: Instant) {
        let full = self.nat.capacity.is_some_and(|capacity| self.entries.len() >= capacity);
        if full || now - *self.swept.get_or_insert(now) >= self.nat.lifetime {
            let dead: Vec<_> = self.entries.keys().copied().filter(|key| !self.is_live(key, now)).collect();
            dead.iter().for_each(|external| self.remove(external));
            let mut tuples = std::mem::take(&mut self.tuples);
            tuples.retain(|internal, flow| self.is_flow(internal, flow, now));
            self.tuples = tuples;
            self.swept = Some(now);
        }
    }

    fn remove(&mut self, external: &SocketAddr) {
        if let Some(Entry { internal, scope, .. }) = self.entries.remove(external) {
            let key = (internal, scope);
            if self.outward.get(&key) == Some(external) {
                self.outward.remove(&key);
            }
        }
    }
}
