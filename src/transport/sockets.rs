//! The transport's part when sockets are replaced: names, the driver, and the connections that
//! depend on them.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    Transport,
    binding::Binding,
    connection_stats::ConnectionOrigin,
    interfaces::ADDRESS_GONE,
    notice::Notice,
    shared_endpoint::SharedEndpoint,
    socket::{Replacement, SocketNews},
};

impl Transport {
    /// The socket of a listener was replaced.
    pub(super) fn on_listener_replaced(&mut self, index: usize, replacement: &Replacement) {
        let env = self.env.clone();
        let Some(listener) = self.listeners.get_mut(index) else { return };
        let before = listener.binding.wire.id();
        let renamed = listener.replaced(&env, replacement);
        let (binding, accepts) = (Binding::clone(&listener.binding), listener.is_home());
        match renamed {
            Ok(false) => {}
            Ok(true) => {
                self.retire(before);
                self.announce(&binding, accepts);
            }
            Err(error) => tracing::warn!(kind = %error.kind(), "endpoint does not take its new socket"),
        }
        if replacement.before.port() != replacement.after.port() {
            self.close_accepted(&binding.wire);
        }
    }

    /// Replaces the names of client-only sockets that were replaced.
    pub(super) fn poll_clients(&mut self, cx: &mut Context<'_>) {
        let env = self.env.clone();
        for index in 0..self.clients.len() {
            while let Some(client) = self.clients.get_mut(index)
                && let Poll::Ready(news) = client.poll_news(cx)
            {
                // The socket has logged its failure, and there is no listener to report it for.
                let SocketNews::Replaced(replacement) = news else { continue };
                let before = client.wire.id();
                match client.replaced(&env, &replacement) {
                    Ok(false) => {}
                    Ok(true) => {
                        let binding = Binding::clone(client);
                        self.retire(before);
                        self.announce(&binding, false);
                    }
                    Err(error) => {
                        tracing::warn!(kind = %error.kind(), "endpoint does not take its new socket")
                    }
                }
            }
        }
    }

    /// Closes the connections that peers made to a port that is gone: servers do not move in QUIC
    /// version 1.
    fn close_accepted(&mut self, wire: &Arc<SharedEndpoint>) {
        for live in self.env.connections.live() {
            let accepted =
                matches!(live.through(), ConnectionOrigin::Listener | ConnectionOrigin::PunchAsListener);
            if accepted && live.wire().is_some_and(|other| Arc::ptr_eq(other, wire)) {
                self.notices.push(Notice::Lost { peer: live.peer(), dialed: None });
                live.connection.close(0u32.into(), ADDRESS_GONE);
            }
        }
    }
}
