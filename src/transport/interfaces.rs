//! Reactions to changes of the machine's interface addresses: sockets that lost their address, and
//! connections that must move.
//!
//! Plain connections when our address changes:
//!
//! - A connection that we dialed moves, as QUIC's client may (RFC 9000 §9). It sends a PING at
//!   once. If the server does not follow, as stock `libp2p-quic` does not, it is closed soon after.
//! - A connection that the peer dialed is closed: QUIC version 1 has no way for a server to move.
//!
//! Traversal sessions are moved by the endpoint, from either side. If the endpoint finds no path,
//! because the peer's NAT blocks our new address, the session is closed as well.
//!
//! A connection that is closed here could only have waited for its idle time-out. The behaviour
//! dials the peer again; without a behaviour, the application must.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    Transport,
    binding::Binding,
    connection_stats::ConnectionOrigin,
    context::TransportContext,
    live::ConnectionEntry,
    notice::{self, Notice},
    time::Delay,
};
use crate::io::{Change, InterfaceWatch};

/// Least time for a server to answer a client that has moved. A PING and its first retransmissions
/// fit in.
const MIGRATION_TIMEOUT: Duration = Duration::from_millis(900);
/// The same for a session, whose endpoint must find a path first: its probes come at 0, 33, 67 …
/// 1,067 ms.
const SESSION_MIGRATION_TIMEOUT: Duration = Duration::from_millis(2_000);
/// Interval of the checks of a connection meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The same in round-trip times, for paths that are longer.
const PATIENCE_RTTS: u32 = 4;
/// Reason that a peer gets, if it can be reached, when a connection is given up.
pub(super) const ADDRESS_GONE: &[u8] = b"address gone";

impl Transport {
    /// Begins to watch, unless we do already.
    pub(super) fn watch_interfaces(&mut self) {
        if self.interfaces.is_none() {
            let (network, runtime) = (self.env.network.clone(), self.env.runtime.clone());
            self.interfaces = Some(InterfaceWatch::start(network, runtime));
        }
    }

    pub(super) fn poll_interfaces(&mut self, cx: &mut Context<'_>) {
        while let Some(interfaces) = &mut self.interfaces {
            match interfaces.poll_change(cx) {
                Poll::Ready(Some(change)) => self.on_interface_change(&change),
                // The runtime has ended, and with it everything that could change.
                Poll::Ready(None) => self.interfaces = None,
                Poll::Pending => break,
            }
        }
    }

    fn on_interface_change(&mut self, change: &Change) {
        for listener in &mut self.listeners {
            listener.follow(change);
            listener.binding.retry_now();
        }
        self.clients.iter().for_each(Binding::retry_now);
        let gone = change.down.iter().map(|address| (*address, false));
        let mut changed: BTreeMap<IpAddr, bool> = gone.collect();
        changed.extend(change.up.iter().map(|(address, _)| (*address, true)));
        if !changed.is_empty() {
            self.follow_sockets(&changed);
            self.follow_connections(&changed);
        }
    }

    /// Updates the listeners of one address that disappeared or came back.
    fn follow_sockets(&mut self, changed: &BTreeMap<IpAddr, bool>) {
        let env = self.env.clone();
        for index in 0..self.listeners.len() {
            let Some(listener) = self.listeners.get_mut(index) else { break };
            let Some(up) = changed.get(&listener.binding.local.ip()) else { continue };
            let before = listener.binding.wire.id();
            let moved = if *up { listener.return_home(&env) } else { listener.leave_home(&env) };
            match moved {
                Ok(false) => {}
                Ok(true) => {
                    let binding = Binding::clone(&listener.binding);
                    self.retire(before);
                    self.announce(&binding, *up);
                }
                Err(error) => {
                    tracing::warn!(listener = ?listener.id, "socket cannot move");
                    tracing::debug!(local = %listener.binding.local, %error, "socket cannot move");
                }
            }
        }
    }

    fn follow_connections(&mut self, changed: &BTreeMap<IpAddr, bool>) {
        let mut refreshed = BTreeSet::new();
        for live in self.env.connections.live() {
            let is_gone = live.source().is_some_and(|source| changed.get(&source) == Some(&false));
            match live.through() {
                ConnectionOrigin::Dial if self.has_moved(&live) => {
                    tracing::debug!(peer = %live.peer(), "our address changed, the connection moves");
                    if let Some(wire) = live.wire()
                        && refreshed.insert(wire.id())
                        && let Err(error) = wire.refresh()
                    {
                        tracing::warn!(kind = %error.kind(), "socket cannot be used anew");
                    }
                    self.watch_over(&live, MIGRATION_TIMEOUT);
                }
                ConnectionOrigin::Session(_) if self.has_moved(&live) => {
                    self.watch_over(&live, SESSION_MIGRATION_TIMEOUT)
                }
                ConnectionOrigin::Dial | ConnectionOrigin::Session(_) => {}
                ConnectionOrigin::Listener | ConnectionOrigin::PunchAsListener => {
                    if is_gone {
                        tracing::debug!(peer = %live.peer(), "our address is gone, and the connection with it");
                        // The notice comes first, so that its receiver can distinguish this end
                        // from others.
                        self.notices.push(Notice::Lost { peer: live.peer(), dialed: None });
                        live.connection.close(0u32.into(), ADDRESS_GONE);
                    }
                }
            }
        }
    }

    /// Records the present source address, and returns true if it has changed. Without any route
    /// there is no address to move to.
    fn has_moved(&self, live: &ConnectionEntry) -> bool {
        let source = live.remote().and_then(|remote| self.env.network.source_for(remote.ip()).ok());
        source.is_some_and(|source| live.sends_from(source))
    }

    fn watch_over(&self, live: &Arc<ConnectionEntry>, patience: Duration) {
        let check =
            give_up_unless_heard(self.env.clone(), Arc::downgrade(live), patience, self.notices.sender());
        self.env.runtime.spawn(Box::pin(check));
    }
}

/// Closes a connection whose peer does not answer our datagrams from the new address. A connection
/// without data has its idle time-out.
async fn give_up_unless_heard(
    env: Arc<TransportContext>,
    connection: Weak<ConnectionEntry>,
    patience: Duration,
    notices: Option<mpsc::Sender<Notice>>,
) {
    let counts = || {
        let stats = connection.upgrade()?.connection.stats();
        Some((stats.udp_tx.datagrams, stats.udp_rx.datagrams, stats.path.rtt))
    };
    let Some((mut sent, heard, rtt)) = counts() else { return };
    let patience = patience.max(rtt * PATIENCE_RTTS);
    let begin = env.runtime.now();
    let mut asked = None;
    while env.runtime.now() - begin < env.quic.config().max_idle_timeout {
        Delay::new(&*env.runtime, POLL_INTERVAL).await;
        let Some((sent_now, heard_now, _)) = counts() else { return };
        if heard_now != heard {
            return;
        }
        if asked.is_none() && sent_now != sent {
            // At the earliest when we looked before.
            asked = Some(env.runtime.now() - POLL_INTERVAL);
        }
        sent = sent_now;
        if asked.is_some_and(|asked| env.runtime.now() - asked >= patience)
            && let Some(live) = connection.upgrade()
        {
            tracing::debug!(peer = %live.peer(), "the peer is not heard from since our address changed");
            // Without a driver no component would dial.
            let dialed = live.remote().filter(|_| live.through() == ConnectionOrigin::Dial);
            let _ = notice::tell(notices, Notice::Lost { peer: live.peer(), dialed }).await;
            return live.connection.close(0u32.into(), ADDRESS_GONE);
        }
    }
}
