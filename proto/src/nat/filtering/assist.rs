//! Filtering tests by two coordinators (`docs/protocol.md` §7.8): a coordinator with a single
//! address asks another to send from its address, too.
//!
//! An assisting coordinator sends at most three datagrams to an address with which it has no
//! connection. No other part of the protocol does so. The request must come from a coordinator that
//! the operator has configured.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    AssistResponse, ROUNDS,
    sending::{Due, Sending, SendingPlan, Sockets},
};
use crate::{
    ControlStreamId,
    address_policy::{Scope, scope},
    control_streams::ControlStream,
    rate_limit::{PeerBuckets, Rate},
};

/// Limit on the requests of a coordinator, for a steady arrival of new clients.
pub(crate) const ASSIST_RATE: Rate = Rate { interval: Duration::from_secs(1), burst: 10 };
/// Maximum number of simultaneous requests of all coordinators.
pub(crate) const MAX_ASSISTS: usize = 256;
/// Maximum number of coordinators with a limit, more than an operator configures.
const MAX_ASKERS: usize = 1024;
/// Time for the other coordinator to answer, from the first round on.
const ASSIST_TIMEOUT: Duration = Duration::from_secs(2);

/// State of the request to another coordinator.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    /// There is no other coordinator, or it has sent nothing.
    Nobody,
    /// The first round will send the request over this control stream.
    Due(ControlStreamId),
    /// The request was sent, and may be answered until this time.
    CoordinatorRequest(ControlStreamId, Instant),
    /// The other coordinator reports that it has sent every round from this address.
    Sent(SocketAddr),
}

impl Ask {
    pub(super) fn of(other: Option<ControlStreamId>) -> Self {
        other.map_or(Self::Nobody, Self::Due)
    }

    /// Marks a request that is due as sent, and returns its control stream.
    pub(super) fn begin(&mut self, now: Instant) -> Option<ControlStreamId> {
        let Self::Due(stream) = *self else { return None };
        *self = Self::CoordinatorRequest(stream, now + ASSIST_TIMEOUT);
        Some(stream)
    }

    pub(super) fn waits_for(&self, stream: ControlStreamId) -> bool {
        matches!(self, Self::CoordinatorRequest(asked, _) if *asked == stream)
    }

    /// Returns the time until which an answer may arrive.
    pub(super) fn waits_until(&self, now: Instant) -> Option<Instant> {
        match *self {
            Self::CoordinatorRequest(_, until) if until > now => Some(until),
            _ => None,
        }
    }

    /// Returns the state after an answer.
    pub(super) fn answered(rounds: u8, source: Option<SocketAddr>) -> Self {
        // Fewer datagrams than this coordinator sends allow no conclusion.
        source.filter(|_| usize::from(rounds) == ROUNDS).map_or(Self::Nobody, Self::Sent)
    }

    /// Ends a request over a control stream that has closed. Returns true if there was one.
    pub(super) fn lost(&mut self, stream: ControlStreamId) -> bool {
        let is_it = matches!(self, Self::Due(other) | Self::CoordinatorRequest(other, _) if *other == stream);
        if is_it {
            *self = Self::Nobody;
        }
        is_it
    }

    /// Returns the address of the other coordinator, if its silence is evidence for a client at
    /// `remote`. The address and all of `ours` must be global. Do not add a second source if a
    /// client may see this coordinator at an unknown address: the result would be ambiguous.
    pub(super) fn source_beside(&self, ours: &[SocketAddr], remote: SocketAddr) -> Option<SocketAddr> {
        let Self::Sent(source) = *self else { return None };
        let is_global = |address: &SocketAddr| scope(address.ip()) == Scope::Global;
        let is_other = ours.iter().all(|own| own.ip() != source.ip());
        let tells = is_global(&source) && is_other && ours.iter().all(is_global);
        (tells && source.is_ipv4() == remote.is_ipv4()).then_some(source)
    }
}

/// Datagrams that this coordinator sends for other coordinators.
#[derive(Debug)]
pub(super) struct Assists {
    by_name: BTreeMap<(ControlStreamId, [u8; 8]), Sending>,
    askers: PeerBuckets,
}

impl Assists {
    pub(super) fn new() -> Self {
        Self { by_name: BTreeMap::new(), askers: PeerBuckets::new(ASSIST_RATE, MAX_ASKERS) }
    }

    pub(super) fn begin(
        &mut self,
        from: &ControlStream,
        plan: SendingPlan,
        sockets: &mut Sockets,
        now: Instant,
    ) -> Option<Vec<IpAddr>> {
        let name = (from.id, plan.data);
        let has_room = self.by_name.len() < MAX_ASSISTS && !self.by_name.contains_key(&name);
        if !has_room || self.askers.take(from.peer, now).is_err() {
            return None;
        }
        let (sending, missing) = Sending::new(plan, sockets, now);
        self.by_name.insert(name, sending);
        Some(missing)
    }

    pub(super) fn opened(&mut self, sockets: &Sockets, now: Instant) {
        for sending in self.by_name.values_mut() {
            sending.opened(sockets, now);
        }
    }

    pub(super) fn stream_down(&mut self, stream: ControlStreamId) {
        self.by_name.retain(|(asker, _), _| *asker != stream);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.by_name.values().map(Sending::due).min()
    }

    pub(super) fn poll(&mut self, sockets: &Sockets, now: Instant, due: &mut Due) {
        self.by_name.retain(|(stream, data), sending| {
            if sending.due() > now {
                return true;
            }
            let open = sending.open(sockets);
            if let Some(open) = &open
                && sending.send(open, now, &mut due.transmits)
            {
                return true;
            }
            let source = open.and_then(|open| open.first().map(|(_, address)| *address));
            let rounds = source.map_or(0, |_| sending.rounds());
            due.assisted.push((*stream, AssistResponse { data: *data, rounds, source }));
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::PeerId;

    use super::*;
    use crate::nat::filtering::{AssistRequest, FilteringTestServer};

    fn coordinator(id: u64, peer: PeerId) -> ControlStream {
        ControlStream::new(ControlStreamId(id), peer, None, None)
    }

    fn at(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    #[test]
    fn what_all_coordinators_together_get_is_bounded_and_free_again_once_it_is_sent() {
        let (mut filters, now, own) = (FilteringTestServer::new(), Instant::now(), [at("203.0.113.1:4001")]);
        let mut taken = 0;
        for asker in 0..40 {
            let from = coordinator(asker, PeerId::random());
            for data in 0..20u64 {
                let target = at("198.51.100.2:4001");
                let request = AssistRequest { data: data.to_be_bytes(), key: [0; 32], target };
                taken += usize::from(filters.assist(&from, request, &own, now).is_some());
            }
        }
        assert_eq!(taken, MAX_ASSISTS);
        // The socket could not be opened.
        let later = filters.next_deadline().unwrap();
        let due = filters.poll(later, |_| None);
        assert_eq!((due.assisted.len(), due.transmits.len()), (MAX_ASSISTS, 0));
        assert!(due.assisted.iter().all(|(_, answer)| answer.rounds == 0 && answer.source.is_none()));
        let request = AssistRequest { data: [1; 8], key: [0; 32], target: at("198.51.100.2:4001") };
        assert!(filters.assist(&coordinator(99, PeerId::random()), request, &own, later).is_some());
    }

    #[test]
    fn a_source_is_named_only_if_its_silence_tells_something() {
        let (ours, remote) = ([at("203.0.113.1:7000")], at("198.51.100.2:4001"));
        let named = |source: &str, ours: &[SocketAddr]| Ask::Sent(at(source)).source_beside(ours, remote);
        assert_eq!(named("203.0.113.2:7000", &ours), Some(at("203.0.113.2:7000")));
        for source in
            ["203.0.113.1:7001", "10.0.0.1:7000", "127.0.0.1:7000", "224.0.0.1:7000", "[2001:db8::1]:7000"]
        {
            assert_eq!(named(source, &ours), None, "{source}");
        }
        assert_eq!(named("203.0.113.2:7000", &[at("10.0.0.1:7000")]), None, "we are translated");
    }

    #[test]
    fn only_whoever_says_that_it_has_sent_everything_is_believed() {
        let source = Some(at("203.0.113.2:7000"));
        assert!(matches!(Ask::answered(3, source), Ask::Sent(_)));
        for (rounds, source) in [(0, source), (2, source), (4, source), (3, None)] {
            assert!(matches!(Ask::answered(rounds, source), Ask::Nobody), "{rounds}");
        }
    }
}
