//! Dials of the swarm that wait for a session.

use std::{
    collections::BTreeMap,
    task::{Context, Poll},
};

use futures::channel::oneshot;
use libp2p_identity::PeerId;

use crate::transport::{Connection, Error, notice::DialRequest};

type Reply = oneshot::Sender<Result<(PeerId, Connection), Error>>;

/// Dials in flight, by peer. The session of a peer answers the first that still waits.
#[derive(Debug, Default)]
pub(super) struct Dials(BTreeMap<PeerId, Vec<Reply>>);

impl Dials {
    pub(super) fn add(&mut self, request: DialRequest) {
        self.0.entry(request.peer).or_default().push(request.reply);
    }

    /// Gives the connection to a dial that waits for it; without one, gives it back.
    pub(super) fn succeed(&mut self, peer: PeerId, connection: Connection) -> Result<(), Connection> {
        let mut outcome = Ok((peer, connection));
        for reply in self.0.remove(&peer).unwrap_or_default() {
            match reply.send(outcome) {
                Ok(()) => return Ok(()),
                Err(unsent) => outcome = unsent,
            }
        }
        outcome.map_or(Ok(()), |(_, connection)| Err(connection))
    }

    pub(super) fn fail(&mut self, peer: &PeerId, error: impl Fn() -> Error) {
        for reply in self.0.remove(peer).unwrap_or_default() {
            // Whoever dialed may have lost interest; then nobody needs to know.
            let _ = reply.send(Err(error()));
        }
    }

    /// Peers whose every dial was dropped, because the swarm got there by another address.
    pub(super) fn cancelled(&mut self, cx: &mut Context<'_>) -> Vec<PeerId> {
        for replies in self.0.values_mut() {
            replies.retain_mut(|reply| reply.poll_canceled(cx) == Poll::Pending);
        }
        let gone: Vec<_> =
            self.0.iter().filter(|(_, replies)| replies.is_empty()).map(|(peer, _)| *peer).collect();
        self.0.retain(|_, replies| !replies.is_empty());
        gone
    }
}
