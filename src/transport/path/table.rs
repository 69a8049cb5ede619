//! Table of virtual connections and sockets, which finds the owner of a received datagram.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Weak},
};

use bytes::Bytes;

use super::{
    cid::{CID_LEN, Cid, CidKey},
    demux::{Kind, destination_cid, is_probe},
    flow::{BoundSocket, Flow},
};
use libp2p_punch_proto::{Path, SocketId, VirtualConnectionId};

/// Largest number of virtual connections, including lingering ones. Above the 10,000 sessions that
/// one process is designed for.
pub(super) const MAX_FLOWS: usize = 16_384;
/// Virtual connections that take packets from one path: the attempts of a session that are not
/// over, and some room. A packet without a certain owner is copied to each of them, so this bounds
/// the work for a packet. A peer that signs a candidate can have a virtual connection at any
/// address, so the places go to those with the better claim.
pub(super) const MAX_FLOWS_PER_PATH: usize = 8;

/// Claim of a virtual connection to packets from a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RoutePriority {
    /// The virtual connection is over and lingers; any other virtual connection takes its place.
    Over,
    /// A packet of the server came from there. Its source may have been forged, and no candidate or
    /// probe names the address.
    Met,
    /// A candidate or an observed address names the path.
    Announced,
    /// An authentic probe came from there, whose source may have been forged.
    Heard,
    /// The path is validated: the peer answered from there.
    Selected,
}

/// The virtual connections of one path, and the claim of each.
#[derive(Debug, Default)]
struct RouteEntry {
    flows: Vec<Arc<Flow>>,
    claims: Vec<RoutePriority>,
}

/// Reason why a virtual connection could not be opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    TooMany,
    Exists,
}

/// Owner of a packet among the virtual connections of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PacketOwner {
    /// The virtual connection at this index.
    One(usize),
    /// The virtual connection of this client, on an unnamed path.
    Client(VirtualConnectionId),
    /// The session endpoint issued its ID for some connection. quinn knows the connection, and
    /// drops packets from another's address.
    Any,
}

/// The virtual connections, their paths and the sockets.
#[derive(Debug, Default)]
pub(super) struct Table {
    flows: HashMap<VirtualConnectionId, Arc<Flow>>,
    routes: HashMap<Path, RouteEntry>,
    /// By the destination connection ID of the peer's first flight.
    originals: HashMap<Bytes, VirtualConnectionId>,
    /// Clients by the connection ID that they chose for themselves. The server may answer before
    /// the coordinator reports its address.
    clients: HashMap<Cid, VirtualConnectionId>,
    sockets: HashMap<SocketId, Arc<BoundSocket>>,
    /// Sockets that the transport gave up; they live while paths use them.
    retired: HashMap<SocketId, Weak<BoundSocket>>,
}

impl Table {
    /// Takes a virtual connection in.
    pub(super) fn open(&mut self, flow: Arc<Flow>) -> Result<(), OpenError> {
        let full = self.flows.len() >= MAX_FLOWS;
        match self.flows.entry(flow.id) {
            Entry::Occupied(_) => Err(OpenError::Exists),
            Entry::Vacant(_) if full => Err(OpenError::TooMany),
            Entry::Vacant(entry) => {
                if let Some(original) = flow.original_dcid() {
                    self.originals.insert(original.clone(), flow.id);
                }
                entry.insert(flow);
                Ok(())
            }
        }
    }

    pub(super) fn flow(&self, id: VirtualConnectionId) -> Option<Arc<Flow>> {
        self.flows.get(&id).cloned()
    }

    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Takes packets with the connection ID of a client's virtual connection from any path, until
    /// it has a selected path.
    pub(super) fn expect_server(&mut self, client: VirtualConnectionId) {
        if let Some(cid) = self.flows.get(&client).and_then(|flow| flow.cid()) {
            self.clients.insert(*cid, client);
        }
    }

    /// Takes a virtual connection out, and its paths with it.
    pub(super) fn remove(&mut self, id: VirtualConnectionId) -> Option<Arc<Flow>> {
        let flow = self.flows.remove(&id)?;
        for path in flow.admitted() {
            self.unroute(&path, id);
        }
        if let Some(original) = flow.original_dcid()
            && self.originals.get(original) == Some(&id)
        {
            self.originals.remove(original);
        }
        if let Some(cid) = flow.cid() {
            self.clients.remove(cid);
        }
        Some(flow)
    }

    /// Takes packets of `flow` from `path`. Returns the virtual connection that lost its place, or
    /// got none: this virtual connection, or one with a lesser claim. A virtual connection that is
    /// over loses its place without a report.
    pub(super) fn route(&mut self, path: Path, flow: Arc<Flow>, claim: RoutePriority) -> Option<Arc<Flow>> {
        let RouteEntry { flows, claims } = self.routes.entry(path).or_default();
        let own = flows.iter().position(|other| other.id == flow.id);
        if let Some(known) = own.and_then(|at| claims.get_mut(at)) {
            *known = claim.max(*known);
            return None;
        }
        if flows.len() < MAX_FLOWS_PER_PATH {
            flows.push(flow);
            claims.push(claim);
            return None;
        }
        let least = claims.iter_mut().zip(flows).min_by_key(|(other, _)| **other);
        match least {
            Some((other, place)) if *other < claim => {
                let was_over = std::mem::replace(other, claim) == RoutePriority::Over;
                let out = std::mem::replace(place, flow);
                (!was_over).then_some(out)
            }
            _ => Some(flow),
        }
    }

    /// Offers the places of a virtual connection that is over to others. Until another takes a
    /// place, the virtual connection continues to take packets there.
    pub(super) fn release(&mut self, flow: &Flow) {
        for path in flow.admitted() {
            let Some(RouteEntry { flows, claims }) = self.routes.get_mut(&path) else { continue };
            let places = flows.iter().zip(claims);
            places
                .filter(|(other, _)| other.id == flow.id)
                .for_each(|(_, claim)| *claim = RoutePriority::Over);
        }
    }

    /// No longer takes packets of a virtual connection from `path`.
    pub(super) fn unroute(&mut self, path: &Path, id: VirtualConnectionId) {
        if let Some(RouteEntry { flows, claims }) = self.routes.get_mut(path) {
            if let Some(at) = flows.iter().position(|flow| flow.id == id) {
                flows.remove(at);
                claims.remove(at);
            }
            if flows.is_empty() {
                self.routes.remove(path);
            }
        }
    }

    /// The virtual connections that take packets from `path`.
    pub(super) fn flows_on(&self, path: &Path) -> &[Arc<Flow>] {
        self.routes.get(path).map(|places| places.flows.as_slice()).unwrap_or_default()
    }

    /// A socket that the transport or a path still uses.
    pub(super) fn socket(&self, id: SocketId) -> Option<Arc<BoundSocket>> {
        self.sockets.get(&id).cloned().or_else(|| self.retired.get(&id)?.upgrade())
    }

    /// Adds a socket; returns the former socket with its number.
    pub(super) fn add_socket(&mut self, socket: BoundSocket) -> Option<Arc<BoundSocket>> {
        self.sockets.insert(socket.id, Arc::new(socket))
    }

    /// Leaves a socket to the paths that use it. Drop the returned handle without the table's lock:
    /// it may be the last holder.
    pub(super) fn retire_socket(&mut self, id: SocketId) -> Option<Arc<BoundSocket>> {
        self.retired.retain(|_, socket| socket.strong_count() > 0);
        let socket = self.sockets.remove(&id)?;
        self.retired.insert(id, Arc::downgrade(&socket));
        Some(socket)
    }

    /// Classifies a datagram that came on a path from which `flows` take packets.
    pub(super) fn classify(&self, datagram: &[u8], flows: &[Arc<Flow>], key: &CidKey) -> Kind<PacketOwner> {
        if is_probe(datagram) {
            return Kind::Probe;
        }
        let Some((destination, long)) = destination_cid(datagram, CID_LEN) else { return Kind::Other };
        if let Some(at) = flows.iter().position(|flow| flow.owns(destination, long)) {
            return Kind::Session(PacketOwner::One(at));
        }
        if let Some(id) = self.clients.get(destination)
            && let Some(flow) = self.flows.get(id).filter(|flow| !flow.has_path())
        {
            flow.hear();
            return Kind::Session(PacketOwner::Client(*id));
        }
        // The binding's endpoint would take it for a plain connection, and the session would be
        // two.
        if long && self.originals.contains_key(destination) {
            return Kind::UnroutedInitial;
        }
        match flows {
            [] => Kind::Other,
            _ if !key.issued(destination) => Kind::Other,
            [flow] => {
                flow.hear();
                Kind::Session(PacketOwner::One(0))
            }
            _ => Kind::Session(PacketOwner::Any),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::path::cid::SessionCids;
    use quinn::ConnectionIdGenerator as _;

    fn path(n: u16) -> Path {
        Path { socket: SocketId(0), remote: ([192, 0, 2, 1], n).into() }
    }

    fn flow(n: u64) -> Arc<Flow> {
        Arc::new(Flow::new(VirtualConnectionId(n), &[]))
    }

    fn short(cid: &[u8]) -> Vec<u8> {
        [&[0x41], cid, &[0; 20]].concat()
    }

    #[test]
    fn flows_are_bounded_and_numbers_are_not_used_twice() {
        let mut table = Table::default();
        for n in 0..MAX_FLOWS as u64 {
            assert_eq!(table.open(flow(n)), Ok(()));
        }
        assert_eq!(table.open(flow(3)), Err(OpenError::Exists));
        assert_eq!(table.open(flow(u64::MAX)), Err(OpenError::TooMany));
        assert!(table.remove(VirtualConnectionId(3)).is_some());
        assert_eq!(table.open(flow(u64::MAX)), Ok(()));
    }

    #[test]
    fn the_document_gives_the_number_of_places() {
        let row = format!(
            "| virtual connections that take QUIC packets from one address at one socket | {MAX_FLOWS_PER_PATH} |"
        );
        assert!(include_str!("../../../docs/protocol.md").contains(&row));
    }

    #[test]
    fn flows_of_a_path_are_bounded_and_the_better_claim_gets_the_place() {
        let mut table = Table::default();
        let mut route = |to: u16, n: u64, claim| {
            let out = table.route(path(to), flow(n), claim).map(|flow| flow.id.0);
            assert!(table.flows_on(&path(to)).len() <= MAX_FLOWS_PER_PATH);
            out
        };
        for n in 0..MAX_FLOWS_PER_PATH as u64 {
            assert_eq!(route(1, n, RoutePriority::Announced), None);
        }
        assert_eq!(route(1, 0, RoutePriority::Announced), None, "it has a place");
        assert_eq!(route(1, 99, RoutePriority::Announced), Some(99));
        assert_eq!(route(2, 99, RoutePriority::Announced), None, "another path");
        assert_eq!(route(1, 99, RoutePriority::Heard), Some(0), "the first of those that proved nothing");
        for n in 1..MAX_FLOWS_PER_PATH as u64 {
            assert_eq!(route(1, n, RoutePriority::Heard), None);
        }
        assert_eq!(route(1, 50, RoutePriority::Heard), Some(50));
        assert_eq!(route(1, 50, RoutePriority::Selected), Some(99));
        assert_eq!(route(1, 50, RoutePriority::Announced), None, "a claim never gets worse");
        for n in 1..MAX_FLOWS_PER_PATH as u64 {
            assert_eq!(route(1, n, RoutePriority::Selected), None);
        }
        assert_eq!(route(1, 99, RoutePriority::Selected), Some(99));
        table.unroute(&path(1), VirtualConnectionId(50));
        assert!(table.route(path(1), flow(99), RoutePriority::Announced).is_none());
    }

    #[test]
    fn a_packet_goes_to_the_flow_whose_id_it_bears() {
        let key = CidKey::new(&[3; 32]).unwrap();
        let table = Table::default();
        let flows = [flow(1), flow(2)];
        flows[0].named(Some([1; 8]));
        flows[1].named(Some([2; 8]));
        assert_eq!(table.classify(&short(&[2; 8]), &flows, &key), Kind::Session(PacketOwner::One(1)));
        assert_eq!(table.classify(&short(&[7; 8]), &flows, &key), Kind::Other, "a plain connection's");
        let later = SessionCids(key.clone()).generate_cid();
        assert_eq!(table.classify(&short(&later), &flows, &key), Kind::Session(PacketOwner::Any));
        assert_eq!(table.classify(&short(&later), &flows[..1], &key), Kind::Session(PacketOwner::One(0)));
        assert_eq!(table.classify(&short(&later), &[], &key), Kind::Other, "nobody takes packets from there");
        assert_eq!(table.classify(&[4, 0], &[], &key), Kind::Probe);
    }
    #[test]
    fn a_client_hears_its_server_on_any_path_until_its_flow_is_over() {
        let key = CidKey::new(&[3; 32]).unwrap();
        let mut table = Table::default();
        let client = flow(1);
        client.named(Some([1; 8]));
        table.open(client).unwrap();
        assert_eq!(table.classify(&short(&[1; 8]), &[], &key), Kind::Other, "it has asked for nothing yet");
        table.expect_server(VirtualConnectionId(1));
        assert_eq!(
            table.classify(&short(&[1; 8]), &[], &key),
            Kind::Session(PacketOwner::Client(VirtualConnectionId(1)))
        );
        assert_eq!(
            table.classify(&short(&[1; 8]), &[flow(2)], &key),
            Kind::Session(PacketOwner::Client(VirtualConnectionId(1)))
        );
        assert_eq!(table.classify(&short(&[2; 8]), &[], &key), Kind::Other);
        table.remove(VirtualConnectionId(1));
        assert_eq!(table.classify(&short(&[1; 8]), &[], &key), Kind::Other);
    }

    #[test]
    fn a_first_flight_is_never_taken_for_a_plain_connection() {
        let key = CidKey::new(&[3; 32]).unwrap();
        let initial = Bytes::from_static(&[0xc0, 0, 0, 0, 1, 4, 1, 2, 3, 4, 0]);
        let mut table = Table::default();
        let flow = Arc::new(Flow::new(VirtualConnectionId(1), std::slice::from_ref(&initial)));
        table.open(flow.clone()).unwrap();
        assert_eq!(table.classify(&initial, &[], &key), Kind::UnroutedInitial);
        assert_eq!(table.classify(&initial, &[flow], &key), Kind::Session(PacketOwner::One(0)));
        table.remove(VirtualConnectionId(1));
        assert_eq!(table.classify(&initial, &[], &key), Kind::Other);
    }
}
