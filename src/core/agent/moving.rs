//! Connected sessions one of whose peers has moved.
//!
//! Its challenges do not get through a NAT in front of the other peer that filters by address and port, until that peer
//! has sent to the new address. So a coordinator, which sees both, passes on where it is.

use std::time::{Duration, Instant};

use super::{Agent, initiator::MAX_ASKED};
use crate::core::{
    candidate::{Candidate, keep_best},
    frame::{Frame, PunchMoved},
    keys::MAC_LEN,
    limits::Rate,
    links::Link,
    pair::Origin,
    session::{Session, Target},
    targets::Policy,
};

/// How often a peer may say that it moved. Each time may cost the probes of one checklist.
const MOVES: Rate = Rate { interval: Duration::from_secs(1), burst: 3 };

impl Agent {
    /// We have learned a new address of ours: peers whose paths are in doubt are told, through all coordinators that both
    /// sides may have in common.
    pub(super) fn tell_moved(&mut self) {
        let in_doubt = |session: &Session| {
            session.is_connected() && session.checklist.as_ref().is_some_and(|list| list.is_in_doubt())
        };
        let coordinators = self.registrar.connected();
        let candidates = self.network.candidates_for(false);
        for key in self.sessions.keys() {
            let Some(session) = self.sessions.get(key).filter(|session| in_doubt(session)) else { continue };
            let Some(keys) = session.keys() else { continue };
            let (peer, name) = (session.peer, session.id);
            let mut moved = PunchMoved {
                peer,
                session: name,
                candidates: candidates.clone(),
                authenticator: [0; MAC_LEN],
            };
            moved.authenticator = keys.authenticate(&moved.covered());
            for (_, link) in coordinators.iter().filter(|(id, _)| *id != peer).take(MAX_ASKED) {
                self.out.frame(*link, Frame::PunchMoved(Box::new(moved.clone())));
            }
        }
    }

    /// A peer says, or somebody on its way does, that it moved; `false` if no session of ours is meant.
    pub(super) fn peer_moved(&mut self, link: &Link, moved: &PunchMoved, now: Instant) -> bool {
        let is_meant = |session: &Session| session.id == moved.session && session.is_connected();
        let key =
            self.sessions.of_peer(&moved.peer).find(|key| self.sessions.get(*key).is_some_and(is_meant));
        let Some((key, session)) = key.and_then(|key| Some((key, self.sessions.get_mut(key)?))) else {
            return false;
        };
        if !session.keys().is_some_and(|keys| keys.verify(&moved.covered(), &moved.authenticator)) {
            self.out.refuse_frame();
            return true;
        }
        if !session.moves.take(MOVES, now) {
            self.out.cap_hit();
            return true;
        }
        let policy = Policy {
            prefixes: &self.network.prefixes(),
            reflexive: &self.network.observations.reflexive_ips(),
            own: &self.network.own_addresses(),
            coordinator: link.remote,
            observed: None,
        };
        let mut candidates = moved.candidates.clone();
        candidates.retain(|candidate| policy.allows(candidate.address));
        if keep_best(&mut candidates, self.settings.max_candidates) > 0 {
            self.out.cap_hit();
        }
        let target =
            |c: &Candidate| Target { remote: c.address, priority: c.priority, origin: Origin::Announced };
        session.targets = candidates.iter().map(target).collect();
        self.wake(key, now);
        self.extend_checklist(key, None, now);
        if let Some(checklist) = self.sessions.get_mut(key).and_then(|session| session.checklist.as_mut()) {
            candidates.iter().for_each(|candidate| checklist.revive(candidate.address, now));
        }
        self.pump(key, now);
        true
    }
}
