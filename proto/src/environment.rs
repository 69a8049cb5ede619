//! Surroundings of the objects that make up an endpoint.
//!
//! Each object owns its state and changes it in its own methods. An input is a method
//! `handle_…(&mut self, cx, …)` with a [`Context`]: the time, and the [`Environment`] that all
//! objects share. Outputs go to the out-box of the environment. An object with timers has
//! `next_deadline` and `handle_timeout`.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use libp2p_identity::{Keypair, PeerId};
use rand::rngs::StdRng;

use crate::{
    ControlStreamId, SocketId,
    config::{Config, Role},
    control_streams::ControlStreams,
    event::{Event, SessionRole},
    local_addresses::LocalAddresses,
    outbox::Outbox,
    registration_client::{Announcement, RegistrationClient},
    wire::{
        frame::{Frame, PunchAnswer},
        keys::{ProbeKeys, ProbeSecret},
    },
};

/// Keys of this peer.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) peer: PeerId,
    pub(crate) keypair: Keypair,
    /// The public half is part of every registration.
    pub(crate) probe_secret: ProbeSecret,
}

impl Identity {
    /// Returns the probe keys of an initiator, if `peer` has signed the registration that a
    /// coordinator answers.
    pub(crate) fn keys_of(
        &self,
        secret: &ProbeSecret,
        answer: &PunchAnswer,
        peer: PeerId,
    ) -> Option<ProbeKeys> {
        answer.verify(peer).ok()?;
        let (theirs, role) = (&answer.registration.probe_key, SessionRole::Initiator);
        ProbeKeys::derive(secret, theirs, answer.session, &self.peer, &peer, role).ok()
    }
}

/// State that all objects of an endpoint read, and the out-box to which they write.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) identity: Identity,
    pub(crate) config: Config,
    pub(crate) rng: StdRng,
    pub(crate) streams: ControlStreams,
    pub(crate) local: LocalAddresses,
    pub(crate) registrations: RegistrationClient,
    pub(crate) out: Outbox,
}

impl Environment {
    /// Returns the context of an input at `now`.
    pub(crate) fn at(&mut self, now: Instant) -> Context<'_> {
        Context { now, env: self }
    }

    /// Returns true if the operator configured this peer as a coordinator. A peer that is a
    /// coordinator only because it is reachable does not send where other coordinators want.
    pub(crate) fn is_operated(&self) -> bool {
        matches!(self.config.role, Role::Server | Role::Bootstrap)
    }

    /// Returns the socket of the connection to a coordinator, the best coordinator first.
    pub(crate) fn coordinated_socket(&self) -> Option<SocketId> {
        let coordinators = self.registrations.connected();
        let socket = coordinators.into_iter().find_map(|(_, id)| self.streams.get(id)?.socket)?;
        self.local.socket(socket).map(|_| socket)
    }

    /// Returns the addresses at which coordinators see this peer, with the number of independent
    /// coordinators that do.
    pub(crate) fn public_addresses(&self) -> BTreeMap<IpAddr, usize> {
        self.local.observations.witnesses()
    }
}

/// Context of one input.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) env: &'a mut Environment,
}

impl Context<'_> {
    /// Forms the local candidates again after a change of addresses, and announces the difference
    /// to the coordinators.
    pub(crate) fn refresh_candidates(&mut self) {
        if self.env.local.refresh() {
            self.env.registrations.candidates_changed(self.now);
        }
    }

    /// Reports mappings whose behaviour is newly known.
    pub(crate) fn report_mappings(&mut self) {
        for (socket, view) in self.env.local.changed_views() {
            self.env.out.event(Event::Mapping {
                socket,
                mapping: view.mapping,
                port_preserved: view.port_preserved,
                allocation_step: view.allocation_step,
            });
        }
    }

    /// Sends the registrations that are due, with this NAT report.
    pub(crate) fn register(&mut self, nat: bytes::Bytes) {
        let Environment { config, identity, rng, streams, local, registrations, out, .. } = &mut *self.env;
        let announcement = Announcement {
            keypair: &identity.keypair,
            probe_key: identity.probe_secret.public(),
            nat,
            disclosure: config.disclosure,
            local,
            streams,
        };
        registrations.handle_timeout(&announcement, self.now, rng, out);
    }

    /// Ends the registration with a coordinator at once. Otherwise it lasts for its lifetime.
    pub(crate) fn withdraw(&mut self, coordinator: &PeerId) {
        let Environment { identity, registrations, out, .. } = &mut *self.env;
        registrations.withdraw(coordinator, &identity.keypair, identity.probe_secret.public(), out);
    }

    /// Tells a peer the address at which this peer sees it.
    pub(crate) fn tell_observed_address(&mut self, id: ControlStreamId) {
        if let Some((sequence, address)) = self.env.streams.observe(id) {
            self.env.out.frame(id, Frame::ObservedAddress { sequence, address });
        }
    }
}
